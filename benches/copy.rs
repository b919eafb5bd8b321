//! The payload copy: ns per copy of a frame's length, source and target in this core's cache
//! (`warm`) or spread over more memory than it holds (`cold`).
//!
//! `cargo bench --bench copy`. It bounds what a frame of that length can cost at least.

#![allow(missing_docs, reason = "criterion's macros")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringswitch::mem;

const SIZES: [usize; 5] = [64, 512, 1518, 9000, 65_000];
/// Bytes that `cold` goes over: more than a second-level cache.
const COLD: usize = 32 << 20;

fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("copy");
    group.warm_up_time(Duration::from_millis(30));
    group.measurement_time(Duration::from_millis(100)).sample_size(20);
    let (source, mut target) = (vec![1u8; COLD], vec![2u8; COLD]);
    for (name, span) in [("warm", 1), ("cold", COLD)] {
        for size in SIZES {
            // An odd number of cache lines from one frame to the next.
            let stride = ((size + 64).div_ceil(64) | 1) * 64;
            let mut at = 0;
            group.throughput(Throughput::Bytes(size as u64));
            group.bench_function(format!("{name}/{size}"), |bencher| {
                bencher.iter(|| {
                    at = if at + 2 * stride > span { 0 } else { at + stride };
                    // SAFETY: `at + size` lies within both, which are as long as `COLD`.
                    unsafe {
                        let (from, to) = (source.as_ptr().add(at), target.as_mut_ptr().add(at));
                        mem::copy(black_box(from), black_box(to), size);
                    }
                });
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().without_plots();
    targets = bench
}
criterion_main!(benches);
