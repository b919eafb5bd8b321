//! The command line: what an operator types, reads and signals; the real binary.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use fakeguest::frames::{Frame, mac};
use fakeguest::{Guest, Layout};

use super::support::netns::{Netns, must};
use super::support::proc::{Process, holdings};
use super::support::switch::{Switch, directory};
use super::support::{unique, wait_for};

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program with these arguments, in an empty environment but for the path.
fn ringswitch(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringswitch"));
    command.args(args).env_remove("RINGSWITCH_LOG");
    command
}

/// Runs it to its end. A switch that runs although it must not is ended, and is an error.
fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().expect("the program");
    let deadline = std::time::Instant::now() + PATIENCE;
    while child.try_wait().expect("a child").is_none() {
        if std::time::Instant::now() > deadline {
            child.kill().expect("a child");
            let output = child.wait_with_output().expect("its output");
            panic!("{command:?} does not end: {}", text(&output.stderr));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let Output { status, stdout, stderr } = child.wait_with_output().expect("its output");
    (status.code(), text(&stdout), text(&stderr))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs it, and expects this exit code, nothing on standard output, and an error with `parts`.
#[track_caller]
fn refused(command: &mut Command, code: i32, parts: &[&str]) -> String {
    let (status, stdout, stderr) = run(command);
    assert_eq!(status, Some(code), "{command:?}: {stdout}{stderr}");
    assert_eq!(stdout, "", "{command:?}");
    for part in parts {
        assert!(stderr.contains(part), "{command:?} doesn't say {part:?}:\n{stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr
}

/// A directory with a configuration file of this text.
fn configured(toml: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("rs.toml");
    fs::write(&file, toml.replace("DIR", path(dir.path()))).expect("a file");
    let file = path(&file).to_owned();
    (dir, file)
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// A switch started by hand, once all `sockets` are there.
fn started(command: Command, log: &Path, sockets: &[PathBuf]) -> Process {
    let mut process = Process::start("ringswitch", command, log);
    wait_for("sockets", PATIENCE, || {
        assert_eq!(process.ended(), None, "the switch ended: {}", process.output());
        sockets.iter().all(|socket| socket.exists()).then_some(())
    });
    process
}

/// Sends frames from `from` to `to`; all arrive, in order, with their bytes.
fn exchange(from: (&mut Guest, u8), to: (&mut Guest, u8), seed: u32) {
    let frames: Vec<_> =
        (0..20).map(|n| Frame::pattern(mac(to.1), mac(from.1), 60 + n, seed)).collect();
    for frame in &frames {
        from.0.send(0, frame, &Layout::whole());
    }
    for frame in &frames {
        let got = to.0.recv(0, PATIENCE).expect("a frame");
        assert_eq!(got.bytes, frame.bytes);
    }
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn usage_is_explained_and_wrong_usage_is_2() {
    for (args, part) in [
        (vec!["--help"], "Exit codes:"),
        (vec!["run", "--help"], "SIGTERM or SIGINT"),
        (vec!["args", "--help"], "--vcpus"),
        (vec!["--version"], env!("CARGO_PKG_VERSION")),
    ] {
        let (code, stdout, stderr) = run(&mut ringswitch(&args));
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{args:?}");
        assert!(stdout.contains(part), "{args:?}: {stdout}");
    }
    refused(&mut ringswitch(&[]), 2, &["Usage:"]);
    refused(&mut ringswitch(&["fly"]), 2, &["fly", "Usage:"]);
    refused(&mut ringswitch(&["run"]), 2, &["--config", "--port"]);
    refused(&mut ringswitch(&["run", "--port", "a"]), 2, &["NAME=SOCKET"]);
    refused(&mut ringswitch(&["run", "--uplink", "t", "--workers", "0"]), 2, &["1..=64"]);
    let twice = ["run", "--port", "a=/nowhere/a", "--port", "a=/nowhere/b"];
    refused(&mut ringswitch(&twice), 2, &["port name \"a\" is already taken"]);
}

#[test]
fn the_example_is_a_good_configuration() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/ringswitch.toml");
    let (code, stdout, stderr) = run(&mut ringswitch(&["check", example]));
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert_eq!(stdout, format!("{example}: ok, 4 ports\n"));
}

#[test]
fn mistakes_are_shown_with_file_line_and_column() {
    let port = "[[port]]\nname = \"vm1\"\ntype = \"vhost-user\"\n";
    let cases = [
        // Syntax; types; unknown keys; ranges; what is missing.
        ("[[port]\n", "1:8: ", "expected"),
        ("[workers]\ncount = \"two\"\n", "2:9: ", "expected an integer"),
        ("[workers]\nthreads = 2\n", "2:1: ", "expected one of `count`, `mode`, `cpus`"),
        (
            "[worker]\n",
            "1:2: ",
            "one of `workers`, `mac-table`, `upgrade`, `api`, `sandbox`, `log`, `port`",
        ),
        ("[workers]\ncount = 65\n", "2:9: ", "`count` is 65; expected 1 to 64"),
        (port, "1:1: ", "port \"vm1\" has no `socket`; expected the absolute path"),
        ("[[port]]\nname = \"a/b\"\n", "2:8: ", "expected 1 to 32 of A-Z a-z 0-9 _ . -"),
    ];
    for (toml, place, part) in cases {
        let (_dir, file) = configured(toml);
        let place = format!("{file}:{place}");
        let stderr = refused(&mut ringswitch(&["check", &file]), 2, &[&place, part]);
        // The line itself is shown, with a mark below the column.
        let line: usize = place.rsplit(':').nth(2).and_then(|n| n.parse().ok()).expect("a line");
        let shown = toml.lines().nth(line - 1).expect("the line");
        assert!(stderr.contains(&format!("{line} | {shown}\n")), "{stderr}");
        let column: usize =
            place.rsplit(':').nth(1).and_then(|n| n.parse().ok()).expect("a column");
        let mark = format!("\n  | {}^", " ".repeat(column - 1));
        assert!(stderr.contains(&mark), "{stderr}");
        // `run` says the same, and makes nothing.
        let again = refused(&mut ringswitch(&["run", "--config", &file]), 2, &[]);
        assert_eq!(again, stderr);
    }
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let (_dir, file) = configured(
        "[workers]\ncount = 0\ncpus = [1]\n[[port]]\nname = \"a\"\ntype = \"tap\"\n\
         [[port]]\nname = \"a\"\ntype = \"vhost-user\"\nsocket = \"rel.sock\"\nmode = \"9\"\n",
    );
    let places = ["2:9", "4:1", "8:8", "10:10", "11:8"].map(|at| format!("{file}:{at}: "));
    let parts: Vec<_> = places.iter().map(String::as_str).collect();
    refused(&mut ringswitch(&["check", &file]), 2, &parts);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    for file in [dir.path().join("none.toml"), dir.path().to_owned()] {
        refused(&mut ringswitch(&["check", path(&file)]), 2, &[path(&file)]);
        refused(&mut ringswitch(&["run", "--config", path(&file)]), 2, &[path(&file)]);
    }
    let file = dir.path().join("latin1.toml");
    fs::write(&file, b"# caf\xe9\n").expect("a file");
    refused(&mut ringswitch(&["check", path(&file)]), 2, &[path(&file), "UTF-8"]);
}

#[test]
fn a_socket_that_cannot_be_made_ends_it_with_1_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let (good, bad) = (dir.path().join("a.sock"), dir.path().join("none/b.sock"));
    let ports = |b: &Path| [format!("vm1={}", good.display()), format!("vm2={}", b.display())];
    let start = |b: &Path, parts: &[&str]| {
        let [one, two] = ports(b);
        let mut command = ringswitch(&["run", "--port", &one, "--port", &two]);
        refused(&mut command, 1, &[&["port vm2", path(b)], parts].concat());
        assert!(!good.exists(), "the first port's socket was left behind");
    };
    start(&bad, &["its directory does not exist", "create it"]);

    let file = dir.path().join("file");
    fs::write(&file, "precious").expect("a file");
    start(&file, &["is no stream socket", "choose another path"]);
    assert_eq!(fs::read(&file).expect("the file"), b"precious");

    fs::create_dir(dir.path().join("closed")).expect("a directory");
    let directory = dir.path().join("closed");
    start(&directory, &["is no stream socket"]);
    assert!(directory.is_dir());
    assert_eq!(names_in(dir.path()), ["closed", "file"]);
}

#[test]
fn a_live_socket_is_refused_and_its_switch_undisturbed() {
    let mut switch = Switch::builder().port("vm1").port("vm2").start();
    let mut a = Guest::builder(switch.socket("vm1")).attach().expect("a guest");
    let mut b = Guest::builder(switch.socket("vm2")).attach().expect("a guest");
    exchange((&mut a, 1), (&mut b, 2), 1);
    let inode = fs::metadata(switch.socket("vm1")).expect("the socket").ino();
    // With a guest, and in the backlog's view without one.
    for _ in 0..3 {
        let port = format!("vm1={}", switch.socket("vm1").display());
        let parts = ["port vm1", path(&switch.socket("vm1")).to_owned().as_str(), "in use"]
            .map(str::to_owned);
        let parts: Vec<_> = parts.iter().map(String::as_str).collect();
        refused(&mut ringswitch(&["run", "--port", &port]), 1, &parts);
        exchange((&mut b, 2), (&mut a, 1), 2);
    }
    assert_eq!(fs::metadata(switch.socket("vm1")).expect("the socket").ino(), inode);
    drop(a);
    let mut a = Guest::builder(switch.socket("vm1")).attach().expect("a new guest");
    exchange((&mut a, 1), (&mut b, 2), 3);
    assert_eq!(switch.statistics().dropped(), 0);
    switch.stop();
}

#[test]
fn a_stale_socket_is_replaced() {
    let dir = directory();
    let sockets = [dir.path().join("a.sock"), dir.path().join("b.sock")];
    let [one, two] = [0, 1].map(|n| format!("vm{n}={}", sockets[n].display()));
    let args = ["run", "--user", "65534:65534", "--port", &one, "--port", &two];
    let log = dir.path().join("log");
    let mut first = started(ringswitch(&args), &log, &sockets);
    let mut a = Guest::builder(&sockets[0]).attach().expect("a guest");
    let mut b = Guest::builder(&sockets[1]).attach().expect("a guest");
    exchange((&mut a, 1), (&mut b, 2), 1);
    // What it had not completed yet, its successor would rightly send once more.
    assert!(a.flush(0, PATIENCE), "all frames are completed");
    first.kill();
    assert!(sockets.iter().all(|socket| socket.exists()), "SIGKILL leaves the sockets");

    let mut second = Process::start("ringswitch", ringswitch(&args), &dir.path().join("log2"));
    second.output_with("ready", 0, PATIENCE);
    // The guests of the killed one go on where they were.
    a.reconnect().expect("attached again");
    b.reconnect().expect("attached again");
    exchange((&mut a, 1), (&mut b, 2), 2);
    second.signal("TERM");
    assert_eq!(second.wait(PATIENCE).code(), Some(0));
    assert_eq!(names_in(dir.path()), ["log", "log2"]);
}

#[test]
fn a_socket_is_refused_at_a_link_and_at_a_datagram_socket() {
    let dir = tempfile::tempdir().expect("a directory");
    let datagram = dir.path().join("datagram");
    let _bound = std::os::unix::net::UnixDatagram::bind(&datagram).expect("a socket");
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&datagram, &link).expect("a link");
    for socket in [&datagram, &link] {
        let port = format!("vm1={}", socket.display());
        let parts = ["is no stream socket", path(socket)];
        refused(&mut ringswitch(&["run", "--port", &port]), 1, &parts);
    }
    assert_eq!(names_in(dir.path()), ["datagram", "link"]);
}

#[test]
fn without_permission_for_a_tap_it_says_how_to_prepare_one() {
    let netns = Netns::new();
    // Root without the capability: the program may lie where only root reads.
    let mut command = netns.command("setpriv");
    command.args(["--bounding-set", "-net_admin", env!("CARGO_BIN_EXE_ringswitch")]);
    command.args(["run", "--uplink", "rs0"]);
    let parts = ["port uplink", "device rs0", "CAP_NET_ADMIN", "ip tuntap add rs0 mode tap"];
    refused(&mut command, 1, &parts);
    let links = netns.run("ip -o link");
    assert!(!links.contains("rs0"), "{links}");
}

#[test]
fn a_tap_that_another_process_uses_is_refused() {
    let netns = Netns::new();
    let mut switch = Switch::builder().port("vm1").uplink("rs0").netns(&netns).start();
    let mut command = netns.command(env!("CARGO_BIN_EXE_ringswitch"));
    let socket = tempfile::tempdir().expect("a directory");
    let port = format!("vm2={}", socket.path().join("b.sock").display());
    command.args(["run", "--port", &port, "--uplink", "rs0"]);
    refused(&mut command, 1, &["port uplink", "device rs0 is in use by another process"]);
    assert!(names_in(socket.path()).is_empty());
    // The first one still has it: a frame of a guest arrives in the host.
    let mut guest = Guest::builder(switch.socket("vm1")).attach().expect("a guest");
    let frame = Frame::pattern([0xff; 6], mac(1), 60, 1);
    guest.send(0, &frame, &Layout::whole());
    let now = switch.statistics_when(|now| now.port("uplink", "egress_frames") > 0);
    assert_eq!(now.port("vm1", "ingress_frames"), 1);
    switch.stop();
    let links = netns.run("ip -o link");
    assert!(!links.contains("rs0"), "its device went with it: {links}");
}

#[test]
fn a_device_that_is_no_tap_is_refused() {
    let netns = Netns::new();
    netns.run("ip link add br7 type bridge");
    let uplink = |device: &str| {
        let mut command = netns.command(env!("CARGO_BIN_EXE_ringswitch"));
        command.args(["run", "--uplink", device]);
        command
    };
    refused(&mut uplink("br7"), 1, &["device br7", "not a TAP device"]);
    let (_dir, file) =
        configured("[[port]]\nname = \"up\"\ntype = \"tap\"\ndevice = \"rs0\"\nbridge = \"br8\"\n");
    let mut command = netns.command(env!("CARGO_BIN_EXE_ringswitch"));
    command.args(["run", "--config", &file]);
    refused(&mut command, 1, &["port up", "br8", "ip link add br8 type bridge"]);
    assert!(!netns.run("ip -o link").contains("rs0"), "nothing is left behind");
}

#[test]
fn sigterm_and_sigint_end_it_and_take_only_its_sockets() {
    for signal in ["TERM", "INT"] {
        let dir = directory();
        let sockets = ["a.sock", "b.sock", "c.sock"].map(|name| dir.path().join(name));
        let ports: Vec<_> =
            sockets.iter().map(|s| format!("{}={}", unique("p"), s.display())).collect();
        let mut args = vec!["run", "--user", "65534:65534"];
        ports.iter().for_each(|port| args.extend(["--port", port]));
        let mut switch = started(ringswitch(&args), &dir.path().join("log"), &sockets);
        fs::write(dir.path().join("other"), "").expect("a file");
        // One frontend is attached, one port's socket was replaced by somebody.
        let guest = Guest::builder(&sockets[0]).attach().expect("a guest");
        fs::remove_file(&sockets[2]).expect("a socket");
        let _theirs = std::os::unix::net::UnixListener::bind(&sockets[2]).expect("a socket");
        switch.signal(signal);
        assert_eq!(switch.wait(PATIENCE).code(), Some(0), "SIG{signal}");
        assert_eq!(names_in(dir.path()), ["c.sock", "log", "other"]);
        assert!(guest.connection().closed_within(PATIENCE), "the frontend is told");
        let log = switch.output();
        assert!(log.contains("stats end") && log.trim_end().ends_with("ended"), "{log}");
    }
}

/// A child that ends with the test, however that ends.
struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        // It has ended by itself if the test passes.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_second_signal_ends_it_when_it_hangs() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("a.sock");
    // Its log is a pipe that nobody reads, and that is full already: it hangs in the next line.
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    writer.write_all(&[b'\n'; 65536]).expect("a pipe's capacity (pipe(7))");
    let port = format!("vm1={}", socket.display());
    let mut command = ringswitch(&["run", "--port", &port]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer);
    let mut child = KilledOnDrop(command.spawn().expect("the program"));
    drop(command);
    wait_for("socket", PATIENCE, || socket.exists().then_some(()));
    let mut signals = 0;
    let status = wait_for("end", PATIENCE, || {
        must(Command::new("sh").args(["-c", &format!("kill -TERM {}", child.0.id())]));
        signals += 1;
        child.0.try_wait().expect("a child")
    });
    assert_eq!(status.code(), Some(143), "after {signals} signals");
    assert!(signals >= 2, "one signal ends in order, and that hangs");
    drop(reader);
}

#[test]
fn owner_and_mode_are_applied() {
    let (dir, file) = configured(
        "[[port]]\nname = \"a\"\ntype = \"vhost-user\"\nsocket = \"DIR/a.sock\"\n\
         owner = \"65534:4242\"\nmode = \"0620\"\n\
         [[port]]\nname = \"b\"\ntype = \"vhost-user\"\nsocket = \"DIR/b.sock\"\n\
         owner = \"nobody\"\nmode = \"666\"\n",
    );
    let sockets = ["a.sock", "b.sock"].map(|name| dir.path().join(name));
    let command = ringswitch(&["run", "--config", &file]);
    let mut switch = Process::start("ringswitch", command, &dir.path().join("log"));
    switch.output_with("ready", 0, PATIENCE);
    let [a, b] = sockets.map(|socket| fs::symlink_metadata(socket).expect("a socket"));
    assert!(a.file_type().is_socket() && b.file_type().is_socket());
    assert_eq!((a.uid(), a.gid(), a.mode() & 0o7777), (65534, 4242, 0o620));
    assert_eq!((b.uid(), b.mode() & 0o7777), (65534, 0o666));
    // What the mode denies is denied, what it allows is allowed.
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("our directory");
    let connect = |uid: &str, gid: &str, name: &str| {
        let socket = dir.path().join(name);
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid",
            uid,
            "--regid",
            gid,
            "--clear-groups",
            "socat",
            "-u",
            "OPEN:/dev/null",
        ]);
        run(command.arg(format!("UNIX-CONNECT:{}", socket.display()))).0 == Some(0)
    };
    assert!(connect("65534", "65534", "a.sock") && connect("1234", "4242", "a.sock"));
    assert!(!connect("1234", "1234", "a.sock"));
    assert!(connect("1234", "1234", "b.sock"));
}

#[test]
fn an_unknown_owner_is_refused() {
    let (dir, file) = configured(
        "[[port]]\nname = \"a\"\ntype = \"vhost-user\"\nsocket = \"DIR/a.sock\"\n\
         owner = \"nosuchuser\"\n",
    );
    let mut command = ringswitch(&["run", "--config", &file]);
    refused(&mut command, 1, &["port a", "nosuchuser", "no such user"]);
    assert_eq!(names_in(dir.path()), ["rs.toml"]);
}

#[test]
fn sigusr1_prints_the_statistics_and_it_goes_on() {
    let mut switch = Switch::builder().port("vm1").port("vm2").args(&["--workers", "2"]).start();
    let mut a = Guest::builder(switch.socket("vm1")).attach().expect("a guest");
    let mut b = Guest::builder(switch.socket("vm2")).attach().expect("a guest");
    for round in 1..=3 {
        exchange((&mut a, 1), (&mut b, 2), round);
        exchange((&mut b, 2), (&mut a, 1), round);
        // The frames are received before the worker has counted them.
        let all = u64::from(20 * round);
        let now = switch.statistics_when(|now| {
            ["vm1", "vm2"].iter().all(|p| now.port(p, "egress_frames") >= all)
        });
        assert_eq!(now.ports.keys().map(String::as_str).collect::<Vec<_>>(), ["vm1", "vm2"]);
        assert_eq!(now.workers.keys().map(String::as_str).collect::<Vec<_>>(), ["0", "1"]);
        for (port, other) in [("vm1", "vm2"), ("vm2", "vm1")] {
            assert_eq!(now.port(port, "ingress_frames"), all);
            assert_eq!(now.port(port, "egress_frames"), all);
            assert_eq!(now.port(port, "egress_bytes"), now.port(other, "ingress_bytes"));
            assert_eq!(now.port(port, "copied_bytes"), now.port(port, "egress_bytes"));
        }
        let flooded = ["vm1", "vm2"].map(|port| now.port(port, "flooded_frames"));
        assert_eq!(flooded, [20, 0], "those that were sent before vm2 said anything");
        assert_eq!(now.dropped(), 0);
    }
    let log = switch.stop();
    assert!(log.contains("stats macs=2"), "{log}");
}

#[test]
fn the_log_level_is_obeyed() {
    let dir = directory();
    let socket = dir.path().join("a.sock");
    let port = format!("vm1={}", socket.display());
    let log_of = |args: &[&str], env: Option<&str>, log: &str| {
        let mut command = ringswitch(&["run", "--user", "65534:65534", "--port", &port]);
        command.args(args);
        command.envs(env.map(|level| ("RINGSWITCH_LOG", level)));
        let sockets = [socket.clone()];
        let mut switch = started(command, &dir.path().join(log), &sockets);
        switch.signal("TERM");
        assert_eq!(switch.wait(PATIENCE).code(), Some(0));
        switch.output()
    };
    let told = log_of(&[], None, "1");
    assert!(told.contains(" INFO  control: ready: 1 ports, 1 workers"), "{told}");
    assert_eq!(log_of(&["--log-level", "warn"], None, "2"), "");
    assert_eq!(log_of(&[], Some("error"), "3"), "");
    assert!(log_of(&["--log-level", "info"], Some("error"), "4").contains("ready"));
    refused(ringswitch(&["run", "--port", &port]).env("RINGSWITCH_LOG", "loud"), 2, &["loud"]);
}

#[test]
fn two_hundred_ports_come_and_go() {
    let names: Vec<_> = (0..200).map(|n| format!("vm{n}")).collect();
    let builder = names.iter().fold(Switch::builder(), |builder, name| builder.port(name));
    let mut switch = builder.start();
    let pid = switch.process().pid();
    switch.process().output_with("ready: 200 ports", 0, PATIENCE);
    let before = holdings(pid);
    assert!(before.threads >= 200, "a thread for each port: {before:?}");
    let guests: Vec<_> = names
        .iter()
        .map(|name| {
            let guest = Guest::builder(switch.socket(name)).ring_size(16).tx_slot(4096);
            guest.attach().expect("a guest")
        })
        .collect();
    assert!(holdings(pid).fds > before.fds + 200, "each guest has descriptors there");
    drop(guests);
    wait_for("descriptors as before", PATIENCE, || {
        let now = holdings(pid);
        ((now.fds, now.threads) == (before.fds, before.threads)).then_some(())
    });
    switch.stop();
}

#[test]
fn workers_run_where_they_are_told() {
    let cpus = allowed_cpus("self/status");
    assert!(cpus.len() >= 2, "this test needs two CPUs: {cpus:?}");
    // Not in the order of the machine, so that a worker that takes its own number shows.
    let (first, second) = (cpus[1], cpus[0]);
    let (dir, file) = configured(&format!(
        "[workers]\ncount = 2\ncpus = [{first}, {second}]\n\
         [[port]]\nname = \"a\"\ntype = \"vhost-user\"\nsocket = \"DIR/a.sock\"\n"
    ));
    let command = ringswitch(&["run", "--config", &file]);
    let switch = started(command, &dir.path().join("log"), &[dir.path().join("a.sock")]);
    let cpus_of = |name: &str| {
        wait_for("pinned worker", PATIENCE, || {
            let tasks = fs::read_dir(format!("/proc/{}/task", switch.pid())).expect("its threads");
            tasks.map(|task| task.expect("a thread").path()).find_map(|task| {
                let comm = fs::read_to_string(task.join("comm")).ok()?;
                let status = format!("{}/status", task.strip_prefix("/proc").ok()?.display());
                // A thread has its name before it pins itself.
                (comm.trim() == name).then(|| allowed_cpus(&status)).filter(|cpus| cpus.len() == 1)
            })
        })
    };
    assert_eq!(cpus_of("worker0"), [first]);
    assert_eq!(cpus_of("worker1"), [second]);
    assert_eq!(allowed_cpus(&format!("{}/status", switch.pid())), cpus, "the main thread is free");
}

/// The CPUs in `Cpus_allowed_list`, such as `0-2,7`.
fn allowed_cpus(status: &str) -> Vec<usize> {
    let text = fs::read_to_string(format!("/proc/{status}")).expect("a status");
    let list = text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let number = |text: &str| text.parse::<usize>().expect("a CPU");
    let ranges = list.expect("a list of CPUs").trim().split(',').map(|range| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        number(from)..=number(to)
    });
    ranges.flatten().collect()
}

#[test]
fn args_name_the_ports_that_there_are() {
    let (_dir, file) = configured(
        "[[port]]\nname = \"vm1\"\ntype = \"vhost-user\"\nsocket = \"/run/a.sock\"\n\
         [[port]]\nname = \"vm2\"\ntype = \"vhost-user\"\nsocket = \"/run/b.sock\"\n\
         role = \"client\"\nqueue-pairs = 2\nmtu = 9000\n\
         [[port]]\nname = \"up\"\ntype = \"tap\"\ndevice = \"rs0\"\n",
    );
    let args = |vmm: &str, port: &str| ringswitch(&["args", vmm, port, "--config", &file]);
    refused(&mut args("qemu", "vm3"), 2, &["\"vm3\"", "expected one of: vm1 vm2"]);
    refused(&mut args("qemu", "up"), 2, &["\"up\" is a TAP"]);
    refused(&mut args("xen", "vm1"), 2, &["xen", "cloud-hypervisor"]);
    let printed = |vmm: &str, port: &str| {
        let (code, stdout, stderr) = run(&mut args(vmm, port));
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{vmm} {port}");
        stdout
    };
    for (vmm, port, parts) in [
        ("qemu", "vm1", ["path=/run/a.sock,reconnect=1", "queues=8", "share=on"]),
        ("qemu", "vm2", ["path=/run/b.sock,server=on", "mq=on,vectors=6", "host_mtu=9000"]),
        ("cloud-hypervisor", "vm1", ["socket=/run/a.sock", "num_queues=16", "shared=on"]),
        ("cloud-hypervisor", "vm2", ["vhost_mode=server", "num_queues=4", "mtu=9000"]),
        ("libvirt", "vm1", ["mode='client'", "<reconnect", "queues='8'"]),
        ("libvirt", "vm2", ["mode='server'", "queues='2'", "<mtu size='9000'/>"]),
    ] {
        let text = printed(vmm, port);
        for part in parts {
            assert!(text.contains(part), "{vmm} {port} lacks {part}:\n{text}");
        }
    }
}

#[test]
fn qemu_takes_the_printed_arguments() {
    let mut switch = Switch::builder().port("vm1").start();
    let port = format!("vm1={}", switch.socket("vm1").display());
    let mut args = ringswitch(&["args", "qemu", "vm1", "--port", &port]);
    let (code, printed, _) = run(args.args(["--vcpus", "2", "--memory", "64M"]));
    assert_eq!(code, Some(0));
    // As an operator would: the text pasted into a shell.
    let line = format!(
        "exec qemu-system-x86_64 -S -nodefaults -display none -monitor stdio -smp 2 {printed}"
    );
    let mut command = Command::new("sh");
    command.args(["-c", &line]);
    let dir = tempfile::tempdir().expect("a directory");
    let mut qemu = Process::start("qemu", command, &dir.path().join("log"));
    qemu.output_with("(qemu)", 0, PATIENCE);
    switch.process().output_with("port vm1: a frontend connected", 0, PATIENCE);
    let from = qemu.output().len();
    qemu.type_line("info network");
    // Two queue pairs over the port's socket, which is in no quotes or commas' way.
    qemu.output_with("index=1,type=vhost-user", from, PATIENCE);
    assert!(UnixStream::connect(switch.socket("vm1")).is_ok(), "the listener stays open");
    qemu.type_line("quit");
    assert!(qemu.wait(PATIENCE).success(), "{}", qemu.output());
    switch.stop();
}
