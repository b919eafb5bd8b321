//! A live trace as an answer that doesn't end: a line of JSON for each frame of a sample.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use hyper::body::Frame as BodyFrame;
use serde::Deserialize;
use tokio::time::{Interval, MissedTickBehavior, interval};
use utoipa::IntoParams;

use crate::api::{Problem, TraceLine, TracedFrame};
use crate::frame::PortId;
use crate::wire::ethernet;
use crate::wire::filter::Filter;
use crate::wire::summary::summary;
use crate::worker::{Buffer, Capture, Fate, Ports, Record};

use super::{Patience, View, no_port, problem, too_many};

/// How often the workers' samples are taken: with their size this is some 300 frames a second.
const TICK: Duration = Duration::from_millis(100);
/// Ticks between two words on what was left out. They also show whether the client is still there.
const LEFT_OUT: u32 = 10;
/// The type of the answer.
const JSON_LINES: &str = "application/jsonl";

/// What to trace.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// The name of a port: frames that come from there or go there.
    port: String,
    /// Which of them, in words (`docs/seeing.md`); all unless said.
    filter: Option<String>,
}

/// A sample of the frames of a port from now on, until the client leaves: a line for each port that
/// one was to leave by, with the times of its stages.
#[utoipa::path(
    get,
    path = "/v1/trace/live",
    tag = "trace",
    params(Wanted),
    responses(
        (status = 200, description = "Lines", body = TraceLine, content_type = JSON_LINES),
        (status = 400, description = "What was asked for isn't possible", body = Problem),
        (status = 404, description = "There is no port of that name", body = Problem),
        (status = 503, description = "There are too many captures", body = Problem)
    )
)]
pub(super) async fn live(
    State(view): State<Arc<View>>,
    Extension(patience): Extension<Patience>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Response {
    let Query(Wanted { port, filter }) = match wanted {
        Ok(wanted) => wanted,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &error.body_text()),
    };
    let filter: Filter = match filter.unwrap_or_default().parse() {
        Ok(filter) => filter,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let Some(index) = view.shared().ports.now().find(&port).map(|port| port.id.index()) else {
        return no_port(&view, &port);
    };
    match LiveBody::begin(&view, index, filter) {
        Some(body) => {
            patience.0.store(true, Ordering::Relaxed);
            ([("content-type", JSON_LINES)], Body::new(body)).into_response()
        }
        None => too_many(),
    }
}

/// A live trace that runs, until it is dropped.
struct LiveBody {
    view: Arc<View>,
    capture: Arc<Capture>,
    spares: Vec<Buffer>,
    interval: Interval,
    ticks: u32,
}

impl LiveBody {
    /// Begins to trace the port of this index. None if there are too many captures.
    fn begin(view: &Arc<View>, port: usize, filter: Filter) -> Option<Self> {
        let shared = view.shared();
        let ports = (0..=port).map(|index| index == port).collect();
        let capture = Arc::new(Capture::sample(ports, filter, shared.mailboxes.len()));
        if !shared.begin_capture(&capture) {
            return None;
        }
        let spares = capture.spares();
        let mut interval = interval(TICK);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Some(Self { view: Arc::clone(view), capture, spares, interval, ticks: 0 })
    }

    /// What came since the last time.
    fn lines(&mut self) -> Vec<u8> {
        let Self { view, capture, spares, ticks, .. } = self;
        let mut lines: Vec<_> = Vec::new();
        if ticks.is_multiple_of(LEFT_OUT) {
            lines.push(TraceLine::LeftOut(capture.missed()));
        }
        let records = capture.take(spares);
        let ports = view.shared().ports.now();
        let frames = records.iter().map(|record| TraceLine::Frame(traced(view, &ports, record)));
        lines.extend(frames);
        let mut text = Vec::new();
        for line in lines {
            // A vector takes all that is written.
            let _ = serde_json::to_writer(&mut text, &line);
            text.push(b'\n');
        }
        text
    }
}

fn traced(view: &View, ports: &Ports, record: &Record<'_>) -> TracedFrame {
    let name = |port: u16| ports.get(PortId(port)).map_or("?", |port| &port.name).to_owned();
    let (from, dropped) = match record.fate {
        Fate::Passed { peer } => (peer, None),
        Fate::Lost { peer, reason } => (peer, Some(reason)),
        Fate::Dropped { reason } => (record.port, Some(reason)),
        Fate::Flooded { .. } => (record.port, None),
    };
    let per_ns = view.tsc_rate() / 1e9;
    let ns = |cycles: u64| (cycles as f64 / per_ns) as u64;
    let decided_ns = ns(record.stamps.decided);
    let mac = |mac: Option<ethernet::MacAddr>| mac.unwrap_or_default().to_string();
    TracedFrame {
        time_ns: record.ns.saturating_sub(decided_ns),
        from: name(from),
        to: (!record.inbound).then(|| name(record.port)),
        length: record.len,
        source: mac(ethernet::src(record.bytes)),
        destination: mac(ethernet::dst(record.bytes)),
        summary: summary(record.bytes),
        decided_ns,
        left_ns: ns(record.stamps.left),
        dropped: dropped.map(|reason| reason.to_string()),
    }
}

impl HttpBody for LiveBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Bytes>, Infallible>>> {
        loop {
            ready!(self.interval.poll_tick(context));
            let lines = self.lines();
            self.ticks = self.ticks.wrapping_add(1);
            if !lines.is_empty() {
                return Poll::Ready(Some(Ok(BodyFrame::data(lines.into()))));
            }
        }
    }
}

impl Drop for LiveBody {
    fn drop(&mut self) {
        self.view.shared().end_capture(&self.capture);
    }
}
