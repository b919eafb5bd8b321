//! Sleeping until a descriptor has something to say: epoll, and a way to end the sleep.
//!
//! Owns the epoll instance and nothing else: the descriptors in it belong to the caller.
//!
//! # Theory of operation
//!
//! A worker sleeps in [`Poller::wait`] on the kick eventfds of its rings and on its taps. Control
//! threads add and remove descriptors meanwhile; the kernel's interest list is the only shared
//! state, so `Poller` is `Send + Sync` without a lock.
//!
//! **Kick eventfds are added with [`Trigger::Edge`] and never read.** Each write to an eventfd
//! wakes its waiters whether or not the counter was zero before, and an edge-triggered entry is
//! queued by that wake-up, not by the counter's value. So every kick after the last `wait` is
//! reported once, several kicks are one event, and a wake costs no `read(2)`. The counter grows by
//! one a kick; it would take 2^64 of them to reach its limit. An eventfd that was written before
//! it was added is reported by the first `wait` (epoll samples readiness on insertion), so no kick
//! is lost between a ring's start and its `add`.
//!
//! **Remove before you close.** epoll keys an entry by the open file, and a frontend keeps a
//! duplicate of each descriptor that it sent: closing ours does not remove the entry, and without
//! the descriptor nobody can. A stale entry would go on reporting its token.
//!
//! A token may also be reported without cause (a frontend may send any pollable descriptor as a
//! kick, and errors and hang-ups are reported like input): treat it as a hint to look.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use epoll::ControlOptions::{EPOLL_CTL_ADD, EPOLL_CTL_DEL};
use vmm_sys_util::eventfd::EventFd;

/// When a descriptor is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// Once for each arrival of input: for eventfds that are never read.
    Edge,
    /// At each wait while there is input: for taps and sockets.
    Level,
}

/// The tokens that one [`Poller::wait`] reported. Made once and reused: no allocation afterwards.
#[derive(Debug)]
pub struct Events {
    buffer: Box<[epoll::Event]>,
    ready: usize,
}

impl Events {
    /// Room for `capacity` (at least one) tokens a wait; what does not fit is reported by the next
    /// wait, the kernel takes turns.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        let empty = epoll::Event::new(epoll::Events::empty(), 0);
        Self { buffer: vec![empty; capacity.max(1)].into_boxed_slice(), ready: 0 }
    }

    /// The tokens of the last wait.
    pub fn tokens(&self) -> impl Iterator<Item = u64> + '_ {
        self.buffer.iter().take(self.ready).map(|event| event.data)
    }
}

/// An epoll instance. See the module's text for how kicks and closing work.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// A new, empty epoll instance (close-on-exec).
    ///
    /// # Errors
    /// The error of `epoll_create1(2)`: the process or the host is out of descriptors.
    pub fn new() -> io::Result<Self> {
        let fd = epoll::create(true)?;
        // SAFETY: epoll_create1 just returned this descriptor, nobody else owns it.
        let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { epoll })
    }

    /// Reports `token` whenever `fd` has input, an error or a hang-up.
    ///
    /// # Errors
    /// The error of `epoll_ctl(2)`: `AlreadyExists` when `fd` is in, `PermissionDenied` when it
    /// cannot be polled at all (a regular file), or the host's `max_user_watches` is reached.
    pub fn add(&self, fd: BorrowedFd<'_>, token: u64, trigger: Trigger) -> io::Result<()> {
        let mut interest = epoll::Events::EPOLLIN;
        if trigger == Trigger::Edge {
            interest |= epoll::Events::EPOLLET;
        }
        let event = epoll::Event::new(interest, token);
        epoll::ctl(self.epoll.as_raw_fd(), EPOLL_CTL_ADD, fd.as_raw_fd(), event)
    }

    /// Stops reporting `fd`. A wait that runs now may still report its token once.
    ///
    /// # Errors
    /// The error of `epoll_ctl(2)`, save that a descriptor that is not in is none.
    pub fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let event = epoll::Event::new(epoll::Events::empty(), 0);
        match epoll::ctl(self.epoll.as_raw_fd(), EPOLL_CTL_DEL, fd.as_raw_fd(), event) {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EBADF)) => {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Sleeps until something is reported or `timeout` passes (`None`: no limit; zero: only look).
    /// Returns how many tokens `events` holds then: 0 after the timeout or a signal.
    ///
    /// # Errors
    /// The error of `epoll_wait(2)`; none is expected on an open instance.
    pub fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<usize> {
        if let Some(limit) = timeout.filter(|limit| limit.subsec_nanos() % 1_000_000 != 0) {
            return self.wait_precisely(events, limit);
        }
        let milliseconds =
            timeout.map_or(-1, |limit| i32::try_from(limit.as_millis()).unwrap_or(i32::MAX));
        events.ready = 0;
        match epoll::wait(self.epoll.as_raw_fd(), milliseconds, &mut events.buffer) {
            Ok(count) => events.ready = count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(events.ready)
    }

    /// As [`Self::wait`], with a timeout of less than a millisecond in it, which the `epoll` crate
    /// can't express (epoll_pwait2(2), Linux 5.11).
    fn wait_precisely(&self, events: &mut Events, limit: Duration) -> io::Result<usize> {
        let timeout = libc::timespec {
            tv_sec: limit.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        events.ready = 0;
        let room = i32::try_from(events.buffer.len()).unwrap_or(i32::MAX);
        // SAFETY: `epoll::Event` is laid out as `epoll_event` by its definition; the buffer has
        // `room` of them, and the timeout and no signal mask are valid for the call.
        let count = unsafe {
            let buffer = events.buffer.as_mut_ptr().cast();
            libc::epoll_pwait2(self.epoll.as_raw_fd(), buffer, room, &timeout, std::ptr::null())
        };
        match usize::try_from(count) {
            Ok(count) => events.ready = count,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
        Ok(events.ready)
    }
}

/// Ends a [`Poller::wait`] from another thread: an edge-triggered eventfd that is never read.
/// Dropping it takes it out of the poller, since nobody holds a duplicate.
#[derive(Debug)]
pub struct Waker {
    event: EventFd,
}

impl Waker {
    /// Makes a waker that `poller` reports as `token`.
    ///
    /// # Errors
    /// The error of `eventfd(2)` or `epoll_ctl(2)`: out of descriptors or watches.
    pub fn new(poller: &Poller, token: u64) -> io::Result<Self> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        // SAFETY: `event` owns the descriptor and lives past this use.
        let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
        poller.add(fd, token, Trigger::Edge)?;
        Ok(Self { event })
    }

    /// Ends the wait that runs now, or the next one. Many wakes before a wait are one event.
    pub fn wake(&self) {
        // The only failure of a non-blocking eventfd is a full counter, after 2^64 - 2 wakes.
        let _ = self.event.write(1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc;

    use super::*;

    const NONE: [u64; 0] = [];
    const LOOK: Option<Duration> = Some(Duration::ZERO);
    const LONG: Option<Duration> = Some(Duration::from_secs(10));

    fn eventfd() -> EventFd {
        EventFd::new(libc::EFD_NONBLOCK).unwrap()
    }

    fn borrow(event: &EventFd) -> BorrowedFd<'_> {
        // SAFETY: the descriptor lives as long as `event`, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
    }

    fn look(poller: &Poller, events: &mut Events) -> Vec<u64> {
        poller.wait(events, LOOK).unwrap();
        let mut tokens: Vec<u64> = events.tokens().collect();
        tokens.sort_unstable();
        tokens
    }

    #[test]
    fn each_write_is_an_edge_though_nobody_reads() {
        let (poller, mut events, kick) =
            (Poller::new().unwrap(), Events::with_capacity(4), eventfd());
        poller.add(borrow(&kick), 7, Trigger::Edge).unwrap();
        assert_eq!(look(&poller, &mut events), NONE);
        for _ in 0..5 {
            kick.write(1).unwrap();
            assert_eq!(look(&poller, &mut events), [7]);
            assert_eq!(look(&poller, &mut events), NONE, "one report a write");
        }
        kick.write(1).unwrap();
        kick.write(1).unwrap();
        kick.write(1).unwrap();
        assert_eq!(look(&poller, &mut events), [7], "writes between two waits are one event");
        assert_eq!(look(&poller, &mut events), NONE);
        assert_eq!(kick.read().unwrap(), 8, "the counter was never touched");
    }

    #[test]
    fn a_write_before_add_is_reported() {
        let (poller, mut events, kick) =
            (Poller::new().unwrap(), Events::with_capacity(4), eventfd());
        kick.write(1).unwrap();
        poller.add(borrow(&kick), 1, Trigger::Edge).unwrap();
        assert_eq!(look(&poller, &mut events), [1]);
        assert_eq!(look(&poller, &mut events), NONE);
    }

    #[test]
    fn level_is_reported_until_read() {
        let (poller, mut events, kick) =
            (Poller::new().unwrap(), Events::with_capacity(4), eventfd());
        poller.add(borrow(&kick), 1, Trigger::Level).unwrap();
        kick.write(1).unwrap();
        assert_eq!(look(&poller, &mut events), [1]);
        assert_eq!(look(&poller, &mut events), [1]);
        kick.read().unwrap();
        assert_eq!(look(&poller, &mut events), NONE);
    }

    #[test]
    fn a_duplicate_keeps_reporting_until_removed() {
        let (poller, mut events, kick) =
            (Poller::new().unwrap(), Events::with_capacity(4), eventfd());
        let frontend = kick.try_clone().unwrap();
        poller.add(borrow(&kick), 1, Trigger::Edge).unwrap();
        poller.remove(borrow(&kick)).unwrap();
        frontend.write(1).unwrap();
        assert_eq!(look(&poller, &mut events), NONE);
        poller.remove(borrow(&kick)).unwrap();
        poller.add(borrow(&kick), 2, Trigger::Edge).unwrap();
        assert_eq!(look(&poller, &mut events), [2], "may be added again");
        let again = poller.add(borrow(&kick), 3, Trigger::Edge).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn more_events_than_room_come_in_turns() {
        let (poller, mut events) = (Poller::new().unwrap(), Events::with_capacity(3));
        let kicks: Vec<EventFd> = (0..10).map(|_| eventfd()).collect();
        for (token, kick) in (0u64..).zip(&kicks) {
            poller.add(borrow(kick), token, Trigger::Edge).unwrap();
            kick.write(1).unwrap();
        }
        let mut seen: Vec<u64> = (0..4).flat_map(|_| look(&poller, &mut events)).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..10).collect::<Vec<u64>>());
        assert_eq!(look(&poller, &mut events), NONE);
    }

    #[test]
    fn a_regular_file_is_refused() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let error = Poller::new()
            .unwrap()
            .add(std::os::fd::AsFd::as_fd(&file), 0, Trigger::Edge)
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn other_threads_wake_add_and_remove() {
        let poller = Arc::new(Poller::new().unwrap());
        let waker = Waker::new(&poller, 99).unwrap();
        let (report, reports) = mpsc::channel();
        let worker = std::thread::spawn({
            let poller = Arc::clone(&poller);
            move || {
                let mut events = Events::with_capacity(8);
                loop {
                    poller.wait(&mut events, None).unwrap();
                    for token in events.tokens() {
                        report.send(token).unwrap();
                        if token == 1 {
                            return;
                        }
                    }
                }
            }
        });
        let receive = || reports.recv_timeout(LONG.unwrap()).unwrap();
        waker.wake();
        assert_eq!(receive(), 99);
        waker.wake();
        assert_eq!(receive(), 99, "a waker works again without a read");
        let (kick, last) = (eventfd(), eventfd());
        kick.write(1).unwrap();
        poller.add(borrow(&kick), 42, Trigger::Edge).unwrap();
        assert_eq!(receive(), 42, "added while the worker sleeps");
        poller.remove(borrow(&kick)).unwrap();
        kick.write(1).unwrap();
        poller.add(borrow(&last), 1, Trigger::Level).unwrap();
        last.write(1).unwrap();
        assert_eq!(receive(), 1, "and nothing of the removed one before it");
        worker.join().unwrap();
    }

    #[test]
    fn a_wake_before_the_wait_counts_and_dropping_the_waker_ends_it() {
        let (poller, mut events) = (Poller::new().unwrap(), Events::with_capacity(4));
        let waker = Waker::new(&poller, 5).unwrap();
        waker.wake();
        assert_eq!(poller.wait(&mut events, None).unwrap(), 1);
        waker.wake();
        drop(waker);
        assert_eq!(look(&poller, &mut events), NONE);
    }
}
