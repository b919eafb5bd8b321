//! The payload copy: ns per copy of a frame's length.
//!
//! | group | source and target |
//! |---|---|
//! | `warm` | in this core's cache |
//! | `cold` | spread over more memory than it holds |
//! | `256`, `1024` | buffers of two rings of so many entries, filled in turn; each frame was written 128 copies ago, as in `benches/peers/run` |
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
/// Bytes from one buffer to the next: what DPDK's guests have.
const BUFFER: usize = 2048 + 256;
/// Frames that are under way in a ring's buffers.
const UNDER_WAY: usize = 128;

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
    for entries in [256, 1024] {
        let count = 2 * entries;
        let mut slot = 0;
        for size in [512, 1518] {
            group.throughput(Throughput::Bytes(size as u64));
            group.bench_function(format!("{entries}/{size}"), |bencher| {
                bencher.iter(|| {
                    slot = (slot + 1) % count;
                    let from = (slot + count - UNDER_WAY) % count;
                    // SAFETY: both buffers lie within `target`, and are different ones.
                    unsafe {
                        let target = target.as_mut_ptr();
                        let (from, to) = (target.add(from * BUFFER), target.add(slot * BUFFER));
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
