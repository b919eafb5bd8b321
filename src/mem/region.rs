//! The memory regions of one guest, and the translation of its addresses.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::{FileOffset, MmapRegion};

use crate::sys::fault::{self, Alarm, Guard};

/// The most regions of one guest: what GET_MAX_MEM_SLOTS answers, and what QEMU can use.
pub const MAX_REGIONS: usize = 509;

/// The most memory of one guest, bytes: 16 TiB, of the 128 that a process has addresses for.
pub const MAX_MEMORY: u64 = 16 << 40;

/// Why guest memory can't be mapped.
#[derive(Debug, Error)]
pub enum MapError {
    /// An address or a size wraps.
    #[error("address plus size overflows")]
    Overflow,
    /// An empty region.
    #[error("a region of size 0")]
    Empty,
    /// More regions than [`MAX_REGIONS`].
    #[error("more than {MAX_REGIONS} memory regions")]
    TooMany,
    /// More memory than one guest may have: others would find no addresses left.
    #[error("{0:#x} bytes of guest memory are more than {MAX_MEMORY:#x}")]
    TooLarge(u64),
    /// Two regions share guest or frontend addresses.
    #[error("region {0:#x} overlaps another one")]
    Overlap(u64),
    /// The file ends before the region: touching it would be a SIGBUS.
    #[error("the memory file has {has} bytes, the region needs {needs}")]
    FileTooShort {
        /// Length of the file, bytes.
        has: u64,
        /// End of the region in the file, bytes.
        needs: u64,
    },
    /// A page fault would wait for a process of the frontend's choice, and all ports with it.
    #[error("the memory file is on FUSE; use memfd, /dev/shm or hugetlbfs")]
    Fuse,
    /// fstat or mmap failed.
    #[error("cannot map guest memory: {0}")]
    Map(#[source] io::Error),
    /// The mapping can't be protected against its file becoming shorter.
    #[error("cannot guard guest memory: {0}")]
    Guard(#[source] io::Error),
}

/// One region as a frontend describes it (vhost-user specification, "Memory region description").
#[derive(Debug)]
pub struct RegionSpec {
    /// Guest physical address of its first byte.
    pub guest_addr: u64,
    /// Size, bytes.
    pub size: u64,
    /// Address of its first byte in the frontend's process: ring addresses are given so.
    pub user_addr: u64,
    /// Offset of its first byte in `file`.
    pub mmap_offset: u64,
    /// The file that holds it.
    pub file: File,
}

#[derive(Debug, Clone)]
struct Region {
    guest_addr: u64,
    size: u64,
    user_addr: u64,
    mmap_offset: u64,
    /// Host address of the region's first byte; inside of `mapping`.
    host: NonNull<u8>,
    /// Device and inode of the file: tells a repeated ADD_MEM_REG from a conflicting one.
    file_id: (u64, u64),
    /// Before the mapping: it is to be dropped first.
    guard: Option<Arc<Guard>>,
    mapping: Arc<Mapped>,
}

// SAFETY: `host` points into `mapping`, which is shared memory that is only accessed through
// raw pointers; moving or sharing the description between threads touches nothing.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// The memory of one guest. Never changes: a memory message makes a new map, and the old one
/// (and its mappings) ends with its last `Arc`.
#[derive(Debug, Default)]
pub struct RegionMap {
    /// Sorted by guest address, without overlaps.
    regions: Vec<Region>,
}

/// One region, remembered by whoever translates many addresses. Means nothing without the map that
/// it came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    guest_addr: u64,
    size: u64,
    host: NonNull<u8>,
}

impl Default for Window {
    /// No region.
    fn default() -> Self {
        Self { guest_addr: 0, size: 0, host: NonNull::dangling() }
    }
}

impl Window {
    /// The host address of `addr..addr + len`, if it isn't empty and all of it lies here.
    #[inline]
    pub(crate) fn whole(&self, addr: u64, len: u32) -> Option<NonNull<u8>> {
        // Below the window it wraps to more than `size`: `guest_addr + size` doesn't overflow.
        let offset = addr.wrapping_sub(self.guest_addr);
        let left = self.size.checked_sub(offset)?;
        // An empty range wraps to more than anything.
        if u64::from(len).wrapping_sub(1) >= left {
            return None;
        }
        // SAFETY: offset < size, and the mapping holds `size` bytes behind `host`.
        Some(unsafe { self.host.add(offset as usize) })
    }
}

impl RegionMap {
    /// Maps a guest's regions.
    ///
    /// # Errors
    ///
    /// [`MapError`]; nothing stays mapped then.
    pub fn map(specs: Vec<RegionSpec>) -> Result<Self, MapError> {
        let mut map = Self::default();
        for spec in specs {
            map.insert(spec)?;
        }
        Ok(map)
    }

    /// This map with one more region. Adding a region that is there already changes nothing:
    /// QEMU sends one set of regions for each queue pair.
    ///
    /// # Errors
    ///
    /// [`MapError`]; `self` is unaffected.
    pub fn add(&self, spec: RegionSpec) -> Result<Self, MapError> {
        let mut map = Self { regions: self.regions.clone() };
        map.insert(spec)?;
        Ok(map)
    }

    /// This map without the region at these addresses; the same map if there is none.
    pub fn remove(&self, guest_addr: u64, size: u64, user_addr: u64) -> Self {
        let keep =
            |r: &&Region| (r.guest_addr, r.size, r.user_addr) != (guest_addr, size, user_addr);
        Self { regions: self.regions.iter().filter(keep).cloned().collect() }
    }

    /// Has `alarm` ring when a file of the map becomes shorter. Regions that have an alarm keep it.
    ///
    /// # Errors
    ///
    /// [`MapError::Guard`]; some regions may be guarded then.
    pub fn guard(&mut self, alarm: &Arc<Alarm>) -> Result<(), MapError> {
        for region in self.regions.iter_mut().filter(|region| region.guard.is_none()) {
            region.guard = Some(Arc::new(region.mapping.guard(alarm)?));
        }
        Ok(())
    }

    /// What the map was made of, for another process to map it as well: by guest address.
    ///
    /// # Errors
    ///
    /// The process is out of descriptors.
    pub fn specs(&self) -> io::Result<Vec<RegionSpec>> {
        let spec = |r: &Region| {
            Ok(RegionSpec {
                guest_addr: r.guest_addr,
                size: r.size,
                user_addr: r.user_addr,
                mmap_offset: r.mmap_offset,
                file: r.mapping.file()?,
            })
        };
        self.regions.iter().map(spec).collect()
    }

    /// How many regions there are.
    pub fn len(&self) -> usize {
        self.regions.len()
    }

    /// Whether there is no region.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    fn insert(&mut self, spec: RegionSpec) -> Result<(), MapError> {
        if spec.size == 0 {
            return Err(MapError::Empty);
        }
        let end = spec.guest_addr.checked_add(spec.size).ok_or(MapError::Overflow)?;
        let user_end = spec.user_addr.checked_add(spec.size).ok_or(MapError::Overflow)?;
        let meta = spec.file.metadata().map_err(MapError::Map)?;
        let file_id = (meta.dev(), meta.ino());
        for r in &self.regions {
            let same = (r.guest_addr, r.size, r.user_addr, r.mmap_offset, r.file_id)
                == (spec.guest_addr, spec.size, spec.user_addr, spec.mmap_offset, file_id);
            if same {
                return Ok(());
            }
            let apart = end <= r.guest_addr || spec.guest_addr >= r.guest_addr + r.size;
            let user_apart = user_end <= r.user_addr || spec.user_addr >= r.user_addr + r.size;
            if !apart || !user_apart {
                return Err(MapError::Overlap(spec.guest_addr));
            }
        }
        if self.regions.len() >= MAX_REGIONS {
            return Err(MapError::TooMany);
        }
        let mapped = self.regions.iter().map(|region| region.size);
        let total = mapped.fold(spec.size, u64::saturating_add);
        if total > MAX_MEMORY {
            return Err(MapError::TooLarge(total));
        }
        let mapping = map_file(spec.file, spec.size, spec.mmap_offset)?;
        // SAFETY: map_file mapped `skip + size` bytes.
        let host = unsafe { mapping.region.as_ptr().add(mapping.skip) };
        let host = NonNull::new(host).ok_or(MapError::Overflow)?;
        let at = self.regions.partition_point(|r| r.guest_addr < spec.guest_addr);
        self.regions.insert(
            at,
            Region {
                guest_addr: spec.guest_addr,
                size: spec.size,
                user_addr: spec.user_addr,
                mmap_offset: spec.mmap_offset,
                host,
                file_id,
                guard: None,
                mapping: Arc::new(mapping),
            },
        );
        Ok(())
    }

    /// The host address of guest address `addr`, and how many of the `len` bytes from there on lie
    /// in the same region. `window` is the region of the last call, which is tried first.
    #[inline]
    pub(crate) fn translate(
        &self,
        addr: u64,
        len: u32,
        window: &mut Window,
    ) -> Option<(NonNull<u8>, u32)> {
        match window.whole(addr, len) {
            Some(host) => Some((host, len)),
            None => self.translate_elsewhere(addr, len, window),
        }
    }

    /// The rest of [`Self::translate`]: in another region, or in part.
    #[inline(never)]
    fn translate_elsewhere(
        &self,
        addr: u64,
        len: u32,
        window: &mut Window,
    ) -> Option<(NonNull<u8>, u32)> {
        let index = self.regions.partition_point(|r| r.guest_addr <= addr).checked_sub(1)?;
        let r = self.regions.get(index)?;
        *window = Window { guest_addr: r.guest_addr, size: r.size, host: r.host };
        let left = r.size.checked_sub(addr.checked_sub(r.guest_addr)?)?;
        let piece = u64::from(len).min(left) as u32;
        Some((window.whole(addr, piece)?, piece))
    }

    /// Translates `len` bytes at frontend address `addr`, which must lie in one region and be
    /// aligned to `align` bytes: so rings are located (SET_VRING_ADDR). Returns the host address
    /// and the guest address.
    pub(crate) fn translate_user(
        &self,
        addr: u64,
        len: u64,
        align: u64,
    ) -> Option<(NonNull<u8>, u64)> {
        let r = self.regions.iter().find(|r| addr >= r.user_addr && addr - r.user_addr < r.size)?;
        let offset = addr - r.user_addr;
        if offset.checked_add(len)? > r.size {
            return None;
        }
        // SAFETY: offset < size, as above.
        let host = unsafe { r.host.add(offset as usize) };
        (host.as_ptr() as u64).is_multiple_of(align).then_some((host, r.guest_addr + offset))
    }
}

/// A mapping of a file that begins at a page (or huge page).
#[derive(Debug)]
pub(super) struct Mapped {
    pub region: MmapRegion,
    /// Where the wanted bytes begin in it.
    pub skip: usize,
    /// Bytes of a page.
    page: usize,
}

impl Mapped {
    /// The mapped file.
    pub fn file(&self) -> io::Result<File> {
        let mapped = self.region.file_offset().ok_or(io::ErrorKind::Unsupported)?;
        mapped.file().try_clone()
    }

    /// Where the wanted bytes begin in the file.
    pub fn offset(&self) -> u64 {
        self.region.file_offset().map_or(0, |mapped| mapped.start() + self.skip as u64)
    }

    /// Has `alarm` ring when the file becomes shorter. The caller drops the guard before the mapping.
    pub fn guard(&self, alarm: &Arc<Alarm>) -> Result<Guard, MapError> {
        let (start, len) = (self.region.as_ptr(), self.region.size());
        // SAFETY: `region` is a mapping of a file, and the callers keep it beside the guard and
        // drop it later; who accesses it holds what both are in.
        unsafe { fault::guard(start, len, self.page, alarm) }.map_err(MapError::Guard)
    }
}

/// Maps `size` bytes at `offset` of `file`, which must hold them.
pub(super) fn map_file(file: File, size: u64, offset: u64) -> Result<Mapped, MapError> {
    let meta = file.metadata().map_err(MapError::Map)?;
    let needs = offset.checked_add(size).ok_or(MapError::Overflow)?;
    if meta.len() < needs {
        return Err(MapError::FileTooShort { has: meta.len(), needs });
    }
    let page = page_size(&file)?;
    let skip = offset % page;
    // Whole pages: munmap of a huge page mapping demands it. The last page may reach beyond the
    // end of a file of small pages; those bytes are never used.
    let len = skip
        .checked_add(size)
        .and_then(|n| n.checked_next_multiple_of(page))
        .and_then(|n| usize::try_from(n).ok())
        .ok_or(MapError::Overflow)?;
    let region = MmapRegion::from_file(FileOffset::new(file, offset - skip), len)
        .map_err(|e| MapError::Map(io::Error::other(e)))?;
    Ok(Mapped { region, skip: skip as usize, page: page as usize })
}

/// The page size of a mapping of `file`: the huge page size on hugetlbfs.
fn page_size(file: &File) -> Result<u64, MapError> {
    // linux/magic.h; the libc crate doesn't have it.
    const FUSE_SUPER_MAGIC: libc::__fsword_t = 0x6573_5546;
    // SAFETY: an all-zero statfs is a valid value of this plain C struct.
    let mut fs: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `fs` is valid for writes, and the descriptor is open.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &mut fs) } != 0 {
        return Err(MapError::Map(io::Error::last_os_error()));
    }
    if fs.f_type == FUSE_SUPER_MAGIC {
        return Err(MapError::Fuse);
    }
    let block = fs.f_bsize as u64;
    let huge = fs.f_type == libc::HUGETLBFS_MAGIC && block.is_power_of_two();
    Ok(if huge { block.max(4096) } else { 4096 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(guest_addr: u64, size: u64, mmap_offset: u64, file: &File) -> RegionSpec {
        RegionSpec {
            guest_addr,
            size,
            user_addr: 0x7f00_0000_0000 + guest_addr,
            mmap_offset,
            file: file.try_clone().unwrap(),
        }
    }

    fn file(len: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file
    }

    #[test]
    fn translates_within_and_across_regions() {
        let f = file(0x3000);
        let map = RegionMap::map(vec![
            spec(0x2000, 0x1000, 0x2000, &f),
            spec(0x0, 0x1000, 0, &f),
            spec(0x1000, 0x1000, 0x1000, &f),
        ])
        .unwrap();
        let mut window = Window::default();
        assert_eq!(map.translate(0xff0, 0x20, &mut window).unwrap().1, 0x10);
        assert_eq!(map.translate(0x1000, 0x20, &mut window).unwrap().1, 0x20);
        assert!(map.translate(0x3000, 1, &mut window).is_none());
        assert!(map.translate(u64::MAX, 1, &mut window).is_none());
        assert_eq!(map.translate(0x2fff, u32::MAX, &mut window).unwrap().1, 1);
    }

    #[test]
    fn ring_addresses_stay_within_one_region_and_are_aligned() {
        let f = file(0x2000);
        let map =
            RegionMap::map(vec![spec(0, 0x1000, 0, &f), spec(0x1000, 0x1000, 0x1000, &f)]).unwrap();
        let base = 0x7f00_0000_0000;
        assert_eq!(map.translate_user(base + 0x10, 0xff0, 16).unwrap().1, 0x10);
        assert!(map.translate_user(base + 0x10, 0xff1, 16).is_none(), "crosses the region's end");
        assert!(map.translate_user(base + 1, 2, 2).is_none(), "odd");
        assert!(map.translate_user(base - 1, 2, 1).is_none());
        assert!(map.translate_user(base + 0x10, u64::MAX, 1).is_none());
    }

    #[test]
    fn a_file_shorter_than_its_region_is_refused() {
        let f = file(0x1000);
        let short = RegionMap::map(vec![spec(0, 0x1001, 0, &f)]);
        assert!(matches!(short, Err(MapError::FileTooShort { has: 0x1000, needs: 0x1001 })));
        let wraps = RegionMap::map(vec![spec(0, 0x1000, u64::MAX - 10, &f)]);
        assert!(matches!(wraps, Err(MapError::Overflow)));
        let empty = RegionMap::map(vec![spec(0, 0, 0, &f)]);
        assert!(matches!(empty, Err(MapError::Empty)));
    }

    #[test]
    fn adding_twice_is_idempotent_and_overlap_is_refused() {
        let f = file(0x4000);
        let one = RegionMap::map(vec![spec(0x1000, 0x1000, 0, &f)]).unwrap();
        let two = one.add(spec(0x1000, 0x1000, 0, &f)).unwrap();
        assert_eq!(two.len(), 1);
        assert!(matches!(one.add(spec(0x1800, 0x1000, 0, &f)), Err(MapError::Overlap(0x1800))));
        let other_file = file(0x4000);
        assert!(one.add(spec(0x1000, 0x1000, 0, &other_file)).is_err());
        let none = two.remove(0x1000, 0x1000, 0x7f00_0000_1000);
        assert!(none.is_empty());
        assert_eq!(one.remove(0, 0, 0).len(), 1);
    }

    #[test]
    fn offsets_inside_a_page_are_honoured() {
        use std::os::unix::fs::FileExt;
        let f = file(0x3000);
        f.write_all_at(b"here", 0x1234).unwrap();
        let map = RegionMap::map(vec![spec(0, 0x100, 0x1234, &f)]).unwrap();
        let (host, len) = map.translate(0, 4, &mut Window::default()).unwrap();
        assert_eq!(len, 4);
        let mut out = [0u8; 4];
        // SAFETY: translate returned 4 readable bytes.
        unsafe { std::ptr::copy_nonoverlapping(host.as_ptr(), out.as_mut_ptr(), 4) };
        assert_eq!(&out, b"here");
    }
}
