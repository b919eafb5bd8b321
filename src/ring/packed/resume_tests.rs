//! Devices that are killed at any store, over and over: the next one goes on where it must.

use crate::ring::driver::{BASE, BUFFERS, Driver};
use crate::ring::feature;
use crate::ring::format::{Desc, Format, Head};
use crate::ring::packed::{PackedRing, Position};

const FEATURES: u64 = feature::VERSION_1 | feature::RING_PACKED;
const LONGEST: u16 = 4;

/// Numbers that look random, from a seed.
struct Numbers(u64);

impl Numbers {
    /// One below `end`.
    fn below(&mut self, end: u16) -> u16 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as u16 % end
    }

    fn one_in(&mut self, n: u16) -> bool {
        self.below(n) == 0
    }
}

/// A driver that knows what it offered, and a device that may die.
struct Bench {
    driver: Driver,
    features: u64,
    ring: PackedRing,
    /// Where the ring was started: what the frontend says of it after a crash.
    base: u32,
    /// Heads and slots of all chains that were offered.
    offered: Vec<(u16, u16)>,
    numbers: Numbers,
}

impl Bench {
    fn new(size: u16, features: u64, seed: u64) -> Bench {
        let driver = Driver::packed(size);
        let features = FEATURES | features;
        let ring = locate(&driver, features, PackedRing::START);
        let numbers = Numbers(seed);
        let mut bench =
            Bench { driver, features, ring, base: PackedRing::START, offered: vec![], numbers };
        bench.ring.sign(None);
        bench
    }

    fn used(&self) -> usize {
        usize::from(self.driver.used_idx())
    }

    /// Position behind the chains that came back.
    fn expected(&self) -> Position {
        let size = self.driver.size;
        let chains = self.offered[..self.used()].iter();
        chains.fold(Position::START, |at, (_, slots)| at.plus(*slots, size))
    }

    /// Offers a chain of random length, if there is room for it.
    fn offer(&mut self) {
        let size = self.driver.size;
        let outstanding = &self.offered[self.used()..];
        let free = size - outstanding.iter().map(|(_, slots)| slots).sum::<u16>();
        let slots = 1 + self.numbers.below(LONGEST);
        if slots > free {
            return;
        }
        let heads = (0..=size - slots).filter(|id| outstanding.iter().all(|(head, _)| head != id));
        let heads: Vec<u16> = heads.collect();
        if heads.is_empty() {
            return;
        }
        let head = heads[usize::from(self.numbers.below(heads.len() as u16))];
        let buffers = vec![(BUFFERS, 100); usize::from(slots)];
        self.driver.chain(head, &buffers, 0);
        self.driver.offer(head);
        self.offered.push((head, slots));
    }

    /// Takes and completes some chains; returns the slots that this will write, with what was in
    /// them before: of each chain the first one, and then those that are skipped.
    fn complete_some(&mut self) -> Vec<Vec<(u64, Vec<u8>)>> {
        let (mut heads, mut first) = ([Head::NONE; 16], [Desc::NONE; 16]);
        let count = self.ring.take(0, &mut heads, &mut first).unwrap();
        let count = usize::from(self.numbers.below(count as u16 + 1));
        let mut before = Vec::new();
        for head in &heads[..count] {
            let slots = (0..head.slots()).map(|slot| {
                let at = self.ring.next.plus(slot, self.driver.size);
                let addr = BASE + 16 * u64::from(at.index) + 8;
                (addr, self.driver.read(addr, 8))
            });
            before.push(slots.collect());
            let written = u32::from(self.numbers.below(2)) * 100;
            self.ring.complete(*head, written);
        }
        before
    }

    /// Kills the device; the next one is told the base of the last start.
    fn kill(&mut self) {
        self.ring = locate(&self.driver, self.features, self.base);
        self.ring.resume(None);
        self.ring.sign(None);
        let bits = u32::from(self.ring.next.to_bits());
        self.base = bits << 16 | bits;
    }

    fn check(&self) {
        for (number, (head, _)) in self.offered[..self.used()].iter().enumerate() {
            let (id, _) = self.driver.used(number as u16);
            assert_eq!(id, u32::from(*head), "chain {number} of {}", self.used());
        }
        assert_eq!(self.ring.next, self.expected());
    }
}

fn locate(driver: &Driver, features: u64, base: u32) -> PackedRing {
    PackedRing::locate(&driver.mem, driver.size, &driver.address(), features, Some(base)).unwrap()
}

#[test]
fn a_device_that_was_killed_anywhere_is_followed_by_one_that_goes_on() {
    for (seed, size) in (1..).zip([1, 2, 3, 4, 5, 8, 13, 64]) {
        for features in [0, feature::EVENT_IDX] {
            let mut bench = Bench::new(size, features, 0x9e37_79b9 * (seed + features));
            let (mut torn, mut kills) = (0, 0);
            for _ in 0..500 {
                for _ in 0..bench.numbers.below(6) {
                    bench.offer();
                }
                match bench.numbers.below(3) {
                    0 => bench.ring.request_kicks(None),
                    _ => bench.ring.suppress_kicks(None),
                }
                if bench.ring.has_available() == Ok(true) {
                    bench.ring.suppress_kicks(None);
                }
                let mut written = bench.complete_some();
                match bench.numbers.below(4) {
                    // In the middle of a chain's marks, or before the burst is shown.
                    0 => {
                        let marks = written.pop().unwrap_or_default();
                        let missing = bench.numbers.below(marks.len().max(1) as u16);
                        let undone = marks.iter().skip(1).take(missing.into());
                        undone.for_each(|(addr, bytes)| bench.driver.write(*addr, bytes));
                        bench.kill();
                        kills += 1;
                    }
                    // In the middle of showing it: the last ones are stored first.
                    1 if !written.is_empty() => {
                        bench.ring.publish(None);
                        let missing = 1 + bench.numbers.below(written.len() as u16);
                        for chain in &written[..usize::from(missing)] {
                            let (addr, bytes) = &chain[0];
                            bench.driver.write(*addr, bytes);
                        }
                        bench.kill();
                        torn += 1;
                    }
                    2 => {
                        bench.ring.publish(None);
                        bench.kill();
                        kills += 1;
                    }
                    _ => bench.ring.publish(None),
                }
                bench.check();
                if bench.numbers.one_in(50) {
                    // An orderly stop: the base is exact.
                    bench.ring.unsign(None);
                    bench.base = bench.ring.base();
                    bench.ring = locate(&bench.driver, bench.features, bench.base);
                    bench.ring.resume(None);
                    bench.ring.sign(None);
                    bench.check();
                }
            }
            assert!(torn > 10 && kills > 100, "{torn} and {kills} kills");
            assert!(bench.used() > 60, "{} chains of a ring of {size}", bench.used());
        }
    }
}

#[test]
fn the_base_counts_where_no_device_of_ours_was_killed() {
    // Another device: it marks nothing, and its last chain left a slot that looks available.
    let mut driver = Driver::packed(8);
    let mut ring = locate(&driver, FEATURES, PackedRing::START);
    driver.chain(0, &[(BUFFERS, 100), (BUFFERS, 100)], 0);
    driver.offer(0);
    let second = BASE + 16 + 8;
    let skipped = driver.read(second, 8);
    let (mut heads, mut first) = ([Head::NONE; 4], [Desc::NONE; 4]);
    assert_eq!(ring.take(0, &mut heads, &mut first), Ok(1));
    ring.complete(heads[0], 0);
    ring.publish(None);
    driver.write(second, &skipped);
    let (there, place) = (driver.position(2), Position { index: 2, wrap: true });
    for signed in [false, true] {
        let mut next = locate(&driver, FEATURES, there);
        if signed {
            // Ours ran since then, and was stopped in order.
            next.sign(None);
            next.unsign(None);
        }
        next.resume(None);
        assert_eq!(next.next, place);
    }
}

#[test]
fn no_content_of_a_ring_leads_out_of_it() {
    let mut numbers = Numbers(7);
    for size in [1, 2, 7, 64] {
        let driver = Driver::packed(size);
        for _ in 0..300 {
            let mostly = numbers.below(16);
            for slot in 0..size {
                let flags = if numbers.one_in(8) { numbers.below(16) } else { mostly } << 12;
                let flags = flags & 0x8000 | (flags & 0x4000) >> 7 | (flags & 0x1000) >> 12;
                let len = if numbers.one_in(2) { u32::MAX } else { 5 };
                let bytes = driver.desc_bytes(BUFFERS, len, flags, numbers.below(99));
                driver.write(BASE + 16 * u64::from(slot), &bytes);
            }
            let mut ring = locate(&driver, FEATURES, PackedRing::START);
            ring.sign(None);
            ring.resume(None);
            assert!(ring.next.index < size);
        }
    }
}
