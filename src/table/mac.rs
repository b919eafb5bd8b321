//! The MAC table: which port a station was last heard on (IEEE 802.1Q-2018, 8.7 and 8.8).
//!
//! Owns the learned addresses and each port's count of them. It decides nothing: what to do with
//! an unknown destination or with a refused address is the caller's business.
//!
//! # Theory of operation
//!
//! **Layout.** An address may stand in two buckets of five entries, chosen by a keyed hash. An
//! entry is one 64-bit word, address and port together, so a reader never sees half of a change;
//! the five words and the seconds in which the entries were last seen are one cache line, so a
//! look-up in a table larger than the caches waits for one. At capacity two of five entries are
//! taken on average, or fewer.
//!
//! **Ageing.** An entry is live while it was last seen at most `ageing_secs` seconds ago. An older
//! one isn't found any more and its place may be taken; [`MacTable::expire`], called once in a
//! while by a housekeeping thread, removes it and gives its place in the port's limit back.
//!
//! **Thread safety.** Look-ups and refreshes take no lock and write nothing but, once a second, an
//! entry's time. All that adds, moves or removes an entry holds one mutex, so an address never
//! stands in two places and the counts are exact. The data path only tries that mutex: when it is
//! busy nothing is learned ([`Learned::Busy`]) and the station's next frame tries again. Removal
//! takes it for one entry at a time. A refresh may race with the removal of its entry; then the
//! next frame learns it anew.
//!
//! **Why one guest can't make the switch flood the others' traffic.** A guest that invents source
//! addresses is stopped at its port's limit, without the mutex. Until then each invented address
//! takes a free or expired place, or, if its two buckets are full, that of the port's own oldest
//! entry there; never a live entry of another port. The hash has a random key, so a guest can't aim
//! at the buckets of one victim. If the ports' limits add up to no more than the capacity, nobody
//! is ever refused for lack of room. What remains is to *claim* another station's address, which
//! moves it, as in any switch: filtering source addresses is a stage's job. An address that an
//! operator gave to a port (a static filtering entry, 802.1Q, 8.8.1) stays there, whoever claims it.

use std::hash::{BuildHasher, RandomState};

use crate::sys::prefetch;
use crate::sys::sync::Ordering::{Acquire, Relaxed, Release};
use crate::sys::sync::{AtomicU32, AtomicU64, Mutex};

/// Entries of a bucket: as many as one cache line holds, with their times.
const BUCKET_LEN: usize = 5;
/// Entries of a bucket that are taken on average when the table is at its capacity, at most.
const BUCKET_MEAN: usize = 2;
/// A bucket that holds more than this shares new addresses with the other candidate. Below, the
/// first one gets them all: a look-up then mostly touches one bucket.
const PREFERRED_LOAD: usize = 2;
/// The largest capacity served; more than any switched network can have (and 512 MiB of table).
const CAPACITY_MAX: usize = 1 << 24;
/// An entry that holds nothing: address 0 is never learned.
const EMPTY: u64 = 0;
/// The time of an address that an operator gave: it never ages.
const GIVEN: u32 = u32::MAX;
/// The group bit of the first octet (IEEE 802-2014, 8.2.2), addresses being 48-bit numbers with
/// the first octet highest.
const GROUP_BIT: u64 = 1 << 40;

/// What a [`MacTable`] is made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MacTableConfig {
    /// Addresses it is to hold at least; 1 to 2^24, values outside are taken as the nearest.
    pub capacity: usize,
    /// Seconds after which an address that isn't heard any more is forgotten (802.1Q: 300).
    pub ageing_secs: u32,
    /// Key of the hash. It must be unknown to guests: [`random_seed`]; tests give their own.
    pub seed: u64,
}

/// A seed from the system's random numbers, different in each process.
#[must_use]
pub fn random_seed() -> u64 {
    RandomState::new().hash_one(0u64)
}

/// What [`MacTable::learn`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learned {
    /// The address was known on this port: the common case.
    Refreshed,
    /// The address is known from now on.
    New,
    /// The station was on another port until now.
    Moved {
        /// The port it was on.
        from: u16,
    },
    /// Not learned: the port has as many addresses as its limit allows. What was known of the
    /// address stays.
    LimitReached,
    /// Not learned: an operator gave the address to another port.
    Given,
    /// Not learned: both buckets are full of live addresses of other ports.
    Full,
    /// Not learned: another thread is changing the table. The next frame tries again.
    Busy,
    /// Not learned, never: the address is zero, a group address or wider than 48 bits, or the port
    /// is not one of the table's.
    Ignored,
}

/// Five entries, and when each was last seen (seconds).
#[repr(C, align(64))]
#[derive(Default)]
struct Bucket {
    entries: [AtomicU64; BUCKET_LEN],
    seen: [AtomicU32; BUCKET_LEN],
}

impl Bucket {
    fn slots(&self) -> impl Iterator<Item = Slot<'_>> {
        self.entries.iter().zip(&self.seen).map(|(entry, seen)| Slot { entry, seen })
    }

    /// The slot of `mac`, and its entry. All words are compared without a branch: where the
    /// address stands is not predictable.
    #[inline]
    fn find(&self, mac: u64) -> Option<(Slot<'_>, u64)> {
        let mut hits = 0u32;
        for (index, entry) in self.entries.iter().enumerate() {
            hits |= u32::from(mac_of(entry.load(Relaxed)) == mac) << index;
        }
        let index = hits.trailing_zeros() as usize;
        let (entry, seen) = (self.entries.get(index)?, self.seen.get(index)?);
        // Pairs with the Release in `Slot::fill`: the time belongs to this entry or a later one.
        let word = entry.load(Acquire);
        (mac_of(word) == mac).then_some((Slot { entry, seen }, word))
    }
}

/// A MAC address, and its hash in one table.
#[derive(Clone, Copy, Debug, Default)]
pub struct Address {
    mac: u64,
    hash: u64,
}

/// One place of a bucket.
#[derive(Clone, Copy)]
struct Slot<'table> {
    entry: &'table AtomicU64,
    seen: &'table AtomicU32,
}

impl Slot<'_> {
    fn age(self, now: u32) -> u32 {
        // Another worker may have read its clock a moment later than the caller; and one that was
        // given is new for ever.
        now.saturating_sub(self.seen.load(Relaxed))
    }

    #[inline]
    fn refresh(self, now: u32) {
        // Written once a second, not once a frame: the line stays shared between the cores.
        let seen = self.seen.load(Relaxed);
        if seen < now {
            // Not over that of an address that is just being given.
            let _ = self.seen.compare_exchange(seen, now, Relaxed, Relaxed);
        }
    }

    fn is_given(self) -> bool {
        self.seen.load(Relaxed) == GIVEN
    }

    /// Only with the table's lock held.
    fn fill(self, mac: u64, port: u16, now: u32) {
        self.seen.store(now, Relaxed);
        self.entry.store(mac << 16 | u64::from(port), Release);
    }
}

fn mac_of(entry: u64) -> u64 {
    entry >> 16
}

fn port_of(entry: u64) -> u16 {
    entry as u16
}

/// How many addresses a port has and may have. Each in its own cache line: a guest at its limit
/// has its counter read for every frame.
#[repr(align(64))]
struct PortCount {
    /// Changes only with the table's lock held.
    entries: AtomicU32,
    limit: AtomicU32,
}

impl PortCount {
    fn is_at_limit(&self) -> bool {
        self.entries.load(Relaxed) >= self.limit.load(Relaxed)
    }
}

/// The learning MAC table, shared by all workers. See the module's text.
///
/// Addresses are 48-bit numbers with the first octet highest; times are seconds of any clock that
/// doesn't go back, the same for all calls.
pub struct MacTable {
    /// A power of two, at least two.
    buckets: Box<[Bucket]>,
    ports: Box<[PortCount]>,
    keys: [u64; 4],
    ageing_secs: AtomicU32,
    /// Held by whoever adds, moves or removes an entry.
    change: Mutex<()>,
}

impl MacTable {
    /// An empty table for the ports 0 to `ports_max - 1`, without limits. It takes 32 to 64 bytes
    /// of memory for each address of its capacity.
    #[must_use]
    pub fn new(config: &MacTableConfig, ports_max: usize) -> Self {
        let capacity = config.capacity.clamp(1, CAPACITY_MAX);
        let buckets = capacity.div_ceil(BUCKET_MEAN).next_power_of_two().max(2);
        let unlimited =
            || PortCount { entries: AtomicU32::new(0), limit: AtomicU32::new(u32::MAX) };
        Self {
            buckets: (0..buckets).map(|_| Bucket::default()).collect(),
            ports: (0..ports_max).map(|_| unlimited()).collect(),
            keys: expand_seed(config.seed),
            ageing_secs: AtomicU32::new(config.ageing_secs),
            change: Mutex::new(()),
        }
    }

    /// Allows `port` no more than `limit` addresses from now on. Those that it has stay until they
    /// age. A port that isn't one of the table's is ignored.
    pub fn set_port_limit(&self, port: u16, limit: u32) {
        if let Some(count) = self.count_of(port) {
            count.limit.store(limit, Relaxed);
        }
    }

    /// Seconds after which an address is forgotten that isn't heard any more, from now on.
    pub fn set_ageing(&self, secs: u32) {
        self.ageing_secs.store(secs, Relaxed);
    }

    /// Whether an address of this age is too old.
    #[inline]
    fn is_old(&self, age: u32) -> bool {
        age > self.ageing_secs.load(Relaxed)
    }

    /// Gives `mac` to `port` until it is [removed](Self::remove), wherever it is heard. False if
    /// there is no room: both of its buckets are full of live addresses of other ports; or if it is no
    /// address of a station.
    pub fn give(&self, mac: u64, port: u16, now: u32) -> bool {
        let address = self.address(mac);
        let Some(count) = self.count_of(port).filter(|_| is_learnable(mac)) else { return false };
        let _lock = self.change.lock();
        let place = self.find(address).map(|(slot, _)| slot);
        let Some(slot) = place.or_else(|| self.choose_slot(address, port, now)) else {
            return false;
        };
        self.discount(slot.entry.load(Relaxed));
        slot.fill(mac, port, GIVEN);
        count.entries.fetch_add(1, Relaxed);
        true
    }

    /// Forgets an address. Tells whether it was known.
    pub fn remove(&self, mac: u64) -> bool {
        let address = self.address(mac);
        let _lock = self.change.lock();
        let Some((slot, entry)) = self.find(address) else { return false };
        self.discount(entry);
        slot.entry.store(EMPTY, Release);
        true
    }

    /// The port that `mac` was last heard on; `None` when it is unknown, too old, zero or a group
    /// address. The port may have been removed since: check it.
    #[inline]
    pub fn lookup(&self, mac: u64, now: u32) -> Option<u16> {
        self.lookup_at(self.address(mac), now)
    }

    /// Notes that a frame with source address `mac` came in on `port`.
    #[inline]
    pub fn learn(&self, mac: u64, port: u16, now: u32) -> Learned {
        self.learn_at(self.address(mac), port, now)
    }

    /// Finds out where `mac` may stand, for whoever asks for it first and looks it up later.
    #[inline]
    pub fn address(&self, mac: u64) -> Address {
        let [key0, key1, key2, key3] = self.keys;
        let hash = folded_multiply(folded_multiply(mac ^ key0, key1) ^ key2, key3);
        Address { mac, hash }
    }

    /// Starts loading what will be read of an address.
    #[inline]
    pub fn prefetch(&self, address: Address) {
        // The second bucket is needed for few addresses, and by few frames.
        let [first, _] = self.candidates(address);
        prefetch::read(&raw const *first);
    }

    /// [`lookup`](Self::lookup).
    #[inline]
    pub fn lookup_at(&self, address: Address, now: u32) -> Option<u16> {
        let (slot, entry) = self.find(address)?;
        (!self.is_old(slot.age(now))).then_some(port_of(entry))
    }

    /// [`learn`](Self::learn).
    #[inline]
    pub fn learn_at(&self, address: Address, port: u16, now: u32) -> Learned {
        match self.find(address) {
            Some((slot, entry)) if port_of(entry) == port => {
                slot.refresh(now);
                Learned::Refreshed
            }
            _ => self.add_or_move(address, port, now),
        }
    }

    /// What [`learn`](Self::learn) would do now, without doing it.
    #[must_use]
    pub fn would_learn(&self, mac: u64, port: u16, now: u32) -> Learned {
        self.judge(self.address(mac), port, now).0
    }

    /// Forgets what was learned on `port`, or on all; returns how many addresses. Stop the port's
    /// ingress before, or a frame on its way is learned again.
    pub fn flush(&self, port: Option<u16>) -> u32 {
        let is_there = |entry: u64| port.is_none_or(|port| port_of(entry) == port);
        self.remove_if(|slot| is_there(slot.entry.load(Relaxed)) && !slot.is_given())
    }

    /// Forgets all addresses of `port`, also those that it was given: it is no more.
    pub fn forget(&self, port: u16) -> u32 {
        self.remove_if(|slot| port_of(slot.entry.load(Relaxed)) == port)
    }

    /// Forgets all addresses that are too old at `now`; returns how many. A sweep of the whole
    /// table: for a housekeeping thread, every few seconds.
    pub fn expire(&self, now: u32) -> u32 {
        self.remove_if(|slot| self.is_old(slot.age(now)))
    }

    /// How many addresses it holds, old ones included that [`expire`](Self::expire) didn't meet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ports.iter().map(|count| count.entries.load(Relaxed) as usize).sum()
    }

    /// Whether it holds no address.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many addresses of `port` it holds, counted as in [`len`](Self::len); never above the
    /// port's limit, unless that was lowered.
    #[must_use]
    pub fn port_len(&self, port: u16) -> u32 {
        self.count_of(port).map_or(0, |count| count.entries.load(Relaxed))
    }

    /// Calls `f` with each live address, its port and its age in seconds, or none if it was given, in
    /// no order. What other threads change meanwhile may or may not be seen.
    pub fn for_each(&self, now: u32, mut f: impl FnMut(u64, u16, Option<u32>)) {
        for slot in self.buckets.iter().flat_map(Bucket::slots) {
            let (entry, age) = (slot.entry.load(Acquire), slot.age(now));
            if entry != EMPTY && !self.is_old(age) {
                f(mac_of(entry), port_of(entry), (!slot.is_given()).then_some(age));
            }
        }
    }

    #[inline]
    fn find(&self, address: Address) -> Option<(Slot<'_>, u64)> {
        // Address 0 would match an empty entry.
        if !is_learnable(address.mac) {
            return None;
        }
        let [first, second] = self.candidates(address);
        first.find(address.mac).or_else(|| second.find(address.mac))
    }

    /// The two buckets in which an address may stand, never the same one twice.
    #[inline]
    #[expect(clippy::indexing_slicing, reason = "masked to the power of two that the length is")]
    fn candidates(&self, Address { hash, .. }: Address) -> [&Bucket; 2] {
        let mask = self.buckets.len() - 1;
        let first = hash as usize & mask;
        let other = (hash >> 32) as usize & mask;
        let second = if other == first { first ^ 1 } else { other };
        [&self.buckets[first], &self.buckets[second]]
    }

    fn count_of(&self, port: u16) -> Option<&PortCount> {
        self.ports.get(usize::from(port))
    }

    /// Adds or moves an address: all of `learn` but the refresh.
    #[cold]
    fn add_or_move(&self, address: Address, port: u16, now: u32) -> Learned {
        let Address { mac, .. } = address;
        let Some(count) = self.count_of(port) else {
            return Learned::Ignored;
        };
        if !is_learnable(mac) {
            return Learned::Ignored;
        }
        // Before the lock too: a guest that goes on inventing addresses, or claiming one that it
        // won't get, must not keep it busy.
        if count.is_at_limit() {
            return Learned::LimitReached;
        }
        if self.find(address).is_some_and(|(slot, _)| slot.is_given()) {
            return Learned::Given;
        }
        let Some(_lock) = self.change.try_lock() else {
            return Learned::Busy;
        };
        // Again, now that nothing changes: another worker may have learned or counted meanwhile.
        let (learned, slot) = self.judge(address, port, now);
        match slot {
            Some(slot) if learned == Learned::Refreshed => slot.refresh(now),
            Some(slot) => {
                self.discount(slot.entry.load(Relaxed));
                slot.fill(mac, port, now);
                count.entries.fetch_add(1, Relaxed);
            }
            None => {}
        }
        learned
    }

    /// What [`learn`](Self::learn) would do, and where it would write. It holds while the lock is
    /// held; without, it is a look at what may change.
    fn judge(&self, address: Address, port: u16, now: u32) -> (Learned, Option<Slot<'_>>) {
        let learnable = is_learnable(address.mac);
        let Some(count) = self.count_of(port).filter(|_| learnable) else {
            return (Learned::Ignored, None);
        };
        let known = self.find(address);
        if let Some((slot, entry)) = known
            && port_of(entry) == port
        {
            return (Learned::Refreshed, Some(slot));
        }
        if known.is_some_and(|(slot, _)| slot.is_given()) {
            return (Learned::Given, None);
        }
        if count.is_at_limit() {
            return (Learned::LimitReached, None);
        }
        match known {
            Some((slot, entry)) if !self.is_old(slot.age(now)) => {
                (Learned::Moved { from: port_of(entry) }, Some(slot))
            }
            Some((slot, _)) => (Learned::New, Some(slot)),
            None => match self.choose_slot(address, port, now) {
                Some(slot) => (Learned::New, Some(slot)),
                None => (Learned::Full, None),
            },
        }
    }

    /// A place for a new address of `port`: free or expired, else the port's own oldest entry.
    fn choose_slot(&self, address: Address, port: u16, now: u32) -> Option<Slot<'_>> {
        let candidates = self.candidates(address);
        let is_free =
            |slot: &Slot<'_>| slot.entry.load(Relaxed) == EMPTY || self.is_old(slot.age(now));
        let [first, second] =
            candidates.map(|bucket| BUCKET_LEN - bucket.slots().filter(is_free).count());
        let mut ordered = candidates;
        if first > PREFERRED_LOAD && second < first {
            ordered.reverse();
        }
        let free = ordered.into_iter().find_map(|bucket| bucket.slots().find(is_free));
        free.or_else(|| {
            let own =
                |slot: &Slot<'_>| port_of(slot.entry.load(Relaxed)) == port && !slot.is_given();
            let slots = candidates.into_iter().flat_map(Bucket::slots);
            slots.filter(own).max_by_key(|slot| slot.age(now))
        })
    }

    /// Takes the removed `entry` off its port's count. Only with the lock held.
    fn discount(&self, entry: u64) {
        if entry != EMPTY
            && let Some(count) = self.count_of(port_of(entry))
        {
            count.entries.fetch_sub(1, Relaxed);
        }
    }

    /// Removes what `is_due` says; returns how many. The lock is taken for one entry at a time, so
    /// that the data path meets it free.
    fn remove_if(&self, is_due: impl Fn(Slot<'_>) -> bool) -> u32 {
        let is_due = |slot: Slot<'_>| slot.entry.load(Acquire) != EMPTY && is_due(slot);
        let mut removed = 0u32;
        for slot in self.buckets.iter().flat_map(Bucket::slots) {
            if !is_due(slot) {
                continue;
            }
            let _lock = self.change.lock();
            // Again: it may have been refreshed, moved or replaced meanwhile.
            if is_due(slot) {
                self.discount(slot.entry.load(Relaxed));
                slot.entry.store(EMPTY, Release);
                removed = removed.saturating_add(1);
            }
        }
        removed
    }
}

impl std::fmt::Debug for MacTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MacTable").field("len", &self.len()).finish_non_exhaustive()
    }
}

fn is_learnable(mac: u64) -> bool {
    mac != 0 && mac < 1 << 48 && mac & GROUP_BIT == 0
}

/// Both halves of the 128-bit product, one over the other: each bit of `a` reaches all of the
/// result, in a way that only who knows `b` can follow.
fn folded_multiply(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// Four keys of the hash from one seed, by SplitMix64 (Steele, Lea, Flood: "Fast splittable
/// pseudorandom number generators", 2014). Odd ones, so that no multiplication loses a bit.
fn expand_seed(seed: u64) -> [u64; 4] {
    let mut state = seed;
    std::array::from_fn(|_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) | 1
    })
}

#[cfg(test)]
#[path = "mac_tests.rs"]
mod tests;
