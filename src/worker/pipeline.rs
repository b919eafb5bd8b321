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

/// One worker's pipeline.
#[derive(Debug)]
pub(super) struct Pipeline {
    shared: Arc<Shared>,
    worker: usize,
    /// By port: the frames of the burst that leave by it.
    groups: Vec<Vec<u16>>,
    /// The ports with frames, in the order of their first one.
    touched: Vec<u16>,
}

impl Pipeline {
    pub fn new(shared: Arc<Shared>, worker: usize) -> Self {
        let ports = shared.ports.len();
        Self {
            shared,
            worker,
            groups: (0..ports).map(|_| Vec::with_capacity(BURST)).collect(),
            touched: Vec::with_capacity(ports),
        }
    }

    /// Switches a burst that came from `ingress`, whose driver may use the offloads `sends`.
    /// `now` is in seconds.
    #[inline]
    pub fn run(
        &mut self,
        ingress: &Port,
        frames: &mut [Frame],
        segments: &Segments<'_>,
        sends: Offloads,
        now: u32,
    ) {
        stage::sanitise(frames, sends);
        stage::forward(frames, &self.shared.macs, ingress.id, now);
        self.group(ingress, frames);
        self.send(frames, segments);
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
        let others = shared.ports.iter().filter(|port| port.id != ingress.id && port.is_up());
        let copies = others.map(|port| self.push(port.id.0, indices.clone())).count();
        if copies == 0 {
            return counters.drop(DropReason::NoDestination, indices.len() as u64);
        }
        counters.flooded_frames.add(indices.len() as u64);
        counters.flooded_copies.add((copies * indices.len()) as u64);
    }

    /// Sends each group out of its port.
    #[inline]
    fn send(&mut self, frames: &[Frame], segments: &Segments<'_>) {
        for port in self.touched.drain(..) {
            let index = usize::from(port);
            let target = self.shared.ports.get(index).zip(self.groups.get_mut(index));
            let Some((port, list)) = target else { continue };
            port.egress(Egress { frames, segments, list }, self.worker);
            list.clear();
        }
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
