//! The dirty log of live migration: one bit for each 4 KiB page that the switch wrote.
//!
//! The frontend shares the bitmap by SET_LOG_BASE (vhost-user specification, "Migration"). It
//! reads and clears it while we set bits, so bits are set atomically; a page that is marked
//! already costs one load.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering, fence};

use crate::sys::fault::{Alarm, Guard};

use super::MapError;
use super::region::{Mapped, map_file};

/// log2 of the size of a page in the log (VHOST_LOG_PAGE is 4 KiB).
const PAGE_SHIFT: u32 = 12;

/// A shared bitmap of dirty pages.
#[derive(Debug)]
pub struct DirtyLog {
    /// Before the mapping: it is to be dropped first.
    guard: Option<Guard>,
    mapping: Mapped,
    /// Length of the bitmap, in bytes.
    len: usize,
}

impl DirtyLog {
    /// Maps `size` bytes of bitmap that begin at `offset` of `file`.
    ///
    /// # Errors
    ///
    /// [`MapError`] when the range doesn't lie within the file or can't be mapped.
    pub fn map(file: File, size: u64, offset: u64) -> Result<Self, MapError> {
        let mapping = map_file(file, size, offset)?;
        let len = usize::try_from(size).map_err(|_| MapError::Overflow)?;
        Ok(Self { guard: None, mapping, len })
    }

    /// Has `alarm` ring when the file becomes shorter.
    ///
    /// # Errors
    ///
    /// [`MapError::Guard`].
    pub fn guard(&mut self, alarm: &Arc<Alarm>) -> Result<(), MapError> {
        self.guard = Some(self.mapping.guard(alarm)?);
        Ok(())
    }

    /// What [`Self::map`] was called with: file, size and offset.
    ///
    /// # Errors
    ///
    /// The process is out of descriptors.
    pub fn source(&self) -> io::Result<(File, u64, u64)> {
        Ok((self.mapping.file()?, self.len as u64, self.mapping.offset()))
    }

    /// Marks the pages that hold `len` bytes at guest address `addr`. Pages outside of the log
    /// are ignored: the frontend sized it.
    #[inline]
    pub fn mark(&self, addr: u64, len: u64) {
        if len == 0 {
            return;
        }
        // What was written is seen before the mark is looked at: or the frontend may take the mark,
        // and copy the page as it was, after we saw it and before it can see the bytes.
        fence(Ordering::SeqCst);
        let last = addr.saturating_add(len - 1) >> PAGE_SHIFT;
        for page in (addr >> PAGE_SHIFT)..=last {
            if !self.mark_page(page) {
                break;
            }
        }
    }

    #[inline]
    fn mark_page(&self, page: u64) -> bool {
        let byte = match usize::try_from(page / 8) {
            Ok(byte) if byte < self.len => byte,
            _ => return false,
        };
        let bit = 1u8 << (page % 8);
        // SAFETY: `byte < len`, and `map_file` mapped `skip + len` bytes that live as long as
        // `self`. The bitmap is shared with the frontend, and is accessed as an atomic only.
        let cell = unsafe {
            let Mapped { region, skip, .. } = &self.mapping;
            AtomicU8::from_ptr(region.as_ptr().add(skip + byte))
        };
        if cell.load(Ordering::Relaxed) & bit == 0 {
            cell.fetch_or(bit, Ordering::Release);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    fn log(bytes: u64, offset: u64) -> (DirtyLog, File) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(offset + bytes).unwrap();
        (DirtyLog::map(file.try_clone().unwrap(), bytes, offset).unwrap(), file)
    }

    fn read(file: &File, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        file.read_exact_at(&mut out, 0).unwrap();
        out
    }

    #[test]
    fn marks_each_page_of_a_range_once() {
        let (log, file) = log(4, 0);
        log.mark(0x1fff, 2); // the last byte of page 1, the first of page 2
        log.mark(0x9000, 0); // nothing
        log.mark(0x8000, 0x1000); // page 8 whole
        assert_eq!(read(&file, 4), [0b110, 0b1, 0, 0]);
    }

    /// A page is marked over and over, while another's mark in the same byte comes and goes.
    #[test]
    fn a_mark_leaves_its_neighbours_alone() {
        let (log, _file) = log(1, 0);
        let ended = AtomicBool::new(false);
        let wrong = thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    log.mark(0, 1);
                }
            });
            // SAFETY: the first byte of the mapping, accessed as an atomic only.
            let cell = unsafe { AtomicU8::from_ptr(log.mapping.region.as_ptr()) };
            let is_wrong = |_: &u32| {
                let before = cell.fetch_or(2, Ordering::Relaxed);
                let after = cell.fetch_and(0, Ordering::Relaxed);
                before & 2 != 0 || after & 2 == 0
            };
            let wrong = (0..3_000_000).filter(is_wrong).count();
            ended.store(true, Ordering::Relaxed);
            wrong
        });
        assert_eq!(wrong, 0, "marks were lost or made up");
    }

    #[test]
    fn a_range_beyond_the_log_changes_nothing_outside() {
        let (log, file) = log(1, 8);
        log.mark(7 << 12, 0x10_0000);
        log.mark(u64::MAX - 3, 100);
        assert_eq!(read(&file, 9), [0, 0, 0, 0, 0, 0, 0, 0, 0x80]);
    }
}
