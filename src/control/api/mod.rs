//! The API: HTTP over a UNIX socket, for those who want to see what the switch does or to change it;
//! and metrics over TCP.
//!
//! One thread serves all clients, and looks at what workers write without asking them. A client that
//! stalls is left after a while, and there are only so many at a time: the others wait at the door.

mod capture;
mod change;
mod door;
mod live;
mod log_level;
mod metrics;
mod trace;
mod view;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post, put};
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore};
use utoipa::{IntoParams, OpenApi};

use crate::api::{Flow, Mac, Port, Problem, Process, Worker};
use crate::config::Settings;
use crate::frame::MAX_FRAME;
use crate::wire::filter::Filter;
use crate::worker::MAX_CAPTURES;

use capture::CaptureBody;
use change::Caller;
pub use door::{Door, DoorError};
use door::{DoorSocket, OpenDoor};
pub use view::View;

/// Clients at a time.
const CLIENTS: usize = 16;
/// How long a client may take for the head of a request, and be silent between two of them.
const SILENCE: Duration = Duration::from_secs(10);
/// How long a connection lasts at most: whoever watches comes again.
const LIFE: Duration = Duration::from_secs(300);
/// Bytes that are kept of a connection: a request's head is not longer.
const BUFFER: usize = 16 << 10;
/// How long nobody is let in when the process is out of descriptors.
const PAUSE: Duration = Duration::from_secs(1);

/// The specification.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "ringswitch",
        description = "What a running switch says of itself, and how it is changed.",
        version = "1"
    ),
    paths(
        process,
        ports,
        port,
        workers,
        macs,
        flows,
        capture,
        trace::trace,
        live::live,
        prometheus,
        log_level::show,
        log_level::change
    )
)]
struct Specification;

/// The specification of the API, OpenAPI 3.1 in YAML.
///
/// # Errors
///
/// None in practice: it is made of constants.
pub fn openapi() -> io::Result<String> {
    Specification::openapi()
        .merge_from(change::Changes::openapi())
        .to_yaml()
        .map_err(io::Error::other)
}

/// Those who answer, and where clients come in.
pub struct ApiServer {
    doors: Mutex<Vec<OpenDoor>>,
    stop: Notify,
}

impl ApiServer {
    /// Opens the doors that `settings` want, of which the process before may hand over some. Without
    /// any there is nobody to answer.
    ///
    /// # Errors
    ///
    /// [`DoorError`]
    pub fn new(
        settings: &Settings,
        mut inherited: Vec<(Door, OwnedFd)>,
    ) -> Result<Option<Self>, DoorError> {
        let open = |door| {
            let at = inherited.iter().position(|(theirs, _)| *theirs == door);
            OpenDoor::open(door, at.map(|at| inherited.swap_remove(at).1))
        };
        let doors = Door::wanted(settings).into_iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let some = !doors.is_empty();
        Ok(some.then(|| Self { doors: Mutex::new(doors), stop: Notify::new() }))
    }

    /// Tells `f` each door that another process has, too, and its socket.
    ///
    /// # Errors
    ///
    /// Those of `f`.
    pub fn tell(
        &self,
        theirs: &[Door],
        mut f: impl FnMut(&Door, BorrowedFd<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let doors = self.doors.lock();
        let mut same = doors.iter().filter(|open| theirs.contains(&open.door));
        same.try_for_each(|open| f(&open.door, open.as_fd()))
    }

    /// From now on the files of the sockets that were told are another process's.
    pub fn disown(&self, theirs: &[Door]) {
        let mut doors = self.doors.lock();
        doors.iter_mut().filter(|open| theirs.contains(&open.door)).for_each(OpenDoor::disown);
    }

    /// From now on the sockets' files are this process's to remove.
    pub fn own(&self) {
        self.doors.lock().iter_mut().for_each(OpenDoor::own);
    }

    /// Serves clients until [`Self::stop`].
    ///
    /// # Errors
    ///
    /// The process is out of descriptors.
    pub fn serve(&self, view: View) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let view = Arc::new(view);
        let _inside = runtime.enter();
        let mut doors = tokio::task::JoinSet::new();
        for open in self.doors.lock().iter() {
            let socket = open.as_fd().try_clone_to_owned()?;
            match open.socket {
                DoorSocket::Unix(_) => {
                    let listener = UnixListener::from_std(socket.into())?;
                    let looks_only = matches!(open.door, Door::ReadOnly(_));
                    let entrance = Visitors { listener, looks_only, user: view.user() };
                    doors.spawn(admit(entrance, router(Arc::clone(&view))));
                }
                DoorSocket::Tcp(_) => {
                    let listener = TcpListener::from_std(socket.into())?;
                    doors.spawn(admit(listener, metrics_router(Arc::clone(&view))));
                }
            }
        }
        runtime.block_on(self.stop.notified());
        Ok(())
    }

    /// Ends [`Self::serve`].
    pub fn stop(&self) {
        self.stop.notify_one();
    }
}

/// Where clients come from.
trait Entrance: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn next(&self) -> impl Future<Output = io::Result<(Self::Stream, Caller)>> + Send;
}

/// A UNIX socket, and whether those who come by it may look only.
struct Visitors {
    listener: UnixListener,
    looks_only: bool,
    /// Whom the switch runs as.
    user: u32,
}

impl Entrance for Visitors {
    type Stream = UnixStream;

    /// Whoever opened the socket's permissions to others didn't make them masters of the switch.
    async fn next(&self) -> io::Result<(UnixStream, Caller)> {
        let (stream, _) = self.listener.accept().await?;
        let peer = stream.peer_cred()?;
        let process = peer.pid().map_or(String::new(), |pid| format!(", process {pid}"));
        let may = peer.uid() == 0 || peer.uid() == self.user;
        let name = format!("user {}{process}", peer.uid());
        Ok((stream, Caller { name, looks_only: self.looks_only || !may }))
    }
}

impl Entrance for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<(TcpStream, Caller)> {
        let (stream, address) = self.accept().await?;
        Ok((stream, Caller { name: address.to_string(), looks_only: true }))
    }
}

/// Lets clients in, for ever.
async fn admit(entrance: impl Entrance + Sync, router: Router) {
    let room = Arc::new(Semaphore::new(CLIENTS));
    loop {
        // Never closed.
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        match entrance.next().await {
            Ok((stream, caller)) => {
                let router = router.clone().layer(Extension(caller));
                tokio::spawn(async move {
                    converse(stream, router).await;
                    drop(place);
                });
            }
            Err(error) => {
                log::warn!("cannot accept a client of the API: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Serves one connection.
async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(SILENCE).max_buf_size(BUFFER);
    // Whoever asks by a pipe has nothing more to say while it waits.
    http.half_close(true);
    let patience = Patience::default();
    let router = router.layer(Extension(patience.clone()));
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    loop {
        match tokio::time::timeout(LIFE, connection.as_mut()).await {
            Err(_) if patience.0.load(Ordering::Relaxed) => {}
            Ok(Err(error)) => return log::debug!("a client of the API: {error}"),
            Ok(Ok(())) | Err(_) => return,
        }
    }
}

/// Whether a connection may last: its client waits for something that has no end.
#[derive(Clone, Default)]
struct Patience(Arc<AtomicBool>);

/// All that there is.
fn router(view: Arc<View>) -> Router {
    let changes = Router::new()
        .route("/v1/capture", get(capture))
        .route("/v1/trace/live", get(live::live))
        .route("/v1/log-level", put(log_level::change));
    change::for_admins(changes)
        .route("/v1/log-level", get(log_level::show))
        .route("/v1/process", get(process))
        .route("/v1/ports", get(ports))
        .route("/v1/ports/{name}", get(port))
        .route("/v1/workers", get(workers))
        .route("/v1/macs", get(macs))
        .route("/v1/flows", get(flows))
        .route("/v1/trace", post(trace::trace).layer(DefaultBodyLimit::max(trace::BODY)))
        .route("/v1/openapi.yaml", get(specification))
        .route("/metrics", get(prometheus))
        .fallback(|| async {
            problem(StatusCode::NOT_FOUND, "there is no such path; see /v1/openapi.yaml")
        })
        .method_not_allowed_fallback(|| async {
            problem(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path has no such method; see /v1/openapi.yaml",
            )
        })
        .with_state(view)
}

/// What anybody on this host may read.
fn metrics_router(view: Arc<View>) -> Router {
    Router::new().route("/metrics", get(prometheus)).with_state(view)
}

fn problem(status: StatusCode, error: &str) -> Response {
    (status, Json(Problem { error: error.to_owned() })).into_response()
}

/// The process that answers.
#[utoipa::path(get, path = "/v1/process", responses((status = 200, body = Process)))]
async fn process(State(view): State<Arc<View>>) -> Json<Process> {
    Json(view.process())
}

/// All ports, in the order of the configuration.
#[utoipa::path(get, path = "/v1/ports", responses((status = 200, body = Vec<Port>)))]
async fn ports(State(view): State<Arc<View>>) -> Json<Vec<Port>> {
    Json(view.ports())
}

/// One port.
#[utoipa::path(
    get,
    path = "/v1/ports/{name}",
    params(("name" = String, Path, description = "The port's name in the configuration")),
    responses(
        (status = 200, body = Port),
        (status = 404, description = "There is no port of that name", body = Problem)
    )
)]
async fn port(State(view): State<Arc<View>>, Path(name): Path<String>) -> Response {
    match view.ports().iter().find(|port| port.name == name) {
        Some(port) => Json(port).into_response(),
        None => no_port(&view, &name),
    }
}

/// The threads that move frames.
#[utoipa::path(get, path = "/v1/workers", responses((status = 200, body = Vec<Worker>)))]
async fn workers(State(view): State<Arc<View>>) -> Json<Vec<Worker>> {
    Json(view.workers())
}

/// All addresses that were learned, in order.
#[utoipa::path(get, path = "/v1/macs", responses((status = 200, body = Vec<Mac>)))]
async fn macs(State(view): State<Arc<View>>) -> Json<Vec<Mac>> {
    Json(view.macs())
}

/// What to capture.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// Names of ports, with commas between them.
    ports: String,
    /// Which frames, in words (`docs/seeing.md`); all unless said.
    filter: Option<String>,
    /// How many bytes of each frame at most; whole frames unless said.
    snaplen: Option<u32>,
}

/// Frames of some ports from now on, until the client leaves: pcapng. The comment of each says what
/// became of it.
#[utoipa::path(
    get,
    path = "/v1/capture",
    params(Wanted),
    responses(
        (status = 200, description = "Frames", body = Vec<u8>, content_type = PCAPNG),
        (status = 400, description = "What was asked for isn't possible", body = Problem),
        (status = 404, description = "There is no port of that name", body = Problem),
        (status = 503, description = "There are too many captures", body = Problem)
    )
)]
async fn capture(
    State(view): State<Arc<View>>,
    Extension(patience): Extension<Patience>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Response {
    let Query(Wanted { ports, filter, snaplen }) = match wanted {
        Ok(wanted) => wanted,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &error.body_text()),
    };
    let filter: Filter = match filter.unwrap_or_default().parse() {
        Ok(filter) => filter,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let mut chosen = Vec::new();
    for name in ports.split(',') {
        match view.shared().ports.now().find(name) {
            Some(port) if !chosen.iter().any(|other| Arc::ptr_eq(other, port)) => {
                chosen.push(Arc::clone(port));
            }
            Some(_) => {}
            None => return no_port(&view, name),
        }
    }
    match CaptureBody::begin(view.shared(), chosen, filter, snaplen.unwrap_or(MAX_FRAME)) {
        Ok(Some(body)) => {
            patience.0.store(true, Ordering::Relaxed);
            ([("content-type", PCAPNG)], Body::new(body)).into_response()
        }
        Ok(None) => too_many(),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn too_many() -> Response {
    let error = format!("there are {MAX_CAPTURES} captures already: end one of them");
    problem(StatusCode::SERVICE_UNAVAILABLE, &error)
}

/// The type of what a capture answers.
const PCAPNG: &str = "application/x-pcapng";

fn no_port(view: &View, name: &str) -> Response {
    problem(StatusCode::NOT_FOUND, &unknown_port(name, &view.names()))
}

/// What is said of a name that no port has.
fn unknown_port(name: &str, names: &[impl AsRef<str>]) -> String {
    let names: Vec<_> = names.iter().map(AsRef::as_ref).collect();
    format!("there is no port {name:?}; there are {}", names.join(", "))
}

/// What went from port to port: all pairs that had frames.
#[utoipa::path(get, path = "/v1/flows", responses((status = 200, body = Vec<Flow>)))]
async fn flows(State(view): State<Arc<View>>) -> Json<Vec<Flow>> {
    Json(view.flows())
}

/// For Prometheus.
#[utoipa::path(
    get,
    path = "/metrics",
    responses((
        status = 200,
        description = "All counters in the OpenMetrics text format",
        body = String,
        content_type = metrics::CONTENT_TYPE
    ))
)]
async fn prometheus(State(view): State<Arc<View>>) -> Response {
    match metrics::render(&view) {
        Ok(text) => ([("content-type", metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

async fn specification() -> Response {
    match openapi() {
        Ok(text) => ([("content-type", "application/yaml")], text).into_response(),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_the_specification() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.yaml");
        let text = openapi().expect("a specification");
        if std::env::var_os("RINGSWITCH_WRITE_DOCS").is_some() {
            std::fs::write(page, &text).expect("a page");
        }
        let written = std::fs::read_to_string(page).expect("a page");
        assert_eq!(written, text, "write it with RINGSWITCH_WRITE_DOCS=1 cargo test the_page_is");
    }
}
