//! The packed ring: one ring of descriptors that both sides write (virtio 1.2, section 2.8), and
//! two event suppression structures.
//!
//! Owns the pointers and the position; knows nothing about frames. Memory safety as in `split`.
//!
//! # Theory of operation
//!
//! A slot is available while its AVAIL bit equals the driver's wrap counter and its USED bit
//! doesn't; the device hands a chain back by one *used* descriptor in the chain's first slot, with
//! both bits equal to its own wrap counter, and skips the chain's other slots. Buffers are
//! completed in order, so the device's counter and the driver's, as seen here, are the same: one
//! [`Position`] serves both.
//!
//! How many slots a chain takes must be known before the next one can be found, so
//! [`Format::take`] reads the flags of all of a chain's descriptors, and its buffer id, which stands
//! in the last one. [`Format::walk`] then reads as many descriptors as were counted and
//! doesn't ask NEXT again: a guest that changes it meanwhile changes nothing.
//!
//! The used descriptors of a burst are kept in a shadow and stored when they are published, the
//! first one last: the driver reads in order, so it sees the whole burst or nothing, and its core
//! isn't handed half-written lines.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::mem::{DirtyLog, RegionMap};

use super::format::{
    BadChain, BadRing, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE, Desc, Format, Head,
    Table,
};
use super::vring::{RingAddress, RingError};
use super::{MAX_CHAIN, feature};

mod resume;

use resume::SIGNATURE;

/// Equals the driver's wrap counter in an available descriptor.
const DESC_F_AVAIL: u16 = 1 << 7;
/// Equals the device's wrap counter in a used descriptor.
const DESC_F_USED: u16 = 1 << 15;
/// In an event suppression structure's flags: no notifications.
const EVENT_F_DISABLE: u16 = 1;
/// One notification, for the descriptor that the structure names.
const EVENT_F_DESC: u16 = 2;
/// The bits of these flags that have a meaning.
const EVENT_F_MASK: u16 = 3;
/// The wrap counter in a position of 16 bits, as event suppression and vring bases have it.
const WRAP_BIT: u16 = 1 << 15;
/// Used descriptors that are kept before they are stored.
const SHADOW: usize = 64;
/// Slots after which no more chains are looked for at once: bounds the work that long chains make.
const TAKE_SLOTS: u16 = 4096;

/// A slot, and the wrap counter there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    index: u16,
    wrap: bool,
}

impl Position {
    /// Where a ring begins (section 2.8.1).
    const START: Self = Self { index: 0, wrap: true };

    /// The position `slots` further in a ring of `size`; both are at most the largest size, 32768.
    #[inline]
    fn plus(self, slots: u16, size: u16) -> Self {
        let index = self.index.wrapping_add(slots);
        if index < size {
            Self { index, ..self }
        } else {
            Self { index: index.wrapping_sub(size), wrap: !self.wrap }
        }
    }

    fn from_bits(bits: u16) -> Self {
        Self { index: bits & !WRAP_BIT, wrap: bits & WRAP_BIT != 0 }
    }

    fn to_bits(self) -> u16 {
        self.index | if self.wrap { WRAP_BIT } else { 0 }
    }
}

/// The AVAIL and USED bits of a descriptor that is available where the driver's wrap counter is
/// `wrap`.
#[inline]
fn available_flags(wrap: bool) -> u16 {
    if wrap { DESC_F_AVAIL } else { DESC_F_USED }
}

/// A used descriptor that isn't stored yet: its last eight bytes; the address is left as it is.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    slot: u16,
    word: u64,
}

/// A running packed ring.
#[derive(Debug)]
pub struct PackedRing {
    size: u16,
    desc: NonNull<u8>,
    driver_event: NonNull<u8>,
    device_event: NonNull<u8>,
    /// Guest addresses of the descriptors and the device's event structure in the dirty log.
    desc_log: u64,
    device_log: u64,
    /// The next chain to take and, as completion is in order, the next slot to complete.
    next: Position,
    /// Up to where completed buffers were shown to the driver, and how many slots are behind.
    published: Position,
    unpublished: u16,
    shadow: [Used; SHADOW],
    shadowed: usize,
    /// Slots that were published since it was last decided whether the driver wants a call.
    undecided: u16,
    event_idx: bool,
    indirect: bool,
    kicks_wanted: Option<bool>,
}

// SAFETY: the pointers lie in shared memory that is only accessed through raw pointers, under
// the lock of the ring that owns this value.
unsafe impl Send for PackedRing {}

impl PackedRing {
    /// Locates a ring of `size` slots that begins at `base`, the position that the frontend gives.
    /// [`Self::resume`] finds a better one where the frontend can't know it.
    ///
    /// The lower half of `base` counts. The upper one is where the device's completions are, which
    /// for us is the same; DPDK's virtio-user leaves it out.
    pub fn locate(
        mem: &RegionMap,
        size: u16,
        address: &RingAddress,
        features: u64,
        base: Option<u32>,
    ) -> Result<Self, RingError> {
        let find = |what, addr, len, align| {
            mem.translate_user(addr, len, align).ok_or(RingError::Address { what, addr })
        };
        let (desc, desc_log) =
            find("descriptor ring", address.desc, u64::from(size) * DESC_SIZE as u64, 16)?;
        let (driver_event, _) = find("driver event suppression", address.avail, 4, 4)?;
        let (device_event, device_log) = find("device event suppression", address.used, 4, 4)?;
        let next = base.map_or(Position::START, |base| Position::from_bits(base as u16));
        if next.index >= size {
            return Err(RingError::Base(base.unwrap_or_default()));
        }
        Ok(Self {
            size,
            desc,
            driver_event,
            device_event,
            desc_log,
            device_log,
            next,
            published: next,
            unpublished: 0,
            shadow: [Used::default(); SHADOW],
            shadowed: 0,
            undecided: 0,
            event_idx: features & feature::EVENT_IDX != 0,
            indirect: features & feature::INDIRECT_DESC != 0,
            kicks_wanted: None,
        })
    }

    /// The base of a ring that was never used.
    pub const START: u32 = (WRAP_BIT as u32) << 16 | WRAP_BIT as u32;

    /// The second half of a slot: length, buffer id, flags. What the driver wrote before it is seen
    /// by what is read after it (section 2.8.21.1). `index` is below `size`.
    #[inline]
    fn word(&self, index: u16) -> &AtomicU64 {
        debug_assert!(index < self.size);
        let offset = DESC_SIZE * usize::from(index) + 8;
        // SAFETY: all `size` slots were located, and are 16-byte aligned; every caller's index is
        // that of a `Position`. Guest memory that is shared and accessed as an atomic only.
        unsafe { AtomicU64::from_ptr(self.desc.as_ptr().add(offset).cast()) }
    }

    #[inline]
    fn load(&self, index: u16) -> u64 {
        u64::from_le(self.word(index).load(Ordering::Acquire))
    }

    /// The descriptor in a slot whose second half was read.
    #[inline]
    fn desc(&self, at: Position, word: u64) -> Desc {
        let next = at.plus(1, self.size).index;
        let rest = u64::from(next) << 48 | (word >> 48) << 32 | u64::from(word as u32);
        Desc::new(self.addr(at.index), rest)
    }

    /// The address in a slot whose second half was read.
    #[inline]
    fn addr(&self, index: u16) -> u64 {
        let offset = DESC_SIZE * usize::from(index);
        // SAFETY: as in `word`.
        u64::from_le(unsafe { self.desc.as_ptr().add(offset).cast::<u64>().read_volatile() })
    }

    #[inline]
    fn is_available(word: u64, wrap: bool) -> bool {
        (word >> 48) as u16 & (DESC_F_AVAIL | DESC_F_USED) == available_flags(wrap)
    }

    /// [`Format::take`] of chains of one slot each, as far as they go. `heads` is as long as there
    /// may be chains.
    #[inline]
    fn take_single(&self, at: Position, heads: &mut [Head], first: &mut [Desc]) -> usize {
        // Up to the ring's end, and from its beginning: in each part the wrap counter is the same.
        let part = usize::from(self.size - at.index).min(heads.len()).min(first.len());
        let (heads, more_heads) = heads.split_at_mut(part);
        let (first, more_first) = first.split_at_mut(part);
        let count = self.take_straight(at, heads, first);
        if count < part || more_heads.is_empty() {
            return count;
        }
        let begin = Position { index: 0, wrap: !at.wrap };
        count + self.take_straight(begin, more_heads, more_first)
    }

    /// [`Self::take_single`] of slots that don't go around the ring's end.
    #[inline(always)]
    fn take_straight(&self, at: Position, heads: &mut [Head], first: &mut [Desc]) -> usize {
        let wanted = available_flags(at.wrap);
        let mut count = 0;
        for (head, first) in heads.iter_mut().zip(first) {
            let index = at.index.wrapping_add(count);
            let word = self.load(index);
            let flags = (word >> 48) as u16;
            if flags & (DESC_F_AVAIL | DESC_F_USED | DESC_F_NEXT) != wanted {
                break;
            }
            *head = Head::new((word >> 32) as u16, 1);
            // None comes next.
            *first = Desc::new(self.addr(index), (word >> 48) << 32 | u64::from(word as u32));
            count += 1;
        }
        usize::from(count)
    }

    /// Measures the chain whose first slot is `at` and holds `word`, in at most `room` slots.
    #[inline]
    fn measure(&self, at: Position, mut word: u64, room: u16) -> Result<Head, BadRing> {
        let mut slots = 1;
        while (word >> 48) as u16 & DESC_F_NEXT != 0 {
            if slots >= room {
                // It would bite its own tail; where the next one begins can't be known.
                return Err(BadRing);
            }
            word = self.load(at.plus(slots, self.size).index);
            slots += 1;
        }
        Ok(Head::new((word >> 32) as u16, slots))
    }

    /// Stores used descriptors of the shadow from `first` on, the last one first.
    #[inline]
    fn store(&self, first: usize) {
        let used = self.shadow.get(first..self.shadowed).unwrap_or_default();
        for used in used.iter().rev() {
            self.word(used.slot).store(used.word.to_le(), Ordering::Relaxed);
        }
    }

    /// Makes room in the shadow, and puts `used` there. The first one stays: the driver sees none of
    /// them before it.
    #[cold]
    fn store_all_but_first(&mut self, used: Used) {
        self.store(1);
        self.shadowed = 1;
        if let Some(place) = self.shadow.get_mut(1) {
            *place = used;
        }
    }

    /// Marks the slots from the published position to the next one.
    #[cold]
    fn mark_used(&self, log: &DirtyLog) {
        let first = self.published.index;
        let before_end = self.unpublished.min(self.size - first);
        let slot = |index| self.desc_log.saturating_add(DESC_SIZE as u64 * u64::from(index));
        log.mark(slot(first), DESC_SIZE as u64 * u64::from(before_end));
        log.mark(slot(0), DESC_SIZE as u64 * u64::from(self.unpublished - before_end));
    }

    /// Whether the driver's event, a descriptor in `bits`, is among the `slots` before `published`.
    fn passed(&self, bits: u16, slots: u16) -> bool {
        let event = Position::from_bits(bits);
        let lap = if event.wrap == self.published.wrap { 0 } else { i32::from(self.size) };
        let behind = i32::from(self.published.index) + lap - i32::from(event.index);
        (1..=i32::from(slots)).contains(&behind)
    }

    fn write_device_event(&mut self, flags: u16, position: u16, log: Option<&DirtyLog>) {
        let word = u32::from(flags) << 16 | u32::from(position);
        // SAFETY: the structure was located, and is 4-byte aligned.
        unsafe { self.device_event.cast::<u32>().write_volatile(word.to_le()) };
        if let Some(log) = log {
            log.mark(self.device_log, 4);
        }
    }
}

impl Format for PackedRing {
    #[inline]
    fn has_available(&self) -> Result<bool, BadRing> {
        Ok(Self::is_available(self.load(self.next.index), self.next.wrap))
    }

    #[inline]
    fn fill(&self, known: u16) -> u16 {
        known
    }

    #[inline]
    fn take(&self, ahead: u16, heads: &mut [Head], first: &mut [Desc]) -> Result<usize, BadRing> {
        let mut at = self.next.plus(ahead, self.size);
        let room = usize::from(self.size.saturating_sub(ahead)).min(heads.len());
        let single = heads.get_mut(..room).unwrap_or_default();
        let mut count = self.take_single(at, single, first);
        let mut slots = count as u16;
        at = at.plus(slots, self.size);
        // Mostly nothing is left: this ends at once.
        for (head, first) in heads.iter_mut().zip(first).skip(count) {
            // All slots that are taken and not completed: more than a lap can't be.
            let room = self.size.saturating_sub(ahead).saturating_sub(slots);
            if room == 0 || slots >= TAKE_SLOTS {
                break;
            }
            let word = self.load(at.index);
            if !Self::is_available(word, at.wrap) {
                break;
            }
            *first = self.desc(at, word);
            match self.measure(at, word, room) {
                Ok(measured) => *head = measured,
                // Those before it are good; the next call begins with this one.
                Err(BadRing) if count > 0 => break,
                Err(BadRing) => return Err(BadRing),
            }
            slots += head.slots();
            at = at.plus(head.slots(), self.size);
            count += 1;
        }
        Ok(count)
    }

    #[inline]
    fn walk(
        &self,
        mem: &RegionMap,
        head: Head,
        first: Desc,
        write: u16,
        mut buffer: impl FnMut(Desc) -> bool,
    ) -> Result<(), BadChain> {
        if usize::from(head.slots()) > MAX_CHAIN {
            return Err(BadChain);
        }
        let mut desc = first;
        for left in (0..head.slots()).rev() {
            if desc.flags() & DESC_F_INDIRECT != 0 {
                // Section 2.8.8: never together with NEXT. It ends the chain.
                if !self.indirect || left > 0 {
                    return Err(BadChain);
                }
                return walk_indirect(mem, desc, write, buffer);
            }
            if desc.flags() & DESC_F_WRITE != write || !buffer(desc) {
                return Err(BadChain);
            }
            if left > 0 {
                let at = Position { index: desc.next(), wrap: false };
                desc = self.desc(at, self.load(at.index));
            }
        }
        Ok(())
    }

    #[inline]
    fn complete(&mut self, head: Head, written: u32) {
        let wrap = if self.next.wrap { DESC_F_AVAIL | DESC_F_USED } else { 0 };
        let flags = wrap | if written > 0 { DESC_F_WRITE } else { 0 };
        let word = u64::from(flags) << 48 | u64::from(head.id()) << 32 | u64::from(written);
        if head.slots() > 1 {
            self.mark_skipped(head);
        }
        let used = Used { slot: self.next.index, word };
        match self.shadow.get_mut(self.shadowed) {
            Some(place) => *place = used,
            None => self.store_all_but_first(used),
        }
        self.shadowed = self.shadowed.wrapping_add(1);
        self.next = self.next.plus(head.slots(), self.size);
        self.unpublished = self.unpublished.wrapping_add(head.slots());
    }

    #[inline]
    fn publish(&mut self, log: Option<&DirtyLog>) {
        let Some(first) = self.shadow.first().filter(|_| self.shadowed > 0).copied() else {
            return;
        };
        self.store(1);
        // The others, and the buffers behind them all, are seen before the first one.
        self.word(first.slot).store(first.word.to_le(), Ordering::Release);
        // What was written is marked after it: a mark that the frontend takes early is set again.
        if let Some(log) = log {
            self.mark_used(log);
        }
        self.undecided = self.undecided.saturating_add(self.unpublished);
        self.published = self.next;
        self.unpublished = 0;
        self.shadowed = 0;
    }

    #[inline]
    fn undecided(&self) -> u16 {
        self.undecided
    }

    #[inline]
    fn needs_call(&mut self) -> bool {
        let slots = std::mem::take(&mut self.undecided);
        if slots == 0 {
            return false;
        }
        // SAFETY: the structure was located, and is 4-byte aligned.
        let event = unsafe { self.driver_event.cast::<u32>().read_volatile() };
        let event = u32::from_le(event);
        match (event >> 16) as u16 & EVENT_F_MASK {
            EVENT_F_DISABLE => false,
            // After a lap the driver has moved its event, unless it has passed long ago.
            EVENT_F_DESC if self.event_idx => {
                slots >= self.size || self.passed(event as u16, slots)
            }
            _ => true,
        }
    }

    #[inline]
    fn kicks_wanted(&self) -> Option<bool> {
        self.kicks_wanted
    }

    fn suppress_kicks(&mut self, log: Option<&DirtyLog>) {
        self.kicks_wanted = Some(false);
        self.write_device_event(EVENT_F_DISABLE, SIGNATURE, log);
    }

    fn request_kicks(&mut self, log: Option<&DirtyLog>) {
        self.kicks_wanted = Some(true);
        if self.event_idx {
            self.write_device_event(EVENT_F_DESC, self.next.to_bits(), log);
        } else {
            self.write_device_event(0, SIGNATURE, log);
        }
        // The request is seen before the slot is read again.
        fence(Ordering::SeqCst);
    }

    fn base(&self) -> u32 {
        let bits = u32::from(self.next.to_bits());
        bits << 16 | bits
    }

    #[inline]
    fn is_at_start(&self) -> bool {
        self.next == Position::START
    }
}

/// Walks the table of an indirect descriptor (section 2.8.8): all of it, in order; of the flags
/// only WRITE has a meaning. What is to be written must say so, but what is to be read needn't deny
/// it: DPDK's driver (22.11) leaves WRITE at the virtio-net header in its transmit tables.
#[inline]
fn walk_indirect(
    mem: &RegionMap,
    desc: Desc,
    write: u16,
    mut buffer: impl FnMut(Desc) -> bool,
) -> Result<(), BadChain> {
    let table = Table::locate(mem, desc)?;
    if table.count() > MAX_CHAIN {
        return Err(BadChain);
    }
    for index in 0..table.count() {
        let (addr, rest) = table.words(index)?;
        let flags = (rest >> 48) as u16 & write;
        if flags != write || !buffer(Desc::new(addr, rest & u64::from(u32::MAX))) {
            return Err(BadChain);
        }
    }
    Ok(())
}
