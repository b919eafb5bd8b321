//! Frontends that would have others wait: by silence, floods, full descriptors, or by taking all of
//! something.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fakeguest::features::OFFLOADS;
use fakeguest::frames::{Frame, mac};
use fakeguest::protocol::code;
use fakeguest::ring::make_blocking;
use fakeguest::{Guest, Layout, Memory};
use vmm_sys_util::eventfd::EventFd;

use super::{Bench, PATIENCE, message, page, transfer};
use crate::support::Raise;
use crate::support::proc::holdings;

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
        let _stop = Raise(&stop);
        bench.neighbours_beside(&sent, 20);
    });
    guest.sync().expect("all of it was served");
    drop(guest);
    bench.recovers();
    bench.end();
}

#[test]
fn a_flood_of_kicks_holds_up_nobody() {
    let mut bench = Bench::new();
    let mut guest = bench.guest();
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for ring in 0..2 {
            let kick = guest.ring(ring).signals().kick.try_clone().expect("a descriptor");
            let (stop, sent) = (&stop, &sent);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // There is nothing to be found in the ring.
                    kick.write(1).expect("a kick");
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _stop = Raise(&stop);
        bench.neighbours_beside(&sent, 1000);
        // It is served itself.
        transfer((&mut guest, 3), (&mut bench.a, 1), 1);
    });
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
    let taken =
        (0..100).take_while(|n| guest.connection().add_mem_reg(&page(*n), file.file()).is_ok());
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
