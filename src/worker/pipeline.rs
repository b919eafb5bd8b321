//! A burst's way through the switch: stages, grouping, egress.
//!
//! Each stage runs over the whole burst; then the frames are grouped by the port they leave by,
//! in order (a flooded frame stands in each group), and each group goes out at once.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::frame::{BURST, DropReason, Frame, PortId, Verdict};
use crate::mem::Segments;
use crate::port::{Counters, Egress, Port};
use crate::stage;
use crate::wire::offload::Offloads;

use super::capture::{Burst, Watch};
use super::flows::Mark;
use super::mirror::Mirrors;
use super::{Ports, Shared};

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
    ports: Arc<Ports>,
    worker: usize,
    /// By port: the frames of the burst that leave by it.
    groups: Vec<Vec<u16>>,
    /// The ports with frames, in the order of their first one.
    touched: Vec<u16>,
    /// Who wants to see frames.
    watch: Watch,
    mirrors: Mirrors,
}

impl Pipeline {
    pub fn new(shared: Arc<Shared>, worker: usize) -> Self {
        let mut this = Self {
            shared,
            ports: Arc::default(),
            worker,
            groups: Vec::new(),
            touched: Vec::new(),
            watch: Watch::default(),
            mirrors: Mirrors::default(),
        };
        this.take_up_ports();
        this.watch();
        this
    }

    /// Goes over to the ports that there are now.
    pub fn take_up_ports(&mut self) {
        let ports = self.shared.ports.now();
        self.groups.resize_with(ports.places(), || Vec::with_capacity(BURST));
        self.touched.reserve(ports.places());
        self.mirrors.take_up(&ports);
        let before = std::mem::replace(&mut self.ports, ports);
        for port in self.ports.iter() {
            match before.get(port.id).filter(|old| old.name == port.name) {
                Some(old) if Arc::ptr_eq(old, port) => {}
                Some(old) => port.counters(self.worker).succeed(old.counters(self.worker)),
                None => {
                    let flows = self.shared.flows_of(self.worker);
                    flows.into_iter().for_each(|flows| flows.forget(port.id));
                }
            }
        }
    }

    /// The ports that it goes by.
    pub fn ports(&self) -> &Arc<Ports> {
        &self.ports
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
        if self.ports.is_probe(ingress.id) {
            let drop = Verdict::Drop(DropReason::MirrorPort);
            frames.iter_mut().for_each(|frame| frame.verdict = drop);
        }
        let floods = stage::forward(frames, &self.shared.macs, ingress.id, now);
        let mut count = frames.len();
        if segmentable || floods {
            count = self.affordable(ingress, frames);
        }
        let frames = frames.get_mut(..count).unwrap_or_default();
        self.group(ingress, frames);
        let mirrored = !self.ports.mirrors().is_empty();
        if mirrored {
            self.mirrors.note(&self.ports, ingress, frames, &self.groups);
        }
        match read {
            Some(read) if self.watch.concerns(ingress.id, &self.touched) => {
                self.send_watched(ingress, frames, segments, read);
            }
            _ => self.send(ingress, frames, segments),
        }
        if mirrored {
            let burst = (&*frames, segments);
            self.mirrors.send(&self.shared, &self.ports, self.worker, ingress, burst);
        }
        count
    }

    /// How many of the frames may be sent at once.
    #[inline(never)]
    fn affordable(&self, ingress: &Port, frames: &[Frame]) -> usize {
        let ports = &self.ports;
        let others = || ports.flooded(ingress.id);
        let (mut cut, mut flooded) = (0, 0);
        for (index, frame) in frames.iter().enumerate() {
            match frame.verdict {
                Verdict::To(port) if !frame.vnet.is_plain() => {
                    cut += ports.get(port).map_or(0, |port| port.cost(frame));
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
    fn group(&mut self, ingress: &Port, frames: &mut [Frame]) {
        let counters = ingress.counters(self.worker);
        let mut begin = 0;
        // Mostly one run: frames of a burst go the same way.
        for run in frames.chunk_by_mut(|a, b| a.verdict == b.verdict) {
            let indices = begin..begin + run.len() as u16;
            begin = indices.end;
            match run.first().map(|frame| frame.verdict) {
                Some(Verdict::To(port)) => match self.ports.refuses(ingress.id, port) {
                    None => self.push(port.0, indices),
                    Some(reason) => refuse(run, reason, counters),
                },
                Some(Verdict::Flood) if self.flood(ingress, indices) => {}
                Some(Verdict::Flood) => {
                    refuse(run, self.ports.refuses_all(ingress.id), counters);
                }
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

    /// Returns whether there is a port that takes them.
    fn flood(&mut self, ingress: &Port, indices: Range<u16>) -> bool {
        let ports = Arc::clone(&self.ports);
        let counters = ingress.counters(self.worker);
        let others = ports.flooded(ingress.id);
        let copies = others.map(|port| self.push(port.id.0, indices.clone())).count();
        if copies == 0 {
            return false;
        }
        counters.flooded_frames.add(indices.len() as u64);
        counters.flooded_copies.add((copies * indices.len()) as u64);
        true
    }

    /// Sends each group out of its port, and counts what went there.
    #[inline]
    fn send(&mut self, ingress: &Port, frames: &[Frame], segments: &Segments<'_>) {
        for port in self.touched.drain(..) {
            let index = usize::from(port);
            let target = self.ports.get(PortId(port)).zip(self.groups.get_mut(index));
            let Some((port, list)) = target else { continue };
            let group = Egress { frames, segments, list, losses: None };
            leave(&self.shared, self.worker, ingress, port, group.list.len(), |_| {
                port.egress(group, self.worker);
            });
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
            let target = self.ports.get(PortId(port)).zip(self.groups.get_mut(index));
            let Some((port, list)) = target else { continue };
            let group = Egress { frames, segments, list, losses: Some(watch.losses()) };
            leave(&self.shared, *worker, ingress, port, group.list.len(), |_| {
                port.egress(group, *worker);
            });
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

/// Drops frames of a burst.
fn refuse(frames: &mut [Frame], reason: DropReason, counters: &Counters) {
    frames.iter_mut().for_each(|frame| frame.verdict = Verdict::Drop(reason));
    counters.drop(reason, frames.len() as u64);
}

/// Has `count` frames leave by a port, and counts what went there.
#[inline]
pub(super) fn leave(
    shared: &Shared,
    worker: usize,
    ingress: &Port,
    port: &Port,
    count: usize,
    go: impl FnOnce(&Counters),
) {
    let counters = port.counters(worker);
    let before = Mark::new(counters);
    go(counters);
    if let Some(flows) = shared.flows_of(worker) {
        flows.count(ingress.id, port.id, count, before, counters);
    }
}
