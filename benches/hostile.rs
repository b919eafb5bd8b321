//! What is left for two guests beside a hostile one on the same worker: `cargo bench --bench hostile`.
//!
//! All on one thread, as in `ring`: a time is that of the worker's steps, and the guests work while
//! its clock stands still. Two guests keep 256 frames of 64 bytes under way in each direction; a third
//! one always has as much of its kind as its ring holds. Prints a Markdown table: frames between the
//! two in a millisecond of the worker's time, that beside a well-behaved guest of the same kind, the
//! ratio (medians of rounds that take turns), and the worker's time that a frame was under way.

#![expect(clippy::expect_used, reason = "a bench that can't start has nothing to say")]
#![expect(clippy::indexing_slicing, reason = "there are as many guests as ports")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fakeguest::frames::{Flow, mac};
use fakeguest::split::{Descriptor, NEXT};
use fakeguest::{Frame, Guest, Layout, features};
use ringswitch::config::{PollMode, PortKind, Settings};
use ringswitch::frame::PortId;
use ringswitch::port::{Kind as PortIs, Port, VhostPort};
use ringswitch::ring::Queues;
use ringswitch::sys::sandbox::Sandbox;
use ringswitch::table::mac::{MacTable, MacTableConfig};
use ringswitch::vhost_user::{Endpoint, PortSocket};
use ringswitch::worker::{PortEvents, Ports, Shared, Worker};

/// Frames under way between the two, in each direction.
const WINDOW: usize = 256;
/// The worker's time of a round.
const ROUND: Duration = Duration::from_millis(20);
/// Rounds of each kind.
const ROUNDS: usize = 15;
/// The two, the third one, who sends to it, and who receives from it without any offload.
const PORTS: [&str; 5] = ["a", "b", "h", "c", "sink"];
const A: usize = 0;
const B: usize = 1;
const H: usize = 2;
const C: usize = 3;
const SINK: usize = 4;

/// What the third guest does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Sends frames of 64 bytes.
    Good,
    /// Sends frames to be cut into so many.
    Cut(u16),
    /// Sends to all ports.
    Flood,
    /// Sends frames in so many pieces.
    Pieces(usize),
    /// Sends chains that never end.
    Loops,
    /// Receives from `c`, and gives its buffers back.
    Receives,
    /// Receives from `c`, and keeps its buffers.
    KeepsBuffers,
    /// Receives from `c` into buffers of one byte.
    SmallBuffers,
    /// Receives from `c`, and has its rings changed all the time.
    Changes,
    /// Announces itself all the time.
    Announces,
}

/// A switch whose only worker is this thread.
struct Bed {
    kind: Kind,
    worker: Worker,
    guests: Vec<Guest>,
    stop: Arc<AtomicBool>,
    /// Bursts under way between the two, by direction: when they were sent in the worker's time, and
    /// how many frames of them are missing.
    under_way: [std::collections::VecDeque<(Duration, u64)>; 2],
    clock: Duration,
    times: Vec<(Duration, u64)>,
    _endpoints: Vec<Endpoint>,
    _directory: tempfile::TempDir,
}

impl Bed {
    fn new(kind: Kind) -> Bed {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let sockets = PORTS.map(|name| (name.to_owned(), directory.path().join(name)));
        let settings = Settings::from_args(&sockets, None).expect("ports");
        let port = |index: usize| {
            let kind = PortIs::Vhost(VhostPort::new(Arc::new(Queues::new(1))));
            Arc::new(Port::new(PortId(index as u16), format!("port{index}"), kind, 1))
        };
        let table = MacTableConfig { capacity: 1024, ageing_secs: 300, seed: 1 };
        let macs = MacTable::new(&table, PORTS.len());
        let ports = Ports::new((0..PORTS.len()).map(port));
        let shared = Arc::new(Shared::new(ports, macs, 1, 1).expect("a mailbox"));
        let ports = shared.ports.now();
        let endpoints = ports.iter().zip(&settings.ports).filter_map(|(port, wanted)| {
            let (PortIs::Vhost(vhost), PortKind::VhostUser(socket)) = (&port.kind, &wanted.kind)
            else {
                return None;
            };
            let events = PortEvents::new(shared.clone(), port.clone());
            let (queues, socket) = (vhost.queues().clone(), PortSocket::open(socket));
            let socket = socket.expect("a socket");
            Endpoint::spawn(&port.name, socket, None, queues, Arc::new(events), &Sandbox::none())
                .ok()
        });
        let endpoints = endpoints.collect();
        let guests = sockets.iter().enumerate().map(|(index, (_, socket))| {
            let guest = Guest::builder(socket).ring_size(if index == SINK { 2048 } else { 512 });
            let guest = if index == SINK { guest.without(features::OFFLOADS) } else { guest };
            let one = index == H && kind == Kind::SmallBuffers;
            guest.rx_buffer(if one { 1 } else { 2048 }).attach().expect("a guest")
        });
        let mut bed = Bed {
            kind,
            guests: guests.collect(),
            worker: Worker::new(shared, 0, PollMode::Poll),
            stop: Arc::default(),
            under_way: Default::default(),
            clock: Duration::ZERO,
            times: Vec::new(),
            _endpoints: endpoints,
            _directory: directory,
        };
        bed.load();
        bed
    }

    /// The switch learns where all are, and the frames to send lie ready.
    fn load(&mut self) {
        for (number, guest) in self.guests.iter_mut().enumerate() {
            let hello = Frame::pattern([1, 0x80, 0xc2, 0, 0, 3], mac(number as u8), 60, 0);
            assert!(guest.try_send(0, &hello, &Layout::whole()));
        }
        let mut taken = 0;
        while taken < self.guests.len() {
            taken += self.worker.step();
        }
        let frame = |from: usize, to: usize| Frame::pattern(mac(to as u8), mac(from as u8), 64, 1);
        let flow = Flow::v4(H as u8, SINK as u8);
        let segments = |count: u16| flow.tcp(1, &vec![7; 60_000]).segmentable(60_000 / count);
        let (dear, layout) = match self.kind {
            Kind::Cut(count) => (segments(count), Layout::whole()),
            // One byte longer: its receivers tell them from others by that.
            Kind::Flood => (Frame::pattern([0xff; 6], mac(H as u8), 65, 1), Layout::whole()),
            Kind::Pieces(count) => (frame(H, SINK), Layout::split(&vec![1; count])),
            _ => (frame(H, SINK), Layout::whole()),
        };
        for (index, frame, layout, count) in [
            (A, frame(A, B), Layout::whole(), WINDOW),
            (B, frame(B, A), Layout::whole(), WINDOW),
            (C, frame(C, H), Layout::whole(), WINDOW),
            (H, dear, layout, if matches!(self.kind, Kind::Cut(_)) { 16 } else { WINDOW }),
        ] {
            let tx = &mut self.guests[index].queue(0).tx;
            tx.load_up_to(count, &[frame], &layout).expect("an idle queue");
        }
        self.disturb();
    }

    /// What other threads do for the third guest.
    fn disturb(&self) {
        let guest = &self.guests[H];
        let stream = guest.connection().stream().try_clone().expect("a descriptor");
        let connection =
            fakeguest::protocol::Connection::new(stream, fakeguest::protocol::Acks::Some);
        let connection = connection.expect("a connection");
        let (kind, stop) = (self.kind, Arc::clone(&self.stop));
        if !matches!(kind, Kind::Changes | Kind::Announces) {
            return;
        }
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let sent = match kind {
                    Kind::Changes => (0..2).try_for_each(|ring| connection.set_vring_base(ring, 0)),
                    _ => connection.send_rarp(mac(H as u8)),
                };
                if sent.is_err() {
                    return;
                }
            }
        });
    }

    /// The third guest does what it does.
    fn act(&mut self) {
        match self.kind {
            Kind::Loops => {
                let ring = self.guests[H].ring(1).split();
                for index in 0..512u16 {
                    let next = (index + 1) % 512;
                    let addr = self.guests[H].memory().regions()[0].guest_addr + 8192;
                    ring.write_descriptor(index, Descriptor { addr, len: 1, flags: NEXT, next });
                    ring.write_avail_entry(index, index);
                }
                ring.write_avail_index(ring.used_index().wrapping_add(512));
            }
            Kind::Receives | Kind::KeepsBuffers | Kind::SmallBuffers | Kind::Changes => {
                self.guests[C].send_burst(0, WINDOW);
                if self.kind != Kind::KeepsBuffers {
                    while self.guests[H].recv_burst(0, 64).frames > 0 {}
                }
            }
            _ => {
                self.guests[H].send_burst(0, WINDOW);
                while self.guests[SINK].recv_burst(0, 64).frames > 0 {}
            }
        }
    }

    /// The neighbours take what came, and send as much again.
    fn neighbours(&mut self) -> u64 {
        let mut frames = 0;
        for (from, to) in [(A, B), (B, A)] {
            loop {
                let burst = self.guests[to].recv_burst(0, 64);
                if burst.frames == 0 {
                    break;
                }
                // What the third guest floods comes here, too.
                let mut came = burst.frames - burst.bytes.saturating_sub(64 * burst.frames);
                let under_way = &mut self.under_way[from];
                while came > 0
                    && let Some((sent, missing)) = under_way.front_mut()
                {
                    let part = came.min(*missing);
                    self.times.push((self.clock - *sent, part));
                    (came, *missing, frames) = (came - part, *missing - part, frames + part);
                    if *missing == 0 {
                        under_way.pop_front();
                    }
                }
            }
            let sent = self.guests[from].send_burst(0, WINDOW) as u64;
            if sent > 0 {
                self.under_way[from].push_back((self.clock, sent));
            }
        }
        frames
    }

    /// Frames between the neighbours in a millisecond of the worker's time.
    fn round(&mut self) -> f64 {
        let (start, mut frames) = (self.clock, 0);
        while self.clock - start < ROUND {
            self.act();
            frames += self.neighbours();
            let begin = Instant::now();
            self.worker.step();
            self.clock += begin.elapsed();
        }
        frames as f64 / (self.clock - start).as_secs_f64() / 1000.0
    }

    /// The time that 99 of 100 frames were under way at most, of the worker's time.
    fn p99(&mut self) -> Duration {
        self.times.sort_unstable();
        let all: u64 = self.times.iter().map(|(_, count)| count).sum();
        let mut seen = 0;
        let found = self.times.iter().find(|(_, count)| {
            seen += count;
            seen * 100 >= all * 99
        });
        found.map_or(Duration::ZERO, |(time, _)| *time)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    println!("| the third guest | frames/ms | beside a good one | ratio | p99, us | and there |");
    println!("|---|---|---|---|---|---|");
    for (kind, good) in [
        (Kind::Cut(1250), Kind::Good),
        (Kind::Cut(42), Kind::Good),
        (Kind::Flood, Kind::Good),
        (Kind::Pieces(400), Kind::Good),
        (Kind::Loops, Kind::Good),
        (Kind::Announces, Kind::Good),
        (Kind::KeepsBuffers, Kind::Receives),
        (Kind::SmallBuffers, Kind::Receives),
        (Kind::Changes, Kind::Receives),
    ] {
        let mut beds = [Bed::new(kind), Bed::new(good)];
        let mut rates = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            for (bed, rates) in beds.iter_mut().zip(&mut rates) {
                rates.push(bed.round());
            }
        }
        let [rate, fair] = rates.map(median);
        let [p99, fair_p99] = beds.each_mut().map(|bed| bed.p99().as_nanos() as f64 / 1000.0);
        let ratio = rate / fair;
        println!("| {kind:?} | {rate:.0} | {fair:.0} | {ratio:.2} | {p99:.0} | {fair_p99:.0} |");
    }
}
