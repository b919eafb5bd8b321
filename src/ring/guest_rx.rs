//! Putting frames into a guest's receive ring: the single payload copy ends here.
//!
//! Which buffers there are is known before the frames come ([`Ahead`]); here they are filled.

use std::iter::Peekable;
use std::ptr::NonNull;

use crate::frame::Frame;
use crate::mem::{DirtyLog, Tail, copy, copy_short};
use crate::sys::prefetch;
use crate::wire::vnet::{Encoded, VnetHeader};

use super::Ring;
use super::ahead::{Ahead, LOOK_AHEAD, Piece, Pieces, Room};
use super::format::Format;
use super::packed::PackedRing;
use super::split::SplitRing;
use super::vring::{Live, LiveRing, with_live};

/// The most bytes of the next piece of a frame's room that are asked for while one is filled.
const ASKED: usize = 4096;

/// Why a frame didn't fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RxFault {
    /// No buffer is left: the guest is slower than its senders.
    Full,
    /// The posted buffers can't hold the frame, and never will.
    TooSmall,
}

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
            let fill = with_live!(live, live => {
                live.look_ahead(LOOK_AHEAD);
                live.ring.fill(live.ahead.slots())
            });
            self.gauge.look(fill);
        }
    }
}

impl Ring {
    /// What the ring has room for, or None when it doesn't run. Nothing is used, and the guest sees
    /// nothing of it: it is what [`Ring::look_ahead`] does.
    pub fn room(&mut self) -> Option<Room> {
        if !self.is_running() {
            return None;
        }
        let live = self.live.as_mut()?;
        Some(with_live!(live, live => live.room()))
    }

    /// Whether the ring runs and the guest has posted no buffer at all since it exists.
    pub fn is_untouched(&self) -> bool {
        let live = self.live.as_ref().filter(|_| self.is_running());
        live.is_some_and(|live| with_live!(live, live => live.is_untouched()))
    }
}

impl<F: Format> LiveRing<F> {
    fn is_untouched(&self) -> bool {
        self.ring.is_at_start() && self.ahead.is_empty() && self.ring.has_available() == Ok(false)
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
        live.ahead.begin();
        // Nothing is to be done when the guest posts buffers: spare it the kicks.
        if live.ring.kicks_wanted() != Some(false) {
            live.ring.suppress_kicks(live.log.as_deref());
        }
        Self { live }
    }

    /// Makes sure that `frames` buffers were looked at, if the guest has posted them. Mostly
    /// [`Ring::look_ahead`] has done it after the last burst.
    #[inline]
    pub fn prepare(&mut self, frames: usize) {
        self.live.look_ahead(frames.min(LOOK_AHEAD));
    }

    /// Asks for the room of a frame of `len` bytes that will come soon.
    #[inline]
    pub fn prefetch_room(&self, len: u32) {
        self.live.ahead.prefetch_room(len);
    }

    fn is_untouched(&self) -> bool {
        self.live.is_untouched()
    }

    /// Copies a frame, of which `tail` follows the head, into the next buffer with the header `vnet`,
    /// if that buffer is one piece and holds the frame: the common case. Returns whether it did.
    /// Nothing is visible to the guest before [`Ring::publish`].
    #[inline(always)]
    pub fn deliver_whole(&mut self, vnet: Encoded, frame: &Frame, tail: Tail<'_>) -> bool {
        let live = &mut *self.live;
        // A frame has MAX_FRAME bytes at most.
        let need = frame.len.wrapping_add(VnetHeader::LEN as u32);
        let Some(place) = live.ahead.first().and_then(|buffer| buffer.whole(need)) else {
            return false;
        };
        if !live.plain {
            return false;
        }
        // SAFETY: the piece lies in a mapping that the ring's `Live` keeps, and has room for `need`
        // bytes; the head is no longer than the frame.
        unsafe { write_whole(&place, vnet.with_num_buffers(1), frame.head(), tail) };
        live.use_first(need);
        true
    }

    /// Copies one frame of `len` bytes, given as `head` and `tail`, into the next buffers, of any
    /// number and shape. Nothing is visible to the guest before [`Ring::publish`].
    ///
    /// # Errors
    ///
    /// [`RxFault`]; no buffer is used then.
    #[inline(never)]
    pub fn deliver(
        &mut self,
        vnet: Encoded,
        len: u32,
        head: &[u8],
        tail: Tail<'_>,
    ) -> Result<(), RxFault> {
        let live = &mut *self.live;
        let need = len.saturating_add(live.header as u32);
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

/// Writes a frame into a piece; of the tail no more than there is room for.
///
/// # Safety
///
/// `piece` is writable, and has room for a virtio-net header and `head`.
#[inline(always)]
unsafe fn write_whole(piece: &Piece, vnet: Encoded, head: &[u8], tail: Tail<'_>) {
    let (at, room) = (piece.ptr.as_ptr(), piece.len as usize);
    let mut end = VnetHeader::LEN + head.len();
    // SAFETY: the caller's promise. `head` is local and has its length, a tail yields ranges that
    // are readable while it is borrowed, and `end` never passes `room`.
    unsafe {
        write_header(at, vnet);
        copy_short(head.as_ptr(), at.add(VnetHeader::LEN), head.len());
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

/// Writes bytes into consecutive pieces. There is room: `gather` counted it.
struct Writer<'a> {
    pieces: Peekable<Pieces<'a>>,
    at: *mut u8,
    left: usize,
    guest_addr: u64,
    log: Option<&'a DirtyLog>,
}

impl<'a> Writer<'a> {
    #[inline]
    fn new(ahead: &'a Ahead, log: Option<&'a DirtyLog>) -> Self {
        let at = NonNull::dangling().as_ptr();
        Self { pieces: ahead.all_pieces().peekable(), at, left: 0, guest_addr: 0, log }
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
                if let Some(next) = self.pieces.peek() {
                    prefetch::write_all(next.ptr.as_ptr(), (next.len as usize).min(ASKED));
                }
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
