use super::*;

fn ring(event_idx: bool) -> SplitRing {
    let memory = Memory::new(&[(1 << 20, 1 << 20)]).expect("memory");
    SplitRing::new(&memory, 8, event_idx).expect("ring")
}

fn piece(addr: u64) -> Piece {
    Piece { addr, len: 10 }
}

/// Plays the device: uses the chain `id` with `len`.
fn use_chain(ring: &SplitRing, id: u32, len: u32) {
    let index = ring.used_head.at(1).load(Ordering::Relaxed);
    let slot = usize::from(index & (ring.size - 1));
    ring.used_entries.at(2 * slot).store(id, Ordering::Relaxed);
    ring.used_entries.at(2 * slot + 1).store(len, Ordering::Relaxed);
    ring.used_head.at(1).store(index.wrapping_add(1), Ordering::Release);
}

#[test]
fn a_chain_goes_round() {
    let mut ring = ring(false);
    let head = ring.build(&[piece(1 << 20), piece(2 << 20)], &[piece(3 << 20)], false).unwrap();
    assert_eq!(ring.free.len(), 5);
    ring.post(head);
    assert!(ring.publish(), "used.flags is 0: a kick is wanted");
    assert_eq!(ring.signals.kick.read().unwrap(), 1);
    use_chain(&ring, u32::from(head), 7);
    assert_eq!(ring.pop(), Some(Used { head, len: 7 }));
    assert_eq!(ring.pop(), None);
    ring.free(head);
    assert_eq!(ring.free.len(), 8);
}

#[test]
fn an_indirect_chain_takes_one_descriptor() {
    let mut ring = ring(false);
    let pieces: Vec<Piece> = (1..20).map(|at| piece(at << 20)).collect();
    assert!(ring.build(&pieces, &[], false).is_none(), "19 pieces do not fit in 8 entries");
    let head = ring.build(&pieces, &[], true).unwrap();
    let table = ring.desc.at(2 * usize::from(head)).load(Ordering::Relaxed);
    let mut last = [0; 16];
    ring.memory.read(table + 18 * 16, &mut last);
    let expected = Descriptor { addr: 19 << 20, len: 10, flags: 0, next: 0 };
    assert_eq!(last, expected.to_bytes());
    assert_eq!(ring.free.len(), 7);
}

#[test]
fn kicks_only_when_the_event_index_is_passed() {
    let mut ring = ring(true);
    let heads: Vec<u16> =
        (0..4).map(|_| ring.build(&[piece(1 << 20)], &[], false).unwrap()).collect();
    ring.avail_event.at(0).store(2, Ordering::Relaxed);
    ring.post(heads[0]);
    ring.post(heads[1]);
    assert!(!ring.publish(), "entries 0 and 1 are before the event index 2");
    ring.post(heads[2]);
    assert!(ring.publish());
    ring.post(heads[3]);
    assert!(!ring.publish());
    let expected = Notifications { kicks: 1, kicks_skipped: 2, calls: 0 };
    assert_eq!(ring.notifications, expected);
}

#[test]
#[should_panic(expected = "which it did not have")]
fn a_chain_used_twice_is_noticed() {
    let mut ring = ring(false);
    for _ in 0..2 {
        let head = ring.build(&[piece(1 << 20)], &[], false).unwrap();
        ring.post(head);
    }
    ring.publish();
    use_chain(&ring, 0, 0);
    use_chain(&ring, 0, 0);
    ring.pop();
    ring.pop();
}
