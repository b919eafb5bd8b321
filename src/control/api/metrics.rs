//! The same, for Prometheus: names and units by its conventions, in the OpenMetrics text format.

use std::fmt::Error;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, MetricEncoder,
    NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::api::{Flow, Latency, Port, Queue, Worker};
use crate::port::Totals;

use super::View;
use super::view::LIMITS_NS;

/// What [`render`] writes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics at this moment.
pub fn render(view: &Arc<View>) -> Result<String, Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics(Arc::clone(view))));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

struct Metrics(Arc<View>);

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let Self(view) = self;
        let mut families = Families(encoder);
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        families.gauges("build_info", "The program's version; the value is 1.", [(version, 1)])?;
        let name = "start_time_seconds";
        let text = "When the process became the switch, seconds since 1970.";
        families.gauge(name, text, view.began_at())?;
        ports(&mut families, view)?;
        workers(&mut families, &view.workers())?;
        flows(&mut families, &view.flows())?;
        let addresses = view.addresses();
        families.gauge("addresses", "Addresses that were learned.", addresses)
    }
}

fn ports(families: &mut Families<'_>, view: &View) -> Result<(), Error> {
    let ports = view.ports();
    let label = |name: &str| [("port", name.to_owned())];
    for (name, text) in Totals::MEANINGS {
        let values = ports.iter().map(|port| (label(&port.name), port.counter(name)));
        families.counters(&format!("port_{name}"), text, values)?;
    }
    let values = view
        .drops()
        .into_iter()
        .map(|(port, reason, count)| ([("port", port), ("reason", reason.to_string())], count));
    families.counters("port_dropped_frames", "Frames that were dropped, by reason.", values)?;
    let values = ports.iter().map(|port| (label(&port.name), u64::from(port.up)));
    families.gauges("port_up", "1 if frames can leave by the port.", values)?;
    let values = ports.iter().map(|port| (label(&port.name), u64::from(port.queues)));
    families.gauges("port_queues", "Queue pairs or queues that are in use.", values)?;
    let values = ports.iter().map(|port| (label(&port.name), u64::from(port.addresses)));
    families.gauges("port_addresses", "Addresses that were learned at the port.", values)?;
    queues(families, &ports)
}

/// The queues by which frames leave: those in use, and of their drops those that there were.
fn queues(families: &mut Families<'_>, ports: &[Port]) -> Result<(), Error> {
    let queues = || {
        let of = |port: &'_ Port| {
            let name = port.name.clone();
            let label =
                move |queue: &Queue| [("port", name.clone()), ("queue", queue.queue.to_string())];
            port.egress_queues.iter().map(|queue| (label(queue), queue.clone())).collect::<Vec<_>>()
        };
        ports.iter().flat_map(of)
    };
    let frames = queues().map(|(label, queue)| (label, queue.frames));
    families.counters("port_queue_frames", "Frames delivered to the queue.", frames)?;
    let drops = queues().flat_map(|([port, number], queue)| {
        let label = move |reason| [port.clone(), number.clone(), ("reason", reason)];
        queue.drops.into_iter().map(move |(reason, count)| (label(reason), count))
    });
    let text = "Frames that the queue didn't take, by reason; only reasons that came up.";
    families.counters("port_queue_dropped_frames", text, drops)?;
    let rings = || queues().filter_map(|(label, queue)| Some((label, queue.ring?)));
    let entries = rings().map(|(label, ring)| (label, u64::from(ring.entries)));
    families.gauges("port_ring_entries", "Entries of the guest's receive ring.", entries)?;
    let buffers = rings().filter_map(|(label, ring)| Some((label, u64::from(ring.buffers?))));
    let text = "Entries of the guest's receive ring with buffers, behind the last burst.";
    families.gauges("port_ring_buffers", text, buffers)
}

fn workers(families: &mut Families<'_>, workers: &[Worker]) -> Result<(), Error> {
    let label = |worker: &Worker| [("worker", worker.worker.to_string())];
    let busy = workers.iter().map(|worker| (label(worker), worker.busy_seconds));
    families.counters("worker_busy_seconds", "Time in which it moved frames.", busy)?;
    for (name, text) in [
        ("frames", "Frames that it took from ports."),
        ("sleeps", "How often it slept."),
        ("looks", "How often it looked for wake-ups without sleeping."),
        ("passed_over", "How often it left a port out that was ahead of others."),
    ] {
        let value = |worker: &Worker| worker.counters.get(name).copied().unwrap_or_default();
        let values = workers.iter().map(|worker| (label(worker), value(worker)));
        families.counters(&format!("worker_{name}"), text, values)?;
    }
    let text = "How long frames were in the switch, from the reading of their burst to its end.";
    let times = workers.iter().map(|worker| (label(worker), &worker.latency));
    families.histograms("worker_frame_seconds", text, times)
}

/// Of pairs that had frames only: all of them would be the square of the ports.
fn flows(families: &mut Families<'_>, flows: &[Flow]) -> Result<(), Error> {
    let labels = |flow: &Flow| [("from", flow.from.clone()), ("to", flow.to.clone())];
    let frames = flows.iter().map(|flow| (labels(flow), flow.frames));
    families.counters("flow_frames", "Frames delivered from one port to another.", frames)?;
    let bytes = flows.iter().map(|flow| (labels(flow), flow.bytes));
    families.counters("flow_bytes", "Their bytes, as their senders sent them.", bytes)
}

/// Writes families of metrics: a value for each set of labels.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn family(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        write: impl FnOnce(MetricEncoder<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        write(self.0.encode_descriptor(&format!("ringswitch_{name}"), help, None, kind)?)
    }

    fn counters<L: EncodeLabelSet, V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, V)>,
    ) -> Result<(), Error> {
        self.family(name, help, MetricType::Counter, |mut family| {
            values.into_iter().try_for_each(|(labels, value)| {
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
            })
        })
    }

    fn histograms<'l, L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, &'l Latency)>,
    ) -> Result<(), Error> {
        self.family(name, help, MetricType::Histogram, |mut family| {
            values.into_iter().try_for_each(|(labels, latency)| {
                let frames = |limit: Option<u64>| {
                    let mut same = latency.buckets.iter().filter(|b| b.upto_ns == limit);
                    same.next().map_or(0, |bucket| bucket.frames)
                };
                let limits = LIMITS_NS.iter().map(|ns| (*ns as f64 / 1e9, frames(Some(*ns))));
                let buckets: Vec<_> = limits.chain([(f64::INFINITY, frames(None))]).collect();
                let count = buckets.iter().map(|(_, frames)| frames).sum();
                let sum = latency.sum_seconds;
                let mut family = family.encode_family(&labels)?;
                family.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
            })
        })
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> Result<(), Error> {
        self.family(name, help, MetricType::Gauge, |mut family| family.encode_gauge(&value))
    }

    fn gauges<L: EncodeLabelSet, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, V)>,
    ) -> Result<(), Error> {
        self.family(name, help, MetricType::Gauge, |mut family| {
            values
                .into_iter()
                .try_for_each(|(labels, value)| family.encode_family(&labels)?.encode_gauge(&value))
        })
    }
}
