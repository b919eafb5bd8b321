//! The socket of a port and the thread behind it: one frontend after the other.
//!
//! In the server role a second frontend that connects while one is attached is closed at once,
//! with a warning: left in the backlog, its VM would hang without a word.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use thiserror::Error;

use crate::config::{SocketRole, VhostUserSettings};
use crate::ring::{QueueEvents, Queues};
use crate::sys::fault::Alarm;
use crate::sys::poller::{Events, Poller, Trigger, Waker};
use crate::sys::sandbox::{Sandbox, Thread};
use crate::sys::socket::{Listener, SocketError, connect};

use super::connection::{Connection, End, Wish};
use super::handover::{
    Answer, Arrival, Estate, Handover, Inheritance, Request, Step, Takeover, tale,
};
use super::journal::Journal;
use super::pace::Pace;
use super::session::Session;

/// Stack of a port's thread, bytes. A thousand ports are a thousand threads.
const STACK: usize = 256 * 1024;
/// The first pause between two attempts to connect.
const MIN_PAUSE: Duration = Duration::from_millis(10);
/// The longest pause between two attempts to connect, and after an error of the system.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// How long a port isn't served after its frontend had us wait for it.
const PENALTY: Duration = Duration::from_secs(2);
/// A failing connection is logged at its first attempt, and then at each of so many.
const LOG_EVERY: u64 = 300;

/// Why a port's socket can't be served.
#[derive(Debug, Error)]
pub enum EndpointError {
    /// The socket can't be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The thread or what it sleeps on can't be made.
    #[error("cannot start the thread of a port: {0}; raise the limits on threads and open files")]
    System(#[from] io::Error),
}

/// The socket of a port that nobody serves yet. In the server role frontends can connect already;
/// they wait for [`Endpoint::spawn`].
#[derive(Debug)]
pub struct PortSocket {
    path: PathBuf,
    /// In the server role.
    listener: Option<Listener>,
    /// What another process did with it.
    takeover: Option<Takeover>,
}

impl PortSocket {
    /// Listens on the socket, in the server role. The client role needs nothing beforehand.
    ///
    /// Apart from [`Endpoint::spawn`], because it may need rights that a thread must not have.
    ///
    /// # Errors
    ///
    /// [`EndpointError::Socket`], which says what to do.
    pub fn open(settings: &VhostUserSettings) -> Result<Self, EndpointError> {
        let path = settings.socket.clone();
        let listener = match settings.role {
            SocketRole::Server => {
                Some(Listener::bind(&path, settings.owner.as_deref(), settings.mode)?)
            }
            SocketRole::Client => None,
        };
        Ok(Self { path, listener, takeover: None })
    }

    /// As [`Self::open`] where another endpoint has the socket still: nobody finds this one before
    /// [`Self::settle`].
    ///
    /// # Errors
    ///
    /// [`EndpointError::Socket`]
    pub fn open_beside(settings: &VhostUserSettings) -> Result<Self, EndpointError> {
        let mut beside = settings.socket.clone().into_os_string();
        beside.push("~");
        let socket = beside.into();
        let opened = Self::open(&VhostUserSettings { socket, ..settings.clone() })?;
        Ok(Self { path: settings.socket.clone(), ..opened })
    }

    /// Takes the place of the other endpoint's socket, if it was opened beside it.
    ///
    /// # Errors
    ///
    /// [`EndpointError::Socket`]
    pub fn settle(&mut self) -> Result<(), EndpointError> {
        let listener = self.listener.as_mut();
        Ok(listener.map_or(Ok(()), |listener| listener.rename(&self.path))?)
    }

    /// The socket of another process's endpoint, and its frontend if one is connected. Nothing is
    /// done with them before [`Arrival::go`].
    pub fn inherit(settings: &VhostUserSettings, mut estate: Estate) -> (Self, Arrival) {
        let path = settings.socket.clone();
        let listener = estate.listener.take().map(|socket| Listener::inherit(socket, &path));
        let (arrival, takeover) = Arrival::new(estate);
        (Self { path, listener, takeover: Some(takeover) }, arrival)
    }
}

/// A running vhost-user socket. Dropping it ends the connection, resets the rings, removes the
/// socket file and waits for the thread.
pub struct Endpoint {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the owner and the thread of an endpoint share.
struct Shared {
    stopping: AtomicBool,
    /// Another process asks for the port.
    request: Mutex<Option<Request>>,
    /// Ends the thread's sleep.
    waker: Waker,
    /// The connection: shut down to end a system call on it.
    stream: Mutex<Option<Arc<UnixStream>>>,
}

impl Endpoint {
    /// Serves `socket`, which is that of port `name`.
    ///
    /// `mtu` is what the guest is told, `queues` are the port's rings, `events` hears of changes to
    /// them. The port's thread confines itself to `sandbox`.
    ///
    /// # Errors
    ///
    /// [`EndpointError::System`]: the system's limits.
    pub fn spawn(
        name: &str,
        socket: PortSocket,
        mtu: Option<u16>,
        queues: Arc<Queues>,
        events: Arc<dyn QueueEvents>,
        sandbox: &Sandbox,
    ) -> Result<Self, EndpointError> {
        let PortSocket { path, listener, takeover } = socket;
        let poller = Poller::new()?;
        if let Some(listener) = &listener {
            poller.add(listener.as_fd(), LISTENER, Trigger::Level)?;
        }
        let kind = if listener.is_some() { Thread::Server } else { Thread::Client };
        let sandbox = sandbox.clone();
        let shared = Arc::new(Shared {
            stopping: AtomicBool::new(false),
            request: Mutex::default(),
            waker: Waker::new(&poller, WAKER)?,
            stream: Mutex::new(None),
        });
        let mut server = Server {
            shared: Arc::clone(&shared),
            poller,
            events_buffer: Events::with_capacity(4),
            listener,
            next: None,
            socket: path,
            journal: Arc::new(Journal::new(name)),
            queues,
            events,
            mtu,
            pace: Pace::new(),
        };
        let thread = std::thread::Builder::new()
            .name(format!("vu-{name}"))
            .stack_size(STACK)
            .spawn(move || {
                sandbox.confine(kind);
                server.run(takeover);
            })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Begins to hand the port over to another process.
    pub fn hand_over(&self) -> Handover {
        let (handover, request) = Handover::new();
        *self.shared.request.lock() = Some(request);
        self.shared.waker.wake();
        handover
    }

    /// Ends the connection with the frontend, and the socket goes on.
    pub fn disconnect(&self) {
        if let Some(stream) = self.shared.stream.lock().as_ref() {
            // The thread may be in a write to a frontend that reads nothing. An error means that
            // the connection is down already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Has the connection and the thread end, and doesn't wait for it. Who ends many ports says so
    /// to all of them first: each may have to wait for a processor.
    pub fn begin_to_stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.waker.wake();
        self.disconnect();
    }

    /// Ends the connection and the thread, and removes the socket file. Returns when no ring of
    /// the port runs any more.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.begin_to_stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread of a vhost-user port panicked: please report this");
        }
    }
}

/// Tokens of the poller. They only end a sleep; what happened is looked up.
const WAKER: u64 = 0;
const LISTENER: u64 = 1;
const STREAM: u64 = 2;

/// The thread's side of an [`Endpoint`].
struct Server {
    shared: Arc<Shared>,
    poller: Poller,
    events_buffer: Events,
    /// In the server role.
    listener: Option<Listener>,
    /// A frontend that connected while another one was attached.
    next: Option<UnixStream>,
    socket: PathBuf,
    journal: Arc<Journal>,
    queues: Arc<Queues>,
    events: Arc<dyn QueueEvents>,
    mtu: Option<u16>,
    pace: Pace,
}

impl Server {
    fn run(&mut self, takeover: Option<Takeover>) {
        let result = takeover.map_or(Ok(()), |takeover| self.take_over(takeover));
        let result =
            result.and_then(|()| if self.listener.is_some() { self.listen() } else { self.dial() });
        if let Err(error) = result {
            // epoll_wait fails on nothing that a peer does.
            log::error!("socket {} is no longer served: {error}", self.socket.display());
        }
    }

    /// The server role, until we are to stop.
    fn listen(&mut self) -> io::Result<()> {
        loop {
            match self.wish() {
                Wish::Stop => return Ok(()),
                Wish::HandOver => drop(self.hand_over(None)),
                Wish::GoOn => match self.next.take().or_else(|| self.accept()) {
                    Some(stream) => drop(self.serve(stream)),
                    None => self.sleep(None)?,
                },
            }
        }
    }

    /// The client role, until we are to stop.
    fn dial(&mut self) -> io::Result<()> {
        let (mut pause, mut failures) = (MIN_PAUSE, 0u64);
        loop {
            match self.wish() {
                Wish::Stop => return Ok(()),
                Wish::HandOver => {
                    self.hand_over(None);
                    continue;
                }
                Wish::GoOn => {}
            }
            match connect(&self.socket) {
                Ok(stream) => {
                    failures = 0;
                    if self.serve(stream) > 0 {
                        pause = MIN_PAUSE;
                    }
                }
                Err(error) => {
                    if failures % LOG_EVERY == 0 {
                        self.journal.warn(format_args!("{error}; trying again until it works"));
                    }
                    failures = failures.saturating_add(1);
                }
            }
            self.sleep(Some(pause))?;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Serves one frontend to its end. Returns how many messages it sent.
    fn serve(&mut self, stream: UnixStream) -> u64 {
        let served = self.open(stream).and_then(|connection| self.attend_to(connection));
        served.unwrap_or_else(|error| {
            self.journal.warn(format_args!("cannot serve a frontend: {error}"));
            0
        })
    }

    fn open(&self, stream: UnixStream) -> io::Result<Connection> {
        let (queues, events) = (Arc::clone(&self.queues), Arc::clone(&self.events));
        // Ends the sleep in `ask`.
        let alarm = Arc::new(Alarm::new(Waker::new(&self.poller, WAKER)?));
        let session = Session::new(queues, events, Arc::clone(&self.journal), self.mtu, alarm);
        Connection::new(Arc::new(stream), session, Arc::clone(&self.journal))
    }

    /// Serves a connection to its end. Returns how many messages came.
    fn attend_to(&mut self, mut connection: Connection) -> io::Result<u64> {
        let stream = connection.stream();
        // Edge: a message that is there in part must not end each sleep.
        self.poller.add(stream.as_fd(), STREAM, Trigger::Edge)?;
        *self.shared.stream.lock() = Some(Arc::clone(&stream));
        let end = loop {
            // Looked at after publishing the stream: who sets the flag later finds it.
            match connection.serve(|idle| self.ask(idle)) {
                End::Asked if self.hand_over(Some(&mut connection)) => break End::HandedOver,
                End::Asked => {}
                end => break end,
            }
        };
        *self.shared.stream.lock() = None;
        // The owner of the endpoint may still hold it: closing ours would leave it in.
        self.poller.remove(stream.as_fd())?;
        let served = connection.served();
        drop(connection);
        self.pace.keep();
        match end {
            End::Left | End::Stopped | End::HandedOver if served == 0 => {}
            End::Left | End::Stopped | End::HandedOver => {
                self.journal.info(format_args!("disconnected: {end}"));
            }
            _ => self.journal.warn(format_args!("disconnected: {end}")),
        }
        if matches!(end, End::BlockingCall) {
            self.pause(PENALTY)?;
        }
        Ok(served)
    }

    /// Sleeps for so long, unless something is wanted of us.
    fn pause(&mut self, time: Duration) -> io::Result<()> {
        let until = Instant::now() + time;
        while let Some(left) = until.checked_duration_since(Instant::now())
            && self.wish() == Wish::GoOn
        {
            self.sleep(Some(left))?;
            // While frontends are at the door, the listener ends each sleep.
            std::thread::sleep(MIN_PAUSE);
        }
        Ok(())
    }

    /// Hands the port over to another process, which asked for it. Returns whether it has it now;
    /// if not, all is as before.
    fn hand_over(&mut self, mut connection: Option<&mut Connection>) -> bool {
        let Some(request) = self.shared.request.lock().take() else { return false };
        match self.tell(&request, connection.as_deref_mut()) {
            Ok(true) => {
                if let Some(listener) = &mut self.listener {
                    listener.disown();
                }
                self.shared.stopping.store(true, Ordering::Release);
                return true;
            }
            Ok(false) => {}
            // Nobody may be interested any more.
            Err(error) => drop(request.answers.send(Answer::Told(Err(error)))),
        }
        if let Some(connection) = connection {
            connection.resume();
            *self.shared.stream.lock() = Some(connection.stream());
        }
        false
    }

    /// Returns whether the other process has the port now.
    fn tell(&mut self, request: &Request, connection: Option<&mut Connection>) -> io::Result<bool> {
        let listener = self.listener.as_ref().map(|listener| listener.as_fd().try_clone_to_owned());
        let listener = listener.transpose()?;
        let Some(connection) = connection else {
            let estate = Estate { listener, connection: None };
            let _ = request.answers.send(Answer::Estate(estate));
            let asked = matches!(request.steps.recv(), Ok(Step::TellRings));
            let _ = request.answers.send(Answer::Told(Ok(0)));
            return Ok(asked && matches!(request.steps.recv(), Ok(Step::Leave)));
        };
        let (tale, theirs) = tale()?;
        let stream = connection.stream().as_fd().try_clone_to_owned()?;
        let inheritance = Inheritance { stream, tale: theirs.into() };
        let estate = Estate { listener, connection: Some(inheritance) };
        let _ = request.answers.send(Answer::Estate(estate));
        connection.tell(&tale)?;
        if !matches!(request.steps.recv(), Ok(Step::TellRings)) {
            return Ok(false);
        }
        // From now on nobody here may shut it down.
        *self.shared.stream.lock() = None;
        let ran = connection.tell_rings(&tale)?;
        let _ = request.answers.send(Answer::Told(Ok(ran)));
        Ok(matches!(request.steps.recv(), Ok(Step::Leave)))
    }

    /// Takes a port over from another process.
    fn take_over(&mut self, takeover: Takeover) -> io::Result<()> {
        let Takeover { estate, restored, go } = takeover;
        let connection = estate.connection.map(|inherited| self.restore(inherited)).transpose();
        let (connection, result) = match connection {
            Ok(Some((connection, running))) => (Some(connection), Ok(running)),
            Ok(None) => (None, Ok(0)),
            Err(error) => (None, Err(error)),
        };
        let _ = restored.send(result);
        if go.recv().is_err() {
            self.shared.stopping.store(true, Ordering::Release);
            return Ok(());
        }
        if let Some(listener) = &mut self.listener {
            listener.own();
        }
        connection.map_or(Ok(0), |connection| self.attend_to(connection)).map(drop)
    }

    fn restore(&self, inherited: Inheritance) -> Result<(Connection, u128), String> {
        let connection = self.open(UnixStream::from(inherited.stream));
        let mut connection = connection.map_err(|error| error.to_string())?;
        let tale = UnixStream::from(inherited.tale);
        let running = connection.restore(&tale).map_err(|end| end.to_string())?;
        Ok((connection, running))
    }

    /// Says what is wanted of a connection. If it is `idle`, sleeps first, until there may be news
    /// of it.
    fn ask(&mut self, idle: bool) -> io::Result<Wish> {
        if !idle {
            self.pace.keep();
        }
        if !idle || self.wish() != Wish::GoOn {
            return Ok(self.wish());
        }
        if self.next.take().is_some() {
            self.journal.warn(format_args!(
                "a second frontend connected to {} while one is attached, and was turned away: \
                 give each VM a port of its own",
                self.socket.display()
            ));
        }
        self.next = self.accept();
        if self.next.is_none() {
            self.sleep(None)?;
        }
        // A frontend that comes back may be here before we saw its old connection end: with
        // another one at the door, the attached one is looked at again before it is decided.
        Ok(self.wish())
    }

    /// A frontend that waits to be served, in the server role.
    fn accept(&self) -> Option<UnixStream> {
        self.listener.as_ref()?.accept().unwrap_or_else(|error| {
            self.journal.warn(format_args!("cannot accept a frontend: {error}"));
            // Until descriptors or memory are free again: the listener would end each sleep.
            std::thread::sleep(MIN_PAUSE);
            None
        })
    }

    fn sleep(&mut self, limit: Option<Duration>) -> io::Result<()> {
        self.poller.wait(&mut self.events_buffer, limit).map(drop)
    }

    fn wish(&self) -> Wish {
        match self.stopping() {
            true => Wish::Stop,
            false if self.shared.request.lock().is_some() => Wish::HandOver,
            false => Wish::GoOn,
        }
    }

    fn stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::Acquire)
    }
}
