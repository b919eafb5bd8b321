//! What there is to be seen of a switch.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::api::{
    Flow, Latency, LatencyBucket, Mac, Port, PortKind, Process, Queue, ReceiveRing, RingFormat,
    Worker,
};
use crate::config::{self, PortSettings, Settings};
use crate::frame::{DropReason, PortId};
use crate::port::{self, QueueTotals};
use crate::ring::Fill;
use crate::sys::clock;
use crate::sys::privilege::user_id;
use crate::wire::ethernet::MacAddr;
use crate::worker::{self, Flows, Shared};

use super::super::desk::Desk;
use super::super::switch::Desired;
use super::super::{Statistics, Switch};

/// A look at a running switch: it waits for nobody, and nobody waits for it.
pub struct View {
    shared: Arc<Shared>,
    settings: Arc<Desired>,
    desk: Arc<Desk>,
    /// Whom it runs as.
    user: u32,
    since: Instant,
    /// Seconds since 1970.
    began_at: f64,
    /// The time-stamp counter at `since`.
    tsc: u64,
    /// Its cycles in a second, once they are known well.
    tsc_rate: OnceLock<f64>,
}

/// How long it takes to know the rate of the time-stamp counter to a millionth.
const CALIBRATION: Duration = Duration::from_secs(1);

impl View {
    /// A look at `switch`.
    #[must_use]
    pub(in super::super) fn new(switch: &Switch, desk: &Arc<Desk>) -> Self {
        Self {
            shared: Arc::clone(&switch.shared),
            settings: Arc::clone(&switch.settings),
            desk: Arc::clone(desk),
            user: user_id(),
            since: Instant::now(),
            began_at: Duration::from_nanos(clock::unix_ns()).as_secs_f64(),
            tsc: clock::tsc(),
            tsc_rate: OnceLock::new(),
        }
    }

    /// Cycles in a second. It stays the same but for the first second: what is made of it grows only.
    pub(super) fn tsc_rate(&self) -> f64 {
        let measure = || {
            let cycles = clock::tsc().saturating_sub(self.tsc);
            cycles as f64 / self.since.elapsed().as_secs_f64()
        };
        match self.since.elapsed() {
            age if age < CALIBRATION => measure(),
            _ => *self.tsc_rate.get_or_init(measure),
        }
    }

    /// Whom it runs as.
    pub(super) fn user(&self) -> u32 {
        self.user
    }

    /// Where to ask for changes.
    pub(super) fn desk(&self) -> &Desk {
        &self.desk
    }

    /// The settings now.
    pub(super) fn settings(&self) -> Arc<Settings> {
        self.settings.now()
    }

    /// What the workers share.
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The names of all ports.
    pub(super) fn names(&self) -> Vec<String> {
        self.shared.ports.now().iter().map(|port| port.name.clone()).collect()
    }

    /// When it became the switch, seconds since 1970.
    pub(super) fn began_at(&self) -> f64 {
        self.began_at
    }

    /// How many addresses were learned.
    pub(super) fn addresses(&self) -> u64 {
        self.shared.macs.len() as u64
    }

    /// Port, reason and number of drops, all of them.
    pub(super) fn drops(&self) -> Vec<(String, DropReason, u64)> {
        let of = |port: &Arc<port::Port>| {
            let totals = port.totals();
            totals.drops().map(|(reason, count)| (port.name.clone(), reason, count)).collect()
        };
        self.shared.ports.now().iter().flat_map(|port| -> Vec<_> { of(port) }).collect()
    }

    pub(super) fn process(&self) -> Process {
        Process {
            program: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.since.elapsed().as_secs(),
        }
    }

    pub(super) fn ports(&self) -> Vec<Port> {
        let (settings, ports) = (self.settings.now(), self.shared.ports.now());
        let port = |wanted: &PortSettings| Some(self.port(ports.find(&wanted.name)?, wanted));
        settings.ports.iter().filter_map(port).collect()
    }

    fn port(&self, port: &port::Port, settings: &PortSettings) -> Port {
        let totals = port.totals();
        let (kind, place, uplink) = match &settings.kind {
            config::PortKind::VhostUser(vhost) => {
                (PortKind::VhostUser, vhost.socket.display().to_string(), false)
            }
            config::PortKind::Tap(tap) => (PortKind::Tap, tap.device.clone(), tap.uplink),
        };
        let queues = match &port.kind {
            port::Kind::Vhost(vhost) => vhost.enabled_pairs(),
            port::Kind::Tap(tap) => u32::try_from(tap.queues()).unwrap_or(u32::MAX),
        };
        let drops = totals.drops().filter(|(_, count)| *count > 0);
        Port {
            name: port.name.clone(),
            kind,
            place,
            uplink,
            up: port.is_up(),
            queues,
            addresses: self.shared.macs.port_len(port.id.0),
            counters: totals.named().map(|(name, count)| (name.to_owned(), count)).collect(),
            drops: drops.map(|(reason, count)| (reason.to_string(), count)).collect(),
            egress_queues: egress_queues(port, queues),
        }
    }

    pub(super) fn workers(&self) -> Vec<Worker> {
        let workers = Statistics::workers(&self.shared);
        let named = |counters: Vec<(&'static str, u64)>| -> BTreeMap<String, u64> {
            counters.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
        };
        let rate = self.tsc_rate();
        (0..)
            .zip(workers)
            .zip(&self.shared.counters)
            .map(|((worker, counters), own)| {
                let counters = named(counters);
                let cycles = counters.get("busy_cycles").copied().unwrap_or_default();
                let latency = latency(&own.latency, rate);
                Worker { worker, busy_seconds: cycles as f64 / rate, counters, latency }
            })
            .collect()
    }

    /// What went from port to port: all pairs that had frames.
    pub(super) fn flows(&self) -> Vec<Flow> {
        let ports = self.shared.ports.now();
        let ids: Vec<_> = ports.iter().map(|port| port.id).collect();
        let name = |id| ports.get(id).map(|port| port.name.clone());
        let sums = Flows::sums(self.shared.flows(), &ids).into_iter();
        let flow = |(from, to, flow): (PortId, PortId, worker::Flow)| {
            let worker::Flow { frames, bytes, dropped } = flow;
            Some(Flow { from: name(from)?, to: name(to)?, frames, bytes, dropped })
        };
        sums.filter_map(flow).collect()
    }

    pub(super) fn macs(&self) -> Vec<Mac> {
        let (mut macs, ports) = (Vec::new(), self.shared.ports.now());
        self.shared.macs.for_each(clock::coarse_seconds(), |mac, port, age_seconds| {
            let Some(port) = ports.get(PortId(port)) else { return };
            let address = MacAddr::from_u64(mac).to_string();
            macs.push(Mac { address, port: port.name.clone(), age_seconds });
        });
        macs.sort_unstable();
        macs
    }
}

/// The limits of buckets of times, ns: six in each power of ten.
pub(super) const LIMITS_NS: [u64; 31] = [
    100, 150, 200, 300, 500, 700, 1_000, 1_500, 2_000, 3_000, 5_000, 7_000, 10_000, 15_000, 20_000,
    30_000, 50_000, 70_000, 100_000, 150_000, 200_000, 300_000, 500_000, 700_000, 1_000_000,
    1_500_000, 2_000_000, 3_000_000, 5_000_000, 7_000_000, 10_000_000,
];

/// Makes times of cycles, of which there are `rate` in a second. What is in a bucket of cycles is
/// taken for as long as its middle.
fn latency(cycles: &worker::Latency, rate: f64) -> Latency {
    let mut buckets: Vec<LatencyBucket> = Vec::new();
    for (middle, frames) in cycles.buckets() {
        let ns = (middle as f64 / rate * 1e9) as u64;
        let above = LIMITS_NS.partition_point(|limit| *limit < ns);
        let upto_ns = LIMITS_NS.get(above).copied();
        let from_ns = above.checked_sub(1).and_then(|below| LIMITS_NS.get(below));
        let from_ns = from_ns.copied().unwrap_or_default();
        match buckets.last_mut() {
            Some(last) if last.upto_ns == upto_ns => last.frames += frames,
            _ => buckets.push(LatencyBucket { from_ns, upto_ns, frames }),
        }
    }
    Latency { sum_seconds: cycles.sum() as f64 / rate, buckets }
}

/// The queues by which frames leave: the first `used` ones, and those that have counted something.
fn egress_queues(port: &port::Port, used: u32) -> Vec<Queue> {
    let queue = |(queue, totals): (u32, QueueTotals)| Queue {
        queue,
        frames: totals.frames,
        drops: totals.drops().map(|(reason, count)| (reason.to_string(), count)).collect(),
        ring: match &port.kind {
            port::Kind::Vhost(vhost) => vhost.fill(queue as usize).map(receive_ring),
            port::Kind::Tap(_) => None,
        },
    };
    let queues = (0..).zip(port.queue_totals());
    queues.filter(|(index, totals)| *index < used || !totals.is_zero()).map(queue).collect()
}

fn receive_ring(fill: Fill) -> ReceiveRing {
    ReceiveRing {
        format: if fill.packed { RingFormat::Packed } else { RingFormat::Split },
        entries: fill.size.into(),
        buffers: fill.buffers.map(u32::from),
    }
}
