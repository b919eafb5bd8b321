//! The data path without threads: one worker's steps between two fake guests, all on this thread.
//!
//! `cargo bench --bench ring`. A time is ns per frame of the switch's side alone: the guests work
//! while the clock stands still, and everything lies in this core's cache. Names are
//! `format/bytes/descriptors`; a frame of 18 descriptors is what Linux makes of 64 KiB.
//!
//! | group | the frames |
//! |---|---|
//! | `switch` | go from one ring to the other: receive, stages, look-up, copy, both publications |
//! | `drop` | end at the look-up: what `switch` costs without the receiver |
//! | `captured` | as in `switch`, 64 bytes, while nobody captures, while somebody captures another port, and while somebody captures these two: then each frame is copied once more for each |
//! | `mirrored` | as in `switch`, 64 bytes, while nobody is mirrored, another port is, and the sender is, to a guest that takes the copies and to one that doesn't |

#![expect(clippy::expect_used, reason = "a bench that can't start has nothing to say")]
#![allow(missing_docs, reason = "criterion's macros")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use fakeguest::{Frame, Guest, Layout, features, frames};
use ringswitch::config::{PollMode, PortKind, Settings};
use ringswitch::frame::{MAX_FRAME, PortId};
use ringswitch::port::{Kind, Port, VhostPort};
use ringswitch::ring::Queues;
use ringswitch::sys::sandbox::Sandbox;
use ringswitch::table::mac::{MacTable, MacTableConfig};
use ringswitch::vhost_user::{Endpoint, PortSocket};
use ringswitch::wire::filter::Filter;
use ringswitch::worker::{Buffer, Capture, Mirror, PortEvents, Ports, Reach, Shared, Worker};

/// Bytes of a frame, without the virtio-net header, and how many go at a time.
const FRAMES: [(usize, usize); 5] = [(64, 64), (512, 64), (1518, 64), (9000, 32), (65_000, 8)];
/// Descriptors of a frame, and whether they are in an indirect table.
const CHAINS: [(usize, bool); 5] = [(1, false), (2, false), (2, true), (18, false), (18, true)];
/// A group address whose frames no bridge passes on.
const RESERVED: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 3];
/// Steps in vain after which nothing will come any more.
const STEPS: usize = 1_000_000;

/// A switch of three ports whose only worker is this thread. Nobody talks to the third one.
struct Bed {
    shared: Arc<Shared>,
    worker: Worker,
    /// Who captures, and where to.
    capture: Option<(Arc<Capture>, Vec<Buffer>)>,
    sender: Guest,
    receiver: Guest,
    probe: Guest,
    takes_copies: bool,
    _endpoints: Vec<Endpoint>,
    _directory: tempfile::TempDir,
}

impl Bed {
    fn new(features: u64) -> Bed {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let sockets = ["a", "b", "c"].map(|name| (name.to_owned(), directory.path().join(name)));
        let settings = Settings::from_args(&sockets, None).expect("ports");
        let port = |index: u16| {
            let kind = Kind::Vhost(VhostPort::new(Arc::new(Queues::new(1))));
            Arc::new(Port::new(PortId(index), format!("port{index}"), kind, 1))
        };
        let table = MacTableConfig { capacity: 1024, ageing_secs: 300, seed: 1 };
        let macs = MacTable::new(&table, 3);
        let ports = Ports::new((0..3).map(port));
        let shared = Arc::new(Shared::new(ports, macs, 1, 1).expect("a mailbox"));
        let ports = shared.ports.now();
        let endpoints = ports.iter().zip(&settings.ports).filter_map(|(port, wanted)| {
            let (Kind::Vhost(vhost), PortKind::VhostUser(socket)) = (&port.kind, &wanted.kind)
            else {
                return None;
            };
            let events = PortEvents::new(shared.clone(), port.clone());
            let queues = vhost.queues().clone();
            let socket = PortSocket::open(socket).expect("a socket");
            let endpoint = Endpoint::spawn(
                &port.name,
                socket,
                None,
                queues,
                Arc::new(events),
                &Sandbox::none(),
            );
            Some(endpoint.expect("a socket"))
        });
        let endpoints = endpoints.collect();
        let guest = |(_, socket): &(String, _)| {
            Guest::builder(socket).with(features).rx_buffer(4096).attach().expect("a guest")
        };
        let [sender, receiver, probe] = sockets.each_ref().map(guest);
        let worker = Worker::new(shared.clone(), 0, PollMode::Poll);
        let mut bed = Bed {
            shared,
            worker,
            capture: None,
            sender,
            receiver,
            probe,
            takes_copies: true,
            _endpoints: endpoints,
            _directory: directory,
        };
        // The switch learns where the receiver is.
        let hello = Frame::pattern(frames::mac(1), frames::mac(2), 60, 0);
        assert!(bed.receiver.try_send(0, &hello, &Layout::whole()));
        bed.step_until(1);
        bed.sender.recv_burst(0, 1);
        bed.probe.recv_burst(0, 1);
        bed
    }

    /// Has somebody capture these ports, or nobody.
    fn capture(&mut self, ports: Option<[bool; 3]>) {
        if let Some((capture, _)) = self.capture.take() {
            self.shared.end_capture(&capture);
        }
        self.capture = ports.map(|ports| {
            let capture = Arc::new(Capture::new(ports.into(), Filter::default(), MAX_FRAME, 1));
            assert!(self.shared.begin_capture(&capture), "room for a capture");
            let spares = capture.spares();
            (capture, spares)
        });
    }

    /// Has the frames of a port copied to the third one, or nobody's.
    fn mirror(&mut self, from: Option<u16>) {
        let mirror =
            |from| Mirror { from: PortId(from), to: PortId(2), inbound: true, outbound: false };
        let now = self.shared.ports.now();
        let ports = now.iter().map(|port| (Arc::clone(port), Reach::Open));
        let ports = Ports::with_rules(ports, from.map(mirror).into_iter().collect());
        // The worker is this thread, and takes them up with its next step.
        self.shared.ports.change(ports, self.shared.active(), Instant::now());
    }

    fn step_until(&mut self, frames: usize) {
        let (mut moved, mut steps) = (0, 0);
        while moved < frames {
            moved += self.worker.step();
            steps += 1;
            assert!(steps < STEPS, "frames are lost");
        }
    }

    /// The time that the switch takes for `wanted` frames, of those that are loaded, in bursts of
    /// `burst`.
    fn time(&mut self, wanted: u64, burst: usize) -> Duration {
        let (mut moved, mut time) = (0, Duration::ZERO);
        while moved < wanted {
            let sent = self.sender.send_burst(0, burst);
            let start = Instant::now();
            self.step_until(sent);
            time += start.elapsed();
            while self.receiver.recv_burst(0, sent as u64).frames > 0 {}
            if self.takes_copies {
                while self.probe.recv_burst(0, sent as u64).frames > 0 {}
            }
            if let Some((capture, spares)) = &mut self.capture {
                capture.take(spares);
            }
            moved += sent as u64;
        }
        time.mul_f64(wanted as f64 / moved as f64)
    }
}

/// A frame of `size` bytes and its header in so many descriptors, of equal length but the first.
fn layout(size: usize, descriptors: usize, indirect: bool) -> Layout {
    let layout = match descriptors {
        1 => Layout::whole(),
        2 => Layout::header_apart(),
        _ => {
            let mut splits = vec![12];
            splits.resize(descriptors - 1, size / (descriptors - 1));
            Layout::split(&splits)
        }
    };
    if indirect { layout.in_indirect_table() } else { layout }
}

fn bench(criterion: &mut Criterion) {
    for (format, features) in [("split", 0), ("packed", features::RING_PACKED)] {
        let mut bed = Bed::new(features);
        for (group, to, sizes) in
            [("switch", frames::mac(2), &FRAMES[..]), ("drop", RESERVED, &FRAMES[..1])]
        {
            let mut group = criterion.benchmark_group(group);
            group.warm_up_time(Duration::from_millis(30));
            group.measurement_time(Duration::from_millis(100)).sample_size(20);
            for &(size, burst) in sizes {
                let frame = [Frame::pattern(to, frames::mac(1), size, 1)];
                for (descriptors, indirect) in CHAINS {
                    let layout = layout(size, descriptors, indirect);
                    let loaded = bed.sender.queue(0).tx.load_up_to(burst, &frame, &layout);
                    loaded.expect("frames in guest memory");
                    let place = if indirect { " indirect" } else { "" };
                    let name = format!("{format}/{size}/{descriptors}{place}");
                    group.bench_function(name, |bencher| {
                        bencher.iter_custom(|frames| bed.time(frames, burst));
                    });
                }
            }
            group.finish();
        }
    }
}

fn captured(criterion: &mut Criterion) {
    let mut bed = Bed::new(0);
    let mut group = criterion.benchmark_group("captured");
    group.warm_up_time(Duration::from_millis(30));
    group.measurement_time(Duration::from_millis(300)).sample_size(50);
    let frame = [Frame::pattern(frames::mac(2), frames::mac(1), 64, 1)];
    let loaded = bed.sender.queue(0).tx.load_up_to(64, &frame, &Layout::whole());
    loaded.expect("frames in guest memory");
    let [another, these] = [[false, false, true], [true, true, false]];
    for (name, ports) in
        [("nobody", None), ("another port", Some(another)), ("these ports", Some(these))]
    {
        bed.capture(ports);
        group.bench_function(name, |bencher| bencher.iter_custom(|frames| bed.time(frames, 64)));
        if let Some((capture, _)) = &bed.capture {
            assert_eq!(capture.missed(), 0);
        }
    }
    group.finish();
}

fn mirrored(criterion: &mut Criterion) {
    let mut bed = Bed::new(0);
    let mut group = criterion.benchmark_group("mirrored");
    group.warm_up_time(Duration::from_millis(30));
    group.measurement_time(Duration::from_millis(300)).sample_size(50);
    let frame = [Frame::pattern(frames::mac(2), frames::mac(1), 64, 1)];
    let loaded = bed.sender.queue(0).tx.load_up_to(64, &frame, &Layout::whole());
    loaded.expect("frames in guest memory");
    for (name, from, takes_copies) in [
        ("nobody", None, true),
        ("another port", Some(1), true),
        ("this port", Some(0), true),
        ("this port, to a full ring", Some(0), false),
    ] {
        bed.mirror(from);
        bed.takes_copies = takes_copies;
        group.bench_function(name, |bencher| bencher.iter_custom(|frames| bed.time(frames, 64)));
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().without_plots();
    targets = bench, captured, mirrored
}
criterion_main!(benches);
