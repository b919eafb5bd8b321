//! `ringswitch trace`: the way that a frame would go, and the way that real frames go.

mod file;
mod frame;
mod live;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{ArgGroup, Args};
use ringswitch::api::{Mac, Port, Trace, TraceRequest};
use ringswitch::frame::{MAX_FRAME, MIN_FRAME};
use ringswitch::wire::ethernet::MacAddr;
use ringswitch::wire::hex;

use super::client::{Client, escaped};
use super::show::SOCKET;
use super::tables;
use crate::Failure;
pub use frame::TraceError;
use frame::{Built, Packet, What};

const EXAMPLES: &str = "\
Examples:
  ringswitch trace vm1 tcp 10.0.0.1:1234 10.0.0.2:80 --to vm2
  ringswitch trace vm1 udp 10.0.0.1 224.0.0.251:5353
  ringswitch trace vm1 icmp fd00::1 fd00::2 --from 52:54:00:00:00:01 --to 52:54:00:00:00:02
  ringswitch trace vm1 arp 10.0.0.1 10.0.0.2
  ringswitch trace vm1 hex ffffffffffff525400000001 0806
  ringswitch trace vm1 pcap drops.pcapng 3
  ringswitch trace --live vm1
  ringswitch trace --live vm1 tcp and port 80 --count 20

WHAT is one of
  tcp|udp FROM[:PORT] TO[:PORT]   a packet between two IP addresses
  icmp FROM TO                    an echo request
  arp FROM TO                     who has TO?
  hex BYTES...                    a frame in hex digits, with blanks and colons or without; - reads
                                  them from standard input
  pcap FILE [N]                   the first frame of a pcap or pcapng file, or the N-th
or, with --live, a filter as of `ringswitch capture`.

Nothing is sent, learned or counted: each step asks what decides about real frames, as things are
now. --live shows a sample of the frames that really come from the port and go there, and how long
after a worker had read each one it was decided about and had left. Ctrl-C ends it.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[command(group = ArgGroup::new("frame").args(["from", "to", "vlan", "size", "tso"]).multiple(true).conflicts_with("live"))]
pub struct TraceArgs {
    /// The port that the frame comes from
    #[arg(value_name = "PORT")]
    port: String,
    /// The frame, or with --live which ones; see below
    #[arg(value_name = "WHAT", required_unless_present = "live")]
    what: Vec<String>,
    /// The sender's MAC address [default: the only one that was learned at PORT]
    #[arg(long, value_name = "MAC")]
    from: Option<MacAddr>,
    /// The receiver's MAC address, or the port where one address was learned
    #[arg(long, value_name = "MAC|PORT")]
    to: Option<String>,
    /// With this VLAN tag
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u16).range(1..4095))]
    vlan: Option<u16>,
    /// The frame's length in bytes [default: the shortest]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(i64::from(MIN_FRAME)..=i64::from(MAX_FRAME)))]
    size: Option<u32>,
    /// To be cut into segments of so many bytes of payload, of which there are ten unless --size
    /// says more or less
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1..))]
    tso: Option<u16>,
    /// Show real frames of the port, from now on
    #[arg(long)]
    live: bool,
    /// With --live: end after so many
    #[arg(long, value_name = "N", requires = "live", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// With --live: end after so long; Ctrl-C unless said
    #[arg(long, value_name = "N", requires = "live", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: Option<u32>,
    /// Print JSON, as the API has it
    #[arg(long)]
    json: bool,
    /// The switch's API socket
    #[arg(long, value_name = "PATH", env = "RINGSWITCH_API", default_value = SOCKET)]
    api_socket: PathBuf,
}

/// Runs the command.
///
/// # Errors
///
/// No switch answers, or not as wished; that is no frame.
pub fn run(args: &TraceArgs) -> Result<(), Failure> {
    let client = Client::new(&args.api_socket)?;
    if args.live {
        return live::run(args, &client);
    }
    let Built { bytes, header } = match What::parse(&args.port, &args.what)? {
        What::Packet(packet) => args.build(&client, &packet)?,
        _ if args.from.is_some() || args.to.is_some() => return Err(TraceError::Ready.into()),
        _ if args.vlan.is_some() || args.size.is_some() || args.tso.is_some() => {
            return Err(TraceError::Ready.into());
        }
        What::Bytes(bytes) => Built { bytes, ..Built::default() },
        What::File { path, number } => {
            Built { bytes: file::frame(&path, number)?, ..Built::default() }
        }
    };
    let least = MIN_FRAME as usize;
    if !(least..=MAX_FRAME as usize).contains(&bytes.len()) {
        return Err(TraceError::Length(bytes.len()).into());
    }
    let request = TraceRequest { port: args.port.clone(), frame: hex::encode(&bytes), header };
    let trace: Trace = client.send(&hyper::Method::POST, "/trace", &request)?;
    let text = match args.json {
        true => serde_json::to_string_pretty(&trace).unwrap_or_default(),
        false => tables::trace(&trace),
    };
    Ok(writeln!(io::stdout(), "{text}")?)
}

impl TraceArgs {
    /// Makes a packet a frame, with addresses that the switch knows.
    fn build(&self, client: &Client, packet: &Packet) -> Result<Built, Failure> {
        // Whether there is such a port, before anything else.
        let _: Port = client.get(&format!("/ports/{}", escaped(&self.port)))?;
        let macs: Vec<Mac> = client.get("/macs")?;
        let from = match self.from {
            Some(mac) => mac,
            None => only(&macs, &self.port, "--from MAC")?,
        };
        let to = match (&self.to, packet.group()) {
            (Some(text), _) => match text.parse() {
                Ok(mac) => mac,
                Err(_) => self.at(client, &macs, text)?,
            },
            (None, Some(group)) => group,
            (None, None) => {
                let known: Vec<_> = macs.iter().collect();
                return Err(TraceError::NoDestination(packet.to(), list(&known)).into());
            }
        };
        Ok(packet.build((from, to), self.vlan, self.size, self.tso)?)
    }

    /// The only address at a port that is given for one.
    fn at(&self, client: &Client, macs: &[Mac], text: &str) -> Result<MacAddr, Failure> {
        let ports: Vec<Port> = client.get("/ports")?;
        if ports.iter().any(|port| port.name == text) {
            return Ok(only(macs, text, "--to MAC")?);
        }
        let names: Vec<_> = ports.into_iter().map(|port| port.name).collect();
        Err(TraceError::NoPort(text.to_owned(), names.join(", ")).into())
    }
}

/// The only address that was learned at a port; else `option` has to say one.
fn only(macs: &[Mac], port: &str, option: &'static str) -> Result<MacAddr, TraceError> {
    let there: Vec<_> = macs.iter().filter(|mac| mac.port == port).collect();
    match there.as_slice() {
        [] => Err(TraceError::NoneLearned(port.to_owned(), option)),
        [only] => Ok(only.address.parse()?),
        several => Err(TraceError::Several(port.to_owned(), option, list(several))),
    }
}

/// Addresses and where they are. A table may have a million: some will do.
fn list(macs: &[&Mac]) -> String {
    const SHOWN: usize = 8;
    let all = macs.iter().map(|mac| format!("{} at {}", mac.address, mac.port));
    let mut shown: Vec<_> = all.take(SHOWN).collect();
    match macs.len() {
        0 => shown.push("nothing yet".to_owned()),
        count if count > SHOWN => shown.push("...".to_owned()),
        _ => {}
    }
    shown.join(", ")
}
