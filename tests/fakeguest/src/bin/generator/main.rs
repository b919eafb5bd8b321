//! A load generator: two fake guests on one core, with frames going between them through any
//! vhost-user backend. `benches/peers/run` uses it in the place of dpdk-testpmd, `benches/alone/run`
//! for all that it measures.
//!
//! ```text
//! generator SOCKET SOCKET [SOCKET ...] [--listen] [--ring N] [--rx-buffer BYTES]
//!           [--max-frame BYTES] [--mtu BYTES] [--pairs N] [--addresses N] [--huge-pages]
//!           [--no-mergeable] [--in-order] [--packed]
//! ```
//!
//! The guests at the third and all further sockets are attached and do nothing. With `--addresses`
//! there are so many stations behind each of the two others, which take turns.
//!
//! Theory of operation: the loop is closed. For every frame that a guest receives, the other one
//! sends the next, so nothing is generated or dropped and the rate is that of the slower side. The
//! frames lie ready in guest memory; a round takes what came, gives the buffers back and sends as
//! many again. Per burst, not per frame: publication, kick, time stamp. Each direction is a queue
//! that keeps its order, so the time stamps of the bursts sent, in order, give the one-way time of
//! every frame received. `offer` and `gap` are for an open loop, from the first guest to the second.
//!
//! Commands are lines on stdin; each is answered with one line of JSON on stdout. Frames go on
//! circulating in between. The end of stdin is the end.
//!
//! | command | does |
//! |---|---|
//! | `load SIZE INFLIGHT` | from now on frames of SIZE bytes, up to INFLIGHT in each direction; with 0 none go round |
//! | `window SECONDS` | counts for that long |
//! | `offer RATE SECONDS` | sends RATE frames a second, whatever comes of them; with 0 as fast as they are taken |
//! | `gap MICROSECONDS COUNT` | sends COUNT frames one by one, so long after the last one arrived |

mod histogram;
mod load;
mod options;

use std::io::{self, BufRead, Write};
use std::sync::mpsc::{self, Receiver, TryRecvError};

use load::{Generator, tsc};
use options::Options;

/// Rounds between two looks at the commands.
const ROUNDS: u32 = 64;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

fn command(generator: &mut Generator, line: &str) -> Result<String> {
    let words: Vec<_> = line.split_whitespace().collect();
    match words[..] {
        ["load", size, in_flight] => generator.load(size.parse()?, in_flight.parse()?),
        ["window", seconds] => Ok(generator.window(seconds.parse()?)),
        ["offer", rate, seconds] => generator.offer(rate.parse()?, seconds.parse()?),
        ["gap", micros, count] => generator.gap(micros.parse()?, count.parse()?),
        _ => Err(format!("{line:?} is no command").into()),
    }
}

/// Keeps frames going round and does what it is told, until the end of the commands.
fn serve(generator: &mut Generator, commands: &Receiver<String>) -> Result<()> {
    let mut now = tsc();
    loop {
        match commands.try_recv() {
            Ok(line) => {
                println!("{}", command(generator, &line)?);
                io::stdout().flush()?;
                now = tsc();
            }
            Err(TryRecvError::Disconnected) => return Ok(()),
            Err(TryRecvError::Empty) => {}
        }
        for _ in 0..ROUNDS {
            now = generator.round(now);
        }
    }
}

fn main() -> Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    let mut generator = Generator::attach(options)?;
    let (sender, commands) = mpsc::channel();
    std::thread::spawn(move || {
        // An unreadable stdin is the end of the commands as well.
        for line in io::stdin().lock().lines().map_while(io::Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    println!(r#"{{"ready": true}}"#);
    io::stdout().flush()?;
    serve(&mut generator, &commands)
}
