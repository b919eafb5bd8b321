//! What can be seen of a receive ring without its lock.
//!
//! One word, which whoever has the ring's lock writes and all may read. A worker leaves there what
//! its look ahead found behind a burst, so that nobody who wants to know holds up a worker, and
//! nobody but workers and control reads guest memory.

use std::sync::atomic::{AtomicU64, Ordering};

/// The ring runs.
const RUNS: u64 = 1 << 32;
/// It is packed.
const PACKED: u64 = 1 << 33;
/// There was a look at its buffers since it runs.
const SEEN: u64 = 1 << 34;

/// The word. In a cache line of its own: it is written behind each burst.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Gauge(AtomicU64);

/// What is known of a ring that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Number of entries.
    pub size: u16,
    /// Whether it is packed.
    pub packed: bool,
    /// Entries with buffers that were left behind the last burst; None before the first one. Of a
    /// packed ring only those that were looked at, 64 or a few more, are known.
    pub buffers: Option<u16>,
}

impl Gauge {
    /// The ring runs from now on.
    pub(super) fn start(&self, size: u16, packed: bool) {
        let packed = if packed { PACKED } else { 0 };
        self.0.store(RUNS | packed | u64::from(size), Ordering::Relaxed);
    }

    /// So many entries with buffers are left.
    #[inline]
    pub(super) fn look(&self, buffers: u16) {
        let ring = self.0.load(Ordering::Relaxed) & (RUNS | PACKED | u64::from(u16::MAX));
        self.0.store(ring | SEEN | u64::from(buffers) << 16, Ordering::Relaxed);
    }

    /// The ring doesn't run any more.
    pub(super) fn stop(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// What is known of the ring; None if it doesn't run.
    pub fn read(&self) -> Option<Fill> {
        let word = self.0.load(Ordering::Relaxed);
        let has = |bit| word & bit != 0;
        has(RUNS).then_some(Fill {
            size: word as u16,
            packed: has(PACKED),
            buffers: has(SEEN).then_some((word >> 16) as u16),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let gauge = Gauge::default();
        assert_eq!(gauge.read(), None);
        gauge.start(32768, true);
        assert_eq!(gauge.read(), Some(Fill { size: 32768, packed: true, buffers: None }));
        for buffers in [0, 64, 32768] {
            gauge.look(buffers);
            let fill = Fill { size: 32768, packed: true, buffers: Some(buffers) };
            assert_eq!(gauge.read(), Some(fill));
        }
        gauge.start(256, false);
        assert_eq!(gauge.read(), Some(Fill { size: 256, packed: false, buffers: None }));
        gauge.stop();
        assert_eq!(gauge.read(), None);
    }
}
