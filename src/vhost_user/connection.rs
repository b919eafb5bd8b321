//! One connection with a frontend: message after message, until either side ends it.
//!
//! The `vhost` crate never sees the frontend's socket. It reads from one end of a pair of sockets
//! (`inner`), where only whole messages with the right number of descriptors are put, and answers
//! there. On the real socket it would wait for the rest of a message; it would lose a header that
//! has more than 32 descriptors and read on in the middle; and it could not be kept from the
//! messages that it refuses but must not.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use vhost::vhost_user::{BackendReqHandler, Error as LibraryError};

use crate::ring::{QueueEvents, Queues};
use crate::sys::fault::{Alarm, Cause};
use crate::sys::socket::{Received, receive, send, wait_for_input};

use super::handler::Handler;
use super::handover::{self, PATIENCE};
use super::intercept;
use super::journal::Journal;
use super::message::{Answer, BadMessage, Inbox, Lack, Message, request};
use super::session::Session;

/// Why a connection ended.
#[derive(Debug, Error)]
pub(super) enum End {
    /// The frontend closed it between two messages.
    #[error("the frontend left")]
    Left,
    /// We are to stop.
    #[error("stopped")]
    Stopped,
    /// We are to hand the connection over. It can go on.
    #[error("asked to hand over")]
    Asked,
    /// Another process goes on with it.
    #[error("handed over")]
    HandedOver,
    /// The frontend took memory away that it shared.
    #[error(
        "the file behind the guest's memory or dirty log became shorter, or no huge page is left for \
         it; the guest must be restarted"
    )]
    MemoryLost,
    /// The frontend had us wait for it where nobody may wait.
    #[error(
        "a call or error descriptor was made to block while its counter was full; the frontend is \
         faulty or hostile, and isn't served for a while"
    )]
    BlockingCall,
    /// The frontend closed it elsewhere.
    #[error("the frontend left in the middle of a message")]
    Truncated,
    /// The frontend doesn't speak our language.
    #[error(transparent)]
    BadMessage(BadMessage),
    /// The frontend doesn't know that its message was refused, or can't go on without it.
    #[error("{name} failed: {reason}")]
    Failed { name: &'static str, reason: String },
    /// The system failed.
    #[error("the socket failed: {0}")]
    Socket(#[from] io::Error),
}

impl From<Lack> for End {
    fn from(lack: Lack) -> Self {
        match lack {
            // Not an end: the caller waits.
            Lack::Incomplete | Lack::Ended { within: true } => Self::Truncated,
            Lack::Ended { within: false } => Self::Left,
            Lack::Bad(bad) => Self::BadMessage(bad),
            Lack::Socket(error) => Self::Socket(error),
        }
    }
}

/// What a connection's owner wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    GoOn,
    Stop,
    HandOver,
}

/// What a session needs of the process that it is in.
pub struct Place {
    /// The rings of the port.
    pub queues: Arc<Queues>,
    /// Who hears of them.
    pub events: Arc<dyn QueueEvents>,
    /// Rings when the frontend takes memory away.
    pub alarm: Arc<Alarm>,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").field("queues", &self.queues).finish_non_exhaustive()
    }
}

/// What [`serve_stream`] is to do next.
#[derive(Debug)]
pub enum Order {
    /// Go on.
    GoOn,
    /// End the connection.
    Stop,
    /// Tell the session, as to another process, and have it go on in another place.
    HandOver(Place),
    /// Tell the session and go on nevertheless: the other process failed.
    CallOff,
}

/// Serves one frontend whose connection is `stream`, in this thread: the middle of an
/// [`Endpoint`](super::Endpoint), for whoever brings the connection along (`tests/fuzz`). `wait`
/// sleeps until the stream has news, and says what to do. Returns the rings that ran at each
/// hand-over, and those that run after it, one bit for each.
///
/// # Errors
///
/// The process is out of descriptors; a session that can't be told or restored.
pub fn serve_stream(
    stream: UnixStream,
    place: Place,
    mtu: Option<u16>,
    mut wait: impl FnMut() -> io::Result<Order>,
) -> io::Result<Vec<(u128, u128)>> {
    let journal = Arc::new(Journal::new("stream"));
    let stream = Arc::new(stream);
    let open = |Place { queues, events, alarm }| {
        let session = Session::new(queues, events, Arc::clone(&journal), mtu, alarm);
        Connection::new(Arc::clone(&stream), session, Arc::clone(&journal))
    };
    let mut connection = open(place)?;
    let (mut next, mut handovers) = (None, Vec::new());
    loop {
        let end = connection.serve(|idle| {
            let order = if idle { wait()? } else { Order::GoOn };
            Ok(match order {
                Order::GoOn => Wish::GoOn,
                Order::Stop => Wish::Stop,
                Order::HandOver(place) => {
                    next = Some(place);
                    Wish::HandOver
                }
                Order::CallOff => Wish::HandOver,
            })
        });
        if !matches!(end, End::Asked) {
            return Ok(handovers);
        }
        let (tale, theirs) = handover::tale()?;
        connection.tell(&tale)?;
        let ran = connection.tell_rings(&tale)?;
        let Some(place) = next.take() else {
            connection.resume();
            continue;
        };
        let mut heir = open(place)?;
        let runs = heir.restore(&theirs).map_err(io::Error::other)?;
        handovers.push((ran, runs));
        connection = heir;
    }
}

/// Why a message was refused; told to the operator.
type Reason = String;

/// A connection and its session.
pub(super) struct Connection {
    stream: Arc<UnixStream>,
    inbox: Inbox,
    library: Library,
    journal: Arc<Journal>,
    /// The session's.
    alarm: Arc<Alarm>,
    /// Messages that were followed or refused.
    served: u64,
}

impl Connection {
    /// Takes over `stream`.
    ///
    /// # Errors
    ///
    /// The process is out of descriptors.
    pub fn new(
        stream: Arc<UnixStream>,
        session: Session,
        journal: Arc<Journal>,
    ) -> io::Result<Self> {
        let alarm = session.alarm();
        let library = Library::new(session)?;
        Ok(Self { stream, inbox: Inbox::new(), library, journal, alarm, served: 0 })
    }

    /// How many messages came.
    pub fn served(&self) -> u64 {
        self.served
    }

    /// The frontend's socket.
    pub fn stream(&self) -> Arc<UnixStream> {
        Arc::clone(&self.stream)
    }

    /// Serves the frontend. `ask` says what is wanted; with `true` it first sleeps until the stream
    /// has news or that changes.
    pub fn serve(&mut self, ask: impl FnMut(bool) -> io::Result<Wish>) -> End {
        let stream = self.stream();
        // Taken out for a while: messages borrow it.
        let mut inbox = std::mem::replace(&mut self.inbox, Inbox::new());
        let end = self.converse(&stream, &mut inbox, ask);
        self.inbox = inbox;
        end
    }

    fn converse(
        &mut self,
        stream: &UnixStream,
        inbox: &mut Inbox,
        mut ask: impl FnMut(bool) -> io::Result<Wish>,
    ) -> End {
        loop {
            match self.alarm.cause() {
                Some(Cause::LostMemory) => return End::MemoryLost,
                Some(Cause::BlockingCall) => return End::BlockingCall,
                None => {}
            }
            let (result, idle) = match inbox.next(stream) {
                Ok(message) => (self.follow(stream, message), false),
                Err(Lack::Incomplete) => (Ok(()), true),
                Err(lack) => (Err(lack.into()), false),
            };
            if let Err(end) = result {
                return end;
            }
            match ask(idle) {
                Ok(Wish::GoOn) => {}
                Ok(Wish::Stop) => return End::Stopped,
                Ok(Wish::HandOver) => return End::Asked,
                Err(error) => return End::Socket(error),
            }
        }
    }

    /// Makes the session what another process tells of its own, up to the end of `tale`. Returns
    /// the rings that have all they need, one bit for each; all, if the frontend has made a file
    /// shorter that it shares: then the connection ends as soon as it is served, and whatever else
    /// is handed over isn't held up by it.
    ///
    /// A message that is refused is no error here: it may have been refused there as well.
    ///
    /// # Errors
    ///
    /// [`End`]: the tale breaks off, or is none.
    pub fn restore(&mut self, tale: &UnixStream) -> Result<u128, End> {
        let mut inbox = Inbox::new();
        loop {
            match inbox.next(tale) {
                Ok(message) => match self.follow(tale, message) {
                    Err(End::Failed { name, reason }) => {
                        self.journal.warn(format_args!("refused {name}: {reason}"));
                    }
                    result => result?,
                },
                Err(Lack::Incomplete) => wait_for_input(tale, PATIENCE)?,
                // What has come of the next message goes on on the frontend's socket.
                Err(Lack::Ended { .. }) => break,
                Err(lack) => return Err(lack.into()),
            }
        }
        self.inbox = inbox;
        let session = &self.library.handler().0;
        if session.has_seen_short_file() {
            self.alarm.ring(Cause::LostMemory);
            return Ok(u128::MAX);
        }
        Ok(session.running())
    }

    /// Tells all but the rings: see [`Session::tell`].
    ///
    /// # Errors
    ///
    /// The error of the socket.
    pub fn tell(&self, tale: &UnixStream) -> io::Result<()> {
        self.library.handler().0.tell(tale)
    }

    /// Tells the rings and ends the tale: see [`Session::tell_rings`].
    ///
    /// # Errors
    ///
    /// The error of the socket.
    pub fn tell_rings(&self, tale: &UnixStream) -> io::Result<u128> {
        let ran = self.library.handler().0.tell_rings(tale)?;
        let (bytes, descriptors) = self.inbox.part();
        if !bytes.is_empty() {
            let descriptors: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
            send(tale, bytes, &descriptors)?;
        }
        tale.shutdown(Shutdown::Write)?;
        Ok(ran)
    }

    /// Goes on after [`Self::tell_rings`].
    pub fn resume(&self) {
        self.library.handler().0.resume();
    }

    /// Follows a message, and answers on `stream`.
    fn follow(&mut self, stream: &UnixStream, message: Message<'_>) -> Result<(), End> {
        if self.served == 0 {
            self.journal.info(format_args!("a frontend connected"));
        }
        self.served = self.served.saturating_add(1);
        let (header, kind) = (message.header, message.kind);
        let name = kind.name;
        let result = if intercept::is_ours(&header) {
            let session = &mut self.library.handler().0;
            intercept::serve(stream, &message, session)?.map_err(|r| r.to_string())
        } else {
            self.library.serve(stream, message)?
        };
        let Err(reason) = result else { return Ok(()) };
        // The crate takes these two as they came, also when we refuse them.
        let diverged =
            matches!(header.request, request::SET_FEATURES | request::SET_PROTOCOL_FEATURES);
        let acknowledges = self.library.handler().0.acknowledges();
        let told = kind.answer == Answer::Ack && header.needs_reply() && acknowledges;
        if diverged || !told {
            return Err(End::Failed { name, reason });
        }
        self.journal.warn(format_args!("refused {name}: {reason}"));
        Ok(())
    }
}

/// The `vhost` crate at its end of a pair of sockets.
struct Library {
    inner: UnixStream,
    requests: BackendReqHandler<Mutex<Handler>>,
    /// Shared with `requests`; both are used by one thread only.
    handler: Arc<Mutex<Handler>>,
}

impl Library {
    fn new(session: Session) -> io::Result<Self> {
        let (inner, outer) = UnixStream::pair()?;
        let handler = Arc::new(Mutex::new(Handler(session)));
        let requests = BackendReqHandler::from_stream(outer, Arc::clone(&handler));
        Ok(Self { inner, requests, handler })
    }

    fn handler(&self) -> MutexGuard<'_, Handler> {
        self.handler.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the crate follow a message, and passes its answer on to the frontend.
    fn serve(
        &mut self,
        mut stream: &UnixStream,
        message: Message<'_>,
    ) -> Result<Result<(), Reason>, End> {
        let name = message.kind.name;
        let descriptors: Vec<_> = message.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        // An empty socket has room for any message, so this doesn't wait and is never partial.
        send(&self.inner, message.bytes, &descriptors)?;
        drop(message);
        let result = match self.requests.handle_request() {
            Ok(()) => Ok(()),
            // Only our handler gives this one, and the crate has acknowledged it.
            Err(LibraryError::ReqHandlerError(error)) => Err(error.to_string()),
            Err(error) => {
                return Err(End::Failed { name, reason: error.to_string() });
            }
        };
        let mut answer = [0; 256];
        while let Received::Bytes(len) = receive(&self.inner, &mut answer, &mut Vec::new())? {
            stream.write_all(answer.get(..len).unwrap_or(&answer))?;
        }
        Ok(result)
    }
}
