//! A load generator: two fake guests on one core, with a fixed number of frames going round between
//! them through any vhost-user backend. `benches/peers/run` uses it in the place of dpdk-testpmd.
//!
//! ```text
//! generator SOCKET SOCKET [--listen] [--ring N] [--rx-buffer BYTES] [--max-frame BYTES]
//!           [--mtu BYTES] [--huge-pages] [--no-mergeable] [--in-order] [--packed]
//! ```
//!
//! Theory of operation: the loop is closed. For every frame that a guest receives, the other one
//! sends the next, so nothing is generated or dropped and the rate is that of the slower side. The
//! frames lie ready in guest memory; a round takes what came, gives the buffers back and sends as
//! many again. Per burst, not per frame: publication, kick, time stamp. Each direction is a queue
//! that keeps its order, so the time stamps of the bursts sent, in order, give the one-way time of
//! every frame received.
//!
//! Commands are lines on stdin; each is answered with one line of JSON on stdout. Frames go on
//! circulating in between. The end of stdin is the end.
//!
//! | command | does |
//! |---|---|
//! | `load SIZE INFLIGHT` | from now on frames of SIZE bytes, up to INFLIGHT in each direction |
//! | `window SECONDS` | counts for that long |

use std::collections::VecDeque;
use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::{Duration, Instant};

use fakeguest::frames::{Flow, HEADER_LEN};
use fakeguest::{Frame, Guest, Layout, Role, features};

/// Frames taken from a ring at a time: Linux's NAPI weight.
const BURST: u64 = 64;
/// How long frames may take to come home.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a backend may take until frames pass.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// Rounds between two looks at the commands.
const ROUNDS: u32 = 64;
/// Bytes that the frames to send take at most, as far as more than one is in flight: about the
/// socket buffers of one fast TCP connection.
const WORKING_SET: usize = 4 << 20;
/// Ethernet, IPv4 and TCP headers without options.
const HEADERS: usize = 54;
/// What a page holds of a frame's payload.
const PAGE: usize = 4096;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

struct Options {
    sockets: [PathBuf; 2],
    role: Role,
    ring: u16,
    rx_buffer: usize,
    max_frame: usize,
    mtu: usize,
    huge_pages: bool,
    mergeable: bool,
    in_order: bool,
    packed: bool,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Options> {
        let mut sockets = Vec::new();
        let mut options = Options {
            sockets: Default::default(),
            role: Role::Connect,
            ring: 1024,
            rx_buffer: 2048 + HEADER_LEN,
            max_frame: 9014,
            mtu: 9000,
            huge_pages: false,
            mergeable: true,
            in_order: false,
            packed: false,
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--listen" => options.role = Role::Listen,
                "--ring" => options.ring = value()?.parse()?,
                "--rx-buffer" => options.rx_buffer = value()?.parse()?,
                "--max-frame" => options.max_frame = value()?.parse()?,
                "--mtu" => options.mtu = value()?.parse()?,
                "--huge-pages" => options.huge_pages = true,
                "--no-mergeable" => options.mergeable = false,
                "--in-order" => options.in_order = true,
                "--packed" => options.packed = true,
                _ if word.starts_with('-') => return Err(format!("{word} is unknown").into()),
                _ => sockets.push(PathBuf::from(word)),
            }
        }
        options.sockets = sockets.try_into().map_err(|_| "two sockets are needed")?;
        Ok(options)
    }

    fn attach(&self, socket: &PathBuf) -> io::Result<Guest> {
        let (mut with, mut without) = (0, 0);
        if self.in_order {
            with |= features::IN_ORDER;
        }
        if self.packed {
            with |= features::RING_PACKED;
        }
        if !self.mergeable {
            without |= features::MRG_RXBUF;
        }
        Guest::builder(socket)
            .role(self.role)
            .ring_size(self.ring)
            .with(with)
            .without(without)
            .rx_buffer(self.rx_buffer)
            .tx_slot(self.layout(self.max_frame, true).footprint(self.max_frame + HEADER_LEN))
            .huge_pages(self.huge_pages)
            .attach()
    }

    /// As Linux sends: in one descriptor what is short, else the headers and then page by page.
    fn layout(&self, size: usize, indirect: bool) -> Layout {
        if size <= PAGE {
            return Layout::whole();
        }
        let mut splits = vec![PAGE; size.div_ceil(PAGE)];
        splits[0] = HEADER_LEN + HEADERS;
        let layout = Layout::split(&splits);
        if indirect { layout.in_indirect_table() } else { layout }
    }

    /// A TCP segment of `size` bytes from one guest to the other; above the MTU one that is still
    /// to be cut.
    fn frame(&self, from: u8, to: u8, size: usize) -> Frame {
        let frame = Flow::v4(from, to).tcp(1, &vec![0x5a; size - HEADERS]);
        if size > self.mtu + 14 { frame.segmentable((self.mtu - 40) as u16) } else { frame }
    }
}

/// One-way times in TSC cycles, each within 3% (32 buckets per power of two).
struct Histogram {
    buckets: Vec<u64>,
    count: u64,
}

impl Histogram {
    fn new() -> Histogram {
        Histogram { buckets: vec![0; 64 * 32], count: 0 }
    }

    fn clear(&mut self) {
        self.buckets.fill(0);
        self.count = 0;
    }

    fn bucket(value: u64) -> usize {
        let shift = (64 - value.leading_zeros()).saturating_sub(6);
        (shift as usize) * 32 + (value >> shift) as usize
    }

    fn add(&mut self, value: u64, count: u64) {
        self.buckets[Histogram::bucket(value)] += count;
        self.count += count;
    }

    /// The middle of the bucket that the share `part` of all values doesn't exceed.
    fn quantile(&self, part: f64) -> u64 {
        let wanted = ((self.count as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.buckets.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        let Some(bucket) = found else { return 0 };
        // Buckets 0 to 63 are exact; those above have their shift in the bits from 32 on.
        let shift = (bucket / 32).saturating_sub(1);
        (((bucket - shift * 32) as u64) << shift) + (1 << shift >> 1)
    }
}

/// From one guest to the other.
struct Direction {
    from: usize,
    to: usize,
    /// Frames that may be sent now.
    home: u64,
    /// Bursts on their way: when they were sent, and how many frames of them are still missing.
    sent: VecDeque<(u64, u64)>,
}

/// What was counted in a window.
#[derive(Default)]
struct Counts {
    frames: u64,
    bytes: u64,
    busy_cycles: u64,
}

struct Generator {
    options: Options,
    guests: [Guest; 2],
    directions: [Direction; 2],
    size: usize,
    in_flight: u64,
    counts: Counts,
    times: Histogram,
    tsc_hz: f64,
}

impl Generator {
    fn attach(options: Options) -> Result<Generator> {
        let [first, second] = &options.sockets;
        let guests = [options.attach(first)?, options.attach(second)?];
        let direction = |from| Direction {
            from,
            to: 1 - from,
            home: 0,
            sent: VecDeque::with_capacity(usize::from(options.ring)),
        };
        let directions = [direction(0), direction(1)];
        let (counts, times) = (Counts::default(), Histogram::new());
        let (size, in_flight, tsc_hz) = (0, 0, tsc_hz());
        let mut generator =
            Generator { options, guests, directions, size, in_flight, counts, times, tsc_hz };
        generator.introduce()?;
        Ok(generator)
    }

    /// Sends single frames until one has passed in each direction: links are up then, and the
    /// switch has learned both addresses.
    fn introduce(&mut self) -> Result<()> {
        self.fill(60, 1)?;
        let deadline = Instant::now() + START_PATIENCE;
        while !self.come_home(Duration::from_millis(100)) {
            if Instant::now() > deadline {
                return Err("no frame passes between the two guests".into());
            }
            for direction in &mut self.directions {
                self.guests[direction.from].send_burst(0, 1);
                direction.sent = VecDeque::from([(tsc(), 1)]);
                direction.home = 0;
            }
        }
        Ok(())
    }

    /// Waits until no frame is on its way; tells whether that is so.
    fn come_home(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            for direction in &mut self.directions {
                direction.home += self.guests[direction.to].recv_burst(0, BURST).frames;
            }
            let missing = self.directions.iter().any(|way| way.home < self.in_flight);
            if !missing || Instant::now() > deadline {
                return !missing;
            }
        }
    }

    /// Puts frames of `size` bytes in the place of those that were there. None are sent yet.
    fn fill(&mut self, size: usize, in_flight: u64) -> Result<()> {
        (self.size, self.in_flight) = (size, in_flight);
        let distinct = (WORKING_SET / size).max(in_flight as usize);
        for direction in &mut self.directions {
            let guest = &mut self.guests[direction.from];
            if !guest.flush(0, PATIENCE) {
                return Err("the backend keeps frames for itself".into());
            }
            let indirect = guest.features() & features::INDIRECT_DESC != 0;
            let layout = self.options.layout(size, indirect);
            let frame = self.options.frame(direction.from as u8 + 1, direction.to as u8 + 1, size);
            guest.queue(0).tx.load_up_to(distinct, &[frame], &layout)?;
            direction.sent.clear();
            direction.home = in_flight;
        }
        Ok(())
    }

    /// The command `load`.
    fn load(&mut self, size: usize, wanted: u64) -> Result<String> {
        if !(60..=self.options.max_frame).contains(&size) {
            return Err(format!("frames have 60 to {} bytes", self.options.max_frame).into());
        }
        let lost = if self.come_home(PATIENCE) {
            0
        } else {
            self.directions.iter().map(|way| self.in_flight.saturating_sub(way.home)).sum()
        };
        // Half of the receiver's buffers at most: nothing is ever dropped for want of them.
        let buffers = (size + HEADER_LEN).div_ceil(self.options.rx_buffer) + 1;
        let most = (usize::from(self.options.ring) / buffers / 2).max(1);
        self.fill(size, wanted.clamp(1, most as u64))?;
        let features = self.guests[0].features();
        Ok(format!(
            r#"{{"size": {size}, "in_flight": {}, "lost": {lost}, "features": "{features:#x}", "tsc_hz": {:.0}}}"#,
            self.in_flight, self.tsc_hz
        ))
    }

    /// One round: takes what came and sends as many again, in both directions.
    #[inline]
    fn round(&mut self, start: u64) -> u64 {
        let mut moved = 0;
        for direction in &mut self.directions {
            let burst = self.guests[direction.to].recv_burst(0, BURST);
            if burst.frames > 0 {
                self.counts.frames += burst.frames;
                self.counts.bytes += burst.bytes;
                direction.home += burst.frames;
                note_times(&mut direction.sent, &mut self.times, burst.frames);
                moved += burst.frames;
            }
            if direction.home > 0 {
                let count = direction.home.min(BURST) as usize;
                let now = tsc();
                let sent = self.guests[direction.from].send_burst(0, count) as u64;
                if sent > 0 {
                    direction.home -= sent;
                    direction.sent.push_back((now, sent));
                    moved += sent;
                }
            }
        }
        let end = tsc();
        if moved > 0 {
            self.counts.busy_cycles += end - start;
        }
        end
    }

    /// The command `window`.
    fn window(&mut self, seconds: f64) -> String {
        self.counts = Counts::default();
        self.times.clear();
        let kicks = self.kicks();
        let start = tsc();
        let end = start + (seconds * self.tsc_hz) as u64;
        let mut now = start;
        while now < end {
            now = self.round(now);
        }
        let elapsed = (now - start) as f64;
        let Counts { frames, bytes, busy_cycles } = self.counts;
        let time = |part| self.times.quantile(part) as f64 * 1e9 / self.tsc_hz;
        format!(
            r#"{{"frames": {frames}, "seconds": {:.6}, "whole": {}, "busy": {:.4}, "cycles_per_frame": {:.1}, "kicks": {}, "in_flight": {}, "ns_p50": {:.0}, "ns_p99": {:.0}}}"#,
            elapsed / self.tsc_hz,
            bytes == frames * self.size as u64,
            busy_cycles as f64 / elapsed,
            busy_cycles as f64 / frames.max(1) as f64,
            self.kicks() - kicks,
            self.in_flight,
            time(0.5),
            time(0.99),
        )
    }

    fn kicks(&self) -> u64 {
        let kicks =
            |guest: &Guest| (0..2).map(|ring| guest.ring(ring).notifications().kicks).sum::<u64>();
        self.guests.iter().map(kicks).sum()
    }

    fn command(&mut self, line: &str) -> Result<String> {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["load", size, in_flight] => self.load(size.parse()?, in_flight.parse()?),
            ["window", seconds] => Ok(self.window(seconds.parse()?)),
            _ => Err(format!("{line:?} is no command").into()),
        }
    }

    /// Keeps frames going round and does what it is told, until the end of the commands.
    fn serve(&mut self, commands: &Receiver<String>) -> Result<()> {
        let mut now = tsc();
        loop {
            match commands.try_recv() {
                Ok(line) => {
                    println!("{}", self.command(&line)?);
                    io::stdout().flush()?;
                    now = tsc();
                }
                Err(TryRecvError::Disconnected) => return Ok(()),
                Err(TryRecvError::Empty) => {}
            }
            for _ in 0..ROUNDS {
                now = self.round(now);
            }
        }
    }
}

/// Notes the one-way time of the `count` frames that were sent first.
#[inline]
fn note_times(sent: &mut VecDeque<(u64, u64)>, times: &mut Histogram, mut count: u64) {
    let now = tsc();
    while count > 0 {
        let Some((at, missing)) = sent.front_mut() else { return };
        let part = count.min(*missing);
        times.add(now.saturating_sub(*at), part);
        count -= part;
        *missing -= part;
        if *missing == 0 {
            sent.pop_front();
        }
    }
}

#[inline]
fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and it touches nothing but registers.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The time-stamp counter's rate, measured against the clock.
fn tsc_hz() -> f64 {
    let (clock, start) = (Instant::now(), tsc());
    std::thread::sleep(Duration::from_millis(100));
    (tsc() - start) as f64 / clock.elapsed().as_secs_f64()
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
    generator.serve(&commands)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_three_per_cent() {
        let mut times = Histogram::new();
        for value in 1..=100_000 {
            times.add(value, 1);
        }
        for (part, expected) in [(0.5, 50_000.0), (0.99, 99_000.0), (0.0001, 10.0)] {
            let got = times.quantile(part) as f64;
            assert!((got / expected - 1.0).abs() < 0.032, "{part}: {got}");
        }
        times.clear();
        times.add(u64::MAX, 1);
        assert!(times.quantile(0.5) > u64::MAX / 33 * 32);
    }

    #[test]
    fn times_belong_to_the_frames_sent_first() {
        let (mut sent, mut times) = (VecDeque::from([(0, 3), (tsc(), 2)]), Histogram::new());
        note_times(&mut sent, &mut times, 4);
        assert_eq!((times.count, sent.len(), sent[0].1), (4, 1, 1));
        note_times(&mut sent, &mut times, 9);
        assert_eq!((times.count, sent.len()), (5, 0));
    }
}
