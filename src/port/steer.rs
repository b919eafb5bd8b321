//! Which queue pair a guest sends each of its flows on.
//!
//! Owns the memory behind automatic receive steering (virtio 1.2, 5.1.6.5.5): a guest that sends a
//! flow on one pair gets the flow's other direction on the same pair, where the thread that
//! waits for it runs. It knows flows by their hash only.
//!
//! # Theory of operation
//!
//! [`FlowQueues`] is a table of fixed size in sets of eight entries, a cache line each. An entry is
//! one atomic word: the flow's hash, the pair, and when the guest sent on it last. Any worker reads
//! and writes it without a lock. A write may undo another one to the same entry; that flow is
//! noted again with its next frame.
//!
//! An entry in use is never given to another flow, or the flow that lost it would go back and
//! forth between its pair and that of its hash, and come out of order. So what finds its set full
//! goes by its hash, always, until an entry was idle for [`IDLE_SECONDS`]. A guest that invents
//! flows fills its own table and has its own flows spread by hash.

use std::sync::atomic::{AtomicU64, Ordering};

/// Entries that share a cache line.
const WAYS: usize = 8;
/// Sets of a table: 1024 entries, 8 KiB.
const SETS: usize = 128;
/// How long the guest must not have sent a flow for its entry to be given away.
const IDLE_SECONDS: u32 = 10;
/// Seconds are counted modulo 2^24, half a year.
const SECONDS_MASK: u32 = 0xff_ffff;

/// An entry: from the top, 32 bits of hash, 24 of seconds, 8 of pair + 1; 0 is an empty one.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Set([AtomicU64; WAYS]);

/// The flows that a guest sends, and the pair of each.
#[derive(Debug)]
pub(super) struct FlowQueues {
    sets: Box<[Set]>,
}

impl Default for FlowQueues {
    fn default() -> Self {
        Self { sets: (0..SETS).map(|_| Set::default()).collect() }
    }
}

impl FlowQueues {
    /// Notes that the guest sent a flow on `pair` at `now`, in seconds. An entry that says so
    /// already isn't written, so its line stays with every core that reads it.
    #[inline]
    pub fn note(&self, hash: u32, pair: u8, now: u32) {
        let entry = u64::from(hash) << 32
            | u64::from(now & SECONDS_MASK) << 8
            | u64::from(pair.saturating_add(1));
        let mut free = None;
        for slot in self.set(hash) {
            let old = slot.load(Ordering::Relaxed);
            if is_of(old, hash) {
                if old != entry {
                    slot.store(entry, Ordering::Relaxed);
                }
                return;
            }
            if free.is_none() && is_idle(old, now) {
                free = Some(slot);
            }
        }
        if let Some(slot) = free {
            slot.store(entry, Ordering::Relaxed);
        }
    }

    /// The pair that the guest sent a flow on last.
    #[inline]
    pub fn pair(&self, hash: u32) -> Option<u8> {
        let entries = self.set(hash).iter().map(|slot| slot.load(Ordering::Relaxed));
        // The lowest byte is not 0 then.
        entries.into_iter().find(|entry| is_of(*entry, hash)).map(|entry| (entry as u8) - 1)
    }

    /// The flows that it knows, and their pairs.
    pub fn list(&self) -> Vec<(u32, u8)> {
        let entries =
            self.sets.iter().flat_map(|set| &set.0).map(|slot| slot.load(Ordering::Relaxed));
        let taken = entries.filter(|entry| *entry as u8 != 0);
        taken.map(|entry| ((entry >> 32) as u32, (entry as u8) - 1)).collect()
    }

    #[inline]
    fn set(&self, hash: u32) -> &[AtomicU64] {
        self.sets.get(hash as usize % SETS).map_or(&[], |set| &set.0)
    }
}

#[inline]
fn is_of(entry: u64, hash: u32) -> bool {
    (entry >> 32) as u32 == hash && entry as u8 != 0
}

#[inline]
fn is_idle(entry: u64, now: u32) -> bool {
    let age = now.wrapping_sub((entry >> 8) as u32) & SECONDS_MASK;
    entry as u8 == 0 || age >= IDLE_SECONDS
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hash of flow `number` of those that share a set.
    fn sharing(number: u32) -> u32 {
        number * SETS as u32 + 5
    }

    #[test]
    fn a_flow_is_where_it_was_sent_last() {
        let flows = FlowQueues::default();
        assert_eq!(flows.pair(0), None, "an empty entry is no flow of hash 0");
        for hash in [0, 1, 0x8000_0000, u32::MAX] {
            assert_eq!(flows.pair(hash), None);
            for pair in [0, 63, 7] {
                flows.note(hash, pair, 1);
                assert_eq!(flows.pair(hash), Some(pair));
            }
        }
        assert_eq!(flows.pair(0), Some(7));
    }

    #[test]
    fn an_entry_in_use_is_not_given_away() {
        let flows = FlowQueues::default();
        for number in 0..100 {
            flows.note(sharing(number), 3, 20);
        }
        let known = |flows: &FlowQueues| -> Vec<u32> {
            (0..100).filter(|number| flows.pair(sharing(*number)).is_some()).collect()
        };
        assert_eq!(known(&flows), Vec::from_iter(0..8));
        flows.note(sharing(4), 2, 25);
        // Just not idle yet.
        flows.note(sharing(50), 1, 20 + IDLE_SECONDS - 1);
        assert_eq!(flows.pair(sharing(50)), None);
        // All but one are; it keeps its entry, and its new pair.
        for number in 50..60 {
            flows.note(sharing(number), 1, 20 + IDLE_SECONDS);
        }
        assert_eq!(known(&flows), [4, 50, 51, 52, 53, 54, 55, 56]);
        assert_eq!(flows.pair(sharing(4)), Some(2));
    }

    #[test]
    fn the_clock_may_wrap() {
        let flows = FlowQueues::default();
        for number in 0..8 {
            flows.note(sharing(number), 1, u32::MAX - 1);
        }
        flows.note(sharing(8), 1, 3);
        assert_eq!(flows.pair(sharing(8)), None, "5 seconds later");
        flows.note(sharing(8), 1, 8);
        assert_eq!(flows.pair(sharing(8)), Some(1));
    }
}
