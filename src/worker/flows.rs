//! Who talks to whom: what went from each port to each other.
//!
//! A matrix for each worker, which alone writes it; readers add the matrices up. It is counted once
//! for each group of a burst, by what the egress port's own counters gained. So of each port, when
//! no frame is on its way, the sums over all senders are its `egress_frames`, `egress_bytes` and
//! egress drops.

use crate::frame::PortId;
use crate::port::Counters;
use crate::sys::counter::{self, Counter};

/// Cells behind the last one that nobody uses: the next worker's matrix shares no cache line.
const APART: usize = 6;

/// What went from one port to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Frames that were delivered.
    pub frames: u64,
    /// Their bytes, as their senders sent them.
    pub bytes: u64,
    /// Frames that the egress port dropped.
    pub dropped: u64,
}

/// One worker's matrix.
#[derive(Debug)]
pub struct Flows {
    ports: usize,
    /// Frames, bytes and drops by ingress port, then by egress port.
    cells: Box<[[Counter; 3]]>,
}

/// What an egress port had delivered before a group.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    frames: u64,
    bytes: u64,
}

impl Mark {
    /// The counters of the egress port, this worker's.
    #[inline]
    pub fn new(counters: &Counters) -> Self {
        Self { frames: counters.egress_frames.get(), bytes: counters.egress_bytes.get() }
    }
}

impl Flows {
    /// For so many ports.
    pub fn new(ports: usize) -> Self {
        Self { ports, cells: counter::zeroed(ports * ports + APART) }
    }

    /// Counts a group of `sent` frames that went from one port to another, whose counters were at
    /// `before`. Only the owning worker calls it.
    #[inline]
    pub fn count(&self, from: PortId, to: PortId, sent: usize, before: Mark, now: &Counters) {
        let delivered = now.egress_frames.get().wrapping_sub(before.frames);
        let Some([frames, bytes, dropped]) = self.cell(from.index(), to.index()) else { return };
        frames.add(delivered);
        bytes.add(now.egress_bytes.get().wrapping_sub(before.bytes));
        // Each frame is delivered or dropped, and the drops are spread over their reasons.
        if delivered != sent as u64 {
            dropped.add((sent as u64).wrapping_sub(delivered));
        }
    }

    #[inline]
    fn cell(&self, from: usize, to: usize) -> Option<&[Counter; 3]> {
        self.cells.get(from * self.ports + to)
    }

    /// The sums of these matrices: each pair of ports that had frames, by index.
    pub fn sums(matrices: &[Self]) -> Vec<(usize, usize, Flow)> {
        let ports = matrices.first().map_or(0, |matrix| matrix.ports);
        let pairs = (0..ports).flat_map(|from| (0..ports).map(move |to| (from, to)));
        let sum = |(from, to)| {
            let mut flow = Flow::default();
            for [frames, bytes, dropped] in matrices.iter().filter_map(|m| m.cell(from, to)) {
                flow.frames += frames.get();
                flow.bytes += bytes.get();
                flow.dropped += dropped.get();
            }
            (flow != Flow::default()).then_some((from, to, flow))
        };
        pairs.filter_map(sum).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::DropReason;

    #[test]
    fn matrices_add_up() {
        let matrices = [Flows::new(3), Flows::new(3)];
        let [counters, others] = [Counters::default(), Counters::default()];
        let [a, b, c] = [0, 1, 2].map(PortId);
        for (matrix, counters, from, to) in [
            (&matrices[0], &counters, a, b),
            (&matrices[1], &others, a, b),
            (&matrices[1], &others, c, a),
        ] {
            let before = Mark::new(counters);
            counters.egress_frames.add(2);
            counters.egress_bytes.add(200);
            counters.drop(DropReason::RxRingFull, 1);
            matrix.count(from, to, 3, before, counters);
        }
        let flow = Flow { frames: 2, bytes: 200, dropped: 1 };
        let twice = Flow { frames: 4, bytes: 400, dropped: 2 };
        assert_eq!(Flows::sums(&matrices), [(0, 1, twice), (2, 0, flow)]);
        assert_eq!(Flows::sums(&[]), []);
    }
}
