//! Tests of a worker's steps, on the test's own thread: no clock, no sleep, nothing at random.

use std::sync::Arc;

use fakeguest::frames::{Flow, mac};
use fakeguest::{Frame, Guest, Layout, features};

use super::super::{PortEvents, Ports};
use super::*;
use crate::config::{PortKind, Settings};
use crate::port::Port;
use crate::ring::Queues;
use crate::sys::sandbox::Sandbox;
use crate::table::mac::{MacTable, MacTableConfig};
use crate::vhost_user::{Endpoint, PortSocket};

/// Steps after which an order has been obeyed and a frame taken: both are there already.
const STEPS: usize = 10;

/// A switch whose only worker is the test's thread, and its guests. Guest `n` has `mac(n)`.
struct Bed {
    worker: Worker,
    guests: Vec<Guest>,
    _endpoints: Vec<Endpoint>,
    _directory: tempfile::TempDir,
}

impl Bed {
    /// Guests with these features; the switch knows where they are.
    fn new(guests: &[u64]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |number| directory.path().join(format!("{number}"));
        let sockets: Vec<_> = (0..guests.len()).map(|n| (format!("port{n}"), path(n))).collect();
        let settings = Settings::from_args(&sockets, None).unwrap();
        let ports = settings.ports.iter().enumerate().map(|(index, port)| {
            let kind = Kind::Vhost(VhostPort::new(Arc::new(Queues::new(1))));
            Arc::new(Port::new(PortId(index as u16), port.name.clone(), kind, 1))
        });
        let table = MacTableConfig { capacity: 64, ageing_secs: 300, seed: 1 };
        let macs = MacTable::new(&table, guests.len());
        let shared = Arc::new(Shared::new(Ports::new(ports), macs, 1, 1).unwrap());
        let ports = shared.ports.now();
        let endpoints = ports.iter().zip(&settings.ports).map(|(port, wanted)| {
            let events = PortEvents::new(shared.clone(), port.clone());
            let (Kind::Vhost(vhost), PortKind::VhostUser(socket)) = (&port.kind, &wanted.kind)
            else {
                unreachable!("they are guests' ports")
            };
            let queues = vhost.queues().clone();
            let socket = PortSocket::open(socket).unwrap();
            let events = Arc::new(events);
            Endpoint::spawn(&port.name, socket, None, queues, events, &Sandbox::none()).unwrap()
        });
        let endpoints = endpoints.collect();
        let guests = guests.iter().zip(&sockets).map(|(features, (_, socket))| {
            Guest::builder(socket).features(*features).attach().unwrap()
        });
        let guests = guests.collect();
        let worker = Worker::new(shared, 0, PollMode::Poll);
        let mut bed = Self { worker, guests, _endpoints: endpoints, _directory: directory };
        bed.introduce();
        bed
    }

    /// Each guest sends a frame to the switch's own, which no bridge passes on.
    fn introduce(&mut self) {
        for (number, guest) in self.guests.iter_mut().enumerate() {
            let hello = Frame::pattern([1, 0x80, 0xc2, 0, 0, 3], mac(number as u8), 60, 0);
            assert!(guest.try_send(0, &hello, &Layout::whole()));
        }
        assert_eq!(self.step(), self.guests.len());
    }

    fn send(&mut self) {
        let frame = Frame::pattern(mac(9), mac(0), 60, 0);
        assert!(self.guests[0].try_send(0, &frame, &Layout::whole()));
    }

    fn step(&mut self) -> usize {
        (0..STEPS).map(|_| self.worker.step()).sum()
    }

    /// Has the first guest send frames at once; tells how many the worker took in each step.
    fn steps(&mut self, frames: &[Frame]) -> Vec<usize> {
        assert_eq!(self.guests[0].send_all(0, frames, &Layout::whole()), frames.len());
        self.steps_of(frames.len())
    }

    fn steps_of(&mut self, mut missing: usize) -> Vec<usize> {
        let mut steps = Vec::new();
        while missing > 0 {
            steps.push(self.worker.step());
            missing -= steps.last().unwrap();
            assert!(steps.len() < 1000, "{missing} are missing");
        }
        steps
    }

    /// How often the guest kicked.
    fn kicks(&self) -> u64 {
        self.guests[0].ring(1).notifications().kicks
    }

    fn counter(&self, port: usize, name: &str) -> u64 {
        let totals = self.worker.pipeline.ports().get(PortId(port as u16)).unwrap().totals();
        let drops = totals.drops().map(|(reason, count)| (reason.name(), count));
        totals.named().chain(drops).find(|(is, _)| *is == name).unwrap().1
    }
}

/// Without EVENT_IDX, as DPDK's guests have it, the driver goes on kicking until it is told not to.
#[test]
fn a_source_that_cools_asks_for_kicks_unless_it_has_work() {
    let mut bed = Bed::new(&[features::LINUX & !features::EVENT_IDX]);
    bed.send();
    assert_eq!(bed.step(), 1);
    let before = bed.kicks();
    bed.send();
    assert_eq!((bed.step(), bed.kicks()), (1, before), "it is polled");

    bed.worker.cool(u64::MAX);
    bed.send();
    assert_eq!((bed.step(), bed.kicks()), (0, before + 1), "nobody polls it now");
    bed.worker.look(Some(Duration::ZERO));
    assert_eq!(bed.step(), 1, "the kick made it hot");

    bed.send();
    bed.worker.cool(u64::MAX);
    bed.send();
    assert_eq!((bed.step(), bed.kicks()), (2, before + 1), "it had work, and is polled on");
}

/// What one visit of a source takes is bounded, whatever its frames are.
#[test]
fn frames_that_must_be_cut_are_taken_few_at_a_time() {
    let simple = features::LINUX & !features::OFFLOADS;
    let mut bed = Bed::new(&[features::LINUX, simple, features::LINUX]);
    let frame = |to, gso_size| Flow::v4(0, to).tcp(1, &[7; 60_000]).segmentable(gso_size);
    // In the smallest segments that are cut, and in usual ones.
    assert_eq!(bed.steps(&vec![frame(1, 48); 3]), [1; 3]);
    assert_eq!(bed.steps(&vec![frame(1, 1448); 6]), [2; 3]);
    assert_eq!(bed.counter(1, "segments"), 3 * 1250 + 6 * 42);
    // Who takes them as they are gets as many as ever: 256 KiB.
    assert_eq!(bed.steps(&vec![frame(2, 1448); 10]), [5; 2]);
    // And nothing is cut for want of a receiver.
    assert_eq!(bed.steps(&vec![frame(0, 48); 10]), [5; 2]);
}

#[test]
fn what_was_left_of_a_burst_comes_next_with_all_its_bad_buffers() {
    let mut bed = Bed::new(&[features::LINUX, features::LINUX & !features::OFFLOADS]);
    let tx = &mut bed.guests[0].queue(0).tx;
    for seed in 0..6u8 {
        let frame = Flow::v4(0, 1).tcp(u32::from(seed), &[seed; 60_000]).segmentable(1448);
        assert!(tx.post(&frame, &Layout::whole()));
        // A buffer outside of memory, and one that is too short.
        for len in [60, 4] {
            let addr = if len == 60 { 1 << 40 } else { 4096 };
            let head = tx.ring.build(&[fakeguest::layout::Piece { addr, len }], &[], false);
            tx.ring.post(head.unwrap());
        }
    }
    tx.ring.publish();
    let steps = bed.steps_of(18);
    assert_eq!(steps, [6; 3], "two frames, and the bad buffers behind them");
    assert_eq!(bed.counter(0, "bad_chain"), 6);
    assert_eq!(bed.counter(0, "bad_length"), 6);
    assert_eq!(bed.counter(0, "ingress_frames"), 1 + 18);
    for seed in 0..6u8 {
        let mut bytes = 0;
        while bytes < 60_000 {
            let got = bed.guests[1].queue(0).rx.recv().expect("a segment");
            let payload = fakeguest::frames::payload(&got.bytes).unwrap();
            assert!(payload.iter().all(|byte| *byte == seed), "frame {seed}");
            bytes += payload.len();
        }
    }
}

#[test]
fn frames_to_all_ports_are_taken_as_their_copies_allow() {
    let mut bed = Bed::new(&[features::LINUX; 9]);
    let frame = |len| Frame::pattern([0xff; 6], mac(0), len, 1);
    // Eight copies of 0.1 us each, and of 1.
    assert_eq!(bed.steps(&vec![frame(60); 100]), [64, 36]);
    assert_eq!(bed.steps(&vec![frame(9000); 24]), [12; 2]);
    // It doesn't depend on the first one.
    let mixed: Vec<_> = [60].into_iter().chain([9000; 24]).map(frame).collect();
    assert_eq!(bed.steps(&mixed), [13, 12]);
    assert_eq!(bed.counter(0, "flooded_copies"), 8 * (100 + 24 + 25));
}

#[test]
fn frames_to_all_ports_are_not_cut_very_small() {
    let simple = features::LINUX & !features::OFFLOADS;
    let mut bed = Bed::new(&[features::LINUX, simple, features::LINUX]);
    let frame = |gso_size| {
        let flow = Flow { macs: (mac(0), [0xff; 6]), ..Flow::v4(0, 9) };
        flow.tcp(1, &[7; 60_000]).segmentable(gso_size)
    };
    bed.steps(&[frame(900), frame(1448)]);
    assert_eq!((bed.counter(1, "egress_frames"), bed.counter(2, "egress_frames")), (1, 2));
    assert_eq!((bed.counter(1, "bad_offload"), bed.counter(1, "segments")), (1, 42));
}
