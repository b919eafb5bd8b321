//! Virtqueues, device side.
//!
//! A [`Ring`] is one virtqueue of one guest: what its frontend said of it, and, while it runs, a
//! live part with host pointers to the three areas of a split or packed ring (virtio 1.2, 2.7 and
//! 2.8; `format` says what the burst code needs of both).
//! A worker takes a burst of frames from a transmit ring (`guest_tx`, [`Ring::receive`]) and
//! puts frames into a receive ring (`guest_rx`, [`Ring::transmit`]).
//!
//! # Locks
//!
//! [`Queues`] holds the rings of a port, each behind its own lock. A worker *tries* the lock of
//! a `guest_tx` ring, holds it for one burst, and takes the lock of one `guest_rx` ring of
//! another port at a time, with a bounded wait. Control locks **all** rings of its own port, the
//! transmit rings first, changes them and unlocks: no worker is then inside of that guest's
//! memory, neither as source nor as destination. A worker never waits for a lock without bound, and control never holds
//! the locks of two ports, so there is no cycle.
//!
//! # In order
//!
//! Buffers are completed strictly in the order in which they were made available, so one index
//! is both the next available and the next used entry. That is what VIRTIO_F_IN_ORDER promises,
//! and what makes the position of a split ring after a crash (`used.idx`) always right.

mod ahead;
pub mod feature;
mod format;
mod gauge;
mod guest_rx;
mod guest_tx;
mod packed;
mod queues;
mod split;
mod vring;

#[cfg(test)]
mod driver;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub use ahead::Room;
pub use format::Format;
pub use gauge::{Fill, Gauge};
pub use guest_rx::{AnyReceiver, Receiver, RxFault};
pub use guest_tx::TxBurst;
pub use queues::{LinkState, QueueEvents, Queues};
pub use vring::{Ring, RingAddress, RingError, RingState};

/// Largest number of descriptors of one chain. QEMU's own limit (VIRTQUEUE_MAX_SIZE).
const MAX_CHAIN: usize = 1024;
