//! The ports as interfaces of Wireshark: the program answers what Wireshark asks, and tshark captures
//! by it.

use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use fakeguest::frames::{Frame, mac};
use fakeguest::{Guest, Layout};

use super::capture;
use super::support::netns::must;
use super::support::proc::Process;
use super::support::switch::Switch;
use super::support::wait_for;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);
const BINARY: &str = env!("CARGO_BIN_EXE_ringswitch");

/// A switch with guests on its ports `a` and `b`.
struct Bench {
    switch: Switch,
    a: Guest,
    b: Guest,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let switch = Switch::builder().port("a").port("b").api().start();
        let guest = |port: &str| Guest::builder(switch.socket(port)).attach().expect("a guest");
        let [mut a, mut b] = ["a", "b"].map(guest);
        // So that a knows where b is.
        b.send(0, &Frame::pattern([0xff; 6], mac(2), 60, 0), &Layout::whole());
        a.recv(0, PATIENCE).expect("a broadcast");
        Bench { switch, a, b, dir: tempfile::tempdir().expect("a directory") }
    }

    /// `ringswitch extcap` with these arguments, as Wireshark calls it.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.switch.client(&["extcap"]);
        command.args(arguments).arg("--extcap-version=4.0").stdin(Stdio::null());
        command
    }

    fn says(&self, arguments: &[&str]) -> String {
        must(&mut self.command(arguments))
    }

    /// A frame from `a` to `b`, which arrives.
    fn frame(&mut self, seed: u32) -> Frame {
        let frame = Frame::pattern(mac(2), mac(1), 100, seed);
        self.a.send(0, &frame, &Layout::whole());
        assert_eq!(self.b.recv(0, PATIENCE).expect("a frame").bytes, frame.bytes);
        frame
    }

    /// Begins a capture into a fifo that is made at this path.
    fn capture(&self, fifo: &Path, arguments: &[&str]) -> Process {
        must(Command::new("mkfifo").arg(fifo));
        let path = fifo.to_str().expect("a path");
        let command = self.command(&[&["--capture", "--fifo", path], arguments].concat());
        Process::start("ringswitch extcap", command, &fifo.with_extension("log"))
    }
}

#[test]
fn questions_are_answered_as_wireshark_reads_them() {
    let bench = Bench::new();
    let text = bench.says(&["--extcap-interfaces"]);
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("extcap {version="), "{text}");
    assert_eq!(
        lines[1..],
        [
            "interface {value=ringswitch}{display=Ringswitch: all ports}",
            "interface {value=ringswitch-a}{display=Ringswitch: a}",
            "interface {value=ringswitch-b}{display=Ringswitch: b}",
        ]
    );
    let of_a = ["--extcap-interface", "ringswitch-a"];
    let says = |more: &[&str]| bench.says(&[&of_a, more].concat());
    assert_eq!(says(&["--extcap-dlts"]), "dlt {number=1}{name=EN10MB}{display=Ethernet}\n");
    assert!(says(&["--extcap-config"]).starts_with("arg {number=0}{call=--snaplen}"));
    assert_eq!(says(&["--extcap-capture-filter", "tcp and port 80"]), "", "that is a filter");
    let no = says(&["--extcap-capture-filter", "tcp and banana"]);
    assert!(no.contains("\"banana\""), "{no}");

    for (arguments, code, says) in [
        (&[][..], 2, "required"),
        (&["--extcap-dlts"], 2, "--extcap-interface"),
        (&["--capture", "--extcap-interface", "ringswitch-a"], 2, "--fifo"),
        (&["--capture", "--extcap-interface", "eth0", "--fifo", "/nowhere/x"], 1, "\"eth0\""),
        (
            &["--capture", "--extcap-interface", "ringswitch-c", "--fifo", "/x/y"],
            1,
            "there are a, b",
        ),
    ] {
        let output = bench.command(arguments).output().expect("run");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(says), "{arguments:?}: {text}");
    }
    let socket = bench.switch.api_socket();
    bench.switch.stop();
    let mut command = Command::new(BINARY);
    let text = must(command.args(["extcap", "--extcap-interfaces"]).env("RINGSWITCH_API", socket));
    assert_eq!(text.lines().count(), 1, "no switch, no interfaces, no error: {text}");
}

#[test]
fn frames_come_out_of_the_fifo_until_it_is_told_to_end() {
    let mut bench = Bench::new();
    let (fifo, file) = (bench.dir.path().join("fifo"), bench.dir.path().join("file"));
    let filter = ["--extcap-capture-filter", "ether src 02:00:00:00:00:01", "--snaplen", "60"];
    let arguments = [&["--extcap-interface", "ringswitch"], &filter[..]].concat();
    let mut process = bench.capture(&fifo, &arguments);
    let (from, to) = (fifo.clone(), file.clone());
    let reader = thread::spawn(move || {
        let mut from = File::open(from).expect("a fifo");
        io::copy(&mut from, &mut File::create(to).expect("a file")).expect("frames")
    });
    let size = || fs::metadata(&file).map_or(0, |file| file.len());
    wait_for("a capture that has begun", PATIENCE, || (size() > 0).then_some(()));
    let head = size();
    let frames: Vec<_> = (0..3).map(|seed| bench.frame(seed)).collect();
    // Each is seen at both ports, with 60 bytes.
    wait_for("all frames", PATIENCE, || (size() >= head + 6 * 60).then_some(()));
    process.signal("TERM");
    assert!(process.wait(PATIENCE).success(), "{}", process.output());
    reader.join().expect("a reader");
    let (captured, missed) = capture::read(&file);
    let told: Vec<_> = captured.iter().map(|it| (it.place(), &it.bytes[..])).collect();
    let expected: Vec<_> = frames
        .iter()
        .flat_map(|frame| {
            [(("b", "from a"), &frame.bytes[..60]), (("a", "to b"), &frame.bytes[..60])]
        })
        .collect();
    assert_eq!((told, missed), (expected, 0));
    bench.switch.stop();
}

#[test]
fn a_fifo_that_is_closed_ends_it() {
    let mut bench = Bench::new();
    let fifo = bench.dir.path().join("fifo");
    let mut process = bench.capture(&fifo, &["--extcap-interface", "ringswitch-b"]);
    let mut begin = [0; 16];
    File::open(&fifo).and_then(|mut fifo| fifo.read_exact(&mut begin)).expect("the file's head");
    let mut seed = 0;
    let status = wait_for("its end", PATIENCE, || {
        seed += 1;
        bench.frame(seed);
        process.ended()
    });
    assert!(status.success(), "{status}: {}", process.output());
    bench.switch.stop();
}

#[test]
fn tshark_lists_the_ports_and_captures() {
    let mut bench = Bench::new();
    // Where versions before and since 4.1 look for a user's own ones.
    for place in [".config/wireshark/extcap", ".local/lib/wireshark/extcap"] {
        let place = bench.dir.path().join(place);
        fs::create_dir_all(&place).expect("a directory");
        let script = format!("#!/bin/sh\nexec {BINARY} extcap \"$@\"\n");
        fs::write(place.join("ringswitch"), script).expect("a script");
        fs::set_permissions(place.join("ringswitch"), Permissions::from_mode(0o755))
            .expect("a mode");
    }
    let tshark = |arguments: &[&str]| {
        let mut command = Command::new("tshark");
        command.args(arguments).env("HOME", bench.dir.path()).env_remove("XDG_CONFIG_HOME");
        command.env("RINGSWITCH_API", bench.switch.api_socket()).stdin(Stdio::null());
        command
    };
    let listed = must(&mut tshark(&["-D"]));
    for display in ["ringswitch (Ringswitch: all ports)", "ringswitch-a (Ringswitch: a)"] {
        assert!(listed.contains(display), "{listed}");
    }
    let fields = ["-T", "fields", "-e", "frame.len", "-e", "frame.comment"];
    let arguments = ["-i", "ringswitch-a", "-f", "ether src 02:00:00:00:00:01", "-c", "3"];
    let mut command = tshark(&[&arguments[..], &fields].concat());
    command.stdout(File::create(bench.dir.path().join("frames")).expect("a file"));
    command.stderr(File::create(bench.dir.path().join("log")).expect("a file"));
    let mut child = command.spawn().expect("tshark");
    let mut seed = 0;
    let status = wait_for("three frames", PATIENCE, || {
        seed += 1;
        bench.frame(seed);
        child.try_wait().expect("a child of ours")
    });
    let text = |name| fs::read_to_string(bench.dir.path().join(name)).expect("text");
    assert!(status.success(), "{}", text("log"));
    assert_eq!(text("frames"), "100\tto b\n".repeat(3), "{}", text("log"));
    bench.switch.stop();
}
