//! Frames between a fake guest and the host's kernel, over a TAP device of a switch in this
//! process, in a network namespace of its own. Needs root.
//!
//! `cargo bench --bench tap`. Both directions are bound by the kernel, which runs its side of each
//! frame within the switch's `read` or `writev`. Figures of one machine compare with each other
//! only.

#![expect(clippy::expect_used, reason = "a bench that can't start has nothing to say")]
#![allow(missing_docs, reason = "criterion's macros")]

use std::process::Command;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fakeguest::host::{PacketSocket, within};
use fakeguest::{Frame, Guest, Layout, frames};
use ringswitch::config::Settings;
use ringswitch::control::{Opened, Switch};
use ringswitch::sys::sandbox::Sandbox;

/// Frames that are under way at a time.
const BURST: usize = 64;
/// Bytes of a frame, without the virtio-net header.
const SIZES: [usize; 3] = [64, 1514, 65_000];
const NETNS: &str = "ringswitch-bench";

fn ip(command: &str) {
    let done = Command::new("ip").args(command.split_whitespace()).status().expect("ip");
    assert!(done.success(), "ip {command}");
}

/// A guest at `switch`'s port `a`, and the size of its frames. The host drops what it sends: its
/// EtherType is unknown.
fn guest(socket: &std::path::Path, size: usize) -> Guest {
    let mut guest = Guest::builder(socket).rx_buffer(4096).ring_size(1024).attach().expect("guest");
    let frame = Frame::pattern(frames::mac(9), frames::mac(1), size, 1);
    guest.queue(0).tx.load(&[frame], &Layout::whole()).expect("frames in guest memory");
    guest
}

fn bench(criterion: &mut Criterion) {
    ip(&format!("netns add {NETNS}"));
    let directory = tempfile::tempdir().expect("a temporary directory");
    let socket = directory.path().join("a");
    let settings = Settings::from_args(&[("a".into(), socket.clone())], Some("rs0".into()));
    let settings = settings.expect("two ports");
    let switch = within(NETNS, || {
        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").expect("no IPv6");
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("no IPv6");
        Switch::start(&settings, Opened::new(&settings).expect("ports"), &Sandbox::none())
            .expect("a switch")
    })
    .expect("a namespace");
    ip(&format!("-n {NETNS} link set rs0 mtu 65521 txqueuelen 500"));
    let host = within(NETNS, || PacketSocket::open("rs0")).and_then(|s| s).expect("a socket");
    let hello = Frame::pattern(frames::mac(1), frames::mac(9), 60, 0);

    let mut group = criterion.benchmark_group("guest_to_tap");
    group.throughput(Throughput::Elements(BURST as u64));
    for size in SIZES {
        let mut a = guest(&socket, size);
        host.send(&hello.bytes).expect("the switch learns where the host is");
        group.bench_function(size.to_string(), |bencher| {
            bencher.iter(|| {
                let mut sent = 0;
                while sent < BURST {
                    sent += a.send_burst(0, BURST - sent);
                }
                while a.queue(0).tx.ring.in_flight() > 0 {
                    a.queue(0).tx.reclaim();
                }
            });
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("tap_to_guest");
    for size in SIZES {
        let mut a = guest(&socket, size);
        // The switch learns where the guest is.
        a.send_burst(0, 1);
        let frame = Frame::pattern(frames::mac(1), frames::mac(9), size, 1);
        let burst = if size > 10_000 { 16 } else { BURST };
        group.throughput(Throughput::Elements(burst as u64));
        // The time from the last frame that waits: sending costs more than what is measured.
        group.bench_function(size.to_string(), |bencher| {
            bencher.iter_custom(|rounds| {
                let mut time = Duration::ZERO;
                for _ in 0..rounds {
                    let start = Instant::now();
                    (0..burst).for_each(|_| host.send(&frame.bytes).expect("a frame sent"));
                    let mut received = 0;
                    while received < burst as u64 {
                        received += a.recv_burst(0, burst as u64).frames;
                    }
                    time += start.elapsed();
                }
                time
            });
        });
    }
    group.finish();
    switch.stop();
    ip(&format!("netns del {NETNS}"));
}

criterion_group!(benches, bench);
criterion_main!(benches);
