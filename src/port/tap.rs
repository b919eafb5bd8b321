//! A TAP device of the host as a port: the uplink, a container, the host itself.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use crate::frame::{BURST, DropReason, Frame, HEAD_LEN, MAX_FRAME, MIN_FRAME};
use crate::mem::{SegmentPool, Segments, Tail, write_frame};
use crate::sys::tap::{READ_BUFFER_LEN, Tap};
use crate::wire::offload::Offloads;
use crate::wire::vnet::{Encoded, VnetHeader};

use super::offload::{convert, passes};
use super::{Counters, Egress};

/// Room for the longest frame with its header.
const SLOT: usize = READ_BUFFER_LEN.next_multiple_of(64);
/// So many of the longest frames end a burst; of shorter ones [`BURST`] do.
const LONGEST_FRAMES: usize = 16;

/// The data side of a TAP port.
#[derive(Debug)]
pub struct TapPort {
    tap: Tap,
}

/// A worker's buffer for frames that are read from TAPs. They lie one behind the other: what is
/// small stays in the cache.
#[derive(Debug)]
pub struct TapReader {
    buffer: Box<[u8]>,
}

impl Default for TapReader {
    fn default() -> Self {
        Self { buffer: vec![0; SLOT * LONGEST_FRAMES].into_boxed_slice() }
    }
}

impl TapPort {
    /// A port over an open device.
    pub fn new(tap: Tap) -> Self {
        Self { tap }
    }

    /// The device.
    pub fn tap(&self) -> &Tap {
        &self.tap
    }

    /// How many queues it has.
    pub fn queues(&self) -> usize {
        self.tap.queues().len()
    }

    /// What is readable when frames wait in a queue.
    pub fn queue_fd(&self, queue: usize) -> Option<BorrowedFd<'_>> {
        self.tap.queues().get(queue).map(AsFd::as_fd)
    }

    /// Offloads that the kernel may use in frames that are read from the device.
    #[inline]
    pub fn sends(&self) -> Offloads {
        Offloads::all()
    }

    /// Offloads that the kernel takes in frames that are written to the device.
    pub(super) fn accepts(&self) -> Offloads {
        let without_uso = Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6 | Offloads::ECN;
        if self.tap.has_uso() { Offloads::all() } else { without_uso }
    }

    /// Reads frames from a queue, one system call each. Returns the number of good ones, the
    /// segments of their tails, and the number of those with impossible lengths.
    pub fn receive<'m>(
        &self,
        queue: usize,
        reader: &'m mut TapReader,
        pool: &'m mut SegmentPool,
        frames: &mut [Frame],
    ) -> (usize, Segments<'m>, u16) {
        let mut tails: [Range<usize>; BURST] = std::array::from_fn(|_| 0..0);
        let (mut good, mut bad, mut begin) = (0, 0, 0);
        let Some(queue) = self.tap.queues().get(queue) else {
            return (0, pool.local(&[], std::iter::empty()), 0);
        };
        for _ in 0..BURST.min(frames.len()) {
            let Some(buffer) = reader.buffer.get_mut(begin..begin + SLOT) else {
                break;
            };
            // Nothing left, or the device is down: both end the burst.
            let Ok(n) = queue.read(buffer) else { break };
            let frame_and_tail = frames.get_mut(good).zip(tails.get_mut(good));
            let Some((frame, tail)) = frame_and_tail else {
                break;
            };
            match fill(frame, buffer.get(..n).unwrap_or_default(), good as u32) {
                Some(head) => {
                    *tail = begin + VnetHeader::LEN + head..begin + n;
                    good += 1;
                    begin += n.next_multiple_of(64);
                }
                None => bad += 1,
            }
        }
        let segments = pool.local(&reader.buffer, tails.into_iter().take(good));
        (good, segments, bad)
    }

    /// Writes frames to a queue, one system call each.
    pub(super) fn egress(&self, queue: usize, burst: Egress<'_>, counters: &Counters) {
        let (books, before) = (counters.queue(queue), counters.egress_frames.get());
        let Some(queue) = self.queue_fd(queue) else { return };
        let accepts = self.accepts();
        for (index, frame) in burst.indexed() {
            let done = match passes(frame.vnet, accepts) {
                Some(vnet) => {
                    let tail = burst.segments.tail(frame.tail.clone());
                    write(queue, vnet, frame.head(), tail)
                }
                None => convert(frame, burst.segments, accepts, counters, |vnet, head, tail, _| {
                    write(queue, vnet, head, tail)
                }),
            };
            burst.count(index, frame, done, counters, books);
        }
        books.frames.add(counters.egress_frames.get().wrapping_sub(before));
    }
}

fn write(
    queue: BorrowedFd<'_>,
    vnet: Encoded,
    head: &[u8],
    tail: Tail<'_>,
) -> Result<(), DropReason> {
    match write_frame(queue, &vnet.to_bytes(), head, tail) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Err(DropReason::BadOffload),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EIO | libc::EBADFD | libc::ENODEV)) => {
            Err(DropReason::TapDown)
        }
        Err(_) => Err(DropReason::TapFull),
    }
}

/// Makes a frame of what was read. Returns the length of its head, or None for a frame of
/// impossible length. Its tail is segment `index`.
fn fill(frame: &mut Frame, read: &[u8], index: u32) -> Option<usize> {
    let (header, bytes) = read.split_first_chunk::<{ VnetHeader::LEN }>()?;
    let len = u32::try_from(bytes.len()).ok().filter(|n| (MIN_FRAME..=MAX_FRAME).contains(n))?;
    let head = bytes.len().min(HEAD_LEN);
    frame.len = len;
    frame.vnet = Encoded::from_bytes(header);
    frame.head_mut().copy_from_slice(bytes.get(..head)?);
    frame.tail = index..index + 1;
    frame.flow = None;
    Some(head)
}
