//! `ringswitch show`: tables of what the switch does.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use ringswitch::api::config::Config;
use ringswitch::api::{Flow, Mac, Port, Worker};
use serde::Serialize;

use super::client::{Client, escaped};
use super::tables;
use crate::Failure;

/// Where the API is unless said otherwise.
pub const SOCKET: &str = "/run/ringswitch/api.sock";
/// Moves the cursor of a terminal home and clears what follows.
const HOME: &str = "\x1b[H\x1b[J";
const EXAMPLES: &str = "\
Examples:
  ringswitch show ports
  ringswitch show ports --watch
  ringswitch show port vm1 --json
  ringswitch show flows
  ringswitch show drops";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ShowArgs {
    #[command(subcommand)]
    pub what: What,
    /// The switch's API socket
    #[arg(long, global = true, value_name = "PATH", env = "RINGSWITCH_API", default_value = SOCKET)]
    api_socket: PathBuf,
    /// Print JSON, as the API has it
    #[arg(long, global = true)]
    json: bool,
    /// Show it again each second, or each N seconds, with what was counted by the second
    #[arg(long, global = true, value_name = "N", num_args = 0..=1, default_missing_value = "1", value_parser = clap::value_parser!(u32).range(1..=3600))]
    watch: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub enum What {
    /// All ports
    Ports,
    /// One port, with all its counters
    Port {
        /// Its name
        #[arg(value_name = "PORT")]
        name: String,
    },
    /// The threads that move frames
    Workers,
    /// The addresses that were learned
    Macs,
    /// Who talks to whom: what went from port to port, most bytes first
    Flows,
    /// Frames that were dropped, by port and reason, most first
    Drops,
    /// The settings that it goes by, as a configuration file
    Config,
}

/// Runs the command.
///
/// # Errors
///
/// No switch answers; standard output is closed.
pub fn run(args: &ShowArgs) -> Result<(), Failure> {
    let client = Client::new(&args.api_socket)?;
    let mut last = None;
    loop {
        let now = Seen::ask(&client, &args.what)?;
        let text = if args.json { now.json() } else { now.text(last.as_ref()) };
        let mut out = io::stdout().lock();
        if args.watch.is_some() && !args.json {
            if out.is_terminal() {
                write!(out, "{HOME}")?;
            } else if last.is_some() {
                writeln!(out)?;
            }
        }
        writeln!(out, "{text}")?;
        out.flush()?;
        drop(out);
        let Some(seconds) = args.watch else { return Ok(()) };
        last = Some(now);
        sleep(Duration::from_secs(seconds.into()));
    }
}

/// What the switch said, and when.
struct Seen {
    at: Instant,
    said: Said,
}

enum Said {
    Ports(Vec<Port>),
    Port(Box<Port>),
    Workers(Vec<Worker>),
    Macs(Vec<Mac>),
    /// With the ports, which say who is a guest.
    Flows(Vec<Flow>, Vec<Port>),
    Drops(Vec<Port>),
    Config(Box<Config>),
}

impl Seen {
    fn ask(client: &Client, what: &What) -> Result<Self, Failure> {
        let said = match what {
            What::Ports => Said::Ports(client.get("/ports")?),
            What::Port { name } => Said::Port(client.get(&format!("/ports/{}", escaped(name)))?),
            What::Workers => Said::Workers(client.get("/workers")?),
            What::Macs => Said::Macs(client.get("/macs")?),
            What::Flows => Said::Flows(client.get("/flows")?, client.get("/ports")?),
            What::Drops => Said::Drops(client.get("/ports")?),
            What::Config => Said::Config(client.get("/config")?),
        };
        Ok(Self { at: Instant::now(), said })
    }

    fn json(&self) -> String {
        fn text(value: &impl Serialize) -> String {
            serde_json::to_string_pretty(value).unwrap_or_default()
        }
        match &self.said {
            Said::Ports(ports) | Said::Drops(ports) => text(ports),
            Said::Port(port) => text(port),
            Said::Workers(workers) => text(workers),
            Said::Macs(macs) => text(macs),
            Said::Flows(flows, _) => text(flows),
            Said::Config(config) => text(config),
        }
    }

    /// For people. With what was seen before, counters are those of a second.
    fn text(&self, before: Option<&Self>) -> String {
        let secs = before.map_or(0.0, |before| (self.at - before.at).as_secs_f64());
        let said = before.map(|before| &before.said);
        match (&self.said, said) {
            (Said::Ports(now), Some(Said::Ports(then))) => tables::ports(now, Some((then, secs))),
            (Said::Ports(now), _) => tables::ports(now, None),
            (Said::Port(now), Some(Said::Port(then))) => tables::port(now, Some((then, secs))),
            (Said::Port(now), _) => tables::port(now, None),
            (Said::Workers(now), Some(Said::Workers(then))) => {
                tables::workers(now, Some((then, secs)))
            }
            (Said::Workers(now), _) => tables::workers(now, None),
            (Said::Macs(now), _) => tables::macs(now),
            (Said::Flows(now, ports), Some(Said::Flows(then, _))) => {
                tables::flows(now, ports, Some((then, secs)))
            }
            (Said::Flows(now, ports), _) => tables::flows(now, ports, None),
            (Said::Drops(now), Some(Said::Drops(then))) => tables::drops(now, Some((then, secs))),
            (Said::Drops(now), _) => tables::drops(now, None),
            (Said::Config(now), _) => {
                toml::to_string(now).unwrap_or_default().trim_end().to_owned()
            }
        }
    }
}
