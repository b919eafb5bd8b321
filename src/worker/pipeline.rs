//! A burst's way through the switch: stages, grouping, egress.
//!
//! Each stage runs over the whole burst; then the frames are grouped by the port they leave by,
//! in order (a flooded frame stands in each group), and each group goes out at once.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::frame::{BURST, DropReason, Frame, Verdict};
use crate::mem::Segments;
use crate::port::{Egress, Port};
use crate::stage;
use crate::wire::offload::Offloads;

use super::Shared;
use super::capture::{Burst, Watch};
use super::flows::Mark;

/// About how long the frames of a burst may take that have offloads, ns. Those that pass as they are
/// are bounded by their bytes before; of those that must be cut, it is two of 64 KiB at an MTU of
/// 1500. The rest comes with the next burst.
const CUT_NS: u64 = 35_000;
/// About how long the frames of a burst may take that go to all ports, ns. It is more, since a
/// burst costs something at each port however short it is.
const FLOOD_NS: u64 = 100_000;

/// One worker's pipeline.
#[derive(Debug)]
pub(super) struct Pipeline {
    shared: Arc<Shared>,
    worker: usize,
    /// By port: the frames of the burst that leave by it.
    groups: Vec<Vec<u16>>,
    /// The ports with frames, in the order of their first one.
    touched: Vec<u16>,
    /// Who wants copies.
    watch: Watch,
}

impl Pipeline {
    pub fn new(shared: Arc<Shared>, worker: usize) -> Self {
        let ports = shared.ports.len();
        Self {
            shared,
            worker,
            groups: (0..ports).map(|_| Vec::with_capacity(BURST)).collect(),
            touched: Vec::with_capacity(ports),
            watch: Watch::default(),
        }
    }

    /// Serves the captures that there are now.
    pub fn watch(&mut self) {
        self.watch.set(self.shared.captures.lock().clone());
    }

    /// Switches a burst that came from `ingress`, whose driver may use the offloads `sends`: all of
    /// it or, if it is a dear one, as much as may be done at once. Returns how many frames that is,
    /// one at least. `now` is in seconds.
    #[inline]
    pub fn run(
        &mut self,
        ingress: &Port,
        frames: &mut [Frame],
        segments: &Segments<'_>,
        sends: Offloads,
        now: u32,
    ) -> usize {
        let read = self.watch.stamp();
        let segmentable = stage::sanitise(frames, sends);
        let floods = stage::forward(frames, &self.shared.macs, ingress.id, now);
        let mut count = frames.len();
        if segmentable || floods {
            count = self.affordable(ingress, frames);
        }
        let frames = frames.get(..count).unwrap_or_default();
        self.group(ingress, frames);
        match read {
            Some(read) if self.watch.concerns(ingress.id, &self.touched) => {
                self.send_watched(ingress, frames, segments, read);
            }
            _ => self.send(ingress, frames, segments),
        }
        count
    }

    /// How many of the frames may be sent at once.
    #[inline(never)]
    fn affordable(&self, ingress: &Port, frames: &[Frame]) -> usize {
        let ports = &self.shared.ports;
        let others = || flood_set(ports, ingress);
        let (mut cut, mut flooded) = (0, 0);
        for (index, frame) in frames.iter().enumerate() {
            match frame.verdict {
                Verdict::To(port) if !frame.vnet.is_plain() => {
                    cut += ports.get(port.index()).map_or(0, |port| port.cost(frame));
                }
                Verdict::Flood => flooded += others().map(|port| port.cost(frame)).sum::<u64>(),
                Verdict::To(_) | Verdict::Drop(_) => {}
            }
            if index > 0 && (cut > CUT_NS || flooded > FLOOD_NS) {
                return index;
            }
        }
        frames.len()
    }

    /// Sorts the frames by egress port and counts what came in.
    #[inline]
    fn group(&mut self, ingress: &Port, frames: &[Frame]) {
        let counters = ingress.counters(self.worker);
        let mut begin = 0;
        // Mostly one run: frames of a burst go the same way.
        for run in frames.chunk_by(|a, b| a.verdict == b.verdict) {
            let indices = begin..begin + run.len() as u16;
            begin = indices.end;
            match run.first().map(|frame| frame.verdict) {
                Some(Verdict::To(port)) => self.push(port.0, indices),
                Some(Verdict::Flood) => self.flood(ingress, indices),
                Some(Verdict::Drop(reason)) => counters.drop(reason, run.len() as u64),
                None => {}
            }
        }
        let bytes = frames.iter().map(|frame| u64::from(frame.len)).sum();
        counters.ingress_frames.add(frames.len() as u64);
        counters.ingress_bytes.add(bytes);
        counters.bursts.add(1);
    }

    #[inline]
    fn push(&mut self, port: u16, indices: Range<u16>) {
        let Some(group) = self.groups.get_mut(usize::from(port)) else {
            return;
        };
        if group.is_empty() {
            self.touched.push(port);
        }
        group.extend(indices);
    }

    fn flood(&mut self, ingress: &Port, indices: Range<u16>) {
        let shared = Arc::clone(&self.shared);
        let counters = ingress.counters(self.worker);
        let others = flood_set(&shared.ports, ingress);
        let copies = others.map(|port| self.push(port.id.0, indices.clone())).count();
        if copies == 0 {
            return counters.drop(DropReason::NoDestination, indices.len() as u64);
        }
        counters.flooded_frames.add(indices.len() as u64);
        counters.flooded_copies.add((copies * indices.len()) as u64);
    }

    /// Sends each group out of its port, and counts what went there.
    #[inline]
    fn send(&mut self, ingress: &Port, frames: &[Frame], segments: &Segments<'_>) {
        for port in self.touched.drain(..) {
            let index = usize::from(port);
            let target = self.shared.ports.get(index).zip(self.groups.get_mut(index));
            let Some((port, list)) = target else { continue };
            let group = Egress { frames, segments, list, losses: None };
            leave(&self.shared, self.worker, ingress, port, group);
            list.clear();
        }
    }

    /// The same, for somebody who wants copies and to know what became of them. `read`: when the burst
    /// was.
    #[inline(never)]
    fn send_watched(
        &mut self,
        ingress: &Port,
        frames: &[Frame],
        segments: &Segments<'_>,
        read: u64,
    ) {
        let Self { worker, watch, .. } = self;
        let burst = Burst { worker: *worker, ingress: ingress.id, frames, segments };
        watch.begin(read);
        for port in self.touched.drain(..) {
            let index = usize::from(port);
            let target = self.shared.ports.get(index).zip(self.groups.get_mut(index));
            let Some((port, list)) = target else { continue };
            let group = Egress { frames, segments, list, losses: Some(watch.losses()) };
            leave(&self.shared, *worker, ingress, port, group);
            watch.left(&burst, port.id, list);
            list.clear();
        }
        watch.end(&burst);
    }

    /// Whether the switch is ending.
    #[inline]
    pub fn stopping(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    /// Index of the worker.
    #[inline]
    pub fn worker(&self) -> usize {
        self.worker
    }

    pub fn shared(&self) -> &Shared {
        &self.shared
    }
}

/// The ports that a frame from `ingress` leaves by if it goes to all.
pub(super) fn flood_set<'p>(
    ports: &'p [Arc<Port>],
    ingress: &Port,
) -> impl Iterator<Item = &'p Port> {
    let ingress = ingress.id;
    ports.iter().map(Arc::as_ref).filter(move |port| port.id != ingress && port.is_up())
}

/// Sends a group out of its port, and counts what went there.
#[inline]
fn leave(shared: &Shared, worker: usize, ingress: &Port, port: &Port, group: Egress<'_>) {
    let counters = port.counters(worker);
    let before = Mark::new(counters);
    port.egress(group, worker);
    if let Some(flows) = shared.flows.get(worker) {
        flows.count(ingress.id, port.id, group.list.len(), before, counters);
    }
}
