//! `ringswitch extcap`: the ports of the switch as interfaces of Wireshark, by its interface for
//! capture programs (extcap(4)).
//!
//! Wireshark calls it once for each question, with options for names, and reads answers of the form
//! `word {key=value}{key=value}`. To capture, it makes a fifo, ends the program with SIGTERM, and may
//! close the fifo before.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;

use clap::{ArgGroup, Args};
use ringswitch::api::Port;
use ringswitch::wire::filter::Filter;

use super::capture::{self, Frames};
use super::client::{Client, ClientError};
use super::show::SOCKET;
use crate::Failure;

/// The interface of all ports. That of one port has a dash and its name behind.
const ALL: &str = "ringswitch";

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("question").multiple(true).required(true)
    .args(["extcap_interfaces", "extcap_dlts", "extcap_config", "capture", "extcap_capture_filter"]))]
pub struct ExtcapArgs {
    /// Which interfaces are there?
    #[arg(long)]
    extcap_interfaces: bool,
    /// Which link types has the interface?
    #[arg(long, requires = "extcap_interface")]
    extcap_dlts: bool,
    /// Which options has it?
    #[arg(long, requires = "extcap_interface")]
    extcap_config: bool,
    /// Capture frames
    #[arg(long, requires_all = ["extcap_interface", "fifo"])]
    capture: bool,
    /// The interface
    #[arg(long, value_name = "INTERFACE")]
    extcap_interface: Option<String>,
    /// Which frames to capture; without --capture: is that a filter?
    #[arg(long, value_name = "FILTER")]
    extcap_capture_filter: Option<String>,
    /// Wireshark's version
    #[arg(long, value_name = "VERSION")]
    extcap_version: Option<String>,
    /// Where to write frames
    #[arg(long, value_name = "PATH")]
    fifo: Option<PathBuf>,
    /// Bytes to keep of each frame; 0: whole frames
    #[arg(long, value_name = "BYTES", default_value = "0")]
    snaplen: u32,
    /// The switch's API socket
    #[arg(long, value_name = "PATH", env = "RINGSWITCH_API", default_value = SOCKET)]
    api_socket: PathBuf,
}

/// Runs the command.
///
/// # Errors
///
/// No switch answers, or not as wished; the fifo can't be written.
pub fn run(args: &ExtcapArgs) -> Result<(), Failure> {
    let filter = args.extcap_capture_filter.as_deref().unwrap_or_default();
    let answer = if args.extcap_interfaces {
        // Without a switch there are none: Wireshark asks each time that it is started.
        let ports = Client::new(&args.api_socket);
        let ports = ports.and_then(|client| client.get::<Vec<Port>>("/ports"));
        interfaces(&ports.unwrap_or_default())
    } else if args.extcap_dlts {
        "dlt {number=1}{name=EN10MB}{display=Ethernet}\n".to_owned()
    } else if args.extcap_config {
        config()
    } else if args.capture {
        return capture(args, filter);
    } else {
        // No answer is the best one.
        filter.parse::<Filter>().err().map(|error| format!("{error}\n")).unwrap_or_default()
    };
    Ok(io::stdout().write_all(answer.as_bytes())?)
}

fn interfaces(ports: &[Port]) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut text = format!("extcap {{version={version}}}{{display=Ringswitch}}\n");
    let mut interface = |value: &str, display: &str| {
        // To a string: it can't fail.
        let _ = writeln!(text, "interface {{value={value}}}{{display=Ringswitch: {display}}}");
    };
    if !ports.is_empty() {
        interface(ALL, "all ports");
    }
    for port in ports {
        interface(&format!("{ALL}-{}", port.name), &port.name);
    }
    text
}

fn config() -> String {
    "arg {number=0}{call=--snaplen}{display=Bytes of each frame}{type=unsigned}{default=0}\
     {tooltip=0: whole frames}\n"
        .to_owned()
}

fn capture(args: &ExtcapArgs, filter: &str) -> Result<(), Failure> {
    let client = Client::new(&args.api_socket)?;
    let interface = args.extcap_interface.as_deref().unwrap_or_default();
    let ports = match interface.strip_prefix(ALL).map(|rest| (rest, rest.strip_prefix('-'))) {
        Some(("", _)) => {
            let ports: Vec<Port> = client.get("/ports")?;
            ports.into_iter().map(|port| port.name).collect::<Vec<_>>().join(",")
        }
        Some((_, Some(port))) => port.to_owned(),
        _ => {
            let error = format!("there is no interface {interface:?}: ask for --extcap-interfaces");
            return Err(ClientError::Refused(error).into());
        }
    };
    let fifo = args.fifo.as_deref().unwrap_or_else(|| "-".as_ref());
    let snaplen = Some(args.snaplen).filter(|bytes| *bytes > 0);
    let frames = Frames { ports: &ports, filter, snaplen };
    match capture::write(&client, &frames, None, fifo) {
        // Wireshark has what it wants.
        Err(Failure::Capture(_, error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_switch_there_are_no_interfaces() {
        let text = interfaces(&[]);
        assert!(text.starts_with("extcap {version=") && text.lines().count() == 1, "{text}");
    }
}
