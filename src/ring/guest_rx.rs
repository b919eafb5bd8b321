//! Putting frames into a guest's receive ring: the single payload copy ends here.
//!
//! Receive buffers are looked at in advance ([`Ahead`]): their descriptors are read once, checked
//! and translated, and the first lines are prefetched for writing, before the frames are copied.
//! What was looked at but not used is forgotten when the ring stops or its memory changes;
//! the ring's position only counts what was used.

use std::collections::{VecDeque, vec_deque};
use std::ptr::NonNull;

use crate::frame::BURST;
use crate::mem::{DirtyLog, RegionMap, Tail, copy, copy_short};
use crate::sys::prefetch;
use crate::wire::vnet::{Encoded, VnetHeader};

use super::format::{DESC_F_WRITE, Desc, Format, Head};
use super::packed::PackedRing;
use super::split::SplitRing;
use super::vring::{Live, LiveRing, with_live};
use super::{MAX_CHAIN, Ring};

/// Buffers that are looked at in advance. They are read into [`LiveRing`]'s lists.
const LOOK_AHEAD: usize = 64;
const _: () = assert!(LOOK_AHEAD <= BURST);
/// The most buffers of one frame. Linux posts at least 1.5 KiB: 43 of them hold 64 KiB.
const MAX_BUFFERS: usize = 256;
/// Descriptors of receive buffers that are read for one burst. One more chain may come on top.
const BURST_DESCRIPTORS: usize = 4096;

/// Bytes of a buffer that are asked for when it is looked at.
const PREFETCHED: usize = 128;
/// The rest is asked for when the buffer is so many places behind the one to fill. 2 was a little
/// better than 1; 3 was no better than 2.
const ROOM_AHEAD: usize = 2;
/// Bytes of the virtio-net header of legacy drivers, which has no `num_buffers`.
const LEGACY_HEADER: usize = 10;

/// Why a frame didn't fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RxFault {
    /// No buffer is left: the guest is slower than its senders.
    Full,
    /// The posted buffers can't hold the frame, and never will.
    TooSmall,
}

/// Contiguous writable guest memory.
#[derive(Clone, Copy, Debug)]
struct Piece {
    ptr: NonNull<u8>,
    len: u32,
    guest_addr: u64,
}

impl Piece {
    const EMPTY: Self = Self { ptr: NonNull::dangling(), len: 0, guest_addr: 0 };
}

/// A receive buffer: one available chain.
#[derive(Clone, Copy, Debug)]
struct Buffer {
    /// Most buffers are one piece.
    first: Piece,
    /// How many pieces follow, in [`Ahead::more`].
    more: u16,
    head: Head,
    /// Room, bytes. Zero for a chain that breaks the rules: it is completed with length 0.
    len: u32,
}

/// Receive buffers that were looked at and aren't used yet; the first is at the ring's position.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    buffers: VecDeque<Buffer>,
    /// The pieces of all buffers behind each one's first.
    more: VecDeque<Piece>,
    /// Entries of the ring that they take.
    slots: u16,
    /// Descriptors that may still be read for this burst, so that no guest's buffers, however
    /// they are cut up, take more than their share of the worker's time.
    descriptors: usize,
    /// Where the last piece was found in the memory map.
    hint: usize,
}

// SAFETY: the pieces lie in the memory map whose `Arc` is kept beside this value (`Live`), which
// is shared memory; they are only accessed under the ring's lock.
unsafe impl Send for Ahead {}

/// A running receive ring, for the time of a burst.
#[derive(Debug)]
pub struct Receiver<'r, F> {
    live: &'r mut LiveRing<F>,
}

/// A running receive ring of one of the two formats: matched once per burst.
#[derive(Debug)]
pub enum AnyReceiver<'r> {
    /// A split ring.
    Split(Receiver<'r, SplitRing>),
    /// A packed ring.
    Packed(Receiver<'r, PackedRing>),
}

impl Ring {
    /// The ring as a place to put frames, or None when it doesn't run.
    #[inline]
    pub fn transmit(&mut self) -> Option<AnyReceiver<'_>> {
        if !self.is_running() {
            return None;
        }
        Some(match self.live.as_mut()? {
            Live::Split(live) => AnyReceiver::Split(Receiver::new(live)),
            Live::Packed(live) => AnyReceiver::Packed(Receiver::new(live)),
        })
    }

    /// Looks at buffers for the next burst. That waits for what the guest wrote, so it comes after
    /// a burst was published, where no frame waits with it.
    #[inline]
    pub fn look_ahead(&mut self) {
        if let Some(live) = &mut self.live {
            with_live!(live, live => live.look_ahead(LOOK_AHEAD));
        }
    }
}

impl AnyReceiver<'_> {
    /// Whether the guest has posted no buffer at all since the ring exists: its driver doesn't
    /// use this queue.
    pub fn is_untouched(&self) -> bool {
        match self {
            Self::Split(ring) => ring.is_untouched(),
            Self::Packed(ring) => ring.is_untouched(),
        }
    }
}

impl<'r, F: Format> Receiver<'r, F> {
    #[inline]
    fn new(live: &'r mut LiveRing<F>) -> Self {
        live.ahead.descriptors = BURST_DESCRIPTORS;
        // Nothing is to be done when the guest posts buffers: spare it the kicks.
        if live.ring.kicks_wanted() != Some(false) {
            live.ring.suppress_kicks();
        }
        Self { live }
    }

    /// Makes sure that `frames` buffers were looked at, if the guest has posted them. Mostly
    /// [`Ring::look_ahead`] has done it after the last burst.
    #[inline]
    pub fn prepare(&mut self, frames: usize) {
        self.live.look_ahead(frames.min(LOOK_AHEAD));
    }

    /// Asks for the room of a frame of `len` bytes that will come soon: copying a long frame is
    /// mostly waiting for the lines that it is written to.
    #[inline]
    pub fn prefetch_room(&self, len: u32) {
        if let Some(buffer) = self.live.ahead.buffers.get(ROOM_AHEAD) {
            let room = buffer.first.len.min(len.saturating_add(VnetHeader::LEN as u32));
            let rest = (room as usize).saturating_sub(PREFETCHED);
            prefetch::write_all(buffer.first.ptr.as_ptr().wrapping_add(PREFETCHED), rest);
        }
    }

    fn is_untouched(&self) -> bool {
        self.live.ring.is_at_start()
            && self.live.ahead.buffers.is_empty()
            && self.live.ring.has_available() == Ok(false)
    }

    /// Copies one frame of `len` bytes, given as `head` and `tail`, into the next buffers.
    /// Nothing is visible to the guest before [`Ring::publish`].
    ///
    /// # Errors
    ///
    /// [`RxFault`]; no buffer is used then.
    #[inline]
    pub fn deliver(
        &mut self,
        vnet: Encoded,
        len: u32,
        head: &[u8],
        tail: Tail<'_>,
    ) -> Result<(), RxFault> {
        let live = &mut *self.live;
        let need = u64::from(len) + live.header as u64;
        if let Some(buffer) = live.ahead.buffers.front()
            && buffer.more == 0
            && u64::from(buffer.len) >= need
            && live.log.is_none()
        {
            // SAFETY: the piece lies in a mapping that the ring's `Live` keeps.
            unsafe {
                write_whole(&buffer.first, vnet.with_num_buffers(1), live.header, head, tail);
            }
            live.use_buffers(1, need);
            return Ok(());
        }
        self.deliver_parts(vnet, need, head, tail)
    }

    /// Like `deliver`, into buffers of any number and shape.
    fn deliver_parts(
        &mut self,
        vnet: Encoded,
        need: u64,
        head: &[u8],
        tail: Tail<'_>,
    ) -> Result<(), RxFault> {
        let live = &mut *self.live;
        let count = live.gather(need)?;
        let vnet = vnet.with_num_buffers(count as u16).to_bytes();
        let mut writer = Writer::new(&live.ahead, live.log.as_deref());
        // SAFETY: both are local slices of at least these lengths (a header has 10 or 12 bytes),
        // and a tail yields ranges that are readable while it is borrowed.
        unsafe {
            writer.write(vnet.as_ptr(), live.header);
            writer.write(head.as_ptr(), head.len());
            for (ptr, n) in tail.pieces() {
                writer.write(ptr, n);
            }
        }
        live.use_buffers(count, need);
        Ok(())
    }
}

impl Ahead {
    /// Adds a buffer that is one descriptor and one piece, as Linux and DPDK post them. Returns
    /// whether it is.
    #[inline]
    fn add_one_piece(&mut self, mem: &RegionMap, head: Head, desc: Desc) -> bool {
        let len = desc.len();
        let Some((ptr, n)) = mem.translate(desc.addr, len, &mut self.hint) else {
            return false;
        };
        if !desc.is_whole_chain(DESC_F_WRITE) || n != len {
            return false;
        }
        prefetch_start(ptr.as_ptr());
        self.descriptors = self.descriptors.saturating_sub(1);
        self.slots += head.slots;
        let first = Piece { ptr, len, guest_addr: desc.addr };
        self.buffers.push_back(Buffer { first, more: 0, head, len });
        true
    }

    /// Adds a buffer of any shape: reads its chain, checks and translates it.
    #[inline(never)]
    fn add_chain<F: Format>(&mut self, ring: &F, mem: &RegionMap, head: Head, first: Desc) {
        let known = self.more.len();
        let mut buffer = Buffer { first: Piece::EMPTY, more: 0, head, len: 0 };
        let add = |desc: Desc| {
            self.descriptors = self.descriptors.saturating_sub(1);
            let (mut addr, mut left) = (desc.addr, desc.len());
            while left > 0 {
                let Some((ptr, n)) = mem.translate(addr, left, &mut self.hint) else {
                    return false;
                };
                prefetch_start(ptr.as_ptr());
                let piece = Piece { ptr, len: n, guest_addr: addr };
                if buffer.len == 0 {
                    buffer.first = piece;
                } else if usize::from(buffer.more) < MAX_CHAIN {
                    self.more.push_back(piece);
                    buffer.more += 1;
                } else {
                    return false;
                }
                left -= n;
                buffer.len = buffer.len.saturating_add(n);
                addr = addr.saturating_add(u64::from(n));
            }
            true
        };
        if ring.walk(mem, head, first, DESC_F_WRITE, add).is_err() {
            self.more.truncate(known);
            buffer = Buffer { first: Piece::EMPTY, more: 0, head, len: 0 };
        }
        self.slots += head.slots;
        self.buffers.push_back(buffer);
    }
}

impl<F: Format> LiveRing<F> {
    /// Looks at more buffers until `target` of them are known, or there are no more.
    #[inline]
    fn look_ahead(&mut self, target: usize) {
        let known = self.ahead.buffers.len();
        if known >= target {
            return;
        }
        // An impossible index shows in no buffers: the ring drops what is sent to it, and is
        // counted as full, until its driver mends it.
        let heads = self.heads.get_mut(..(target - known).min(LOOK_AHEAD)).unwrap_or_default();
        let more = self.ring.take(self.ahead.slots, heads, &mut self.first).unwrap_or(0);
        let Self { ring, mem, ahead, heads, first, .. } = self;
        for (head, first) in heads.iter().zip(first).take(more) {
            if ahead.descriptors == 0 {
                break;
            }
            if !ahead.add_one_piece(mem, *head, *first) {
                ahead.add_chain(ring, mem, *head, *first);
            }
        }
    }

    /// Finds how many of the next buffers hold `need` bytes.
    #[inline]
    fn gather(&mut self, need: u64) -> Result<usize, RxFault> {
        let (mut count, mut room) = (0, 0u64);
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
            room += u64::from(buffer.len);
            if room >= need {
                return Ok(count);
            }
            if !self.mergeable || count >= MAX_BUFFERS {
                return Err(RxFault::TooSmall);
            }
        }
    }

    /// Completes the next `count` buffers, which hold `bytes` bytes, and forgets them.
    #[inline]
    fn use_buffers(&mut self, count: usize, mut bytes: u64) {
        for _ in 0..count {
            let Some(buffer) = self.ahead.buffers.pop_front() else {
                return;
            };
            let written = bytes.min(u64::from(buffer.len)) as u32;
            bytes -= u64::from(written);
            self.ring.complete(buffer.head, written);
            self.ahead.slots = self.ahead.slots.saturating_sub(buffer.head.slots);
            for _ in 0..buffer.more {
                self.ahead.more.pop_front();
            }
        }
    }
}

/// Writes a frame into a buffer that is one piece and has room for it.
///
/// # Safety
///
/// `piece` is writable.
#[inline]
unsafe fn write_whole(piece: &Piece, vnet: Encoded, header: usize, head: &[u8], tail: Tail<'_>) {
    let (at, room) = (piece.ptr.as_ptr(), piece.len as usize);
    let mut end = header + head.len();
    if !(LEGACY_HEADER..=VnetHeader::LEN).contains(&header) || end > room {
        return;
    }
    // SAFETY: `head` is local and has its length, a tail yields ranges that are readable while it
    // is borrowed, and `end`, which is 10 at least, never passes `room`.
    unsafe {
        if header == VnetHeader::LEN {
            write_header(at, vnet);
        } else {
            at.cast::<u64>().write_unaligned(vnet.low.to_le());
            at.add(8).cast::<u16>().write_unaligned((vnet.high as u16).to_le());
        }
        copy_short(head.as_ptr(), at.add(header), head.len());
        for (ptr, n) in tail.pieces() {
            let n = n.min(room - end);
            copy(ptr, at.add(end), n);
            end += n;
        }
    }
}

/// Writes a header where another one stands, mostly the same: then nothing is written, and a line
/// that holds nothing else (see [`prefetch_start`]) stays in the cache of the guest's core.
///
/// # Safety
///
/// `at` is readable and writable for 12 bytes.
#[inline]
unsafe fn write_header(at: *mut u8, vnet: Encoded) {
    let (low, high) = (at.cast::<u64>(), at.wrapping_add(8).cast::<u32>());
    // SAFETY: the caller's promise. Whatever the guest does meanwhile, it gets the header that was
    // written, or the equal one that it had.
    unsafe {
        if low.read_unaligned() != vnet.low.to_le() {
            low.write_unaligned(vnet.low.to_le());
        }
        if high.read_unaligned() != vnet.high.to_le() {
            high.write_unaligned(vnet.high.to_le());
        }
    }
}

/// Asks for the first lines of a buffer. DPDK puts the virtio-net header at the end of a line and
/// the frame at the beginning of the next one; that first line is for reading.
#[inline]
fn prefetch_start(at: *const u8) {
    if (at as usize + VnetHeader::LEN).is_multiple_of(prefetch::LINE) {
        prefetch::read(at);
    } else {
        prefetch::write(at);
    }
    prefetch::write(at.wrapping_add(prefetch::LINE));
}

/// Writes bytes into consecutive pieces. There is room: `gather` counted it.
struct Writer<'a> {
    buffers: vec_deque::Iter<'a, Buffer>,
    more: vec_deque::Iter<'a, Piece>,
    /// Pieces that the present buffer has left in `more`.
    left_more: u16,
    at: *mut u8,
    left: usize,
    guest_addr: u64,
    log: Option<&'a DirtyLog>,
}

impl<'a> Writer<'a> {
    #[inline]
    fn new(ahead: &'a Ahead, log: Option<&'a DirtyLog>) -> Self {
        Self {
            buffers: ahead.buffers.iter(),
            more: ahead.more.iter(),
            left_more: 0,
            at: NonNull::dangling().as_ptr(),
            left: 0,
            guest_addr: 0,
            log,
        }
    }

    #[inline]
    fn next_piece(&mut self) -> Option<Piece> {
        if let Some(left) = self.left_more.checked_sub(1) {
            self.left_more = left;
            return self.more.next().copied();
        }
        let buffer = self.buffers.next()?;
        self.left_more = buffer.more;
        Some(buffer.first)
    }

    /// Appends `len` bytes from `src`.
    ///
    /// # Safety
    ///
    /// `src` is readable for `len` bytes.
    #[inline]
    unsafe fn write(&mut self, mut src: *const u8, mut len: usize) {
        while len > 0 {
            if self.left == 0 {
                let Some(piece) = self.next_piece() else {
                    return;
                };
                self.at = piece.ptr.as_ptr();
                self.left = piece.len as usize;
                self.guest_addr = piece.guest_addr;
                continue;
            }
            let n = len.min(self.left);
            // SAFETY: `at` has room for `left` bytes in a mapping that the ring's `Live` keeps;
            // `src` is readable for `len` bytes by the caller's promise.
            unsafe {
                copy(src, self.at, n);
                self.at = self.at.add(n);
                src = src.add(n);
            }
            if let Some(log) = self.log {
                log.mark(self.guest_addr, n as u64);
                self.guest_addr = self.guest_addr.wrapping_add(n as u64);
            }
            self.left -= n;
            len -= n;
        }
    }
}
