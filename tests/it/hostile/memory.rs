//! Memory that is not what it should be, or isn't any more.

use std::os::fd::AsRawFd;
use std::time::Duration;

use fakeguest::frames::{Frame, mac};
use fakeguest::memory::Region;
use fakeguest::protocol::{code, region_bytes};
use fakeguest::{Guest, Layout, Memory};

use super::{Bench, End, PATIENCE, attack, page, state, transfer};

#[test]
fn regions_that_cannot_be_are_refused() {
    let mut bench = Bench::new();
    let short = Memory::new(&[(0, 4096)]).expect("memory");
    let guest = bench.guest();
    let first = guest.memory().regions()[0];
    let spare = Region { guest_addr: 1 << 40, size: 4096, user_addr: 1 << 50, file_offset: 0 };
    let size = |size| Region { size, ..spare };
    drop(guest);
    for (what, region) in [
        ("file too short by a byte", size(4097)),
        ("file too short", size(1 << 30)),
        ("larger than an address space", size(1 << 62)),
        ("empty", size(0)),
        ("offset behind the file", Region { file_offset: 4096, ..spare }),
        ("offset that wraps", Region { file_offset: u64::MAX - 4095, ..spare }),
        ("guest address that wraps", Region { guest_addr: u64::MAX - 4094, ..spare }),
        ("frontend address that wraps", Region { user_addr: u64::MAX - 4094, ..spare }),
        ("guest overlap", Region { guest_addr: first.guest_addr, ..spare }),
        ("last page", Region { guest_addr: first.guest_addr + first.size - 4096, ..spare }),
    ] {
        let guest = bench.guest();
        let body = [vec![0; 8], region_bytes(&region).to_vec()].concat();
        let end = attack(&guest, code::ADD_MEM_REG, &body, &[short.file().as_raw_fd()]);
        // And as a table, beside a good region. It replaces what was there.
        if end == End::Refused {
            let good = Region { guest_addr: first.guest_addr, size: 4096, ..first };
            let body = [state(2, 0), [good, region].map(|r| region_bytes(&r)).concat()].concat();
            let fds = [short.file().as_raw_fd(); 2];
            if !what.contains("last page") {
                attack(&guest, code::SET_MEM_TABLE, &body, &fds);
            }
        }
        drop(guest);
        bench.neighbours();
    }
    bench.recovers();
    bench.end();
}

#[test]
fn more_regions_than_slots_are_refused() {
    let mut bench = Bench::new();
    let mut guest = bench.guest();
    let slots = guest.connection().get_max_mem_slots().expect("a number");
    let file = Memory::new(&[(0, 4096)]).expect("memory");
    let mut taken = guest.memory().regions().len() as u64;
    for n in 0..600 {
        match guest.connection().add_mem_reg(&page(n), file.file()) {
            Ok(()) => taken += 1,
            Err(_) => assert_eq!(taken, slots, "{n} regions were taken"),
        }
    }
    assert_eq!(taken, slots);
    // It works with as many; and with one less there is room for another.
    transfer((&mut guest, 3), (&mut bench.a, 1), 1);
    guest.connection().rem_mem_reg(&page(0)).expect("removed");
    guest.connection().add_mem_reg(&page(700), file.file()).expect("added");
    transfer((&mut bench.a, 1), (&mut guest, 3), 2);
    drop(guest);
    bench.recovers();
    bench.end();
}

#[test]
fn a_dirty_log_that_cannot_be_ends_the_connection() {
    let mut bench = Bench::new();
    let short = Memory::new(&[(0, 4096)]).expect("memory");
    let (pipe, _end) = std::io::pipe().expect("a pipe");
    let file = short.file().as_raw_fd();
    for (size, offset, fd) in [
        (4097, 0, file),
        (0, 0, file),
        (4096, 4096, file),
        (u64::MAX, 0, file),
        (4096, u64::MAX - 100, file),
        (u64::MAX - 4095, 4096, file),
        (4096, 0, pipe.as_raw_fd()),
    ] {
        let guest = bench.guest();
        let body = [size, offset].map(u64::to_le_bytes).concat();
        let end = attack(&guest, code::SET_LOG_BASE, &body, &[fd]);
        assert_eq!(end, End::Closed, "{size} bytes at {offset}");
        drop(guest);
        bench.neighbours();
    }
    // One that is too small for the guest is followed: pages behind it are not marked.
    let mut guest = bench.guest();
    let log = Memory::new(&[(0, 4096)]).expect("memory");
    guest.connection().set_log_base(1, log.file()).expect("a log of eight pages");
    let features = guest.features() | fakeguest::features::LOG_ALL;
    guest.connection().set_features(features).and_then(|()| guest.sync()).expect("logging");
    transfer((&mut guest, 3), (&mut bench.a, 1), 7);
    transfer((&mut bench.a, 1), (&mut guest, 3), 8);
    let mut bytes = [0; 4096];
    log.read(0, &mut bytes);
    assert_eq!(bytes[1..], [0; 4095], "no byte behind the log is touched");
    drop(guest);
    bench.recovers();
    bench.end();
}

/// Frames from a neighbour make the switch write to the memory of the guest on `v`, and it looks
/// at that guest's transmit ring anyway. Then the connection ends, and the port serves the next one.
fn loses_its_memory(mut bench: Bench, guest: Guest) {
    bench.a.send_all(0, &vec![Frame::pattern(mac(3), mac(1), 1514, 1); 8], &Layout::whole());
    assert!(bench.a.flush(0, PATIENCE), "the worker goes on");
    // If the connection ended before they were sent, they had no address any more and were flooded.
    while bench.b.recv(0, Duration::ZERO).is_some() {}
    assert!(guest.connection().closed_within(PATIENCE), "the connection is ended");
    bench.switch.process().output_with("the file behind the guest's memory", 0, PATIENCE);
    drop(guest);
    bench.neighbours();
    bench.recovers();
    bench.end();
}

#[test]
fn a_memory_file_that_is_cut_off_ends_its_own_port_only() {
    let mut bench = Bench::new();
    let mut guest = bench.guest();
    transfer((&mut guest, 3), (&mut bench.a, 1), 1);
    guest.memory().file().set_len(0).expect("a shorter file");
    loses_its_memory(bench, guest);
}

#[test]
fn a_dirty_log_that_is_cut_off_ends_its_own_port_only() {
    let mut bench = Bench::new();
    let mut guest = bench.guest();
    transfer((&mut guest, 3), (&mut bench.a, 1), 1);
    let log = guest.start_log().expect("a log");
    transfer((&mut bench.a, 1), (&mut guest, 3), 2);
    log.file().set_len(0).expect("a shorter file");
    loses_its_memory(bench, guest);
}

#[test]
fn memory_beyond_all_measure_is_refused() {
    let mut bench = Bench::new();
    let guest = bench.guest();
    let memory = Memory::new(&[(0, 20 << 40)]).expect("memory, none of which is there");
    let file = memory.file();
    let region = |n: u64, size| Region {
        guest_addr: (n + 1) << 45,
        size,
        user_addr: (n + 1) << 45,
        file_offset: 0,
    };
    let add = |region| {
        let body = [vec![0; 8], region_bytes(&region).to_vec()].concat();
        attack(&guest, code::ADD_MEM_REG, &body, &[file.as_raw_fd()])
    };
    assert_eq!(add(region(0, (16 << 40) + 4096)), End::Refused);
    guest.connection().add_mem_reg(&region(1, 15 << 40), file).expect("as much as there is");
    assert_eq!(add(region(2, 1 << 40)), End::Refused, "with what is there already");
    drop(guest);
    bench.recovers();
    bench.end();
}
