//! `ringswitch capture`: frames of some ports, for Wireshark and tcpdump.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::sync::oneshot;

use super::client::{Client, escaped};
use super::show::SOCKET;
use crate::Failure;

const EXAMPLES: &str = "\
Examples:
  ringswitch capture vm1 -w vm1.pcapng
  ringswitch capture vm1,uplink tcp and port 80 -w - | tcpdump -nr -
  ringswitch capture vm1 dropped -w drops.pcapng --seconds 60
  ssh host ringswitch capture vm1 -w - | wireshark -k -i -

A filter is made of arp, ip, ip6, tcp, udp, icmp, icmp6, broadcast, multicast, dropped,
[src|dst] host ADDRESS, [src|dst] net ADDRESS/BITS, [src|dst] port NUMBER, ether [src|dst] MAC,
and, or, not and parentheses.

Each frame's comment says where it went or came from, or why it was dropped. Ctrl-C ends it. Frames
that found no room are counted in the interface's statistics; other traffic isn't held up.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CaptureArgs {
    /// The ports, with commas between them
    #[arg(value_name = "PORT[,PORT...]")]
    ports: String,
    /// Which frames; all unless said
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    /// The file to write, or - for standard output
    #[arg(short = 'w', long = "write", value_name = "FILE")]
    write: PathBuf,
    /// Bytes to keep of each frame; whole frames unless said
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(14..))]
    snaplen: Option<u32>,
    /// How long; until Ctrl-C unless said
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: Option<u32>,
    /// The switch's API socket
    #[arg(long, value_name = "PATH", env = "RINGSWITCH_API", default_value = SOCKET)]
    api_socket: PathBuf,
}

/// What to capture.
#[derive(Debug)]
pub struct Frames<'a> {
    /// Names of ports, with commas between them.
    pub ports: &'a str,
    /// All if it is empty.
    pub filter: &'a str,
    /// Bytes of each frame; whole frames unless said.
    pub snaplen: Option<u32>,
}

impl Frames<'_> {
    fn path(&self) -> String {
        let mut path = format!("/capture?ports={}", escaped(self.ports));
        if !self.filter.is_empty() {
            path += &format!("&filter={}", escaped(self.filter));
        }
        if let Some(snaplen) = self.snaplen {
            path += &format!("&snaplen={snaplen}");
        }
        path
    }
}

/// Runs the command.
///
/// # Errors
///
/// No switch answers, or not as wished; the file can't be written.
pub fn run(args: &CaptureArgs) -> Result<(), Failure> {
    let client = Client::new(&args.api_socket)?;
    if args.write == Path::new("-") && io::stdout().is_terminal() {
        return Err(Failure::Terminal);
    }
    let filter = args.filter.join(" ");
    let frames = Frames { ports: &args.ports, filter: &filter, snaplen: args.snaplen };
    write(&client, &frames, args.seconds, &args.write)
}

/// Writes frames to a file, or to standard output if that is `-`, for so many seconds or until
/// Ctrl-C or SIGTERM.
///
/// # Errors
///
/// As [`run`].
pub fn write(
    client: &Client,
    frames: &Frames<'_>,
    seconds: Option<u32>,
    to: &Path,
) -> Result<(), Failure> {
    let mut out = Out { path: to, to: None };
    client.stream(&frames.path(), over(seconds)?, |bytes| out.write(bytes))
}

/// Waits for Ctrl-C or SIGTERM, but no longer than for so many seconds.
pub fn over(seconds: Option<u32>) -> io::Result<impl Future<Output = ()>> {
    let signal = signal()?;
    Ok(async move {
        let time = async {
            match seconds {
                Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds.into())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = time => {}
            _ = signal => {}
        }
    })
}

/// Hears of Ctrl-C and SIGTERM. By a thread: tokio's own signals would be part of the switch's
/// runtime, too, and ask its sandbox for a pair of sockets.
fn signal() -> io::Result<oneshot::Receiver<()>> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let (tell, heard) = oneshot::channel();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        if signals.forever().next().is_some() {
            // Nobody hears it any more: it is over anyway.
            let _ = tell.send(());
        }
    })?;
    Ok(heard)
}

/// Where frames go. The file is made with the first ones: what the switch refuses changes nothing.
struct Out<'a> {
    path: &'a Path,
    to: Option<Box<dyn Write>>,
}

impl Out<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let failed = |error| Failure::Capture(self.path.to_owned(), error);
        let to = match &mut self.to {
            Some(to) => to,
            none if self.path == Path::new("-") => none.insert(Box::new(io::stdout())),
            none => none.insert(Box::new(File::create(self.path).map_err(failed)?)),
        };
        to.write_all(bytes).and_then(|()| to.flush()).map_err(failed)
    }
}
