//! One virtqueue of either format, and the eventfds that come with it.
//!
//! A chain has a name that the driver chose, its *head*: the first descriptor's index in a split
//! ring, the buffer id in a packed one.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::features;
use crate::layout::Piece;
use crate::memory::Memory;
use crate::packed::PackedRing;
use crate::split::SplitRing;
use crate::wait;

/// Guest-physical addresses of the three parts of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// Descriptor table, or ring.
    pub desc: u64,
    /// The driver's area: avail ring, or event suppression.
    pub avail: u64,
    /// The device's area: used ring, or event suppression.
    pub used: u64,
}

/// A chain that the device has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The chain.
    pub head: u16,
    /// Bytes that the device says it wrote.
    pub len: u32,
}

/// What the driver did about notifications.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notifications {
    /// Kicks sent to the device.
    pub kicks: u64,
    /// Publications without a kick, because the device had asked for none.
    pub kicks_skipped: u64,
    /// Calls taken from the call descriptor.
    pub calls: u64,
}

/// The eventfds of a ring.
#[derive(Debug)]
pub struct Signals {
    /// Tells the device of new chains.
    pub kick: EventFd,
    /// The device tells of used chains.
    pub call: EventFd,
    /// The device tells that it gave the ring up.
    pub err: EventFd,
}

impl Signals {
    /// Three new ones.
    pub fn new() -> io::Result<Signals> {
        let eventfd = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        Ok(Signals { kick: eventfd()?, call: eventfd()?, err: eventfd()? })
    }

    /// Kicks the device, wanted or not.
    pub fn kick_now(&self) {
        self.kick.write(1).expect("an eventfd with room in its counter");
    }
}

/// Has writers to a full eventfd wait, whoever holds it: the flag is the open file's. For hostile
/// tests.
pub fn make_blocking(event: &EventFd) {
    // SAFETY: F_SETFL takes an int, and `event` holds the descriptor open.
    unsafe { libc::fcntl(event.as_raw_fd(), libc::F_SETFL, 0) };
}

/// The driver's side of one virtqueue.
#[derive(Debug)]
pub enum Ring {
    /// A split one.
    Split(SplitRing),
    /// A packed one.
    Packed(PackedRing),
}

/// Calls a method of whichever ring it is.
macro_rules! either {
    ($self:expr, $ring:ident => $value:expr) => {
        match $self {
            Ring::Split($ring) => $value,
            Ring::Packed($ring) => $value,
        }
    };
}

impl Ring {
    /// A ring in the format that these features name, without notifications armed.
    pub fn new(memory: &Arc<Memory>, size: u16, features: u64) -> io::Result<Ring> {
        Ok(if features & features::RING_PACKED != 0 {
            Ring::Packed(PackedRing::new(memory, size, false)?)
        } else {
            Ring::Split(SplitRing::new(memory, size, false)?)
        })
    }

    /// The split ring, for what only that one has. Panics if it is a packed one.
    pub fn split(&self) -> &SplitRing {
        match self {
            Ring::Split(ring) => ring,
            Ring::Packed(_) => panic!("a packed ring"),
        }
    }

    /// The packed ring, for what only that one has. Panics if it is a split one.
    pub fn packed(&self) -> &PackedRing {
        match self {
            Ring::Packed(ring) => ring,
            Ring::Split(_) => panic!("a split ring"),
        }
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        either!(self, ring => ring.size())
    }

    /// Where the ring lives.
    pub fn addresses(&self) -> RingAddresses {
        either!(self, ring => ring.addresses())
    }

    /// Guest memory.
    pub fn memory(&self) -> &Arc<Memory> {
        either!(self, ring => ring.memory())
    }

    /// Its eventfds.
    pub fn signals(&self) -> &Signals {
        either!(self, ring => &ring.signals)
    }

    /// Kicks and calls so far.
    pub fn notifications(&self) -> Notifications {
        either!(self, ring => ring.notifications)
    }

    /// Chains posted and not used yet.
    pub fn in_flight(&self) -> u16 {
        either!(self, ring => ring.in_flight())
    }

    /// Sets what was negotiated; takes effect with the next notification decision. Panics if the
    /// format is another one: memory is laid out before the negotiation.
    pub fn set_features(&mut self, features: u64) {
        let has = |bit| features & bit != 0;
        match self {
            Ring::Split(ring) => {
                assert!(!has(features::RING_PACKED), "packed rings were negotiated");
                ring.set_event_idx(has(features::EVENT_IDX));
            }
            Ring::Packed(ring) => {
                assert!(has(features::RING_PACKED), "packed rings were not offered");
                ring.set_features(has(features::EVENT_IDX), has(features::IN_ORDER));
            }
        }
    }

    /// Builds a chain: `readable` pieces for the device to read, then `writable` ones for it to
    /// write; returns its head. `None` when too few descriptors are free.
    pub fn build(&mut self, readable: &[Piece], writable: &[Piece], indirect: bool) -> Option<u16> {
        either!(self, ring => ring.build(readable, writable, indirect))
    }

    /// Gives the descriptors of a used chain back.
    pub fn free(&mut self, head: u16) {
        either!(self, ring => ring.free(head));
    }

    /// Posts a built chain; the device sees it after [`Ring::publish`].
    #[inline]
    pub fn post(&mut self, head: u16) {
        either!(self, ring => ring.post(head));
    }

    /// Takes back what was posted since the last publication, oldest first.
    pub fn unpost(&mut self) -> Vec<u16> {
        either!(self, ring => ring.unpost())
    }

    /// Shows all posted chains to the device and kicks it if it wants that. Tells whether.
    #[inline]
    pub fn publish(&mut self) -> bool {
        either!(self, ring => ring.publish())
    }

    /// Kicks the device, wanted or not.
    pub fn kick_now(&self) {
        self.signals().kick_now();
    }

    /// Takes the next used chain. Panics when the device returns one that it does not have.
    #[inline]
    pub fn pop(&mut self) -> Option<Used> {
        either!(self, ring => ring.pop())
    }

    /// Takes up to `max` used chains into `into`. Panics as [`Ring::pop`] does.
    #[inline]
    pub fn pop_into(&mut self, max: usize, into: &mut Vec<Used>) {
        either!(self, ring => ring.pop_into(max, into));
    }

    /// Used chains that wait to be popped.
    pub fn ready(&self) -> u16 {
        either!(self, ring => ring.ready())
    }

    /// Asks the device for a call, and waits until a chain is used or `timeout` has passed. Tells
    /// whether there is one. The device gets no wish for calls outside of this.
    pub fn wait(&mut self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        self.arm();
        let mut ready = self.ready() != 0;
        // A call without a used chain is legal (a switch calls once when the descriptor is new).
        while !ready {
            let left = deadline.saturating_duration_since(Instant::now());
            if !wait::readable(&self.signals().call, left) {
                break;
            }
            self.take_calls();
            ready = self.ready() != 0;
        }
        // A chain that was used without the call that was asked for is the device's mistake, and
        // the caller's timeout shows it: no last look here.
        self.take_calls();
        self.disarm();
        ready
    }

    fn take_calls(&mut self) {
        let calls = self.signals().call.read().unwrap_or(0);
        either!(self, ring => ring.notifications.calls += calls);
    }

    /// Asks for a call at the next used chain.
    pub fn arm(&self) {
        either!(self, ring => ring.arm());
    }

    /// Asks for no calls.
    pub fn disarm(&self) {
        either!(self, ring => ring.disarm());
    }

    /// Chains that the device has been shown, modulo 65,536: of a split ring, the avail index.
    pub fn avail_index(&self) -> u16 {
        either!(self, ring => ring.avail_index())
    }

    /// Chains that the device has used, modulo 65,536: of a split ring, the used index.
    pub fn used_index(&self) -> u16 {
        either!(self, ring => ring.used_index())
    }

    /// Where the device goes on, as SET_VRING_BASE has it.
    pub fn base(&self) -> u32 {
        match self {
            Ring::Split(ring) => ring.used_index().into(),
            Ring::Packed(ring) => ring.base(),
        }
    }
}
