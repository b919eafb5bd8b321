//! Conformance of the ring engine to virtio 1.2, seen from the driver's side.

use vmm_sys_util::eventfd::EventFd;

use super::driver::{BASE, BUFFERS, Driver, INDIRECT, NEXT, WRITE};
use super::*;
use crate::frame::{BURST, Frame};
use crate::mem::{DirtyLog, SegmentPool, Tail};
use crate::wire::vnet::VnetHeader;

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
    let taken = Taken {
        frames: burst.frames.iter().map(read).collect(),
        taken: burst.taken,
        bad_chains: burst.bad_chains,
        bad_lengths: burst.bad_lengths,
    };
    ring.complete_burst(taken.taken);
    ring.publish();
    ring.call_if_wanted();
    Some(taken)
}

#[test]
fn takes_frames_over_any_descriptor_split_direct_and_indirect() {
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
            let mut driver = Driver::new(64);
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
                    let desc = Driver::desc_bytes(*addr, *len, more, i as u16 + 1);
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

#[test]
fn a_buffer_across_two_regions_is_one_frame() {
    let mut driver = Driver::new(8);
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
    let mut driver = Driver::new(64);
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
    driver.write(table, &Driver::desc_bytes(table, 16, INDIRECT, 0));
    driver.desc(8, u64::MAX - 10, 100, 0, 0); // wraps
    driver.desc(9, table + 0x100, 16, INDIRECT, 0); // next beyond the table
    driver.write(table + 0x100, &Driver::desc_bytes(BUFFERS, 20, NEXT, 1));
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

#[test]
fn indirect_without_negotiation_is_a_bad_chain() {
    let mut driver = Driver::new(8);
    let mut ring = driver.ring(feature::VERSION_1);
    let table = BUFFERS + 0x1000;
    driver.write(table, &Driver::desc_bytes(BUFFERS, 72, 0, 0));
    driver.desc(0, table, 16, INDIRECT, 0);
    driver.offer(0);
    assert_eq!(take(&mut ring).unwrap().bad_chains, 1);
}

#[test]
fn an_impossible_index_stops_the_ring_and_signals_the_frontend() {
    let mut driver = Driver::new(8);
    let mut ring = driver.ring(MODERN);
    let err = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    ring.set_err(Some(err.try_clone().unwrap()));
    driver.set_avail_idx(9);
    assert!(take(&mut ring).is_none());
    assert!(!ring.is_running());
    assert_eq!(err.read().unwrap(), 1);
    assert!(!ring.start_if_ready().unwrap(), "only the frontend starts it again");
}

#[test]
fn bursts_are_bounded_in_frames_and_bytes_and_wrap_around() {
    let mut driver = Driver::new(128);
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
    let mut receiver = ring.transmit().unwrap();
    receiver.prepare();
    let done = receiver.deliver(VnetHeader::default(), frame.len() as u32, frame, Tail::EMPTY);
    ring.publish();
    ring.call_if_wanted();
    done
}

#[test]
fn a_frame_is_merged_over_buffers_and_each_gets_its_length() {
    let mut driver = Driver::new(16);
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

#[test]
fn without_mergeable_buffers_one_buffer_holds_the_frame_or_it_is_refused() {
    let mut driver = Driver::new(8);
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

#[test]
fn legacy_drivers_get_the_short_header() {
    let mut driver = Driver::new(8);
    let mut ring = driver.ring(0);
    driver.chain(0, &[(BUFFERS, 200)], WRITE);
    driver.offer(0);
    put(&mut ring, &[7; 60]).unwrap();
    assert_eq!(driver.used(0), (0, 70));
    assert_eq!(driver.read(BUFFERS + 10, 60), [7; 60]);
}

#[test]
fn a_bad_receive_buffer_is_given_back_empty_and_the_next_is_used() {
    let mut driver = Driver::new(8);
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

#[test]
fn empty_receive_buffers_take_a_bounded_share_of_the_work() {
    let mut driver = Driver::new(1024);
    let mut ring = driver.ring(MODERN);
    let table = BUFFERS + 0x10_000;
    for i in 0..1024u16 {
        // Each buffer is 1,024 descriptors of length 0.
        let more = if i == 1023 { 0 } else { NEXT };
        let desc = Driver::desc_bytes(BUFFERS, 0, WRITE | more, i + 1);
        driver.write(table + 16 * u64::from(i), &desc);
        driver.desc(i, table, 16 * 1024, INDIRECT, 0);
    }
    for head in 0..1024 {
        driver.offer(head);
    }
    assert_eq!(put(&mut ring, &[7; 60]), Err(RxFault::Full));
    assert!(driver.used_idx() <= 5, "{} buffers were looked at for one frame", driver.used_idx());
}

#[test]
fn a_frame_that_does_not_fit_leaves_the_buffers_and_the_position() {
    let mut driver = Driver::new(8);
    let mut ring = driver.ring(MODERN);
    for head in 0..3 {
        driver.desc(head, BUFFERS + 0x1000 * u64::from(head), 1000, WRITE, 0);
        driver.offer(head);
    }
    assert_eq!(put(&mut ring, &vec![1; 3000]), Err(RxFault::Full));
    assert_eq!((driver.used_idx(), ring.position()), (0, 0));
    assert_eq!(put(&mut ring, &vec![1; 2988]), Ok(()));
    assert_eq!(ring.stop(), 3);
}

#[test]
fn looked_at_buffers_are_not_lost_when_the_ring_stops() {
    let mut driver = Driver::new(8);
    let mut ring = driver.ring(MODERN);
    for head in 0..4 {
        driver.desc(head, BUFFERS + 0x1000 * u64::from(head), 1000, WRITE, 0);
        driver.offer(head);
    }
    put(&mut ring, &[1; 60]).unwrap();
    assert_eq!(ring.stop(), 1, "one used, three looked at in advance");
    let mut again = driver.ring(MODERN);
    assert_eq!(again.position(), 1, "a new device goes on at used.idx");
    put(&mut again, &[2; 60]).unwrap();
    assert_eq!(driver.used(1), (1, 72));
}

#[test]
fn calls_honour_no_interrupt_and_used_event() {
    let call = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let called = || call.read().is_ok();
    for event_idx in [false, true] {
        let mut driver = Driver::new(16);
        let features = MODERN | if event_idx { feature::EVENT_IDX } else { 0 };
        let mut ring = driver.ring(features);
        ring.set_call(Some(call.try_clone().unwrap()));
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
        driver.set_avail_flags(0);
        put(&mut ring, &[1; 60]).unwrap();
        assert!(called(), "entry 3 was wanted");
        if event_idx {
            put(&mut ring, &[1; 60]).unwrap();
            assert!(!called(), "entry 4 wasn't");
        }
    }
}

#[test]
fn kicks_are_requested_and_suppressed() {
    for event_idx in [false, true] {
        let mut driver = Driver::new(16);
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

#[test]
fn written_pages_are_logged_while_the_feature_says_so() {
    let mut driver = Driver::new(8);
    let mut ring = driver.ring(MODERN);
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    let log = DirtyLog::map(file.try_clone().unwrap(), 4096, 0).unwrap();
    ring.set_log(Some(std::sync::Arc::new(log)));
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
    ring.set_features(MODERN | feature::LOG_ALL);
    ring.start_if_ready().unwrap();
    put(&mut ring, &[1; 60]).unwrap();
    assert_eq!(pages(), [(BASE + 0xa000) >> 12, (BUFFERS + 0x1000) >> 12]);
}

#[test]
fn memory_and_addresses_can_change_while_it_runs() {
    let mut driver = Driver::new(8);
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
    assert!(matches!(ring.start_if_ready(), Err(RingError::Address { what: "used ring", .. })));
    assert!(!ring.is_running());
    ring.set_address(driver.address()).unwrap();
    assert!(ring.start_if_ready().unwrap());
    assert_eq!(ring.position(), 1);
}
