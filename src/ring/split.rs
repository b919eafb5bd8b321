//! The split ring: descriptor table, available ring, used ring (virtio 1.2, section 2.7).
//!
//! Owns the pointers and the position; knows nothing about frames. The three areas are guest
//! memory: each word is read once per use, through raw pointers, and nothing that is read is
//! trusted. Who holds a `SplitRing` also holds the `Arc` of the memory map that its pointers lie
//! in (see `vring`), and accesses it under the ring's lock.

use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};

use crate::mem::{DirtyLog, RegionMap};
use crate::sys::prefetch;

use super::format::{
    BadChain, BadRing, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE, Desc, Format, Head,
    Table, read_words,
};
use super::vring::{RingAddress, RingError};
use super::{MAX_CHAIN, feature};

/// In `avail.flags`: the driver needs no interrupt.
const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// In `used.flags`: the device needs no kick.
const USED_F_NO_NOTIFY: u16 = 1;
/// Bytes of a used entry.
const USED_SIZE: usize = 8;
/// Bytes before the entries of the available and the used ring: `flags` and `idx`.
const RING_HEADER: usize = 4;

/// A running split ring.
#[derive(Debug)]
pub struct SplitRing {
    size: u16,
    desc: NonNull<u8>,
    avail: NonNull<u8>,
    used: NonNull<u8>,
    /// Guest address of the used ring in the dirty log.
    used_log: u64,
    /// The next entry to take and, as completion is in order, the next to complete.
    next: u16,
    /// The value of `used.idx` in guest memory.
    published: u16,
    /// Up to where it was decided whether the driver wants a call.
    decided: u16,
    event_idx: bool,
    indirect: bool,
    kicks_wanted: Option<bool>,
}

// SAFETY: the pointers lie in shared memory that is only accessed through raw pointers, under
// the lock of the ring that owns this value.
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// Locates a ring of `size` entries. The position is `used.idx`: buffers are completed in
    /// order, so that is where any previous device stopped, even one that was killed.
    pub fn locate(
        mem: &RegionMap,
        size: u16,
        address: &RingAddress,
        features: u64,
    ) -> Result<Self, RingError> {
        let n = u64::from(size);
        let find = |what, addr, len, align| {
            mem.translate_user(addr, len, align).ok_or(RingError::Address { what, addr })
        };
        // Each ring is followed by one word for the event index.
        let (desc, _) = find("descriptor table", address.desc, n * 16, 16)?;
        let (avail, _) = find("available ring", address.avail, 6 + 2 * n, 2)?;
        let (used, used_guest) = find("used ring", address.used, 6 + 8 * n, 4)?;
        let mut ring = Self {
            size,
            desc,
            avail,
            used,
            used_log: address.log_guest_addr.unwrap_or(used_guest),
            next: 0,
            published: 0,
            decided: 0,
            event_idx: features & feature::EVENT_IDX != 0,
            indirect: features & feature::INDIRECT_DESC != 0,
            kicks_wanted: None,
        };
        // SAFETY: the used ring's header was located above.
        let used_idx = unsafe { ring.used.add(2).cast::<u16>().read_volatile() };
        ring.next = u16::from_le(used_idx);
        ring.published = ring.next;
        ring.decided = ring.next;
        Ok(ring)
    }

    #[inline]
    fn mask(&self) -> u16 {
        self.size - 1
    }

    /// How many entries the driver made available beyond the first `taken` ones.
    #[inline]
    fn available(&self, taken: u16) -> Result<u16, BadRing> {
        // SAFETY: the available ring's header was located, and is 2-byte aligned.
        let idx = u16::from_le(unsafe { self.avail.add(2).cast::<u16>().read_volatile() });
        // The entries and descriptors are read after the index (section 2.7.13.3).
        fence(Ordering::Acquire);
        let pending = idx.wrapping_sub(self.next);
        if pending > self.size {
            return Err(BadRing);
        }
        Ok(pending.saturating_sub(taken))
    }

    /// The head of the `ahead`th available entry that isn't taken yet. May be out of range.
    #[inline]
    fn head(&self, ahead: u16) -> u16 {
        let slot = self.next.wrapping_add(ahead) & self.mask();
        let offset = RING_HEADER + 2 * usize::from(slot);
        // SAFETY: slot < size, and the whole ring was located.
        u16::from_le(unsafe { self.avail.add(offset).cast::<u16>().read_volatile() })
    }

    /// Prefetches a head's descriptor.
    #[inline]
    fn prefetch_desc(&self, head: u16) {
        let offset = DESC_SIZE * usize::from(head & self.mask());
        prefetch::read(self.desc.as_ptr().wrapping_add(offset));
    }

    /// Reads descriptor `index` of the table, or [`Desc::NONE`] when it is out of range.
    #[inline]
    fn desc(&self, index: u16) -> Desc {
        if index >= self.size {
            return Desc::NONE;
        }
        // SAFETY: index < size, the table was located and is 16-byte aligned.
        let (addr, rest) =
            unsafe { read_words(self.desc.as_ptr().add(DESC_SIZE * usize::from(index))) };
        Desc::new(addr, rest)
    }

    /// Marks the used entries that were just published, and the index.
    #[cold]
    fn mark_used(&self, log: &DirtyLog) {
        let mut at = self.published;
        while at != self.next {
            let slot = u64::from(at & self.mask());
            let offset = RING_HEADER as u64 + USED_SIZE as u64 * slot;
            log.mark(self.used_log.saturating_add(offset), USED_SIZE as u64);
            at = at.wrapping_add(1);
        }
        log.mark(self.used_log, RING_HEADER as u64);
    }

    /// Writes a word of the used ring that is not one of its entries: the flags (at `offset` 0) or
    /// `avail_event` (behind the entries).
    fn write_used_word(&mut self, offset: usize, value: u16, log: Option<&DirtyLog>) {
        // SAFETY: both words were located with the ring, and are 2-byte aligned.
        unsafe { self.used.add(offset).cast::<u16>().write_volatile(value.to_le()) };
        if let Some(log) = log {
            log.mark(self.used_log.saturating_add(offset as u64), 2);
        }
    }
}

impl Format for SplitRing {
    #[inline]
    fn has_available(&self) -> Result<bool, BadRing> {
        Ok(self.available(0)? > 0)
    }

    #[inline]
    fn fill(&self, _: u16) -> u16 {
        self.available(0).unwrap_or_default()
    }

    #[inline]
    fn take(&self, ahead: u16, heads: &mut [Head], first: &mut [Desc]) -> Result<usize, BadRing> {
        let count = usize::from(self.available(ahead)?).min(heads.len()).min(first.len());
        let heads = heads.get_mut(..count).unwrap_or_default();
        for (index, head) in heads.iter_mut().enumerate() {
            *head = Head::new(self.head(ahead.wrapping_add(index as u16)), 1);
            self.prefetch_desc(head.id());
        }
        for (first, head) in first.iter_mut().zip(heads) {
            *first = self.desc(head.id());
        }
        Ok(count)
    }

    #[inline]
    fn walk(
        &self,
        mem: &RegionMap,
        _: Head,
        first: Desc,
        write: u16,
        mut buffer: impl FnMut(Desc) -> bool,
    ) -> Result<(), BadChain> {
        let mut desc = first;
        // A chain is at most as long as the ring: a longer one has a loop.
        for _ in 0..usize::from(self.size).min(MAX_CHAIN) {
            if desc.flags() & DESC_F_INDIRECT != 0 {
                // Section 2.7.5.3.1: never together with NEXT. It ends the chain.
                if !self.indirect || desc.flags() & DESC_F_NEXT != 0 {
                    return Err(BadChain);
                }
                return walk_indirect(mem, desc, write, buffer);
            }
            if desc.flags() & DESC_F_WRITE != write || !buffer(desc) {
                return Err(BadChain);
            }
            if desc.flags() & DESC_F_NEXT == 0 {
                return Ok(());
            }
            desc = self.desc(desc.next());
        }
        Err(BadChain)
    }

    #[inline]
    fn complete(&mut self, head: Head, written: u32) {
        let slot = self.next & self.mask();
        let offset = RING_HEADER + USED_SIZE * usize::from(slot);
        let entry = (u64::from(written) << 32 | u64::from(head.id())).to_le();
        // SAFETY: slot < size, and the whole ring was located. Entries are 4-byte aligned.
        unsafe { self.used.add(offset).cast::<u64>().write_unaligned(entry) };
        self.next = self.next.wrapping_add(1);
    }

    #[inline]
    fn publish(&mut self, log: Option<&DirtyLog>) {
        if self.published == self.next {
            return;
        }
        // The entries, and the buffers behind them, are seen before the index.
        fence(Ordering::Release);
        // SAFETY: the used ring's header was located, and is 4-byte aligned.
        unsafe { self.used.add(2).cast::<u16>().write_volatile(self.next.to_le()) };
        // What was written is marked after it: a mark that the frontend takes early is set again.
        if let Some(log) = log {
            self.mark_used(log);
        }
        self.published = self.next;
    }

    #[inline]
    fn undecided(&self) -> u16 {
        self.published.wrapping_sub(self.decided)
    }

    #[inline]
    fn needs_call(&mut self) -> bool {
        let (old, new) = (self.decided, self.published);
        self.decided = new;
        if old == new {
            return false;
        }
        if self.event_idx {
            let offset = RING_HEADER + 2 * usize::from(self.size);
            // SAFETY: `used_event` is the word behind the available ring; it was located.
            let event = unsafe { self.avail.add(offset).cast::<u16>().read_volatile() };
            let event = u16::from_le(event);
            // Section 2.7.10: is `event` among the entries old..new?
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            // SAFETY: the available ring's header was located.
            let flags = u16::from_le(unsafe { self.avail.cast::<u16>().read_volatile() });
            flags & AVAIL_F_NO_INTERRUPT == 0
        }
    }

    fn suppress_kicks(&mut self, log: Option<&DirtyLog>) {
        self.kicks_wanted = Some(false);
        if !self.event_idx {
            self.write_used_word(0, USED_F_NO_NOTIFY, log);
        }
        // With EVENT_IDX the old `avail_event` stays: one stray kick in 65,536 buffers.
    }

    fn request_kicks(&mut self, log: Option<&DirtyLog>) {
        self.kicks_wanted = Some(true);
        if self.event_idx {
            let behind = RING_HEADER + USED_SIZE * usize::from(self.size);
            self.write_used_word(behind, self.next, log);
        } else {
            self.write_used_word(0, 0, log);
        }
        // The request is seen before the index is read again (section 2.7.13.4.1).
        fence(Ordering::SeqCst);
    }

    #[inline]
    fn kicks_wanted(&self) -> Option<bool> {
        self.kicks_wanted
    }

    fn base(&self) -> u32 {
        u32::from(self.next)
    }

    #[inline]
    fn is_at_start(&self) -> bool {
        self.next == 0
    }
}

/// Walks the table of an indirect descriptor (section 2.7.5.3).
#[inline]
fn walk_indirect(
    mem: &RegionMap,
    desc: Desc,
    write: u16,
    mut buffer: impl FnMut(Desc) -> bool,
) -> Result<(), BadChain> {
    let table = Table::locate(mem, desc)?;
    let mut index = 0;
    for _ in 0..table.count().min(MAX_CHAIN) {
        let (addr, rest) = table.words(index)?;
        let desc = Desc::new(addr, rest);
        if desc.flags() & (DESC_F_INDIRECT | DESC_F_WRITE) != write || !buffer(desc) {
            return Err(BadChain);
        }
        if desc.flags() & DESC_F_NEXT == 0 {
            return Ok(());
        }
        index = usize::from(desc.next());
    }
    Err(BadChain)
}
