//! The vhost-user protocol of a port: sockets, messages, and what they mean for the port's rings.
//!
//! Owns the connection with a frontend (the VMM), the negotiation of features, and the order in
//! which memory, rings and descriptors change. It changes a [`Ring`](crate::ring::Ring) through its
//! control methods and tells workers by [`QueueEvents`](crate::ring::QueueEvents); it never looks
//! into a ring or at a frame.
//!
//! # Theory of operation
//!
//! An [`Endpoint`] is one thread for each port. In the server role it listens, in the client role
//! it connects and retries; it serves one frontend at a time:
//!
//! 1. `connection` assembles messages as their bytes come. `message` is the list of what we
//!    understand, with the sizes and descriptors of each.
//! 2. Messages that the `vhost` crate can't serve are answered in `intercept`; the others are
//!    handed to the crate, which calls back into `handler`.
//! 3. Both end in `session`, the state of this connection. It changes rings only while it holds
//!    the locks of all of the port's rings, so that no worker is inside of the guest's memory,
//!    answers only after that, and tells the workers after unlocking.
//!
//! # Trust
//!
//! Whatever a frontend sends or leaves out harms its own port only: this thread waits for nobody
//! but its own frontend, no lock is held over a system call on its descriptors that can block,
//! what it can make us keep is bounded (one map of at most 509 regions, one log, three descriptors
//! a ring), and so is what it can make us log (`journal`).
//!
//! A message that is refused is answered with an error if the frontend asked for an answer.
//! Otherwise the connection ends: a frontend must not believe in what we didn't do.

mod connection;
mod endpoint;
pub mod features;
mod handler;
mod handover;
mod intercept;
mod journal;
mod message;
mod pace;
mod session;
#[cfg(test)]
mod tests;

pub use connection::{Order, Place, serve_stream};
pub use endpoint::{Endpoint, EndpointError, PortSocket};
pub use handover::{Arrival, Estate, Handover, Inheritance};
