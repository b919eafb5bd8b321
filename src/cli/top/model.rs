//! What is shown: figures by the second, made of what the switch said at two moments.

use std::collections::BTreeMap;

use ringswitch::api::{Flow, Port, PortKind, Process, ReceiveRing, Worker};

use super::sample::Sample;
use crate::cli::latency::quantile;
use crate::cli::slow::{self, Slow};
use crate::cli::way::Way;

/// So much of what a port's traffic was stays with each sample, to know the busy ones: ports that
/// change places each second can't be read.
const MEMORY: f64 = 0.8;

/// Something by the second. None: there was no earlier look at this process.
pub type Rate = Option<f64>;

/// Sums over the switch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sums {
    /// Bits from guest to guest.
    pub guests: Rate,
    /// Bits that came from the uplink, if there is one.
    pub uplink_in: Rate,
    /// Bits that left by it.
    pub uplink_out: Rate,
    /// Whether there is an uplink.
    pub has_uplink: bool,
    /// Frames that were dropped.
    pub drops: Rate,
}

/// A port.
#[derive(Clone, Debug, PartialEq)]
pub struct PortRow {
    pub name: String,
    /// `guest`, `uplink` or `tap`.
    pub kind: &'static str,
    pub up: bool,
    pub frames_in: Rate,
    pub frames_out: Rate,
    pub bits_in: Rate,
    pub bits_out: Rate,
    pub drops: Rate,
    /// Of a guest's receive rings, the one with the fewest buffers left.
    pub ring: Option<ReceiveRing>,
    /// How busy it was lately.
    pub weight: f64,
}

/// A worker.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerRow {
    pub worker: u32,
    /// Its share of the time in which it moved frames, 0 to 1.
    pub busy: Rate,
    pub frames: Rate,
    pub sleeps: Rate,
    pub looks: Rate,
    pub passed_over: Rate,
    /// How long half of its frames were in the switch at most, and 99 of 100; seconds. None: there
    /// were none.
    pub latency: [Option<f64>; 2],
}

/// Drops of a port for one reason.
#[derive(Clone, Debug, PartialEq)]
pub struct DropRow {
    pub port: String,
    pub reason: String,
    pub frames: Rate,
    /// Since the process began.
    pub total: u64,
}

/// What goes from one port to another.
#[derive(Clone, Debug, PartialEq)]
pub struct FlowRow {
    pub from: String,
    pub to: String,
    pub way: Way,
    pub frames: Rate,
    pub bits: Rate,
    pub drops: Rate,
    /// Bytes since the process began.
    pub total: u64,
}

/// All that is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    pub process: Process,
    pub sums: Sums,
    /// In the order of the configuration, as the other rows.
    pub ports: Vec<PortRow>,
    pub workers: Vec<WorkerRow>,
    pub drops: Vec<DropRow>,
    /// Guests that are too slow: since the last look or, at the first one, ever.
    pub slow: Vec<Slow>,
    pub flows: Vec<FlowRow>,
}

/// What came to counters since another look.
#[derive(Clone, Copy)]
struct Since<'a> {
    before: Option<&'a Sample>,
    secs: f64,
}

impl<'a> Since<'a> {
    fn new(before: Option<&'a Sample>, now: &Sample) -> Self {
        let secs = before.map_or(0.0, |before| (now.at - before.at).as_secs_f64());
        Self { before: before.filter(|_| secs > 0.0), secs }
    }

    /// Of a counter that is at `now`, and was where `then` finds it.
    fn rate(&self, now: u64, then: impl FnOnce(&Sample) -> Option<u64>) -> Rate {
        let then = then(self.before?).unwrap_or_default();
        // One that goes back has begun anew.
        let gained = if now < then { now } else { now - then };
        Some(gained as f64 / self.secs)
    }

    fn port(&self, port: &Port, of: impl Fn(&Port) -> u64) -> Rate {
        let same = |then: &Sample| then.ports.iter().find(|p| p.name == port.name).map(&of);
        self.rate(of(port), same)
    }

    fn worker(&self, worker: &Worker, name: &str) -> Rate {
        let of = |worker: &Worker| worker.counters.get(name).copied().unwrap_or_default();
        self.rate(of(worker), |then| {
            then.workers.iter().find(|then| then.worker == worker.worker).map(of)
        })
    }

    fn busy(&self, worker: &Worker) -> Rate {
        let then = self.before?.workers.iter().find(|then| then.worker == worker.worker)?;
        Some(((worker.busy_seconds - then.busy_seconds) / self.secs).clamp(0.0, 1.0))
    }

    fn latency(&self, worker: &Worker, part: f64) -> Option<f64> {
        let then = self.before?.workers.iter().find(|then| then.worker == worker.worker)?;
        quantile(&worker.latency, Some(&then.latency), part)
    }

    fn flow(&self, flow: &Flow, of: impl Fn(&Flow) -> u64) -> Rate {
        let same = |then: &&Flow| then.from == flow.from && then.to == flow.to;
        self.rate(of(flow), |then| then.flows.iter().find(same).map(&of))
    }
}

/// Remembers what it was told last.
#[derive(Debug, Default)]
pub struct Model {
    last: Option<Sample>,
    /// How busy each port was lately.
    weights: BTreeMap<String, f64>,
}

impl Model {
    /// Makes figures of another sample. Returns with them the process that it took the place of.
    pub fn take(&mut self, now: Sample) -> (Figures, Option<u32>) {
        let last = self.last.take();
        // A process may have the number of the one before it: in a container it always has.
        let same = |then: &&Sample| {
            then.process.pid == now.process.pid
                && then.process.uptime_seconds <= now.process.uptime_seconds
        };
        let since = Since::new(last.as_ref().filter(same), &now);
        let replaced = last.as_ref().filter(|then| !same(then)).map(|then| then.process.pid);
        let flows: Vec<_> =
            now.flows.iter().map(|flow| flow_row(since, flow, &now.ports)).collect();
        let ports: Vec<_> = now.ports.iter().map(|port| self.port_row(since, port)).collect();
        let figures = Figures {
            process: now.process.clone(),
            sums: sums(&ports, &flows),
            ports,
            workers: now.workers.iter().map(|worker| worker_row(since, worker)).collect(),
            drops: now.ports.iter().flat_map(|port| drop_rows(since, port)).collect(),
            slow: slow::guests(&now.ports, since.before.map(|then| (&then.ports[..], since.secs))),
            flows,
        };
        self.last = Some(now);
        (figures, replaced)
    }

    fn port_row(&mut self, since: Since<'_>, port: &Port) -> PortRow {
        let counter = |name| since.port(port, |port| port.counter(name));
        let bits = |name| counter(name).map(|bytes| bytes * 8.0);
        let (bits_in, bits_out) = (bits("ingress_bytes"), bits("egress_bytes"));
        let weight = self.weights.entry(port.name.clone()).or_default();
        let traffic = bits_in.unwrap_or_default() + bits_out.unwrap_or_default();
        *weight = *weight * MEMORY + traffic * (1.0 - MEMORY);
        PortRow {
            name: port.name.clone(),
            kind: match port.kind {
                PortKind::VhostUser => "guest",
                PortKind::Tap if port.uplink => "uplink",
                PortKind::Tap => "tap",
            },
            up: port.up,
            frames_in: counter("ingress_frames"),
            frames_out: counter("egress_frames"),
            bits_in,
            bits_out,
            drops: since.port(port, Port::dropped),
            ring: emptiest(port),
            weight: *weight,
        }
    }
}

/// The receive ring with the fewest buffers left, of those where it is known.
fn emptiest(port: &Port) -> Option<ReceiveRing> {
    let rings = port.egress_queues.iter().filter_map(|queue| queue.ring.clone());
    rings.filter(|ring| ring.buffers.is_some()).min_by_key(|ring| ring.buffers)
}

fn worker_row(since: Since<'_>, worker: &Worker) -> WorkerRow {
    WorkerRow {
        worker: worker.worker,
        busy: since.busy(worker),
        frames: since.worker(worker, "frames"),
        sleeps: since.worker(worker, "sleeps"),
        looks: since.worker(worker, "looks"),
        passed_over: since.worker(worker, "passed_over"),
        latency: [0.5, 0.99].map(|part| since.latency(worker, part)),
    }
}

fn drop_rows(since: Since<'_>, port: &Port) -> Vec<DropRow> {
    let row = |(reason, total): (&String, &u64)| DropRow {
        port: port.name.clone(),
        reason: reason.clone(),
        frames: since.port(port, |port| port.drops.get(reason).copied().unwrap_or_default()),
        total: *total,
    };
    port.drops.iter().map(row).collect()
}

fn flow_row(since: Since<'_>, flow: &Flow, ports: &[Port]) -> FlowRow {
    FlowRow {
        from: flow.from.clone(),
        to: flow.to.clone(),
        way: Way::between(ports, &flow.from, &flow.to),
        frames: since.flow(flow, |flow| flow.frames),
        bits: since.flow(flow, |flow| flow.bytes).map(|bytes| bytes * 8.0),
        drops: since.flow(flow, |flow| flow.dropped),
        total: flow.bytes,
    }
}

fn sums(ports: &[PortRow], flows: &[FlowRow]) -> Sums {
    let uplink = ports.iter().find(|port| port.kind == "uplink");
    // Of nothing but unknown rates the sum is unknown; a switch without a flow has sums of 0.
    let known = ports.iter().any(|port| port.bits_in.is_some());
    // From 0: the sum of no numbers is -0.
    let sum = |rates: &mut dyn Iterator<Item = Rate>| {
        known.then(|| rates.flatten().fold(0.0, |sum, rate| sum + rate))
    };
    let guests = flows.iter().filter(|flow| flow.way == Way::Guests);
    Sums {
        guests: sum(&mut guests.map(|flow| flow.bits)),
        uplink_in: uplink.and_then(|port| port.bits_in),
        uplink_out: uplink.and_then(|port| port.bits_out),
        has_uplink: uplink.is_some(),
        drops: sum(&mut ports.iter().map(|port| port.drops)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{SECOND, sample};
    use super::*;

    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        let mut model = Model::default();
        let (first, replaced) = model.take(sample(0, 1, 0));
        assert_eq!((first.ports[0].bits_in, first.sums.guests, replaced), (None, None, None));
        assert_eq!(first.workers[0].busy, None);
        let (second, replaced) = model.take(sample(2, 1, 1000));
        assert_eq!(replaced, None);
        let port = &second.ports[0];
        assert_eq!((port.frames_in, port.bits_in, port.drops), (Some(500.0), Some(4e5), Some(5.0)));
        let flow = &second.flows[0];
        assert_eq!((flow.frames, flow.bits, flow.way), (Some(500.0), Some(4e5), Way::Guests));
        assert_eq!(second.workers[0].busy, Some(0.5));
        assert_eq!(second.workers[0].latency, [Some(1.5e-6), Some(1.99e-6)]);
        assert_eq!(second.drops[0].frames, Some(5.0));
        assert_eq!(second.sums.guests, Some(4e5));
        assert_eq!(second.sums.drops, Some(10.0));
        assert_eq!(second.sums.uplink_in, Some(4e5), "the uplink's own counters");
    }

    #[test]
    fn another_process_begins_anew() {
        let mut model = Model::default();
        model.take(sample(0, 1, 5000));
        let (figures, replaced) = model.take(sample(1, 2, 6000));
        assert_eq!(replaced, Some(1));
        assert_eq!(figures.ports[0].bits_in, None, "not what two processes counted");
        let (figures, replaced) = model.take(sample(2, 2, 7000));
        assert_eq!((figures.ports[0].frames_in, replaced), (Some(1000.0), None));
        // The same number, but younger.
        let mut young = sample(3, 2, 100);
        young.process.uptime_seconds = 0;
        let (figures, replaced) = model.take(young);
        assert_eq!((figures.ports[0].frames_in, replaced), (None, Some(2)));
    }

    #[test]
    fn a_counter_that_goes_back_begins_anew() {
        let mut model = Model::default();
        model.take(sample(0, 1, 5000));
        let (figures, _) = model.take(sample(1, 1, 300));
        assert_eq!(figures.ports[0].frames_in, Some(300.0));
        assert_eq!(figures.workers[0].busy, Some(0.0));
    }

    #[test]
    fn a_flow_that_is_new_began_at_zero() {
        let mut model = Model::default();
        let mut first = sample(0, 1, 100);
        first.flows.clear();
        model.take(first);
        let (figures, _) = model.take(sample(1, 1, 100));
        assert_eq!(figures.flows[0].frames, Some(100.0));
    }

    #[test]
    fn two_looks_at_once_make_no_rates() {
        let mut model = Model::default();
        model.take(sample(0, 1, 100));
        let (figures, _) = model.take(sample(0, 1, 200));
        assert_eq!(figures.ports[0].frames_in, None);
        let mut later = sample(0, 1, 300);
        later.at += SECOND / 2;
        let (figures, _) = model.take(later);
        assert_eq!(figures.ports[0].frames_in, Some(200.0));
    }

    #[test]
    fn who_was_busy_is_not_forgotten_at_once() {
        let mut model = Model::default();
        for (second, frames) in [(0, 0), (1, 1000), (2, 1000)] {
            let (figures, _) = model.take(sample(second, 1, frames));
            let busy = figures.ports[0].weight;
            assert!(second == 0 || busy > 0.0, "{busy}");
        }
    }
}
