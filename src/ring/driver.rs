//! A driver for tests: guest memory with one split ring, laid out and filled by hand.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::mem::{RegionMap, RegionSpec};

use super::{Ring, RingAddress};

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

/// The guest's side of one ring.
pub struct Driver {
    file: File,
    pub size: u16,
    avail_idx: u16,
    pub mem: Arc<RegionMap>,
}

impl Driver {
    pub fn new(size: u16) -> Self {
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
        Self { file, size, avail_idx: 0, mem }
    }

    /// Guest address of the border between the two regions.
    pub fn border() -> u64 {
        BASE + SIZE / 2
    }

    /// A ring that runs on this memory.
    pub fn ring(&self, features: u64) -> Ring {
        let mut ring = Ring::default();
        ring.set_features(features);
        ring.set_num(u32::from(self.size)).unwrap();
        ring.set_address(self.address()).unwrap();
        ring.set_memory(Some(Arc::clone(&self.mem)));
        ring.set_started();
        ring.set_enabled(true);
        assert!(ring.start_if_ready().unwrap());
        ring
    }

    /// The file that holds the memory, from `BASE` on.
    pub fn file(&self) -> File {
        self.file.try_clone().unwrap()
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

    pub fn desc_bytes(addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&addr.to_le_bytes());
        out[8..12].copy_from_slice(&len.to_le_bytes());
        out[12..14].copy_from_slice(&flags.to_le_bytes());
        out[14..].copy_from_slice(&next.to_le_bytes());
        out
    }

    pub fn desc(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.write(BASE + 16 * u64::from(index), &Self::desc_bytes(addr, len, flags, next));
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
        let slot = u64::from(self.avail_idx % self.size);
        self.write(BASE + AVAIL + 4 + 2 * slot, &head.to_le_bytes());
        self.set_avail_idx(self.avail_idx.wrapping_add(1));
    }

    pub fn set_avail_idx(&mut self, idx: u16) {
        self.avail_idx = idx;
        self.write(BASE + AVAIL + 2, &idx.to_le_bytes());
    }

    pub fn set_avail_flags(&self, flags: u16) {
        self.write(BASE + AVAIL, &flags.to_le_bytes());
    }

    pub fn set_used_event(&self, event: u16) {
        self.write(BASE + AVAIL + 4 + 2 * u64::from(self.size), &event.to_le_bytes());
    }

    pub fn avail_event(&self) -> u16 {
        self.read_u16(USED + 4 + 8 * u64::from(self.size))
    }

    pub fn used_flags(&self) -> u16 {
        self.read_u16(USED)
    }

    pub fn used_idx(&self) -> u16 {
        self.read_u16(USED + 2)
    }

    /// Used entry at position `at`: (head, length).
    pub fn used(&self, at: u16) -> (u32, u32) {
        let entry = self.read(BASE + USED + 4 + 8 * u64::from(at % self.size), 8);
        let word = |i: usize| u32::from_le_bytes(entry[i..i + 4].try_into().unwrap());
        (word(0), word(4))
    }
}
