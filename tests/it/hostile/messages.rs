//! Messages that are none, or say what cannot be.

use std::fs::File;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use fakeguest::Memory;
use fakeguest::frames::Frame;
use fakeguest::memory::Region;
use fakeguest::protocol::{VERSION, code, region_bytes};
use vmm_sys_util::eventfd::EventFd;

use super::{Bench, End, PATIENCE, attack, header, message, state, transfer};

#[test]
fn bytes_that_are_no_message_end_the_connection() {
    let mut bench = Bench::new();
    let mut cases: Vec<(String, Vec<u8>)> = vec![
        ("text".into(), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("zeros".into(), vec![0; 5000]),
        ("ones".into(), vec![0xff; 5000]),
        ("noise".into(), Frame::pattern([7; 6], [8; 6], 5000, 1).bytes),
        ("good, then noise".into(), [message(code::SET_OWNER, &[]), vec![0xa5; 100]].concat()),
    ];
    for flags in [0, 2, 3, 5, 0x11, u32::MAX] {
        let bytes = [header(code::SET_FEATURES, flags, 8), vec![0; 8]].concat();
        cases.push((format!("flags {flags:#x}"), bytes));
    }
    for size in [0, 7, 9, 4096, 1 << 20, u32::MAX] {
        let bytes = [header(code::SET_FEATURES, VERSION, size), vec![0; 16]].concat();
        cases.push((format!("size {size}"), bytes));
    }
    for size in [0, 1, 8, 39, 8 + 33 * 32, u32::MAX - 7] {
        let bytes = header(code::SET_MEM_TABLE, VERSION, size);
        cases.push((format!("memory table of {size}"), bytes));
    }
    // None of these is offered; 22 and 23 are the IOTLB's, 24 and 25 the configuration's.
    for unknown in [0, 7, 21, 22, 23, 24, 25, 26, 28, 31, 33, 41, 42, 255, u32::MAX] {
        cases.push((format!("code {unknown}"), message(unknown, &[0; 8])));
    }
    for (name, bytes) in cases {
        let stranger = bench.stranger();
        // The switch may close before all of it is written.
        let _ = stranger.bytes(&bytes, &[]);
        assert!(stranger.closed_within(PATIENCE), "{name}");
        drop(stranger);
        bench.neighbours();
    }
    bench.recovers();
    bench.end();
}

#[test]
fn surplus_and_missing_descriptors_end_the_connection_and_are_closed() {
    let mut bench = Bench::new();
    let event = EventFd::new(0).expect("an eventfd");
    let memory = Memory::new(&[(0, 1 << 20)]).expect("memory");
    let region = region_bytes(&memory.regions()[0]);
    let table = |regions: u32| [state(regions, 0), region.repeat(regions as usize)].concat();
    let add = [vec![0; 8], region.to_vec()].concat();
    let log = [4096u64.to_le_bytes(), [0; 8]].concat();
    for (what, body, count) in [
        (code::SET_OWNER, vec![], 1),
        (code::GET_FEATURES, vec![], 8),
        (code::GET_FEATURES, vec![], 32),
        (code::GET_FEATURES, vec![], 33),
        (code::GET_FEATURES, vec![], 253),
        (code::SET_FEATURES, vec![0; 8], 1),
        (code::SET_VRING_NUM, state(0, 256), 1),
        (code::SET_VRING_KICK, vec![0; 8], 2),
        (code::SET_VRING_CALL, vec![0; 8], 200),
        (code::SET_MEM_TABLE, table(1), 0),
        (code::SET_MEM_TABLE, table(1), 2),
        (code::SET_MEM_TABLE, table(2), 1),
        (code::SET_MEM_TABLE, table(8), 200),
        (code::ADD_MEM_REG, add.clone(), 0),
        (code::ADD_MEM_REG, add, 3),
        (code::SET_LOG_BASE, log.clone(), 0),
        (code::SET_LOG_BASE, log, 2),
        (code::SET_STATUS, vec![0; 8], 1),
        (code::SET_VRING_ENABLE, state(0, 1), 1),
    ] {
        let stranger = bench.stranger();
        let fds = vec![event.as_raw_fd(); count];
        stranger.bytes(&message(what, &body), &fds).expect("sent");
        assert!(stranger.closed_within(PATIENCE), "message {what} with {count} descriptors");
    }
    // With the second half of a message, and with a message that never ends.
    for complete in [true, false] {
        let stranger = bench.stranger();
        let bytes = message(code::SET_FEATURES, &[0; 8]);
        stranger.bytes(&bytes[..10], &[]).expect("sent");
        stranger.bytes(&bytes[10..15], &[event.as_raw_fd(); 20]).expect("sent");
        if complete {
            stranger.bytes(&bytes[15..], &[event.as_raw_fd(); 20]).expect("sent");
            assert!(stranger.closed_within(PATIENCE));
        }
        bench.neighbours();
        stranger.stream().shutdown(Shutdown::Both).expect("a connection");
    }
    bench.recovers();
    bench.end();
}

#[test]
fn descriptors_of_the_wrong_kind_are_refused() {
    let mut bench = Bench::new();
    let (pipe, pipe_end) = std::io::pipe().expect("a pipe");
    let (socket, _peer) = UnixStream::pair().expect("sockets");
    let file = tempfile::tempfile().expect("a file");
    let memory = Memory::new(&[(0, 1 << 20)]).expect("memory");
    let open = |path| File::open(path).expect("a device or directory");
    let (null, directory) = (open("/dev/null"), open("/"));
    let kinds = [
        ("pipe", pipe.as_raw_fd()),
        ("pipe's other end", pipe_end.as_raw_fd()),
        ("socket", socket.as_raw_fd()),
        ("file", file.as_raw_fd()),
        ("memfd", memory.file().as_raw_fd()),
        ("device", null.as_raw_fd()),
        ("directory", directory.as_raw_fd()),
    ];
    let guest = bench.guest();
    for what in [code::SET_VRING_KICK, code::SET_VRING_CALL, code::SET_VRING_ERR] {
        for (kind, fd) in kinds {
            let ring = 1u64.to_le_bytes();
            assert_eq!(attack(&guest, what, &ring, &[fd]), End::Refused, "{kind} for {what}");
        }
    }
    drop(guest);
    bench.recovers();
    // As memory: none of these holds a region, or can be mapped.
    let guest = bench.guest();
    let spare = Region { guest_addr: 1 << 40, size: 8192, user_addr: 1 << 40, file_offset: 0 };
    let body = [vec![0; 8], region_bytes(&spare).to_vec()].concat();
    let event = EventFd::new(0).expect("an eventfd");
    let files = kinds.into_iter().filter(|(kind, _)| *kind != "memfd");
    for (kind, fd) in files.chain([("eventfd", event.as_raw_fd())]) {
        assert_eq!(attack(&guest, code::ADD_MEM_REG, &body, &[fd]), End::Refused, "{kind}");
    }
    drop(guest);
    bench.recovers();
    bench.end();
}

#[test]
fn values_out_of_range_are_refused_and_the_guest_goes_on() {
    let mut bench = Bench::new();
    let mut guest = bench.guest();
    let mut cases = Vec::new();
    for size in [0, 1, 3, 255, 65535, 65536, 1 << 20, u32::MAX] {
        cases.push((code::SET_VRING_NUM, state(1, size)));
    }
    for base in [65536, u32::MAX] {
        cases.push((code::SET_VRING_BASE, state(1, base)));
    }
    // The port has 8 pairs.
    for index in [16, 17, 255, 256, 65536, u32::MAX] {
        cases.push((code::SET_VRING_NUM, state(index, 256)));
        cases.push((code::SET_VRING_BASE, state(index, 0)));
        cases.push((code::SET_VRING_ENABLE, state(index, 1)));
        cases.push((code::SET_VRING_ADDR, [state(index, 0), vec![0; 32]].concat()));
    }
    cases.push((code::SET_VRING_ENABLE, state(0, 2)));
    cases.push((code::SET_VRING_ENABLE, state(0, u32::MAX)));
    for mtu in [0, 67, 65536, u64::MAX] {
        cases.push((code::NET_SET_MTU, mtu.to_le_bytes().to_vec()));
    }
    cases.push((code::SET_STATUS, 256u64.to_le_bytes().to_vec()));
    for (what, body) in &cases {
        let end = attack(&guest, *what, body, &[]);
        assert_eq!(end, End::Refused, "message {what}: {body:x?}");
    }
    // It is as it was: nothing of a refused message is done.
    transfer((&mut guest, 3), (&mut bench.a, 1), 1);
    transfer((&mut bench.a, 1), (&mut guest, 3), 2);
    drop(guest);

    // The frontend that doesn't ask is not left in the belief that it was heard.
    for (what, body) in cases.iter().step_by(3) {
        let guest = bench.guest();
        guest.connection().raw(*what, VERSION, body, &[]).expect("sent");
        assert!(guest.connection().closed_within(PATIENCE), "message {what}: {body:x?}");
    }
    bench.recovers();
    bench.end();
}

#[test]
fn what_was_not_offered_ends_the_connection() {
    let mut bench = Bench::new();
    let word = |value: u64| value.to_le_bytes().to_vec();
    for (what, body) in [
        (code::SET_FEATURES, word(u64::MAX)),
        (code::SET_FEATURES, word(1 << 33)),
        (code::SET_PROTOCOL_FEATURES, word(u64::MAX)),
        (code::SET_PROTOCOL_FEATURES, word(1 << 12)),
        // They have a reply of their own, which can't tell a failure.
        (code::GET_VRING_BASE, state(16, 0)),
        (code::GET_VRING_BASE, state(u32::MAX, 0)),
    ] {
        let guest = bench.guest();
        assert_eq!(attack(&guest, what, &body, &[]), End::Closed, "message {what}: {body:x?}");
        drop(guest);
        bench.neighbours();
    }
    bench.recovers();
    bench.end();
}

#[test]
fn rings_outside_of_memory_do_not_run() {
    let mut bench = Bench::new();
    let mut guest = bench.guest();
    let memory = guest.memory().clone();
    let good = guest.ring(1).addresses();
    let [desc, used, avail] = [good.desc, good.used, good.avail].map(|at| memory.user_addr(at));
    let last = memory.regions().last().expect("regions");
    let end = last.user_addr + last.size;
    for [desc, used, avail] in [
        [0, 0, 0],
        [1 << 46, used, avail],
        [desc, u64::MAX - 7, avail],
        [u64::MAX - 15, used, avail],
        // Guest addresses in the place of the frontend's.
        [good.desc, good.used, good.avail],
        [desc + 8, used, avail],
        [desc + 1, used, avail],
        [desc, used + 2, avail],
        [desc, used, avail + 1],
        [end - 16, used, avail],
        [desc, end - 4, avail],
        [desc, used, end - 2],
        [desc, used, end],
    ] {
        let words = [desc, used, avail, 0].map(u64::to_le_bytes).concat();
        // The `vhost` crate refuses what is badly aligned, and closes.
        let body = [state(1, 0), words].concat();
        if attack(&guest, code::SET_VRING_ADDR, &body, &[]) == End::Closed {
            drop(guest);
            guest = bench.guest();
        }
        bench.neighbours();
    }
    drop(guest);
    bench.recovers();
    bench.end();
}
