use super::*;

fn ring(size: u16, event_idx: bool) -> PackedRing {
    let memory = Memory::new(&[(1 << 20, 1 << 20)]).expect("memory");
    PackedRing::new(&memory, size, event_idx).expect("ring")
}

fn piece(addr: u64) -> Piece {
    Piece { addr, len: 10 }
}

/// Plays the device: uses the chain `id` in `slot` with `len`, in the lap with this wrap counter.
fn use_chain(ring: &PackedRing, slot: u16, wrap: bool, id: u16, len: u32) {
    let flags = if wrap { AVAIL | USED } else { 0 } | if len > 0 { WRITE } else { 0 };
    let word = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
    ring.desc.at(2 * usize::from(slot) + 1).store(word, Ordering::Release);
}

#[test]
fn chains_go_around_the_end_of_the_ring() {
    let mut ring = ring(5, false);
    let id = ring.build(&[piece(1 << 20), piece(2 << 20)], &[piece(3 << 20)], false).unwrap();
    for (lap, slot) in [0, 3, 1, 4, 2, 0].into_iter().enumerate() {
        let wrap = [true, true, false, false, true, false][lap];
        ring.post(id);
        assert!(ring.publish(), "the device's flags are 0: a kick is wanted");
        let here = if wrap { AVAIL } else { USED };
        let (len, buffer, flags) = ring.slot(slot);
        assert_eq!((len, buffer, flags), (10, id, NEXT | here));
        let (next, wraps) = if slot + 2 >= 5 { (slot + 2 - 5, !wrap) } else { (slot + 2, wrap) };
        let there = if wraps { AVAIL } else { USED };
        assert_eq!(ring.slot(next), (10, id, WRITE | there), "the last of the chain");
        assert_eq!((ring.pop(), ring.ready()), (None, 0));
        use_chain(&ring, slot, wrap, id, 7);
        assert_eq!(ring.ready(), 1);
        assert_eq!(ring.pop(), Some(Used { head: id, len: 7 }));
        assert_eq!((ring.pop(), ring.in_flight()), (None, 0));
    }
    ring.free(id);
    assert_eq!(ring.free_slots, 5);
}

#[test]
fn what_was_only_posted_can_be_taken_back() {
    let mut ring = ring(4, false);
    let ids: Vec<_> = (0..4).map(|_| ring.build(&[piece(1 << 20)], &[], false).unwrap()).collect();
    assert!(ring.build(&[piece(1 << 20)], &[], true).is_none(), "all slots are spoken for");
    ids.iter().for_each(|id| ring.post(*id));
    assert_eq!(ring.unpost(), ids);
    assert_eq!(ring.in_flight(), 0);
    assert_eq!(ring.slot(0).2, 0, "the device was shown nothing");
}

#[test]
fn kicks_only_when_the_event_is_passed() {
    let mut ring = ring(4, true);
    let ids: Vec<_> = (0..4).map(|_| ring.build(&[piece(1 << 20)], &[], false).unwrap()).collect();
    let wish = |ring: &PackedRing, flags: u16, bits: u16| {
        ring.device_event.at(0).store(u32::from(flags) << 16 | u32::from(bits), Ordering::Relaxed);
    };
    wish(&ring, DESC, 2 | 1 << 15);
    ring.post(ids[0]);
    ring.post(ids[1]);
    assert!(!ring.publish(), "slots 0 and 1 are before 2");
    ring.post(ids[2]);
    assert!(ring.publish());
    // The next lap's slot 2.
    wish(&ring, DESC, 2);
    ring.post(ids[3]);
    assert!(!ring.publish());
    wish(&ring, DISABLE, 0);
    use_chain(&ring, 0, true, ids[0], 0);
    ring.pop().unwrap();
    ring.post(ids[0]);
    assert!(!ring.publish());
    let expected = Notifications { kicks: 1, kicks_skipped: 3, calls: 0 };
    assert_eq!(ring.notifications, expected);
}

#[test]
#[should_panic(expected = "out of order")]
fn a_chain_used_too_early_is_noticed_if_order_was_negotiated() {
    let mut ring = ring(4, false);
    ring.set_features(false, true);
    for _ in 0..2 {
        let id = ring.build(&[piece(1 << 20)], &[], false).unwrap();
        ring.post(id);
    }
    ring.publish();
    use_chain(&ring, 0, true, 1, 0);
    ring.pop();
}

#[test]
#[should_panic(expected = "which it did not have")]
fn a_chain_used_twice_is_noticed() {
    let mut ring = ring(4, false);
    for _ in 0..2 {
        let id = ring.build(&[piece(1 << 20)], &[], false).unwrap();
        ring.post(id);
    }
    ring.publish();
    use_chain(&ring, 0, true, 0, 0);
    use_chain(&ring, 1, true, 0, 0);
    ring.pop();
    ring.pop();
}
