//! Where times are collected, for quantiles of all of them.

/// One-way times in TSC cycles, each within 3% (32 buckets per power of two).
pub struct Histogram {
    buckets: Vec<u64>,
    /// How many values there are.
    pub count: u64,
}

impl Histogram {
    /// An empty one.
    pub fn new() -> Histogram {
        Histogram { buckets: vec![0; 64 * 32], count: 0 }
    }

    /// Forgets all values.
    pub fn clear(&mut self) {
        self.buckets.fill(0);
        self.count = 0;
    }

    fn bucket(value: u64) -> usize {
        let shift = (64 - value.leading_zeros()).saturating_sub(6);
        (shift as usize) * 32 + (value >> shift) as usize
    }

    /// Counts a value `count` times.
    pub fn add(&mut self, value: u64, count: u64) {
        self.buckets[Histogram::bucket(value)] += count;
        self.count += count;
    }

    /// The middle of the bucket that the share `part` of all values doesn't exceed.
    pub fn quantile(&self, part: f64) -> u64 {
        let wanted = ((self.count as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.buckets.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        let Some(bucket) = found else { return 0 };
        // Buckets 0 to 63 are exact; those above have their shift in the bits from 32 on.
        let shift = (bucket / 32).saturating_sub(1);
        (((bucket - shift * 32) as u64) << shift) + (1 << shift >> 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_three_per_cent() {
        let mut times = Histogram::new();
        for value in 1..=100_000 {
            times.add(value, 1);
        }
        for (part, expected) in [(0.5, 50_000.0), (0.99, 99_000.0), (0.0001, 10.0)] {
            let got = times.quantile(part) as f64;
            assert!((got / expected - 1.0).abs() < 0.032, "{part}: {got}");
        }
        times.clear();
        times.add(u64::MAX, 1);
        assert!(times.quantile(0.5) > u64::MAX / 33 * 32);
    }
}
