//! Workers: the threads that move frames.
//!
//! A [`Worker`] owns the ingress of its sources (transmit rings and TAPs) and may write to any
//! port. A source is *hot* or *cold*. Hot ones are polled in turn, and their guests are asked not
//! to kick; a source that stays quiet is made cold: its guest is asked to kick again and its kick
//! descriptor, which stays registered in epoll, tells when to look at it. So the cost of a frame
//! doesn't depend on how many idle ports there are, and a switch without traffic sleeps.
//!
//! Control talks to a worker by its [`mailbox::Mailbox`], between bursts.

mod budget;
mod capture;
mod events;
mod flows;
mod gate;
mod latency;
mod mailbox;
mod mirror;
mod pipeline;
mod poll;
mod ports;
mod source;
mod trace;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::port::Counter;
use crate::table::mac::MacTable;

pub use capture::{Buffer, Capture, Fate, MAX_CAPTURES, Record, Stamps};
pub use events::PortEvents;
pub use flows::{Flow, Flows};
pub use gate::Gate;
pub use latency::Latency;
pub use mailbox::{Mailbox, Order};
pub use poll::Worker;
pub use ports::{Mirror, Ports, Reach, Roster};
pub use source::source_id;
pub use trace::{Step, Walk};

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    /// The ports.
    pub ports: Roster,
    /// Where addresses are.
    pub macs: MacTable,
    /// How many workers there are: the first ones.
    workers: AtomicUsize,
    /// Each worker's mailbox, also of those that may come to be.
    pub mailboxes: Box<[Arc<Mailbox>]>,
    /// Each worker's counters.
    pub counters: Box<[WorkerCounters]>,
    /// What each worker moved from port to port.
    flows: Box<[OnceLock<Flows>]>,
    /// Set once, to end the workers.
    pub stop: AtomicBool,
    /// Where workers wait when they are told to pause.
    pub gate: Gate,
    /// What is being captured.
    pub captures: Mutex<Vec<Arc<Capture>>>,
}

impl Shared {
    /// What `workers` workers begin with, of whom there may be `most`.
    ///
    /// # Errors
    ///
    /// No epoll instance or eventfd can be had.
    pub fn new(ports: Ports, macs: MacTable, workers: usize, most: usize) -> io::Result<Self> {
        let mailboxes: io::Result<_> = (0..most).map(|_| Mailbox::new().map(Arc::new)).collect();
        Ok(Self {
            ports: Roster::new(ports, most),
            workers: AtomicUsize::new(workers),
            macs,
            mailboxes: mailboxes?,
            counters: (0..most).map(|_| WorkerCounters::default()).collect(),
            flows: (0..most).map(|_| OnceLock::new()).collect(),
            stop: AtomicBool::new(false),
            gate: Gate::default(),
            captures: Mutex::default(),
        })
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.workers.load(Ordering::Acquire)
    }

    /// There are so many workers from now on: their sources are to be registered with them.
    pub fn set_workers(&self, workers: usize) {
        self.workers.store(workers, Ordering::Release);
    }

    /// The mailboxes of the workers that there are.
    pub fn active(&self) -> &[Arc<Mailbox>] {
        self.mailboxes.get(..self.workers()).unwrap_or(&self.mailboxes)
    }

    /// What each worker moved from port to port, also of those that have gone.
    pub fn flows(&self) -> impl Iterator<Item = &Flows> + Clone {
        self.flows.iter().filter_map(OnceLock::get)
    }

    fn flows_of(&self, worker: usize) -> Option<&Flows> {
        self.flows.get(worker).map(|flows| flows.get_or_init(Flows::default))
    }
}

/// What a worker counts about itself.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCounters {
    /// Frames that were taken from sources.
    pub frames: Counter,
    /// Time-stamp counter cycles of the rounds that moved frames.
    pub busy_cycles: Counter,
    /// How often the worker slept.
    pub sleeps: Counter,
    /// Looks at epoll without sleeping.
    pub looks: Counter,
    /// How often a source was passed over because its port was ahead of others.
    pub passed_over: Counter,
    /// How long frames were in the switch.
    pub latency: Latency,
}
