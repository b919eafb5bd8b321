//! A driver for tests: guest memory with one ring of either format, laid out and filled by hand.
//!
//! Chains are written into a table of descriptors, as in a split ring, and are named by their head.
//! [`Driver::offer`] makes a chain available: in a packed ring it is written to the next slots, its
//! head as the buffer id. So a test reads the same for both formats.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::mem::{RegionMap, RegionSpec};

use super::{Ring, RingAddress, feature};

/// Guest address of the memory; the frontend maps it at `USER`.
pub const BASE: u64 = 0x10_0000;
const USER: u64 = 0x7000_0000_0000;
const SIZE: u64 = 0x40_0000;
const AVAIL: u64 = 0x8000;
const USED: u64 = 0xa000;
/// Guest address where buffers begin.
pub const BUFFERS: u64 = BASE + 0x10_000;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// In a packed ring's descriptor: available, or used, in this lap.
const DESC_AVAIL: u16 = 1 << 7;
const DESC_USED: u16 = 1 << 15;

/// What only a packed ring's driver has.
#[derive(Default)]
struct Packed {
    /// By index: address, length, flags, next of the descriptors that tests write.
    table: Vec<(u64, u32, u16, u16)>,
    /// First slots, and wrap counters, of the chains that were offered.
    offers: Vec<(u16, bool)>,
    /// What came back of these, in order: buffer id and length.
    used: Vec<(u32, u32)>,
    next: u16,
    wrap: bool,
}

/// The guest's side of one ring.
pub struct Driver {
    file: File,
    pub size: u16,
    avail_idx: u16,
    pub mem: Arc<RegionMap>,
    packed: Option<RefCell<Packed>>,
}

impl Driver {
    /// A split ring.
    pub fn split(size: u16) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        let half = SIZE / 2;
        // Two regions, so that a buffer can cross from one to the other.
        let spec = |offset| RegionSpec {
            guest_addr: BASE + offset,
            size: half,
            user_addr: USER + offset,
            mmap_offset: offset,
            file: file.try_clone().unwrap(),
        };
        let mem = Arc::new(RegionMap::map(vec![spec(0), spec(half)]).unwrap());
        Self { file, size, avail_idx: 0, mem, packed: None }
    }

    /// A packed ring.
    pub fn packed(size: u16) -> Self {
        let table = vec![(0, 0, 0, 0); usize::from(size)];
        let packed = Packed { table, wrap: true, ..Packed::default() };
        Self { packed: Some(RefCell::new(packed)), ..Self::split(size) }
    }

    /// These features and the ring's format.
    pub fn features(&self, features: u64) -> u64 {
        features | if self.packed.is_some() { feature::RING_PACKED } else { 0 }
    }

    /// The position behind the first `slots` slots, as GET_VRING_BASE tells it.
    pub fn position(&self, slots: u16) -> u32 {
        if self.packed.is_none() {
            return slots.into();
        }
        let wrap = (slots / self.size).is_multiple_of(2);
        let half = slots % self.size + if wrap { 1 << 15 } else { 0 };
        u32::from(half) << 16 | u32::from(half)
    }

    /// Guest address of the border between the two regions.
    pub fn border() -> u64 {
        BASE + SIZE / 2
    }

    /// A ring that runs on this memory.
    pub fn ring(&self, features: u64) -> Ring {
        self.ring_at(features, self.position(0))
    }

    /// A ring that runs on this memory and begins at `base`.
    pub fn ring_at(&self, features: u64, base: u32) -> Ring {
        let mut ring = Ring::default();
        ring.set_features(self.features(features));
        ring.set_num(u32::from(self.size)).unwrap();
        ring.set_base(base).unwrap();
        ring.set_address(self.address()).unwrap();
        ring.set_memory(Some(Arc::clone(&self.mem)));
        ring.set_started();
        ring.set_enabled(true);
        assert!(ring.start_if_ready().unwrap());
        ring
    }

    /// Bytes of memory.
    pub fn len(&self) -> u64 {
        SIZE
    }

    /// Guest addresses of descriptor table, available and used ring.
    pub fn guest_addresses(&self) -> [u64; 3] {
        [BASE, BASE + AVAIL, BASE + USED]
    }

    pub fn address(&self) -> RingAddress {
        RingAddress { desc: USER, avail: USER + AVAIL, used: USER + USED, log_guest_addr: None }
    }

    pub fn write(&self, guest_addr: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, guest_addr - BASE).unwrap();
    }

    pub fn read(&self, guest_addr: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.file.read_exact_at(&mut out, guest_addr - BASE).unwrap();
        out
    }

    fn read_u16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(BASE + offset, 2).try_into().unwrap())
    }

    /// A descriptor as it stands in memory. In a packed ring `next` is the buffer id.
    pub fn desc_bytes(&self, addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
        let mut out = [0; 16];
        let words = if self.packed.is_some() { [next, flags] } else { [flags, next] };
        out[..8].copy_from_slice(&addr.to_le_bytes());
        out[8..12].copy_from_slice(&len.to_le_bytes());
        out[12..14].copy_from_slice(&words[0].to_le_bytes());
        out[14..].copy_from_slice(&words[1].to_le_bytes());
        out
    }

    pub fn desc(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        match &self.packed {
            Some(packed) => {
                packed.borrow_mut().table[usize::from(index)] = (addr, len, flags, next);
            }
            None => {
                let bytes = self.desc_bytes(addr, len, flags, next);
                self.write(BASE + 16 * u64::from(index), &bytes);
            }
        }
    }

    /// Makes a chain of consecutive descriptors from `first`, over (address, length) buffers.
    pub fn chain(&self, first: u16, buffers: &[(u64, u32)], flags: u16) {
        for (i, (addr, len)) in buffers.iter().enumerate() {
            let last = i + 1 == buffers.len();
            let index = first + i as u16;
            let more = if last { 0 } else { NEXT };
            self.desc(index, *addr, *len, flags | more, index + 1);
        }
    }

    /// Makes a chain available.
    pub fn offer(&mut self, head: u16) {
        if self.packed.is_some() {
            return self.offer_packed(head);
        }
        let slot = u64::from(self.avail_idx % self.size);
        self.write(BASE + AVAIL + 4 + 2 * slot, &head.to_le_bytes());
        self.set_avail_idx(self.avail_idx.wrapping_add(1));
    }

    fn offer_packed(&mut self, head: u16) {
        self.collect();
        let mut packed = self.packed.as_ref().unwrap().borrow_mut();
        let (first, wrap) = (packed.next, packed.wrap);
        packed.offers.push((first, wrap));
        let (mut index, mut slots) = (head, Vec::new());
        loop {
            let (addr, len, flags, next) = packed.table[usize::from(index)];
            let bits = if packed.wrap { DESC_AVAIL } else { DESC_USED };
            slots.push((packed.next, self.desc_bytes(addr, len, flags | bits, head)));
            packed.next += 1;
            if packed.next == self.size {
                (packed.next, packed.wrap) = (0, !packed.wrap);
            }
            if flags & NEXT == 0 || slots.len() == usize::from(self.size) {
                break;
            }
            index = next;
        }
        for (slot, bytes) in slots.into_iter().rev() {
            self.write(BASE + 16 * u64::from(slot), &bytes);
        }
    }

    /// Remembers what the device has used since the last time.
    fn collect(&self) {
        let mut packed = self.packed.as_ref().unwrap().borrow_mut();
        while let Some((slot, wrap)) = packed.offers.get(packed.used.len()).copied() {
            let bytes = self.read(BASE + 16 * u64::from(slot) + 8, 8);
            let half = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
            let used = if wrap { DESC_AVAIL | DESC_USED } else { 0 };
            if half(6) & (DESC_AVAIL | DESC_USED) != used {
                break;
            }
            let len = u32::from_le_bytes(bytes[..4].try_into().unwrap());
            packed.used.push((half(4).into(), len));
        }
    }

    pub fn set_avail_idx(&mut self, idx: u16) {
        self.avail_idx = idx;
        self.write(BASE + AVAIL + 2, &idx.to_le_bytes());
    }

    pub fn set_avail_flags(&self, flags: u16) {
        // In a packed ring, 1 is DISABLE.
        let at = if self.packed.is_some() { 2 } else { 0 };
        self.write(BASE + AVAIL + at, &flags.to_le_bytes());
    }

    /// Asks for a call for the buffer that comes back as number `event`; in a packed ring, for the
    /// one in that slot.
    pub fn set_used_event(&self, event: u16) {
        if self.packed.is_some() {
            let position = self.position(event) as u16;
            self.write(BASE + AVAIL, &position.to_le_bytes());
            return self.write(BASE + AVAIL + 2, &2u16.to_le_bytes());
        }
        self.write(BASE + AVAIL + 4 + 2 * u64::from(self.size), &event.to_le_bytes());
    }

    /// The index of the buffer for which the device wants a kick, or its slot.
    pub fn avail_event(&self) -> u16 {
        if self.packed.is_some() {
            assert_eq!(self.read_u16(USED + 2), 2, "DESC");
            return self.read_u16(USED) & 0x7fff;
        }
        self.read_u16(USED + 4 + 8 * u64::from(self.size))
    }

    /// 1 if the device wants no kicks.
    pub fn used_flags(&self) -> u16 {
        if self.packed.is_some() {
            return (self.read_u16(USED + 2) == 1).into();
        }
        self.read_u16(USED)
    }

    /// How many buffers came back, modulo 65,536.
    pub fn used_idx(&self) -> u16 {
        if let Some(packed) = &self.packed {
            self.collect();
            return packed.borrow().used.len() as u16;
        }
        self.read_u16(USED + 2)
    }

    /// What came back as number `at`: (head, length).
    pub fn used(&self, at: u16) -> (u32, u32) {
        if let Some(packed) = &self.packed {
            self.collect();
            return packed.borrow().used[usize::from(at)];
        }
        let entry = self.read(BASE + USED + 4 + 8 * u64::from(at % self.size), 8);
        let word = |i: usize| u32::from_le_bytes(entry[i..i + 4].try_into().unwrap());
        (word(0), word(4))
    }
}
