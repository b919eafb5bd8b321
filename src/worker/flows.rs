//! Who talks to whom: what went from each port to each other.
//!
//! A matrix for each worker, which alone writes it; readers add the matrices up. It is counted once
//! for each group of a burst, by what the egress port's own counters gained. So of each port, when
//! no frame is on its way, the sums over all senders are its `egress_frames`, `egress_bytes` and
//! egress drops.

use crate::config::MAX_PORTS;
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

/// One worker's matrix. It has room for all ports that there can be, which costs memory only where
/// there are frames.
#[derive(Debug)]
pub struct Flows {
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

impl Default for Flows {
    fn default() -> Self {
        Self { cells: counter::zeroed(MAX_PORTS * MAX_PORTS + APART) }
    }
}

impl Flows {
    /// Begins anew with what goes from and to a port: it is another one now. Only the owning worker
    /// calls it.
    pub fn forget(&self, port: PortId) {
        let others = 0..MAX_PORTS;
        let both = |other| [self.cell(port.index(), other), self.cell(other, port.index())];
        let used = others.flat_map(both).flatten().flatten().filter(|counter| counter.get() != 0);
        used.for_each(Counter::reset);
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
        self.cells.get(from * MAX_PORTS + to)
    }

    /// The sums of these matrices: each pair of `ports` that had frames.
    pub fn sums<'m>(
        matrices: impl Iterator<Item = &'m Self> + Clone,
        ports: &[PortId],
    ) -> Vec<(PortId, PortId, Flow)> {
        let pairs = ports.iter().flat_map(|from| ports.iter().map(move |to| (*from, *to)));
        let sum = |(from, to): (PortId, PortId)| {
            let mut flow = Flow::default();
            let cells = matrices.clone().filter_map(|m| m.cell(from.index(), to.index()));
            for [frames, bytes, dropped] in cells {
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
        let matrices = [Flows::default(), Flows::default()];
        let [counters, others] = [Counters::default(), Counters::default()];
        let ports = [0, 1, MAX_PORTS as u16 - 1].map(PortId);
        let [a, b, c] = ports;
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
        assert_eq!(Flows::sums(matrices.iter(), &ports), [(a, b, twice), (c, a, flow)]);
        assert_eq!(Flows::sums([].iter(), &ports), []);
        matrices.iter().for_each(|matrix| matrix.forget(c));
        assert_eq!(Flows::sums(matrices.iter(), &ports), [(a, b, twice)]);
        matrices[0].forget(b);
        let other = Flow { frames: 2, bytes: 200, dropped: 1 };
        assert_eq!(
            Flows::sums(matrices.iter(), &ports),
            [(a, b, other)],
            "what the second one counted"
        );
    }
}
