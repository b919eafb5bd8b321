//! Taking bursts of frames from a guest's transmit ring.
//!
//! A burst goes in phases over all its frames, because each phase waits for memory that the
//! guest's core wrote last, and only overlapped waits are cheap: first all heads, then all first
//! descriptors (and the prefetch of indirect tables), then all chains with the prefetch of their
//! payload, and last all headers.

use std::ops::Range;

use crate::frame::{BURST, Frame, MAX_FRAME, MIN_FRAME};
use crate::mem::{MAX_FRAME_SEGMENTS, Segment, SegmentPool, Segments, Window};
use crate::sys::prefetch;
use crate::wire::vnet::{Encoded, VnetHeader};

use super::Ring;
use super::format::{BadRing, DESC_F_INDIRECT, Desc, Format, Head};
use super::vring::{LiveRing, with_live};

/// The most payload of one burst, bytes: bounds how long other rings wait.
const BURST_BYTES: u64 = 256 * 1024;
/// What a descriptor costs of that, however little it holds.
const DESC_BYTES: u64 = 64;

/// Frames that were taken from a ring and aren't completed yet. They lie in the guest's memory,
/// and borrow the ring so that it can't change under them.
#[derive(Debug)]
pub struct TxBurst<'m> {
    /// The good frames, in order, with head, length, tail and the guest's virtio-net header as it
    /// was written (unchecked).
    pub frames: &'m mut [Frame],
    /// What the frames' tails index.
    pub segments: Segments<'m>,
    /// How many buffers were taken: good frames and bad ones.
    pub taken: u16,
    /// One bit for each buffer with a chain that breaks the rules. The others that hold no good frame
    /// hold one that is too short or too long.
    pub bad_chains: u64,
    /// More frames may be waiting: the burst ended for its limits.
    pub more: bool,
}

const _: () = assert!(BURST <= u64::BITS as usize);

impl TxBurst<'_> {
    /// Of the first `taken` buffers, of which `good` hold good frames, how many have bad chains and
    /// how many have frames that are too short or too long.
    pub fn bad(&self, taken: u16, good: usize) -> (u16, u16) {
        let all = taken.saturating_sub(good as u16);
        let first = u64::MAX.checked_shl(u32::from(taken)).map_or(u64::MAX, |rest| !rest);
        let chains = (self.bad_chains & first).count_ones() as u16;
        (chains, all.saturating_sub(chains))
    }
}

impl Ring {
    /// Takes up to [`BURST`] frames, but no more than `frames` has room for, and about 256 KiB.
    ///
    /// Returns None when there is nothing or the ring isn't running; a ring with an impossible
    /// index is stopped and its frontend told. After the burst, [`Ring::complete_burst`] gives
    /// the `taken` buffers back.
    #[inline]
    pub fn receive<'m>(
        &'m mut self,
        pool: &'m mut SegmentPool,
        frames: &'m mut [Frame],
    ) -> Option<TxBurst<'m>> {
        if !self.is_running() {
            return None;
        }
        let wanted = frames.len();
        let live = self.live.as_mut()?;
        let count = match with_live!(live, live => live.read_first(wanted)) {
            Ok(0) => return None,
            Ok(count) => count,
            Err(BadRing) => {
                self.fail();
                return None;
            }
        };
        with_live!(self.live.as_ref()?, live => live.take_burst(count, pool, frames))
    }

    /// Completes the next `taken` buffers. [`Ring::publish`] shows them to the guest.
    #[inline]
    pub fn complete_burst(&mut self, taken: u16) {
        let Some(live) = &mut self.live else { return };
        with_live!(live, live => {
            for head in live.heads.get(..usize::from(taken)).unwrap_or_default() {
                live.ring.complete(*head, 0);
            }
        });
    }
}

impl<F: Format> LiveRing<F> {
    /// Reads the first descriptor of each of the next chains, up to `wanted` and up to a burst.
    /// Returns how many there are.
    #[inline]
    fn read_first(&mut self, wanted: usize) -> Result<usize, BadRing> {
        let heads = self.heads.get_mut(..wanted.min(BURST)).unwrap_or_default();
        let count = self.ring.take(0, heads, &mut self.first)?;
        for desc in self.first.get(..count).unwrap_or_default() {
            // A buffer's first lines are asked for when it is listed; a table is needed for that.
            if desc.flags() & DESC_F_INDIRECT != 0
                && let Some((table, _)) = self.mem.translate(desc.addr, 1, &mut Window::default())
            {
                prefetch::read(table.as_ptr());
                prefetch::read(table.as_ptr().wrapping_add(64));
            }
        }
        Ok(count)
    }

    /// Takes the frames of `count` chains.
    #[inline]
    fn take_burst<'m>(
        &'m self,
        count: usize,
        pool: &'m mut SegmentPool,
        frames: &'m mut [Frame],
    ) -> Option<TxBurst<'m>> {
        let mut segments = pool.guest(&self.mem);
        let (taken, bad_chains) = self.walk_chains(count, &mut segments, frames);
        let good = fetch_heads(self.header, taken, &mut segments, frames);
        Some(TxBurst {
            frames: frames.get_mut(..good)?,
            segments,
            taken: taken as u16,
            bad_chains,
            more: taken < count || count == BURST,
        })
    }

    /// Walks the chains and lists their segments, the tails of `frames` for now. Returns how many
    /// were taken (a burst ends when it holds enough bytes or segments) and a bit for each of them
    /// that is bad; those have no segments.
    #[inline]
    fn walk_chains(
        &self,
        count: usize,
        segments: &mut Segments<'_>,
        frames: &mut [Frame],
    ) -> (usize, u64) {
        let (mut bytes, mut bad, mut taken) = (0u64, 0u64, 0);
        let heads = self.heads.get(..count).unwrap_or_default();
        for ((head, first), frame) in heads.iter().zip(&self.first).zip(frames) {
            if bytes >= BURST_BYTES || !segments.has_room() {
                break;
            }
            taken += 1;
            let begin = segments.end();
            let walked = if first.is_whole_chain(0) {
                bytes += DESC_BYTES + u64::from(first.len());
                segments.push(first.addr, first.len())
            } else {
                self.walk_chain(*head, *first, segments, &mut bytes)
            };
            if !walked {
                bad |= 1 << (taken - 1);
                segments.truncate(begin);
            }
            frame.tail = begin..segments.end();
        }
        (taken, bad)
    }

    /// Lists the segments of a chain of any shape. Returns whether it is good.
    #[inline(never)]
    fn walk_chain(
        &self,
        head: Head,
        first: Desc,
        segments: &mut Segments<'_>,
        bytes: &mut u64,
    ) -> bool {
        let begin = segments.end();
        let add = |desc: Desc| {
            *bytes += DESC_BYTES + u64::from(desc.len());
            segments.end() - begin < MAX_FRAME_SEGMENTS as u32
                && segments.push(desc.addr, desc.len())
        };
        self.ring.walk(&self.mem, head, first, 0, add).is_ok()
    }
}

/// Fetches the virtio-net header and the head of the first `taken` of `frames` out of their
/// tails, and drops those of impossible length. Returns the number of good frames, which are the
/// first ones then.
#[inline]
fn fetch_heads(
    header: usize,
    taken: usize,
    segments: &mut Segments<'_>,
    frames: &mut [Frame],
) -> usize {
    let mut good = 0;
    for index in 0..taken {
        let Some(tail) = frames.get(index).map(|frame| frame.tail.clone()) else {
            break;
        };
        let Some(frame) = frames.get_mut(good) else {
            break;
        };
        let fetched = match segments.only(&tail) {
            Some(segment) if header == VnetHeader::LEN => fetch_whole(tail, segment, frame),
            _ => fetch_pieces(header, tail, segments, frame),
        };
        frame.buffer = index as u16;
        good += usize::from(fetched.is_some());
    }
    good
}

/// The length of a frame that `bytes` bytes hold together with its virtio-net header, if a frame
/// may have it.
#[inline]
fn frame_len(bytes: u64, header: usize) -> Option<u32> {
    let len = bytes.wrapping_sub(header as u64);
    (u64::from(MIN_FRAME)..=u64::from(MAX_FRAME)).contains(&len).then_some(len as u32)
}

/// Fetches a frame's head out of its only segment.
#[inline]
fn fetch_whole(mut tail: Range<u32>, segment: &mut Segment, frame: &mut Frame) -> Option<()> {
    let len = frame_len(segment.len() as u64, VnetHeader::LEN)?;
    frame.vnet = Encoded::from_bytes(&segment.take_array()?);
    frame.len = len;
    if !segment.take(frame.head_mut()) {
        return None;
    }
    if segment.len() == 0 {
        tail.start = tail.end;
    }
    frame.tail = tail;
    frame.flow = None;
    Some(())
}

/// Fetches a frame's head out of any segments, and a header of which legacy drivers leave
/// `num_buffers` out.
#[inline(never)]
fn fetch_pieces(
    header: usize,
    mut tail: Range<u32>,
    segments: &mut Segments<'_>,
    frame: &mut Frame,
) -> Option<()> {
    let len = frame_len(segments.bytes(tail.clone()), header)?;
    let mut vnet = [0u8; VnetHeader::LEN];
    segments.take(&mut tail, vnet.get_mut(..header)?);
    frame.vnet = Encoded::from_bytes(&vnet);
    frame.len = len;
    segments.take(&mut tail, frame.head_mut());
    frame.tail = tail;
    frame.flow = None;
    Some(())
}
