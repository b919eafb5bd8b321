//! A guest's memory: what its VMM shares, in a file, and what surrounds it there.
//!
//! Three regions lie in the file at odd places, two of them adjacent for the guest only. The bytes
//! between them are no guest memory; those in the first and last page of a mapping can be reached
//! by whoever writes beyond a region's end, and must stay as they were.

use std::fs::File;
use std::sync::Arc;

use ringswitch::mem::{RegionMap, RegionSpec};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// Guest address, size, address in the frontend and offset in the file of each region.
pub const REGIONS: [(u64, u64, u64, u64); 3] = [
    (0x10_0000, 0x3000, 0x7000_0000, 0x1100),
    (0x10_3000, 0x2080, 0x7200_0000, 0x6000),
    (0x20_0000, 0x0e00, 0x7100_0000, 0xa200),
];
/// Bytes of the file.
pub const FILE: usize = 0xc000;
/// What stands outside of the regions.
const CANARY: u8 = 0xc5;

/// The bytes of a guest's memory at one time, by guest address.
#[derive(Clone, PartialEq, Eq)]
pub struct Image(Vec<u8>);

/// Where the range `addr..addr + len` begins in the file, if all of it lies in one region.
fn offset(addr: u64, len: u64) -> Option<usize> {
    let (start, _, _, at) = REGIONS.iter().find(|(start, size, _, _)| {
        addr >= *start && addr.checked_add(len).is_some_and(|end| end <= start + size)
    })?;
    Some((at + (addr - start)) as usize)
}

/// How many of `len` bytes at `addr` lie in the region that holds `addr`.
pub fn piece(addr: u64, len: u32) -> Option<u32> {
    let (start, size, ..) =
        REGIONS.iter().find(|(start, size, ..)| (*start..start + size).contains(&addr))?;
    Some(u64::from(len).min(start + size - addr) as u32)
}

/// The address in the frontend of a guest address.
pub fn user(addr: u64) -> Option<u64> {
    let (start, _, user, _) =
        REGIONS.iter().find(|(start, size, ..)| (*start..start + size).contains(&addr))?;
    Some(user + (addr - start))
}

impl Image {
    /// The memory of a guest that wrote nothing yet.
    pub fn new() -> Self {
        let mut image = Self(vec![CANARY; FILE]);
        for (start, size, ..) in REGIONS {
            image.write(start, &vec![0; size as usize]);
        }
        image
    }

    /// The `len` bytes at `addr`, which lie in one region.
    pub fn read(&self, addr: u64, len: usize) -> Option<&[u8]> {
        let at = offset(addr, len as u64)?;
        Some(&self.0[at..at + len])
    }

    /// A number of `N` bytes, or zero where there is no memory.
    fn number<const N: usize>(&self, addr: u64) -> [u8; N] {
        self.read(addr, N).map_or([0; N], |bytes| bytes.try_into().expect("N bytes"))
    }

    /// A 16-bit word.
    pub fn u16(&self, addr: u64) -> u16 {
        u16::from_le_bytes(self.number(addr))
    }

    /// A 32-bit word.
    pub fn u32(&self, addr: u64) -> u32 {
        u32::from_le_bytes(self.number(addr))
    }

    /// A 64-bit word.
    pub fn u64(&self, addr: u64) -> u64 {
        u64::from_le_bytes(self.number(addr))
    }

    /// Writes as much as lies in memory, over the ends of regions.
    pub fn write(&mut self, mut addr: u64, mut bytes: &[u8]) {
        while let Some(len) = piece(addr, bytes.len() as u32).filter(|len| *len > 0) {
            let (now, rest) = bytes.split_at(len as usize);
            let at = offset(addr, now.len() as u64).expect("one region");
            self.0[at..at + now.len()].copy_from_slice(now);
            (addr, bytes) = (addr + u64::from(len), rest);
        }
    }

    /// The first part of the file outside of the regions that isn't what it was.
    fn stray(&self) -> Option<usize> {
        let mut at = 0;
        let ends = REGIONS.iter().map(|region| (region.3 as usize, (region.3 + region.1) as usize));
        for (start, end) in ends.chain([(FILE, FILE)]) {
            if self.0[at..start].iter().any(|byte| *byte != CANARY) {
                return Some(at);
            }
            at = end;
        }
        None
    }

    /// Guest addresses of the bytes that are different in `other`.
    pub fn changes<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = u64> + 'a {
        REGIONS.iter().flat_map(move |(start, size, _, at)| {
            let range = *at as usize..(at + size) as usize;
            let (ours, theirs) = (&self.0[range.clone()], &other.0[range]);
            let step = if ours == theirs { 0 } else { ours.len() };
            ours.iter()
                .zip(theirs)
                .take(step)
                .enumerate()
                .filter_map(move |(offset, (a, b))| (a != b).then_some(start + offset as u64))
        })
    }
}

impl Default for Image {
    fn default() -> Self {
        Self::new()
    }
}

/// Guest memory that is mapped by the switch, and once more by the guest.
pub struct Memory {
    /// The switch's view.
    pub map: Arc<RegionMap>,
    view: MmapRegion,
    file: File,
}

impl Memory {
    /// New memory. It serves many inputs: [`Memory::store`] makes it what an input wants.
    pub fn new() -> Self {
        let file = tempfile::tempfile_in("/dev/shm").expect("shared memory");
        file.set_len(FILE as u64).expect("room for the memory");
        let view = MmapRegion::from_file(FileOffset::new(clone(&file), 0), FILE);
        let specs = REGIONS.map(|(guest_addr, size, user_addr, mmap_offset)| RegionSpec {
            guest_addr,
            size,
            user_addr,
            mmap_offset,
            file: clone(&file),
        });
        let map = Arc::new(RegionMap::map(specs.into()).expect("regions as they should be"));
        Self { map, view: view.expect("a mapping"), file }
    }

    /// The file that holds it.
    pub fn file(&self) -> File {
        clone(&self.file)
    }

    /// What is there now.
    ///
    /// # Panics
    ///
    /// When a byte outside of the regions was written.
    pub fn load(&self) -> Image {
        let mut image = Image(vec![0; FILE]);
        let slice = self.view.get_slice(0, FILE).expect("all of it");
        slice.copy_to(&mut image.0[..]);
        if let Some(at) = image.stray() {
            panic!("what isn't guest memory was written, from {at:#x} of the file on");
        }
        image
    }

    /// Makes the memory what `image` says.
    pub fn store(&self, image: &Image) {
        self.view.get_slice(0, FILE).expect("all of it").copy_from(&image.0[..]);
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

fn clone(file: &File) -> File {
    file.try_clone().expect("a descriptor")
}
