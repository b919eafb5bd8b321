//! Guests that die without a word, again and again: nobody else notices, and the switch keeps
//! nothing of them.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fakeguest::frames::mac;
use fakeguest::{Builder, Frame, Guest, Layout, features};

use crate::support::machines::{Lan, Station, machines};
use crate::support::proc::{Holdings, holdings};
use crate::support::switch::{Statistics, Switch};
use crate::support::wait_for;

const PATIENCE: Duration = Duration::from_secs(30);
/// Lives and deaths of the fake guests.
const CYCLES: usize = 100;
/// Those before the first look at what the switch holds: its allocator has settled then.
const WARM_UP: usize = 5;
/// What the allocator may differ by, in KiB: less than 3 for each fake guest's life.
const SLACK_KIB: u64 = 256;
/// Frames of the verified stream that are under way at a time; its receiver has room for more.
const WINDOW: u64 = 64;

/// Numbers of the fake guests; each is at the port of its number.
const STREAM: (u8, u8) = (1, 2);
const DOOMED: (u8, u8) = (3, 4);

fn port(number: u8) -> String {
    format!("vm{number}")
}

/// Asserts that the switch comes to hold what it held before.
fn assert_nothing_kept(pid: u32, before: &Holdings) {
    let same = |now: &Holdings| {
        (now.fds, now.threads, now.mappings) == (before.fds, before.threads, before.mappings)
    };
    let deadline = Instant::now() + PATIENCE;
    let mut now = holdings(pid);
    while !same(&now) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
        now = holdings(pid);
    }
    println!("held before: {before:?}; held after: {now:?}");
    assert!(same(&now), "held before: {before:?}; held after: {now:?}");
    let limit = before.private_kib + SLACK_KIB;
    assert!(now.private_kib <= limit, "held before: {before:?}; held after: {now:?}");
}

#[test]
fn a_hundred_sudden_deaths_leave_nothing_behind() {
    let ports = [STREAM.0, STREAM.1, DOOMED.0, DOOMED.1].map(port);
    let builder = ports.iter().fold(Switch::builder(), |builder, port| builder.port(port));
    let mut switch = builder.start();
    let pid = switch.process().pid();
    let socket = |number: u8| switch.socket(&port(number));
    let stream = [STREAM.0, STREAM.1].map(socket);
    let doomed = [DOOMED.0, DOOMED.1].map(socket);

    let (ended, passed) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        // Ends the stream also when an assertion below fails.
        let _end = Raise(&ended);
        let streaming = scope.spawn(|| verified_stream(&stream, &ended, &passed));
        let mut before = None;
        for cycle in 0..CYCLES + WARM_UP {
            if cycle == WARM_UP {
                before = Some(settled(pid));
            }
            let start = passed.load(Ordering::Relaxed);
            live_and_die(&doomed, cycle);
            wait_for("frames of the stream after the death", PATIENCE, || {
                let alive = !streaming.is_finished();
                assert!(alive, "the stream has ended in cycle {cycle}");
                (passed.load(Ordering::Relaxed) > start + WINDOW).then_some(())
            });
        }
        assert_nothing_kept(pid, &before.expect("a cycle after the warm-up"));
    });

    let count = passed.load(Ordering::Relaxed);
    println!("{count} frames of the stream arrived as they were sent");
    let statistics = switch.statistics_when(|statistics| statistics.unaccounted() == 0);
    assert_stream_counted(&statistics, count);
    switch.stop();
}

/// Sets a flag when it goes.
struct Raise<'a>(&'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What the switch holds once it has dealt with the last death: twice the same.
fn settled(pid: u32) -> Holdings {
    let mut last = holdings(pid);
    wait_for("rest", PATIENCE, || {
        thread::sleep(Duration::from_millis(200));
        let now = holdings(pid);
        let same = (now.fds, now.mappings) == (last.fds, last.mappings);
        last = now;
        same.then_some(now)
    })
}

/// Sends numbered frames from one guest to another until `ended`, each of which must arrive
/// next and unchanged. Frames of others may be flooded in between.
fn verified_stream(sockets: &[std::path::PathBuf; 2], ended: &AtomicBool, passed: &AtomicU64) {
    // Room for the frames to a guest that has died, whose address is unknown then.
    let guest = |socket| Guest::builder(socket).ring_size(1024).attach();
    let mut from = guest(&sockets[0]).expect("the stream's sender");
    let mut to = guest(&sockets[1]).expect("the stream's receiver");
    let hello = Frame::pattern(mac(STREAM.0), mac(STREAM.1), 60, 0);
    to.send(0, &hello, &Layout::whole());
    from.recv(0, PATIENCE).expect("a frame, the receiver's or a flooded one");
    let frame = |number: u64| {
        let len = 60 + (number * 97 % 8000) as usize;
        Frame::pattern(mac(STREAM.1), mac(STREAM.0), len, number as u32 + 1)
    };
    let (mut sent, mut received) = (0, 0);
    while !ended.load(Ordering::Relaxed) || received < sent {
        if sent - received < WINDOW && !ended.load(Ordering::Relaxed) {
            from.send(0, &frame(sent), &Layout::header_apart());
            from.recv_burst(0, 64);
            sent += 1;
        }
        while sent - received == WINDOW || (ended.load(Ordering::Relaxed) && received < sent) {
            let got = to.recv(0, PATIENCE).unwrap_or_else(|| panic!("frame {received} is lost"));
            if got.bytes[6..12] == mac(STREAM.0) {
                assert!(got.bytes == frame(received).bytes, "frame {received} is not next");
                received += 1;
                passed.store(received, Ordering::Relaxed);
            }
        }
    }
}

/// Two guests attach, send each other frames, and vanish while frames are under way.
fn live_and_die(sockets: &[std::path::PathBuf; 2], cycle: usize) {
    // The kinds of guests take turns: what is to be given back differs.
    let kind = |path: &Path| -> Builder {
        let builder = Guest::builder(path);
        match cycle % 4 {
            0 => builder,
            1 => builder.queue_pairs(2),
            2 => builder.without(features::EVENT_IDX | features::MRG_RXBUF),
            _ => builder.features(features::MINIMAL).ring_size(64),
        }
    };
    let mut left = kind(&sockets[0]).attach().expect("a guest where one died");
    let mut right = kind(&sockets[1]).attach().expect("another guest where one died");
    let to_left = Frame::pattern(mac(DOOMED.0), mac(DOOMED.1), 700, 1);
    let to_right = Frame::pattern(mac(DOOMED.1), mac(DOOMED.0), 1514, 2);
    pass_and_load(&mut right, &mut left, to_left);
    pass_and_load(&mut left, &mut right, to_right);
    for _ in 0..20 {
        left.send_burst(0, 32);
        right.send_burst(0, 32);
        left.recv_burst(0, 64);
        right.recv_burst(0, 64);
    }
    left.send_burst(0, usize::MAX);
    right.send_burst(0, usize::MAX);
    // One dies while the other sends to it, and then that one.
    if cycle.is_multiple_of(2) { drop(left) } else { drop(right) }
}

/// Sends a frame, checks that it arrives, and prepares for sending it in bursts.
fn pass_and_load(from: &mut Guest, to: &mut Guest, frame: Frame) {
    from.send(0, &frame, &Layout::whole());
    let got = wait_for("frame of the other guest", PATIENCE, || {
        // The stream's first frame may be flooded.
        let (_, got) = to.recv_any(PATIENCE)?;
        (got.bytes[6..12] == frame.bytes[6..12]).then_some(got)
    });
    assert!(got.bytes == frame.bytes, "changed on the way");
    assert!(from.flush(0, PATIENCE), "the frame is given back");
    from.queue(0).tx.load(&[frame], &Layout::whole()).expect("an idle queue");
}

/// The statistics tell of the stream's frames, and of no loss of them.
fn assert_stream_counted(statistics: &Statistics, count: u64) {
    let (from, to) = (port(STREAM.0), port(STREAM.1));
    assert_eq!(statistics.port(&from, "ingress_frames"), count);
    assert!(statistics.port(&to, "egress_frames") >= count);
    for name in statistics.ports[&to].keys().filter(|name| name.starts_with("drop_")) {
        assert_eq!(name, "drop_link_down", "{statistics:?}");
    }
}

/// Lives and deaths of real guests unless RINGSWITCH_TEST_QEMU_CYCLES says how many.
const QEMU_CYCLES: usize = 2;

#[test]
fn killed_machines_disturb_nobody_and_leave_nothing_behind() {
    const A: Station = Station::Guest(0);
    const B: Station = Station::Guest(1);
    const C: Station = Station::Guest(2);
    /// Bytes that show that a stream runs.
    const SOME: u64 = 8 << 20;

    let cycles = std::env::var("RINGSWITCH_TEST_QEMU_CYCLES");
    let cycles = cycles.map_or(QEMU_CYCLES, |n| n.parse().expect("a number of cycles"));
    let _alone = machines();
    let mut lan = Lan::new(&[&[], &[], &[]]);
    let pid = lan.switch.process().pid();
    lan.ping(A, B);
    lan.start_stream(A, B, 1);
    let mut before = None;
    // The first death is for warming up.
    for cycle in 0..=cycles {
        if cycle > 0 {
            lan.replace(2, &[]);
        }
        lan.ping(C, Station::Host);
        let server = lan.stream_server();
        lan.start_stream(C, Station::Host, 1);
        lan.wait_received(Station::Host, SOME);
        lan.kill(2);
        // Twice: what was under way at the moment of the death doesn't count.
        lan.wait_received(B, SOME);
        lan.wait_received(B, SOME);
        lan.assert_streaming(A);
        drop(server);
        match &before {
            None => before = Some(settled(pid)),
            Some(before) if cycle == cycles || cycle % 10 == 0 => assert_nothing_kept(pid, before),
            Some(_) => {}
        }
    }
    lan.replace(2, &[]);
    lan.end_stream(A);
    lan.ping(C, A);
    lan.assert_no_bad_frames("all over");
    lan.balanced_statistics();
    lan.stop();
}
