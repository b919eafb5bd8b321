//! Another process takes the switch's place, and nobody notices: no frame lost, repeated or out of
//! order, no connection closed; and if it can't, the old one goes on.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fakeguest::features::{RING_PACKED, protocol};
use fakeguest::frames::{Frame, mac};
use fakeguest::host::{PacketSocket, within};
use fakeguest::protocol::{NEED_REPLY, VERSION, code};
use fakeguest::{Guest, Layout, Role};

use super::support::lan::receive;
use super::support::machines::{Lan, Station, machines};
use super::support::netns::Netns;
use super::support::switch::{Statistics, Switch};
use super::support::{over_both_formats, wait_for};

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The EtherType of [`Frame::pattern`].
const PATTERN: [u8; 2] = [0x88, 0xb5];

over_both_formats! {
    streams_go_on_through_upgrades
    a_process_that_cannot_go_on_with_a_port_takes_nothing
    the_dirty_log_goes_on
}

/// Guests on ports `a` and `b`, `mac(1)` and `mac(2)`, of a switch that has more ports.
struct Bench {
    switch: Switch,
    a: Guest,
    b: Guest,
}

impl Bench {
    fn new(switch: Switch, format: u64) -> Bench {
        let guest =
            |port: &str| Guest::builder(switch.socket(port)).queue_pairs(2).with(format).attach();
        let (a, b) = (guest("a").expect("a guest"), guest("b").expect("a guest"));
        Bench { switch, a, b }
    }

    /// Runs `event` while frames go both ways without a pause. All of them arrive, in order.
    /// Returns how many there were, and what came of the event.
    fn through<T>(&mut self, event: impl FnOnce(&mut Switch) -> T) -> (u64, T) {
        let Self { switch, a, b } = self;
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let streams = scope.spawn(|| stream(a, b, &done));
            let result = event(switch);
            done.store(true, Ordering::Release);
            (streams.join().expect("streams without a fault"), result)
        })
    }
}

fn three_ports() -> Switch {
    Switch::builder().port("a").port("b").port("c").upgradable().start()
}

fn pattern(to: u8, from: u8, number: u64) -> Frame {
    Frame::pattern(mac(to), mac(from), 600, number as u32)
}

/// Sends bursts both ways, and receives them, until `done`, and once more.
fn stream(a: &mut Guest, b: &mut Guest, done: &AtomicBool) -> u64 {
    let (mut sent, mut last) = (0, false);
    while !last {
        last = done.load(Ordering::Acquire);
        let frames = |to, from| (sent..sent + 32).map(|n| pattern(to, from, n)).collect();
        let (there, back): (Vec<_>, Vec<_>) = (frames(2, 1), frames(1, 2));
        assert_eq!(a.send_all(0, &there, &Layout::whole()), there.len());
        assert_eq!(b.send_all(0, &back, &Layout::whole()), back.len());
        receive(b, &there);
        receive(a, &back);
        assert!(a.flush(0, PATIENCE) && b.flush(0, PATIENCE), "what was sent is completed");
        sent += 32;
    }
    2 * sent
}

/// Sends a frame from one guest to another, who receives it and nothing else, on whichever queue.
#[track_caller]
fn send(from: (&mut Guest, u8), to: (&mut Guest, u8), number: u64) {
    let frame = pattern(to.1, from.1, number);
    from.0.send(0, &frame, &Layout::whole());
    let (_, got) = to.0.recv_any(PATIENCE).expect("the frame");
    assert!(got.bytes == frame.bytes);
    assert!(from.0.flush(0, PATIENCE));
}

/// The statistics that a process writes at its end.
fn last_statistics(log: &str) -> Statistics {
    let from = log.rfind("stats port=a").expect("statistics");
    Statistics::parse(&log[from..])
}

fn streams_go_on_through_upgrades(format: u64) {
    let mut bench = Bench::new(three_ports(), format);
    let (sent, logs) = bench.through(|switch| {
        let upgrade = |_| {
            std::thread::sleep(Duration::from_millis(50));
            switch.upgrade()
        };
        (0..8).map(upgrade).collect::<Vec<_>>()
    });
    assert!(bench.a.sync().is_ok() && bench.b.sync().is_ok(), "the connections are the same");
    let last = bench.switch.statistics();
    let mut delivered = 0;
    for (generation, now) in logs.iter().map(|log| last_statistics(log)).chain([last]).enumerate() {
        now.assert_balanced();
        assert_eq!(now.dropped(), 0);
        assert!(now.port("a", "ingress_frames") > 0, "each process had its share: {now:?}");
        // The addresses were handed over.
        assert!(generation == 0 || now.port("a", "flooded_frames") == 0, "{now:?}");
        delivered += ["a", "b"].map(|port| now.port(port, "egress_frames")).iter().sum::<u64>();
    }
    assert_eq!(delivered, sent);
    bench.switch.stop();
}

fn a_process_that_cannot_go_on_with_a_port_takes_nothing(format: u64) {
    let mut bench = Bench::new(three_ports(), format);
    let file = tempfile::NamedTempFile::new().expect("a file");
    let socket = |port: &str| bench.switch.socket(port).display().to_string();
    let table = |name: &str, more: &str| {
        let socket = socket(name);
        format!(
            "[[port]]\nname = \"{name}\"\ntype = \"vhost-user\"\nsocket = \"{socket}\"\n{more}\n"
        )
    };
    // The guests have two pairs: what they have negotiated can't be kept.
    let settings = format!("[upgrade]\nsocket = \"{}\"\n", bench.switch.upgrade_socket().display())
        + &table("a", "")
        + &table("b", "queue-pairs = 1");
    std::fs::write(file.path(), settings).expect("a configuration");
    let (_, ()) = bench.through(|switch| {
        for _ in 0..3 {
            let mut new = Command::new(env!("CARGO_BIN_EXE_ringswitch"));
            let output = new.args(["upgrade", "--config"]).arg(file.path()).output().expect("run");
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{text}");
            for part in ["port b can't be taken over", "the switch that runs goes on"] {
                assert!(text.contains(part), "{text}");
            }
            switch.process().output_with("not handed over, everything goes on", 0, PATIENCE);
        }
    });
    // It can still be upgraded.
    let (_, _) = bench.through(Switch::upgrade);
    let now = bench.switch.statistics();
    assert_eq!(now.dropped(), 0);
    bench.switch.stop();
}

fn the_dirty_log_goes_on(format: u64) {
    let mut bench = Bench::new(three_ports(), format);
    let Bench { switch, a, b } = &mut bench;
    send((a, 1), (b, 2), 1);
    let log = b.start_log().expect("a log");
    switch.upgrade();
    log.take();
    send((a, 1), (b, 2), 2);
    assert!(!log.take().is_empty(), "what the new process writes is logged");
    b.stop_log().expect("no log");
    switch.upgrade();
    send((a, 1), (b, 2), 3);
    assert!(log.take().is_empty(), "and not when that has ended");
    bench.switch.stop();
}

#[test]
fn real_guests_keep_their_connections() {
    const A: Station = Station::Guest(0);
    const B: Station = Station::Guest(1);
    const MIB: u64 = 1 << 20;
    let _alone = machines();
    let mut lan = Lan::new(&[&[], &["--device", "packed=on"]]);
    let server = lan.stream_server();
    lan.start_stream(A, Station::Host, 1);
    // One file after the other, from one guest to the other; what arrives is summed up.
    lan.serve_files(A);
    let digest = lan.make_file(A, "file", 16);
    let fetch = format!("wget -q -O - http://{}/file | sha256sum", A.ip4());
    let fetches = format!("while [ ! -e /run/stop ]; do {fetch}; done");
    lan.run(B, &format!("({fetches}; touch /run/stopped) >/run/sums 2>&1 &"));
    for _ in 0..5 {
        lan.wait_received(B, 8 * MIB);
        lan.wait_received(Station::Host, 8 * MIB);
        lan.switch.upgrade();
    }
    lan.wait_received(B, 8 * MIB);
    lan.run(B, "touch /run/stop; while [ ! -e /run/stopped ]; do sleep 0.1; done");
    let sums = lan.run(B, "cat /run/sums");
    assert!(sums.lines().count() > 2, "{sums}");
    assert!(sums.lines().all(|line| line.split_whitespace().next() == Some(&digest)), "{sums}");
    lan.end_stream(A);
    let now = lan.balanced_statistics();
    assert_eq!(now.dropped(), 0, "{now:?}");
    drop(server);
    lan.stop();
}

#[test]
fn the_command_says_who_took_over() {
    let mut switch = three_ports();
    let old = switch.process().pid();
    let output = switch.command(&["upgrade"]).output().expect("run");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let (new, of) = text
        .trim()
        .strip_prefix("process ")
        .expect("a process")
        .split_once(" has taken over from ")
        .expect("two processes");
    assert_eq!(of, old.to_string());
    assert!(switch.process().wait(PATIENCE).success());
    // It writes to the log of the old one, and isn't our child.
    let log = || std::fs::read_to_string(switch.log()).expect("a log");
    assert!(log().contains(&format!("process {new} goes on")), "{}", log());
    // It may say so after the old one has ended.
    wait_for("the second one", PATIENCE, || {
        (log().matches("ready: 3 ports").count() == 2).then_some(())
    });
    let guest = Guest::builder(switch.socket("a")).attach().expect("the new one listens");
    let ended = Command::new("sh").args(["-c", &format!("kill -TERM {new}")]).status();
    assert!(ended.expect("a shell").success());
    for socket in [switch.socket("a"), switch.upgrade_socket()] {
        wait_for("end of the sockets", PATIENCE, || (!socket.exists()).then_some(()));
    }
    drop(guest);
}

#[test]
fn systemd_hears_who_the_switch_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("notify");
    let systemd = UnixDatagram::bind(&path).expect("a socket");
    // As systemd's own.
    fs::set_permissions(&path, Permissions::from_mode(0o777)).expect("our socket");
    systemd.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    let heard = || {
        let mut text = [0; 256];
        let len = systemd.recv(&mut text).expect("a word");
        String::from_utf8_lossy(&text[..len]).into_owned()
    };
    let mut switch = Switch::builder().port("a").upgradable().env("NOTIFY_SOCKET", &path).start();
    for _ in 0..2 {
        let pid = switch.process().pid();
        assert_eq!(heard(), format!("READY=1\nMAINPID={pid}\n"));
        switch.upgrade();
    }
    switch.stop();
}

#[test]
fn without_a_switch_or_a_socket_the_command_fails_and_says_so() {
    let mut switch = Switch::builder().port("a").start();
    let socket = switch.upgrade_socket().display().to_string();
    let cases: [(&[&str], i32, &str); 2] =
        [(&[], 2, "no upgrade socket"), (&["--upgrade-socket", &socket], 1, "no switch answers")];
    for (more, code, says) in cases {
        let output = switch.command(&["upgrade"]).args(more).output().expect("run");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(says), "{text}");
    }
    assert!(switch.process().ended().is_none());
    switch.stop();
}

#[test]
fn strangers_are_refused() {
    let mut switch = three_ports();
    let mode = std::fs::metadata(switch.upgrade_socket()).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Even if the socket's file lets them in.
    let open = Permissions::from_mode(0o777);
    std::fs::set_permissions(switch.upgrade_socket(), open.clone()).expect("a mode");
    let dir = switch.upgrade_socket().parent().expect("a directory").to_owned();
    std::fs::set_permissions(&dir, open).expect("a mode");
    let socket = format!("UNIX-CONNECT:{}", switch.upgrade_socket().display());
    let mut stranger = Command::new("setpriv");
    stranger.args(["--reuid", "65533", "--regid", "65533", "--clear-groups", "--"]);
    let output = stranger.args(["socat", "-t", "60", "-u", &socket, "-"]).output().expect("socat");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.starts_with("{\"message\":\"refused\""), "{said} {output:?}");
    assert_eq!(said.lines().count(), 1, "{said}");
    switch.upgrade();
    switch.stop();
}

#[test]
fn ports_may_come_and_go_with_it() {
    let mut switch = Switch::builder().port("a").port("b").upgradable().start();
    let guest = |switch: &Switch, port: &str| {
        Guest::builder(switch.socket(port)).attach().expect("a guest")
    };
    let (mut a, b) = (guest(&switch, "a"), guest(&switch, "b"));
    let (from, to) = (switch.socket("b"), switch.socket("new"));
    switch.rename_port("b", "new");
    switch.upgrade();
    assert!(b.connection().closed_within(PATIENCE), "its port has ended");
    assert!(!from.exists() && to.exists());
    let mut new = guest(&switch, "new");
    send((&mut a, 1), (&mut new, 2), 1);
    send((&mut new, 2), (&mut a, 1), 2);
    switch.stop();
}

/// Cloud Hypervisor's pause is nothing but disabled rings.
#[test]
fn a_guest_that_is_paused_stays_so_and_goes_on() {
    let mut bench = Bench::new(three_ports(), 0);
    let Bench { switch, a, b } = &mut bench;
    send((a, 1), (b, 2), 1);
    b.enable_rings(0).and_then(|()| b.sync()).expect("a pause");
    let used = [b.ring(0).used_index(), b.ring(1).used_index()];
    let waiting = pattern(1, 2, 2);
    b.send(0, &waiting, &Layout::whole());
    switch.upgrade();
    b.sync().expect("the connection is the same");
    assert_eq!([b.ring(0).used_index(), b.ring(1).used_index()], used, "untouched");
    b.enable_rings(2).expect("it goes on");
    receive(a, &[waiting]);
    send((a, 1), (b, 2), 3);
    bench.switch.stop();
}

#[test]
fn a_frontend_that_takes_memory_away_holds_nobody_else_up() {
    let mut bench = Bench::new(three_ports(), 0);
    let regions = [(0, 48 << 20), (4 << 30, 1 << 20)];
    let hostile = |switch: &Switch| Guest::builder(switch.socket("c")).regions(&regions).attach();
    let guest = hostile(&bench.switch).expect("a guest");
    // Nobody has touched the end of it: there was no SIGBUS.
    guest.memory().file().set_len((49 << 20) - 4096).expect("a shorter file");
    let (_, log) = bench.through(|switch| switch.upgrade());
    assert!(guest.connection().closed_within(PATIENCE));
    assert!(bench.switch.process().output_with("became shorter", 0, PATIENCE).contains("port c"));
    assert_eq!(last_statistics(&log).dropped(), 0);
    drop(guest);
    // Also with a dirty log.
    let mut guest = hostile(&bench.switch).expect("the port has another guest");
    let dirty = guest.start_log().expect("a log");
    dirty.file().set_len(1).expect("a shorter file");
    bench.through(|switch| switch.upgrade());
    assert!(guest.connection().closed_within(PATIENCE));
    bench.switch.stop();
}

/// A table has one to 32 regions. One by one there can be more, and fewer; and whether the frontend
/// still speaks so it may decide anew.
#[test]
fn memory_that_no_table_can_tell_goes_on() {
    let mut bench = Bench::new(three_ports(), 0);
    let regions: Vec<_> = (0..40).map(|at| (at << 32, 48 << 20)).collect();
    let Bench { switch, a, .. } = &mut bench;
    let mut guest = Guest::builder(switch.socket("c")).regions(&regions).attach().expect("a guest");
    let by_table = protocol::ALL & !protocol::CONFIGURE_MEM_SLOTS;
    for features in [by_table, 0] {
        guest.change_protocol_features(features).expect("negotiated anew");
        switch.upgrade();
        send((a, 1), (&mut guest, 3), 1);
        send((&mut guest, 3), (a, 1), 2);
    }
    guest.change_protocol_features(protocol::ALL).expect("negotiated anew");
    for region in guest.memory().regions() {
        guest.connection().rem_mem_reg(region).expect("taken away");
    }
    guest.change_protocol_features(by_table).expect("negotiated anew");
    bench.through(|switch| switch.upgrade());
    guest.sync().expect("the connection is the same");
    bench.switch.stop();
}

#[test]
fn a_message_that_has_come_in_part_is_finished_by_the_heir() {
    let mut bench = Bench::new(three_ports(), 0);
    let Bench { switch, a, b } = &mut bench;
    let whole = [
        [code::GET_FEATURES, VERSION, 0].map(u32::to_ne_bytes).concat(),
        [code::SET_VRING_ENABLE, VERSION | NEED_REPLY, 8, 2, 1].map(u32::to_ne_bytes).concat(),
    ]
    .concat();
    for cut in [1, 11, 12, 13, 24, 31] {
        a.connection().bytes(&whole[..cut], &[]).expect("sent");
        if cut >= 12 {
            // The old one has begun with the second message then.
            assert_eq!(a.connection().reply(code::GET_FEATURES).expect("features").len(), 8);
        }
        switch.upgrade();
        a.connection().bytes(&whole[cut..], &[]).expect("sent");
        if cut < 12 {
            assert_eq!(a.connection().reply(code::GET_FEATURES).expect("features").len(), 8);
        }
        assert_eq!(a.connection().reply(code::SET_VRING_ENABLE).expect("an answer"), [0; 8]);
        send((a, 1), (b, 2), cut as u64);
    }
    bench.switch.stop();
}

#[test]
fn a_frontend_that_reads_nothing_does_not_hold_it_up() {
    let mut bench = Bench::new(three_ports(), 0);
    let deaf = Guest::builder(bench.switch.socket("c")).attach().expect("a guest");
    deaf.connection().stream().set_nonblocking(true).expect("a socket");
    let question = [code::GET_FEATURES, VERSION, 0].map(u32::to_ne_bytes).concat();
    // Until the thread of its port waits for room for its answers, and the messages stay.
    let mut refused = 0;
    while refused < 20 {
        let taken = deaf.connection().bytes(&question.repeat(100), &[]).is_ok();
        refused = if taken { 0 } else { refused + 1 };
        if !taken {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let (_, _) = bench.through(Switch::upgrade);
    let log = std::fs::read_to_string(bench.switch.log()).expect("a log");
    assert!(log.contains("port c: disconnected: its frontend doesn't read our answers"), "{log}");
    let mut next = Guest::builder(bench.switch.socket("c")).attach().expect("a guest");
    send((&mut next, 3), (&mut bench.a, 1), 1);
    bench.switch.stop();
}

#[test]
fn ports_that_connect_and_taps_go_on() {
    let netns = Netns::new();
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("vmm.sock");
    let settings = format!(
        "[workers]\ncount = 2\n[upgrade]\nsocket = \"{}\"\n[sandbox]\nuser = \"root\"\n\
         [[port]]\nname = \"t\"\ntype = \"tap\"\ndevice = \"t\"\n\
         [[port]]\nname = \"client\"\ntype = \"vhost-user\"\nsocket = \"{}\"\nrole = \"client\"\n",
        dir.path().join("upgrade").display(),
        socket.display()
    );
    let mut switch = Switch::builder().netns(&netns).settings(&settings).start();
    let mut guest =
        Guest::builder(&socket).role(Role::Listen).with(RING_PACKED).attach().expect("a guest");
    let tap = within(netns.name(), || PacketSocket::open("t"))
        .and_then(|made| made)
        .expect("a packet socket");
    let link = netns.run("ip -o link show t");
    for round in 0..3 {
        let (out, back) = (pattern(9, 1, round), pattern(1, 9, round));
        guest.send(0, &out, &Layout::whole());
        assert!(tap.recv(PATTERN, PATIENCE).expect("a frame at the host") == out.bytes);
        tap.send(&back.bytes).expect("a frame sent");
        let arrived = std::iter::from_fn(|| guest.recv(0, PATIENCE));
        // The namespace's kernel says something of its own now and then.
        assert!(arrived.map(|got| got.bytes).any(|bytes| bytes == back.bytes));
        switch.upgrade();
        assert_eq!(netns.run("ip -o link show t"), link, "the same device, up all the time");
    }
    switch.stop();
}
