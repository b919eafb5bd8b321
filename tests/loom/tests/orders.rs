//! What must hold in every order of accesses.

use std::ptr::null_mut;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicPtr, AtomicUsize};
use loom::thread;
use loomed::mac::{Learned, MacTable, MacTableConfig};
use loomed::mailbox::{Mailbox, Order};
use loomed::slot::{Found, Slot};

/// Runs `test` in all orders with at most `switches` involuntary changes of thread.
///
/// Who reads *and* writes what others read is the test's own thread, not a spawned one: of loads, loom
/// remembers the last one only, so a writer's own loads would hide those before them.
fn in_all_orders(switches: usize, test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(switches);
    builder.check(test);
}

/// A range that is replaced while a handler looks is found whole or not at all: never with the start
/// of one and the end of the other.
#[test]
fn a_slot_that_changes_is_never_half_of_two_ranges() {
    in_all_orders(3, || {
        let slot: Arc<Slot<()>> = Arc::new(Slot {
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            page: AtomicUsize::new(0),
            owner: AtomicPtr::new(null_mut()),
        });
        let low = Found { end: 200, page: 1, owner: null_mut() };
        let high = Found { end: 400, page: 2, owner: null_mut() };
        slot.put(100, low);
        let other = Arc::clone(&slot);
        let changing = thread::spawn(move || {
            other.clear();
            other.put(300, high);
        });
        for (address, whole) in [(250, None), (350, Some(high))] {
            let found = slot.find(address);
            assert!(found.is_none() || found == whole, "{address}: {found:?}");
        }
        changing.join().expect("no panic");
        assert_eq!((slot.find(150), slot.find(350)), (None, Some(high)));
    });
}

fn table() -> MacTable {
    MacTable::new(&MacTableConfig { capacity: 1, ageing_secs: 300, seed: 7 }, 3)
}

/// A station that moves between two ports is found on one of them, by whoever looks meanwhile.
#[test]
fn a_station_that_moves_is_on_one_of_two_ports() {
    in_all_orders(4, || {
        let table = Arc::new(table());
        assert_eq!(table.learn(0x02, 0, 1000), Learned::New);
        let other = Arc::clone(&table);
        let looking = thread::spawn(move || {
            assert!(matches!(other.lookup(0x02, 1001), Some(0 | 1)));
            // The time belongs to this entry or to a later one, so none is as if it had aged.
            other
                .for_each(1300, |_, port, age| assert!(port == 0 || age == Some(299), "{age:?} s"));
        });
        assert_eq!(table.learn(0x02, 1, 1001), Learned::Moved { from: 0 });
        looking.join().expect("no panic");
        assert_eq!(table.lookup(0x02, 1301), Some(1));
        assert_eq!((table.port_len(0), table.port_len(1)), (0, 1));
    });
}

/// Two workers that learn the same station at once: it stands in one place and is counted once.
#[test]
fn a_station_that_two_learn_is_counted_once() {
    in_all_orders(4, || {
        let table = Arc::new(table());
        let other = Arc::clone(&table);
        let learning = thread::spawn(move || other.learn(0x02, 1, 1000));
        let ours = table.learn(0x02, 0, 1000);
        let theirs = learning.join().expect("no panic");
        assert_eq!(table.len(), 1, "{ours:?} and {theirs:?}");
        let at = table.lookup(0x02, 1000);
        let (expected, from) = match (ours, theirs) {
            (Learned::New, Learned::Busy) => (0, None),
            (Learned::Busy, Learned::New) => (1, None),
            (Learned::New, Learned::Moved { from }) => (1, Some(from)),
            (Learned::Moved { from }, Learned::New) => (0, Some(from)),
            other => panic!("{other:?}"),
        };
        assert_eq!(at, Some(expected));
        assert!(from.is_none_or(|from| from == 1 - expected));
    });
}

/// A station that has aged is heard on another port while a sweep removes it: what was learned stays,
/// and the counts are right.
#[test]
fn a_station_that_is_learned_anew_is_not_swept() {
    in_all_orders(4, || {
        let table = Arc::new(table());
        table.learn(0x02, 0, 1000);
        let other = Arc::clone(&table);
        let sweeping = thread::spawn(move || other.expire(1301));
        let heard = table.learn(0x02, 1, 1301);
        let removed = sweeping.join().expect("no panic");
        let learned = u32::from(heard == Learned::New);
        assert!(learned == 1 || (heard, removed) == (Learned::Busy, 1), "{heard:?}, {removed}");
        assert_eq!(table.lookup(0x02, 1301), (learned == 1).then_some(1));
        assert_eq!((table.port_len(0), table.port_len(1)), (0, learned));
    });
}

/// A worker that sleeps when it finds nothing gets the orders of two others, though a wake-up may be
/// spent on an earlier look.
#[test]
fn no_order_is_slept_over() {
    in_all_orders(3, || {
        let mailbox = Arc::new(Mailbox::new().expect("nothing is opened"));
        let send = |source| {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || mailbox.send(Order::Look { source }))
        };
        let control = [1, 2].map(send);
        let mut taken = Vec::new();
        while taken.len() < 2 {
            mailbox.poller.look();
            match mailbox.take() {
                Some(orders) => taken.extend(orders),
                // A sleep over an order would be for ever, which loom reports as a deadlock.
                None => mailbox.poller.wait(),
            }
        }
        control.into_iter().for_each(|control| control.join().expect("no panic"));
        taken.sort_by_key(|order| format!("{order:?}"));
        assert_eq!(taken, [1, 2].map(|source| Order::Look { source }));
        assert!(mailbox.take().is_none());
    });
}
