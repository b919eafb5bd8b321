//! Frames between two fake guests through a switch in this process: the whole way, from the
//! sender's descriptors to the receiver's used ring, workers and kicks included.
//!
//! `cargo bench --bench guest_to_guest`. Figures of one machine compare with each other only.

#![expect(clippy::expect_used, reason = "a bench that can't start has nothing to say")]
#![allow(missing_docs, reason = "criterion's macros")]

use std::hint::black_box;
use std::path::PathBuf;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fakeguest::{Frame, Guest, Layout, frames};
use ringswitch::config::Settings;
use ringswitch::control::{Opened, Switch};
use ringswitch::sys::sandbox::Sandbox;

/// Frames that are under way at a time: as many of the largest as the receiver has buffers for.
const BURST: usize = 8;
/// Bytes of a frame, without the virtio-net header. The last one is a TSO frame.
const SIZES: [usize; 5] = [64, 512, 1514, 9014, 65_000];

fn sockets(directory: &tempfile::TempDir) -> [PathBuf; 2] {
    ["a", "b"].map(|name| directory.path().join(name))
}

fn bench(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let [a, b] = sockets(&directory);
    let ports = [("a".into(), a.clone()), ("b".into(), b.clone())];
    let settings = Settings::from_args(&ports, None).expect("two ports");
    let switch = Switch::start(&settings, Opened::new(&settings).expect("ports"), &Sandbox::none())
        .expect("a switch");
    let mut group = criterion.benchmark_group("guest_to_guest");
    for size in SIZES {
        let mut sender = Guest::builder(&a).attach().expect("guest a");
        let mut receiver = Guest::builder(&b).rx_buffer(4096).attach().expect("guest b");
        // The switch learns where the receiver is.
        let hello = Frame::pattern(frames::mac(1), frames::mac(2), 60, 0);
        receiver.send(0, &hello, &Layout::whole());
        let frame = Frame::pattern(frames::mac(2), frames::mac(1), size, 1);
        sender.queue(0).tx.load(&[frame], &Layout::whole()).expect("frames in guest memory");
        group.throughput(Throughput::Elements(BURST as u64));
        group.bench_function(size.to_string(), |bencher| {
            bencher.iter(|| {
                let (mut sent, mut received) = (0, 0);
                while received < BURST as u64 {
                    if sent < BURST {
                        sent += sender.send_burst(0, BURST - sent);
                    }
                    received += receiver.recv_burst(0, BURST as u64).frames;
                }
                black_box(received)
            });
        });
    }
    group.finish();
    switch.stop();
}

criterion_group!(benches, bench);
criterion_main!(benches);
