//! Cloud Hypervisor's messages, replayed: each in its place, with its flags, and acknowledged.
//!
//! `fakeguest::cloud_hypervisor` sends them, and an acknowledgement that is missing or isn't 0 is an
//! error there. Its rings are split ones.

use std::time::Duration;

use fakeguest::features::{CLOUD_HYPERVISOR, IN_ORDER};
use fakeguest::frames::{Frame, mac};
use fakeguest::protocol::{NEED_REPLY, VERSION, code};
use fakeguest::{Builder, Guest, Layout, SetupOrder};

use super::support::lan::PATIENCE;
use super::support::lan::receive;
use super::support::precopy::Precopy;
use super::support::switch::{Statistics, Switch};

/// Entries of each ring, and so the receive buffers that are posted.
const SIZE: u16 = 256;
/// How long nothing must come for there to be nothing.
const SILENCE: Duration = Duration::from_millis(100);

/// A message with a reply of its own, or before acknowledgements were negotiated.
const fn plain(code: u32) -> (u32, u32) {
    (code, VERSION)
}

/// A message that asks for an acknowledgement.
const fn acked(code: u32) -> (u32, u32) {
    (code, VERSION | NEED_REPLY)
}

/// The first messages to a backend; some are sent once only in the life of a device.
fn negotiation(first: bool) -> Vec<(u32, u32)> {
    let mut trace = vec![plain(code::SET_OWNER), plain(code::GET_FEATURES)];
    if first {
        trace.push(plain(code::GET_PROTOCOL_FEATURES));
    }
    trace.push(plain(code::SET_PROTOCOL_FEATURES));
    if first {
        trace.push(plain(code::GET_QUEUE_NUM));
    }
    trace
}

/// What makes `rings` rings run.
fn activation(rings: usize) -> Vec<(u32, u32)> {
    let mut trace = vec![acked(code::SET_FEATURES), acked(code::SET_MEM_TABLE)];
    trace.extend(vec![acked(code::SET_VRING_NUM); rings]);
    for _ in 0..rings {
        trace.extend([
            acked(code::SET_VRING_ADDR),
            acked(code::SET_VRING_BASE),
            acked(code::SET_VRING_CALL),
            acked(code::SET_VRING_KICK),
        ]);
    }
    trace.extend(vec![acked(code::SET_VRING_ENABLE); rings]);
    trace
}

/// What was sent since the last look.
#[track_caller]
fn assert_sent(guest: &Guest, parts: &[&[(u32, u32)]]) {
    assert_eq!(guest.connection().take_trace(), parts.concat());
}

fn settings(switch: &Switch, port: &str) -> Builder {
    let guest = Guest::builder(switch.socket(port)).features(CLOUD_HYPERVISOR);
    guest.order(SetupOrder::CloudHypervisor).ring_size(SIZE)
}

fn frames(from: u8, to: u8, count: usize, seed: u32) -> Vec<Frame> {
    let one = |n: usize| Frame::pattern(mac(to), mac(from), 60 + 7 * n, seed << 16 | n as u32);
    (0..count).map(one).collect()
}

fn post(guest: &mut Guest, frames: &[Frame]) {
    frames.iter().for_each(|frame| guest.send(0, frame, &Layout::whole()));
}

/// Sends frames, which all arrive, once and in order.
#[track_caller]
fn transfer(from: &mut Guest, to: &mut Guest, frames: &[Frame]) {
    post(from, frames);
    receive(to, frames);
    assert!(from.flush(0, PATIENCE), "the switch completes what was sent");
}

/// Asserts that as many frames fit in the guest's ring as it has buffers, all of which it posted:
/// not one was skipped, none is used twice.
#[track_caller]
fn assert_all_buffers_are_there(switch: &mut Switch, from: &mut Guest, to: &mut Guest, port: &str) {
    let before = switch.statistics();
    let many: Vec<_> = (0..u32::from(SIZE) + 1).flat_map(|n| frames(1, 2, 1, 1000 + n)).collect();
    post(from, &many);
    assert!(from.flush(0, PATIENCE));
    let grown = |now: &Statistics, counter| now.port(port, counter) - before.port(port, counter);
    let now = switch.statistics_when(|now| {
        grown(now, "egress_frames") + grown(now, "drop_rx_ring_full") == u64::from(SIZE) + 1
    });
    assert_eq!(grown(&now, "egress_frames"), u64::from(SIZE));
    receive(to, &many[..usize::from(SIZE)]);
    assert!(to.recv(0, SILENCE).is_none(), "a frame came twice");
}

#[test]
fn a_device_is_made_activated_and_reset() {
    for pairs in [1, 4] {
        let mut switch = Switch::builder().port("a").port("b").start();
        let mut a = settings(&switch, "a").attach().expect("a guest");
        let mut b = settings(&switch, "b").queue_pairs(pairs).attach().expect("a guest");
        let activation = activation(2 * pairs);
        assert_sent(&b, &[&negotiation(true), &activation]);
        transfer(&mut b, &mut a, &frames(2, 1, 20, 1));

        let bases = b.reset_rings().expect("bases");
        let stop = [acked(code::SET_VRING_ENABLE), plain(code::GET_VRING_BASE)];
        assert_sent(&b, &[&stop.repeat(2 * pairs)]);
        let used: Vec<_> = (0..2 * pairs).map(|n| u32::from(b.ring(n).used_index())).collect();
        assert_eq!(bases, used);
        let waiting = frames(2, 1, 3, 2);
        post(&mut b, &waiting);
        assert!(!b.flush(0, SILENCE), "no ring runs");

        b.activate_again().expect("activated");
        assert_sent(&b, &[&activation]);
        receive(&mut a, &waiting);
        let back = frames(1, 2, 20, 3);
        post(&mut a, &back);
        // All pairs are enabled, so a flow may arrive on any.
        for frame in &back {
            assert_eq!(b.recv_any(PATIENCE).expect("a frame").1.bytes, frame.bytes);
        }
        assert_eq!(switch.statistics().dropped(), 0);
        switch.stop();
    }
}

#[test]
fn paused_rings_are_untouched_byte_for_byte() {
    let mut switch = Switch::builder().port("a").port("b").start();
    let mut a = settings(&switch, "a").attach().expect("a guest");
    let mut b = settings(&switch, "b").attach().expect("a guest");
    let mut missed = 0;
    for round in 0..5 {
        transfer(&mut a, &mut b, &frames(1, 2, 20, round));
        transfer(&mut b, &mut a, &frames(2, 1, 20, round));
        // Some are on their way when it is paused: each is delivered before, or not at all.
        let under_way = frames(1, 2, 10, 100 + round);
        a.send_all(0, &under_way, &Layout::whole());
        b.connection().take_trace();
        b.pause().expect("disabled");
        assert_sent(&b, &[&[acked(code::SET_VRING_ENABLE); 2]]);
        let arrived = usize::from(b.ring(0).ready());

        let waiting = frames(2, 1, 7, 200 + round);
        post(&mut b, &waiting);
        let regions = b.memory().regions().to_vec();
        let before: Vec<_> = regions.iter().map(|region| b.memory().snapshot(region)).collect();
        b.ring(1).kick_now();
        post(&mut a, &frames(1, 2, 30, 300 + round));
        assert!(a.flush(0, PATIENCE), "a paused guest holds up nobody");
        std::thread::sleep(SILENCE);
        for (region, before) in regions.iter().zip(&before) {
            let same = b.memory().snapshot(region) == *before;
            assert!(same, "round {round}: the switch wrote to a paused guest's memory");
        }

        b.unpause().expect("enabled");
        assert_sent(&b, &[&[acked(code::SET_VRING_ENABLE); 2]]);
        receive(&mut a, &waiting);
        receive(&mut b, &under_way[..arrived]);
        assert!(b.flush(0, PATIENCE));
        missed += (10 - arrived + 30) as u64;
        let now = switch.statistics_when(|now| now.dropped() >= missed);
        let down = now.port("a", "drop_no_destination") + now.port("b", "drop_link_down");
        assert_eq!((down, now.dropped()), (missed, missed), "what a paused guest misses");
    }
    assert_all_buffers_are_there(&mut switch, &mut a, &mut b, "b");
    switch.stop();
}

#[test]
fn after_a_lost_connection_no_buffer_is_skipped_and_none_used_twice() {
    for in_order in [0, IN_ORDER] {
        let mut switch = Switch::builder().port("a").port("b").start();
        let mut a = settings(&switch, "a").attach().expect("a guest");
        let mut b = settings(&switch, "b").with(in_order).attach().expect("a guest");
        for round in 0..3 {
            transfer(&mut a, &mut b, &frames(1, 2, 20, round));
            let unread = frames(1, 2, 5, 100 + round);
            post(&mut a, &unread);
            assert!(a.flush(0, PATIENCE));
            // What it sends while nobody is there.
            b.pause().expect("disabled");
            let waiting = frames(2, 1, 5, 200 + round);
            post(&mut b, &waiting);
            b.reconnect().expect("attached again");
            assert_sent(&b, &[&negotiation(false), &activation(2)]);
            receive(&mut a, &waiting);
            receive(&mut b, &unread);
            assert_all_buffers_are_there(&mut switch, &mut a, &mut b, "b");
        }
        switch.stop();
    }
}

/// Two hosts: on each a station that isn't the guest.
struct Hosts {
    switches: [Switch; 2],
    stations: [Guest; 2],
}

impl Hosts {
    fn new() -> Hosts {
        let switches = [(); 2].map(|()| Switch::builder().port("station").port("vm").start());
        let stations = [0, 1].map(|n: usize| {
            let guest = settings(&switches[n], "station").order(SetupOrder::Qemu);
            guest.attach().expect("a station")
        });
        Hosts { switches, stations }
    }
}

#[test]
fn a_guest_is_logged_pass_by_pass_and_moves_to_another_switch() {
    let Hosts { switches: [mut source, mut target], stations: [mut here, mut there] } =
        Hosts::new();
    let mut vm = settings(&source, "vm").attach().expect("a guest");
    transfer(&mut here, &mut vm, &frames(1, 2, 30, 1));
    transfer(&mut vm, &mut here, &frames(2, 1, 30, 2));

    vm.connection().take_trace();
    let mut log = vm.start_log().expect("a log");
    let begin = [acked(code::SET_LOG_BASE), acked(code::SET_FEATURES)];
    assert_sent(&vm, &[&begin, &[acked(code::SET_VRING_ADDR); 2]]);
    let mut copy = Precopy::begin(&vm);
    let mut pass = |vm: &mut Guest, copy: &mut Precopy| {
        let next = vm.next_log().expect("a log");
        assert_sent(vm, &[&[acked(code::SET_LOG_BASE)]]);
        let before = std::mem::replace(&mut log, next);
        let pages = copy.copy_marked(&before);
        assert_eq!(before.take(), [0; 0]);
        pages
    };
    for round in 0..3 {
        transfer(&mut here, &mut vm, &frames(1, 2, 30, 10 + round));
        transfer(&mut vm, &mut here, &frames(2, 1, 30, 20 + round));
        assert!(pass(&mut vm, &mut copy) > 0);
    }
    // Five frames arrive and aren't read before it is paused. Once more the log is taken then, and
    // a last time with the snapshot, when nothing can have been written.
    let unread = frames(1, 2, 5, 30);
    post(&mut here, &unread);
    assert!(here.flush(0, PATIENCE));
    vm.pause().expect("disabled");
    assert_sent(&vm, &[&[acked(code::SET_VRING_ENABLE); 2]]);
    let waiting = frames(2, 1, 5, 31);
    post(&mut vm, &waiting);
    post(&mut here, &frames(1, 2, 4, 32));
    assert!(here.flush(0, PATIENCE));
    assert!(pass(&mut vm, &mut copy) > 0);
    assert_eq!(pass(&mut vm, &mut copy), 0, "paused, and written to");
    copy.assert_device_writes_arrived(&mut vm, true);
    let now = source.statistics();
    let missed = now.port("station", "drop_no_destination") + now.port("vm", "drop_link_down");
    assert_eq!((missed, now.dropped()), (4, 4));

    vm.move_to(target.socket("vm")).expect("restored");
    let resume = [acked(code::SET_VRING_ENABLE); 2];
    assert_sent(&vm, &[&negotiation(false), &activation(2), &resume]);
    receive(&mut there, &waiting);
    receive(&mut vm, &unread);
    assert!(vm.flush(0, PATIENCE));
    assert_all_buffers_are_there(&mut target, &mut there, &mut vm, "vm");
    transfer(&mut vm, &mut there, &frames(2, 1, 30, 33));
    assert!(here.recv(0, SILENCE).is_none(), "a frame of the moved guest is left here");
    assert_eq!(log.take(), [0; 0], "nobody logs any more");
    source.stop();
    target.stop();
}

#[test]
fn a_migration_that_fails_leaves_no_log() {
    let mut switch = Switch::builder().port("a").port("b").start();
    let mut a = settings(&switch, "a").attach().expect("a guest");
    let mut b = settings(&switch, "b").attach().expect("a guest");
    for round in 0..3 {
        let log = b.start_log().expect("a log");
        transfer(&mut a, &mut b, &frames(1, 2, 20, round));
        assert!(!log.take().is_empty());
        b.pause().expect("disabled");
        let last = b.next_log().expect("a log");
        b.connection().take_trace();
        b.unpause().and_then(|()| b.stop_log()).expect("back to life");
        let end = [acked(code::SET_VRING_ADDR), acked(code::SET_VRING_ADDR)];
        let resume = [acked(code::SET_VRING_ENABLE); 2];
        assert_sent(&b, &[&resume, &end, &[acked(code::SET_FEATURES)]]);
        log.take();
        last.take();
        transfer(&mut a, &mut b, &frames(1, 2, 20, 10 + round));
        transfer(&mut b, &mut a, &frames(2, 1, 20, 20 + round));
        assert_eq!([log.take(), last.take()], [[0; 0]; 2], "logging ends with LOG_ALL");
    }
    assert_all_buffers_are_there(&mut switch, &mut a, &mut b, "b");
    switch.stop();
}
