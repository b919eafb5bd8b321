//! Mirrors: copies of a port's frames for another port.
//!
//! Which frames of a burst are to be copied is noted before they are sent, and the copies are made
//! when all have been delivered. All copies of a worker together may take half of its time: what goes
//! beyond isn't made, and is counted at the port of the copies.

use crate::frame::{BURST, DropReason, Frame, Verdict};
use crate::mem::Segments;
use crate::port::{Egress, Port};
use crate::sys::allowance::Allowance;
use crate::sys::clock;

use super::pipeline::leave;
use super::{Ports, Shared};

/// The copies of bursts may take one part in so many of a worker's time ...
const PART: u64 = 2;
/// ... and so long at once, ns: some thousands of frames that come after a silence.
const AT_ONCE: u64 = 2_000_000;

/// What one worker copies.
#[derive(Debug)]
pub(super) struct Mirrors {
    /// By mirror: the frames of the burst.
    lists: Vec<Vec<u16>>,
    allowance: Allowance,
}

impl Default for Mirrors {
    fn default() -> Self {
        Self { lists: Vec::new(), allowance: Allowance::new(AT_ONCE, PART) }
    }
}

impl Mirrors {
    /// Has room for the mirrors of `ports`.
    pub fn take_up(&mut self, ports: &Ports) {
        self.lists.clear();
        self.lists.resize_with(ports.mirrors().len(), || Vec::with_capacity(BURST));
    }

    /// Notes what is to be copied of a burst that is grouped by egress port.
    #[inline(never)]
    pub fn note(&mut self, ports: &Ports, ingress: &Port, frames: &[Frame], groups: &[Vec<u16>]) {
        for (mirror, list) in ports.mirrors().iter().zip(&mut self.lists) {
            list.clear();
            if mirror.from == ingress.id && mirror.inbound {
                let whole = (0..).zip(frames).filter(|(_, frame)| is_whole(frame));
                list.extend(whole.map(|(index, _)| index));
            } else if mirror.outbound
                && let Some(group) = groups.get(mirror.from.index())
            {
                list.extend_from_slice(group);
            }
        }
    }

    /// Makes the copies.
    #[inline(never)]
    pub fn send(
        &self,
        shared: &Shared,
        ports: &Ports,
        worker: usize,
        ingress: &Port,
        (frames, segments): (&[Frame], &Segments<'_>),
    ) {
        for (mirror, list) in ports.mirrors().iter().zip(&self.lists) {
            let Some(to) = ports.get(mirror.to).filter(|_| !list.is_empty()) else { continue };
            let begin = clock::now_ns();
            let group = Egress { frames, segments, list, losses: None };
            if self.allowance.left(begin) == 0 {
                leave(shared, worker, ingress, to, list.len(), |counters| {
                    group.lose(DropReason::MirrorOverBudget, counters, None);
                });
            } else {
                leave(shared, worker, ingress, to, list.len(), |_| to.egress(group, worker));
                self.allowance.spend(begin, clock::now_ns().saturating_sub(begin));
            }
        }
    }
}

/// Whether it is a frame, wherever it went.
fn is_whole(frame: &Frame) -> bool {
    use DropReason::{BadChain, BadLength, BadVnetHeader};
    !matches!(frame.verdict, Verdict::Drop(BadChain | BadLength | BadVnetHeader))
}
