//! Lists of memory ranges that can't outlive the memory they lie in.
//!
//! A burst's payload stays where it is, in the sender's memory, and is described by segments: host
//! address and length. [`Segments`] owns the list for the time of one burst and borrows the
//! memory ([`RegionMap`], or a local buffer for frames that were read from a TAP), so a segment
//! that dangles can't exist. The list itself lives in a [`SegmentPool`] that is allocated once.

use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use crate::sys::prefetch;

use super::{RegionMap, Window, copy, copy_short};

/// The most segments of one frame. Linux sends at most 19, QEMU accepts chains of 1024.
pub const MAX_FRAME_SEGMENTS: usize = 1000;
/// Segments of one burst. When fewer than [`MAX_FRAME_SEGMENTS`] are left, the burst ends.
const POOL_SEGMENTS: usize = 4096;
/// Bytes that are copied out at a time when payload has to be looked at.
const READ_CHUNK: usize = 2048;

/// A range of memory that was valid when it was made; only [`Segments`] hands it out.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    ptr: NonNull<u8>,
    len: u32,
}

impl Segment {
    /// Host address of the first byte.
    #[inline]
    pub(crate) fn ptr(&self) -> *const u8 {
        self.ptr.as_ptr()
    }

    /// Length, bytes.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len as usize
    }

    /// Removes the first bytes, as many as `out` has, and copies them there: they are fetched
    /// once. For headers: short ones. Returns false, with nothing done, if there are fewer.
    #[inline]
    #[must_use]
    pub fn take(&mut self, out: &mut [u8]) -> bool {
        let from = self.advance(out.len());
        if let Some(from) = from {
            // SAFETY: `advance` found that many bytes, readable while the `Segments` live.
            unsafe { copy_short(from, out.as_mut_ptr(), out.len()) };
        }
        from.is_some()
    }

    /// [`Self::take`] of a length that the compiler knows.
    #[inline]
    pub fn take_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let from = self.advance(N)?;
        // SAFETY: as above. An array of bytes has any alignment.
        Some(unsafe { from.cast::<[u8; N]>().read_unaligned() })
    }

    /// Removes the first `n` bytes, if there are so many, and returns where they are.
    #[inline]
    fn advance(&mut self, n: usize) -> Option<*const u8> {
        let left = (self.len as usize).checked_sub(n)?;
        let from = self.ptr;
        // SAFETY: the segment has at least `n` bytes.
        self.ptr = unsafe { from.add(n) };
        self.len = left as u32;
        Some(from.as_ptr())
    }
}

/// Room for the segments of one burst, allocated once.
#[derive(Debug)]
pub struct SegmentPool {
    list: Box<[Segment]>,
}

// SAFETY: between bursts the list is meaningless: each use begins with none of it in use.
unsafe impl Send for SegmentPool {}

impl Default for SegmentPool {
    fn default() -> Self {
        let none = Segment { ptr: NonNull::dangling(), len: 0 };
        Self { list: vec![none; POOL_SEGMENTS].into_boxed_slice() }
    }
}

impl SegmentPool {
    /// An empty list of segments in guest memory.
    pub fn guest<'m>(&'m mut self, map: &'m RegionMap) -> Segments<'m> {
        self.segments(Some(map))
    }

    /// A list of segments in a local buffer: one for each of `frames`, in order.
    /// Ranges outside of `buffer` become empty.
    pub fn local<'m>(
        &'m mut self,
        buffer: &'m [u8],
        frames: impl Iterator<Item = Range<usize>>,
    ) -> Segments<'m> {
        let mut segments = self.segments(None);
        for (slot, range) in segments.list.iter_mut().zip(frames) {
            let bytes = buffer.get(range).unwrap_or_default();
            *slot = Segment { ptr: NonNull::from(bytes).cast(), len: bytes.len() as u32 };
            segments.end += 1;
        }
        segments
    }

    fn segments<'m>(&'m mut self, map: Option<&'m RegionMap>) -> Segments<'m> {
        let window = Window::default();
        Segments { list: &mut self.list, end: 0, map, window, memory: PhantomData }
    }
}

/// The segments of one burst. Each lies in the memory that is borrowed for `'m`.
#[derive(Debug)]
pub struct Segments<'m> {
    list: &'m mut [Segment],
    /// How many of the list are in use.
    end: usize,
    map: Option<&'m RegionMap>,
    /// Where the last ones were found in the map.
    window: Window,
    memory: PhantomData<&'m [u8]>,
}

impl Segments<'_> {
    /// How many segments there are: the index of the next one.
    #[inline]
    pub fn end(&self) -> u32 {
        self.end as u32
    }

    /// Whether another frame of [`MAX_FRAME_SEGMENTS`] fits.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.end + MAX_FRAME_SEGMENTS <= self.list.len()
    }

    /// Forgets the segments from index `end` on.
    pub fn truncate(&mut self, end: u32) {
        self.end = self.end.min(end as usize);
    }

    /// Appends guest memory `addr..addr + len`; several segments if it crosses regions. The first
    /// lines of the payload are prefetched.
    ///
    /// Returns false, with part of the range appended, if a part isn't guest memory or the list
    /// is full.
    #[inline]
    #[must_use]
    pub fn push(&mut self, addr: u64, len: u32) -> bool {
        match self.window.whole(addr, len) {
            Some(ptr) => self.append(ptr, len),
            None => self.push_pieces(addr, len),
        }
    }

    #[inline]
    fn append(&mut self, ptr: NonNull<u8>, len: u32) -> bool {
        let Some(slot) = self.list.get_mut(self.end) else {
            return false;
        };
        prefetch::read(ptr.as_ptr());
        prefetch::read(ptr.as_ptr().wrapping_add(prefetch::LINE));
        *slot = Segment { ptr, len };
        self.end += 1;
        true
    }

    #[inline(never)]
    fn push_pieces(&mut self, mut addr: u64, mut len: u32) -> bool {
        let Some(map) = self.map else { return false };
        while len > 0 {
            let Some((ptr, piece)) = map.translate(addr, len, &mut self.window) else {
                return false;
            };
            if !self.append(ptr, piece) {
                return false;
            }
            len -= piece;
            if len > 0 {
                let Some(next) = addr.checked_add(u64::from(piece)) else {
                    return false;
                };
                addr = next;
            }
        }
        true
    }

    /// Copies the first bytes of `range` into `out` and removes them from the segments: they are
    /// fetched once. Segments that become empty leave the range. Returns how many bytes came.
    /// For headers: short ones.
    #[inline]
    pub fn take(&mut self, range: &mut Range<u32>, out: &mut [u8]) -> usize {
        let Some(from) = self.advance(range, out.len()) else {
            return self.take_pieces(range, out);
        };
        // SAFETY: `advance` found that many bytes, readable for 'm.
        unsafe { copy_short(from, out.as_mut_ptr(), out.len()) };
        out.len()
    }

    /// The segment of a range that has only one. Shortening it is up to the caller.
    #[inline]
    pub fn only(&mut self, range: &Range<u32>) -> Option<&mut Segment> {
        if range.start.wrapping_add(1) != range.end {
            return None;
        }
        self.used_mut().get_mut(range.start as usize)
    }

    #[inline]
    fn used(&self) -> &[Segment] {
        self.list.get(..self.end).unwrap_or_default()
    }

    #[inline]
    fn used_mut(&mut self) -> &mut [Segment] {
        self.list.get_mut(..self.end).unwrap_or_default()
    }

    /// Removes the first `n` bytes of `range`, if its first segment holds them, and returns where
    /// they are.
    #[inline]
    fn advance(&mut self, range: &mut Range<u32>, n: usize) -> Option<*const u8> {
        if range.start >= range.end {
            return None;
        }
        let segment = self.used_mut().get_mut(range.start as usize)?;
        let from = segment.advance(n)?;
        range.start += u32::from(segment.len == 0);
        Some(from)
    }

    #[inline(never)]
    fn take_pieces(&mut self, range: &mut Range<u32>, out: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(room) = out.get_mut(done..).filter(|room| !room.is_empty())
            && let Some(segment) = self.used().get(range.start as usize)
            && range.start < range.end
        {
            let n = room.len().min(segment.len as usize);
            let Some(from) = self.advance(range, n) else {
                break;
            };
            // SAFETY: `advance` found `n` bytes, readable for 'm.
            unsafe { copy(from, room.as_mut_ptr(), n) };
            done += n;
        }
        done
    }

    /// How many bytes the segments in `range` hold.
    #[inline]
    pub fn bytes(&self, range: Range<u32>) -> u64 {
        let list = self.used().get(range.start as usize..range.end as usize).unwrap_or_default();
        list.iter().map(|segment| u64::from(segment.len)).sum()
    }

    /// The bytes of the segments in `range`.
    #[inline]
    pub fn tail(&self, range: Range<u32>) -> Tail<'_> {
        if range.is_empty() {
            // Short frames are all head.
            return Tail::EMPTY;
        }
        let list = self.used().get(range.start as usize..range.end as usize).unwrap_or_default();
        Tail { list, skip: 0, limit: usize::MAX }
    }
}

/// A run of bytes in a list of segments: the payload of one frame, or a part of it.
#[derive(Clone, Copy, Debug)]
pub struct Tail<'s> {
    list: &'s [Segment],
    skip: usize,
    limit: usize,
}

impl<'s> Tail<'s> {
    /// No bytes.
    pub const EMPTY: Tail<'static> = Tail { list: &[], skip: 0, limit: 0 };

    /// The `len` bytes behind the first `skip` ones, or fewer if there are fewer.
    pub fn slice(self, skip: usize, len: usize) -> Self {
        let mut tail = Self { limit: len.min(self.limit.saturating_sub(skip)), ..self };
        tail.skip = self.skip.saturating_add(skip);
        while let Some((first, rest)) = tail.list.split_first() {
            if tail.skip < first.len() {
                break;
            }
            tail.skip -= first.len();
            tail.list = rest;
        }
        tail
    }

    /// The pieces as (host address, length); valid as long as the [`Segments`] they came from.
    #[inline]
    pub(crate) fn pieces(self) -> impl Iterator<Item = (*const u8, usize)> + 's {
        let (mut skip, mut left) = (self.skip, self.limit);
        self.list.iter().map_while(move |segment| {
            if left == 0 {
                return None;
            }
            let begin = skip.min(segment.len());
            let n = (segment.len() - begin).min(left);
            skip = 0;
            left -= n;
            Some((segment.ptr().wrapping_add(begin), n))
        })
    }

    /// Hands the bytes to `f`, in order, as copies: guest memory may change meanwhile.
    pub fn read(self, mut f: impl FnMut(&[u8])) {
        let mut chunk = [0u8; READ_CHUNK];
        for (ptr, len) in self.pieces() {
            let mut done = 0;
            while done < len {
                let n = (len - done).min(READ_CHUNK);
                // SAFETY: `pieces` yields readable ranges; n is within both.
                unsafe { copy(ptr.add(done), chunk.as_mut_ptr(), n) };
                f(chunk.get(..n).unwrap_or_default());
                done += n;
            }
        }
    }
}

/// Writes one frame, given as two local parts and a tail, to a descriptor by one system call.
///
/// # Errors
///
/// What writev(2) says; `InvalidInput` for a frame of more than [`MAX_FRAME_SEGMENTS`] segments.
pub fn write_frame(
    fd: BorrowedFd<'_>,
    vnet: &[u8],
    head: &[u8],
    tail: Tail<'_>,
) -> io::Result<usize> {
    const EMPTY: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let local = |bytes: &[u8]| libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // Most frames have a handful of pieces: don't clear 16 KiB of stack for them.
    let mut few = [EMPTY; 24];
    let mut many;
    let iov: &mut [libc::iovec] = if tail.list.len() + 2 <= few.len() {
        &mut few
    } else {
        many = [EMPTY; MAX_FRAME_SEGMENTS + 2];
        &mut many
    };
    let mut count = 0;
    let pieces = tail
        .pieces()
        .map(|(ptr, len)| libc::iovec { iov_base: ptr.cast_mut().cast(), iov_len: len });
    for piece in [local(vnet), local(head)].into_iter().chain(pieces) {
        let slot = iov.get_mut(count).ok_or(io::ErrorKind::InvalidInput)?;
        *slot = piece;
        count += 1;
    }
    // SAFETY: `count` entries of `iov` are initialised and describe readable memory that is
    // borrowed for this call; the kernel only reads it.
    let n = unsafe { libc::writev(fd.as_raw_fd(), iov.as_ptr(), count as i32) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::mem::RegionSpec;

    fn guest(bytes: &[u8]) -> RegionMap {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x2000).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        let spec = |guest_addr, mmap_offset| RegionSpec {
            guest_addr,
            size: 0x1000,
            user_addr: guest_addr,
            mmap_offset,
            file: file.try_clone().unwrap(),
        };
        RegionMap::map(vec![spec(0x1000, 0), spec(0x2000, 0x1000)]).unwrap()
    }

    fn bytes(tail: Tail<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        tail.read(|b| out.extend_from_slice(b));
        out
    }

    #[test]
    fn take_fetches_a_header_over_any_split() {
        let map = guest(b"abcdefghij");
        let mut pool = SegmentPool::default();
        let mut segs = pool.guest(&map);
        for (addr, len) in [(0x1000, 1), (0x1001, 2), (0x1003, 5)] {
            assert!(segs.push(addr, len));
        }
        let mut range = 0..segs.end();
        let mut out = [0u8; 5];
        assert_eq!(segs.take(&mut range, &mut out), 5);
        assert_eq!(&out, b"abcde");
        assert_eq!(range, 2..3);
        assert_eq!(bytes(segs.tail(range.clone())), b"fgh");
        let mut rest = [0u8; 9];
        assert_eq!(segs.take(&mut range, &mut rest), 3, "no more than there is");
        assert!(range.is_empty());
    }

    #[test]
    fn a_range_across_regions_becomes_two_segments() {
        let map = guest(b"");
        let mut pool = SegmentPool::default();
        let mut segs = pool.guest(&map);
        assert!(segs.push(0x1ff0, 0x20));
        assert_eq!(segs.end(), 2);
        assert!(!segs.push(0x2ff0, 0x20), "beyond the guest's memory");
        assert!(!segs.push(u64::MAX - 1, 8));
    }

    #[test]
    fn slices_of_a_tail_skip_and_limit() {
        let map = guest(b"0123456789");
        let mut pool = SegmentPool::default();
        let mut segs = pool.guest(&map);
        for (addr, len) in [(0x1000, 3), (0x1003, 3), (0x1006, 4)] {
            assert!(segs.push(addr, len));
        }
        let tail = segs.tail(0..3);
        assert_eq!(bytes(tail), b"0123456789");
        assert_eq!(bytes(tail.slice(2, 5)), b"23456");
        assert_eq!(bytes(tail.slice(3, 3)), b"345");
        assert_eq!(bytes(tail.slice(2, 7).slice(3, 9)), b"5678");
        assert_eq!(bytes(tail.slice(9, 9)), b"9");
        assert_eq!(bytes(tail.slice(10, 1)), b"");
    }

    #[test]
    fn a_frame_is_written_by_one_call() {
        let map = guest(b"tail");
        let mut pool = SegmentPool::default();
        let mut segs = pool.guest(&map);
        for i in 0..4 {
            assert!(segs.push(0x1000 + i, 1));
        }
        let (a, b) = std::os::unix::net::UnixDatagram::pair().unwrap();
        assert_eq!(write_frame(a.as_fd(), b"vnet", b"head", segs.tail(0..4)).unwrap(), 12);
        let mut out = [0u8; 64];
        let n = b.recv(&mut out).unwrap();
        assert_eq!(out.get(..n).unwrap(), b"vnetheadtail");
    }
}
