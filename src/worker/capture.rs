//! Captures: copies of the frames that cross chosen ports, with what became of them.
//!
//! A worker that is asked to watch looks at each burst that one of these ports sent or is to get, and
//! copies its frames into a buffer of its own, behind their delivery. Control takes the buffers
//! away and puts empty ones in their place. A full buffer, or one that is just being taken, costs
//! the capture frames, and nobody else: they are counted as missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::frame::{BURST, DropReason, Frame, HEAD_LEN, PortId, Verdict};
use crate::mem::Segments;
use crate::port::Losses;
use crate::sys::clock;
use crate::wire::filter::Filter;

use super::{Order, Shared};

/// Captures at a time.
pub const MAX_CAPTURES: usize = 8;
/// Bytes of frames in each worker's buffer of a capture: some milliseconds of the fastest traffic.
const BYTES: usize = 4 << 20;
/// Frames there.
const FRAMES: usize = 16 << 10;
/// Frames of a sample in each worker's buffer.
const SAMPLE: usize = 32;

/// Frames that somebody wants to see.
#[derive(Debug)]
pub struct Capture {
    /// By port: whether its frames are wanted.
    ports: Box<[bool]>,
    filter: Filter,
    /// Bytes that are kept of each frame.
    snaplen: u32,
    subject: Subject,
    /// By worker.
    buffers: Box<[Mutex<Buffer>]>,
    missed: AtomicU64,
}

/// What there is a record of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    /// Each frame at each of the ports.
    Frames,
    /// Each way of a frame that came from one of the ports, or went there: one where it was to leave,
    /// or one where it came in if it went nowhere.
    Ways,
}

/// When a frame was where, in cycles of the time-stamp counter since the worker had read its burst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamps {
    /// All frames of the burst were decided about.
    pub decided: u64,
    /// The port had taken or dropped all frames of the burst that were to leave there.
    pub left: u64,
}

/// A frame at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Nanoseconds since 1970, when its burst was decided about.
    pub ns: u64,
    /// When it was where.
    pub stamps: Stamps,
    /// Index of the port.
    pub port: u16,
    /// Whether it came from the port; else it was to leave there.
    pub inbound: bool,
    /// What became of it.
    pub fate: Fate,
    /// Its length, bytes.
    pub len: u32,
    /// As many of its bytes as were wanted.
    pub bytes: &'a [u8],
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It left by the port `peer`; or for a frame that leaves, it came from there.
    Passed {
        /// Index of the other port.
        peer: u16,
    },
    /// As [`Fate::Passed`], but at the port that it was to leave by it was dropped.
    Lost {
        /// Index of the other port.
        peer: u16,
        /// Why.
        reason: DropReason,
    },
    /// It went to `ports` ports, at `lost` of which it was dropped.
    Flooded {
        /// How many.
        ports: u16,
        /// How many of them.
        lost: u16,
    },
    /// It went nowhere.
    Dropped {
        /// Why.
        reason: DropReason,
    },
}

impl Capture {
    /// A capture of `ports`, of a switch with `workers` workers. `snaplen` bytes are kept of each
    /// frame that `filter` matches.
    pub fn new(ports: Box<[bool]>, filter: Filter, snaplen: u32, workers: usize) -> Self {
        Self::of(Subject::Frames, ports, filter, snaplen, workers)
    }

    /// A sample of the ways of frames that come from `ports` or go there: of each, the beginning. Each
    /// worker has room for a few dozen.
    pub fn sample(ports: Box<[bool]>, filter: Filter, workers: usize) -> Self {
        Self::of(Subject::Ways, ports, filter, HEAD_LEN as u32, workers)
    }

    fn of(
        subject: Subject,
        ports: Box<[bool]>,
        filter: Filter,
        snaplen: u32,
        workers: usize,
    ) -> Self {
        let buffers = (0..workers).map(|_| Mutex::new(Buffer::new(subject))).collect();
        Self { ports, filter, snaplen, subject, buffers, missed: AtomicU64::new(0) }
    }

    /// Buffers to give to [`Self::take`].
    pub fn spares(&self) -> Vec<Buffer> {
        self.buffers.iter().map(|_| Buffer::new(self.subject)).collect()
    }

    /// Takes what was captured, in order. `spares` are what the workers go on with, and where the
    /// records are then.
    pub fn take<'s>(&self, spares: &'s mut [Buffer]) -> Vec<Record<'s>> {
        for (buffer, spare) in self.buffers.iter().zip(spares.iter_mut()) {
            spare.heads.clear();
            spare.bytes.clear();
            std::mem::swap(&mut *buffer.lock(), spare);
        }
        let mut records: Vec<_> = spares.iter().flat_map(Buffer::records).collect();
        records.sort_by_key(|record| record.ns);
        records
    }

    /// How many frames found no room, since the capture began.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    fn wants(&self, port: u16) -> bool {
        self.ports.get(usize::from(port)).copied().unwrap_or(false)
    }

    /// Whether there is to be a record of a frame from `ingress` at `port`.
    fn records(&self, ingress: PortId, port: PortId, inbound: bool, fate: Fate) -> bool {
        match self.subject {
            Subject::Frames => self.wants(port.0),
            Subject::Ways if inbound => self.wants(port.0) && matches!(fate, Fate::Dropped { .. }),
            Subject::Ways => self.wants(port.0) || self.wants(ingress.0),
        }
    }

    fn write(&self, worker: usize, head: &Head, frame: &Frame, segments: &Segments<'_>) {
        let kept = head.len.min(self.snaplen) as usize;
        let buffer = self.buffers.get(worker).and_then(Mutex::try_lock);
        match buffer {
            Some(mut buffer) if buffer.has_room(kept) => buffer.push(head, kept, frame, segments),
            _ => {
                self.missed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// What one worker captured. It never grows.
#[derive(Debug)]
pub struct Buffer {
    heads: Vec<Head>,
    /// The frames' bytes, one behind the other.
    bytes: Vec<u8>,
}

/// What is known of a captured frame besides its bytes.
#[derive(Clone, Copy, Debug)]
struct Head {
    ns: u64,
    stamps: Stamps,
    port: u16,
    inbound: bool,
    fate: Fate,
    len: u32,
    /// Where its bytes end in the buffer.
    end: usize,
}

impl Buffer {
    fn new(subject: Subject) -> Self {
        let (frames, bytes) = match subject {
            Subject::Frames => (FRAMES, BYTES),
            Subject::Ways => (SAMPLE, SAMPLE * HEAD_LEN),
        };
        Self { heads: Vec::with_capacity(frames), bytes: Vec::with_capacity(bytes) }
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.heads.len() < self.heads.capacity()
            && self.bytes.capacity() - self.bytes.len() >= bytes
    }

    fn push(&mut self, head: &Head, kept: usize, frame: &Frame, segments: &Segments<'_>) {
        let end = self.bytes.len() + kept;
        let first = frame.head();
        self.bytes.extend_from_slice(first.get(..kept).unwrap_or(first));
        let rest = kept.saturating_sub(first.len());
        let tail = segments.tail(frame.tail.clone()).slice(0, rest);
        tail.read(|bytes| self.bytes.extend_from_slice(bytes));
        // As long as was said, whatever the segments were.
        self.bytes.resize(end, 0);
        self.heads.push(Head { end, ..*head });
    }

    fn records(&self) -> impl Iterator<Item = Record<'_>> {
        let mut begin = 0;
        self.heads.iter().filter_map(move |head| {
            let bytes = self.bytes.get(begin..head.end)?;
            begin = head.end;
            let Head { ns, stamps, port, inbound, fate, len, .. } = *head;
            Some(Record { ns, stamps, port, inbound, fate, len, bytes })
        })
    }
}

impl Shared {
    /// Begins a capture; false if there are too many.
    pub fn begin_capture(&self, capture: &Arc<Capture>) -> bool {
        let mut captures = self.captures.lock();
        if captures.len() >= MAX_CAPTURES {
            return false;
        }
        captures.push(Arc::clone(capture));
        drop(captures);
        self.mailboxes.iter().for_each(|mailbox| mailbox.send(Order::Watch));
        true
    }

    /// Ends a capture. A worker may write to it for another moment.
    pub fn end_capture(&self, capture: &Arc<Capture>) {
        self.captures.lock().retain(|other| !Arc::ptr_eq(other, capture));
        self.mailboxes.iter().for_each(|mailbox| mailbox.send(Order::Watch));
    }
}

/// The captures that a worker serves.
#[derive(Debug, Default)]
pub(super) struct Watch {
    captures: Vec<Arc<Capture>>,
    losses: Losses,
    /// By frame of the burst.
    sent: Vec<Sent>,
    ns: u64,
    /// The time-stamp counter when the burst was read.
    read: u64,
    stamps: Stamps,
}

/// What came of a frame.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    /// To how many ports it was sent.
    ports: u16,
    /// At how many of them it was dropped, and why at the last one.
    lost: u16,
    why: Option<DropReason>,
}

/// A burst, and where it came from.
#[derive(Clone, Copy)]
pub(super) struct Burst<'b> {
    pub worker: usize,
    pub ingress: PortId,
    pub frames: &'b [Frame],
    pub segments: &'b Segments<'b>,
}

impl Watch {
    /// Serves these captures from now on.
    pub fn set(&mut self, captures: Vec<Arc<Capture>>) {
        self.captures = captures;
    }

    /// When a burst was read; None if nobody wants frames, as mostly.
    #[inline]
    pub fn stamp(&self) -> Option<u64> {
        if self.captures.is_empty() { None } else { Some(clock::tsc()) }
    }

    /// Whether somebody wants frames of one of these ports.
    #[inline(never)]
    pub fn concerns(&self, ingress: PortId, egress: &[u16]) -> bool {
        let wanted = |port: u16| self.captures.iter().any(|capture| capture.wants(port));
        wanted(ingress.0) || egress.iter().any(|port| wanted(*port))
    }

    /// Before a burst is sent that was read at `read`.
    pub fn begin(&mut self, read: u64) {
        self.sent.clear();
        self.sent.resize(BURST, Sent::default());
        self.ns = clock::unix_ns();
        self.read = read;
        let decided = clock::tsc().saturating_sub(read);
        self.stamps = Stamps { decided, left: decided };
    }

    /// Where a port is to tell what it loses, before it gets its part of the burst.
    pub fn losses(&mut self) -> &Losses {
        self.losses.clear();
        &self.losses
    }

    /// Behind a port's part of the burst: the frames of `list` were to leave there.
    pub fn left(&mut self, burst: &Burst<'_>, port: PortId, list: &[u16]) {
        let peer = burst.ingress.0;
        self.stamps.left = clock::tsc().saturating_sub(self.read);
        for index in list {
            let lost = self.losses.of(*index);
            let Some((frame, sent)) =
                burst.frames.get(usize::from(*index)).zip(self.sent.get_mut(usize::from(*index)))
            else {
                continue;
            };
            sent.ports += 1;
            if lost.is_some() {
                (sent.lost, sent.why) = (sent.lost + 1, lost);
            }
            let fate = match lost {
                None => Fate::Passed { peer },
                Some(reason) => Fate::Lost { peer, reason },
            };
            self.write(burst, port, false, frame, fate);
        }
    }

    /// Behind the whole burst.
    pub fn end(&self, burst: &Burst<'_>) {
        for (frame, Sent { ports, lost, why }) in burst.frames.iter().zip(self.sent.iter().copied())
        {
            let fate = match (frame.verdict, why) {
                (Verdict::Drop(reason), _) => Fate::Dropped { reason },
                (Verdict::Flood, _) if ports == 0 => {
                    Fate::Dropped { reason: DropReason::NoDestination }
                }
                (Verdict::Flood, _) => Fate::Flooded { ports, lost },
                (Verdict::To(port), None) => Fate::Passed { peer: port.0 },
                (Verdict::To(port), Some(reason)) => Fate::Lost { peer: port.0, reason },
            };
            self.write(burst, burst.ingress, true, frame, fate);
        }
    }

    fn write(&self, burst: &Burst<'_>, port: PortId, inbound: bool, frame: &Frame, fate: Fate) {
        let dropped = matches!(fate, Fate::Dropped { .. } | Fate::Lost { .. });
        let (ns, stamps, len) = (self.ns, self.stamps, frame.len);
        let head = Head { ns, stamps, port: port.0, inbound, fate, len, end: 0 };
        let wanting = |capture: &&Arc<Capture>| {
            capture.records(burst.ingress, port, inbound, fate)
                && capture.filter.matches(frame.head(), dropped)
        };
        for capture in self.captures.iter().filter(wanting) {
            capture.write(burst.worker, &head, frame, burst.segments);
        }
    }
}
