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
use super::format::{BadRing, DESC_F_INDIRECT, Desc, Format};
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
    fn read_first(&mut self, wanted: usize) -> Result<usize, BadRing> {
        let heads = self.heads.get_mut(..wanted.min(BURST)).unwrap_or_default();
        let count = self.ring.take(0, heads, &mut self.first)?;
        for desc in self.first.iter().take(count) {
            // A buffer's first lines are asked for when it is listed; a table is needed for that.
            if desc.flags() & DESC_F_INDIRECT != 0
                && let Some((table, _)) = self.mem.translate(desc.addr, 1, &mut 0)
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
        let (good, bad_lengths) = fetch_heads(self.header, taken, &mut segments, frames);
        Some(TxBurst {
            frames: frames.get_mut(..good)?,
            segments,
            taken: taken as u16,
            bad_chains,
            // A bad chain has no segments: it was counted as too short as well.
            bad_lengths: bad_lengths.saturating_sub(bad_chains),
        })
    }

    /// Walks the chains and lists their segments, the tails of `frames` for now. Returns how many
    /// were taken (a burst ends when it holds enough bytes or segments) and how many of them are
    /// bad; those have no segments.
    #[inline]
    fn walk_chains(
        &self,
        count: usize,
        segments: &mut Segments<'_>,
        frames: &mut [Frame],
    ) -> (usize, u16) {
        let (mut bytes, mut bad, mut taken) = (0u64, 0u16, 0);
        let chains = self.heads.iter().zip(&self.first).take(count);
        for ((head, first), frame) in chains.zip(frames) {
            if bytes >= BURST_BYTES || !segments.has_room() {
                break;
            }
            taken += 1;
            let begin = segments.end();
            let mut add = |desc: Desc| {
                bytes += DESC_BYTES + u64::from(desc.len());
                segments.end() - begin < MAX_FRAME_SEGMENTS as u32
                    && segments.push(desc.addr, desc.len())
            };
            let walked = if first.is_whole_chain(0) {
                add(*first)
            } else {
                self.ring.walk(&self.mem, *head, *first, 0, add).is_ok()
            };
            if !walked {
                bad += 1;
                segments.truncate(begin);
            }
            frame.tail = begin..segments.end();
        }
        (taken, bad)
    }
}

/// Fetches the virtio-net header and the head of the first `taken` of `frames` out of their
/// tails, and drops those of impossible length. Returns the number of good frames, which are the
/// first ones then, and of dropped ones.
#[inline]
fn fetch_heads(
    header: usize,
    taken: usize,
    segments: &mut Segments<'_>,
    frames: &mut [Frame],
) -> (usize, u16) {
    let (mut good, mut dropped) = (0, 0);
    for index in 0..taken {
        let Some(mut tail) = frames.get(index).map(|frame| frame.tail.clone()) else {
            break;
        };
        let len = segments.bytes(tail.clone()).saturating_sub(header as u64);
        if len < u64::from(MIN_FRAME) || len > u64::from(MAX_FRAME) {
            dropped += 1;
            continue;
        }
        let vnet = fetch_vnet(header, &mut tail, segments);
        let Some(frame) = frames.get_mut(good) else {
            break;
        };
        frame.len = len as u32;
        segments.take(&mut tail, frame.head_mut());
        frame.vnet = VnetHeader::from_bytes(&vnet);
        frame.tail = tail;
        good += 1;
    }
    (good, dropped)
}

/// Fetches the virtio-net header, of which legacy drivers leave `num_buffers` out.
#[inline]
fn fetch_vnet(
    header: usize,
    tail: &mut Range<u32>,
    segments: &mut Segments<'_>,
) -> [u8; VnetHeader::LEN] {
    let mut vnet = [0u8; VnetHeader::LEN];
    if header == vnet.len() {
        segments.take_array(tail, &mut vnet);
    } else {
        segments.take(tail, vnet.get_mut(..header).unwrap_or_default());
    }
    vnet
}
