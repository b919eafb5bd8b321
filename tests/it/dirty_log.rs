//! The dirty log of live migration: what the switch writes to a guest's memory is marked, all of it
//! and nothing else.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fakeguest::features::EVENT_IDX;
use fakeguest::frames::{Frame, mac};
use fakeguest::layout::Piece;
use fakeguest::memory::DirtyBits;
use fakeguest::protocol::{VRING_LOG, VringAddr};
use fakeguest::ring::RingAddresses;
use fakeguest::{Guest, Layout, Received, SetupOrder};

use super::support::precopy::{PAGE, Precopy};
use super::support::switch::Switch;
use super::support::{over_both_formats, wait_for};

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

over_both_formats! {
    exactly_what_was_written_is_marked
    logs_take_turns_and_lose_nothing
    the_dirty_log_has_all_pages_written_and_only_while_it_is_on
    memory_that_comes_while_logging_is_logged
}

/// `count` frames of growing length, all different.
fn frames(from: u8, to: u8, count: usize, seed: u32) -> Vec<Frame> {
    let one = |n: usize| Frame::pattern(mac(to), mac(from), 60 + 31 * n, seed << 16 | n as u32);
    (0..count).map(one).collect()
}

/// The pages that hold these guest addresses.
fn pages(range: Range<u64>) -> impl Iterator<Item = u64> {
    range.start / PAGE..=(range.end - 1) / PAGE
}

/// The pages of a ring of 64 entries that the device writes to.
fn used_pages(ring: RingAddresses, format: u64) -> BTreeSet<u64> {
    if format == 0 {
        return pages(ring.used..ring.used + 6 + 8 * 64).collect();
    }
    pages(ring.desc..ring.desc + 16 * 64).chain(pages(ring.used..ring.used + 4)).collect()
}

/// A guest whose receive buffers are its own, one by one, on pages of their own.
struct Logged {
    guest: Guest,
}

impl Logged {
    /// Posts a buffer of `len` bytes that begins at the end of a page; returns where.
    fn post(&mut self, len: u32) -> u64 {
        let addr = self.guest.memory().alloc(u64::from(len) + 3 * PAGE, PAGE) + PAGE - 20;
        assert!(self.guest.queue(0).rx.post_pieces(&[Piece { addr, len }], false));
        addr
    }

    fn recv(&mut self) -> Received {
        self.guest.recv(0, PATIENCE).expect("a frame")
    }
}

fn the_dirty_log_has_all_pages_written_and_only_while_it_is_on(format: u64) {
    let mut switch = Switch::builder().port("a").port("b").start();
    let mut a = Guest::builder(switch.socket("a")).with(format).attach().expect("a guest");
    let b = Guest::builder(switch.socket("b")).with(format).ring_size(64).manual_posting();
    let b = b.regions(&[(0, 64 << 20)]).attach().expect("a guest");
    let mut b = Logged { guest: b };
    b.guest.queue(0).rx.drop_idle();
    let rings = [b.guest.ring(0).addresses(), b.guest.ring(1).addresses()];
    let (rx_used, tx_used) = (used_pages(rings[0], format), used_pages(rings[1], format));

    // A log without LOG_ALL: nothing is marked.
    let early = DirtyBits::new(64 << 20).expect("a log");
    b.guest.connection().set_log_base(early.size(), early.file()).expect("a log");
    let mut round = |b: &mut Logged, len: usize| -> BTreeSet<u64> {
        let addr = b.post(20_000);
        let frame = Frame::pattern(mac(2), mac(1), len, len as u32);
        a.send(0, &frame, &Layout::whole());
        assert_eq!(b.recv().bytes, frame.bytes);
        assert!(a.flush(0, PATIENCE));
        pages(addr..addr + 12 + len as u64).collect()
    };
    round(&mut b, 9000);
    assert_eq!(early.take(), [0; 0]);

    let log = b.guest.start_log().expect("a log");
    log.take(); // what switching over itself wrote
    for len in [14, 60, 1514, 4076, 4077, 9000, 16_000] {
        let written = round(&mut b, len);
        // The switch completes what was sent after all that it does at the receiver.
        let marked: BTreeSet<u64> = log.take().into_iter().collect();
        assert!(marked.is_superset(&written), "{len} bytes: {written:?} in {marked:?}");
        let used: BTreeSet<_> = marked.difference(&written).copied().collect();
        // At any time the switch may ask for kicks at the other ring.
        let rings_used: BTreeSet<_> = rx_used.union(&tx_used).copied().collect();
        assert!(used.is_subset(&rings_used), "{len}: {used:?} of {rings_used:?}");
        assert!(used.contains(&(rings[0].used / PAGE)), "the device's area is marked");
    }

    // What b sends marks the used ring only: its buffers are read.
    for frame in frames(2, 1, 5, 1) {
        b.guest.send(0, &frame, &Layout::whole());
        assert!(b.guest.flush(0, PATIENCE));
        // The index is marked after it is seen: a message waits until the ring is let go.
        b.guest.unpause().and_then(|()| b.guest.sync()).expect("enabled, as before");
        let marked: BTreeSet<u64> = log.take().into_iter().collect();
        assert!(marked.contains(&(rings[1].used / PAGE)) && marked.is_subset(&tx_used));
    }

    // The next pass of a migration that takes a log of its own for each.
    let second = DirtyBits::new(64 << 20).expect("a log");
    b.guest.connection().set_log_base(second.size(), second.file()).expect("a log");
    log.take();
    let written = round(&mut b, 3000);
    let marked: BTreeSet<u64> = second.take().into_iter().collect();
    assert!(marked.is_superset(&written));
    assert_eq!(log.take(), [0; 0], "nobody writes to the old log when SET_LOG_BASE is answered");

    b.guest.stop_log().expect("no log");
    second.take();
    round(&mut b, 9000);
    assert_eq!(second.take(), [0; 0]);
    assert_eq!(early.take(), [0; 0]);
    assert_eq!(switch.statistics().dropped(), 0);
    switch.stop();
}

fn memory_that_comes_while_logging_is_logged(format: u64) {
    let mut switch = Switch::builder().port("a").port("b").start();
    let mut a = Guest::builder(switch.socket("a")).with(format).attach().expect("a guest");
    let guest = Guest::builder(switch.socket("b")).with(format).ring_size(64).manual_posting();
    let regions = [(0, 64 << 20), (1 << 30, 1 << 20)];
    let mut b = Logged { guest: guest.regions(&regions).attach().expect("a guest") };
    b.guest.queue(0).rx.drop_idle();
    let memory = b.guest.memory().clone();
    let late = memory.regions()[1];
    b.guest.connection().rem_mem_reg(&late).expect("removed");
    let log = b.guest.start_log().expect("a log");
    b.guest.connection().add_mem_reg(&late, memory.file()).expect("added");
    let addr = late.guest_addr + 5 * PAGE;
    assert!(b.guest.queue(0).rx.post_pieces(&[Piece { addr, len: 2000 }], false));
    let frame = Frame::pattern(mac(2), mac(1), 1500, 1);
    a.send(0, &frame, &Layout::whole());
    assert_eq!(b.recv().bytes, frame.bytes);
    assert!(log.take().contains(&(addr / PAGE)));
    assert_eq!(switch.statistics().dropped(), 0);
    switch.stop();
}

/// Entries of the rings whose every page is looked at: their ends are pages apart.
const LONG: u16 = 1024;
/// Frames that are sent on such a ring in a round.
const SENT: u16 = 250;

/// The pages of a ring that completing `count` chains of one descriptor behind `from` writes to.
fn completed(ring: RingAddresses, format: u64, from: u16, count: u16) -> BTreeSet<u64> {
    let slots = (from..from + count).map(|slot| u64::from(slot % LONG));
    if format != 0 {
        return slots
            .flat_map(|slot| pages(ring.desc + 16 * slot..ring.desc + 16 * slot + 16))
            .collect();
    }
    let entries = slots.map(|slot| ring.used + 4 + 8 * slot).flat_map(|addr| pages(addr..addr + 8));
    entries.chain(pages(ring.used..ring.used + 4)).collect()
}

/// Where a device asks for kicks, or for none.
fn wish(ring: RingAddresses, format: u64, event_idx: u64) -> Range<u64> {
    match (format, event_idx) {
        (0, 0) => ring.used..ring.used + 2,
        (0, _) => ring.used + 4 + 8 * u64::from(LONG)..ring.used + 6 + 8 * u64::from(LONG),
        _ => ring.used..ring.used + 4,
    }
}

/// Whether the device asks for a kick at the next chain.
fn wants_kicks(guest: &Guest, ring: usize, format: u64, event_idx: u64) -> bool {
    let at = wish(guest.ring(ring).addresses(), format, event_idx);
    let mut bytes = [0; 4];
    guest.memory().read(at.start, &mut bytes[..(at.end - at.start) as usize]);
    let [low, high] = [[bytes[0], bytes[1]], [bytes[2], bytes[3]]].map(u16::from_le_bytes);
    match (format, event_idx) {
        (0, 0) => low == 0,
        (0, _) => low == guest.ring(ring).avail_index(),
        _ => high != 1,
    }
}

fn exactly_what_was_written_is_marked(format: u64) {
    for event_idx in [0, EVENT_IDX] {
        let mut switch = Switch::builder().port("a").port("b").start();
        let mut a = Guest::builder(switch.socket("a")).with(format).attach().expect("a guest");
        let guest = Guest::builder(switch.socket("b")).without(EVENT_IDX).with(format | event_idx);
        let guest = guest.ring_size(LONG).tx_slot(2048).manual_posting();
        let guest = guest.regions(&[(0, 20 << 20), (4 << 30, 1 << 20)]);
        let mut b = Logged { guest: guest.attach().expect("a guest") };
        b.guest.queue(0).rx.drop_idle();
        let rings = [0, 1].map(|ring| b.guest.ring(ring).addresses());
        let regions = b.guest.memory().regions().to_vec();
        let log = b.guest.start_log().expect("a log");
        let mut wishes_changed = false;
        for round in 0..5 {
            // While nothing is touched, the driver writes what it wants.
            b.guest.pause().and_then(|()| b.guest.sync()).expect("disabled");
            let to_b = [60, 4076, 9000].map(|len| Frame::pattern(mac(2), mac(1), len, round));
            let mut written = BTreeSet::new();
            for frame in &to_b {
                let addr = b.post(20_000);
                written.extend(pages(addr..addr + 12 + frame.bytes.len() as u64));
            }
            // So many that their entries go round all pages of the ring.
            let one = |n| Frame::pattern(mac(1), mac(2), 60 + n as usize, round << 16 | n);
            let from_b: Vec<_> = (0..SENT.into()).map(one).collect();
            from_b.iter().for_each(|frame| b.guest.send(0, frame, &Layout::whole()));
            let used = [0, 1].map(|ring| b.guest.ring(ring).used_index());
            log.take();
            let before: Vec<_> = regions.iter().map(|r| b.guest.memory().snapshot(r)).collect();

            b.guest.unpause().and_then(|()| b.guest.sync()).expect("enabled");
            to_b.iter().for_each(|frame| a.send(0, frame, &Layout::whole()));
            wait_for("end of all work", PATIENCE, || {
                let now = [0, 1].map(|ring| b.guest.ring(ring).used_index());
                let done = now == [used[0] + 3, used[1] + SENT];
                (done && wants_kicks(&b.guest, 1, format, event_idx)).then_some(())
            });
            b.guest.pause().and_then(|()| b.guest.sync()).expect("disabled");

            let marked: BTreeSet<u64> = log.take().into_iter().collect();
            let mut changed = BTreeSet::new();
            for (region, before) in regions.iter().zip(&before) {
                let after = b.guest.memory().snapshot(region);
                let both = before.chunks(PAGE as usize).zip(after.chunks(PAGE as usize));
                let differ = both.enumerate().filter(|(_, (before, after))| before != after);
                changed.extend(differ.map(|(page, _)| region.guest_addr / PAGE + page as u64));
            }
            written.extend(completed(rings[0], format, used[0], 3));
            written.extend(completed(rings[1], format, used[1], SENT));
            let wishes: BTreeSet<u64> =
                rings.iter().flat_map(|ring| pages(wish(*ring, format, event_idx))).collect();
            let missing: Vec<_> = written.union(&changed).filter(|p| !marked.contains(p)).collect();
            assert!(missing.is_empty(), "round {round}: written and not marked: {missing:?}");
            let surplus: Vec<_> = marked
                .iter()
                .filter(|page| !written.contains(page) && !wishes.contains(page))
                .collect();
            assert!(surplus.is_empty(), "round {round}: marked and not written: {surplus:?}");
            wishes_changed |= changed.difference(&written).next().is_some();
            for frame in &to_b {
                assert_eq!(b.recv().bytes, frame.bytes);
            }
            for frame in &from_b {
                assert_eq!(a.recv(0, PATIENCE).expect("a frame").bytes, frame.bytes);
            }
        }
        // Else the page that only the event index is in was never put to the test.
        assert!(wishes_changed || format | event_idx == 0, "no wish was ever written alone");
        assert_eq!(switch.statistics().dropped(), 0);
        switch.stop();
    }
}

/// Tells a thread to end.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn logs_take_turns_and_lose_nothing(format: u64) {
    let switch = Switch::builder().port("a").port("b").start();
    for order in [SetupOrder::Qemu, SetupOrder::CloudHypervisor] {
        let guest = |port: &str| Guest::builder(switch.socket(port)).with(format).order(order);
        let mut a = guest("a").attach().expect("a guest");
        let mut b = guest("b").tx_slot(2048).attach().expect("a guest");
        let mut log = b.start_log().expect("a log");
        let mut copy = Precopy::begin(&b);
        let (mut left, mut marked) = (Vec::new(), 0);
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for seed in (0..1 << 16).take_while(|_| !ended.load(Ordering::Relaxed)) {
                    frames(1, 2, 20, seed)
                        .iter()
                        .for_each(|frame| a.send(0, frame, &Layout::whole()));
                }
            });
            // Also when an assertion fails, or the scope would wait for ever.
            let _ends = Ends(&ended);
            for pass in 0..40 {
                let (deadline, mut received) = (Instant::now() + PATIENCE, 0);
                while received < 50 {
                    assert!(Instant::now() < deadline, "pass {pass}: only {received} frames came");
                    received += usize::from(b.queue(0).rx.recv().is_some());
                }
                // Frames come on while one log takes the other's place.
                let next = b.next_log().expect("a log");
                marked += copy.copy_marked(&log);
                left.push(std::mem::replace(&mut log, next));
            }
        });
        b.stop().expect("bases");
        marked += copy.copy_marked(&log);
        assert!(marked > 40, "only {marked} pages were marked");
        for (pass, log) in left.iter().enumerate() {
            assert_eq!(log.take(), [0; 0], "log {pass} was written to after its end");
        }
        copy.assert_device_writes_arrived(&mut b, format == 0);
    }
    switch.stop();
}

#[test]
fn used_rings_are_logged_where_the_frontend_says() {
    let switch = Switch::builder().port("a").port("b").start();
    let mut a = Guest::builder(switch.socket("a")).attach().expect("a guest");
    let mut b =
        Guest::builder(switch.socket("b")).regions(&[(0, 64 << 20)]).attach().expect("a guest");
    let log = b.start_log().expect("a log");
    let at = b.ring(1).addresses();
    let elsewhere = 60 << 20;
    for (flags, logged_at) in [(VRING_LOG, elsewhere), (0, at.used)] {
        let [desc, avail, used] =
            [at.desc, at.avail, at.used].map(|addr| b.memory().user_addr(addr));
        let addr = VringAddr { flags, desc, avail, used, log: elsewhere };
        b.connection().set_vring_addr(1, addr).and_then(|()| b.sync()).expect("an address");
        log.take();
        let frame = frames(2, 1, 1, flags).remove(0);
        b.send(0, &frame, &Layout::whole());
        assert!(b.flush(0, PATIENCE));
        assert_eq!(a.recv(0, PATIENCE).expect("a frame").bytes, frame.bytes);
        // The index is marked after it is seen: a message waits until the ring is let go.
        b.unpause().and_then(|()| b.sync()).expect("enabled, as before");
        let marked: BTreeSet<u64> = log.take().into_iter().collect();
        let ring: BTreeSet<u64> = pages(logged_at..logged_at + 6 + 8 * 256).collect();
        let index = logged_at / PAGE;
        assert!(marked.contains(&index) && marked.is_subset(&ring), "flags {flags}: {marked:?}");
    }
    switch.stop();
}
