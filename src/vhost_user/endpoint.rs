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
use std::time::Duration;

use parking_lot::Mutex;
use thiserror::Error;

use crate::config::{SocketRole, VhostUserSettings};
use crate::ring::{QueueEvents, Queues};
use crate::sys::fault::Alarm;
use crate::sys::poller::{Events, Poller, Trigger, Waker};
use crate::sys::socket::{Listener, SocketError, connect};

use super::connection::{Connection, End};
use super::journal::Journal;
use super::session::Session;

/// Stack of a port's thread, bytes. A thousand ports are a thousand threads.
const STACK: usize = 256 * 1024;
/// The first pause between two attempts to connect.
const MIN_PAUSE: Duration = Duration::from_millis(10);
/// The longest pause between two attempts to connect, and after an error of the system.
const MAX_PAUSE: Duration = Duration::from_secs(1);
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
        Ok(Self { path, listener })
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
    /// Ends the thread's sleep.
    waker: Waker,
    /// The connection: shut down to end a system call on it.
    stream: Mutex<Option<Arc<UnixStream>>>,
}

impl Endpoint {
    /// Serves `socket`, which is that of port `name`.
    ///
    /// `mtu` is what the guest is told, `queues` are the port's rings, `events` hears of changes to
    /// them.
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
    ) -> Result<Self, EndpointError> {
        let PortSocket { path, listener } = socket;
        let poller = Poller::new()?;
        if let Some(listener) = &listener {
            poller.add(listener.as_fd(), LISTENER, Trigger::Level)?;
        }
        let shared = Arc::new(Shared {
            stopping: AtomicBool::new(false),
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
        };
        let thread = std::thread::Builder::new()
            .name(format!("vu-{name}"))
            .stack_size(STACK)
            .spawn(move || server.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Ends the connection and the thread, and removes the socket file. Returns when no ring of
    /// the port runs any more.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.waker.wake();
        if let Some(stream) = self.shared.stream.lock().as_ref() {
            // The thread may be in a write to a frontend that reads nothing. An error means that
            // the connection is down already.
            let _ = stream.shutdown(Shutdown::Both);
        }
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
}

impl Server {
    fn run(&mut self) {
        let result = if self.listener.is_some() { self.listen() } else { self.dial() };
        if let Err(error) = result {
            // epoll_wait fails on nothing that a peer does.
            log::error!("socket {} is no longer served: {error}", self.socket.display());
        }
    }

    /// The server role, until we are to stop.
    fn listen(&mut self) -> io::Result<()> {
        while !self.stopping() {
            match self.next.take().or_else(|| self.accept()) {
                Some(stream) => drop(self.serve(stream)),
                None => self.sleep(None)?,
            }
        }
        Ok(())
    }

    /// The client role, until we are to stop.
    fn dial(&mut self) -> io::Result<()> {
        let (mut pause, mut failures) = (MIN_PAUSE, 0u64);
        while !self.stopping() {
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
        Ok(())
    }

    /// Serves one frontend to its end. Returns how many messages it sent.
    fn serve(&mut self, stream: UnixStream) -> u64 {
        let stream = Arc::new(stream);
        *self.shared.stream.lock() = Some(Arc::clone(&stream));
        // Looked at after publishing the stream: who sets the flag later finds it.
        let result = if self.stopping() { Ok(0) } else { self.converse(&stream) };
        *self.shared.stream.lock() = None;
        result.unwrap_or_else(|error| {
            self.journal.warn(format_args!("cannot serve a frontend: {error}"));
            0
        })
    }

    fn converse(&mut self, stream: &Arc<UnixStream>) -> io::Result<u64> {
        let (queues, events) = (Arc::clone(&self.queues), Arc::clone(&self.events));
        let journal = Arc::clone(&self.journal);
        // Edge: a message that is there in part must not end each sleep.
        self.poller.add(stream.as_fd(), STREAM, Trigger::Edge)?;
        // Ends the sleep in `attend`.
        let alarm = Arc::new(Alarm::new(Waker::new(&self.poller, WAKER)?));
        let session = Session::new(queues, events, Arc::clone(&journal), self.mtu, alarm);
        let mut connection = Connection::new(Arc::clone(stream), session, Arc::clone(&journal))?;
        let end = connection.serve(|| self.attend());
        // The owner of the endpoint may still hold it: closing ours would leave it in.
        self.poller.remove(stream.as_fd())?;
        let served = connection.served();
        drop(connection);
        match end {
            End::Left | End::Stopped if served == 0 => {}
            End::Left | End::Stopped => journal.info(format_args!("disconnected: {end}")),
            _ => journal.warn(format_args!("disconnected: {end}")),
        }
        Ok(served)
    }

    /// Sleeps while a frontend is attached, until there may be news of it. Returns whether to go
    /// on.
    fn attend(&mut self) -> io::Result<bool> {
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
        Ok(!self.stopping())
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

    fn stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::Acquire)
    }
}
