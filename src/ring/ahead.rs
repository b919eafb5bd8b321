//! Receive buffers that were looked at in advance.
//!
//! Owns what is known of the buffers that a guest has posted and that aren't used yet: their
//! descriptors were read once, checked and translated, and their first lines were asked for. What
//! is known is forgotten when the ring stops or its memory changes; the ring's position only
//! counts what was used.

use std::collections::{VecDeque, vec_deque};
use std::ptr::NonNull;

use crate::frame::BURST;
use crate::mem::{RegionMap, Window};
use crate::sys::prefetch;
use crate::wire::vnet::VnetHeader;

use super::MAX_CHAIN;
use super::format::{DESC_F_WRITE, Desc, Format, Head};
use super::guest_rx::RxFault;
use super::vring::LiveRing;

/// Buffers that are looked at in advance. They are read into [`LiveRing`]'s lists.
pub(super) const LOOK_AHEAD: usize = 64;
const _: () = assert!(LOOK_AHEAD <= BURST);
/// The most buffers of one frame. Linux posts at least 1.5 KiB: 43 of them hold 64 KiB.
const MAX_BUFFERS: usize = 256;
/// Each buffer but so many of a frame's must hold so many bytes of it: taking a frame's bytes to
/// its guest must not cost more because that guest posts them one by one.
pub(super) const SMALL_BUFFERS: usize = 4;
pub(super) const BUFFER_BYTES: u32 = 256;
/// Descriptors of receive buffers that are read for one burst. One more chain may come on top.
const BURST_DESCRIPTORS: usize = 4096;

/// Bytes of a buffer that are asked for when it is looked at.
const PREFETCHED: usize = 2 * prefetch::LINE;
/// The rest is asked for when the buffer is so many places behind the one to fill. 2 was a little
/// better than 1; 3 was no better than 2.
const ROOM_AHEAD: usize = 2;

/// Contiguous writable guest memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub ptr: NonNull<u8>,
    pub len: u32,
    pub guest_addr: u64,
}

/// A receive buffer: one available chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffer {
    /// Where it is, if it is one piece: most are.
    ptr: NonNull<u8>,
    guest_addr: u64,
    /// Room, bytes. Zero for a chain that breaks the rules: it is completed with length 0.
    len: u32,
    head: Head,
    /// How many pieces it has in [`Ahead::pieces`], if it isn't one piece.
    pieces: u16,
}

impl Buffer {
    const EMPTY: Self =
        Self { ptr: NonNull::dangling(), guest_addr: 0, len: 0, head: Head::NONE, pieces: 0 };

    /// Where the buffer is, if it is one piece of `need` bytes or more.
    #[inline(always)]
    pub fn whole(&self, need: u32) -> Option<Piece> {
        let Self { ptr, len, guest_addr, .. } = *self;
        (self.pieces == 0 && len >= need).then_some(Piece { ptr, len, guest_addr })
    }
}

/// What a receive ring has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Buffers that the guest has posted, of the next ones.
    pub buffers: u32,
    /// What they hold, bytes.
    pub bytes: u64,
    /// What the first of them holds.
    pub first: u32,
    /// There may be more behind them, which weren't looked at.
    pub more: bool,
    /// Bytes of the virtio-net header, which go before each frame.
    pub header: u32,
    /// Whether a frame may fill several buffers.
    pub mergeable: bool,
}

impl Room {
    /// Whether there is room for `frames` frames of `bytes` bytes altogether, the longest of which
    /// has `longest`. Of buffers that hold very little, or have bytes of one frame left over, there
    /// may be too few all the same.
    ///
    /// # Errors
    ///
    /// [`RxFault`]
    pub fn takes(&self, frames: u32, bytes: u64, longest: u32) -> Result<(), RxFault> {
        let need = bytes + u64::from(frames) * u64::from(self.header);
        if self.buffers == 0 {
            Err(RxFault::Full)
        } else if !self.mergeable && self.first < longest.saturating_add(self.header) {
            Err(RxFault::TooSmall)
        } else if !self.more && (self.buffers < frames || self.bytes < need) {
            Err(RxFault::Full)
        } else {
            Ok(())
        }
    }
}

/// Receive buffers that were looked at and aren't used yet; the first is at the ring's position.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    buffers: Buffers,
    /// The pieces of the buffers that have several.
    pieces: VecDeque<Piece>,
    /// Entries of the ring that they take.
    slots: u16,
    /// Descriptors that may still be read for this burst, so that no guest's buffers, however
    /// they are cut up, take more than their share of the worker's time.
    descriptors: usize,
    /// Where the last piece was found in the memory map.
    window: Window,
}

// SAFETY: the pieces lie in the memory map whose `Arc` is kept beside this value (`LiveRing`),
// which is shared memory; they are only accessed under the ring's lock.
unsafe impl Send for Ahead {}

impl Ahead {
    /// Begins a burst.
    #[inline]
    pub fn begin(&mut self) {
        self.descriptors = BURST_DESCRIPTORS;
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.buffers.len() == 0
    }

    /// Entries of the ring that were looked at and aren't used yet.
    #[inline]
    pub fn slots(&self) -> u16 {
        self.slots
    }

    /// The next buffer to use.
    #[inline(always)]
    pub fn first(&self) -> Option<&Buffer> {
        self.buffers.get(0)
    }

    /// Asks for the room of a frame of `len` bytes that will come soon: copying a long frame is
    /// mostly waiting for the lines that it is written to.
    #[inline]
    pub fn prefetch_room(&self, len: u32) {
        if len <= (PREFETCHED - VnetHeader::LEN) as u32 {
            return;
        }
        if let Some(room) = self.buffers.get(ROOM_AHEAD).and_then(|buffer| buffer.whole(1)) {
            let end = room.len.min(len.saturating_add(VnetHeader::LEN as u32)) as usize;
            let rest = room.ptr.as_ptr().wrapping_add(PREFETCHED);
            prefetch::write_all(rest, end.saturating_sub(PREFETCHED));
        }
    }

    /// All known pieces of memory, in order.
    #[inline]
    pub fn all_pieces(&self) -> Pieces<'_> {
        Pieces { ahead: self, next: 0, pieces: self.pieces.iter(), left: 0 }
    }

    /// Adds a buffer that is one descriptor and one piece, as Linux and DPDK post them. Returns
    /// whether it is.
    #[inline]
    fn add_one_piece(&mut self, mem: &RegionMap, head: Head, desc: Desc) -> bool {
        let Some((ptr, len)) = mem.translate(desc.addr, desc.len(), &mut self.window) else {
            return false;
        };
        let buffer = Buffer { ptr, guest_addr: desc.addr, len, head, pieces: 0 };
        let is_one = desc.is_whole_chain(DESC_F_WRITE) && len == desc.len();
        if !is_one || !self.buffers.push(buffer) {
            return false;
        }
        prefetch_start(ptr.as_ptr());
        self.slots = self.slots.wrapping_add(head.slots());
        true
    }

    /// Adds a buffer of any shape: reads its chain, checks and translates it. Returns whether there
    /// was room.
    #[inline(never)]
    fn add_chain<F: Format>(&mut self, ring: &F, mem: &RegionMap, head: Head, first: Desc) -> bool {
        let known = self.pieces.len();
        let mut buffer = Buffer { head, ..Buffer::EMPTY };
        let add = |desc: Desc| {
            self.descriptors = self.descriptors.saturating_sub(1);
            let (mut addr, mut left) = (desc.addr, desc.len());
            while left > 0 {
                let Some((ptr, len)) = mem.translate(addr, left, &mut self.window) else {
                    return false;
                };
                if usize::from(buffer.pieces) > MAX_CHAIN {
                    return false;
                }
                prefetch_start(ptr.as_ptr());
                self.pieces.push_back(Piece { ptr, len, guest_addr: addr });
                buffer.pieces += 1;
                left -= len;
                buffer.len = buffer.len.saturating_add(len);
                addr = addr.saturating_add(u64::from(len));
            }
            true
        };
        if ring.walk(mem, head, first, DESC_F_WRITE, add).is_err() {
            buffer = Buffer { head, ..Buffer::EMPTY };
        }
        let fits = self.buffers.push(buffer);
        if fits {
            self.slots += head.slots();
        }
        self.pieces.truncate(known + usize::from(if fits { buffer.pieces } else { 0 }));
        fits
    }

    /// Forgets the first buffer, whose head is `head`.
    #[inline(always)]
    fn forget_first(&mut self, head: Head) {
        self.buffers.forget_first();
        self.slots = self.slots.wrapping_sub(head.slots());
    }

    /// Forgets the first buffer and its pieces, and returns its head and room.
    #[inline]
    fn pop(&mut self) -> Option<(Head, u32)> {
        let Buffer { head, len, pieces, .. } = *self.buffers.get(0)?;
        self.forget_first(head);
        if pieces > 0 {
            self.pieces.drain(..usize::from(pieces).min(self.pieces.len()));
        }
        Some((head, len))
    }
}

impl<F: Format> LiveRing<F> {
    /// Looks at more buffers until `target` of them are known, or there are no more.
    #[inline]
    pub(super) fn look_ahead(&mut self, target: usize) {
        let known = self.ahead.buffers.len();
        if known >= target {
            return;
        }
        let wanted = (target - known).min(LOOK_AHEAD).min(self.ahead.descriptors);
        // An impossible index shows in no buffers: the ring drops what is sent to it, and is
        // counted as full, until its driver mends it.
        let heads = self.heads.get_mut(..wanted).unwrap_or_default();
        let more = self.ring.take(self.ahead.slots, heads, &mut self.first).unwrap_or(0);
        let Self { ring, mem, ahead, heads, first, .. } = self;
        ahead.descriptors = ahead.descriptors.saturating_sub(more);
        let heads = heads.get(..more).unwrap_or_default();
        for (head, first) in heads.iter().zip(first) {
            if !ahead.add_one_piece(mem, *head, *first)
                && (ahead.descriptors == 0 || !ahead.add_chain(ring, mem, *head, *first))
            {
                break;
            }
        }
    }

    /// The room in the buffers that are there, of which no more than for a burst are looked at.
    pub(super) fn room(&mut self) -> Room {
        self.ahead.begin();
        self.look_ahead(LOOK_AHEAD);
        let Self { ahead, header, mergeable, .. } = self;
        let known = (0..ahead.buffers.len()).filter_map(|index| ahead.buffers.get(index));
        let mut good = known.map(|buffer| buffer.len).filter(|len| *len > 0);
        Room {
            buffers: good.clone().count() as u32,
            bytes: good.clone().map(u64::from).sum(),
            first: good.next().unwrap_or(0),
            more: ahead.buffers.len() >= LOOK_AHEAD,
            header: *header as u32,
            mergeable: *mergeable,
        }
    }

    /// Finds how many of the next buffers hold `need` bytes.
    pub(super) fn gather(&mut self, need: u32) -> Result<usize, RxFault> {
        let (mut count, mut room) = (0, 0u32);
        let most = SMALL_BUFFERS + (need / BUFFER_BYTES) as usize;
        loop {
            let Some(buffer) = self.ahead.buffers.get(count).copied() else {
                self.look_ahead(count + LOOK_AHEAD);
                if self.ahead.buffers.len() <= count {
                    return Err(RxFault::Full);
                }
                continue;
            };
            if count == 0 && buffer.len == 0 {
                // Ends with the descriptors of the burst.
                self.use_buffers(1, 0);
                continue;
            }
            count += 1;
            room = room.saturating_add(buffer.len);
            if room >= need {
                return Ok(count);
            }
            if !self.mergeable || count >= most.min(MAX_BUFFERS) {
                return Err(RxFault::TooSmall);
            }
        }
    }

    /// Completes the next buffer, which is one piece and holds `bytes` bytes, and forgets it.
    #[inline(always)]
    pub(super) fn use_first(&mut self, bytes: u32) {
        if let Some(Buffer { head, .. }) = self.ahead.first().copied() {
            self.ahead.forget_first(head);
            self.ring.complete(head, bytes);
        }
    }

    /// Completes the next `count` buffers, which hold `bytes` bytes, and forgets them.
    pub(super) fn use_buffers(&mut self, count: usize, mut bytes: u32) {
        for _ in 0..count {
            let Some((head, room)) = self.ahead.pop() else {
                return;
            };
            let written = bytes.min(room);
            bytes -= written;
            self.ring.complete(head, written);
        }
    }
}

/// Asks for the first lines of a buffer. DPDK puts the virtio-net header at the end of a line and
/// the frame at the beginning of the next one; that first line is for reading.
#[inline]
fn prefetch_start(at: *const u8) {
    if (at as usize).wrapping_add(VnetHeader::LEN).is_multiple_of(prefetch::LINE) {
        prefetch::read(at);
    } else {
        prefetch::write(at);
    }
    prefetch::write(at.wrapping_add(prefetch::LINE));
}

/// The pieces of memory of buffers one behind the other.
pub(super) struct Pieces<'a> {
    ahead: &'a Ahead,
    /// Index of the next buffer.
    next: usize,
    pieces: vec_deque::Iter<'a, Piece>,
    /// Pieces that the present buffer has left.
    left: u16,
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    #[inline]
    fn next(&mut self) -> Option<Piece> {
        loop {
            if let Some(left) = self.left.checked_sub(1) {
                self.left = left;
                return self.pieces.next().copied();
            }
            let buffer = self.ahead.buffers.get(self.next)?;
            self.next += 1;
            self.left = buffer.pieces;
            if let Some(piece) = buffer.whole(1) {
                return Some(piece);
            }
        }
    }
}

/// A queue of buffers of fixed capacity.
#[derive(Debug)]
struct Buffers {
    ring: Box<[Buffer; Self::CAPACITY]>,
    /// Positions of the first one and behind the last one, counted on without end.
    first: usize,
    end: usize,
}

impl Default for Buffers {
    fn default() -> Self {
        Self { ring: Box::new([Buffer::EMPTY; Self::CAPACITY]), first: 0, end: 0 }
    }
}

#[expect(clippy::indexing_slicing, reason = "every index is taken modulo the array's length")]
impl Buffers {
    /// A frame's, and those that are looked at in advance.
    const CAPACITY: usize = 2 * MAX_BUFFERS;

    #[inline]
    fn len(&self) -> usize {
        self.end.wrapping_sub(self.first)
    }

    /// The buffer `index` places behind the first one.
    #[inline(always)]
    fn get(&self, index: usize) -> Option<&Buffer> {
        let at = self.first.wrapping_add(index) % Self::CAPACITY;
        (index < self.len()).then_some(&self.ring[at])
    }

    /// Appends a buffer. Returns false when the queue is full.
    #[inline]
    #[must_use]
    fn push(&mut self, buffer: Buffer) -> bool {
        let fits = self.len() < Self::CAPACITY;
        if fits {
            self.ring[self.end % Self::CAPACITY] = buffer;
            self.end = self.end.wrapping_add(1);
        }
        fits
    }

    /// Forgets the first buffer: there is one.
    #[inline(always)]
    fn forget_first(&mut self) {
        self.first = self.first.wrapping_add(1);
    }
}
const _: () = assert!(MAX_BUFFERS + LOOK_AHEAD <= Buffers::CAPACITY);
