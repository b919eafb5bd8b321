//! Taking bursts of frames from a guest's transmit ring.
//!
//! A burst goes in phases over all its frames, because each phase waits for memory that the
//! guest's core wrote last, and only overlapped waits are cheap: first all heads, then all first
//! descriptors (and the prefetch of indirect tables), then all chains with the prefetch of their
//! payload, and last all headers.

use std::ops::Range;

use crate::frame::{BURST, Frame, MAX_FRAME, MIN_FRAME};
use crate::mem::{MAX_FRAME_SEGMENTS, SegmentPool, Segments};
use crate::sys::prefetch;
use crate::wire::vnet::VnetHeader;

use super::Ring;
use super::format::{BadRing, Desc, Format};
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
    /// Buffers with chains that break the rules.
    pub bad_chains: u16,
    /// Buffers with frames that are too short or too long.
    pub bad_lengths: u16,
}

/// Room for what is read of a burst's chains, reused.
#[derive(Debug)]
struct Chains {
    first: [Option<Desc>; BURST],
    segments: [Range<u32>; BURST],
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
        let mut chains = Chains { first: [None; BURST], segments: std::array::from_fn(|_| 0..0) };
        let wanted = frames.len();
        let live = self.live.as_mut()?;
        let count = match with_live!(live, live => live.read_first(wanted, &mut chains)) {
            Ok(0) => return None,
            Ok(count) => count,
            Err(BadRing) => {
                self.fail();
                return None;
            }
        };
        with_live!(self.live.as_ref()?, live => live.take_burst(count, &mut chains, pool, frames))
    }

    /// Completes the next `taken` buffers. [`Ring::publish`] shows them to the guest.
    #[inline]
    pub fn complete_burst(&mut self, taken: u16) {
        let Some(live) = &mut self.live else { return };
        with_live!(live, live => {
            for head in live.heads.iter().take(usize::from(taken)) {
                live.ring.complete(*head, 0);
            }
        });
    }
}

impl<F: Format> LiveRing<F> {
    /// Reads the first descriptor of each of the next chains, up to `wanted` and up to a burst.
    /// Returns how many there are.
    #[inline]
    fn read_first(&mut self, wanted: usize, chains: &mut Chains) -> Result<usize, BadRing> {
        let wanted = wanted.min(BURST);
        let heads = self.heads.get_mut(..wanted).unwrap_or_default();
        let count = self.ring.take(0, heads, &mut chains.first)?;
        for desc in chains.first.iter().take(count).flatten() {
            if let Some((at, _)) = self.mem.translate(desc.addr, 1, &mut 0) {
                // Payload, or the table of an indirect chain.
                prefetch::read(at.as_ptr());
                prefetch::read(at.as_ptr().wrapping_add(64));
            }
        }
        Ok(count)
    }

    /// Takes the frames of `count` chains.
    #[inline]
    fn take_burst<'m>(
        &'m self,
        count: usize,
        chains: &mut Chains,
        pool: &'m mut SegmentPool,
        frames: &'m mut [Frame],
    ) -> Option<TxBurst<'m>> {
        let mut segments = pool.guest(&self.mem);
        let (taken, bad_chains) = self.walk_chains(count, chains, &mut segments);
        let (good, bad_lengths) =
            fetch_heads(self.header, chains.segments.get(..taken)?, &mut segments, frames);
        Some(TxBurst {
            frames: frames.get_mut(..good)?,
            segments,
            taken: taken as u16,
            bad_chains,
            // A bad chain has no segments: it was counted as too short as well.
            bad_lengths: bad_lengths.saturating_sub(bad_chains),
        })
    }

    /// Walks the chains and lists their segments. Returns how many were taken (a burst ends when
    /// it holds enough bytes or segments) and how many of them are bad; those have no segments.
    #[inline]
    fn walk_chains(
        &self,
        count: usize,
        chains: &mut Chains,
        segments: &mut Segments<'_>,
    ) -> (usize, u16) {
        let (mut bytes, mut bad, mut taken) = (0u64, 0u16, 0);
        let firsts = self.heads.iter().zip(&chains.first);
        for ((head, first), range) in firsts.zip(&mut chains.segments).take(count) {
            if bytes >= BURST_BYTES || !segments.has_room() {
                break;
            }
            taken += 1;
            let begin = segments.end();
            let limit = begin + MAX_FRAME_SEGMENTS as u32;
            let walked = first.is_some_and(|first| {
                self.ring
                    .walk(&self.mem, *head, first, 0, |desc| {
                        bytes += DESC_BYTES + u64::from(desc.len);
                        segments.end() < limit && segments.push(desc.addr, desc.len)
                    })
                    .is_ok()
            });
            if !walked {
                bad += 1;
                segments.truncate(begin);
            }
            *range = begin..segments.end();
        }
        (taken, bad)
    }
}

/// Fetches the virtio-net header and the head of each frame into `frames`, skipping those of
/// impossible length. Returns the number of good frames and of skipped ones.
#[inline]
fn fetch_heads(
    header: usize,
    ranges: &[Range<u32>],
    segments: &mut Segments<'_>,
    frames: &mut [Frame],
) -> (usize, u16) {
    let (mut good, mut skipped) = (0, 0);
    for range in ranges {
        let total: u64 = segments.bytes(range.clone());
        let len = total.saturating_sub(header as u64);
        if len < u64::from(MIN_FRAME) || len > u64::from(MAX_FRAME) {
            skipped += 1;
            continue;
        }
        let Some(frame) = frames.get_mut(good) else {
            break;
        };
        let mut vnet = [0u8; VnetHeader::LEN];
        let mut tail = range.clone();
        segments.take(&mut tail, vnet.get_mut(..header).unwrap_or_default());
        frame.len = len as u32;
        segments.take(&mut tail, frame.head_mut());
        frame.vnet = VnetHeader::from_bytes(&vnet);
        frame.tail = tail;
        good += 1;
    }
    (good, skipped)
}
