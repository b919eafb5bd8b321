//! Ports: where bursts come from and go to.
//!
//! A port turns bytes into frames and frames into bytes, and converts what its receiver didn't
//! negotiate (segmentation, checksums). It decides nothing: that is the stages' job. Ports are an
//! `enum`, matched once per burst.

pub mod counters;
mod offload;
mod outlook;
mod steer;
mod tap;
mod vhost;

pub use counters::{Counter, Counters, QueueCounters, QueueTotals, Totals};
pub use outlook::{Becomes, Chosen, Conversion, Outlook, Place};
pub use tap::{TapPort, TapReader};
pub use vhost::VhostPort;

use std::cell::Cell;

use crate::frame::{BURST, DropReason, Frame, PortId};
use crate::mem::Segments;

/// What a frame into a guest's ring takes, however short: its buffer, its headers. Measured were 60
/// for one of 64 bytes and 100 for a segment of 48 that is cut off.
const GUEST_OUTPUT_NS: u64 = 100;
/// A write to a TAP.
const TAP_OUTPUT_NS: u64 = 800;
/// What is copied or summed in a nanosecond.
const BYTES_PER_NS: u64 = 10;

/// A port of the switch.
#[derive(Debug)]
pub struct Port {
    /// Its index.
    pub id: PortId,
    /// Its name in the configuration.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its counters: one set for each worker, which alone writes it.
    counters: Box<[Counters]>,
}

/// The kinds of ports.
#[derive(Debug)]
pub enum Kind {
    /// A guest's NIC.
    Vhost(VhostPort),
    /// A TAP device of the host.
    Tap(TapPort),
}

impl Kind {
    fn queues(&self) -> usize {
        match self {
            Self::Vhost(port) => port.pairs(),
            Self::Tap(port) => port.queues(),
        }
    }
}

/// Frames of one burst that leave by the same port, in order.
#[derive(Clone, Copy, Debug)]
pub struct Egress<'b> {
    /// The burst.
    pub frames: &'b [Frame],
    /// What the frames' tails index.
    pub segments: &'b Segments<'b>,
    /// Indices of the frames that leave here.
    pub list: &'b [u16],
    /// Where to tell which ones don't, if somebody watches.
    pub losses: Option<&'b Losses>,
}

/// Why frames of a burst didn't leave by a port.
#[derive(Debug)]
pub struct Losses([Cell<Option<DropReason>>; BURST]);

impl Default for Losses {
    fn default() -> Self {
        Self([const { Cell::new(None) }; BURST])
    }
}

impl Losses {
    /// Forgets all.
    pub fn clear(&self) {
        self.0.iter().for_each(|lost| lost.set(None));
    }

    /// Why the frame of this index was dropped, if it was.
    pub fn of(&self, index: u16) -> Option<DropReason> {
        self.0.get(usize::from(index)).and_then(Cell::get)
    }

    fn note(&self, index: u16, reason: DropReason) {
        if let Some(lost) = self.0.get(usize::from(index)) {
            lost.set(Some(reason));
        }
    }
}

impl<'b> Egress<'b> {
    /// The frames, in order.
    #[inline]
    fn frames(self) -> impl Iterator<Item = &'b Frame> + Clone {
        self.indexed().map(|(_, frame)| frame)
    }

    /// The frames and their indices, in order.
    #[inline]
    fn indexed(self) -> impl Iterator<Item = (u16, &'b Frame)> + Clone {
        let frame = move |index: &u16| Some((*index, self.frames.get(usize::from(*index))?));
        self.list.iter().filter_map(frame)
    }

    /// Counts a frame that was delivered, or dropped for a reason.
    #[inline]
    fn count(
        self,
        index: u16,
        frame: &Frame,
        done: Result<(), DropReason>,
        counters: &Counters,
        queue: &QueueCounters,
    ) {
        counters.count_egress(frame, done);
        let Err(reason) = done else { return };
        queue.drop(reason, 1);
        if let Some(losses) = self.losses {
            losses.note(index, reason);
        }
    }

    /// Counts all frames as dropped, at a queue if they had come to one.
    pub fn lose(self, reason: DropReason, counters: &Counters, queue: Option<&QueueCounters>) {
        let count = self.list.len() as u64;
        counters.drop(reason, count);
        if let Some(queue) = queue {
            queue.drop(reason, count);
        }
        if let Some(losses) = self.losses {
            self.list.iter().for_each(|index| losses.note(*index, reason));
        }
    }
}

impl Port {
    /// A port for a switch with no more than `workers` workers.
    pub fn new(id: PortId, name: String, kind: Kind, workers: usize) -> Self {
        let counters = (0..workers).map(|_| Counters::new(kind.queues())).collect();
        Self { id, name, kind, counters }
    }

    /// What takes the place of this port, of another kind or anew.
    #[must_use]
    pub fn successor(&self, kind: Kind) -> Self {
        Self::new(self.id, self.name.clone(), kind, self.counters.len())
    }

    /// The counters that `worker` writes.
    #[inline]
    #[expect(clippy::indexing_slicing, reason = "there is one set for each worker")]
    pub fn counters(&self, worker: usize) -> &Counters {
        &self.counters[worker]
    }

    /// The sums over all workers.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        self.counters.iter().for_each(|c| totals.add(c));
        totals
    }

    /// The sums over all workers, by queue.
    pub fn queue_totals(&self) -> Vec<QueueTotals> {
        let queues = self.counters.first().map_or(0, |counters| counters.queues().len());
        let mut totals = vec![QueueTotals::default(); queues];
        for counters in &self.counters {
            totals.iter_mut().zip(counters.queues()).for_each(|(sum, queue)| sum.add(queue));
        }
        totals
    }

    /// Whether frames can leave here: floods pass over ports that nobody listens on.
    #[inline]
    pub fn is_up(&self) -> bool {
        match &self.kind {
            Kind::Vhost(port) => port.is_up(),
            Kind::Tap(_) => true,
        }
    }

    /// How many queues it has: the pairs of a guest, the queues of a TAP.
    pub fn queues(&self) -> usize {
        self.kind.queues()
    }

    /// The worker, of so many, that takes what comes in by a queue: the pairs of a guest and the queues
    /// of a TAP go round, and each port begins one worker further, since most use few of their queues.
    #[inline]
    pub fn worker_of(&self, queue: usize, workers: usize) -> usize {
        (self.id.index() + queue) % workers.max(1)
    }

    /// The queue, of `queues`, that a worker writes to: the one that it takes frames from, if there
    /// is one for each worker.
    #[inline]
    fn queue_of(&self, worker: usize, queues: usize) -> usize {
        (worker + queues - self.id.index() % queues) % queues
    }

    /// About how long it takes to send a frame out of this port, ns: for estimates, not for books.
    pub fn cost(&self, frame: &Frame) -> u64 {
        let (accepts, output) = match &self.kind {
            Kind::Vhost(port) => (port.accepts(), GUEST_OUTPUT_NS),
            Kind::Tap(port) => (port.accepts(), TAP_OUTPUT_NS),
        };
        let outputs = u64::from(offload::outputs(frame, accepts));
        // What is cut is read once more, for the checksums.
        let bytes = u64::from(frame.len) * if outputs > 1 { 2 } else { 1 };
        outputs * output + bytes / BYTES_PER_NS
    }

    /// Sends frames out of this port. Each is delivered, or counted as a drop of this port.
    #[inline]
    pub fn egress(&self, burst: Egress<'_>, worker: usize) {
        let counters = self.counters(worker);
        match &self.kind {
            Kind::Vhost(port) => port.egress(burst, counters),
            Kind::Tap(port) => {
                port.egress(self.queue_of(worker, port.queues()), burst, counters);
            }
        }
    }
}
