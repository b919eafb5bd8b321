//! Changes of a switch that runs: they do what they say, wholly or not at all, and disturb nobody else.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fakeguest::frames::{Frame, mac};
use fakeguest::{Guest, Layout};
use serde_json::{Value, json};

use super::support::netns::Netns;
use super::support::switch::{Switch, USER};
use super::support::{Raise, wait_for};

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// A time in which something that is not to come would have come.
const MOMENT: Duration = Duration::from_millis(50);

/// A switch from a file, whose ports are `a` and `b` and more of the file.
struct Bench {
    switch: Switch,
}

impl Bench {
    fn new() -> Self {
        Self::with("")
    }

    fn with(settings: &str) -> Self {
        let builder = Switch::builder().settings(settings).port("a").port("b");
        Self { switch: builder.api().upgradable().start() }
    }

    fn guest(&self, port: &str) -> Guest {
        Guest::builder(self.socket(port)).attach().expect("a guest")
    }

    fn socket(&self, port: &str) -> PathBuf {
        self.switch.socket(port)
    }

    fn file(&self) -> PathBuf {
        self.socket("a").with_file_name("ringswitch.toml")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.switch.client(arguments).output().expect("run")
    }

    /// What is printed by a command that does what it should.
    fn says(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.says(&[arguments, &["--json"]].concat())).expect("JSON")
    }

    /// What is said of a command that fails, and that it changed nothing.
    #[track_caller]
    fn refuses(&self, arguments: &[&str], parts: &[&str]) {
        let before = self.json(&["show", "config"]);
        let output = self.run(arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        for part in parts {
            assert!(text.contains(part), "{arguments:?}: {text} lacks {part:?}");
        }
        assert_eq!(self.json(&["show", "config"]), before, "{arguments:?} changed something");
    }

    /// Adds a guest's port.
    fn add(&self, port: &str, more: &[&str]) {
        let socket = format!("socket={}", self.socket(port).display());
        let arguments = [&["port", "add", port, &socket], more].concat();
        assert_eq!(self.says(&arguments), format!("added {port}"));
    }
}

/// What a trace says of a packet from the guest with `mac(1)` at `a` to `mac(2)`.
fn traced(bench: &Bench) -> Value {
    let ends = ["--from", "02:00:00:00:00:01", "--to", "02:00:00:00:00:02"];
    bench.json(&[&["trace", "a", "udp", "10.0.0.1:1", "10.0.0.2:2"][..], &ends].concat())
}

/// A frame of 100 bytes.
fn frame(to: [u8; 6], from: [u8; 6], seed: u32) -> Frame {
    Frame::pattern(to, from, 100, seed)
}

/// `from` sends `frame`, and `to` gets it.
#[track_caller]
fn arrives(from: &mut Guest, to: &mut Guest, frame: &Frame) {
    from.send(0, frame, &Layout::whole());
    assert_eq!(to.recv(0, PATIENCE).expect("a frame").bytes, frame.bytes);
}

/// Whether the switch has closed the connection.
fn has_gone(guest: &Guest) -> bool {
    guest.connection().closed_within(PATIENCE)
}

/// Takes all that came.
fn drain(guest: &mut Guest) {
    while guest.recv(0, Duration::ZERO).is_some() {}
}

/// The status of the answer, and its body.
fn curl(socket: &Path, method: &str, path: &str, content_type: &str, body: &str) -> (u16, Value) {
    let url = format!("http://localhost{path}");
    let header = format!("content-type: {content_type}");
    let mut command = Command::new("curl");
    command.args(["-s", "-w", "\n%{http_code}", "-X", method, "-H", &header, "--unix-socket"]);
    command.arg(socket).args([&url, "--data-binary", "@-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("curl");
    child.stdin.take().expect("its input").write_all(body.as_bytes()).expect("a body");
    let output = child.wait_with_output().expect("its output");
    let text = String::from_utf8(output.stdout).expect("text");
    let (body, status) = text.rsplit_once('\n').expect("a status");
    (status.parse().expect("a number"), serde_json::from_str(body).unwrap_or(Value::Null))
}

#[test]
fn ports_come_and_go() {
    let bench = Bench::new();
    let mut a = bench.guest("a");
    bench.add("c", &["queue-pairs=2"]);
    let mut c = bench.guest("c");
    arrives(&mut c, &mut a, &frame([0xff; 6], mac(3), 1));
    arrives(&mut a, &mut c, &frame(mac(3), mac(1), 2));
    assert_eq!(bench.says(&["port", "set", "c", "mac-limit=7"]), "changed c");
    arrives(&mut a, &mut c, &frame(mac(3), mac(1), 3));
    assert_eq!(bench.json(&["show", "config"])["port"][2]["mac-limit"], 7);

    // Anew, at the same place: the guest comes back by the same path.
    assert_eq!(bench.says(&["port", "set", "c", "queue-pairs=1"]), "replaced c");
    assert!(has_gone(&c));
    let mut c = bench.guest("c");
    arrives(&mut c, &mut a, &frame([0xff; 6], mac(3), 4));
    arrives(&mut a, &mut c, &frame(mac(3), mac(1), 5));
    assert_eq!(bench.json(&["show", "port", "c"])["counters"]["egress_frames"], 3, "it goes on");
    assert_eq!(bench.says(&["port", "set", "c", "queue-pairs=5"]), "replaced c");
    let mut c = Guest::builder(bench.socket("c")).queue_pairs(5).attach().expect("a guest");
    arrives(&mut c, &mut a, &frame([0xff; 6], mac(3), 6));
    for seed in 0..40 {
        a.send(0, &Frame::pattern(mac(3), mac(1), 100, seed), &Layout::whole());
        c.recv_any(PATIENCE).expect("by whichever queue");
    }

    assert_eq!(bench.says(&["port", "remove", "c"]), "removed c");
    assert!(has_gone(&c) && !bench.socket("c").exists());
    let macs = bench.json(&["show", "macs"]);
    assert!(macs.as_array().expect("a list").iter().all(|mac| mac["port"] != "c"), "{macs}");

    // Another one has its number, and nothing of it.
    bench.add("d", &[]);
    assert_eq!(bench.json(&["show", "port", "d"])["counters"]["egress_frames"], 0);
    let flows = bench.json(&["show", "flows"]);
    assert!(flows.as_array().expect("a list").iter().all(|flow| flow["to"] != "d"), "{flows}");
    let mut d = bench.guest("d");
    arrives(&mut d, &mut a, &frame([0xff; 6], mac(4), 6));
    arrives(&mut a, &mut d, &frame(mac(4), mac(1), 7));
    bench.switch.stop();
}

/// Two guests talk at full speed while everything else changes: no frame of theirs is lost.
#[test]
fn those_who_are_not_concerned_lose_no_frame() {
    const FRAMES: u32 = 60_000;
    let bench = Bench::with("[workers]\ncount = 2\n");
    let [mut a, mut b] = ["a", "b"].map(|port| bench.guest(port));
    arrives(&mut b, &mut a, &frame([0xff; 6], mac(2), 0));
    let done = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let (bench, done) = (&bench, &done);
        let changes = scope.spawn(move || {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) || rounds < 3 {
                change_everything_else(bench, rounds);
                rounds += 1;
            }
            rounds
        });
        let _raise = Raise(done);
        talk(&mut a, &mut b, FRAMES);
        done.store(true, Ordering::Relaxed);
        changes.join().expect("changes")
    });
    assert!(rounds >= 3);
    let [a, b] = ["a", "b"].map(|port| bench.json(&["show", "port", port]));
    assert_eq!((&a["drops"], &b["drops"]), (&json!({}), &json!({})));
    assert_eq!(b["counters"]["egress_frames"], FRAMES);
    bench.switch.stop();
}

/// So many frames go from the guest at `a` to the one at `b`, and all come, in order.
fn talk(a: &mut Guest, b: &mut Guest, frames: u32) {
    let (mut sent, mut next) = (0, 0);
    let mut moved = Instant::now();
    while next < frames {
        // No more than fit into the receiver's ring.
        while sent < frames
            && sent - next < 100
            && a.try_send(0, &frame(mac(2), mac(1), sent), &Layout::whole())
        {
            sent += 1;
        }
        let before = next;
        next = take(b, next);
        if next > before {
            moved = Instant::now();
        }
        assert!(moved.elapsed() < PATIENCE, "{next} came of {sent}, and then no more");
    }
}

/// Takes what is there; returns the number of the next one that is to come.
fn take(guest: &mut Guest, mut next: u32) -> u32 {
    while let Some(got) = guest.recv(0, Duration::ZERO) {
        assert_eq!(got.bytes, frame(mac(2), mac(1), next).bytes, "frame {next}");
        next += 1;
    }
    next
}

fn change_everything_else(bench: &Bench, round: u32) {
    bench.add("c", &["group=red"]);
    bench.add("d", &["isolated=true"]);
    let mut c = bench.guest("c");
    // It sends, too, but nothing that crosses a bridge.
    c.send(0, &frame([1, 0x80, 0xc2, 0, 0, 1], mac(3), round), &Layout::whole());
    for arguments in [
        &["port", "set", "c", "mac-limit=3", "macs=02:00:00:00:00:03"][..],
        &["mac", "add", "02:00:00:00:00:04", "d"],
        &["mirror", "add", "c", "d"],
        &["set", "mac-table.ageing-seconds=299", "workers.mode=poll"],
        &["port", "set", "d", "isolated=", "group=red"],
        &["port", "set", "c", "queue-pairs=4"],
        &["mac", "flush", "c"],
        &["mirror", "remove", "c", "d"],
        &["set", "mac-table.ageing-seconds=", "workers.mode="],
        &["port", "remove", "d"],
        &["port", "remove", "c"],
    ] {
        bench.says(arguments);
    }
}

/// Sources move from worker to worker under load: no frame is lost, none overtakes another.
#[test]
fn workers_come_and_go() {
    const FRAMES: u32 = 40_000;
    let mut bench = Bench::new();
    let [mut a, mut b] = ["a", "b"].map(|port| bench.guest(port));
    arrives(&mut b, &mut a, &frame([0xff; 6], mac(2), 0));
    let pid = bench.switch.process().pid();
    let workers = || {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
        let status = |task: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(task.ok()?.path().join("status")).ok()
        };
        let named = |text: String| {
            let field = |key: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(key));
                line.expect("a field").trim().to_owned()
            };
            field("Name:").starts_with("worker").then(|| field("Cpus_allowed_list:"))
        };
        let mut cpus: Vec<_> = tasks.filter_map(status).filter_map(named).collect();
        cpus.sort();
        cpus
    };
    let all = workers();
    assert_eq!(all.len(), 1);
    // As many as there are CPUs: on one of them nothing is left to change.
    let most = std::thread::available_parallelism().expect("CPUs").get().min(3);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (bench, done) = (&bench, &done);
        let changes = scope.spawn(move || {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) || rounds < 3 {
                for count in (1..=most).chain((1..most).rev()) {
                    bench.says(&["set", &format!("workers.count={count}")]);
                }
                rounds += 1;
            }
        });
        let _raise = Raise(done);
        talk(&mut a, &mut b, FRAMES);
        done.store(true, Ordering::Relaxed);
        changes.join().expect("changes");
    });
    let [port_a, port_b] = ["a", "b"].map(|port| bench.json(&["show", "port", port]));
    assert_eq!((&port_a["drops"], &port_b["drops"]), (&json!({}), &json!({})));
    assert_eq!(port_b["counters"]["egress_frames"], FRAMES);
    assert_eq!(workers(), all);

    if most > 1 {
        bench.says(&["set", "workers.count=2", "workers.cpus=0,1"]);
        assert_eq!(workers(), ["0", "1"]);
        let frames = || bench.json(&["show", "workers"])[1]["counters"]["frames"].as_u64();
        let before = frames().expect("the second one");
        arrives(&mut b, &mut a, &frame(mac(1), mac(2), 1));
        arrives(&mut a, &mut b, &frame(mac(2), mac(1), 1));
        wait_for("its count", PATIENCE, || (frames() == Some(before + 1)).then_some(()));
        bench.says(&["set", "workers.cpus="]);
        assert_eq!(workers(), [all.as_slice(), &all].concat());
    }
    let log = bench.switch.stop();
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn isolated_ports_and_groups_reach_whom_they_may() {
    let bench = Bench::new();
    let [mut a, mut b] = ["a", "b"].map(|port| bench.guest(port));
    bench.add("c", &[]);
    let mut c = bench.guest("c");
    for (number, guest) in (1..).zip([&mut a, &mut b, &mut c]) {
        guest.send(0, &frame([0xff; 6], mac(number), 0), &Layout::whole());
        wait_for("its address", PATIENCE, || {
            let macs = bench.json(&["show", "macs"]);
            (macs.as_array().map(Vec::len) == Some(usize::from(number))).then_some(())
        });
    }
    [&mut a, &mut b, &mut c].into_iter().for_each(drain);
    let mut count = 0;
    let mut isolated = |port: &str, bench: &Bench| {
        count += 1;
        wait_for("a drop", PATIENCE, || {
            let drops = &bench.json(&["show", "port", port])["drops"];
            (drops["isolated"] == count).then_some(())
        });
    };

    for settings in [["isolated=true", "group="], ["isolated=", "group=red"]] {
        bench.says(&["port", "set", "a", settings[0], settings[1]]);
        let other = if settings[0] == "isolated=" { "group=blue" } else { "isolated=true" };
        bench.says(&["port", "set", "b", "isolated=", "group="]);
        bench.says(&["port", "set", "b", other]);
        a.send(0, &frame(mac(2), mac(1), 1), &Layout::whole());
        isolated("a", &bench);
        assert_eq!(traced(&bench)["dropped"], "isolated");
        arrives(&mut a, &mut c, &frame(mac(3), mac(1), 2));
        arrives(&mut c, &mut a, &frame(mac(1), mac(3), 3));
        // To all: to those that may have it.
        arrives(&mut a, &mut c, &frame([0xff; 6], mac(1), 4));
        assert!(b.recv(0, MOMENT).is_none());
    }
    bench.says(&["port", "set", "b", "group=red"]);
    assert_eq!(traced(&bench)["exits"][0]["port"], "b");
    arrives(&mut a, &mut b, &frame(mac(2), mac(1), 5));
    arrives(&mut a, &mut b, &frame([0xff; 6], mac(1), 6));
    // With nobody left: to all is to none, and not for want of a port.
    bench.says(&["port", "set", "b", "group=blue"]);
    bench.says(&["port", "set", "c", "group=blue"]);
    a.send(0, &frame([0xff; 6], mac(1), 7), &Layout::whole());
    isolated("a", &bench);
    bench.switch.stop();
}

#[test]
fn mirrors_copy_what_they_say() {
    let bench = Bench::new();
    let [mut a, mut b] = ["a", "b"].map(|port| bench.guest(port));
    bench.add("probe", &[]);
    let mut probe = bench.guest("probe");
    arrives(&mut a, &mut b, &frame([0xff; 6], mac(1), 0));
    arrives(&mut b, &mut a, &frame(mac(1), mac(2), 0));
    probe.recv(0, PATIENCE).expect("what goes to all");
    let (in_, out) = (frame(mac(2), mac(1), 1), frame(mac(1), mac(2), 2));
    for (directions, copies) in
        [("both", vec![&in_, &out]), ("in", vec![&in_]), ("out", vec![&out])]
    {
        bench.says(&["mirror", "add", "a", "probe", "--directions", directions]);
        arrives(&mut a, &mut b, &in_);
        arrives(&mut b, &mut a, &out);
        for copy in copies {
            assert_eq!(probe.recv(0, PATIENCE).expect("a copy").bytes, copy.bytes, "{directions}");
        }
        // What goes to all isn't for it, but the copy is; and what is sent to nobody is seen.
        let all = frame([0xff; 6], mac(1), 3);
        arrives(&mut a, &mut b, &all);
        let back = frame(mac(1), mac(1), 4);
        a.send(0, &back, &Layout::whole());
        if directions != "out" {
            for copy in [all, back] {
                assert_eq!(probe.recv(0, PATIENCE).expect("a copy").bytes, copy.bytes);
            }
        }
        assert!(probe.recv(0, MOMENT).is_none(), "{directions}: no more than that");
        bench.says(&["mirror", "remove", "a", "probe"]);
    }

    // What the port of copies sends reaches nobody and is not learned.
    bench.says(&["mirror", "add", "a", "probe"]);
    probe.send(0, &frame(mac(1), mac(2), 5), &Layout::whole());
    wait_for("a drop", PATIENCE, || {
        let drops = &bench.json(&["show", "port", "probe"])["drops"];
        (drops["mirror_port"] == 1).then_some(())
    });
    arrives(&mut a, &mut b, &in_);
    assert_eq!(probe.recv(0, PATIENCE).expect("a copy").bytes, in_.bytes);
    let trace = traced(&bench);
    let steps = trace["steps"].as_array().expect("steps");
    let last = steps.last().expect("one");
    assert_eq!((&last["step"], &last["port"]), (&"mirror".into(), &"probe".into()), "{trace}");

    // Copies that find no room are its own loss.
    for seed in 0..2000 {
        arrives(&mut a, &mut b, &frame(mac(2), mac(1), seed));
    }
    let dropped = |port: &Value, reason: &str| port["drops"][reason].as_u64().unwrap_or_default();
    let [a, b] = ["a", "b"].map(|port| bench.json(&["show", "port", port]));
    assert_eq!(dropped(&a, "no_destination"), 3, "to itself");
    assert_eq!(b["drops"], json!({}));
    // Those of the three rounds, the one from before the mirrors, one, and these; copies are made
    // behind the delivery.
    let all = 1 + (4 + 3 + 1) + 1 + 2000;
    let lost = wait_for("all copies", PATIENCE, || {
        let probe = bench.json(&["show", "port", "probe"]);
        let copies = probe["counters"]["egress_frames"].as_u64().expect("a count");
        let lost = dropped(&probe, "rx_ring_full") + dropped(&probe, "mirror_over_budget");
        (copies + lost == all).then_some(lost)
    });
    assert!(lost > 0, "its ring holds fewer");
    bench.switch.stop();
}

#[test]
fn given_addresses_are_where_they_were_given() {
    let bench = Bench::with("");
    let [mut a, mut b] = ["a", "b"].map(|port| bench.guest(port));
    bench.add("c", &["macs=02:00:00:00:00:0c"]);
    let mut c = bench.guest("c");
    arrives(&mut a, &mut c, &frame([2, 0, 0, 0, 0, 0xc], mac(1), 1));
    assert!(b.recv(0, MOMENT).is_none(), "it isn't sent to all, though never heard");
    // b claims it, and doesn't get it.
    arrives(&mut b, &mut a, &frame(mac(1), [2, 0, 0, 0, 0, 0xc], 2));
    arrives(&mut a, &mut c, &frame([2, 0, 0, 0, 0, 0xc], mac(1), 3));
    assert_eq!(bench.says(&["mac", "flush", "--dry-run"]), "would be 1 forgotten");
    assert_eq!(bench.says(&["mac", "flush"]), "1 forgotten");
    let macs = bench.json(&["show", "macs"]);
    let left = json!([{"address": "02:00:00:00:00:0c", "port": "c", "age_seconds": null}]);
    assert_eq!(macs, left);
    bench.says(&["mac", "add", "02:00:00:00:00:0C", "b"]);
    arrives(&mut a, &mut b, &frame([2, 0, 0, 0, 0, 0xc], mac(1), 4));
    assert_eq!(bench.says(&["mac", "remove", "02:00:00:00:00:0c"]), "changed b");
    assert_eq!(bench.says(&["mac", "remove", "02:00:00:00:00:01"]), "changed 02:00:00:00:00:01");
    assert_eq!(bench.json(&["show", "macs"]), json!([]));
    bench.switch.stop();
}

#[test]
fn the_file_is_read_again() {
    let mut bench = Bench::with("[mac-table]\nageing-seconds = 100\n");
    let mut a = bench.guest("a");
    let text = std::fs::read_to_string(bench.file()).expect("a file");
    assert_eq!(bench.says(&["reload"]), "nothing");
    let port = |name: &str| {
        let socket = bench.socket(name);
        format!("[[port]]\nname = \"{name}\"\ntype = \"vhost-user\"\nsocket = {socket:?}\n")
    };
    let (c, d) = (port("c"), port("d"));
    // As editors do: another file in its place.
    let file = bench.file();
    let write = |text: &str| {
        let new = file.with_extension("new");
        std::fs::write(&new, text).expect("a file");
        std::fs::rename(&new, &file).expect("in its place");
    };
    write(&(text.replace("ageing-seconds = 100", "ageing-seconds = 50") + &c));
    assert_eq!(bench.says(&["reload", "--dry-run"]), "would be added c; changed mac-table");
    assert!(!bench.socket("c").exists());
    assert_eq!(bench.says(&["reload"]), "added c; changed mac-table");
    let mut guest = bench.guest("c");
    arrives(&mut guest, &mut a, &frame([0xff; 6], mac(3), 1));

    // Half of it, mistakes, what takes another process: all of it or nothing.
    let whole = text.clone() + &c + &d;
    write(&whole[..whole.len() - 5]);
    let line = whole.lines().count().to_string();
    bench.refuses(&["reload"], &["ringswitch.toml:", &line]);
    write(&(whole.clone() + "mtu = 1\n"));
    bench.refuses(&["reload"], &["`mtu` is 1; expected 68 to 65535"]);
    let other = whole.replace("[api]\n", "[api]\nmetrics = \"127.0.0.1:9479\"\n");
    write(&other);
    bench.refuses(&["reload"], &["api.metrics can't be changed", "ringswitch upgrade"]);
    let elsewhere = d.replace(&bench.socket("d").display().to_string(), "/nowhere/d.sock");
    write(&(text.clone() + &d + &elsewhere.replace("\"d\"", "\"e\"")));
    bench.refuses(&["reload"], &["port e", "its directory does not exist"]);
    assert!(!bench.socket("d").exists(), "also what came before it");
    assert!(!guest.connection().closed_within(MOMENT));
    std::fs::remove_file(bench.file()).expect("no file");
    bench.refuses(&["reload"], &["cannot read the configuration"]);

    // By a signal.
    let from = bench.switch.process().written();
    write(&(text.clone() + "["));
    bench.switch.process().signal("HUP");
    bench.switch.process().output_with("not reloaded, everything is as before", from, PATIENCE);
    write(&(text + &d));
    bench.switch.process().signal("HUP");
    bench.switch.process().output_with("changed by SIGHUP: added d; removed c", from, PATIENCE);
    assert!(bench.socket("d").exists() && has_gone(&guest));

    // Another process goes by the file.
    bench.switch.upgrade();
    arrives(&mut bench.guest("d"), &mut a, &frame([0xff; 6], mac(3), 2));
    assert_eq!(bench.says(&["reload"]), "nothing");
    bench.switch.stop();
}

#[test]
fn what_is_wrong_is_said_and_changes_nothing() {
    let bench = Bench::new();
    let socket = |port: &str| format!("socket={}", bench.socket(port).display());
    let long = "x".repeat(33);
    for (arguments, parts) in [
        (vec!["port", "add", "a", &socket("x")], vec!["there is a port \"a\"", "port set"]),
        (vec!["port", "add", "c", &socket("a")], vec!["port \"c\": socket", "already taken"]),
        (vec!["port", "add", "c", "mtu=1500"], vec!["port \"c\" has no `socket`"]),
        (vec!["port", "add", &long, &socket("c")], vec!["is not usable", "1 to 32"]),
        (vec!["port", "add", "c", "socket=c.sock"], vec!["is not absolute"]),
        (vec!["port", "add", "c", "socket=/nowhere/c"], vec!["port c", "directory does not exist"]),
        (vec!["port", "add", "c", "socket=/etc/c"], vec!["port c", "ringswitch upgrade"]),
        (
            vec!["port", "add", "c", &socket("c"), "owner=root"],
            vec!["look up the owner", "numbers"],
        ),
        (vec!["port", "add", "c", &socket("c"), "queue-pairs=many"], vec!["queue-pairs"]),
        (vec!["port", "add", "c", &socket("c"), "colour=red"], vec!["unknown field `colour`"]),
        (vec!["port", "add", "c", "type=tap", "device=rs-c"], vec!["port c", "TAP", "upgrade"]),
        (vec!["port", "set", "c", "mtu=1500"], vec!["there is no port \"c\"; there are a, b"]),
        (vec!["port", "set", "a", "mtu=3"], vec!["port \"a\": `mtu` is 3; expected 68 to 65535"]),
        (vec!["port", "set", "a", "name=c"], vec!["keeps its name"]),
        (vec!["port", "remove", "c"], vec!["there is no port \"c\"; there are a, b"]),
        (vec!["mac", "add", "1:2", "a"], vec!["\"1:2\" is no address"]),
        (vec!["mac", "add", "ff:ff:ff:ff:ff:ff", "a"], vec!["addresses of stations"]),
        (vec!["mac", "add", "02:00:00:00:00:01", "c"], vec!["there is no port \"c\""]),
        (vec!["mac", "remove", "02:00:00:00:00:01"], vec!["no port has 02:00:00:00:00:01"]),
        (vec!["mac", "flush", "c"], vec!["there is no port \"c\"; there are a, b"]),
        (vec!["mirror", "add", "a", "a"], vec!["is mirrored to itself"]),
        (vec!["mirror", "add", "a", "c"], vec!["`to` is \"c\"; expected the name of a port"]),
        (vec!["mirror", "remove", "a", "b"], vec!["there is no mirror from \"a\" to \"b\""]),
        (vec!["set", "mac-table.ageing-seconds=0"], vec!["[mac-table]: `ageing-seconds` is 0"]),
        (vec!["set", "mac-table.colour=1"], vec!["unknown field `colour`"]),
        (vec!["set", "table.colour=1"], vec!["unknown field `table`"]),
        (vec!["set", "workers.count=64"], vec!["`count` is 64", "made for", "upgrade"]),
        (vec!["set", "mac-table.capacity=2000"], vec!["mac-table.capacity can't be changed"]),
        (vec!["set", "sandbox.mode=off"], vec!["sandbox can't be changed"]),
        (vec!["reload", "/nowhere"], vec!["cannot read /nowhere"]),
        (vec!["reload", "/dev/null"], vec!["there is no port"]),
    ] {
        bench.refuses(&arguments, &parts);
    }
    bench.says(&["mirror", "add", "a", "b"]);
    bench.refuses(&["mirror", "add", "a", "b"], &["there is a mirror between these ports"]);
    bench.refuses(&["mirror", "add", "b", "a"], &["aren't copied again"]);
    bench.refuses(&["port", "remove", "b"], &["`to` is \"b\"; expected the name of a port"]);

    // Without the command's care.
    let api = bench.switch.api_socket();
    let before = bench.json(&["show", "config"]);
    for (method, path, body, status) in [
        ("PUT", "/v1/config", "", 400),
        ("PUT", "/v1/config", "[]", 400),
        ("PUT", "/v1/config", "{\"port\": [{}]}", 400),
        ("PUT", "/v1/config", "{\"colour\": 1}", 400),
        ("PATCH", "/v1/config", "7", 400),
        ("PATCH", "/v1/config?dry_run=maybe", "{}", 400),
        ("PATCH", "/v1/ports/a", "{\"name\": null}", 400),
        ("PATCH", "/v1/ports/%ff", "{}", 400),
        ("POST", "/v1/ports", "{}", 400),
        ("POST", "/v1/ports", "null", 400),
        ("POST", "/v1/ports/a", "{}", 405),
        ("DELETE", "/v1/ports", "", 405),
        ("PUT", "/v1/macs/02:00:00:00:00:01", "{}", 400),
        ("POST", "/v1/mirrors", "{\"port\": 1}", 400),
        ("DELETE", "/v1/mirrors", "", 400),
    ] {
        let answer = curl(&api, method, path, "application/json", body);
        assert_eq!(answer.0, status, "{method} {path} {body}: {answer:?}");
    }
    let toml = curl(&api, "PUT", "/v1/config", "application/toml", "[[port]]\nname = 1\n");
    assert_eq!(toml.0, 400);
    let error = toml.1["error"].as_str().expect("an error").to_owned();
    assert!(error.contains("request:2:8: invalid type: integer"), "{error}");
    let deep = "[".repeat(100_000);
    assert_eq!(curl(&api, "PUT", "/v1/config", "application/json", &deep).0, 400);
    let long = " ".repeat(2 << 20);
    assert_eq!(curl(&api, "PUT", "/v1/config", "application/json", &long).0, 413);
    assert_eq!(bench.json(&["show", "config"]), before);
    bench.switch.stop();
}

/// Who may use the socket's file may look; who is somebody else may change nothing.
#[test]
fn only_root_and_its_own_user_change_anything() {
    let dir = tempfile::tempdir_in("/tmp").expect("a directory");
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).expect("for all");
    let look = dir.path().join("look");
    let settings =
        format!("[api]\nread-only-socket = {look:?}\nsocket = {:?}\n", dir.path().join("api"));
    let switch = Switch::builder().settings(&settings).port("a").port("b").start();
    let api = dir.path().join("api");
    std::fs::set_permissions(&api, Permissions::from_mode(0o666)).expect("for all");
    let by = |user: u32, socket: &Path, method: &str, path: &str| {
        let mut command = Command::new("setpriv");
        let user = user.to_string();
        command.args([
            "--reuid",
            &user,
            "--regid",
            &user,
            "--clear-groups",
            "curl",
            "-s",
            "-m",
            "5",
        ]);
        command.args(["-o", "/dev/null", "-w", "%{http_code}", "-X", method, "--unix-socket"]);
        command.arg(socket).arg(format!("http://localhost{path}"));
        String::from_utf8(command.output().expect("setpriv").stdout).expect("a status")
    };
    for (user, socket, status) in
        [(0, &api, "200"), (USER, &api, "200"), (12345, &api, "403"), (0, &look, "403")]
    {
        assert_eq!(by(user, socket, "GET", "/v1/ports"), "200", "{user}");
        assert_eq!(by(user, socket, "GET", "/v1/config"), "200", "{user}");
        assert_eq!(by(user, socket, "DELETE", "/v1/macs"), status, "{user} {socket:?}");
        if status == "403" {
            assert_eq!(by(user, socket, "GET", "/v1/capture?ports=a"), "403", "{user}");
            assert_eq!(by(user, socket, "DELETE", "/v1/ports/a"), "403", "{user}");
        }
    }
    switch.stop();
}

/// TAPs, if one was there at the start.
#[test]
fn devices_come_and_go() {
    let netns = Netns::new();
    let tap = "[[port]]\nname = \"t\"\ntype = \"tap\"\ndevice = \"rs-t\"\n";
    let builder = Switch::builder().netns(&netns).settings(tap).port("a").api();
    let bench = Bench { switch: builder.start() };
    let mut a = bench.guest("a");
    assert_eq!(bench.says(&["port", "add", "u", "type=tap", "device=rs-u"]), "added u");
    let mtu = |device: &str| {
        let path = format!("/sys/class/net/{device}/mtu");
        let output = netns.command("cat").arg(path).output().expect("cat");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(mtu("rs-u"), "1500");
    if std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1) {
        assert_eq!(bench.says(&["set", "workers.count=2"]), "changed workers");
    }
    assert_eq!(bench.says(&["port", "set", "u", "mtu=1400"]), "changed u");
    assert_eq!(mtu("rs-u"), "1400");
    // The host's frames come in by it.
    netns.run("ip addr add 10.9.0.1/24 dev rs-u");
    drain(&mut a);
    netns.command("ping").args(["-c", "1", "-W", "1", "10.9.0.2"]).output().expect("ping");
    let is_asked = |frame: &[u8]| frame.get(12..14) == Some(&[8, 6]);
    wait_for("who has 10.9.0.2", PATIENCE, || {
        a.recv(0, Duration::ZERO).filter(|got| is_asked(&got.bytes)).map(|_| ())
    });
    bench.refuses(&["port", "add", "v", "type=tap", "device=rs-t"], &["already taken"]);
    bench.refuses(&["port", "add", "v", "type=tap", "device=lo"], &["port v", "lo"]);
    assert_eq!(bench.says(&["port", "set", "u", "device=rs-w", "mtu="]), "replaced u");
    assert_eq!((mtu("rs-u"), mtu("rs-w")), (String::new(), "1500".to_owned()));
    assert_eq!(bench.says(&["port", "remove", "u"]), "removed u");
    assert_eq!(mtu("rs-w"), "");
    bench.switch.stop();
}

/// The commands on the page and what they print.
#[test]
fn the_page_shows_what_is_printed() {
    let page = include_str!("../../docs/changing.md");
    let settings = "[mac-table]\nageing-seconds = 300\n";
    let builder = Switch::builder().settings(settings).port("vm1").port("vm2").api();
    let bench = Bench { switch: builder.start() };
    let [mut vm1, mut vm2] = ["vm1", "vm2"].map(|port| bench.guest(port));
    arrives(&mut vm1, &mut vm2, &frame([0xff; 6], mac(1), 1));
    let directory = bench.socket("vm1").with_file_name("").display().to_string();
    let mut commands = 0;
    for block in page.split("```console\n").skip(1) {
        let block = block.split("\n```").next().expect("its end");
        for example in block.split("$ ").skip(1) {
            let (line, shown) = example.split_once('\n').unwrap_or((example, ""));
            let api = bench.switch.api_socket().display().to_string();
            let line = line.replace("/run/ringswitch/api.sock", &api);
            let line = line.replace("/run/ringswitch/", &directory);
            if line.starts_with("ringswitch mirror add") {
                bench.add("vm3", &[]);
            }
            let said = match line.strip_prefix("ringswitch ") {
                Some(arguments) => bench.says(&arguments.split(' ').collect::<Vec<_>>()),
                None => {
                    let output = Command::new("sh").args(["-c", &line]).output().expect("sh");
                    String::from_utf8(output.stdout).expect("text")
                }
            };
            assert_eq!(said.trim_end(), shown.trim_end(), "{line}");
            if line.starts_with("ringswitch mirror remove") {
                bench.says(&["port", "remove", "vm3"]);
            }
            commands += 1;
        }
    }
    assert_eq!(commands, 15);
    bench.switch.stop();
}
