//! Tests of `mac`.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;

use super::*;

const AGEING: u32 = 300;

fn table(capacity: usize, ports_max: usize) -> MacTable {
    MacTable::new(&MacTableConfig { capacity, ageing_secs: AGEING, seed: 1 }, ports_max)
}

/// The n-th of many distinct unicast addresses, as a guest would invent them.
fn invented(n: u64) -> u64 {
    let scattered = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
    (scattered | 1) & ((1 << 48) - 1) & !GROUP_BIT
}

/// The n-th address of a fleet whose addresses count up.
fn fleet(n: u64) -> u64 {
    0x5254_0000_0000 + n
}

/// Everything in the table, checked against its counts.
fn contents(table: &MacTable, now: u32) -> HashMap<u64, u16> {
    let mut found = HashMap::new();
    let mut by_port: HashMap<u16, u32> = HashMap::new();
    table.for_each(now, |mac, port, _| {
        assert_eq!(found.insert(mac, port), None, "{mac:012x} stands in two places");
        *by_port.entry(port).or_default() += 1;
    });
    for port in 0..table.ports.len() as u16 {
        assert_eq!(table.port_len(port), by_port.get(&port).copied().unwrap_or(0), "port {port}");
    }
    assert_eq!(table.len(), found.len());
    found
}

#[test]
fn learns_refreshes_and_moves() {
    let table = table(64, 4);
    assert_eq!(table.lookup(fleet(1), 0), None);
    assert_eq!(table.learn(fleet(1), 2, 0), Learned::New);
    assert_eq!(table.lookup(fleet(1), 0), Some(2));
    assert_eq!(table.learn(fleet(1), 2, 0), Learned::Refreshed);
    assert_eq!(table.learn(fleet(1), 3, 1), Learned::Moved { from: 2 });
    assert_eq!(table.lookup(fleet(1), 1), Some(3));
    assert_eq!((table.port_len(2), table.port_len(3)), (0, 1));
    assert_eq!(contents(&table, 1), HashMap::from([(fleet(1), 3)]));
    assert!(!table.is_empty());
}

#[test]
fn never_learns_what_is_no_station() {
    let table = table(64, 2);
    for mac in [0, 0xffff_ffff_ffff, 0x0100_5e00_0001, 0x3333_0000_0001, 1 << 48, u64::MAX] {
        assert_eq!(table.learn(mac, 0, 0), Learned::Ignored);
        assert_eq!(table.lookup(mac, 0), None);
    }
    assert_eq!(table.learn(fleet(1), 2, 0), Learned::Ignored, "no such port");
    assert_eq!(table.port_len(2), 0);
    table.set_port_limit(2, 0);
    assert_eq!(contents(&table, 0), HashMap::new());
    for mac in [1, 0xfeff_ffff_ffff, 0x0200_0000_0000] {
        assert_eq!(table.learn(mac, 0, 0), Learned::New);
        assert_eq!(table.lookup(mac, 0), Some(0));
    }
}

#[test]
fn forgets_what_is_not_heard() {
    let table = table(64, 2);
    table.learn(fleet(1), 0, 100);
    table.learn(fleet(2), 1, 100);
    table.learn(fleet(1), 0, 200);
    assert_eq!(table.lookup(fleet(2), 100 + AGEING), Some(1), "at the limit");
    assert_eq!(table.lookup(fleet(2), 101 + AGEING), None);
    assert_eq!(table.lookup(fleet(1), 101 + AGEING), Some(0), "was refreshed");
    let mut ages = Vec::new();
    table.for_each(101 + AGEING, |mac, port, age| ages.push((mac, port, age.unwrap())));
    assert_eq!(ages, [(fleet(1), 0, AGEING - 99)]);

    assert_eq!(table.len(), 2, "counted until swept");
    assert_eq!(table.expire(100 + AGEING), 0);
    assert_eq!(table.expire(101 + AGEING), 1);
    assert_eq!((table.port_len(0), table.port_len(1)), (1, 0));
    // A worker whose clock is behind neither ages nor un-ages anything.
    assert_eq!(table.learn(fleet(1), 0, 50), Learned::Refreshed);
    assert_eq!(table.lookup(fleet(1), 50), Some(0));
    assert_eq!(table.lookup(fleet(1), 200 + AGEING), Some(0));
}

#[test]
fn an_expired_station_elsewhere_is_new_not_moved() {
    let table = table(64, 2);
    table.learn(fleet(1), 0, 0);
    assert_eq!(table.learn(fleet(1), 1, AGEING + 1), Learned::New);
    assert_eq!((table.port_len(0), table.port_len(1)), (0, 1));
    assert_eq!(table.learn(fleet(1), 1, 3 * AGEING), Learned::Refreshed, "own, revived");
    assert_eq!(table.lookup(fleet(1), 3 * AGEING), Some(1));
}

#[test]
fn limits_hold_for_new_and_moved() {
    let table = table(64, 2);
    table.set_port_limit(0, 2);
    assert_eq!(table.learn(fleet(1), 0, 0), Learned::New);
    assert_eq!(table.learn(fleet(2), 0, 0), Learned::New);
    assert_eq!(table.learn(fleet(3), 0, 0), Learned::LimitReached);
    assert_eq!(table.lookup(fleet(3), 0), None);
    assert_eq!(table.learn(fleet(1), 0, 1), Learned::Refreshed, "known ones stay");
    assert_eq!(table.learn(fleet(4), 1, 1), Learned::New);
    assert_eq!(table.learn(fleet(4), 0, 1), Learned::LimitReached);
    assert_eq!(table.lookup(fleet(4), 1), Some(1), "a refused move leaves the station");

    assert_eq!(table.learn(fleet(2), 1, 1), Learned::Moved { from: 0 }, "makes room");
    assert_eq!(table.learn(fleet(3), 0, 1), Learned::New);
    assert_eq!(table.learn(fleet(5), 0, 2 + AGEING), Learned::LimitReached, "not swept yet");
    assert_eq!(table.expire(2 + AGEING), 4);
    assert_eq!(table.learn(fleet(5), 0, 2 + AGEING), Learned::New);
    table.set_port_limit(0, 0);
    assert_eq!(table.learn(fleet(6), 0, 2 + AGEING), Learned::LimitReached);
    assert_eq!(table.lookup(fleet(5), 2 + AGEING), Some(0));
}

#[test]
fn invented_addresses_push_nobody_out() {
    let table = table(1024, 3);
    for n in 0..200 {
        assert_eq!(table.learn(fleet(n), 0, 0), Learned::New);
        assert_eq!(table.learn(fleet(1000 + n), 1, 0), Learned::New);
    }
    // Without a limit: far more addresses than places. They replace only each other.
    let mut refused = 0;
    for n in 0..100_000 {
        match table.learn(invented(n), 2, 1) {
            Learned::New => {}
            Learned::Full => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    for n in 0..200 {
        assert_eq!(table.lookup(fleet(n), 1), Some(0));
        assert_eq!(table.lookup(fleet(1000 + n), 1), Some(1));
    }
    let found = contents(&table, 1);
    assert_eq!(found.len(), 2560, "every place is used, none twice");
    assert_eq!(table.port_len(2), 2560 - 400);
    assert_eq!(refused, 0, "it always had an entry of its own to replace");
    // A newcomer finds no place now, and no live entry is evicted for it ...
    table.flush(Some(1));
    for n in 0..100_000 {
        table.learn(invented(n), 2, 1);
    }
    assert!((0..200).any(|n| table.learn(fleet(1000 + n), 1, 1) == Learned::Full));
    // ... until the invented ones have aged: their places are taken even before a sweep.
    for n in 0..200 {
        table.learn(fleet(n), 0, 1 + AGEING);
    }
    for n in 0..200 {
        assert!(matches!(table.learn(fleet(1000 + n), 1, 2 + AGEING), Learned::New));
        assert_eq!(table.lookup(fleet(n), 2 + AGEING), Some(0));
    }
}

#[test]
fn the_oldest_own_entry_makes_room() {
    let table = table(4, 2); // two buckets: every address may stand in all 10 places
    for n in 0..10 {
        assert_eq!(table.learn(fleet(n), u16::from(n == 3), 10 + n as u32), Learned::New);
    }
    table.learn(fleet(0), 0, 50);
    assert_eq!(table.learn(fleet(10), 0, 50), Learned::New);
    assert_eq!(table.lookup(fleet(1), 50), None, "the oldest of port 0");
    assert_eq!(table.learn(fleet(11), 1, 50), Learned::New);
    assert_eq!(table.lookup(fleet(3), 50), None, "the only one of port 1");
    assert_eq!((table.port_len(0), table.port_len(1)), (9, 1));
    assert_eq!(contents(&table, 50).len(), 10);
}

#[test]
fn flush_empties_one_port() {
    let table = table(1024, 3);
    for n in 0..300 {
        table.learn(fleet(n), (n % 3) as u16, 0);
    }
    assert_eq!(table.flush(Some(1)), 100);
    assert_eq!(table.flush(Some(1)), 0);
    assert_eq!(table.flush(Some(99)), 0);
    let found = contents(&table, 0);
    assert_eq!(found.len(), 200);
    assert!(found.values().all(|&port| port != 1));
}

/// At capacity nothing is refused, whatever the addresses look like and whatever the key is.
#[test]
fn a_full_capacity_is_found() {
    for seed in [0, 1, u64::MAX, random_seed()] {
        for address in [fleet as fn(u64) -> u64, invented, |n| fleet(n << 16)] {
            let capacity = 16_384;
            let config = MacTableConfig { capacity, ageing_secs: AGEING, seed };
            let table = MacTable::new(&config, 2);
            for n in 0..capacity as u64 {
                assert_eq!(table.learn(address(n), (n % 2) as u16, 0), Learned::New, "seed {seed}");
            }
            for n in 0..capacity as u64 {
                table.prefetch(table.address(address(n)));
                assert_eq!(table.lookup(address(n), 0), Some((n % 2) as u16));
            }
        }
    }
}

/// The load that the module's text promises: well beyond the capacity before the first refusal. One port an address, so that nothing can be replaced.
#[test]
fn a_large_table_is_found_and_takes_a_quarter_more() {
    let capacity = 131_072;
    let table = table(capacity, 65_536);
    for n in 0..100_000 {
        assert_eq!(table.learn(invented(n), (n % 65_536) as u16, 0), Learned::New);
    }
    for n in 0..100_000 {
        assert_eq!(table.lookup(invented(n), 0), Some((n % 65_536) as u16));
    }
    let mut held = 100_000;
    while table
        .choose_slot(table.address(invented(held)), 0, 0)
        .is_some_and(|slot| slot.entry.load(Relaxed) == 0)
    {
        table.learn(invented(held), (held % 65_536) as u16, 0);
        held += 1;
    }
    assert_eq!(table.len() as u64, held);
    assert!(held > capacity as u64 * 5 / 4, "first refusal at {held}");
}

#[test]
fn seeds_differ_and_scatter() {
    assert_ne!(random_seed(), random_seed());
    let place = |seed| {
        let config = MacTableConfig { capacity: 4096, ageing_secs: AGEING, seed };
        let table = MacTable::new(&config, 1);
        let bucket = std::ptr::from_ref(table.candidates(table.address(fleet(1)))[0]).addr();
        bucket - table.buckets.as_ptr().addr()
    };
    let places: std::collections::HashSet<usize> = (0..64).map(place).collect();
    assert!(places.len() > 48, "{} places", places.len());
}

#[test]
fn odd_capacities_are_served() {
    for capacity in [0, 1, 7, 9, 1000] {
        let table = table(capacity, 1);
        for n in 0..capacity as u64 {
            assert_eq!(table.learn(fleet(n), 0, 0), Learned::New);
        }
        assert_eq!(contents(&table, 0).len(), capacity);
    }
    assert_eq!(size_of::<Bucket>(), 64);
}

#[test]
fn a_busy_table_still_looks_up_and_refreshes() {
    let table = table(64, 2);
    table.learn(fleet(1), 0, 0);
    let lock = table.change.lock();
    assert_eq!(table.learn(fleet(2), 0, 5), Learned::Busy);
    assert_eq!(table.learn(fleet(1), 1, 5), Learned::Busy);
    assert_eq!(table.learn(fleet(1), 0, 5), Learned::Refreshed);
    assert_eq!(table.lookup(fleet(1), 5 + AGEING), Some(0));
    table.set_port_limit(1, 0);
    assert_eq!(table.learn(fleet(3), 1, 5), Learned::LimitReached, "refused without the lock");
    drop(lock);
    assert_eq!(table.learn(fleet(2), 0, 5), Learned::New);
}

#[test]
fn given_addresses_stay_where_they_are() {
    let table = table(64, 3);
    let mut ages = Vec::new();
    table.learn(fleet(1), 0, 0);
    assert!(table.give(fleet(1), 1, 0) && table.give(fleet(2), 1, 0));
    assert_eq!((table.port_len(0), table.port_len(1)), (0, 2), "the first one moved");
    assert_eq!(table.learn(fleet(1), 0, 5), Learned::Given);
    assert_eq!(table.learn(fleet(1), 1, 5), Learned::Refreshed);
    assert_eq!((table.expire(9 * AGEING), table.flush(Some(1)), table.flush(None)), (0, 0, 0));
    assert_eq!(table.lookup(fleet(1), 9 * AGEING), Some(1));
    table.for_each(9 * AGEING, |_, port, age| ages.push((port, age)));
    assert_eq!(ages, [(1, None), (1, None)]);
    assert!(table.remove(fleet(1)) && !table.remove(fleet(1)));
    assert_eq!(table.learn(fleet(1), 0, 5), Learned::New);
    assert!(!table.give(0, 1, 0) && !table.give(GROUP_BIT, 1, 0) && !table.give(fleet(3), 9, 0));
}

#[test]
fn invented_addresses_push_out_none_that_was_given() {
    let table = table(4, 2);
    let given: Vec<_> = (0..4).map(fleet).filter(|mac| table.give(*mac, 0, 0)).collect();
    for n in 0..1000 {
        table.learn(invented(n), 0, 0);
    }
    assert!(given.len() > 1 && given.iter().all(|mac| table.lookup(*mac, 0) == Some(0)));
}

#[test]
fn ageing_changes_for_those_that_are_known() {
    let table = table(64, 1);
    table.learn(fleet(1), 0, 0);
    table.set_ageing(5);
    assert_eq!((table.lookup(fleet(1), 5), table.lookup(fleet(1), 6)), (Some(0), None));
    table.set_ageing(AGEING);
    assert_eq!(table.lookup(fleet(1), 6), Some(0));
}

/// Four workers learn and move the same stations and invent others, one sweeps and flushes: then
/// no station stands twice, the counts are exact, and no limit was ever exceeded.
#[test]
fn counts_are_exact_after_contention() {
    const WORKERS: u16 = 4;
    const LIMIT: u32 = 150;
    let table = table(512, WORKERS.into());
    for port in 0..WORKERS {
        table.set_port_limit(port, LIMIT);
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|port| {
                let table = &table;
                scope.spawn(move || {
                    for n in 0..60_000u64 {
                        let now = (n / 100) as u32;
                        let own = 10_000 + u64::from(port) * 100;
                        table.learn(own + n % 50, port, now);
                        let answer = table.lookup(own + n % 50, now);
                        assert!(answer.is_none_or(|found| found == port));
                        table.learn(fleet(n % 97), port, now);
                        table.learn(invented(n * 4 + u64::from(port)), port, now);
                        assert!(table.port_len(port) <= LIMIT);
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut round = 0u32;
            while !done.load(Relaxed) {
                table.expire(round % 900);
                table.flush(Some((round % u32::from(WORKERS)) as u16));
                round += 1;
            }
        });
        let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        done.store(true, Relaxed);
        assert!(results.iter().all(Result::is_ok));
    });
    // A clock at zero makes every entry live, so that all are seen.
    let found = contents(&table, 0);
    let counted: u32 = (0..WORKERS).map(|port| table.port_len(port)).sum();
    assert_eq!(counted as usize, found.len());
    for (mac, port) in found {
        assert_eq!(table.lookup(mac, 0), Some(port));
    }
}
