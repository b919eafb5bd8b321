//! Putting frames into a guest's receive ring: the single payload copy ends here.
//!
//! Receive buffers are looked at in advance ([`Ahead`]): their descriptors are read once, checked
//! and translated, and the first lines are prefetched for writing, before the frames are copied.
//! What was looked at but not used is forgotten when the ring stops or its memory changes;
//! the ring's position only counts what was used.

use std::collections::VecDeque;
use std::ptr::NonNull;

use crate::mem::{DirtyLog, Tail, copy};
use crate::sys::prefetch;
use crate::wire::vnet::VnetHeader;

use super::format::{DESC_F_WRITE, Desc, Format, Head};
use super::packed::PackedRing;
use super::split::SplitRing;
use super::vring::{Live, LiveRing};
use super::{MAX_CHAIN, Ring};

/// Buffers that are looked at in advance.
const LOOK_AHEAD: usize = 64;
/// The most buffers of one frame. Linux posts at least 1.5 KiB: 43 of them hold 64 KiB.
const MAX_BUFFERS: usize = 256;
/// Descriptors of receive buffers that are read for one burst. One more chain may come on top.
const BURST_DESCRIPTORS: usize = 4096;

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

/// A receive buffer: one available chain.
#[derive(Clone, Copy, Debug)]
struct Buffer {
    head: Head,
    pieces: u16,
    /// Room, bytes. Zero for a chain that breaks the rules: it is completed with length 0.
    len: u32,
}

/// Receive buffers that were looked at and aren't used yet; the first is at the ring's position.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    buffers: VecDeque<Buffer>,
    pieces: VecDeque<Piece>,
    /// Entries of the ring that they take.
    slots: u16,
    /// Descriptors that may still be read for this burst, so that no guest's buffers, however
    /// they are cut up, take more than their share of the worker's time.
    descriptors: usize,
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

    /// Looks at the buffers for the next frames.
    #[inline]
    pub fn prepare(&mut self) {
        self.live.look_ahead(LOOK_AHEAD);
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
        mut vnet: VnetHeader,
        len: u32,
        head: &[u8],
        tail: Tail<'_>,
    ) -> Result<(), RxFault> {
        let live = &mut *self.live;
        let need = u64::from(len) + live.header as u64;
        let count = live.gather(need)?;
        vnet.num_buffers = count as u16;
        let vnet = vnet.to_bytes();
        let mut writer = Writer::new(&live.ahead.pieces, live.log.as_deref());
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
        let (mut heads, mut first) = ([Head::default(); LOOK_AHEAD], [None; LOOK_AHEAD]);
        let heads = heads.get_mut(..(target - known).min(LOOK_AHEAD)).unwrap_or_default();
        let more = self.ring.take(self.ahead.slots, heads, &mut first).unwrap_or(0);
        for (head, first) in heads.iter().zip(first).take(more) {
            if self.ahead.descriptors == 0 {
                break;
            }
            self.add_buffer(*head, first);
        }
    }

    /// Reads one chain, checks and translates it.
    #[inline]
    fn add_buffer(&mut self, head: Head, first: Option<Desc>) {
        let Self { ring, mem, ahead, .. } = self;
        let pieces = &mut ahead.pieces;
        let begin = pieces.len();
        let (mut len, mut hint) = (0u32, 0);
        let walked = first.is_some_and(|first| {
            let buffer = |desc: &Desc| {
                ahead.descriptors = ahead.descriptors.saturating_sub(1);
                let (mut addr, mut left) = (desc.addr, desc.len);
                while left > 0 {
                    let Some((ptr, n)) = mem.translate(addr, left, &mut hint) else {
                        return false;
                    };
                    if pieces.len() - begin >= MAX_CHAIN {
                        return false;
                    }
                    prefetch::write(ptr.as_ptr());
                    prefetch::write(ptr.as_ptr().wrapping_add(64));
                    pieces.push_back(Piece { ptr, len: n, guest_addr: addr });
                    left -= n;
                    len = len.saturating_add(n);
                    addr = addr.saturating_add(u64::from(n));
                }
                true
            };
            ring.walk(mem, head, first, DESC_F_WRITE, buffer).is_ok()
        });
        if !walked {
            pieces.truncate(begin);
            len = 0;
        }
        let pieces = (pieces.len() - begin) as u16;
        ahead.slots += head.slots;
        ahead.buffers.push_back(Buffer { head, pieces, len });
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
            for _ in 0..buffer.pieces {
                self.ahead.pieces.pop_front();
            }
        }
    }
}

/// Writes bytes into consecutive pieces. There is room: `gather` counted it.
struct Writer<'a> {
    pieces: std::collections::vec_deque::Iter<'a, Piece>,
    at: *mut u8,
    left: usize,
    guest_addr: u64,
    log: Option<&'a DirtyLog>,
}

impl<'a> Writer<'a> {
    #[inline]
    fn new(pieces: &'a VecDeque<Piece>, log: Option<&'a DirtyLog>) -> Self {
        let at = NonNull::dangling().as_ptr();
        Self { pieces: pieces.iter(), at, left: 0, guest_addr: 0, log }
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
                let Some(piece) = self.pieces.next() else {
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
