//! What a port would do with a frame: its queue, what its receiver gets, whether there is room.
//!
//! Owns no decision: it asks those who send ([`steer`](super::steer), [`offload`],
//! the ring), and changes and counts nothing. A ring that somebody else has is not waited for.

use crate::frame::{DropReason, Frame};
use crate::mem::Segments;
use crate::ring::Room;
use crate::wire::offload::Offloads;

use super::offload;
pub use super::offload::{Becomes, Conversion};
use super::vhost::reason;
use super::{Kind, Port, TapPort, VhostPort};

/// What a port would do with a frame, as things are now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// Queue pairs that the guest receives on, or queues of the TAP.
    pub queues: u32,
    /// The one that it would leave by.
    pub queue: u32,
    /// Why that one.
    pub chosen: Chosen,
    /// Offloads that the receiver takes.
    pub accepts: Offloads,
    /// What the receiver would get.
    pub becomes: Result<Becomes, DropReason>,
    /// Room for it.
    pub room: Place,
}

/// Why a queue is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// There is no other.
    Only,
    /// The guest sends the flow on that pair.
    Noted,
    /// By the flow's hash.
    Hash,
    /// The pair of the flow never had a buffer: the first one stands in for it.
    Unused,
    /// It is that of the worker which has the frame.
    Worker,
}

/// Where a frame would be put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A guest's ring.
    Ring(Room),
    /// A guest's ring that somebody had just now: what is in it wasn't looked at.
    Busy,
    /// A guest's ring that doesn't run.
    Stopped,
    /// The kernel has its own.
    Tap,
}

impl Outlook {
    /// How many frames the receiver would get, or why none, or not all.
    pub fn done(&self) -> Result<u32, DropReason> {
        let Becomes { frames, bytes, longest, .. } = self.becomes?;
        match self.room {
            Place::Ring(room) => room.takes(frames, bytes, longest).map_err(reason)?,
            Place::Stopped => return Err(DropReason::LinkDown),
            Place::Busy | Place::Tap => {}
        }
        Ok(frames)
    }
}

impl Port {
    /// Offloads that may be used in frames from this port.
    pub fn sends(&self) -> Offloads {
        match &self.kind {
            Kind::Vhost(port) => port.sends(),
            Kind::Tap(port) => port.sends(),
        }
    }

    /// What would become of a frame here that `worker` sends; None: it would be dropped because the
    /// link is down.
    pub fn foresee(
        &self,
        frame: &Frame,
        segments: &Segments<'_>,
        worker: usize,
    ) -> Option<Outlook> {
        match &self.kind {
            Kind::Vhost(port) => port.foresee(frame, segments),
            Kind::Tap(port) => {
                let queue = self.queue_of(worker, port.queues());
                Some(port.foresee(frame, segments, queue))
            }
        }
    }
}

impl TapPort {
    fn foresee(&self, frame: &Frame, segments: &Segments<'_>, queue: usize) -> Outlook {
        let accepts = self.accepts();
        let queues = self.queues();
        Outlook {
            queues: queues as u32,
            queue: queue as u32,
            chosen: if queues > 1 { Chosen::Worker } else { Chosen::Only },
            accepts,
            becomes: offload::foresee(frame, segments, accepts),
            room: Place::Tap,
        }
    }
}

impl VhostPort {
    fn foresee(&self, frame: &Frame, segments: &Segments<'_>) -> Option<Outlook> {
        let pairs = self.enabled_pairs();
        let (mut pair, mut chosen) = match pairs {
            0 => return None,
            1 => (0, Chosen::Only),
            _ => match self.pair_for(frame, pairs) {
                (pair, true) => (pair, Chosen::Noted),
                (pair, false) => (pair, Chosen::Hash),
            },
        };
        let look = |pair: u8| {
            let mut ring = self.queues().ring(2 * usize::from(pair))?.try_lock()?;
            Some((ring.accepts(), ring.is_untouched(), ring.room()))
        };
        let mut seen = look(pair);
        if pair != 0 && seen.is_some_and(|(_, untouched, _)| untouched) {
            (pair, chosen) = (0, Chosen::Unused);
            seen = look(0);
        }
        let (accepts, room) = match seen {
            Some((accepts, _, Some(room))) => (accepts, Place::Ring(room)),
            Some((accepts, _, None)) => (accepts, Place::Stopped),
            None => (self.accepts(), Place::Busy),
        };
        Some(Outlook {
            queues: pairs,
            queue: pair.into(),
            chosen,
            accepts,
            becomes: offload::foresee(frame, segments, accepts),
            room,
        })
    }
}
