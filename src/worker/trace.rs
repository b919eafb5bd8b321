//! What would become of a frame: the pipeline's steps, one after the other, without sending.
//!
//! Each step asks the function that decides on the data path. Nothing is learned, counted or sent.

use crate::frame::{DropReason, Frame, HEAD_LEN, MAX_FRAME, MIN_FRAME, PortId, Verdict};
use crate::mem::SegmentPool;
use crate::port::{Outlook, Port};
use crate::stage;
use crate::table::mac::MacTable;
use crate::wire::ethernet::{self, MacAddr};
use crate::wire::offload::{self, BadOffload, Offloads};
use crate::wire::vnet::VnetHeader;

use super::Ports;

/// A step, what it looked at, and what it decided.
#[derive(Clone, Debug)]
pub enum Step {
    /// The worker takes the frame from the port.
    Ingress {
        /// Its number.
        worker: usize,
        /// Whether the frame could come at all.
        up: bool,
        /// Offloads that the sender may use.
        sends: Offloads,
    },
    /// Its virtio-net header is checked.
    Sanitise(Result<VnetHeader, BadOffload>),
    /// Where it came from is learned, and where it goes looked up.
    Forward {
        /// The two addresses.
        ends: (MacAddr, MacAddr),
        /// What comes of it.
        outlook: stage::Outlook,
    },
    /// Whether it may go from its port to another one; from a mirror's port, to none.
    Rules {
        /// The other port.
        to: Option<PortId>,
        /// Why not.
        refused: Option<DropReason>,
    },
    /// It goes to these ports.
    Flood(Vec<PortId>),
    /// It leaves by a port, unless its link is down.
    Egress(PortId, Option<Outlook>),
    /// A mirror copies it to this port.
    Mirror(PortId),
}

/// A frame's way.
#[derive(Clone, Debug)]
pub struct Walk {
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// Why it goes nowhere, if so.
    pub dropped: Option<DropReason>,
}

impl Walk {
    /// Walks the way of a frame with this virtio-net header that comes from `ingress`, by its first
    /// queue. `now` is in seconds. None: no frame has so many bytes.
    pub fn new(
        macs: &MacTable,
        ports: &Ports,
        ingress: &Port,
        header: &VnetHeader,
        bytes: &[u8],
        now: u32,
    ) -> Option<Self> {
        let len = u32::try_from(bytes.len()).ok()?;
        let ends = (ethernet::src(bytes)?, ethernet::dst(bytes)?);
        if !(MIN_FRAME..=MAX_FRAME).contains(&len) {
            return None;
        }
        let (head, tail) = bytes.split_at(bytes.len().min(HEAD_LEN));
        let mut frame = Frame::default();
        (frame.len, frame.vnet) = (len, header.encode());
        frame.head_mut().copy_from_slice(head);
        frame.tail = 0..1;
        let mut pool = SegmentPool::default();
        let segments = pool.local(tail, std::iter::once(0..tail.len()));

        let sends = ingress.sends();
        let worker = ports.worker_of(ingress, 0).unwrap_or_default();
        let mut steps = vec![Step::Ingress { worker, up: ingress.is_up(), sends }];
        stage::sanitise(std::slice::from_mut(&mut frame), sends);
        if let Verdict::Drop(reason) = frame.verdict {
            // The stage doesn't say why.
            steps.push(Step::Sanitise(offload::check(header, head, len, sends)));
            return Some(Self { steps, dropped: Some(reason) });
        }
        steps.push(Step::Sanitise(Ok(frame.vnet.decode())));
        if ports.is_probe(ingress.id) {
            let refused = Some(DropReason::MirrorPort);
            steps.push(Step::Rules { to: None, refused });
            return Some(Self { steps, dropped: refused });
        }
        let outlook = stage::foresee(ends, macs, ingress.id, now);
        steps.push(Step::Forward { ends, outlook });
        frame.verdict = outlook.verdict;
        let (leaves, dropped) = leaves(ports, ingress.id, frame.verdict, &mut steps);
        let copies = ports.mirrors().iter().filter(|mirror| {
            let out = mirror.outbound && leaves.contains(&mirror.from);
            mirror.inbound && mirror.from == ingress.id || out
        });
        let copies: Vec<_> = copies.map(|mirror| Step::Mirror(mirror.to)).collect();
        for port in leaves {
            let target = ports.get(port);
            let outlook = target.and_then(|target| target.foresee(&frame, &segments, worker));
            steps.push(Step::Egress(port, outlook));
        }
        steps.extend(copies);
        Some(Self { steps, dropped })
    }
}

/// The ports that a frame leaves by; or why it leaves by none.
fn leaves(
    ports: &Ports,
    from: PortId,
    verdict: Verdict,
    steps: &mut Vec<Step>,
) -> (Vec<PortId>, Option<DropReason>) {
    match verdict {
        Verdict::Drop(reason) => (Vec::new(), Some(reason)),
        Verdict::To(port) => {
            let refused = ports.refuses(from, port);
            steps.push(Step::Rules { to: Some(port), refused });
            (if refused.is_none() { vec![port] } else { Vec::new() }, refused)
        }
        Verdict::Flood => {
            let all: Vec<_> = ports.flooded(from).map(|port| port.id).collect();
            steps.push(Step::Flood(all.clone()));
            let nobody = all.is_empty().then(|| ports.refuses_all(from));
            (all, nobody)
        }
    }
}
