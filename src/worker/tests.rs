//! Tests of a worker's steps, on the test's own thread: no clock, no sleep, nothing at random.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use fakeguest::{Frame, Guest, Layout, features, frames};

use super::super::{Gate, PortEvents, WorkerCounters};
use super::*;
use crate::config::{PortKind, Settings};
use crate::port::Port;
use crate::ring::Queues;
use crate::table::mac::{MacTable, MacTableConfig};
use crate::vhost_user::{Endpoint, PortSocket};

/// Steps after which an order has been obeyed and a frame taken: both are there already.
const STEPS: usize = 10;

/// A switch of one port whose only worker is the test's thread, and the guest.
struct Bed {
    worker: Worker,
    guest: Guest,
    _endpoint: Endpoint,
    _directory: tempfile::TempDir,
}

impl Bed {
    fn new(without: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let settings = Settings::from_args(&[("a".into(), path.clone())], None).unwrap();
        let kind = Kind::Vhost(VhostPort::new(Arc::new(Queues::new(1))));
        let port = Arc::new(Port::new(PortId(0), "a".into(), kind, 1));
        let placement = Arc::new(Placement::new(std::slice::from_ref(&port), 1));
        let table = MacTableConfig { capacity: 16, ageing_secs: 300, seed: 1 };
        let shared = Arc::new(Shared {
            ports: [port.clone()].into(),
            macs: MacTable::new(&table, 1),
            mailboxes: [Arc::new(Mailbox::new().unwrap())].into(),
            counters: [WorkerCounters::default()].into(),
            stop: AtomicBool::new(false),
            gate: Gate::default(),
        });
        let events = Arc::new(PortEvents::new(shared.clone(), placement.clone(), port.clone()));
        let (Kind::Vhost(vhost), PortKind::VhostUser(socket)) =
            (&port.kind, &settings.ports[0].kind)
        else {
            unreachable!("it is a guest's port")
        };
        let socket = PortSocket::open(socket).unwrap();
        let queues = vhost.queues().clone();
        let endpoint = Endpoint::spawn("a", socket, None, queues, events).unwrap();
        let guest = Guest::builder(&path).without(without).attach().unwrap();
        let worker = Worker::new(shared, &placement, 0, PollMode::Poll);
        Self { worker, guest, _endpoint: endpoint, _directory: directory }
    }

    fn send(&mut self) {
        let frame = Frame::pattern(frames::mac(2), frames::mac(1), 60, 0);
        assert!(self.guest.try_send(0, &frame, &Layout::whole()));
    }

    fn step(&mut self) -> usize {
        (0..STEPS).map(|_| self.worker.step()).sum()
    }

    /// How often the guest kicked.
    fn kicks(&self) -> u64 {
        self.guest.ring(1).notifications().kicks
    }
}

/// Without EVENT_IDX, as DPDK's guests have it, the driver goes on kicking until it is told not to.
#[test]
fn a_source_that_cools_asks_for_kicks_unless_it_has_work() {
    let mut bed = Bed::new(features::EVENT_IDX);
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
