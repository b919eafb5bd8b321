//! Hostile and broken frontends. Whatever they send: the guests on other ports notice nothing,
//! nothing of them stays in the switch, and the next guest finds their port in order.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fakeguest::features::OFFLOADS;
use fakeguest::frames::{Frame, mac};
use fakeguest::memory::Region;
use fakeguest::protocol::{Acks, Connection, NEED_REPLY, VERSION, code, region_bytes};
use fakeguest::ring::make_blocking;
use fakeguest::{Guest, Layout, Memory};
use vmm_sys_util::eventfd::EventFd;

use super::support::proc::{Holdings, holdings, holds_again};
use super::support::switch::Switch;
use super::support::wait_for;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Frames of each exchange.
const COUNT: u64 = 20;

/// Two neighbours whose traffic must go on, and a port `v` under attack.
struct Bench {
    switch: Switch,
    a: Guest,
    b: Guest,
    before: Holdings,
    seed: u32,
}

impl Bench {
    fn new() -> Bench {
        Bench::with_args(&[])
    }

    fn with_args(args: &[&str]) -> Bench {
        let mut switch = Switch::builder().port("a").port("b").port("v").args(args).start();
        switch.process().output_with("ready", 0, PATIENCE);
        let guest = |port: &str| Guest::builder(switch.socket(port)).attach().expect("a guest");
        let (a, b) = (guest("a"), guest("b"));
        let before = holdings(switch.process().pid());
        let mut bench = Bench { switch, a, b, before, seed: 0 };
        bench.neighbours();
        bench
    }

    /// A connection to `v` that has said nothing yet.
    fn stranger(&self) -> Connection {
        let stream = UnixStream::connect(self.switch.socket("v")).expect("a listener");
        Connection::new(stream, Acks::Some).expect("a connection")
    }

    /// A guest on `v`, its rings running.
    fn guest(&self) -> Guest {
        let guest = Guest::builder(self.switch.socket("v")).ring_size(64).tx_slot(4096);
        guest.attach().expect("a guest")
    }

    /// The neighbours' traffic goes on, unharmed.
    #[track_caller]
    fn neighbours(&mut self) {
        self.seed += 1;
        transfer((&mut self.a, 1), (&mut self.b, 2), self.seed);
        transfer((&mut self.b, 2), (&mut self.a, 1), self.seed);
    }

    /// The same, among announcements of somebody else's.
    fn neighbours_beside_announcements(&mut self) {
        for guest in [&mut self.a, &mut self.b] {
            while guest.recv(0, Duration::ZERO).is_some() {}
        }
        self.seed += 1;
        let frame = Frame::pattern(mac(2), mac(1), 60, self.seed);
        self.a.send(0, &frame, &Layout::whole());
        let got =
            std::iter::from_fn(|| self.b.recv(0, PATIENCE)).find(|got| *got.bytes == frame.bytes);
        assert!(got.is_some());
    }

    /// After an attack, the attacker gone: no trace, and a good guest can use the port.
    #[track_caller]
    fn recovers(&mut self) {
        self.neighbours();
        holds_again(self.switch.process().pid(), self.before);
        let mut good = self.guest();
        self.seed += 1;
        transfer((&mut good, 3), (&mut self.a, 1), self.seed);
        transfer((&mut self.a, 1), (&mut good, 3), self.seed);
    }

    /// All that the neighbours sent was delivered; the switch ends in order, without a panic.
    fn end(mut self) {
        let now = self.switch.statistics();
        for port in ["a", "b"] {
            for reason in ["rx_ring_full", "rx_ring_busy", "link_down", "bad_chain"] {
                assert_eq!(now.port(port, &format!("drop_{reason}")), 0, "{port}: {reason}");
            }
        }
        self.switch.stop();
    }
}

/// Sends frames; all arrive, in order, with their bytes.
#[track_caller]
fn transfer(from: (&mut Guest, u8), to: (&mut Guest, u8), seed: u32) {
    let frames: Vec<_> = (0..COUNT)
        .map(|n| Frame::pattern(mac(to.1), mac(from.1), 60 + n as usize, seed << 8 | n as u32))
        .collect();
    for frame in &frames {
        from.0.send(0, frame, &Layout::whole());
    }
    for frame in &frames {
        let got = to.0.recv(0, PATIENCE).expect("a frame");
        assert_eq!(got.bytes, frame.bytes);
    }
    assert!(from.0.flush(0, PATIENCE));
}

/// A header with these fields.
fn header(code: u32, flags: u32, size: u32) -> Vec<u8> {
    [code, flags, size].map(u32::to_le_bytes).concat()
}

/// A message with this body.
fn message(code: u32, body: &[u8]) -> Vec<u8> {
    [header(code, VERSION, body.len() as u32), body.to_vec()].concat()
}

fn state(index: u32, value: u32) -> Vec<u8> {
    [index, value].map(u32::to_le_bytes).concat()
}

/// How a message ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Acknowledged with an error; the connection goes on, in step.
    Refused,
    /// The connection is closed.
    Closed,
}

/// Sends a message that wants an acknowledgement to the guest's backend; tells how it ended.
fn attack(guest: &Guest, code: u32, body: &[u8], fds: &[RawFd]) -> End {
    let connection = guest.connection();
    connection.raw(code, VERSION | NEED_REPLY, body, fds).expect("sent");
    match connection.reply(code) {
        Ok(reply) => {
            assert_eq!(reply.len(), 8, "an acknowledgement");
            assert_ne!(reply, [0; 8], "message {code} was accepted");
            if guest.sync().is_ok() {
                return End::Refused;
            }
        }
        Err(error) => assert_ne!(error.kind(), ErrorKind::InvalidData, "{error}"),
    }
    assert!(connection.closed_within(PATIENCE));
    End::Closed
}

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
    let region = |n: u64| {
        let (guest_addr, user_addr) = ((1 << 40) + n * 8192, (1 << 50) + n * 8192);
        Region { guest_addr, size: 4096, user_addr, file_offset: 0 }
    };
    let mut taken = guest.memory().regions().len() as u64;
    for n in 0..600 {
        match guest.connection().add_mem_reg(&region(n), file.file()) {
            Ok(()) => taken += 1,
            Err(_) => assert_eq!(taken, slots, "{n} regions were taken"),
        }
    }
    assert_eq!(taken, slots);
    // It works with as many; and with one less there is room for another.
    transfer((&mut guest, 3), (&mut bench.a, 1), 1);
    guest.connection().rem_mem_reg(&region(0)).expect("removed");
    guest.connection().add_mem_reg(&region(700), file.file()).expect("added");
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

#[test]
fn silence_in_the_middle_of_a_message_holds_up_nobody() {
    let mut bench = Bench::new();
    let event = EventFd::new(0).expect("an eventfd");
    let kick = message(code::SET_VRING_KICK, &[0; 8]);
    for length in [1, 11, 12, 13, 19] {
        let stranger = bench.stranger();
        stranger.bytes(&kick[..length], &[event.as_raw_fd()]).expect("sent");
        bench.neighbours();
        // Another frontend is told at once that the port is taken.
        let second = bench.stranger();
        assert!(second.closed_within(PATIENCE));
        drop(second);
        stranger.stream().shutdown(Shutdown::Both).expect("a connection");
        bench.neighbours();
    }
    bench.recovers();
    // Slow is not hostile: a guest's messages may come byte by byte.
    let slow = bench.stranger();
    for _ in 0..3 {
        for byte in message(code::GET_FEATURES, &[]) {
            slow.bytes(&[byte], &[]).expect("sent");
            bench.neighbours();
        }
        let offered = slow.reply(code::GET_FEATURES).expect("a reply");
        let offered = u64::from_le_bytes(offered.try_into().expect("8 bytes"));
        assert_eq!(offered & OFFLOADS, OFFLOADS);
    }
    drop(slow);
    // It ends in order although somebody owes the rest of a message.
    let stranger = bench.stranger();
    stranger.bytes(&kick[..13], &[event.as_raw_fd()]).expect("sent");
    bench.neighbours();
    bench.end();
    assert!(stranger.closed_within(PATIENCE));
}

/// Writes questions until nobody takes more, and reads no answer.
fn stuff(stream: &UnixStream) -> usize {
    stream.set_write_timeout(Some(Duration::from_millis(300))).expect("a limit");
    let questions = message(code::GET_FEATURES, &[]).repeat(100);
    let mut taken = 0;
    while let Ok(count) = (&*stream).write(&questions) {
        taken += count;
        assert!(taken < 100 << 20, "the switch keeps answers without bounds");
    }
    taken
}

#[test]
fn a_frontend_that_reads_no_answers_holds_up_nobody() {
    let mut bench = Bench::new();
    let stranger = bench.stranger();
    assert!(stuff(stranger.stream()) > 10_000);
    bench.neighbours();
    // It is served when it does read.
    let mut answers = [0; 20 * 100];
    ({ stranger.stream() }).read_exact(&mut answers).expect("a hundred answers");
    assert!(answers.chunks(20).all(|answer| answer == &answers[..20]));
    stranger.stream().shutdown(Shutdown::Both).expect("a connection");
    bench.recovers();
    // And the switch ends in order although it has answers left.
    let stranger = bench.stranger();
    stuff(stranger.stream());
    bench.neighbours();
    bench.end();
}

/// Runs it when dropped, on a panic too.
struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[test]
fn a_flood_of_messages_holds_up_nobody() {
    let mut bench = Bench::new();
    let guest = bench.guest();
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let kick = guest.ring(1).signals().kick.as_raw_fd();
    let connection = guest.connection();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let count = sent.fetch_add(1, Ordering::Relaxed);
                // Everything that locks the rings of the port or bothers the workers.
                for ring in 0..2 {
                    connection.set_vring_enable(ring, count % 2 == 0).expect("sent");
                    connection.set_vring_kick(ring, Some(kick)).expect("sent");
                    connection.set_vring_call(ring, None).expect("sent");
                }
            }
        });
        let _stop = OnDrop(|| stop.store(true, Ordering::Relaxed));
        let mut before = 0;
        for _ in 0..20 {
            bench.neighbours();
            // It goes on meanwhile.
            let more = || Some(sent.load(Ordering::Relaxed)).filter(|now| *now > before + 20);
            before = wait_for("more of the flood", PATIENCE, more);
        }
    });
    guest.sync().expect("all of it was served");
    drop(guest);
    bench.recovers();
    bench.end();
}

#[test]
fn a_flood_of_connections_holds_up_nobody() {
    let mut bench = Bench::new();
    let mut guest = bench.guest();
    for round in 0..10 {
        let crowd: Vec<_> = (0..8).map(|_| bench.stranger()).collect();
        bench.neighbours();
        assert!(crowd.iter().all(|one| one.closed_within(PATIENCE)), "all are turned away");
        transfer((&mut guest, 3), (&mut bench.a, 1), round);
        transfer((&mut bench.a, 1), (&mut guest, 3), round);
    }
    drop(guest);
    bench.recovers();
    bench.end();
}

#[test]
fn a_call_descriptor_that_is_full_holds_up_nobody() {
    let mut bench = Bench::new();
    let mut guest = bench.guest();
    transfer((&mut guest, 3), (&mut bench.a, 1), 1);
    // A counter as full as can be, and a descriptor whose writers wait for room.
    let call = EventFd::new(0).expect("an eventfd");
    call.write(u64::MAX - 1).expect("an empty counter");
    let connection = guest.connection();
    for ring in 0..2 {
        connection.set_vring_call(ring, Some(call.as_raw_fd())).expect("sent");
        connection.set_vring_err(ring, Some(call.as_raw_fd())).expect("sent");
    }
    guest.sync().expect("a round trip");
    bench.neighbours();
    guest.ring(0).arm();
    bench.a.send(0, &Frame::pattern(mac(3), mac(1), 60, 1), &Layout::whole());
    assert!(bench.a.flush(0, PATIENCE), "the worker goes on");
    bench.neighbours();
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

/// An eventfd as full as can be, and a thread that makes it block again and again.
struct Trap {
    event: Arc<EventFd>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Trap {
    fn new() -> Trap {
        let event = Arc::new(EventFd::new(0).expect("an eventfd"));
        event.write(u64::MAX - 1).expect("an empty counter");
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, until) = (Arc::clone(&event), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                make_blocking(&shared);
                std::thread::yield_now();
            }
        });
        Trap { event, stop, thread: Some(thread) }
    }

    fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(|thread| thread.join());
    }
}

/// Whoever waits at the trap, a worker or the port's own thread, goes on, and the port has a guest
/// again after a while.
fn springs_the_trap(mut bench: Bench, mut guest: Guest, attack: impl Fn(&mut Bench, &mut Guest)) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !guest.connection().closed_within(Duration::from_millis(1)) {
        assert!(std::time::Instant::now() < deadline, "nobody waited: the trap is none");
        attack(&mut bench, &mut guest);
        bench.neighbours();
    }
    bench.switch.process().output_with("was made to block while its counter was full", 0, PATIENCE);
    drop(guest);
    bench.recovers();
    bench.end();
}

#[test]
fn a_worker_that_a_call_descriptor_blocks_goes_on() {
    let mut bench = Bench::new();
    let mut guest = bench.guest();
    transfer((&mut guest, 3), (&mut bench.a, 1), 1);
    let trap = Trap::new();
    guest.connection().set_vring_call(0, Some(trap.fd())).expect("sent");
    springs_the_trap(bench, guest, |bench, guest| {
        // The call is for the next frame behind those that were seen.
        while guest.queue(0).rx.recv().is_some() {}
        guest.ring(0).arm();
        let frame = Frame::pattern(mac(3), mac(1), 60, 1);
        bench.a.send(0, &frame, &Layout::whole());
        assert!(bench.a.flush(0, PATIENCE), "the worker goes on");
        // Without a guest that has the address, it is flooded.
        while bench.b.recv(0, Duration::ZERO).is_some() {}
    });
}

#[test]
fn a_worker_that_an_error_descriptor_blocks_goes_on() {
    let bench = Bench::new();
    let guest = bench.guest();
    let trap = Trap::new();
    let connection = guest.connection();
    connection.set_vring_err(1, Some(trap.fd())).expect("sent");
    springs_the_trap(bench, guest, |_, guest| {
        // The ring fails again and again.
        let index = guest.ring(1).used_index();
        guest.ring(1).split().write_avail_index(index.wrapping_add(0x4000));
        guest.ring(1).kick_now();
        let kick = guest.ring(1).signals().kick.as_raw_fd();
        // Or it is closed already.
        let _ = guest.connection().set_vring_kick(1, Some(kick));
    });
}

#[test]
fn a_port_s_own_thread_that_a_call_descriptor_blocks_goes_on() {
    let mut bench = Bench::new();
    let mut guest = bench.guest();
    transfer((&mut guest, 3), (&mut bench.a, 1), 1);
    let trap = Trap::new();
    springs_the_trap(bench, guest, |_, guest| {
        // Each new call descriptor of a running ring is called once, under the locks of all rings.
        for _ in 0..100 {
            let _ = guest.connection().set_vring_call(0, Some(trap.fd()));
        }
    });
}

#[test]
fn frontends_that_use_up_all_descriptors_stop_nobody() {
    // Limits can be set for a process of the same user.
    let mut bench = Bench::with_args(&["--sandbox", "off"]);
    let pid = bench.switch.process().pid();
    let set = |most: usize| {
        let mut command = Command::new("prlimit");
        command.arg(format!("--pid={pid}")).arg(format!("--nofile={most}:"));
        assert!(command.status().expect("prlimit, of util-linux").success());
    };
    let guest = bench.guest();
    let before = holdings(pid).fds;
    set(before + 20);
    // Each region takes one; at some point the message comes without it.
    let file = Memory::new(&[(0, 4096)]).expect("memory");
    let region = |n: u64| {
        let (guest_addr, user_addr) = ((1 << 40) + n * 8192, (1 << 50) + n * 8192);
        Region { guest_addr, size: 4096, user_addr, file_offset: 0 }
    };
    let taken =
        (0..100).take_while(|n| guest.connection().add_mem_reg(&region(*n), file.file()).is_ok());
    let taken = taken.count();
    assert!((5..=30).contains(&taken), "{taken} regions were taken");
    assert!(guest.connection().closed_within(PATIENCE));
    drop(guest);
    bench.neighbours();
    // With none left at all, nobody can connect; those who are there don't notice.
    set(holdings(pid).fds);
    let crowd: Vec<_> = (0..3).map(|_| bench.stranger()).collect();
    bench.switch.process().output_with("cannot", 0, PATIENCE);
    for _ in 0..5 {
        bench.neighbours();
    }
    drop(crowd);
    set(1024);
    bench.recovers();
    bench.end();
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

#[test]
fn announcements_without_end_are_left_out() {
    let mut bench = Bench::new();
    let guest = bench.guest();
    let before = bench.switch.statistics().port("v", "flooded_frames");
    let start = std::time::Instant::now();
    for _ in 0..50 {
        for last in 0..20 {
            guest.connection().send_rarp(mac(100 + last)).expect("sent");
        }
        bench.neighbours_beside_announcements();
    }
    guest.sync().expect("all were heard");
    let announced = bench.switch.statistics().port("v", "flooded_frames") - before;
    // Sixteen at once, ten a second.
    let most = 16 + 10 * (start.elapsed().as_secs() + 1);
    assert!((1..=most).contains(&announced), "{announced} announcements, {most} at most");
    drop(guest);
    bench.recovers();
    bench.end();
}
