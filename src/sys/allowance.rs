//! What somebody may take of something that others need, too: a share for good, and some at once.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// An account that fills up with time. Threads may share it: what they take at the same moment is
/// counted within a little.
#[derive(Debug)]
pub struct Allowance {
    /// One part in so many of the time is given.
    part: u64,
    /// The most that can be saved, ns.
    most: u64,
    /// When the account will be full again, ns of the monotonic clock.
    full_at: AtomicU64,
}

impl Allowance {
    /// A full account of `most` nanoseconds that gets one nanosecond in `part`.
    #[must_use]
    pub const fn new(most: u64, part: u64) -> Self {
        Self { part, most, full_at: AtomicU64::new(0) }
    }

    /// What is there at `now`, ns. Nothing if more was spent than there was.
    pub fn left(&self, now: u64) -> u64 {
        let missing = self.full_at.load(Relaxed).saturating_sub(now);
        self.most.saturating_sub(missing / self.part)
    }

    /// Takes `spent` nanoseconds away, whether they are there or not.
    pub fn spend(&self, now: u64, spent: u64) {
        let from = self.full_at.load(Relaxed).max(now);
        self.full_at.store(from.saturating_add(spent.saturating_mul(self.part)), Relaxed);
    }

    /// How long to wait from `now` on until no more was spent than there was, ns.
    pub fn debt(&self, now: u64) -> u64 {
        let missing = self.full_at.load(Relaxed).saturating_sub(now);
        missing.saturating_sub(self.most.saturating_mul(self.part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fills_up_and_no_further() {
        let account = Allowance::new(1000, 100);
        let now = 1_000_000;
        assert_eq!((account.left(now), account.debt(now)), (1000, 0));
        account.spend(now, 300);
        assert_eq!((account.left(now), account.debt(now)), (700, 0));
        assert_eq!(account.left(now + 10_000), 800);
        assert_eq!(account.left(now + 1_000_000), 1000);
        account.spend(now, 900);
        assert_eq!((account.left(now), account.debt(now)), (0, 20_000));
        assert_eq!((account.left(now + 20_000), account.debt(now + 20_000)), (0, 0));
        assert_eq!(account.left(now + 30_000), 100);
    }
}
