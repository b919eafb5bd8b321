//! How long frames were in the switch: quantiles of what its workers counted.

use ringswitch::api::{Latency, LatencyBucket};

/// What a share `part` of the frames took at most, in seconds, of those that came since `before`.
/// None if none came. Within a bucket, times are taken to be spread evenly.
pub fn quantile(now: &Latency, before: Option<&Latency>, part: f64) -> Option<f64> {
    let gained = |bucket: &LatencyBucket| {
        let same = |then: &&LatencyBucket| then.from_ns == bucket.from_ns;
        let then = before.and_then(|before| before.buckets.iter().find(same));
        // Another process may have taken over: its counters begin anew.
        let gained = bucket.frames.checked_sub(then.map_or(0, |then| then.frames));
        gained.unwrap_or(bucket.frames)
    };
    let all: u64 = now.buckets.iter().map(gained).sum();
    let mut left = all as f64 * part;
    for bucket in &now.buckets {
        let frames = gained(bucket) as f64;
        if frames > 0.0 && left <= frames {
            let (from, upto) = (bucket.from_ns, bucket.upto_ns.unwrap_or(bucket.from_ns));
            return Some((from as f64 + (upto - from) as f64 * left / frames) / 1e9);
        }
        left -= frames;
    }
    None
}

/// A time in microseconds, without the unit.
pub fn micros(time: Option<f64>) -> String {
    time.map_or_else(|| "-".to_owned(), |secs| format!("{:.1}", secs * 1e6))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latency(buckets: &[(u64, Option<u64>, u64)]) -> Latency {
        let bucket = |&(from_ns, upto_ns, frames)| LatencyBucket { from_ns, upto_ns, frames };
        Latency { sum_seconds: 0.0, buckets: buckets.iter().map(bucket).collect() }
    }

    #[test]
    fn quantiles_are_of_the_frames_since_another_look() {
        let then = latency(&[(1000, Some(2000), 500), (10_000, None, 7)]);
        let now = latency(&[(1000, Some(2000), 590), (3000, Some(5000), 10), (10_000, None, 7)]);
        let text = |part| micros(quantile(&now, Some(&then), part));
        assert_eq!([0.45, 0.9, 0.95, 1.0].map(text), ["1.5", "2.0", "4.0", "5.0"]);
        assert_eq!(micros(quantile(&now, Some(&now), 0.5)), "-", "nothing came");
        assert_eq!(micros(quantile(&now, None, 1.0)), "10.0", "longer than that");
        assert_eq!(micros(quantile(&latency(&[]), None, 0.5)), "-");
        let anew = latency(&[(1000, Some(2000), 10)]);
        assert_eq!(micros(quantile(&anew, Some(&now), 0.5)), "1.5", "another process");
    }
}
