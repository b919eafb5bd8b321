//! What is counted at a port.
//!
//! Each worker has its own set, so a count is a plain load and store, never a locked operation.
//! Readers add the sets up; a sum may be a few frames old, and no frame is counted twice.
//!
//! For each port, at any time that the switch is quiet:
//!
//! - `ingress_frames` = frames sent on to one port + `flooded_frames` + ingress drops;
//! - frames sent to the port = `egress_frames` + egress drops;
//! - over all ports, the second sums equal the first ones with each flooded frame replaced by its
//!   `flooded_copies`;
//! - `egress_frames`, and each kind of egress drop, is the sum over the port's queues; but
//!   `link_down` belongs to no queue while the guest receives by none.
//!
//! `docs/statistics.md` says what holds while frames move.

use crate::frame::{DropReason, Frame};
pub use crate::sys::counter::Counter;

/// Lists the counters once: the atomic set, the sums and their names come from this list.
macro_rules! counters {
    ($($name:ident $text:literal,)*) => {
        /// The counters of one port that one worker writes.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct Counters {
            $(#[doc = $text] pub $name: Counter,)*
            drops: [Counter; DropReason::COUNT],
            /// By queue, in the order of the guest's pairs or of the TAP's queues.
            queues: Box<[QueueCounters]>,
        }

        impl Counters {
            fn add_named(&self, other: &Self) {
                $(self.$name.add(other.$name.get());)*
            }
        }

        /// The sums of a port's counters over all workers.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Totals {
            $(#[doc = $text] pub $name: u64,)*
            drops: [u64; DropReason::COUNT],
        }

        impl Totals {
            /// Name and meaning of each counter but the drops, in the order of [`Self::named`].
            pub const MEANINGS: &'static [(&'static str, &'static str)] =
                &[$((stringify!($name), $text),)*];

            /// Adds one worker's counters.
            pub fn add(&mut self, counters: &Counters) {
                $(self.$name += counters.$name.get();)*
                for (sum, drop) in self.drops.iter_mut().zip(&counters.drops) {
                    *sum += drop.get();
                }
            }

            /// Name and value of each counter but the drops.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    ingress_frames "Frames that came from the port.",
    ingress_bytes "Their bytes, without virtio-net headers.",
    egress_frames "Frames that were delivered to the port.",
    egress_bytes "Their bytes, as their senders sent them.",
    copied_bytes "Payload bytes that were copied into the guest's buffers.",
    flooded_frames "Frames from the port that went to all others.",
    flooded_copies "How many ports they were sent to, summed.",
    segmented_frames "Frames that were cut up because the receiver didn't negotiate segmentation.",
    segments "The frames that were made of them.",
    checksummed_frames "Frames whose checksum was completed because the receiver didn't negotiate it.",
    calls "Interrupts sent to the guest.",
    bursts "Bursts taken from the port.",
}

/// What one worker counts at a queue by which frames leave: a receive ring of a guest, or a queue of
/// a TAP.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct QueueCounters {
    /// Frames that were delivered to it.
    pub frames: Counter,
    drops: [Counter; DropReason::COUNT],
}

/// The sums of a queue's counters over all workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueTotals {
    /// Frames that were delivered to it.
    pub frames: u64,
    drops: [u64; DropReason::COUNT],
}

impl QueueCounters {
    /// Counts `n` frames that it didn't take.
    #[inline]
    pub fn drop(&self, reason: DropReason, n: u64) {
        if let Some(counter) = self.drops.get(reason as usize) {
            counter.add(n);
        }
    }
}

impl QueueTotals {
    /// Adds one worker's counters.
    pub fn add(&mut self, counters: &QueueCounters) {
        self.frames += counters.frames.get();
        for (sum, drop) in self.drops.iter_mut().zip(&counters.drops) {
            *sum += drop.get();
        }
    }

    /// Reason and number of each kind of drop that there was.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL.iter().copied().zip(self.drops).filter(|(_, count)| *count > 0)
    }

    /// Whether there was anything to count.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

impl Counters {
    /// Counters of a port with so many queues.
    pub fn new(queues: usize) -> Self {
        let queues = (0..queues).map(|_| QueueCounters::default()).collect();
        Self { queues, ..Self::default() }
    }

    /// Goes on with what `other` counted. Only the owner of both calls it.
    pub fn succeed(&self, other: &Self) {
        self.add_named(other);
        add_all(&self.drops, &other.drops);
        for (queue, other) in self.queues.iter().zip(&other.queues) {
            queue.frames.add(other.frames.get());
            add_all(&queue.drops, &other.drops);
        }
    }

    /// Those of a queue.
    #[inline]
    #[expect(clippy::indexing_slicing, reason = "there is one for each queue of the port")]
    pub fn queue(&self, queue: usize) -> &QueueCounters {
        &self.queues[queue]
    }

    /// Those of all queues.
    pub fn queues(&self) -> &[QueueCounters] {
        &self.queues
    }

    /// Counts a frame that was sent to the port: delivered, or dropped for a reason.
    #[inline]
    pub fn count_egress(&self, frame: &Frame, done: Result<(), DropReason>) {
        match done {
            Ok(()) => {
                self.egress_frames.add(1);
                self.egress_bytes.add(u64::from(frame.len));
            }
            Err(reason) => self.drop(reason, 1),
        }
    }

    /// Counts `n` drops.
    #[inline]
    pub fn drop(&self, reason: DropReason, n: u64) {
        if let Some(counter) = self.drops.get(reason as usize) {
            counter.add(n);
        }
    }
}

/// Adds each counter to its namesake.
fn add_all(to: &[Counter], from: &[Counter]) {
    to.iter().zip(from).for_each(|(to, from)| to.add(from.get()));
}

impl Totals {
    /// Reason and number of each kind of drop.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL.iter().copied().zip(self.drops)
    }

    /// All drops.
    pub fn dropped(&self) -> u64 {
        self.drops.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_explains_every_counter() {
        let page = include_str!("../../docs/statistics.md");
        let explains = |name: &str| page.contains(&format!("\n| `{name}` |"));
        for (name, _) in Totals::default().named() {
            assert!(explains(name), "{name}");
        }
        for (reason, _) in Totals::default().drops() {
            assert!(explains(&format!("drop_{reason}")), "{reason}");
        }
    }
}
