//! Frontends come, change their minds and go: both orders of set-up, reconnection, stop and
//! resume, memory that changes under traffic, and the client role.

use std::collections::BTreeSet;
use std::fs;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use fakeguest::frames::{Frame, mac};
use fakeguest::layout::Piece;
use fakeguest::memory::Region;
use fakeguest::protocol::{Acks, Connection};
use fakeguest::{Guest, Layout, Memory, Role, SetupOrder};

use super::support::lan::receive;
use super::support::proc::{Process, holdings, holds_again};
use super::support::switch::{Statistics, Switch};
use super::support::{over_both_formats, wait_for};

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long nothing must come for there to be nothing.
const SILENCE: Duration = Duration::from_millis(100);

over_both_formats! {
    both_orders_of_set_up_work_with_one_and_with_many_queues
    a_frontend_that_comes_back_goes_on_where_it_was
    a_new_guest_takes_over_the_socket
    stop_tells_the_position_and_resume_goes_on_there
    a_ring_that_is_disabled_is_not_touched
    fewer_queues_and_more_again_lose_nothing
    memory_comes_and_goes_under_traffic
    a_frame_in_memory_that_is_gone_is_refused
    frames_come_from_any_of_the_most_memory_slots
    a_memory_table_can_be_sent_again_under_traffic
    frontends_that_come_and_go_leave_nothing
    reset_makes_a_device_new
    a_call_descriptor_can_be_replaced_while_the_guest_waits
}

const ORDERS: [SetupOrder; 2] = [SetupOrder::Qemu, SetupOrder::CloudHypervisor];

/// A switch and the guests on two of its ports; guest `n` has the address `mac(n)`.
struct Bench {
    switch: Switch,
    a: Guest,
    b: Guest,
}

impl Bench {
    fn new(order: SetupOrder, format: u64) -> Bench {
        let switch = Switch::builder().port("a").port("b").start();
        let guest =
            |port: &str| Guest::builder(switch.socket(port)).with(format).order(order).attach();
        let (a, b) = (guest("a").expect("a guest"), guest("b").expect("a guest"));
        Bench { switch, a, b }
    }

    /// Traffic in both directions.
    fn exchange(&mut self, seed: u32) {
        transfer(&mut self.a, &mut self.b, &frames(1, 2, 30, seed));
        transfer(&mut self.b, &mut self.a, &frames(2, 1, 30, seed));
    }
}

/// `count` frames of growing length, all different.
fn frames(from: u8, to: u8, count: usize, seed: u32) -> Vec<Frame> {
    let one = |n: usize| Frame::pattern(mac(to), mac(from), 60 + 31 * n, seed << 16 | n as u32);
    (0..count).map(one).collect()
}

/// Sends `frames`; all arrive, in order, with their bytes, and are completed at the sender.
#[track_caller]
fn transfer(from: &mut Guest, to: &mut Guest, frames: &[Frame]) {
    for frame in frames {
        from.send(0, frame, &Layout::whole());
    }
    receive(to, frames);
    assert!(from.flush(0, PATIENCE), "the switch completes what was sent");
}

/// Stops a guest's rings, each of which has completed so many buffers.
#[track_caller]
fn assert_stops_at(guest: &mut Guest, completed: [u16; 2]) {
    let bases = guest.stop().expect("bases");
    assert_eq!([0, 1].map(|ring| guest.ring(ring).used_index()), completed);
    assert_eq!(bases, [0, 1].map(|ring| guest.ring(ring).base()));
}

/// Statistics once as many frames were delivered to or dropped at `port`.
fn settled(switch: &mut Switch, port: &str, frames: u64) -> Statistics {
    switch.statistics_when(|now| leaving(now, port) >= frames)
}

/// Frames that were to leave by `port`, delivered or not.
fn leaving(now: &Statistics, port: &str) -> u64 {
    let counters = ["egress_frames", "drop_link_down", "drop_rx_ring_full", "drop_rx_ring_busy"];
    counters.iter().map(|counter| now.port(port, counter)).sum()
}

fn both_orders_of_set_up_work_with_one_and_with_many_queues(format: u64) {
    for order in ORDERS {
        let mut switch = Switch::builder().port("a").port("b").start();
        for pairs in [1, 4] {
            let guest = |port: &str| {
                let guest = Guest::builder(switch.socket(port))
                    .with(format)
                    .order(order)
                    .queue_pairs(pairs);
                guest.ring_size(64).attach()
            };
            let mut a = guest("a").expect("a guest");
            let mut b = guest("b").expect("a guest");
            for pair in 0..pairs {
                // QEMU enables all queues here, so a flow may arrive on any of them.
                let (frame, back) = (&frames(1, 2, 1, 7)[0], &frames(2, 1, 1, 8)[0]);
                a.send(pair, frame, &Layout::header_apart());
                assert_eq!(b.recv_any(PATIENCE).expect("a frame").1.bytes, frame.bytes);
                b.send(pair, back, &Layout::whole());
                assert_eq!(a.recv_any(PATIENCE).expect("a frame").1.bytes, back.bytes);
            }
        }
        let now = switch.statistics_when(|now| now.port("a", "egress_frames") >= 5);
        assert_eq!(now.dropped(), 0, "{order:?}");
        switch.stop();
    }
}

fn a_frontend_that_comes_back_goes_on_where_it_was(format: u64) {
    for order in ORDERS {
        let mut bench = Bench::new(order, format);
        bench.exchange(1);
        let (rx, tx) = (bench.b.ring(0).used_index(), bench.b.ring(1).used_index());
        assert_eq!((rx, tx), (30, 30));

        // Five frames wait in the ring, unread, while the connection is lost.
        let waiting = frames(1, 2, 5, 2);
        waiting.iter().for_each(|frame| bench.a.send(0, frame, &Layout::whole()));
        settled(&mut bench.switch, "b", 35);
        bench.b.reconnect().expect("attached again");
        receive(&mut bench.b, &waiting);
        bench.exchange(3);
        assert_eq!(bench.b.ring(0).used_index(), rx + 5 + 30, "{order:?}: no buffer is skipped");
        assert_eq!(bench.b.ring(1).used_index(), tx + 30);

        // All receive buffers are there after one more reconnection: 256, and not one more.
        bench.b.reconnect().expect("attached again");
        let delivered = settled(&mut bench.switch, "b", 65).port("b", "egress_frames");
        let many: Vec<_> = (0..257).flat_map(|n| frames(1, 2, 1, 100 + n)).collect();
        many.iter().for_each(|frame| bench.a.send(0, frame, &Layout::whole()));
        let now = settled(&mut bench.switch, "b", 65 + 257);
        assert_eq!(now.port("b", "egress_frames"), delivered + 256, "{order:?}");
        assert_eq!(now.port("b", "drop_rx_ring_full"), 1, "{order:?}");
        receive(&mut bench.b, &many[..256]);
        bench.exchange(4);
        bench.switch.stop();
    }
}

fn a_new_guest_takes_over_the_socket(format: u64) {
    let Bench { mut switch, mut a, b } = Bench::new(SetupOrder::Qemu, format);
    drop(b);
    // Nobody is there: what is sent is dropped with that reason.
    wait_for("end of the connection", PATIENCE, || {
        a.send(0, &frames(1, 2, 1, 1)[0], &Layout::whole());
        assert!(a.flush(0, PATIENCE));
        let now = switch.statistics();
        (now.port("a", "drop_no_destination") + now.port("b", "drop_link_down") > 0).then_some(())
    });
    for (n, order) in ORDERS.into_iter().cycle().take(6).enumerate() {
        let guest =
            Guest::builder(switch.socket("b")).with(format).order(order).ring_size(64 >> (n % 3));
        let mut b = guest.attach().expect("a new guest");
        for frame in frames(1, 2, 10, n as u32) {
            transfer(&mut a, &mut b, &[frame]);
        }
        for frame in frames(2, 1, 10, n as u32) {
            transfer(&mut b, &mut a, &[frame]);
        }
    }
    switch.stop();
}

fn stop_tells_the_position_and_resume_goes_on_there(format: u64) {
    for order in ORDERS {
        let mut bench = Bench::new(order, format);
        bench.exchange(1);
        transfer(&mut bench.a, &mut bench.b, &frames(1, 2, 7, 2));
        assert_stops_at(&mut bench.a, [30, 37]);
        assert_stops_at(&mut bench.b, [37, 30]);

        // Nothing moves: what a sends stays, what is sent to b has no destination.
        let waiting = frames(1, 2, 3, 3);
        waiting.iter().for_each(|frame| bench.a.send(0, frame, &Layout::whole()));
        bench.a.ring(1).kick_now();
        assert!(!bench.a.flush(0, SILENCE), "a stopped ring is not touched");
        assert_eq!((bench.a.ring(1).used_index(), bench.b.ring(0).used_index()), (37, 37));
        assert_eq!(bench.switch.statistics().port("a", "ingress_frames"), 37);

        bench.b.resume().expect("rings start");
        bench.b.sync().expect("a round trip");
        bench.a.resume().expect("rings start");
        receive(&mut bench.b, &waiting);
        bench.exchange(4);
        assert_stops_at(&mut bench.a, [60, 70]);
        assert_stops_at(&mut bench.b, [70, 60]);
        assert_eq!(bench.switch.statistics().dropped(), 0);
        bench.switch.stop();
    }
}

fn a_ring_that_is_disabled_is_not_touched(format: u64) {
    let mut bench = Bench::new(SetupOrder::CloudHypervisor, format);
    bench.exchange(1);
    // Cloud Hypervisor's pause is nothing but this.
    bench.b.enable_rings(0).expect("disabled");
    let lost = frames(1, 2, 4, 2);
    lost.iter().for_each(|frame| bench.a.send(0, frame, &Layout::whole()));
    assert!(bench.a.flush(0, PATIENCE), "a is not held up");
    let kept = frames(2, 1, 4, 3);
    kept.iter().for_each(|frame| bench.b.send(0, frame, &Layout::whole()));
    bench.b.ring(1).kick_now();
    assert!(!bench.b.flush(0, SILENCE));
    assert_eq!((bench.b.ring(0).used_index(), bench.b.ring(1).used_index()), (30, 30));
    bench.b.enable_rings(1).expect("enabled");
    receive(&mut bench.a, &kept);
    bench.exchange(4);
    let now = bench.switch.statistics_when(|now| now.port("a", "ingress_frames") == 64);
    let down = now.port("a", "drop_no_destination") + now.port("b", "drop_link_down");
    assert_eq!((down, now.dropped()), (4, 4));
    bench.switch.stop();
}

fn fewer_queues_and_more_again_lose_nothing(format: u64) {
    let mut switch = Switch::builder().port("a").port("b").start();
    let guest =
        |port: &str| Guest::builder(switch.socket(port)).with(format).queue_pairs(4).ring_size(64);
    let mut a = guest("a").attach().expect("a guest");
    let mut b = guest("b").attach().expect("a guest");
    for (round, pairs) in [4, 2, 1, 3, 4].into_iter().enumerate() {
        b.enable_rings(pairs).and_then(|()| b.sync()).expect("as ethtool -L does");
        let mut used = BTreeSet::new();
        for frame in (0..64).map(|flow| udp(flow, round as u8)) {
            a.send(0, &frame, &Layout::whole());
            let (queue, got) = b.recv_any(PATIENCE).expect("a frame");
            assert_eq!(got.bytes, frame.bytes);
            used.insert(queue);
        }
        assert_eq!(used, (0..pairs).collect(), "64 flows are spread over {pairs} queues");
    }
    assert_eq!(switch.statistics().dropped(), 0);
    switch.stop();
}

/// A UDP frame of flow `flow`, from guest 1 to guest 2.
fn udp(flow: u8, payload: u8) -> Frame {
    let mut flow_of = fakeguest::frames::Flow::v4(1, 2);
    flow_of.ports.0 += u16::from(flow);
    flow_of.udp(&[payload; 100])
}

fn memory_comes_and_goes_under_traffic(format: u64) {
    let mut switch = Switch::builder().port("a").port("b").start();
    // The third region is only for this: rings and buffers fit into the first two.
    let regions = [(0, 24 << 20), (4 << 30, 24 << 20), (8 << 30, 1 << 20)];
    let guest = Guest::builder(switch.socket("a")).with(format).regions(&regions).ring_size(64);
    let mut a = guest.attach().expect("a guest");
    let mut b = Guest::builder(switch.socket("b")).with(format).attach().expect("a guest");
    let spare = a.memory().regions()[2];
    let memory = a.memory().clone();
    let (mut sent, mut got) = (0, 0);
    for round in 0..40 {
        let burst = frames(2, 1, 40, round);
        sent += b.send_all(0, &burst, &Layout::whole()) as u64;
        // While the worker is at it. Twice each: QEMU repeats both for each queue pair.
        for _ in 0..2 {
            a.connection().rem_mem_reg(&spare).expect("removed");
        }
        for _ in 0..2 {
            a.connection().add_mem_reg(&spare, memory.file()).expect("added");
        }
        assert!(b.flush(0, PATIENCE));
        // Drops are allowed while the rings are locked; damage, disorder and loss are not.
        let mut expected = burst.iter();
        let total = settled(&mut switch, "a", sent).port("a", "egress_frames");
        while got < total {
            let frame = a.recv(0, PATIENCE).expect("a delivered frame");
            assert!(expected.any(|sent| sent.bytes == frame.bytes), "damage or disorder");
            got += 1;
        }
    }
    let now = switch.statistics();
    assert_eq!(leaving(&now, "a"), sent, "each frame is delivered or counted: {now:?}");
    assert_eq!(now.dropped(), sent - got);
    switch.stop();
}

fn a_frame_in_memory_that_is_gone_is_refused(format: u64) {
    let mut switch = Switch::builder().port("a").port("b").start();
    let regions = [(0, 24 << 20), (4 << 30, 24 << 20), (8 << 30, 1 << 20)];
    let guest = Guest::builder(switch.socket("a")).with(format).regions(&regions).ring_size(64);
    let mut a = guest.attach().expect("a guest");
    let mut b = Guest::builder(switch.socket("b")).with(format).attach().expect("a guest");
    let memory = a.memory().clone();
    let spare = memory.regions()[2];
    let frame = frames(1, 2, 1, 1).remove(0);
    for round in 1..=3 {
        assert!(a.queue(0).tx.post_at(spare.guest_addr + 64, &frame, &Layout::whole()));
        receive(&mut b, std::slice::from_ref(&frame));
        a.connection().rem_mem_reg(&spare).expect("removed");
        assert!(a.queue(0).tx.post_at(spare.guest_addr + 64, &frame, &Layout::whole()));
        assert!(a.flush(0, PATIENCE), "it is completed all the same");
        let now = switch.statistics_when(|now| now.port("a", "drop_bad_chain") == round);
        assert_eq!((now.dropped(), now.port("b", "egress_frames")), (round, 2 * round - 1));
        // The ring goes on with memory that is still there.
        transfer(&mut a, &mut b, std::slice::from_ref(&frame));
        a.connection().add_mem_reg(&spare, memory.file()).expect("added");
    }
    switch.stop();
}

/// A guest with as many DIMMs as there are slots sends from each of them.
fn frames_come_from_any_of_the_most_memory_slots(format: u64) {
    const SLOTS: u64 = 509;
    let mut switch = Switch::builder().port("a").port("b").start();
    // Rings and buffers fit into the first region. None is next to another.
    let mut regions = vec![(0, 48 << 20)];
    regions.extend((1..SLOTS).map(|slot| (4 << 30 | slot << 20, 64 << 10)));
    let guest = Guest::builder(switch.socket("a")).with(format).regions(&regions);
    let mut a = guest.attach().expect("a guest");
    assert_eq!(a.connection().get_max_mem_slots().expect("a number"), SLOTS);
    let mut b = Guest::builder(switch.socket("b")).with(format).attach().expect("a guest");
    for (slot, (at, size)) in regions.iter().enumerate().skip(1) {
        // Up to the last byte of its memory.
        let frame = frames(1, 2, 2, slot as u32).remove(1);
        let at = at + size - 12 - frame.bytes.len() as u64;
        assert!(a.queue(0).tx.post_at(at, &frame, &Layout::whole()));
        receive(&mut b, &[frame]);
        assert!(a.flush(0, PATIENCE));
    }
    assert_eq!(switch.statistics().dropped(), 0);
    switch.stop();
}

fn a_memory_table_can_be_sent_again_under_traffic(format: u64) {
    let mut bench = Bench::new(SetupOrder::CloudHypervisor, format);
    let memory = bench.b.memory().clone();
    let (mut sent, mut got) = (0, 0);
    for round in 0..40 {
        let burst = frames(1, 2, 40, round);
        sent += bench.a.send_all(0, &burst, &Layout::whole()) as u64;
        bench.b.connection().set_mem_table(memory.regions(), memory.file()).expect("set");
        assert!(bench.a.flush(0, PATIENCE));
        let total = settled(&mut bench.switch, "b", sent).port("b", "egress_frames");
        let mut expected = burst.iter();
        while got < total {
            let frame = bench.b.recv(0, PATIENCE).expect("a delivered frame");
            assert!(expected.any(|sent| sent.bytes == frame.bytes), "damage or disorder");
            got += 1;
        }
    }
    let before = bench.switch.statistics();
    assert_eq!(before.dropped(), sent - got);

    // A table without the rings' memory stops them, the whole one starts them again.
    let bases = [bench.b.ring(0).used_index(), bench.b.ring(1).used_index()];
    let elsewhere = Memory::new(&[(1 << 40, 1 << 20)]).expect("memory");
    // The message is followed, whatever becomes of the rings.
    let _ = bench.b.connection().set_mem_table(elsewhere.regions(), elsewhere.file());
    bench.a.send(0, &frames(1, 2, 1, 50)[0], &Layout::whole());
    assert!(bench.a.flush(0, PATIENCE));
    let now = bench.switch.statistics_when(|now| now.dropped() == before.dropped() + 1);
    assert_eq!(now.port("b", "egress_frames"), got);
    assert_eq!([bench.b.ring(0).used_index(), bench.b.ring(1).used_index()], bases);
    bench.b.connection().set_mem_table(memory.regions(), memory.file()).expect("set");
    bench.exchange(51);
    bench.switch.stop();
}

#[test]
fn in_the_client_role_it_connects_when_somebody_listens() {
    let dir = tempfile::tempdir().expect("a directory");
    let (a_socket, b_socket) = (dir.path().join("a.sock"), dir.path().join("b.sock"));
    let config = dir.path().join("rs.toml");
    // The frontend is root's, and so is its socket.
    let toml = format!(
        "[sandbox]\nuser = \"root\"\n\
         [[port]]\nname = \"a\"\ntype = \"vhost-user\"\nsocket = \"{}\"\nrole = \"client\"\n\
         [[port]]\nname = \"b\"\ntype = \"vhost-user\"\nsocket = \"{}\"\n",
        a_socket.display(),
        b_socket.display()
    );
    fs::write(&config, toml).expect("a file");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ringswitch"));
    command.args(["run", "--config"]).arg(&config);
    let mut switch = Process::start("ringswitch", command, &dir.path().join("log"));
    switch.output_with("trying again", 0, PATIENCE);
    switch.output_with("ready", 0, PATIENCE);
    assert!(!a_socket.exists(), "the frontend makes the socket");
    let mut b = Guest::builder(&b_socket).attach().expect("a guest");
    let alone = holdings(switch.pid());
    for (n, order) in ORDERS.into_iter().cycle().take(4).enumerate() {
        let seed = 10 * n as u32;
        let guest = Guest::builder(&a_socket).role(Role::Listen).order(order);
        let mut a = guest.attach().expect("the switch connects");
        for frame in frames(2, 1, 10, seed) {
            transfer(&mut b, &mut a, &[frame]);
        }
        a.reconnect().expect("the switch connects again");
        for frame in frames(1, 2, 10, seed) {
            transfer(&mut a, &mut b, &[frame]);
        }
        // It leaves; its socket goes with it.
        drop(a);
        holds_again(switch.pid(), alone);
    }
    switch.signal("TERM");
    assert_eq!(switch.wait(PATIENCE).code(), Some(0));
    assert!(!b_socket.exists() && !a_socket.exists());
}

#[test]
fn a_second_frontend_is_turned_away() {
    let mut bench = Bench::new(SetupOrder::Qemu, 0);
    bench.exchange(1);
    let path = bench.switch.socket("b");
    for seed in 2..5 {
        let second = UnixStream::connect(&path).expect("the listener stays open");
        let second = Connection::new(second, Acks::Some).expect("a connection");
        // It may be closed before this is sent.
        let _ = second.set_owner();
        assert!(second.closed_within(PATIENCE), "closed, not left waiting");
        bench.exchange(seed);
    }
    bench.switch.process().output_with("port b: a second frontend", 0, PATIENCE);
    // The next one is welcome when the first has left.
    let Bench { mut switch, mut a, b } = bench;
    drop(b);
    let mut b = wait_for("place", PATIENCE, || Guest::builder(&path).attach().ok());
    transfer(&mut b, &mut a, &frames(2, 1, 5, 9));
    assert_eq!(switch.statistics().dropped(), 0);
    switch.stop();
}

fn frontends_that_come_and_go_leave_nothing(format: u64) {
    let mut switch = Switch::builder().port("a").port("b").start();
    let (pid, path) = (switch.process().pid(), switch.socket("b"));
    switch.process().output_with("ready", 0, PATIENCE);
    let mut a = Guest::builder(switch.socket("a")).with(format).attach().expect("a guest");
    let alone = holdings(pid);
    for round in 0..30 {
        // An orderly one, one that dies with its rings running, one that says nothing.
        let mut b = Guest::builder(&path).with(format).ring_size(64).attach().expect("a guest");
        transfer(&mut b, &mut a, &frames(2, 1, 3, round));
        if round % 3 == 0 {
            b.stop().expect("bases");
        }
        drop(b);
        let silent = UnixStream::connect(&path).expect("a listener");
        silent.shutdown(Shutdown::Both).expect("a connection");
    }
    holds_again(pid, alone);
    assert_eq!(switch.statistics().port("a", "egress_frames"), 90);
    switch.stop();
}

fn reset_makes_a_device_new(format: u64) {
    let mut bench = Bench::new(SetupOrder::Qemu, format);
    bench.exchange(1);
    let connection = bench.b.connection();
    connection.reset_device().and_then(|()| connection.get_features()).expect("reset");
    let kept = frames(2, 1, 2, 2);
    kept.iter().for_each(|frame| bench.b.send(0, frame, &Layout::whole()));
    bench.b.ring(1).kick_now();
    assert!(!bench.b.flush(0, SILENCE), "no ring runs");
    // Its memory stays (QEMU sends only changes to it), features and rings come anew.
    let features = bench.b.features();
    bench.b.connection().set_features(features).expect("features");
    bench.b.resume().expect("rings");
    bench.b.enable_rings(1).and_then(|()| bench.b.sync()).expect("enabled");
    receive(&mut bench.a, &kept);
    bench.exchange(3);
    bench.switch.stop();
}

fn a_call_descriptor_can_be_replaced_while_the_guest_waits(format: u64) {
    let mut bench = Bench::new(SetupOrder::Qemu, format);
    bench.exchange(1);
    for seed in 2..6 {
        // As QEMU does when a guest masks its vectors: none, then the real one again.
        let call = bench.b.ring(0).signals().call.as_raw_fd();
        bench.b.ring(0).arm();
        bench.b.connection().set_vring_call(0, None).expect("sent");
        bench.b.sync().expect("a round trip");
        let missed = frames(1, 2, 1, seed);
        bench.a.send(0, &missed[0], &Layout::whole());
        assert!(bench.a.flush(0, PATIENCE));
        bench.b.connection().set_vring_call(0, Some(call)).expect("sent");
        // Asleep until called: the frame came while nobody could be.
        receive(&mut bench.b, &missed);
        bench.exchange(seed);
    }
    bench.switch.stop();
}

#[test]
fn a_region_may_begin_inside_of_a_page() {
    // Firecracker and others cut their memory at any offset of a file.
    let mut bench = Bench::new(SetupOrder::Qemu, 0);
    let file = Memory::new(&[(0, 1 << 20)]).expect("memory");
    let region = Region {
        guest_addr: 16 << 30,
        size: 0x8000,
        user_addr: 0x7000_0000_0000,
        file_offset: 0x1230,
    };
    bench.b.connection().add_mem_reg(&region, file.file()).expect("added");
    let frame = Frame::pattern(mac(1), mac(2), 0x1800, 5);
    file.write(0x1230 + 0x100, &frame.header);
    file.write(0x1230 + 0x100 + 12, &frame.bytes);
    let piece = Piece { addr: region.guest_addr + 0x100, len: 12 + 0x1800 };
    assert!(bench.b.queue(0).tx.post_pieces(&[piece], false));
    receive(&mut bench.a, &[frame]);
    bench.exchange(1);
    bench.switch.stop();
}
