//! The driver's side of a packed virtqueue (virtio 1.2, section 2.8).
//!
//! A chain is *built* (it gets a buffer id, and the right to so many slots), *posted* (it waits in
//! the driver's memory), *published* (it is written to the ring, the flags of the first descriptor
//! of all last, and the device is kicked if it asked for that), comes back *used*, and is then
//! posted again as it is, or *freed*. What the driver must remember of a chain it keeps in its own
//! memory.
//!
//! Owns the ring's memory. Knows nothing of frames.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use crate::layout::Piece;
use crate::memory::{Cells, Memory};
use crate::ring::{Notifications, RingAddresses, Signals, Used};
use crate::split::{INDIRECT, INDIRECT_MAX, NEXT, WRITE};

/// Descriptor flag: equals the driver's wrap counter in an available descriptor.
pub const AVAIL: u16 = 1 << 7;
/// Descriptor flag: equals the device's wrap counter in a used descriptor.
pub const USED: u16 = 1 << 15;

/// Event suppression flags (section 2.8.14): notifications for all, for none, for one descriptor.
const ENABLE: u16 = 0;
const DISABLE: u16 = 1;
const DESC: u16 = 2;

/// A slot, and the wrap counter there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    slot: u16,
    wrap: bool,
}

impl Position {
    fn plus(self, slots: u16, size: u16) -> Position {
        let slot = u32::from(self.slot) + u32::from(slots);
        match slot.checked_sub(size.into()) {
            Some(slot) => Position { slot: slot as u16, wrap: !self.wrap },
            None => Position { slot: slot as u16, ..self },
        }
    }

    fn bits(self) -> u16 {
        self.slot | u16::from(self.wrap) << 15
    }
}

/// A descriptor to be written: address, length, flags.
type Descriptor = (u64, u32, u16);

/// The driver's side of one packed virtqueue.
#[derive(Debug)]
pub struct PackedRing {
    size: u16,
    event_idx: bool,
    in_order: bool,
    addresses: RingAddresses,
    desc: Cells<AtomicU64>,
    driver_event: Cells<AtomicU32>,
    device_event: Cells<AtomicU32>,
    /// First byte of `size` indirect tables of [`INDIRECT_MAX`] descriptors each.
    indirect: u64,
    memory: Arc<Memory>,

    free_ids: Vec<u16>,
    free_slots: u16,
    /// By buffer id: the chain's descriptors; empty where there is no chain.
    chains: Vec<Vec<Descriptor>>,
    /// Posted and not published, oldest first.
    pending: Vec<u16>,
    /// By buffer id: published and not used yet.
    in_flight: Vec<bool>,
    /// The same, oldest first.
    order: VecDeque<u16>,
    next_avail: Position,
    next_used: Position,
    /// Chains published, and used, since the ring exists.
    published: u16,
    popped: u16,
    pub(crate) notifications: Notifications,
    pub(crate) signals: Signals,
}

impl PackedRing {
    /// A ring of `size` slots, up to 32768, without notifications armed.
    pub fn new(memory: &Arc<Memory>, size: u16, event_idx: bool) -> io::Result<PackedRing> {
        assert!((1..=32768).contains(&size), "a packed ring of {size}");
        let slots = u64::from(size);
        let addresses = RingAddresses {
            desc: memory.alloc(16 * slots, 16),
            avail: memory.alloc(4, 4),
            used: memory.alloc(4, 4),
        };
        let count = usize::from(size);
        let first = Position { slot: 0, wrap: true };
        let ring = PackedRing {
            size,
            event_idx,
            in_order: false,
            addresses,
            desc: memory.cells(addresses.desc, 2 * count),
            driver_event: memory.cells(addresses.avail, 1),
            device_event: memory.cells(addresses.used, 1),
            indirect: memory.alloc(slots * INDIRECT_MAX as u64 * 16, 16),
            memory: Arc::clone(memory),
            free_ids: (0..size).rev().collect(),
            free_slots: size,
            chains: vec![Vec::new(); count],
            pending: Vec::with_capacity(count),
            in_flight: vec![false; count],
            order: VecDeque::with_capacity(count),
            next_avail: first,
            next_used: first,
            published: 0,
            popped: 0,
            notifications: Notifications::default(),
            signals: Signals::new()?,
        };
        ring.disarm();
        Ok(ring)
    }

    /// Number of slots.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where the ring lives: its descriptors, the driver's and the device's event suppression.
    pub fn addresses(&self) -> RingAddresses {
        self.addresses
    }

    /// Guest memory.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Chains posted and not used yet.
    pub fn in_flight(&self) -> u16 {
        (self.order.len() + self.pending.len()) as u16
    }

    /// Sets what was negotiated; takes effect with the next notification decision.
    pub fn set_features(&mut self, event_idx: bool, in_order: bool) {
        (self.event_idx, self.in_order) = (event_idx, in_order);
        self.disarm();
    }

    /// Builds a chain: `readable` pieces for the device to read, then `writable` ones for it to
    /// write; returns its buffer id. `None` when too few slots are free.
    pub fn build(&mut self, readable: &[Piece], writable: &[Piece], indirect: bool) -> Option<u16> {
        let pieces = readable.len() + writable.len();
        assert!(pieces > 0, "an empty chain");
        let slots = if indirect { 1 } else { pieces as u16 };
        if self.free_slots < slots {
            return None;
        }
        let id = self.free_ids.pop()?;
        self.free_slots -= slots;
        let read = readable.iter().map(|piece| (piece.addr, piece.len, 0));
        let write = writable.iter().map(|piece| (piece.addr, piece.len, WRITE));
        let mut chain: Vec<Descriptor> = read.chain(write).collect();
        if indirect {
            chain = vec![self.table(id, &chain)];
        }
        let last = chain.len() - 1;
        chain[..last].iter_mut().for_each(|descriptor| descriptor.2 |= NEXT);
        self.chains[usize::from(id)] = chain;
        Some(id)
    }

    /// Writes an indirect table (section 2.8.8) and returns the descriptor that points to it.
    fn table(&self, id: u16, pieces: &[Descriptor]) -> Descriptor {
        assert!(pieces.len() <= INDIRECT_MAX, "at most {INDIRECT_MAX} pieces in a table");
        let table = self.indirect + u64::from(id) * INDIRECT_MAX as u64 * 16;
        for (at, (addr, len, flags)) in (0..).zip(pieces) {
            self.memory.write(table + 16 * at, &addr.to_le_bytes());
            let word = u64::from(*len) | u64::from(*flags) << 48;
            self.memory.write(table + 16 * at + 8, &word.to_le_bytes());
        }
        (table, 16 * pieces.len() as u32, INDIRECT)
    }

    /// Gives a used chain's buffer id and slots back.
    pub fn free(&mut self, id: u16) {
        assert!(!self.in_flight[usize::from(id)], "chain {id} still belongs to the device");
        let chain = std::mem::take(&mut self.chains[usize::from(id)]);
        if !chain.is_empty() {
            self.free_slots += chain.len() as u16;
            self.free_ids.push(id);
        }
    }

    /// Has a built chain wait for [`PackedRing::publish`].
    #[inline]
    pub fn post(&mut self, id: u16) {
        let flag = &mut self.in_flight[usize::from(id)];
        assert!(!*flag, "chain {id} is posted already");
        *flag = true;
        self.pending.push(id);
    }

    /// Takes back what was posted since the last publication, oldest first.
    pub fn unpost(&mut self) -> Vec<u16> {
        let ids = std::mem::take(&mut self.pending);
        ids.iter().for_each(|id| self.in_flight[usize::from(*id)] = false);
        ids
    }

    /// Shows all posted chains to the device and kicks it if it wants that. Tells whether.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.pending.is_empty() {
            return false;
        }
        let first = self.next_avail;
        let (mut slots, mut first_word) = (0, 0);
        for &id in &self.pending {
            for &(addr, len, flags) in &self.chains[usize::from(id)] {
                let at = self.next_avail;
                let bits = if at.wrap { AVAIL } else { USED };
                let word = u64::from(len) | u64::from(id) << 32 | u64::from(flags | bits) << 48;
                self.desc.at(2 * usize::from(at.slot)).store(addr, Ordering::Relaxed);
                if slots == 0 {
                    first_word = word;
                } else {
                    self.desc.at(2 * usize::from(at.slot) + 1).store(word, Ordering::Relaxed);
                }
                slots += 1;
                self.next_avail = at.plus(1, self.size);
            }
            self.order.push_back(id);
            self.published = self.published.wrapping_add(1);
        }
        self.pending.clear();
        self.desc.at(2 * usize::from(first.slot) + 1).store(first_word, Ordering::Release);
        // Between our descriptors and the device's wish: without it both sides may miss the
        // other's store, and the chain waits for ever.
        fence(Ordering::SeqCst);
        let wanted = self.kick_wanted(slots);
        if wanted {
            self.notifications.kicks += 1;
            self.signals.kick_now();
        } else {
            self.notifications.kicks_skipped += 1;
        }
        wanted
    }

    /// Whether the device wants a kick for the `slots` slots just published (section 2.8.21.3).
    fn kick_wanted(&self, slots: u16) -> bool {
        let event = self.device_event.at(0).load(Ordering::Relaxed);
        match (event >> 16) as u16 {
            ENABLE => true,
            DISABLE => false,
            DESC => {
                assert!(self.event_idx, "the device uses EVENT_IDX, which wasn't negotiated");
                let (slot, wrap) = (event as u16 & 0x7fff, event as u16 & 0x8000 != 0);
                assert!(slot < self.size, "the device wants a kick for slot {slot}");
                let lap = if wrap == self.next_avail.wrap { 0 } else { i32::from(self.size) };
                let behind = i32::from(self.next_avail.slot) + lap - i32::from(slot);
                (1..=i32::from(slots)).contains(&behind)
            }
            flags => panic!("the device's event flags are {flags:#x}"),
        }
    }

    fn word(&self, at: Position) -> u64 {
        self.desc.at(2 * usize::from(at.slot) + 1).load(Ordering::Acquire)
    }

    fn is_used(word: u64, wrap: bool) -> bool {
        let flags = (word >> 48) as u16;
        (flags & AVAIL != 0) == wrap && (flags & USED != 0) == wrap
    }

    /// Takes the next used chain. Panics when the device returns one that it does not have.
    #[inline]
    pub fn pop(&mut self) -> Option<Used> {
        let word = self.word(self.next_used);
        if !Self::is_used(word, self.next_used.wrap) {
            return None;
        }
        let (len, id) = (word as u32, (word >> 32) as u16);
        let flag = self.in_flight.get_mut(usize::from(id));
        let flag = flag.unwrap_or_else(|| panic!("the device used chain {id}: no such id"));
        assert!(std::mem::take(flag), "the device used chain {id}, which it did not have");
        let place = self.order.iter().position(|posted| *posted == id);
        let place = place.unwrap_or_else(|| panic!("the device used chain {id} too early"));
        assert!(!self.in_order || place == 0, "chain {id} came back out of order");
        self.order.remove(place);
        let written = (word >> 48) as u16 & WRITE != 0;
        assert_eq!(written, len > 0, "chain {id}: the flag WRITE, and {len} bytes");
        let slots = self.chains[usize::from(id)].len() as u16;
        self.next_used = self.next_used.plus(slots, self.size);
        self.popped = self.popped.wrapping_add(1);
        Some(Used { head: id, len })
    }

    /// Takes up to `max` used chains into `into`. Panics as [`PackedRing::pop`] does.
    pub fn pop_into(&mut self, max: usize, into: &mut Vec<Used>) {
        into.extend((0..max).map_while(|_| self.pop()));
    }

    /// Used chains that wait to be popped.
    pub fn ready(&self) -> u16 {
        let (mut at, mut count) = (self.next_used, 0);
        while usize::from(count) < self.order.len() {
            let word = self.word(at);
            if !Self::is_used(word, at.wrap) {
                break;
            }
            let chain = self.chains.get((word >> 32) as u16 as usize);
            at = at.plus(chain.map_or(1, |chain| chain.len().max(1)) as u16, self.size);
            count += 1;
        }
        count
    }

    /// Asks for a call at the next used chain.
    pub fn arm(&self) {
        let event = if self.event_idx {
            u32::from(DESC) << 16 | u32::from(self.next_used.bits())
        } else {
            u32::from(ENABLE) << 16
        };
        self.driver_event.at(0).store(event, Ordering::Relaxed);
        // Pairs with the device's fence between its used descriptors and its look at our wish.
        fence(Ordering::SeqCst);
    }

    /// Asks for no calls.
    pub fn disarm(&self) {
        self.driver_event.at(0).store(u32::from(DISABLE) << 16, Ordering::Relaxed);
    }

    /// Chains that the device has been shown, modulo 65,536.
    pub fn avail_index(&self) -> u16 {
        self.published
    }

    /// Chains that the device has used, modulo 65,536.
    pub fn used_index(&self) -> u16 {
        self.popped.wrapping_add(self.ready())
    }

    /// The vring base of a ring that was never used.
    pub const START: u32 = 0x8000_8000;

    /// Where the device goes on: the vring base of a frontend that knows it.
    pub fn base(&self) -> u32 {
        let mut at = self.next_used;
        for _ in 0..self.ready() {
            let id = (self.word(at) >> 32) as u16;
            at = at.plus(self.chains[usize::from(id)].len() as u16, self.size);
        }
        u32::from(at.bits()) << 16 | u32::from(at.bits())
    }

    /// Whether the device asks for no kicks at all.
    pub fn kicks_suppressed(&self) -> bool {
        (self.device_event.at(0).load(Ordering::Relaxed) >> 16) as u16 == DISABLE
    }

    /// Raw: writes a slot: address, length, buffer id, flags.
    pub fn write_slot(&self, slot: u16, addr: u64, len: u32, id: u16, flags: u16) {
        self.desc.at(2 * usize::from(slot)).store(addr, Ordering::Relaxed);
        let word = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
        self.desc.at(2 * usize::from(slot) + 1).store(word, Ordering::Release);
    }

    /// Raw: length, buffer id and flags in a slot.
    pub fn slot(&self, slot: u16) -> (u32, u16, u16) {
        let word = self.desc.at(2 * usize::from(slot) + 1).load(Ordering::Acquire);
        (word as u32, (word >> 32) as u16, (word >> 48) as u16)
    }
}

#[cfg(test)]
mod tests;
