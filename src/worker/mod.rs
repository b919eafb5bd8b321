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
mod mailbox;
mod pipeline;
mod poll;
mod source;
mod trace;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;

use crate::port::{Counter, Port};
use crate::table::mac::MacTable;

pub use capture::{Buffer, Capture, Fate, MAX_CAPTURES, Record, Stamps};
pub use events::PortEvents;
pub use flows::{Flow, Flows};
pub use gate::Gate;
pub use mailbox::{Mailbox, Order};
pub use poll::Worker;
pub use source::Placement;
pub use trace::{Step, Walk};

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    /// The ports; a [`crate::frame::PortId`] is an index.
    pub ports: Box<[Arc<Port>]>,
    /// Where addresses are.
    pub macs: MacTable,
    /// Each worker's mailbox.
    pub mailboxes: Box<[Arc<Mailbox>]>,
    /// Each worker's counters.
    pub counters: Box<[WorkerCounters]>,
    /// What each worker moved from port to port.
    pub flows: Box<[Flows]>,
    /// Set once, to end the workers.
    pub stop: AtomicBool,
    /// Where workers wait when they are told to pause.
    pub gate: Gate,
    /// What is being captured.
    pub captures: Mutex<Vec<Arc<Capture>>>,
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
}
