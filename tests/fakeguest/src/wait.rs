//! Waiting for a descriptor to become readable, with a time limit.

use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

/// Waits until `fd` is readable or `timeout` has passed; tells which.
pub(crate) fn readable(fd: &impl AsRawFd, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that a wait of less than a millisecond does not turn into a busy loop.
        let millis = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        if poll_once(fd.as_raw_fd(), millis) {
            return true;
        }
        if left.is_zero() {
            return false;
        }
    }
}

fn poll_once(fd: RawFd, millis: i32) -> bool {
    let mut entry = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: `entry` is one valid pollfd that lives across the call, and the count says one.
    let ready = unsafe { libc::poll(&raw mut entry, 1, millis) };
    ready > 0 && entry.revents & libc::POLLIN != 0
}
