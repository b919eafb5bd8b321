//! How long frames are in the switch: from the moment at which a worker begins to read the burst that
//! they are of, to the moment at which that burst is delivered and its buffers are given back. What a
//! frame waits in its sender's ring before is not in it: only the guest knows when that began.
//!
//! The worker measures each burst anyway, in cycles of the time-stamp counter, to charge it to a port
//! ([`super::budget`]). Here its frames are counted in a bucket by that time: powers of two, each in
//! [`PARTS`] equal parts, so that a time is known to an eighth. Whoever reads makes seconds of it.

use crate::sys::counter::Counter;

/// Buckets between a power of two and the next.
const PARTS: u64 = 8;
const PARTS_LOG: u32 = PARTS.trailing_zeros();
/// The last bucket begins at 2 to this power: about a second and a half. All that is longer is in it.
const LAST_LOG: u32 = 32;
/// Times below [`PARTS`] have a bucket each.
const BUCKETS: usize = (LAST_LOG - PARTS_LOG + 1) as usize * PARTS as usize + 1;

/// A worker's buckets.
#[derive(Debug)]
pub struct Latency {
    buckets: [Counter; BUCKETS],
    /// The times of all frames, summed, cycles.
    sum: Counter,
}

impl Default for Latency {
    fn default() -> Self {
        Self { buckets: [const { Counter::new() }; BUCKETS], sum: Counter::new() }
    }
}

impl Latency {
    /// Counts the frames of a burst that took `cycles`. Only the owning worker calls it.
    #[inline]
    pub fn count(&self, frames: u64, cycles: u64) {
        if let Some(bucket) = self.buckets.get(index(cycles)) {
            bucket.add(frames);
        }
        self.sum.add(frames.wrapping_mul(cycles));
    }

    /// The times of all frames, summed, cycles.
    pub fn sum(&self) -> u64 {
        self.sum.get()
    }

    /// Each bucket that has frames: a time in its middle, cycles, and how many they are.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        let buckets = self.buckets.iter().enumerate();
        buckets.map(|(index, count)| (middle(index), count.get())).filter(|(_, count)| *count > 0)
    }
}

/// The bucket of a time.
#[inline]
fn index(cycles: u64) -> usize {
    if cycles < PARTS {
        return cycles as usize;
    }
    let log = cycles.ilog2();
    let part = cycles >> (log - PARTS_LOG);
    let index = u64::from(log - PARTS_LOG) * PARTS + part;
    (index as usize).min(BUCKETS - 1)
}

/// A time in the middle of a bucket.
fn middle(index: usize) -> u64 {
    let index = index as u64;
    let Some(shift) = (index / PARTS).checked_sub(1) else { return index };
    let begin = (index % PARTS + PARTS) << shift;
    begin + (1 << shift) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_times_within_an_eighth() {
        let times = (0..200).chain((8..LAST_LOG).flat_map(|log| {
            let one = 1u64 << log;
            [one - 1, one, one + one / 3, one + one / 2 + 1]
        }));
        let mut last = 0;
        for time in times {
            let middle = middle(index(time));
            assert!(middle.abs_diff(time) * 16 <= time, "{time} is taken for {middle}");
            assert!(index(time) >= last || time < 300, "{time}");
            last = index(time);
        }
        assert_eq!(index(1 << LAST_LOG), BUCKETS - 1);
        assert_eq!(index(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn frames_are_counted_by_the_time_of_their_burst() {
        let latency = Latency::default();
        latency.count(64, 1000);
        latency.count(1, 1001);
        latency.count(3, 70_000);
        let buckets: Vec<_> = latency.buckets().collect();
        assert_eq!(buckets, [(992, 65), (69_632, 3)]);
        assert_eq!(latency.sum(), 64_000 + 1001 + 210_000);
    }
}
