//! The driver's side of a split virtqueue (virtio 1.2, section 2.7).
//!
//! A chain is *built* (it takes descriptors), *posted* (an entry in the avail ring), *published*
//! (the avail index moves, and the device is kicked if it asked for that), comes back *used*, and
//! is then posted again as it is, or *freed*. What the driver must remember of a chain it keeps in
//! its own memory, as drivers do that don't trust their device.
//!
//! Owns the ring's memory. Knows nothing of frames. Besides the orderly
//! way there are raw writes for hostile tests; after one of those the ring's own bookkeeping is
//! off, and only raw writes make sense.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use crate::layout::Piece;
use crate::memory::{Cells, Memory};
use crate::ring::{Notifications, RingAddresses, Signals, Used};

/// Descriptor flag: the chain goes on at `next`.
pub const NEXT: u16 = 1;
/// Descriptor flag: the device writes this buffer.
pub const WRITE: u16 = 2;
/// Descriptor flag: the buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// Most descriptors in one indirect table.
pub const INDIRECT_MAX: usize = 64;

/// One descriptor (virtio 1.2, section 2.7.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest-physical address of the buffer.
    pub addr: u64,
    /// Its length in bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next descriptor.
    pub next: u16,
}

impl Descriptor {
    /// The 16 bytes as they stand in memory, for indirect tables written by hand.
    pub fn to_bytes(self) -> [u8; 16] {
        let [first, second] = self.words();
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&first.to_le_bytes());
        bytes[8..].copy_from_slice(&second.to_le_bytes());
        bytes
    }

    fn words(self) -> [u64; 2] {
        let rest = u64::from(self.len) | u64::from(self.flags) << 32 | u64::from(self.next) << 48;
        [self.addr, rest]
    }
}

/// The driver's side of one split virtqueue.
#[derive(Debug)]
pub struct SplitRing {
    size: u16,
    event_idx: bool,
    addresses: RingAddresses,
    desc: Cells<AtomicU64>,
    avail: Cells<AtomicU16>,
    used_head: Cells<AtomicU16>,
    used_entries: Cells<AtomicU32>,
    avail_event: Cells<AtomicU16>,
    /// First byte of `size` indirect tables of [`INDIRECT_MAX`] descriptors each.
    indirect: u64,
    memory: Arc<Memory>,

    free: Vec<u16>,
    /// Next descriptor of the same chain, as the driver remembers it.
    next: Vec<u16>,
    /// By head: how many descriptors of the table the chain takes; 0 is no chain.
    taken: Vec<u16>,
    /// By head: posted and not used yet.
    in_flight: Vec<bool>,
    flying: u16,
    avail_idx: u16,
    published: u16,
    last_used: u16,
    pub(crate) notifications: Notifications,
    pub(crate) signals: Signals,
}

impl SplitRing {
    /// A ring of `size` entries, a power of two up to 32768, without notifications armed.
    pub fn new(memory: &Arc<Memory>, size: u16, event_idx: bool) -> io::Result<SplitRing> {
        assert!(size.is_power_of_two(), "a split ring's size is a power of two");
        let entries = u64::from(size);
        let addresses = RingAddresses {
            desc: memory.alloc(16 * entries, 16),
            avail: memory.alloc(6 + 2 * entries, 2),
            used: memory.alloc(6 + 8 * entries, 4),
        };
        let count = usize::from(size);
        let ring = SplitRing {
            size,
            event_idx,
            addresses,
            desc: memory.cells(addresses.desc, 2 * count),
            avail: memory.cells(addresses.avail, 3 + count),
            used_head: memory.cells(addresses.used, 2),
            used_entries: memory.cells(addresses.used + 4, 2 * count),
            avail_event: memory.cells(addresses.used + 4 + 8 * entries, 1),
            indirect: memory.alloc(entries * INDIRECT_MAX as u64 * 16, 16),
            memory: Arc::clone(memory),
            free: (0..size).rev().collect(),
            next: vec![0; count],
            taken: vec![0; count],
            in_flight: vec![false; count],
            flying: 0,
            avail_idx: 0,
            published: 0,
            last_used: 0,
            notifications: Notifications::default(),
            signals: Signals::new()?,
        };
        ring.disarm();
        Ok(ring)
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where the ring lives.
    pub fn addresses(&self) -> RingAddresses {
        self.addresses
    }

    /// Guest memory.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Chains posted and not used yet.
    pub fn in_flight(&self) -> u16 {
        self.flying
    }

    /// Sets whether EVENT_IDX was negotiated; takes effect with the next notification decision.
    pub fn set_event_idx(&mut self, on: bool) {
        self.event_idx = on;
        self.disarm();
    }

    /// Builds a chain: `readable` pieces for the device to read, then `writable` ones for it to
    /// write. `None` when too few descriptors are free.
    pub fn build(&mut self, readable: &[Piece], writable: &[Piece], indirect: bool) -> Option<u16> {
        let pieces = readable.len() + writable.len();
        assert!(pieces > 0, "an empty chain");
        let taken = if indirect { 1 } else { pieces };
        if self.free.len() < taken {
            return None;
        }
        let describe = |at: usize| match readable.get(at) {
            Some(piece) => Descriptor { addr: piece.addr, len: piece.len, flags: 0, next: 0 },
            None => {
                let piece = writable[at - readable.len()];
                Descriptor { addr: piece.addr, len: piece.len, flags: WRITE, next: 0 }
            }
        };
        if indirect {
            return Some(self.build_indirect(pieces, describe));
        }
        // The free descriptors come in no special order, so chains jump about the table.
        let indices = self.free.split_off(self.free.len() - taken);
        for (at, &index) in indices.iter().enumerate() {
            let mut descriptor = describe(at);
            if let Some(&next) = indices.get(at + 1) {
                descriptor.flags |= NEXT;
                descriptor.next = next;
                self.next[usize::from(index)] = next;
            }
            self.write_descriptor(index, descriptor);
        }
        self.taken[usize::from(indices[0])] = taken as u16;
        Some(indices[0])
    }

    fn build_indirect(&mut self, pieces: usize, describe: impl Fn(usize) -> Descriptor) -> u16 {
        assert!(pieces <= INDIRECT_MAX, "at most {INDIRECT_MAX} pieces in an indirect table");
        let head = self.free.pop().expect("the caller saw a free descriptor");
        let table = self.indirect + u64::from(head) * INDIRECT_MAX as u64 * 16;
        for at in 0..pieces {
            let mut descriptor = describe(at);
            if at + 1 < pieces {
                descriptor.flags |= NEXT;
                descriptor.next = at as u16 + 1;
            }
            self.memory.write(table + 16 * at as u64, &descriptor.to_bytes());
        }
        let len = 16 * pieces as u32;
        self.write_descriptor(head, Descriptor { addr: table, len, flags: INDIRECT, next: 0 });
        self.taken[usize::from(head)] = 1;
        head
    }

    /// Gives the descriptors of a used chain back.
    pub fn free(&mut self, head: u16) {
        assert!(!self.in_flight[usize::from(head)], "chain {head} still belongs to the device");
        let mut index = head;
        for _ in 0..std::mem::take(&mut self.taken[usize::from(head)]) {
            self.free.push(index);
            index = self.next[usize::from(index)];
        }
    }

    /// Puts a built chain into the avail ring; the device sees it after [`SplitRing::publish`].
    #[inline]
    pub fn post(&mut self, head: u16) {
        let flag = &mut self.in_flight[usize::from(head)];
        assert!(!*flag, "chain {head} is posted already");
        *flag = true;
        self.flying += 1;
        let slot = usize::from(self.avail_idx & (self.size - 1));
        self.avail.at(2 + slot).store(head, Ordering::Relaxed);
        self.avail_idx = self.avail_idx.wrapping_add(1);
    }

    /// Takes back what was posted since the last publication, oldest first.
    pub fn unpost(&mut self) -> Vec<u16> {
        let count = self.avail_idx.wrapping_sub(self.published);
        let heads: Vec<u16> = (0..count)
            .map(|at| usize::from(self.published.wrapping_add(at) & (self.size - 1)))
            .map(|slot| self.avail.at(2 + slot).load(Ordering::Relaxed))
            .collect();
        for &head in &heads {
            self.in_flight[usize::from(head)] = false;
        }
        self.flying -= count;
        self.avail_idx = self.published;
        heads
    }

    /// Shows all posted chains to the device and kicks it if it wants that. Tells whether.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.avail_idx == self.published {
            return false;
        }
        let old = std::mem::replace(&mut self.published, self.avail_idx);
        self.avail.at(1).store(self.avail_idx, Ordering::Release);
        // Between our index and the device's wish (virtio 1.2, section 2.7.13.3.1): without it
        // both sides may miss the other's store, and the chain waits for ever.
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            need_event(self.avail_event.at(0).load(Ordering::Relaxed), self.avail_idx, old)
        } else {
            self.used_head.at(0).load(Ordering::Relaxed) & 1 == 0
        };
        if wanted {
            self.notifications.kicks += 1;
            self.signals.kick_now();
        } else {
            self.notifications.kicks_skipped += 1;
        }
        wanted
    }

    /// Takes the next used chain. Panics when the device returns one that it does not have.
    #[inline]
    pub fn pop(&mut self) -> Option<Used> {
        (self.checked_ready() > 0).then(|| self.take_used())
    }

    /// Takes up to `max` used chains into `into`, with one look at the used index. Panics as
    /// [`SplitRing::pop`] does.
    #[inline]
    pub fn pop_into(&mut self, max: usize, into: &mut Vec<Used>) {
        let count = usize::from(self.checked_ready()).min(max);
        into.extend((0..count).map(|_| self.take_used()));
    }

    #[inline]
    fn checked_ready(&self) -> u16 {
        let ready = self.ready();
        assert!(
            ready <= self.flying,
            "the used index went from {} to {} with {} chains in flight",
            self.last_used,
            self.last_used.wrapping_add(ready),
            self.flying
        );
        ready
    }

    #[inline]
    fn take_used(&mut self) -> Used {
        let slot = usize::from(self.last_used & (self.size - 1));
        let id = self.used_entries.at(2 * slot).load(Ordering::Relaxed);
        let len = self.used_entries.at(2 * slot + 1).load(Ordering::Relaxed);
        let flag = self.in_flight.get_mut(id as usize);
        let flag = flag.unwrap_or_else(|| panic!("the device used chain {id}: no such descriptor"));
        assert!(std::mem::take(flag), "the device used chain {id}, which it did not have");
        self.flying -= 1;
        self.last_used = self.last_used.wrapping_add(1);
        Used { head: id as u16, len }
    }

    /// Used chains that wait to be popped.
    #[inline]
    pub fn ready(&self) -> u16 {
        self.used_head.at(1).load(Ordering::Acquire).wrapping_sub(self.last_used)
    }

    /// Asks for a call at the next used chain.
    pub fn arm(&self) {
        if self.event_idx {
            self.used_event().store(self.last_used, Ordering::Relaxed);
        } else {
            self.avail.at(0).store(0, Ordering::Relaxed);
        }
        // Pairs with the device's fence between its used index and its look at our wish.
        fence(Ordering::SeqCst);
    }

    /// Asks for no calls.
    pub fn disarm(&self) {
        if self.event_idx {
            // As far away as an index can be; nothing else can say "none" here.
            self.used_event().store(self.last_used.wrapping_sub(1), Ordering::Relaxed);
        } else {
            self.avail.at(0).store(1, Ordering::Relaxed);
        }
    }

    fn used_event(&self) -> &AtomicU16 {
        self.avail.at(2 + usize::from(self.size))
    }

    /// The avail index that the device has been shown: what Cloud Hypervisor sends as the base.
    pub fn avail_index(&self) -> u16 {
        self.published
    }

    /// The used index that the device has shown: what QEMU falls back to as the base.
    pub fn used_index(&self) -> u16 {
        self.used_head.at(1).load(Ordering::Acquire)
    }

    /// Raw: the used ring's flags, of which bit 0 asks for no kicks.
    pub fn used_flags(&self) -> u16 {
        self.used_head.at(0).load(Ordering::Relaxed)
    }

    /// Raw: writes a descriptor of the table.
    pub fn write_descriptor(&self, index: u16, descriptor: Descriptor) {
        let [first, second] = descriptor.words();
        self.desc.at(2 * usize::from(index)).store(first, Ordering::Relaxed);
        self.desc.at(2 * usize::from(index) + 1).store(second, Ordering::Relaxed);
    }

    /// Raw: writes entry `slot` of the avail ring.
    pub fn write_avail_entry(&self, slot: u16, head: u16) {
        self.avail.at(2 + usize::from(slot & (self.size - 1))).store(head, Ordering::Relaxed);
    }

    /// Raw: writes the avail index.
    pub fn write_avail_index(&self, index: u16) {
        self.avail.at(1).store(index, Ordering::Release);
    }

    /// Raw: writes the avail ring's flags.
    pub fn write_avail_flags(&self, flags: u16) {
        self.avail.at(0).store(flags, Ordering::Relaxed);
    }

    /// Raw: reads used entry `slot` as it stands.
    pub fn used_entry(&self, slot: u16) -> (u32, u32) {
        let at = 2 * usize::from(slot & (self.size - 1));
        let load = |index| self.used_entries.at(index).load(Ordering::Relaxed);
        (load(at), load(at + 1))
    }
}

/// Whether moving an index from `old` to `new` passes `event` (virtio 1.2, section 2.7.7.2).
#[inline]
fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests;
