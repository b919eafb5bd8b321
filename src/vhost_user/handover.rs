//! How a port passes from one process to another while its frontend stays connected.
//!
//! The thread of the old process's endpoint tells its session to the new one's, over a pair of
//! sockets of their own (the *tale*), as vhost-user messages (`session::handover`); a message of
//! which only a part has come goes last. What is here ties these threads to those who coordinate
//! the whole switch: nobody goes on before all ports are told, and the old process only if the
//! new one didn't.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// How long a thread waits for a process that doesn't read what it is told, or doesn't tell.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// What another process needs to go on serving a port.
#[derive(Debug)]
pub struct Estate {
    /// The listening socket, in the server role.
    pub listener: Option<OwnedFd>,
    /// The frontend, if one is connected.
    pub connection: Option<Inheritance>,
}

/// A connection with a frontend, and where its session is told.
#[derive(Debug)]
pub struct Inheritance {
    /// The frontend's socket.
    pub stream: OwnedFd,
    /// The messages that make the session, and no more after them.
    pub tale: OwnedFd,
}

/// The old process's side of a port that is being handed over. Dropping it calls all off: the port
/// goes on here.
#[derive(Debug)]
pub struct Handover {
    answers: Receiver<Answer>,
    orders: Sender<Step>,
}

/// What the endpoint's thread says.
#[derive(Debug)]
pub(super) enum Answer {
    /// Everything but the rings is told, or is being told.
    Estate(Estate),
    /// The rings don't run any more, and are told. Those that ran, one bit for each.
    Told(io::Result<u128>),
}

/// What the endpoint's thread is to do next.
#[derive(Debug)]
pub(super) enum Step {
    TellRings,
    Leave,
}

/// The thread's side of a [`Handover`].
#[derive(Debug)]
pub(super) struct Request {
    pub answers: Sender<Answer>,
    pub steps: Receiver<Step>,
}

impl Handover {
    pub(super) fn new() -> (Self, Request) {
        let (answers, heard) = channel();
        let (orders, steps) = channel();
        (Self { answers: heard, orders }, Request { answers, steps })
    }

    /// What there is to hand over.
    ///
    /// # Errors
    ///
    /// `TimedOut` when the thread has no time: it may be writing to a frontend that doesn't read.
    pub fn estate(&self, deadline: Instant) -> io::Result<Estate> {
        match self.answer(deadline)? {
            Answer::Estate(estate) => Ok(estate),
            Answer::Told(result) => Err(result.err().unwrap_or(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Has the rings taken out of work and told. No worker may be at work.
    pub fn tell_rings(&self) {
        // A thread that ended is noticed by `told`.
        let _ = self.orders.send(Step::TellRings);
    }

    /// Waits until they are told. Returns those that ran, one bit for each.
    ///
    /// # Errors
    ///
    /// What went wrong in the telling.
    pub fn told(&self, deadline: Instant) -> io::Result<u128> {
        match self.answer(deadline)? {
            Answer::Told(result) => result,
            Answer::Estate(_) => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// The port is the other process's from now on: its endpoint ends without a word to the
    /// frontend, and its socket file stays.
    pub fn leave(self) {
        let _ = self.orders.send(Step::Leave);
    }

    /// The port goes on here. Returns when its rings do, or after a while.
    pub fn call_off(self) {
        drop(self.orders);
        while self.answers.recv_timeout(PATIENCE).is_ok() {}
    }

    fn answer(&self, deadline: Instant) -> io::Result<Answer> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.answers.recv_timeout(left).map_err(|error| match error {
            RecvTimeoutError::Timeout => io::ErrorKind::TimedOut.into(),
            RecvTimeoutError::Disconnected => io::ErrorKind::BrokenPipe.into(),
        })
    }
}

/// The new process's side of a port that is being taken over. Dropping it calls all off: the
/// endpoint ends and leaves everything as it was.
#[derive(Debug)]
pub struct Arrival {
    restored: Receiver<Result<u128, String>>,
    go: Sender<()>,
}

/// The thread's side of an [`Arrival`].
#[derive(Debug)]
pub(super) struct Takeover {
    pub estate: Estate,
    pub restored: Sender<Result<u128, String>>,
    pub go: Receiver<()>,
}

impl Arrival {
    pub(super) fn new(estate: Estate) -> (Self, Takeover) {
        let (restored, heard) = channel();
        let (go, waits) = channel();
        (Self { restored: heard, go }, Takeover { estate, restored, go: waits })
    }

    /// Waits until the session is as it was in the other process. Returns the rings that run, one
    /// bit for each; nobody touches them yet.
    ///
    /// # Errors
    ///
    /// Why it can't be as it was.
    pub fn restored(&self, deadline: Instant) -> Result<u128, String> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.restored.recv_timeout(left).map_err(|error| error.to_string())?
    }

    /// The port is ours from now on.
    pub fn go(self) {
        let _ = self.go.send(());
    }
}

/// A pair of sockets for a tale: what it is told into, and what it is read from.
pub(super) fn tale() -> io::Result<(UnixStream, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_write_timeout(Some(PATIENCE))?;
    Ok((ours, theirs))
}
