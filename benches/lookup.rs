//! The MAC table: look-ups and learning with 10 to 100,000 addresses, one at a time and a burst at
//! a time with prefetch, as the forwarding stage does.
//!
//! `cargo bench --bench lookup`. A time is ns per address. Addresses come in an order without a
//! pattern, so a large table's lines come from whichever cache holds them.

#![allow(missing_docs, reason = "criterion's macros")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use ringswitch::table::mac::{MacTable, MacTableConfig};

/// Addresses in the table.
const COUNTS: [u64; 5] = [10, 100, 1_000, 10_000, 100_000];
/// Addresses of a burst.
const BURST: usize = 64;
/// The defaults of `[mac-table]`.
const TABLE: MacTableConfig = MacTableConfig { capacity: 131_072, ageing_secs: 300, seed: 1 };
/// Above all learned addresses.
const UNKNOWN: u64 = 1 << 24;
/// A prime above 100,000, so that its multiples meet each of `count` addresses in no order.
const STRIDE: u64 = 1_000_003;

/// Address number `index` of `count`.
fn address(index: u64, count: u64) -> u64 {
    0x0200_0000_0000 + index.wrapping_mul(STRIDE) % count
}

/// The time of `work` for `wanted` addresses, which are made before the clock runs.
fn time(wanted: u64, count: u64, offset: u64, mut work: impl FnMut(&[u64])) -> Duration {
    let (mut elapsed, mut at) = (Duration::ZERO, 0);
    while at < wanted {
        let mut burst = [0; 16 * BURST];
        burst.iter_mut().zip(at..).for_each(|(mac, index)| *mac = address(index, count) + offset);
        let start = Instant::now();
        burst.chunks(BURST).for_each(&mut work);
        elapsed += start.elapsed();
        at += burst.len() as u64;
    }
    elapsed.mul_f64(wanted as f64 / at as f64)
}

fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mac");
    group.warm_up_time(Duration::from_millis(30));
    group.measurement_time(Duration::from_millis(100)).sample_size(20);
    for count in COUNTS {
        let table = MacTable::new(&TABLE, 2);
        (0..count).for_each(|index| {
            table.learn(address(index, count), 0, 1);
        });
        assert_eq!(table.len() as u64, count, "all addresses are learned");
        let lookup = |burst: &[u64]| {
            burst.iter().for_each(|mac| {
                black_box(table.lookup(*mac, 1));
            });
        };
        group.bench_function(format!("hit/{count}"), |bencher| {
            bencher.iter_custom(|wanted| time(wanted, count, 0, lookup));
        });
        group.bench_function(format!("miss/{count}"), |bencher| {
            bencher.iter_custom(|wanted| time(wanted, count, UNKNOWN, lookup));
        });
        group.bench_function(format!("hit prefetched/{count}"), |bencher| {
            bencher.iter_custom(|wanted| {
                time(wanted, count, 0, |burst| {
                    burst.iter().for_each(|mac| table.prefetch(table.address(*mac)));
                    lookup(burst);
                })
            });
        });
        group.bench_function(format!("refresh/{count}"), |bencher| {
            bencher.iter_custom(|wanted| {
                time(wanted, count, 0, |burst| {
                    burst.iter().for_each(|mac| {
                        black_box(table.learn(*mac, 0, 1));
                    });
                })
            });
        });
        // A table of just that capacity: making a larger one would take longer than what is measured.
        let just = MacTableConfig { capacity: count as usize, ..TABLE };
        group.bench_function(format!("learn/{count}"), |bencher| {
            bencher.iter_custom(|wanted| {
                let rounds = wanted.div_ceil(count);
                let mut elapsed = Duration::ZERO;
                for _ in 0..rounds {
                    let table = MacTable::new(&just, 2);
                    let start = Instant::now();
                    (0..count).for_each(|index| {
                        black_box(table.learn(address(index, count), 0, 1));
                    });
                    elapsed += start.elapsed();
                }
                elapsed.mul_f64(wanted as f64 / (rounds * count) as f64)
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().without_plots();
    targets = bench
}
criterion_main!(benches);
