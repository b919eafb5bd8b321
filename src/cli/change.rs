//! `ringswitch port`, `mac`, `mirror`, `set` and `reload`: change the switch that runs.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use hyper::Method;
use ringswitch::api::config::{Changed, MirrorConfig};
use ringswitch::api::{Flushed, Station};
use serde::Serialize;
use serde_json::{Map, Value};

use super::client::{Client, ClientError, escaped};
use super::show::SOCKET;
use crate::Failure;

const PORT_EXAMPLES: &str = "\
Examples:
  ringswitch port add vm3 socket=/run/ringswitch/vm3.sock
  ringswitch port add mon type=tap device=rs-mon
  ringswitch port set vm3 mac-limit=16 group=tenant-a
  ringswitch port set vm3 group=
  ringswitch port remove vm3

KEY=VALUE as in [[port]] of a configuration file; KEY= goes back to the default. What isn't
concerned loses no frame. Changes last as long as the switch has no other file to go by:
`ringswitch show config` prints what to write there.";

/// How the switch is asked.
#[derive(Debug, Args)]
pub struct Asking {
    /// The switch's API socket
    #[arg(long, global = true, value_name = "PATH", env = "RINGSWITCH_API", default_value = SOCKET)]
    api_socket: PathBuf,
    /// Print JSON, as the API has it
    #[arg(long, global = true)]
    json: bool,
    /// Say what would change, and change nothing
    #[arg(long, global = true)]
    dry_run: bool,
}

#[derive(Debug, Args)]
#[command(after_help = PORT_EXAMPLES)]
pub struct PortArgs {
    #[command(subcommand)]
    command: PortCommand,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, Subcommand)]
enum PortCommand {
    /// Add a port; a guest's vhost-user port unless `type` says otherwise
    Add {
        /// Its name
        #[arg(value_name = "PORT")]
        name: String,
        /// Its settings
        #[arg(value_name = "KEY=VALUE", required = true, value_parser = setting)]
        settings: Vec<Setting>,
    },
    /// Change settings of a port; a guest whose socket or queues change is disconnected
    Set {
        /// Its name
        #[arg(value_name = "PORT")]
        name: String,
        /// What to change
        #[arg(value_name = "KEY=VALUE", required = true, value_parser = setting)]
        settings: Vec<Setting>,
    },
    /// Remove a port; its guest is disconnected
    Remove {
        /// Its name
        #[arg(value_name = "PORT")]
        name: String,
    },
}

#[derive(Debug, Args)]
pub struct MacArgs {
    #[command(subcommand)]
    command: MacCommand,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, Subcommand)]
enum MacCommand {
    /// Give an address to a port: it is there and nowhere else, and never ages
    Add {
        /// As in 52:54:00:12:34:56
        address: String,
        /// The port's name
        port: String,
    },
    /// Forget an address, whether it was learned or given
    Remove {
        /// As in 52:54:00:12:34:56
        address: String,
    },
    /// Forget all addresses that were learned, or those of a port
    Flush {
        /// The port's name
        port: Option<String>,
    },
}

#[derive(Debug, Args)]
pub struct MirrorArgs {
    #[command(subcommand)]
    command: MirrorCommand,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, Subcommand)]
enum MirrorCommand {
    /// Copy a port's frames to another one, which takes part in nothing else
    Add {
        /// Whose frames
        port: String,
        /// Where the copies go
        to: String,
        /// Which ones: what comes from the port, what is to leave by it
        #[arg(long, value_enum, default_value_t = Directions::Both)]
        directions: Directions,
    },
    /// Copy them no more
    Remove {
        /// Whose frames
        port: String,
        /// Where the copies go
        to: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Directions {
    Both,
    In,
    Out,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ringswitch set mac-table.ageing-seconds=60
  ringswitch set workers.mode=poll --dry-run

TABLE.KEY=VALUE as in a configuration file; TABLE.KEY= goes back to the default.")]
pub struct SetArgs {
    /// What to change
    #[arg(value_name = "TABLE.KEY=VALUE", required = true, value_parser = setting)]
    settings: Vec<Setting>,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Without FILE, the switch reads again the file that it was started with, as SIGHUP has it do. The
settings are taken over as a whole or, if anything is wrong with them, not at all. What isn't
concerned loses no frame. What takes another process (workers, sockets of the switch itself, the
sandbox) is refused: `ringswitch upgrade` does that, without a lost frame either.")]
pub struct ReloadArgs {
    /// The file to go by
    file: Option<PathBuf>,
    #[command(flatten)]
    asking: Asking,
}

/// A key and its new value.
#[derive(Debug, Clone)]
struct Setting {
    key: String,
    value: Value,
}

/// `KEY=VALUE`: numbers, words, and lists with commas between their parts.
fn setting(text: &str) -> Result<Setting, String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    let last = key.rsplit('.').next().unwrap_or(key);
    let value = match (last, value) {
        ("", _) => return Err("there is no key before `=`; expected KEY=VALUE".to_owned()),
        (_, "") => Value::Null,
        ("macs" | "cpus", list) => list.split(',').map(|part| scalar(last, part)).collect(),
        (last, value) => scalar(last, value),
    };
    Ok(Setting { key: key.to_owned(), value })
}

fn scalar(key: &str, text: &str) -> Value {
    // A file's mode is text in the file, too.
    let number = text.parse::<i64>().ok().filter(|_| key != "mode" && key != "owner");
    match (number, text) {
        (Some(number), _) => number.into(),
        (None, "true") => true.into(),
        (None, "false") => false.into(),
        (None, text) => text.into(),
    }
}

/// Runs the command.
///
/// # Errors
///
/// No switch answers, or it refuses; nothing has changed then.
pub fn port(args: &PortArgs) -> Result<(), Failure> {
    let object = |settings: &[Setting]| -> Map<String, Value> {
        settings.iter().map(|setting| (setting.key.clone(), setting.value.clone())).collect()
    };
    match &args.command {
        PortCommand::Add { name, settings } => {
            let mut port = object(settings);
            port.insert("name".to_owned(), name.as_str().into());
            port.entry("type").or_insert_with(|| "vhost-user".into());
            port.retain(|_, value| !value.is_null());
            args.asking.change(&Method::POST, "/ports", &port)
        }
        PortCommand::Set { name, settings } => {
            args.asking.change(&Method::PATCH, &one(name), &object(settings))
        }
        PortCommand::Remove { name } => args.asking.change(&Method::DELETE, &one(name), &()),
    }
}

fn one(port: &str) -> String {
    format!("/ports/{}", escaped(port))
}

/// Runs the command.
///
/// # Errors
///
/// As [`port`].
pub fn mac(args: &MacArgs) -> Result<(), Failure> {
    let asking = &args.asking;
    let path = |address: &str| format!("/macs/{}", escaped(address));
    match &args.command {
        MacCommand::Add { address, port } => {
            asking.change(&Method::PUT, &path(address), &Station { port: port.clone() })
        }
        MacCommand::Remove { address } => asking.change(&Method::DELETE, &path(address), &()),
        MacCommand::Flush { port } => {
            let query = port.as_ref().map(|port| format!("?port={}", escaped(port)));
            let path = asking.path(&format!("/macs{}", query.unwrap_or_default()));
            let client = Client::new(&asking.api_socket)?;
            let flushed: Flushed = client.send(&Method::DELETE, &path, &())?;
            let would = if asking.dry_run { "would be " } else { "" };
            asking.print(&flushed, &format!("{would}{} forgotten", flushed.forgotten))
        }
    }
}

/// Runs the command.
///
/// # Errors
///
/// As [`port`].
pub fn mirror(args: &MirrorArgs) -> Result<(), Failure> {
    match &args.command {
        MirrorCommand::Add { port, to, directions } => {
            let directions = match directions {
                Directions::Both => "both",
                Directions::In => "in",
                Directions::Out => "out",
            };
            let mirror = MirrorConfig {
                port: Some(port.clone()),
                to: Some(to.clone()),
                directions: Some(directions.to_owned()),
            };
            args.asking.change(&Method::POST, "/mirrors", &mirror)
        }
        MirrorCommand::Remove { port, to } => {
            let path = format!("/mirrors?port={}&to={}", escaped(port), escaped(to));
            args.asking.change(&Method::DELETE, &path, &())
        }
    }
}

/// Runs the command.
///
/// # Errors
///
/// As [`port`].
pub fn set(args: &SetArgs) -> Result<(), Failure> {
    let mut patch = Map::new();
    for Setting { key, value } in &args.settings {
        let Some((table, key)) = key.split_once('.') else {
            return Err(Failure::NoTable(key.clone()));
        };
        let table = patch.entry(table).or_insert_with(|| Map::new().into());
        if let Some(table) = table.as_object_mut() {
            table.insert(key.to_owned(), value.clone());
        }
    }
    args.asking.change(&Method::PATCH, "/config", &patch)
}

/// Runs the command.
///
/// # Errors
///
/// As [`port`]; the file can't be read.
pub fn reload(args: &ReloadArgs) -> Result<(), Failure> {
    let Some(file) = &args.file else {
        return args.asking.change(&Method::POST, "/reload", &());
    };
    let text = std::fs::read(file).map_err(|error| Failure::File(file.clone(), error))?;
    let asking = &args.asking;
    let (client, path) = (Client::new(&asking.api_socket)?, asking.path("/config"));
    let changed = client.send_as(&Method::PUT, &path, "application/toml", text)?;
    asking.print_change(&changed)
}

impl Asking {
    fn change(&self, method: &Method, path: &str, body: &impl Serialize) -> Result<(), Failure> {
        let path = self.path(path);
        self.print_change(&Client::new(&self.api_socket)?.send(method, &path, body)?)
    }

    fn path(&self, path: &str) -> String {
        let joint = if path.contains('?') { '&' } else { '?' };
        format!("{path}{joint}dry_run={}", self.dry_run)
    }

    fn print_change(&self, changed: &Changed) -> Result<(), Failure> {
        let would = if self.dry_run { "would be " } else { "" };
        self.print(changed, &format!("{would}{changed}"))
    }

    fn print(&self, answer: &impl Serialize, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        if self.json {
            let json = serde_json::to_string_pretty(answer);
            writeln!(out, "{}", json.map_err(|error| ClientError::Answer(error.into()))?)?;
        } else {
            writeln!(out, "{text}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_what_a_file_would_have() {
        for (text, value) in [
            ("mac-limit=10", json!(10)),
            ("mode=0660", json!("0660")),
            ("mode=660", json!("660")),
            ("owner=0:0", json!("0:0")),
            ("isolated=true", json!(true)),
            ("group=", json!(null)),
            (
                "macs=52:54:00:00:00:01,52:54:00:00:00:02",
                json!(["52:54:00:00:00:01", "52:54:00:00:00:02"]),
            ),
            ("workers.cpus=1,2", json!([1, 2])),
            ("socket=/a=b", json!("/a=b")),
        ] {
            assert_eq!(setting(text).map(|setting| setting.value), Ok(value), "{text}");
        }
        assert!(setting("group").is_err() && setting("=x").is_err());
    }
}
