//! The way of a frame that isn't sent, in words.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::api::{Problem, Trace, TraceExit, TraceHeader, TraceRequest, TraceStage, TraceStep};
use crate::frame::{DropReason, HEAD_LEN, MAX_FRAME, MIN_FRAME, PortId, Verdict};
use crate::port::{Becomes, Chosen, Conversion, Kind, Outlook, Place, Port};
use crate::ring::Room;
use crate::stage;
use crate::sys::clock;
use crate::table::mac::Learned;
use crate::wire::ethernet::MacAddr;
use crate::wire::summary::summary;
use crate::wire::vnet::{GSO_NONE, NEEDS_CSUM, VnetHeader};
use crate::wire::{flow, hex};
use crate::worker::{Ports, Step, Walk};

use super::{View, no_port, problem};

/// The longest request: the longest frame in hex digits, and what stands around it.
pub(super) const BODY: usize = 2 * MAX_FRAME as usize + 4096;

/// The way that a frame would go, if it came now. Nothing is learned, counted or sent.
#[utoipa::path(
    post,
    path = "/v1/trace",
    request_body = TraceRequest,
    responses(
        (status = 200, body = Trace),
        (status = 400, description = "That is no frame", body = Problem),
        (status = 404, description = "There is no port of that name", body = Problem),
        (status = 413, description = "It is too long", body = Problem),
        (status = 415, description = "It isn't JSON", body = Problem),
        (status = 422, description = "Something is missing", body = Problem)
    )
)]
pub(super) async fn trace(
    State(view): State<Arc<View>>,
    request: Result<Json<TraceRequest>, JsonRejection>,
) -> Response {
    let Json(request) = match request {
        Ok(request) => request,
        Err(error) => return problem(error.status(), &error.body_text()),
    };
    let shared = view.shared();
    let ports = shared.ports.now();
    let Some(ingress) = ports.find(&request.port) else {
        return no_port(&view, &request.port);
    };
    let bytes = match hex::decode(&request.frame) {
        Ok(bytes) => bytes,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let header = header(request.header);
    match Walk::new(&shared.macs, &ports, ingress, &header, &bytes, clock::coarse_seconds()) {
        Some(walk) => {
            let head = bytes.get(..HEAD_LEN).unwrap_or(&bytes);
            let words = Words { ports: &ports, ingress, header, bytes: &bytes, head };
            Json(words.trace(&walk)).into_response()
        }
        None => {
            let error = format!(
                "a frame has {MIN_FRAME} to {MAX_FRAME} bytes, this one {}: it would be dropped, {}",
                bytes.len(),
                DropReason::BadLength
            );
            problem(StatusCode::BAD_REQUEST, &error)
        }
    }
}

fn header(header: TraceHeader) -> VnetHeader {
    let TraceHeader { flags, gso_type, gso_size, csum_start, csum_offset } = header;
    VnetHeader { flags, gso_type, gso_size, csum_start, csum_offset, ..VnetHeader::default() }
}

/// What the words are about.
struct Words<'a> {
    ports: &'a Ports,
    ingress: &'a Port,
    header: VnetHeader,
    bytes: &'a [u8],
    /// What stages see of them.
    head: &'a [u8],
}

impl Words<'_> {
    fn trace(&self, walk: &Walk) -> Trace {
        let steps = walk.steps.iter().flat_map(|step| self.step(step)).collect();
        let exits: Vec<_> = walk.steps.iter().filter_map(|step| self.exit(step)).collect();
        let verdict = verdict(walk.dropped, &exits);
        Trace { steps, exits, dropped: walk.dropped.map(|reason| reason.to_string()), verdict }
    }

    fn name(&self, port: PortId) -> String {
        self.ports.get(port).map_or("?", |port| &port.name).to_owned()
    }

    fn exit(&self, step: &Step) -> Option<TraceExit> {
        let Step::Egress(port, outlook) = step else { return None };
        let done = outlook.map_or(Err(DropReason::LinkDown), |outlook| outlook.done());
        Some(TraceExit {
            port: self.name(*port),
            frames: done.unwrap_or(0),
            dropped: done.err().map(|reason| reason.to_string()),
        })
    }

    fn step(&self, step: &Step) -> Vec<TraceStep> {
        match step {
            Step::Ingress { worker, up, sends } => {
                let state = if *up { "up" } else { "down, so that nothing comes now" };
                let saw = format!(
                    "{} bytes, {}; {state}; offloads: {sends}",
                    self.bytes.len(),
                    summary(self.head)
                );
                let decision = format!("worker {worker} takes it");
                vec![said(TraceStage::Ingress, Some(self.ingress.name.clone()), saw, decision)]
            }
            Step::Sanitise(done) => {
                let decision = match done {
                    Ok(header) if *header == VnetHeader::default() => "goes on".to_owned(),
                    Ok(header) => format!("goes on with {}", offloads(header)),
                    Err(error) => format!("dropped, {}: {error}", DropReason::BadVnetHeader),
                };
                vec![said(TraceStage::Sanitise, None, offloads(&self.header), decision)]
            }
            Step::Forward { ends, outlook } => self.forward(*ends, outlook).into(),
            Step::Flood(ports) => {
                let decision = match ports.as_slice() {
                    [] => format!("dropped, {}", self.ports.refuses_all(self.ingress.id)),
                    [port] => format!("to {}", self.name(*port)),
                    ports => format!("to {} ports", ports.len()),
                };
                let saw = format!("{} other ports", self.ports.iter().count().saturating_sub(1));
                vec![said(TraceStage::Flood, None, saw, decision)]
            }
            Step::Rules { to, refused } => vec![self.rules(*to, *refused)],
            Step::Egress(port, outlook) => self.egress(*port, outlook.as_ref()),
            Step::Mirror(port) => {
                let saw = "a mirror of a port on its way".to_owned();
                vec![said(TraceStage::Mirror, Some(self.name(*port)), saw, "copied".to_owned())]
            }
        }
    }

    fn rules(&self, to: Option<PortId>, refused: Option<DropReason>) -> TraceStep {
        let decision = match refused {
            None => "goes on".to_owned(),
            Some(reason) => format!("dropped, {reason}"),
        };
        let saw = match to {
            None => "it gets a mirror's copies".to_owned(),
            Some(to) => {
                let [from, to] =
                    [self.ingress.id, to].map(|id| (self.name(id), self.ports.reach(id)));
                format!("{} is {}, {} is {}", from.0, from.1, to.0, to.1)
            }
        };
        said(TraceStage::Rules, Some(self.ingress.name.clone()), saw, decision)
    }

    fn forward(
        &self,
        (source, destination): (MacAddr, MacAddr),
        outlook: &stage::Outlook,
    ) -> [TraceStep; 2] {
        let learned = match outlook.learned {
            Learned::New => "would be learned".to_owned(),
            Learned::Refreshed => "is known here: refreshed".to_owned(),
            Learned::Moved { from } => format!("would move here from {}", self.name(PortId(from))),
            Learned::LimitReached => "refused: the port has as many as it may".to_owned(),
            Learned::Given => "refused: it was given to another port".to_owned(),
            Learned::Full => "refused: there is no room in the table".to_owned(),
            Learned::Busy => "refused: the table is being changed".to_owned(),
            Learned::Ignored => "ignored: no station has such an address".to_owned(),
        };
        let decision = match (outlook.verdict, outlook.found) {
            (Verdict::Drop(reason), _) => format!("dropped, {reason}"),
            (Verdict::To(port), _) => format!("to {}", self.name(port)),
            (Verdict::Flood, _) => "to all".to_owned(),
        };
        let known = match outlook.found {
            Some(port) => format!("{destination} is at {}", self.name(port)),
            None if destination == MacAddr([0xff; 6]) => format!("{destination} is broadcast"),
            None if destination.is_multicast() => format!("{destination} is a group"),
            None => format!("{destination} is unknown"),
        };
        let here = Some(self.ingress.name.clone());
        [
            said(TraceStage::Learn, here, source.to_string(), learned),
            said(TraceStage::LookUp, None, known, decision),
        ]
    }

    fn egress(&self, port: PortId, outlook: Option<&Outlook>) -> Vec<TraceStep> {
        let name = || Some(self.name(port));
        let Some(outlook) = outlook else {
            let decision = format!("dropped, {}", DropReason::LinkDown);
            return vec![said(TraceStage::Egress, name(), "down".to_owned(), decision)];
        };
        let (saw, decision) = self.queue(port, outlook);
        let mut steps = vec![said(TraceStage::Egress, name(), saw, decision)];
        let saw = format!("the receiver takes: {}", outlook.accepts);
        let becomes = match outlook.becomes {
            Ok(Becomes { how, frames, longest, .. }) => match how {
                Conversion::None => "passes as it is".to_owned(),
                Conversion::Checksummed => "its checksum is completed".to_owned(),
                Conversion::Segmented => {
                    format!("cut into {frames} frames of {longest} bytes at most")
                }
            },
            Err(reason) => format!("dropped, {reason}"),
        };
        steps.push(said(TraceStage::Offload, name(), saw, becomes));
        if outlook.becomes.is_ok() {
            let decision = match outlook.done() {
                Ok(_) => "delivered".to_owned(),
                Err(reason) => format!("dropped, {reason}"),
            };
            steps.push(said(TraceStage::Room, name(), place(outlook.room), decision));
        }
        steps
    }

    /// What a queue is chosen by, and which one.
    fn queue(&self, port: PortId, outlook: &Outlook) -> (String, String) {
        let Outlook { queues, queue, chosen, .. } = *outlook;
        let tap = self.ports.get(port).map(|port| &port.kind);
        let kind = if matches!(tap, Some(Kind::Tap(_))) { "queue" } else { "queue pair" };
        let hash = flow::flow_hash(self.head);
        let why = match chosen {
            Chosen::Only => String::new(),
            Chosen::Noted => format!("; the guest sends the flow {hash:08x} on {queue}"),
            Chosen::Hash => format!("; the guest doesn't send the flow {hash:08x}"),
            Chosen::Unused => "; the driver doesn't use the flow's".to_owned(),
            Chosen::Worker => "; each worker has its own".to_owned(),
        };
        let plural = if queues == 1 { "" } else { "s" };
        (format!("up, {queues} {kind}{plural}{why}"), format!("by {kind} {queue}"))
    }
}

fn said(step: TraceStage, port: Option<String>, saw: String, decision: String) -> TraceStep {
    TraceStep { step, port, saw, decision }
}

fn place(place: Place) -> String {
    match place {
        Place::Ring(Room { buffers, bytes, more, .. }) => {
            let more = if more { ", or more" } else { "" };
            format!("{bytes} bytes in {buffers} receive buffers{more}")
        }
        Place::Busy => "the ring was busy just now, and not looked at".to_owned(),
        Place::Stopped => "the ring doesn't run".to_owned(),
        Place::Tap => "the kernel's queue, which can't be looked at".to_owned(),
    }
}

fn offloads(header: &VnetHeader) -> String {
    let VnetHeader { flags, gso_type, gso_size, csum_start, csum_offset, .. } = header;
    if *flags == 0 && *gso_type == GSO_NONE {
        return "no offloads".to_owned();
    }
    let mut text = format!("flags {flags}");
    if flags & NEEDS_CSUM != 0 {
        text += &format!(", checksum at {csum_start}+{csum_offset}");
    }
    if *gso_type != GSO_NONE {
        text += &format!(", segments of type {gso_type} and size {gso_size}");
    }
    text
}

fn verdict(dropped: Option<DropReason>, exits: &[TraceExit]) -> String {
    if let Some(reason) = dropped {
        return format!("dropped, {reason}. {}", reason.text());
    }
    let of = |exit: &TraceExit| match exit.frames {
        0 | 1 => exit.port.clone(),
        frames => format!("{} as {frames} frames", exit.port),
    };
    let list = |exits: Vec<String>| exits.join(", ");
    let there: Vec<_> = exits.iter().filter(|exit| exit.dropped.is_none()).map(of).collect();
    let lost = exits
        .iter()
        .filter_map(|exit| exit.dropped.as_ref().map(|reason| format!("{} ({reason})", exit.port)));
    let lost: Vec<_> = lost.collect();
    match (there.is_empty(), lost.is_empty()) {
        (false, true) => format!("delivered to {}", list(there)),
        (true, _) => format!("dropped at {}", list(lost)),
        (false, false) => format!("delivered to {}; dropped at {}", list(there), list(lost)),
    }
}
