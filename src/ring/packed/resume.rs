//! Where the device before this one stopped, from what it left in guest memory.
//!
//! Owns the search for the position of a packed ring whose frontend can't know it. After an orderly
//! stop the frontend's base is exact. When a device was killed, or its connection broke, the
//! frontend repeats the base of the last start, and only the ring itself tells how far the device
//! came.
//!
//! # Theory of operation
//!
//! The driver never changes a slot's USED bit: it makes a slot available with the value that the
//! device left there a lap before. A device that inverts the bit of *every* slot that it passes so
//! leaves a ring in which the bit has one value before its position and the other one behind it.
//! Completion inverts that of a chain's first slot; [`PackedRing::mark_skipped`] inverts those of its
//! others, which the driver skips. A ring that was never used is all zeros, and begins at its start
//! by the same rule.
//!
//! A device that was killed while it showed a burst leaves some of the burst's slots done and some
//! not, in any mixture. The driver reads in order and has seen none of it. All of that burst is
//! given back with length 0: its transmit buffers were sent on already, since they are completed
//! after that, and the frames in its receive buffers are lost. So each buffer comes back once.
//!
//! Another device than this one may skip slots without marking them. [`SIGNATURE`] tells that the
//! last one was ours: it stands where the driver doesn't look while kicks are suppressed or wanted
//! for each buffer, and an orderly stop removes it. While a kick is wanted for one certain slot, the
//! ring is idle, and that slot is the position. QEMU, while it has no backend, may switch kicks off
//! and on, and then asks for one at the position that it knows; it may also complete transmit
//! buffers that look available there, which is then a burst that wasn't finished.
//!
//! A guest may write whatever it likes, and finds its own ring in confusion.

use std::sync::atomic::Ordering;

use crate::mem::DirtyLog;

use super::{
    DESC_F_AVAIL, DESC_F_NEXT, DESC_F_USED, EVENT_F_DESC, EVENT_F_MASK, Format, Head, PackedRing,
    Position,
};

/// In the device's event suppression structure, in the place of a position: a device of this kind
/// runs the ring.
pub(super) const SIGNATURE: u16 = 0x5257;
/// In the place of a length, in slots that the driver skips: no device writes so much.
const SKIPPED: u32 = u32::MAX;

/// What a slot is to a device at some position.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slot {
    /// Available in this lap.
    Available,
    /// Completed in this lap.
    Done,
    /// Completed in the lap before.
    Old,
    /// Available in the lap before, which the device would have passed.
    Passed,
}

impl PackedRing {
    /// Marks the slots of a chain, which begins at the position, that the driver skips. Must be done
    /// before its first slot is stored; the last one first, so that a chain whose marks are not
    /// complete still leads to one.
    pub(super) fn mark_skipped(&self, head: Head) {
        for slot in (1..head.slots()).rev() {
            let at = self.next.plus(slot, self.size);
            let flags = if at.wrap { DESC_F_AVAIL | DESC_F_USED } else { 0 };
            let word = u64::from(flags) << 48 | u64::from(head.id()) << 32 | u64::from(SKIPPED);
            self.word(at.index).store(word.to_le(), Ordering::Relaxed);
        }
    }

    /// Goes on where a device of this kind was killed, unless it was stopped in order, or it was
    /// another one.
    pub fn resume(&mut self, log: Option<&DirtyLog>) {
        let (flags, place) = self.device_event();
        let Some((at, unfinished)) = self.place() else { return };
        // The last device asked for a kick where it is, or the frontend did where it thinks it is.
        let idle = place == at.to_bits() || flags == EVENT_F_DESC && place == self.next.to_bits();
        if (place == SIGNATURE || idle) && self.is_whole(at, unfinished) {
            (self.next, self.published) = (at, at);
            self.give_back(unfinished, log);
        }
    }

    /// Leaves the signature, where that isn't the place of a position.
    pub fn sign(&mut self, log: Option<&DirtyLog>) {
        let (flags, _) = self.device_event();
        if flags != EVENT_F_DESC {
            self.write_device_event(flags, SIGNATURE, log);
        }
    }

    /// Takes the signature away: the position that the frontend is told is what counts.
    pub fn unsign(&mut self, log: Option<&DirtyLog>) {
        let (flags, place) = self.device_event();
        if flags != EVENT_F_DESC && place == SIGNATURE {
            self.write_device_event(flags, 0, log);
        }
    }

    /// The flags and the position in the device's event suppression structure.
    fn device_event(&self) -> (u16, u16) {
        // SAFETY: the structure was located, and is 4-byte aligned.
        let event = u32::from_le(unsafe { self.device_event.cast::<u32>().read_volatile() });
        ((event >> 16) as u16 & EVENT_F_MASK, event as u16)
    }

    /// Where the last device was, and how many slots behind belong to a burst that wasn't finished.
    fn place(&self) -> Option<(Position, u16)> {
        let places = [true, false].map(|wrap| self.boundaries(wrap));
        let mut found = None;
        // While a driver writes a chain, its first slot comes last: there may be a gap then.
        for gaps in [false, true] {
            for at in places.iter().flatten().flatten() {
                found = found.or_else(|| Some((*at, self.unfinished(*at, gaps)?)));
            }
        }
        found
    }

    /// The places where a device with this wrap counter can be, behind all slots that were made
    /// available for its next lap: the first slot that it has not passed, and the first of these
    /// that is available. The second one counts where an unfinished burst fills the ring.
    fn boundaries(&self, wrap: bool) -> [Option<Position>; 2] {
        let mut found = [None; 2];
        for index in 0..self.size {
            let at = Position { index, wrap };
            let [first, available] = &mut found;
            match self.slot(at) {
                Slot::Passed => found = [None; 2],
                Slot::Available => {
                    first.get_or_insert(at);
                    available.get_or_insert(at);
                }
                Slot::Old => {
                    first.get_or_insert(at);
                }
                Slot::Done => {}
            }
        }
        found
    }

    fn slot(&self, at: Position) -> Slot {
        let flags = (self.load(at.index) >> 48) as u16;
        let (avail, used) = (flags & DESC_F_AVAIL != 0, flags & DESC_F_USED != 0);
        match (avail == at.wrap, used == at.wrap) {
            (true, false) => Slot::Available,
            (true, true) => Slot::Done,
            (false, false) => Slot::Old,
            (false, true) => Slot::Passed,
        }
    }

    /// How many slots behind `at` belong to a burst that wasn't finished; None if no device can be
    /// at `at`. `gaps`: what is available may lie behind what isn't.
    fn unfinished(&self, at: Position, gaps: bool) -> Option<u16> {
        let (mut slots, mut old) = (0, false);
        for ahead in 0..self.size {
            match self.slot(at.plus(ahead, self.size)) {
                Slot::Available if old && !gaps => return None,
                Slot::Available => {}
                Slot::Done if ahead == 0 || old => return None,
                Slot::Done => slots = ahead + 1,
                Slot::Old => old = true,
                Slot::Passed => return None,
            }
        }
        Some(slots)
    }

    /// Whether so many slots behind `at` can be chains: none begins with a slot that one skips.
    fn is_whole(&self, at: Position, slots: u16) -> bool {
        let mut whole = 0;
        while whole < slots {
            let begin = at.plus(whole, self.size);
            if self.is_marked(begin) {
                return false;
            }
            whole += self.chain(begin, slots - whole).slots();
        }
        true
    }

    fn is_marked(&self, at: Position) -> bool {
        self.slot(at) == Slot::Done && self.load(at.index) as u32 == SKIPPED
    }

    /// The chain of an unfinished burst that begins at `at`, in at most `room` slots: it goes on by
    /// NEXT up to its first mark, and from there by marks.
    fn chain(&self, at: Position, room: u16) -> Head {
        let (mut word, mut slots) = (self.load(at.index), 1);
        while slots < room {
            let next = at.plus(slots, self.size);
            let leads = (word >> 48) as u16 & DESC_F_NEXT != 0;
            if !self.is_marked(next) && (!leads || self.slot(next) == Slot::Done) {
                break;
            }
            (word, slots) = (self.load(next.index), slots + 1);
        }
        Head::new((word >> 32) as u16, slots)
    }

    /// Completes so many slots from the position on, all with length 0.
    fn give_back(&mut self, slots: u16, log: Option<&DirtyLog>) {
        let mut left = slots;
        while left > 0 {
            let head = self.chain(self.next, left);
            self.complete(head, 0);
            left -= head.slots();
        }
        self.publish(log);
    }
}

#[cfg(test)]
#[path = "resume_tests.rs"]
mod tests;
