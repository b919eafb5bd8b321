//! Counters: numbers that one thread writes and all may read.

use std::sync::atomic::{AtomicU64, Ordering};

/// A count that one thread writes and all may read.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One that begins at 0.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds `n`. Only the owning thread calls it.
    #[inline]
    pub fn add(&self, n: u64) {
        let value = self.0.load(Ordering::Relaxed);
        self.0.store(value.wrapping_add(n), Ordering::Relaxed);
    }

    /// Begins anew. Only the owning thread calls it.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// The value.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// `count` sets of counters, all 0, in memory that the kernel gives with the first write to each
/// page: a large table costs what is used of it.
#[must_use]
pub fn zeroed<const N: usize>(count: usize) -> Box<[[Counter; N]]> {
    let table = Box::<[[Counter; N]]>::new_zeroed_slice(count);
    // SAFETY: a counter is an atomic integer (`repr(transparent)`), and zero is a value of it.
    unsafe { table.assume_init() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_begin_at_zero_and_count() {
        let table = zeroed::<3>(1000);
        assert!(table.iter().flatten().all(|counter| counter.get() == 0));
        table[999][2].add(2);
        table[999][2].add(3);
        assert_eq!(table.iter().flatten().map(Counter::get).sum::<u64>(), 5);
        assert_eq!(table[999][2].get(), 5);
    }
}
