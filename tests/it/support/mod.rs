//! What the tests drive: processes, namespaces, the switch, and guests nobody here wrote.
//!
//! Everything is released on drop, children by their own process id. Trouble is a panic with the
//! log of the process concerned.

pub mod balance;
pub mod http;
pub mod lan;
pub mod machines;
pub mod netns;
pub mod precopy;
pub mod proc;
pub mod qemu;
pub mod stream;
pub mod switch;
pub mod testpmd;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Runs tests over guests with rings of both formats: each takes the feature bit that says which.
macro_rules! over_both_formats {
    ($($name:ident)*) => {
        mod split {
            $(#[test] fn $name() { super::$name(0) })*
        }
        mod packed {
            $(#[test] fn $name() { super::$name(fakeguest::features::RING_PACKED) })*
        }
    };
}
pub(crate) use over_both_formats;

/// Calls `probe` until it returns something, for at most `timeout`; panics with `what` otherwise.
pub fn wait_for<T>(what: &str, timeout: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "within {timeout:?} there was no {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Sets a flag when it goes, on a panic too: threads that look at it end.
pub struct Raise<'a>(pub &'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A name that no other test, thread or run uses at this time, of at most 13 characters.
pub fn unique(prefix: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}{:x}-{count:x}", std::process::id())
}
