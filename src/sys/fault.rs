//! Mapped memory that its owner takes away: a file that is made shorter while it is mapped, or huge
//! pages that there are no more of.
//!
//! An access to such memory raises SIGBUS, which would end the process and with it every guest's
//! network. The handler here puts private zero pages in the place of the rest of the mapping, so
//! that the access goes on, rings the mapping's [`Alarm`], and wakes who is to end that guest's
//! connection. Whatever was read or written meanwhile is that guest's loss.
//!
//! # Theory of operation
//!
//! [`guard()`] writes a mapping's range into a table of fixed size that never moves, because a signal
//! handler may neither lock nor allocate. How the handler reads a slot while others change it is in
//! `slot`. One that changed meanwhile was not the one it looks for, since nobody takes a guard back
//! while anyone may access its mapping.

use std::io;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicUsize};
use std::sync::{Arc, Once};

use parking_lot::Mutex;

use super::poller::Waker;
use super::slot::{Found, Slot};

/// The most ranges at a time. Linux allows a process 65,530 mappings (vm.max_map_count).
const SLOTS: usize = 1 << 16;

static TABLE: [Slot<Alarm>; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        page: AtomicUsize::new(0),
        owner: AtomicPtr::new(std::ptr::null_mut()),
    }
}; SLOTS];
/// Slots from here on were never used.
static USED: AtomicUsize = AtomicUsize::new(0);
/// The slots below `USED` that are free. Held by who adds and removes ranges.
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// Why an alarm rang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    /// A mapping was taken away.
    LostMemory = 1,
    /// An eventfd that is to be signalled was made to block ([`super::call`]).
    BlockingCall = 2,
}

/// Rings when a peer took a mapping away, or has us wait for it.
#[derive(Debug, Default)]
pub struct Alarm {
    /// The first [`Cause`]; 0: it didn't ring.
    rung: AtomicU8,
    waker: Option<Waker>,
}

impl Alarm {
    /// An alarm that also wakes `waker`.
    #[must_use]
    pub fn new(waker: Waker) -> Self {
        Self { rung: AtomicU8::new(0), waker: Some(waker) }
    }

    /// Why it rang, if it did.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        match self.rung.load(Acquire) {
            0 => None,
            rung if rung == Cause::LostMemory as u8 => Some(Cause::LostMemory),
            _ => Some(Cause::BlockingCall),
        }
    }

    /// Rings. Called by the signal handler, too: a store, and a write to an eventfd.
    pub fn ring(&self, cause: Cause) {
        // The first cause is told. An error says that there is one.
        let _ = self.rung.compare_exchange(0, cause as u8, Release, Relaxed);
        if let Some(waker) = &self.waker {
            waker.wake();
        }
    }
}

/// A range is guarded until this is dropped, which must be before it is unmapped.
#[derive(Debug)]
pub struct Guard {
    slot: usize,
    /// The slot points to it.
    _alarm: Arc<Alarm>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut free = FREE.lock();
        if let Some(slot) = TABLE.get(self.slot) {
            slot.clear();
        }
        free.push(self.slot);
    }
}

/// Guards the mapping of `len` bytes at `start`, which has pages of `page` bytes, with `alarm`.
///
/// # Errors
///
/// Too many mappings are guarded.
///
/// # Safety
///
/// The range is mapped, readable and writable, until the guard is dropped; nothing but file pages
/// lies in it; nobody accesses it any more when the guard is dropped.
pub unsafe fn guard(
    start: *const u8,
    len: usize,
    page: usize,
    alarm: &Arc<Alarm>,
) -> io::Result<Guard> {
    install();
    let mut free = FREE.lock();
    let index = free.pop().unwrap_or_else(|| USED.fetch_add(1, Relaxed));
    let Some(slot) = TABLE.get(index) else {
        USED.fetch_sub(1, Relaxed);
        return Err(io::Error::other("too many mappings of guest memory"));
    };
    let end = (start as usize).saturating_add(len);
    slot.put(start as usize, Found { end, page, owner: Arc::as_ptr(alarm).cast_mut() });
    Ok(Guard { slot: index, _alarm: Arc::clone(alarm) })
}

/// Installs the handler, once. [`guard()`] does so as well, where a thread still may.
pub fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: an all-zero sigaction is a valid value of this plain C struct.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_sigbus as *const () as usize;
        // Not on the alternate stack: it has 8 KiB, of which a frame with all vector registers takes
        // half, and a second signal meanwhile would end the process. The smallest of our stacks has
        // 256 KiB.
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: the action is valid, and its handler only does what a handler may.
        let result =
            unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
        debug_assert_eq!(result, 0, "SIGBUS can be handled");
    });
}

extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: errno is this thread's; the code that was interrupted may be about to read it.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel hands a valid siginfo to a handler with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() } as usize;
    if !replace(address) {
        // Nobody's memory: the access is made again and ends the process, as without us.
        // SAFETY: the default action is always a valid one.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Replaces the guarded mapping from the page of `address` on. Returns whether it is one.
fn replace(address: usize) -> bool {
    let slots = TABLE.iter().take(USED.load(Acquire));
    for slot in slots {
        let Some(Found { end, page, owner: alarm }) = slot.find(address) else { continue };
        if page == 0 {
            continue;
        }
        let from = address - address % page;
        let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: `guard` was promised that the range is a mapping of its own with pages of this
        // size; it stays mapped while this thread accesses it.
        let mapped = unsafe {
            libc::mmap(
                from as *mut libc::c_void,
                end - from,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return false;
        }
        // SAFETY: the guard holds the alarm, and isn't dropped while this thread is in its range.
        unsafe { &*alarm }.ring(Cause::LostMemory);
        return true;
    }
    false
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    const PAGE: usize = 4096;

    /// Maps `pages` of a file and guards them.
    fn mapping(pages: usize) -> (std::fs::File, *mut u8, Guard, Arc<Alarm>) {
        let file = tempfile::tempfile().unwrap();
        file.set_len((pages * PAGE) as u64).unwrap();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new shared mapping of an open file.
        let start = unsafe {
            let fd = file.as_raw_fd();
            libc::mmap(std::ptr::null_mut(), pages * PAGE, protection, libc::MAP_SHARED, fd, 0)
        };
        assert_ne!(start, libc::MAP_FAILED);
        let alarm = Arc::new(Alarm::default());
        // SAFETY: it was just mapped, and stays so: the test doesn't unmap it.
        let guard = unsafe { guard(start.cast(), pages * PAGE, PAGE, &alarm) }.unwrap();
        (file, start.cast(), guard, alarm)
    }

    #[test]
    fn what_is_cut_off_reads_as_zeros_and_rings() {
        let (file, start, _guard, alarm) = mapping(4);
        let (_other_file, other, _other_guard, other_alarm) = mapping(4);
        // SAFETY: both mappings have four pages.
        unsafe {
            for page in 0..4 {
                start.add(page * PAGE).write_volatile(1);
                other.add(page * PAGE).write_volatile(2);
            }
            file.set_len(PAGE as u64).unwrap();
            assert_eq!(start.read_volatile(), 1);
            assert_eq!(alarm.cause(), None);
            assert_eq!(start.add(2 * PAGE).read_volatile(), 0);
            assert_eq!(alarm.cause(), Some(Cause::LostMemory));
            start.add(3 * PAGE + 7).write_volatile(3);
            assert_eq!(start.add(3 * PAGE + 7).read_volatile(), 3);
            // The page before the first fault is still to fault.
            start.add(PAGE).write_volatile(4);
            assert_eq!(start.read_volatile(), 1, "the part that is left is the file's");
            assert_eq!(other.add(2 * PAGE).read_volatile(), 2);
        }
        assert_eq!(other_alarm.cause(), None);
    }

    #[test]
    fn many_threads_may_fault_at_once() {
        let (file, start, _guard, alarm) = mapping(256);
        file.set_len(0).unwrap();
        let start = start as usize;
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    for page in (0..256).rev() {
                        let at = (start + page * PAGE + thread) as *mut u8;
                        // SAFETY: the mapping has so many pages.
                        unsafe { at.write_volatile(1) };
                    }
                });
            }
        });
        assert_eq!(alarm.cause(), Some(Cause::LostMemory));
    }

    #[test]
    fn slots_are_used_again() {
        let (_file, _start, first, _alarm) = mapping(1);
        let slot = first.slot;
        drop(first);
        let reused = (0..100).any(|_| mapping(1).2.slot == slot);
        assert!(reused || USED.load(Relaxed) < 1000);
    }
}
