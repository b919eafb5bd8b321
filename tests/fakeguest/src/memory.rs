//! Guest-physical memory: one memfd, cut into regions at chosen guest-physical addresses.
//!
//! Owns the mapping and all access to it. The other side maps the same file and writes to it at
//! any time, so nothing here makes a Rust reference to plain bytes of it: bulk bytes are copied
//! through raw pointers, ring fields are [`Cells`] of atomics.
//!
//! Regions follow one another in the file in the order given; two regions whose guest-physical
//! addresses also follow one another are *adjacent*, and a buffer may cross from one into the
//! other ([`Memory::across_boundary`]).

use std::arch::asm;
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Kept out of allocation on both sides of every region boundary, for [`Memory::across_boundary`].
const BOUNDARY_RESERVE: u64 = 128 << 10;

/// One region as the frontend announces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Guest-physical address of its first byte.
    pub guest_addr: u64,
    /// Length in bytes.
    pub size: u64,
    /// Address of its first byte in the frontend's own address space.
    pub user_addr: u64,
    /// Offset of its first byte in the memfd.
    pub file_offset: u64,
}

/// The memory of one guest.
#[derive(Debug)]
pub struct Memory {
    file: File,
    base: NonNull<u8>,
    mapped: usize,
    regions: Vec<Region>,
    /// Where the next allocation starts: region index and offset in it.
    cursor: Mutex<(usize, u64)>,
}

// SAFETY: the mapping is valid until drop, whatever the thread; all access to it goes through
// atomics or raw copies, so sharing it creates no reference that another thread could break.
unsafe impl Send for Memory {}
// SAFETY: as for Send; the only other mutable state is the cursor, which a mutex guards.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `base..base + mapped` is the mapping made in `new`, unmapped only here. Cells
        // hold an Arc of this memory, so none outlives it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.mapped) };
    }
}

impl Memory {
    /// Memory with a region of `size` bytes at `guest_addr` for each of `(guest_addr, size)`, in
    /// the order given. Sizes are multiples of the page size.
    pub fn new(regions: &[(u64, u64)]) -> io::Result<Arc<Memory>> {
        Memory::with_flags(regions, 0)
    }

    /// The same of huge pages of 2 MiB, of which sizes are multiples.
    pub fn huge(regions: &[(u64, u64)]) -> io::Result<Arc<Memory>> {
        Memory::with_flags(regions, libc::MFD_HUGETLB | libc::MFD_HUGE_2MB)
    }

    fn with_flags(regions: &[(u64, u64)], flags: libc::c_uint) -> io::Result<Arc<Memory>> {
        let total: u64 = regions.iter().map(|(_, size)| size).sum();
        let mapped = usize::try_from(total).map_err(io::Error::other)?;
        let file = memfd(total, flags)?;
        // SAFETY: a new shared mapping at an address of the kernel's choice replaces nothing.
        let addr = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        if addr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(addr.cast::<u8>()).expect("mmap returns no null mapping");
        let mut file_offset = 0;
        let regions = regions
            .iter()
            .map(|&(guest_addr, size)| {
                let user_addr = base.as_ptr() as u64 + file_offset;
                let region = Region { guest_addr, size, user_addr, file_offset };
                file_offset += size;
                region
            })
            .collect();
        Ok(Arc::new(Memory { file, base, mapped, regions, cursor: Mutex::new((0, 0)) }))
    }

    /// The memfd behind it: hostile tests truncate it.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The regions, in the order of the file.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The frontend's own address of a guest-physical address, as SET_VRING_ADDR wants it.
    pub fn user_addr(&self, guest_addr: u64) -> u64 {
        self.pointer(guest_addr, 1).as_ptr() as u64
    }

    /// Takes `size` bytes of fresh memory within one region; `align` is a power of two.
    /// Panics when the memory is used up: the test asked for too little.
    pub fn alloc(&self, size: u64, align: u64) -> u64 {
        let mut cursor = self.cursor.lock().expect("no allocation panics while it holds the lock");
        loop {
            let (index, offset) = *cursor;
            let region = self.regions.get(index).unwrap_or_else(|| panic!("no {size} bytes left"));
            // Page 0 stays unused, so that address 0 is never a buffer.
            let floor = if self.starts_at_boundary(index) { BOUNDARY_RESERVE } else { 4096 };
            let ceiling = if self.starts_at_boundary(index + 1) { BOUNDARY_RESERVE } else { 0 };
            let addr = (region.guest_addr + offset.max(floor)).next_multiple_of(align);
            let end = addr + size - region.guest_addr;
            if end + ceiling <= region.size {
                *cursor = (index, end);
                return addr;
            }
            *cursor = (index + 1, 0);
        }
    }

    /// The address of a buffer that has `before` bytes in one region and the rest in the next,
    /// adjacent one. At most 128 KiB on each side are set aside for this. `None` without two
    /// adjacent regions.
    pub fn across_boundary(&self, before: u64) -> Option<u64> {
        assert!(before <= BOUNDARY_RESERVE, "only {BOUNDARY_RESERVE} bytes are set aside");
        let second = (1..self.regions.len()).find(|&index| self.starts_at_boundary(index))?;
        Some(self.regions[second].guest_addr - before)
    }

    fn starts_at_boundary(&self, index: usize) -> bool {
        let (Some(before), Some(region)) =
            (self.regions.get(index.wrapping_sub(1)), self.regions.get(index))
        else {
            return false;
        };
        before.guest_addr + before.size == region.guest_addr
    }

    /// Copies guest memory out.
    pub fn read(&self, guest_addr: u64, into: &mut [u8]) {
        let from = self.pointer(guest_addr, into.len() as u64).as_ptr();
        // SAFETY: `pointer` checked that all of the range lies in the mapping; `into` is our own
        // memory, so they don't overlap. The device may write meanwhile: then the bytes are torn,
        // which any values of u8 can be.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
    }

    /// Copies bytes into guest memory.
    pub fn write(&self, guest_addr: u64, bytes: &[u8]) {
        let to = self.pointer(guest_addr, bytes.len() as u64).as_ptr();
        // SAFETY: as in `read`, the other way round.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// All bytes of a region.
    pub fn snapshot(&self, region: &Region) -> Vec<u8> {
        let mut bytes = vec![0; region.size as usize];
        self.read(region.guest_addr, &mut bytes);
        bytes
    }

    /// Sets `len` bytes to `byte`.
    pub fn fill(&self, guest_addr: u64, len: u64, byte: u8) {
        let to = self.pointer(guest_addr, len).as_ptr();
        // SAFETY: `pointer` checked that all of the range lies in the mapping.
        unsafe { std::ptr::write_bytes(to, byte, len as usize) };
    }

    /// A typed window of `count` cells at an address that the cell's size divides.
    pub fn cells<T: Cell>(self: &Arc<Self>, guest_addr: u64, count: usize) -> Cells<T> {
        let first = self.pointer(guest_addr, (count * size_of::<T>()) as u64).cast::<T>();
        assert!(first.is_aligned(), "cells at {guest_addr:#x} are not aligned");
        Cells { first, count, _memory: Arc::clone(self) }
    }

    /// The mapping's address of `guest_addr..guest_addr + len`. Panics if a byte of it is outside
    /// of the regions: only the device is hostile here, never the caller.
    fn pointer(&self, guest_addr: u64, len: u64) -> NonNull<u8> {
        let mut offset = None;
        let mut next = guest_addr;
        for region in &self.regions {
            let within = next.wrapping_sub(region.guest_addr);
            if within >= region.size {
                if offset.is_some() {
                    break; // the next region in the file isn't the next in guest addresses
                }
                continue;
            }
            // Regions follow one another in the file, so a range that goes on in the next region
            // goes on in the mapping as well.
            let start = *offset.get_or_insert(region.file_offset + within);
            next = region.guest_addr + region.size;
            if guest_addr + len <= next {
                // SAFETY: start + len <= mapped: the range ends within this region, which lies
                // within the mapping.
                return unsafe { self.base.add(start as usize) };
            }
        }
        panic!("{len} bytes at guest address {guest_addr:#x} are not all in a region");
    }
}

/// An atomic that ring fields are accessed through. All bit patterns are values.
///
/// # Safety
/// Implement it only for atomics without padding or invalid patterns.
pub unsafe trait Cell {}
// SAFETY: a plain atomic integer.
unsafe impl Cell for AtomicU16 {}
// SAFETY: a plain atomic integer.
unsafe impl Cell for AtomicU32 {}
// SAFETY: a plain atomic integer.
unsafe impl Cell for AtomicU64 {}

/// An array of atomics in guest memory; keeps the memory mapped.
#[derive(Debug)]
pub struct Cells<T> {
    first: NonNull<T>,
    count: usize,
    _memory: Arc<Memory>,
}

// SAFETY: it only hands out references to atomics in a mapping that it keeps alive.
unsafe impl<T: Cell> Send for Cells<T> {}
// SAFETY: as for Send.
unsafe impl<T: Cell> Sync for Cells<T> {}

impl<T: Cell> Cells<T> {
    /// The cell at `index`, which must be less than the count.
    #[inline]
    pub fn at(&self, index: usize) -> &T {
        assert!(index < self.count);
        // SAFETY: `Memory::cells` checked range and alignment for `count` cells; the Arc keeps
        // the mapping; Cell promises that any bytes there are a value; atomics tolerate writers.
        unsafe { self.first.add(index).as_ref() }
    }

    /// Starts loading the line of the cell at `index`.
    #[inline]
    pub fn prefetch(&self, index: usize) {
        let line = self.first.as_ptr().wrapping_add(index);
        // SAFETY: a prefetch touches no memory, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
    }

    /// Starts getting the line of the cell at `index`, to write to it.
    #[inline]
    pub fn prefetch_for_write(&self, index: usize) {
        let line = self.first.as_ptr().wrapping_add(index);
        // SAFETY: as above. No intrinsic of the standard library is sure to become this one.
        unsafe {
            asm!("prefetchw [{}]", in(reg) line, options(nostack, preserves_flags, readonly));
        }
    }
}

/// Which pages of a guest the device has marked as written: the vhost dirty log, a bit per 4 KiB
/// page of guest-physical memory.
#[derive(Debug)]
pub struct DirtyBits {
    bits: Cells<AtomicU64>,
    memory: Arc<Memory>,
    size: u64,
}

impl DirtyBits {
    /// A clear log for guest-physical addresses below `limit`, of whole pages, as QEMU makes it.
    pub fn new(limit: u64) -> io::Result<DirtyBits> {
        DirtyBits::of_size(limit.div_ceil(4096 * 8).next_multiple_of(4096))
    }

    /// A clear log of so many bytes, which need not be a multiple of anything.
    pub fn of_size(size: u64) -> io::Result<DirtyBits> {
        let bytes = size.next_multiple_of(4096);
        let memory = Memory::new(&[(0, bytes)])?;
        memory.file().set_len(size)?;
        Ok(DirtyBits { bits: memory.cells(0, bytes as usize / 8), memory, size })
    }

    /// The file to pass with SET_LOG_BASE.
    pub fn file(&self) -> &File {
        self.memory.file()
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Takes the page numbers marked since the last call, and clears them.
    pub fn take(&self) -> Vec<u64> {
        let mut pages = Vec::new();
        for word in 0..self.size.div_ceil(8) {
            let mut bits = self.bits.at(word as usize).swap(0, Ordering::AcqRel);
            while bits != 0 {
                pages.push(word * 64 + u64::from(bits.trailing_zeros()));
                bits &= bits - 1;
            }
        }
        pages
    }
}

fn memfd(size: u64, flags: libc::c_uint) -> io::Result<File> {
    // SAFETY: the name is a C string literal; the call has no other precondition.
    let fd = unsafe { libc::memfd_create(c"fakeguest".as_ptr(), libc::MFD_CLOEXEC | flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: memfd_create just returned this descriptor, and nothing else owns it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(size)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_may_cross_adjacent_regions_only() {
        let memory = Memory::new(&[(0x10000, 0x80000), (0x90000, 0x80000), (1 << 32, 0x1000)])
            .expect("memory");
        let addr = memory.across_boundary(100).expect("the first two are adjacent");
        assert_eq!(addr, 0x90000 - 100);
        memory.write(addr, &[7; 200]);
        let mut back = [0; 201];
        memory.read(addr, &mut back);
        assert_eq!((back[199], back[200]), (7, 0));
        let beyond = std::panic::catch_unwind(|| memory.read(0x10_ffff, &mut [0; 2]));
        assert!(beyond.is_err(), "0x110000 is in no region");
    }

    #[test]
    fn allocation_leaves_page_zero_and_the_boundary_alone() {
        let memory = Memory::new(&[(0, 0x80000), (0x80000, 0x80000)]).expect("memory");
        assert_eq!(memory.alloc(1, 1), 4096);
        let first_end = memory.alloc(0x80000 - BOUNDARY_RESERVE - 8192, 4096);
        assert_eq!(first_end, 8192);
        assert_eq!(memory.alloc(64, 64), 0x80000 + BOUNDARY_RESERVE);
    }

    #[test]
    fn dirty_bits_are_taken_once() {
        let log = DirtyBits::new(1 << 30).expect("log");
        log.bits.at(1).store(0b101, Ordering::Relaxed);
        assert_eq!(log.take(), [64, 66]);
        assert!(log.take().is_empty());
    }
}
