//! Conformance of the ring engine to virtio 1.2, seen from the driver's side.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::driver::{BUFFERS, Driver, INDIRECT, NEXT, WRITE};
use super::*;
use crate::frame::{BURST, Frame};
use crate::mem::{DirtyLog, SegmentPool, Tail};
use crate::wire::vnet::VnetHeader;

/// Makes a driver with a ring of this size.
type New = fn(u16) -> Driver;

/// Runs these tests over rings of both formats.
macro_rules! both {
    ($($name:ident)*) => {
        mod split {
            $(#[test] fn $name() { super::$name(super::Driver::split) })*
        }
        mod packed {
            $(#[test] fn $name() { super::$name(super::Driver::packed) })*
        }
    };
}

both! {
    takes_frames_over_any_descriptor_split_direct_and_indirect
    a_buffer_across_two_regions_is_one_frame
    indirect_without_negotiation_is_a_bad_chain
    bursts_are_bounded_in_frames_and_bytes_and_wrap_around
    a_frame_is_merged_over_buffers_and_each_gets_its_length
    without_mergeable_buffers_one_buffer_holds_the_frame_or_it_is_refused
    a_frame_is_not_put_into_very_many_very_small_buffers
    legacy_drivers_get_the_short_header
    a_bad_receive_buffer_is_given_back_empty_and_the_next_is_used
    empty_receive_buffers_take_a_bounded_share_of_the_work
    the_room_is_what_is_posted_and_a_look_at_it_changes_nothing
    a_frame_that_does_not_fit_leaves_the_buffers_and_the_position
    looked_at_buffers_are_not_lost_when_the_ring_stops
    what_is_left_of_buffers_is_seen_from_outside
    calls_honour_no_interrupt_and_used_event
    kicks_are_requested_and_suppressed
    written_pages_are_logged_while_the_feature_says_so
    memory_and_addresses_can_change_while_it_runs
}

const MODERN: u64 = feature::VERSION_1 | feature::MRG_RXBUF | feature::INDIRECT_DESC;

/// A frame as the guest writes it: a 12-byte header of zeros, then bytes that count up.
fn packet(len: usize) -> Vec<u8> {
    let mut out = vec![0; 12];
    out.extend((0..len).map(|i| (i * 7 + i / 256) as u8));
    out
}

pub struct Taken {
    pub frames: Vec<Vec<u8>>,
    pub taken: u16,
    pub bad_chains: u16,
    pub bad_lengths: u16,
    /// Whether the driver was called.
    pub called: bool,
}

/// Takes a burst, reads its frames whole, and completes it.
pub fn take(ring: &mut Ring) -> Option<Taken> {
    let mut pool = SegmentPool::default();
    let mut frames = vec![Frame::default(); BURST];
    let burst = ring.receive(&mut pool, &mut frames)?;
    let read = |frame: &Frame| {
        let mut bytes = frame.head().to_vec();
        burst.segments.tail(frame.tail.clone()).read(|b| bytes.extend_from_slice(b));
        assert_eq!(bytes.len(), frame.len as usize);
        bytes
    };
    let frames: Vec<_> = burst.frames.iter().map(read).collect();
    let (bad_chains, bad_lengths) = burst.bad(burst.taken, frames.len());
    let mut taken = Taken { frames, taken: burst.taken, bad_chains, bad_lengths, called: false };
    ring.complete_burst(taken.taken);
    ring.publish();
    taken.called = ring.call_if_wanted();
    Some(taken)
}

fn takes_frames_over_any_descriptor_split_direct_and_indirect(new: New) {
    let bytes = packet(3000);
    let total = bytes.len() as u32;
    let splits: [&[u32]; 6] = [
        &[total],
        &[12, total - 12],
        &[1, 5, 6, total - 12],
        &[7, total - 7],
        &[140, 1, 2871],
        &[],
    ];
    for split in splits {
        for indirect in [false, true] {
            let mut driver = new(64);
            let mut ring = driver.ring(MODERN);
            driver.write(BUFFERS, &bytes);
            let mut at = BUFFERS;
            // An empty split stands for a descriptor for each 100 bytes.
            let hundreds: Vec<u32> = vec![100; 30].into_iter().chain([12]).collect();
            let split = if split.is_empty() { &hundreds } else { split };
            let buffers: Vec<_> = split
                .iter()
                .map(|len| {
                    let buffer = (at, *len);
                    at += u64::from(*len);
                    buffer
                })
                .collect();
            if indirect {
                let table = BUFFERS + 0x8000;
                for (i, (addr, len)) in buffers.iter().enumerate() {
                    let more = if i + 1 == buffers.len() { 0 } else { NEXT };
                    let desc = driver.desc_bytes(*addr, *len, more, i as u16 + 1);
                    driver.write(table + 16 * i as u64, &desc);
                }
                driver.desc(5, table, 16 * buffers.len() as u32, INDIRECT, 0);
            } else {
                driver.chain(5, &buffers, 0);
            }
            driver.offer(5);
            let got = take(&mut ring).unwrap();
            assert_eq!(got.frames, [&bytes[12..]]);
            assert_eq!((got.taken, got.bad_chains, got.bad_lengths), (1, 0, 0));
            assert_eq!(driver.used_idx(), 1);
            assert_eq!(driver.used(0), (5, 0));
            assert!(take(&mut ring).is_none());
        }
    }
}

fn a_buffer_across_two_regions_is_one_frame(new: New) {
    let mut driver = new(8);
    let mut ring = driver.ring(MODERN);
    let bytes = packet(500);
    let at = Driver::border() - 200;
    driver.write(at, &bytes);
    driver.chain(0, &[(at, bytes.len() as u32)], 0);
    driver.offer(0);
    assert_eq!(take(&mut ring).unwrap().frames, [&bytes[12..]]);
}

#[test]
fn bad_chains_are_completed_and_counted_and_the_ring_goes_on() {
    let mut driver = Driver::split(64);
    let mut ring = driver.ring(MODERN);
    let good = packet(60);
    driver.write(BUFFERS, &good);
    let table = BUFFERS + 0x1000;
    driver.desc(0, BUFFERS, 72, WRITE, 0); // for the device to write
    driver.desc(1, 0x10, 72, 0, 0); // not guest memory
    driver.desc(2, BUFFERS, 72, NEXT, 2); // a loop
    driver.desc(3, BUFFERS, 20, NEXT, 64); // next out of range
    driver.desc(4, table, 32, INDIRECT | NEXT, 5); // indirect with next
    driver.desc(5, table, 17, INDIRECT, 0); // no multiple of 16
    driver.desc(6, table, 0, INDIRECT, 0); // empty table
    driver.desc(7, table, 16, INDIRECT, 0); // nested
    driver.write(table, &driver.desc_bytes(table, 16, INDIRECT, 0));
    driver.desc(8, u64::MAX - 10, 100, 0, 0); // wraps
    driver.desc(9, table + 0x100, 16, INDIRECT, 0); // next beyond the table
    driver.write(table + 0x100, &driver.desc_bytes(BUFFERS, 20, NEXT, 1));
    for head in 0..10 {
        driver.offer(head);
    }
    driver.offer(64); // head out of range
    driver.desc(20, BUFFERS, 25, 0, 0); // shorter than headers
    driver.offer(20);
    driver.desc(21, BUFFERS, 70_000, 0, 0); // longer than any frame
    driver.offer(21);
    driver.desc(22, BUFFERS, 72, 0, 0);
    driver.offer(22);
    let got = take(&mut ring).unwrap();
    assert_eq!((got.taken, got.bad_chains, got.bad_lengths), (14, 11, 2));
    assert_eq!(got.frames, [&good[12..]]);
    assert_eq!(driver.used_idx(), 14);
    assert_eq!(driver.used(10), (64, 0));
    assert_eq!(driver.used(13), (22, 0));
    assert!(ring.is_running());
}

fn indirect_without_negotiation_is_a_bad_chain(new: New) {
    let mut driver = new(8);
    let mut ring = driver.ring(feature::VERSION_1);
    let table = BUFFERS + 0x1000;
    driver.write(table, &driver.desc_bytes(BUFFERS, 72, 0, 0));
    driver.desc(0, table, 16, INDIRECT, 0);
    driver.offer(0);
    assert_eq!(take(&mut ring).unwrap().bad_chains, 1);
}

#[test]
fn an_impossible_index_stops_the_ring_and_signals_the_frontend() {
    let mut driver = Driver::split(8);
    let mut ring = driver.ring(MODERN);
    let err = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    ring.set_err(Some(err.try_clone().unwrap().into()));
    driver.set_avail_idx(9);
    assert!(take(&mut ring).is_none());
    assert!(!ring.is_running());
    assert_eq!(err.read().unwrap(), 1);
    assert!(!ring.start_if_ready().unwrap(), "only the frontend starts it again");
}

fn bursts_are_bounded_in_frames_and_bytes_and_wrap_around(new: New) {
    let mut driver = new(128);
    let mut ring = driver.ring(MODERN);
    driver.write(BUFFERS, &packet(60));
    for head in 0..128 {
        driver.desc(head, BUFFERS, 72, 0, 0);
    }
    let mut used = 0u16;
    for round in 0..700 {
        for head in 0..100 {
            driver.offer((head + round) % 128);
        }
        assert_eq!(take(&mut ring).unwrap().taken, 64);
        assert_eq!(take(&mut ring).unwrap().taken, 36);
        used = used.wrapping_add(100);
        assert_eq!(driver.used_idx(), used);
    }
    for head in 0..20 {
        driver.desc(head, BUFFERS, 60_000, 0, 0);
        driver.offer(head);
    }
    assert_eq!(take(&mut ring).unwrap().taken, 5, "256 KiB and the frame that passes them");
}

/// Sends one frame to a receive ring.
fn put(ring: &mut Ring, frame: &[u8]) -> Result<(), RxFault> {
    let done = match ring.transmit().unwrap() {
        AnyReceiver::Split(receiver) => deliver(receiver, frame),
        AnyReceiver::Packed(receiver) => deliver(receiver, frame),
    };
    ring.publish();
    ring.call_if_wanted();
    done
}

pub fn deliver<F: Format>(mut receiver: Receiver<'_, F>, frame: &[u8]) -> Result<(), RxFault> {
    receiver.prepare(64);
    receiver.deliver(VnetHeader::default().encode(), frame.len() as u32, frame, Tail::EMPTY)
}

fn a_frame_is_merged_over_buffers_and_each_gets_its_length(new: New) {
    let mut driver = new(16);
    let mut ring = driver.ring(MODERN);
    for i in 0..4u16 {
        // Two descriptors of 50 bytes a buffer.
        let at = BUFFERS + 0x1000 * u64::from(i);
        driver.chain(2 * i, &[(at, 50), (at + 0x100, 50)], WRITE);
        driver.offer(2 * i);
    }
    let frame: Vec<u8> = (0..238).map(|i| i as u8).collect();
    put(&mut ring, &frame).unwrap();
    assert_eq!(driver.used_idx(), 3);
    assert_eq!([driver.used(0), driver.used(1), driver.used(2)], [(0, 100), (2, 100), (4, 50)]);
    let header = driver.read(BUFFERS, 12);
    assert_eq!(header, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0], "num_buffers");
    let mut got = driver.read(BUFFERS + 12, 38);
    got.extend(driver.read(BUFFERS + 0x100, 50));
    for i in 1..3 {
        got.extend(driver.read(BUFFERS + 0x1000 * i, 50));
        got.extend(driver.read(BUFFERS + 0x1000 * i + 0x100, 50));
    }
    assert_eq!(got[..238], frame);
}

fn without_mergeable_buffers_one_buffer_holds_the_frame_or_it_is_refused(new: New) {
    let mut driver = new(8);
    let mut ring = driver.ring(feature::VERSION_1);
    driver.chain(0, &[(BUFFERS, 112)], WRITE);
    driver.chain(1, &[(BUFFERS + 0x1000, 112)], WRITE);
    driver.offer(0);
    driver.offer(1);
    assert_eq!(put(&mut ring, &[7; 101]), Err(RxFault::TooSmall));
    assert_eq!(put(&mut ring, &[7; 100]), Ok(()));
    assert_eq!(put(&mut ring, &[8; 20]), Ok(()));
    assert_eq!(put(&mut ring, &[9; 20]), Err(RxFault::Full));
    assert_eq!((driver.used(0), driver.used(1)), ((0, 112), (1, 32)));
    assert_eq!(driver.read(BUFFERS + 10, 2), [1, 0], "num_buffers is 1 (section 5.1.6.3.1)");
}

/// What a frame costs its sender's worker doesn't depend on how small its receiver's buffers are.
fn a_frame_is_not_put_into_very_many_very_small_buffers(new: New) {
    for (len, frame, buffers) in
        [(1, 60, None), (15, 60, None), (19, 60, Some(4)), (256, 2000, Some(8)), (150, 2000, None)]
    {
        let mut driver = new(256);
        let mut ring = driver.ring(MODERN);
        for i in 0..250u16 {
            driver.chain(i, &[(BUFFERS + 0x100 * u64::from(i), len)], WRITE);
            driver.offer(i);
        }
        let put = put(&mut ring, &vec![7; frame]);
        match buffers {
            Some(count) => assert_eq!((put, driver.used_idx()), (Ok(()), count), "of {len} bytes"),
            None => assert_eq!((put, driver.used_idx()), (Err(RxFault::TooSmall), 0), "{len}"),
        }
    }
}

fn legacy_drivers_get_the_short_header(new: New) {
    let mut driver = new(8);
    let mut ring = driver.ring(0);
    driver.chain(0, &[(BUFFERS, 200)], WRITE);
    driver.offer(0);
    put(&mut ring, &[7; 60]).unwrap();
    assert_eq!(driver.used(0), (0, 70));
    assert_eq!(driver.read(BUFFERS + 10, 60), [7; 60]);
}

fn a_bad_receive_buffer_is_given_back_empty_and_the_next_is_used(new: New) {
    let mut driver = new(8);
    let mut ring = driver.ring(MODERN);
    driver.desc(0, BUFFERS, 2000, 0, 0); // readable
    driver.desc(1, 0x10, 2000, WRITE, 0); // not guest memory
    driver.desc(2, BUFFERS, 2000, WRITE, 0);
    for head in 0..3 {
        driver.offer(head);
    }
    put(&mut ring, &[7; 60]).unwrap();
    assert_eq!([driver.used(0), driver.used(1), driver.used(2)], [(0, 0), (1, 0), (2, 72)]);
    assert_eq!(driver.used_idx(), 3);
}

fn empty_receive_buffers_take_a_bounded_share_of_the_work(new: New) {
    let mut driver = new(1024);
    let mut ring = driver.ring(MODERN);
    let table = BUFFERS + 0x10_000;
    for i in 0..1024u16 {
        // Each buffer is 1,024 descriptors of length 0.
        let more = if i == 1023 { 0 } else { NEXT };
        let desc = driver.desc_bytes(BUFFERS, 0, WRITE | more, i + 1);
        driver.write(table + 16 * u64::from(i), &desc);
        driver.desc(i, table, 16 * 1024, INDIRECT, 0);
    }
    for head in 0..1024 {
        driver.offer(head);
    }
    assert_eq!(put(&mut ring, &[7; 60]), Err(RxFault::Full));
    assert!(driver.used_idx() <= 5, "{} buffers were looked at for one frame", driver.used_idx());
}

fn the_room_is_what_is_posted_and_a_look_at_it_changes_nothing(new: New) {
    let mut driver = new(8);
    let mut ring = driver.ring(MODERN);
    assert!(ring.is_untouched());
    let none = ring.room().unwrap();
    assert_eq!((none.buffers, none.takes(1, 60, 60)), (0, Err(RxFault::Full)));
    driver.desc(0, BUFFERS, 100, 0, 0); // readable: a bad one
    driver.desc(1, BUFFERS, 100, WRITE, 0);
    driver.desc(2, BUFFERS + 0x1000, 200, WRITE, 0);
    for head in 0..3 {
        driver.offer(head);
    }
    for _ in 0..2 {
        let room = ring.room().unwrap();
        assert_eq!((room.buffers, room.bytes, room.first, room.more), (2, 300, 100, false));
        assert!(!ring.is_untouched() && driver.used_idx() == 0);
        // One frame fills both; of two there is a header more; three have no three buffers.
        assert_eq!(room.takes(1, 288, 288), Ok(()));
        assert_eq!(room.takes(1, 289, 289), Err(RxFault::Full));
        assert_eq!(room.takes(2, 276, 138), Ok(()));
        assert_eq!(room.takes(2, 277, 139), Err(RxFault::Full));
        assert_eq!(room.takes(3, 3, 1), Err(RxFault::Full));
    }
    put(&mut ring, &[7; 288]).unwrap();
    assert_eq!([driver.used(0), driver.used(1), driver.used(2)], [(0, 0), (1, 100), (2, 200)]);

    let mut driver = new(64);
    let mut ring = driver.ring(feature::VERSION_1);
    for head in 0..64 {
        driver.chain(head, &[(BUFFERS, 112)], WRITE);
        driver.offer(head);
    }
    let room = ring.room().unwrap();
    assert_eq!((room.buffers, room.more, room.takes(90, 9000, 100)), (64, true, Ok(())));
    assert_eq!(room.takes(1, 101, 101), Err(RxFault::TooSmall));
    ring.stop();
    assert!(ring.room().is_none() && !ring.is_untouched());
}

fn a_frame_that_does_not_fit_leaves_the_buffers_and_the_position(new: New) {
    let mut driver = new(8);
    let mut ring = driver.ring(MODERN);
    for head in 0..3 {
        driver.desc(head, BUFFERS + 0x1000 * u64::from(head), 1000, WRITE, 0);
        driver.offer(head);
    }
    assert_eq!(put(&mut ring, &vec![1; 3000]), Err(RxFault::Full));
    assert_eq!((driver.used_idx(), ring.position()), (0, driver.position(0)));
    assert_eq!(put(&mut ring, &vec![1; 2988]), Ok(()));
    assert_eq!(ring.stop(), driver.position(3));
}

fn looked_at_buffers_are_not_lost_when_the_ring_stops(new: New) {
    let mut driver = new(8);
    let mut ring = driver.ring(MODERN);
    for head in 0..4 {
        driver.desc(head, BUFFERS + 0x1000 * u64::from(head), 1000, WRITE, 0);
        driver.offer(head);
    }
    put(&mut ring, &[1; 60]).unwrap();
    let base = ring.stop();
    assert_eq!(base, driver.position(1), "one used, three looked at in advance");
    // The frontend's base counts for packed rings, used.idx for split ones.
    let mut again = driver.ring_at(MODERN, base);
    assert_eq!(again.position(), base, "a new device goes on there");
    put(&mut again, &[2; 60]).unwrap();
    assert_eq!(driver.used(1), (1, 72));
}

fn what_is_left_of_buffers_is_seen_from_outside(new: New) {
    let mut driver = new(8);
    let mut ring = driver.ring(MODERN);
    let gauge = Arc::clone(ring.gauge());
    let left = || gauge.read().map(|fill| (fill.size, fill.buffers));
    assert_eq!(left(), Some((8, None)));
    for head in 0..4 {
        driver.desc(head, BUFFERS + 0x1000 * u64::from(head), 1000, WRITE, 0);
        driver.offer(head);
    }
    for buffers in (0..4).rev() {
        put(&mut ring, &[1; 60]).unwrap();
        ring.look_ahead();
        assert_eq!(left(), Some((8, Some(buffers))));
    }
    ring.stop();
    assert_eq!(left(), None);
    let base = ring.position();
    ring.reset();
    assert!(Arc::ptr_eq(&gauge, ring.gauge()), "who looks still sees this ring");
    let again = driver.ring_at(MODERN, base);
    assert!(again.gauge().read().is_some());
}

fn calls_honour_no_interrupt_and_used_event(new: New) {
    let call = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let called = || call.read().is_ok();
    for event_idx in [false, true] {
        let mut driver = new(16);
        let features = MODERN | if event_idx { feature::EVENT_IDX } else { 0 };
        let mut ring = driver.ring(features);
        ring.set_call(Some(call.try_clone().unwrap().into()));
        assert!(called(), "a new call descriptor on a running ring is signalled");
        for head in 0..16 {
            driver.desc(head, BUFFERS, 100, WRITE, 0);
            driver.offer(head);
        }
        put(&mut ring, &[1; 60]).unwrap();
        assert!(called());
        if event_idx {
            driver.set_used_event(3);
        } else {
            driver.set_avail_flags(1);
        }
        put(&mut ring, &[1; 60]).unwrap();
        put(&mut ring, &[1; 60]).unwrap();
        assert!(!called());
        if !event_idx {
            driver.set_avail_flags(0);
        }
        put(&mut ring, &[1; 60]).unwrap();
        assert!(called(), "entry 3 was wanted");
        if event_idx {
            put(&mut ring, &[1; 60]).unwrap();
            assert!(!called(), "entry 4 wasn't");
        }
    }
}

fn kicks_are_requested_and_suppressed(new: New) {
    for event_idx in [false, true] {
        let mut driver = new(16);
        let mut ring = driver.ring(MODERN | if event_idx { feature::EVENT_IDX } else { 0 });
        driver.write(BUFFERS, &packet(60));
        driver.desc(0, BUFFERS, 72, 0, 0);
        assert!(!ring.want_kicks(false));
        if !event_idx {
            assert_eq!(driver.used_flags(), 1);
        }
        driver.offer(0);
        assert!(ring.want_kicks(true), "a buffer came while kicks were suppressed");
        assert_eq!(driver.used_flags(), 0);
        take(&mut ring).unwrap();
        assert!(!ring.want_kicks(true), "though they are wanted already, for an older buffer");
        if event_idx {
            assert_eq!(driver.avail_event(), 1);
        }
    }
}

fn written_pages_are_logged_while_the_feature_says_so(new: New) {
    let mut driver = new(8);
    let mut ring = driver.ring(MODERN);
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    let log = DirtyLog::map(file.try_clone().unwrap(), 4096, 0).unwrap();
    ring.set_log(Some(Arc::new(log)));
    ring.start_if_ready().unwrap();
    for head in 0..2 {
        driver.desc(head, BUFFERS + 0x1000 * u64::from(head), 1000, WRITE, 0);
        driver.offer(head);
    }
    let pages = || {
        use std::os::unix::fs::FileExt;
        let mut bytes = [0u8; 4096];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let dirty = |page: &u64| bytes[(page / 8) as usize] & 1 << (page % 8) != 0;
        (0..4096 * 8).filter(dirty).collect::<Vec<u64>>()
    };
    put(&mut ring, &[1; 60]).unwrap();
    assert!(pages().is_empty(), "no LOG_ALL yet");
    ring.set_features(driver.features(MODERN | feature::LOG_ALL));
    ring.start_if_ready().unwrap();
    put(&mut ring, &[1; 60]).unwrap();
    let [desc, _, used] = driver.guest_addresses().map(|addr| addr >> 12);
    let buffer = (BUFFERS + 0x1000) >> 12;
    if driver.features(0) == 0 {
        assert_eq!(pages(), [used, buffer]);
    } else {
        assert_eq!(pages(), [desc, used, buffer], "the used descriptors, and the device's event");
    }
    for wanted in [true, false] {
        file.set_len(0).unwrap();
        file.set_len(4096).unwrap();
        ring.want_kicks(wanted);
        assert_eq!(pages(), [used], "what the driver is asked for is written as well");
    }
}

fn memory_and_addresses_can_change_while_it_runs(new: New) {
    let mut driver = new(8);
    let mut ring = driver.ring(MODERN);
    driver.desc(0, BUFFERS, 1000, WRITE, 0);
    driver.offer(0);
    ring.set_memory(None);
    assert!(!ring.is_running());
    assert!(!ring.start_if_ready().unwrap());
    ring.set_memory(Some(std::sync::Arc::clone(&driver.mem)));
    assert!(ring.start_if_ready().unwrap());
    put(&mut ring, &[1; 60]).unwrap();
    let bad = RingAddress { used: 0x123, ..driver.address() };
    ring.set_address(bad).unwrap();
    assert!(matches!(ring.start_if_ready(), Err(RingError::Address { addr: 0x123, .. })));
    assert!(!ring.is_running());
    ring.set_address(driver.address()).unwrap();
    assert!(ring.start_if_ready().unwrap());
    assert_eq!(ring.position(), driver.position(1));
}

#[test]
fn bad_chains_of_a_packed_ring_are_completed_and_counted_and_the_ring_goes_on() {
    let mut driver = Driver::packed(64);
    let mut ring = driver.ring(MODERN);
    let good = packet(60);
    driver.write(BUFFERS, &good);
    let table = BUFFERS + 0x1000;
    driver.desc(0, BUFFERS, 72, WRITE, 0); // for the device to write
    driver.desc(1, 0x10, 72, 0, 0); // not guest memory
    driver.desc(2, table, 32, INDIRECT | NEXT, 10); // indirect with next
    driver.desc(3, table, 17, INDIRECT, 0); // no multiple of 16
    driver.desc(4, table, 0, INDIRECT, 0); // empty table
    driver.desc(5, u64::MAX - 10, 100, 0, 0); // wraps
    driver.desc(6, BUFFERS, 12, NEXT, 0); // partly for the device to write
    driver.desc(7, 0x10, 16, INDIRECT, 0); // a table that isn't guest memory
    for head in 0..8 {
        driver.offer(head);
    }
    // In a table most flags have no meaning (section 2.8.8).
    let flags = INDIRECT | NEXT | WRITE; // a table of a transmit ring: see `walk_indirect`
    driver.write(table + 0x100, &driver.desc_bytes(BUFFERS, 72, flags, 1));
    driver.desc(8, table + 0x100, 16, INDIRECT, 0);
    driver.offer(8);
    driver.desc(9, BUFFERS, 25, 0, 0); // shorter than headers
    driver.offer(9);
    driver.desc(10, BUFFERS, 70_000, 0, 0); // longer than any frame
    driver.offer(10);
    driver.desc(11, BUFFERS, 72, 0, 0);
    driver.offer(11);
    let got = take(&mut ring).unwrap();
    assert_eq!((got.taken, got.bad_chains, got.bad_lengths), (12, 8, 2));
    assert_eq!(got.frames, [&good[12..], &good[12..]]);
    assert_eq!(driver.used_idx(), 12);
    assert_eq!((driver.used(2), driver.used(6), driver.used(11)), ((2, 0), (6, 0), (11, 0)));
    assert!(ring.is_running());
}

#[test]
fn a_chain_longer_than_a_packed_ring_stops_it_and_signals_the_frontend() {
    let mut driver = Driver::packed(8);
    let mut ring = driver.ring(MODERN);
    let err = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    ring.set_err(Some(err.try_clone().unwrap().into()));
    driver.write(BUFFERS, &packet(60));
    driver.desc(0, BUFFERS, 72, 0, 0);
    driver.desc(1, BUFFERS, 72, NEXT, 1);
    driver.offer(0);
    assert_eq!(take(&mut ring).unwrap().taken, 1);
    driver.offer(1);
    assert!(take(&mut ring).is_none());
    assert!(!ring.is_running());
    assert_eq!(err.read().unwrap(), 1);
    assert_eq!(ring.position(), driver.position(1));
}

#[test]
fn packed_rings_have_any_size_and_chains_go_around_their_end() {
    for size in [1u16, 3, 7, 100] {
        let mut driver = Driver::packed(size);
        let mut ring = driver.ring(MODERN);
        driver.write(BUFFERS, &packet(60));
        let pieces = size.min(2);
        driver.chain(0, &[(BUFFERS, 12), (BUFFERS + 12, 60)][..usize::from(pieces)], 0);
        if size == 1 {
            driver.desc(0, BUFFERS, 72, 0, 0);
        }
        for round in 1..=5 * size {
            driver.offer(0);
            let got = take(&mut ring).unwrap();
            assert_eq!((got.taken, got.frames.len()), (1, 1));
            assert!(take(&mut ring).is_none());
            assert_eq!(driver.used_idx(), round);
            assert_eq!(ring.position(), driver.position(round * pieces));
        }
    }
    let mut ring = Ring::default();
    ring.set_features(feature::RING_PACKED);
    assert_eq!(ring.set_num(0), Err(RingError::Size(0)));
    assert_eq!(ring.set_num(32769), Err(RingError::Size(32769)));
    assert_eq!(ring.set_num(32768), Ok(()));
}

#[test]
fn a_packed_ring_never_takes_more_than_a_lap() {
    let mut driver = Driver::packed(8);
    let mut ring = driver.ring(MODERN);
    driver.write(BUFFERS, &packet(60));
    driver.desc(0, BUFFERS, 72, 0, 0);
    (0..8).for_each(|_| driver.offer(0));
    // A hostile driver would show the next lap in slots that it doesn't own: the device goes around
    // once, whatever it sees there.
    assert_eq!(take(&mut ring).unwrap().taken, 8);
    (0..16).for_each(|_| driver.offer(0));
    assert!(take(&mut ring).is_none(), "the second lap of these looks like one not yet begun");
    assert_eq!(ring.position(), driver.position(8));
}

#[test]
fn a_format_and_size_that_do_not_go_together_are_refused() {
    let driver = Driver::packed(7);
    let mut ring = driver.ring(MODERN);
    ring.set_features(MODERN);
    assert_eq!(ring.start_if_ready(), Err(RingError::Size(7)));
    assert!(!ring.is_running());
    ring.set_features(driver.features(MODERN));
    ring.set_base(7).unwrap();
    assert_eq!(ring.start_if_ready(), Err(RingError::Base(7)));
    ring.set_base(6).unwrap();
    assert_eq!(ring.start_if_ready(), Ok(true));
}

#[test]
fn a_packed_burst_is_shown_to_the_driver_by_its_first_descriptor() {
    let mut driver = Driver::packed(256);
    let mut ring = driver.ring(MODERN);
    for head in 0..200 {
        driver.desc(head, BUFFERS, 100, WRITE, 0);
        driver.offer(head);
    }
    let Some(AnyReceiver::Packed(mut receiver)) = ring.transmit() else {
        panic!("a packed ring that runs")
    };
    receiver.prepare(64);
    for _ in 0..200 {
        let head = [7; 60];
        receiver.deliver(VnetHeader::default().encode(), 60, &head, Tail::EMPTY).unwrap();
    }
    assert_eq!(driver.used_idx(), 0, "more than the shadow holds, but none published");
    ring.publish();
    assert_eq!(driver.used_idx(), 200);
    assert!((0..200).all(|at| driver.used(at) == (at.into(), 72)));
}
