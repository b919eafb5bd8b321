//! Samples for tests: what a switch would say.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use ringswitch::api::{
    Flow, Latency, LatencyBucket, Port, PortKind, Process, Queue, ReceiveRing, RingFormat, Worker,
};

use super::sample::Sample;

pub const SECOND: Duration = Duration::from_secs(1);
static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A port that had so many frames of 100 bytes in either direction.
pub fn port(name: &str, kind: PortKind, uplink: bool, frames: u64) -> Port {
    let counters = [
        ("ingress_frames", frames),
        ("egress_frames", frames),
        ("ingress_bytes", frames * 100),
        ("egress_bytes", frames * 100),
    ];
    Port {
        name: name.to_owned(),
        kind,
        place: String::new(),
        uplink,
        up: name != "down",
        queues: 1,
        addresses: 1,
        counters: counters.map(|(name, count)| (name.to_owned(), count)).into(),
        drops: BTreeMap::from([("rx_ring_full".to_owned(), frames / 100)]),
        egress_queues: if kind == PortKind::Tap { Vec::new() } else { queues(frames) },
    }
}

/// Two queues of a guest, of which the first one has no buffers and the frames of the port.
fn queues(frames: u64) -> Vec<Queue> {
    let queue = |queue, frames, buffers| Queue {
        queue,
        frames,
        drops: BTreeMap::from([("rx_ring_full".to_owned(), frames / 100)]),
        ring: Some(ReceiveRing { format: RingFormat::Split, entries: 256, buffers }),
    };
    vec![queue(0, frames, Some(0)), queue(1, 0, Some(200))]
}

pub fn flow(from: &str, to: &str, frames: u64) -> Flow {
    let [from, to] = [from, to].map(str::to_owned);
    Flow { from, to, frames, bytes: frames * 100, dropped: 0 }
}

/// What process `pid` says after `second` seconds: guests `vm1` and `vm2`, of which the first sent
/// `frames` frames to the second and to the uplink.
pub fn sample(second: u32, pid: u32, frames: u64) -> Sample {
    let worker = Worker {
        worker: 0,
        busy_seconds: frames as f64 / 1000.0,
        counters: BTreeMap::from([("frames".to_owned(), frames), ("sleeps".to_owned(), 7)]),
        latency: Latency {
            sum_seconds: frames as f64 * 1.5e-6,
            buckets: vec![LatencyBucket { from_ns: 1000, upto_ns: Some(2000), frames }],
        },
    };
    Sample {
        at: *BEGIN + SECOND * second,
        process: Process {
            program: "ringswitch".to_owned(),
            version: "0.1.0".to_owned(),
            pid,
            uptime_seconds: 93_784 + u64::from(second),
        },
        ports: vec![
            port("vm1", PortKind::VhostUser, false, frames),
            port("vm2", PortKind::VhostUser, false, 0),
            port("up0", PortKind::Tap, true, frames),
        ],
        workers: vec![worker],
        flows: vec![flow("vm1", "vm2", frames), flow("vm1", "up0", frames / 2)],
    }
}
