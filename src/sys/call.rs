//! Writing to an eventfd that a peer shares: calls of guests.
//!
//! Such an eventfd is made non-blocking when it comes. But that belongs to the open file: a peer can
//! make it block again and fill its counter, and whoever writes to it then waits for ever. Asking
//! before writing doesn't help, since the peer can be faster; and there is no way of writing that
//! never waits and costs no more (`pwritev2` with RWF_NOWAIT isn't served by eventfds; a completion
//! of io_uring or AIO would be two or three times the price of a call, for each).
//!
//! # Theory of operation
//!
//! A thread notes in a slot of its own when it is in such a write, by a count that is odd then. A
//! [`Watch`] looks at the slots again and again, and sends a signal to a thread that is in the same
//! write as at the last look. The handler does nothing, but a write that waits ends with EINTR; the
//! call is then never made again, and its [`Alarm`] has the connection ended. A signal that comes
//! before the write waits changes nothing: the next look sends another one. Nor does it if the
//! thread isn't waiting but was held up by the scheduler, however long.
//!
//! The watch costs nothing while nobody is called: it sleeps then, and the next call wakes it up.

use std::cell::OnceCell;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize};
use std::thread::Thread;
use std::time::Duration;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use super::fault::{Alarm, Cause};

/// Ignored by those that don't handle it, and of no use to anybody else here.
const SIGNAL: libc::c_int = libc::SIGURG;
/// The time between two looks while somebody is called.
const TICK: Duration = Duration::from_millis(10);
/// After so many looks without a call in between, the watch sleeps.
const QUIET_LOOKS: u32 = 100;
/// The most threads that are watched at a time.
const SLOTS: usize = 8192;

static TABLE: [Slot; SLOTS] = [const { Slot::new() }; SLOTS];
/// Slots from here on were never used.
static USED: AtomicUsize = AtomicUsize::new(0);
/// The slots below `USED` that are free.
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());
/// Whether the watch looks, or there is none.
static AWAKE: AtomicBool = AtomicBool::new(true);
/// The thread that looks.
static WATCHER: Mutex<Option<Thread>> = Mutex::new(None);

/// What is known of a thread.
struct Slot {
    /// Odd while the thread is in a write.
    writes: AtomicU64,
    /// The thread; 0: none.
    thread: AtomicI32,
}

impl Slot {
    const fn new() -> Self {
        Self { writes: AtomicU64::new(0), thread: AtomicI32::new(0) }
    }
}

/// A thread's slot, given back when the thread ends.
struct Own(Option<&'static Slot>, usize);

impl Own {
    fn new() -> Self {
        let index = FREE.lock().pop().unwrap_or_else(|| USED.fetch_add(1, SeqCst));
        let slot = TABLE.get(index);
        if let Some(slot) = slot {
            unblock();
            // SAFETY: takes no arguments, and never fails.
            slot.thread.store(unsafe { libc::gettid() }, SeqCst);
        }
        Self(slot, index)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(slot) = self.0 {
            slot.thread.store(0, SeqCst);
            FREE.lock().push(self.1);
        }
    }
}

thread_local! {
    static OWN: OnceCell<Own> = const { OnceCell::new() };
}

/// An eventfd that a peer gave us to signal.
#[derive(Debug)]
pub struct Call {
    event: EventFd,
    alarm: Option<Arc<Alarm>>,
    /// A write to it had to be ended: there is never another one.
    blocked: AtomicBool,
}

impl Call {
    /// A call that rings `alarm` if the peer has it block.
    #[must_use]
    pub fn new(event: EventFd, alarm: Arc<Alarm>) -> Self {
        Self { event, alarm: Some(alarm), blocked: AtomicBool::new(false) }
    }

    /// A duplicate of the eventfd.
    ///
    /// # Errors
    ///
    /// The process is out of descriptors.
    pub fn event(&self) -> io::Result<EventFd> {
        self.event.try_clone()
    }

    /// Signals the peer. Returns whether it was: a full counter has a call pending already.
    pub fn signal(&self) -> bool {
        if self.blocked.load(Relaxed) {
            return false;
        }
        // At a thread's end, when its slot is gone, nobody is called.
        let written = OWN.try_with(|own| write(own.get_or_init(Own::new).0, &self.event));
        match written {
            Ok(Ok(())) => true,
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {
                self.blocked.store(true, Relaxed);
                if let Some(alarm) = &self.alarm {
                    alarm.ring(Cause::BlockingCall);
                }
                false
            }
            _ => false,
        }
    }
}

impl From<EventFd> for Call {
    /// An eventfd that no peer shares, or whose peer is trusted.
    fn from(event: EventFd) -> Self {
        Self { event, alarm: None, blocked: AtomicBool::new(false) }
    }
}

/// Writes to an eventfd, under watch.
#[inline]
fn write(slot: Option<&Slot>, event: &EventFd) -> io::Result<()> {
    let Some(slot) = slot else { return write_once(event) };
    slot.writes.fetch_add(1, SeqCst);
    if !AWAKE.load(SeqCst) {
        wake();
    }
    let result = write_once(event);
    slot.writes.fetch_add(1, SeqCst);
    result
}

/// Adds 1 to the counter. Unlike `EventFd::write` it doesn't try again after a signal.
fn write_once(event: &EventFd) -> io::Result<()> {
    let one = 1u64.to_ne_bytes();
    // SAFETY: `one` is readable for its length, and the descriptor is open.
    let written = unsafe { libc::write(event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cold]
fn wake() {
    AWAKE.store(true, SeqCst);
    if let Some(thread) = &*WATCHER.lock() {
        thread.unpark();
    }
}

/// What looks at the threads that are in a write. There is one in a process.
#[derive(Debug)]
pub struct Watch {
    /// What the last look saw: the `writes` of each slot.
    seen: Vec<u64>,
    quiet: u32,
}

impl Watch {
    /// A watch that hasn't looked yet. From now on the signal has a handler.
    ///
    /// # Errors
    ///
    /// The error of `sigaction(2)`; none is expected.
    pub fn new() -> io::Result<Self> {
        // SAFETY: an all-zero sigaction is a valid value of this plain C struct.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_signal as *const () as usize;
        // Without SA_RESTART: what the signal ends stays ended. Without SA_ONSTACK: see `fault`.
        action.sa_flags = 0;
        // SAFETY: the action is valid, and its handler does nothing.
        let result = unsafe { libc::sigaction(SIGNAL, &raw const action, std::ptr::null_mut()) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { seen: Vec::new(), quiet: 0 })
    }

    /// Makes the calling thread the one that looks: it is unparked when there is something to see.
    pub fn attach(&self) {
        *WATCHER.lock() = Some(std::thread::current());
    }

    /// Ends writes that were there at the last look. Returns when to look again; None: when the
    /// thread is unparked.
    pub fn look(&mut self) -> Option<Duration> {
        self.quiet = if self.see() { 0 } else { self.quiet.saturating_add(1) };
        if self.quiet >= QUIET_LOOKS {
            AWAKE.store(false, SeqCst);
            // Who began a write before that didn't wake us.
            if !self.see() {
                return None;
            }
            self.quiet = 0;
        }
        AWAKE.store(true, SeqCst);
        Some(TICK)
    }

    /// Looks at all slots. Returns whether there was or is a write.
    fn see(&mut self) -> bool {
        let slots = TABLE.iter().take(USED.load(SeqCst));
        self.seen.resize(slots.len(), 0);
        let mut any = false;
        for (slot, seen) in slots.zip(&mut self.seen) {
            let writes = slot.writes.load(SeqCst);
            let is_writing = writes % 2 == 1;
            any |= is_writing || writes != *seen;
            if is_writing && writes == *seen {
                interrupt(slot.thread.load(SeqCst));
            }
            *seen = writes;
        }
        any
    }
}

/// Sends the signal to a thread of this process.
fn interrupt(thread: libc::pid_t) {
    if thread != 0 {
        // SAFETY: takes no pointers. A thread that has ended meanwhile is an error without effect;
        // if another one has its number by now, that one's handler does nothing either.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, SIGNAL) };
    }
}

extern "C" fn on_signal(_: libc::c_int) {}

/// Lets the signal come to the calling thread: who started the process may have blocked it.
fn unblock() {
    // SAFETY: an all-zero set is a valid value of this plain C struct; the calls fill and read it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, SIGNAL);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Without a watch of its own: the table is the whole process's.
    fn blocking(counter: u64) -> EventFd {
        let event = EventFd::new(0).unwrap();
        if counter > 0 {
            event.write(counter).unwrap();
        }
        event
    }

    #[test]
    fn a_write_that_waits_is_ended_and_others_are_not() {
        let alarm = Arc::new(Alarm::default());
        let call = Call::new(blocking(u64::MAX - 1), Arc::clone(&alarm));
        let (done, ended) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let first = call.signal();
            done.send(()).unwrap();
            // It would wait again.
            (first, call.signal())
        });
        let mut watch = Watch::new().unwrap();
        let start = std::time::Instant::now();
        while ended.try_recv().is_err() {
            assert!(start.elapsed() < Duration::from_secs(60), "it waits for ever");
            assert_eq!(watch.look(), Some(TICK));
            std::thread::sleep(TICK);
        }
        assert_eq!(thread.join().unwrap(), (false, false));
        assert_eq!(alarm.cause(), Some(Cause::BlockingCall));

        // A full counter that doesn't block, and one with room.
        let full = blocking(u64::MAX - 1);
        // SAFETY: F_SETFL takes an int, and the descriptor is open.
        unsafe { libc::fcntl(full.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        let alarm = Arc::new(Alarm::default());
        assert!(!Call::new(full, Arc::clone(&alarm)).signal());
        assert!(Call::new(blocking(0), Arc::clone(&alarm)).signal());
        assert!(Call::from(blocking(1)).signal());
        assert_eq!(alarm.cause(), None);
    }
}
