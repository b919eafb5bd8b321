//! Captures: what is written is what was sent, with what became of it, in a form that others read;
//! and nobody pays for it but who is captured.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use fakeguest::frames::{Flow, Frame, mac};
use fakeguest::{Guest, Layout};
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use pcap_file::pcapng::blocks::opt_common::CommonOption;
use pcap_file::pcapng::{Block, PcapNgReader};

use super::support::netns::must;
use super::support::proc::{Process, holdings, holds_again};
use super::support::switch::Switch;
use super::support::wait_for;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A frame of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    interface: String,
    inbound: bool,
    comment: String,
    len: u32,
    pub bytes: Vec<u8>,
    ns: u128,
}

impl Captured {
    /// The port, and what became of it.
    pub fn place(&self) -> (&str, &str) {
        (&self.interface, &self.comment)
    }
}

/// The frames of a pcapng file, and how many were missed.
pub fn read(path: &Path) -> (Vec<Captured>, u64) {
    let mut reader = PcapNgReader::new(fs::File::open(path).expect("a file")).expect("pcapng");
    let (mut frames, mut missed) = (Vec::new(), 0);
    let mut interfaces: Vec<String> = Vec::new();
    while let Some(block) = reader.next_block() {
        match block.expect("a whole block").0 {
            Block::InterfaceDescription(block) => {
                let text = format!("{:?}", block.options.first().expect("a name"));
                interfaces.push(text.split('"').nth(1).expect("a name").to_owned());
            }
            Block::InterfaceStatistics(block) => {
                let text = format!("{:?}", block.options);
                let count = text.split(['(', ')']).nth(1).expect("a count");
                missed = count.parse().expect("a number");
            }
            Block::EnhancedPacket(block) => {
                let (mut flags, mut comment) = (0, String::new());
                for option in &block.options {
                    match option {
                        EnhancedPacketOption::Flags(bits) => flags = *bits,
                        EnhancedPacketOption::Common(CommonOption::Comment(text)) => {
                            comment = text.to_string();
                        }
                        other => panic!("{other:?}"),
                    }
                }
                frames.push(Captured {
                    interface: interfaces[block.interface_id as usize].clone(),
                    inbound: flags & 3 == 1,
                    comment,
                    len: block.original_len,
                    bytes: block.data.to_vec(),
                    ns: block.timestamp.as_nanos(),
                });
            }
            other => panic!("{other:?}"),
        }
    }
    (frames, missed)
}

/// A switch with guests on its ports `a`, `b` and `c`, `mac(1)` to `mac(3)`, who know each other.
struct Bench {
    switch: Switch,
    guests: [Guest; 3],
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let switch = Switch::builder().port("a").port("b").port("c").api().upgradable().start();
        let guest = |port: &str| Guest::builder(switch.socket(port)).attach().expect("a guest");
        let guests = ["a", "b", "c"].map(guest);
        let mut bench = Bench { switch, guests, dir: tempfile::tempdir().expect("a directory") };
        for from in 0..3 {
            bench.send(from, &hello(from));
            for to in (0..3).filter(|to| *to != from) {
                bench.receive(to, &hello(from));
            }
        }
        bench
    }

    fn send(&mut self, from: usize, frame: &Frame) {
        self.guests[from].send(0, frame, &Layout::whole());
    }

    fn receive(&mut self, at: usize, frame: &Frame) {
        let got = self.guests[at].recv(0, PATIENCE).expect("a frame");
        assert_eq!(got.bytes, frame.bytes);
    }

    /// Begins a capture with these arguments. It has begun when this returns.
    fn capture(&self, arguments: &[&str]) -> Running {
        let path =
            self.dir.path().join(format!("{}.pcapng", arguments.join("-").replace('/', "-")));
        let mut command = self.switch.client(&["capture"]);
        command.args(arguments).arg("-w").arg(&path).stdin(Stdio::null());
        let process = Process::start("ringswitch capture", command, &path.with_extension("log"));
        // The head of the file comes with the capture.
        wait_for("a file", PATIENCE, || fs::metadata(&path).ok().filter(|it| it.len() > 0));
        Running { process, path }
    }
}

struct Running {
    process: Process,
    path: std::path::PathBuf,
}

impl Running {
    /// Waits until it has so many frames, ends it, and returns them.
    fn frames(mut self, count: usize) -> Vec<Captured> {
        wait_for("frames", PATIENCE, || {
            // A block may be half written.
            let size = fs::metadata(&self.path).expect("a file").len();
            std::thread::sleep(Duration::from_millis(50));
            (size == fs::metadata(&self.path).expect("a file").len()
                && read(&self.path).0.len() >= count)
                .then_some(())
        });
        self.process.signal("INT");
        assert!(self.process.wait(PATIENCE).success(), "{}", self.process.output());
        let (frames, missed) = read(&self.path);
        assert_eq!((frames.len(), missed), (count, 0), "{frames:?}");
        frames
    }
}

/// What guest `from` says to all.
fn hello(from: usize) -> Frame {
    Frame::pattern([0xff; 6], mac(from as u8 + 1), 64, 0)
}

/// A frame from one guest to another.
fn frame(from: usize, to: usize, len: usize, seed: u32) -> Frame {
    Frame::pattern(mac(to as u8 + 1), mac(from as u8 + 1), len, seed)
}

#[test]
fn frames_stand_there_whole_with_what_became_of_them() {
    let mut bench = Bench::new();
    let all = bench.capture(&["a,b"]);
    let only_b = bench.capture(&["b", "ether", "src", "02:00:00:00:00:01"]);
    let drops = bench.capture(&["a,b,c", "dropped"]);
    let (there, back) = (frame(0, 1, 1514, 1), frame(1, 0, 60, 2));
    bench.send(0, &there);
    bench.receive(1, &there);
    bench.send(1, &back);
    bench.receive(0, &back);
    // Between others: not of interest.
    let other = frame(2, 0, 90, 3);
    bench.send(2, &other);
    bench.receive(0, &other);
    let all_hear = hello(0);
    bench.send(0, &all_hear);
    bench.receive(1, &all_hear);
    bench.receive(2, &all_hear);
    let to_itself = frame(0, 0, 64, 4);
    bench.send(0, &to_itself);

    let frames = all.frames(8);
    let told: Vec<_> = frames
        .iter()
        .map(|it| (it.interface.as_str(), it.inbound, it.comment.as_str(), it.bytes.as_slice()))
        .collect();
    // At the port where it leaves before it is known what became of it everywhere.
    let expected: [(&str, bool, &str, &[u8]); 8] = [
        ("b", false, "from a", &there.bytes),
        ("a", true, "to b", &there.bytes),
        ("a", false, "from b", &back.bytes),
        ("b", true, "to a", &back.bytes),
        ("a", false, "from c", &other.bytes),
        ("b", false, "from a", &all_hear.bytes),
        ("a", true, "to 2 ports", &all_hear.bytes),
        ("a", true, "dropped: no_destination", &to_itself.bytes),
    ];
    assert_eq!(told, expected);
    assert!(frames.is_sorted_by_key(|it| it.ns));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time");
    assert!(now.as_nanos() - frames[0].ns < 600_000_000_000, "{now:?} {frames:?}");

    let frames = only_b.frames(2);
    assert_eq!([&frames[0].bytes, &frames[1].bytes], [&there.bytes, &all_hear.bytes]);
    assert_eq!(drops.frames(1)[0].bytes, to_itself.bytes);
    bench.switch.stop();
}

#[test]
fn a_guest_that_is_too_slow_is_seen_losing_frames() {
    let mut bench = Bench::new();
    let capture = bench.capture(&["a,b"]);
    // It gives no buffer back, so its ring of 256 is full in the end.
    let count = 300;
    for seed in 0..count {
        bench.send(0, &frame(0, 1, 64, seed));
    }
    bench.switch.statistics_when(|now| now.port("a", "ingress_frames") > u64::from(count));
    let lost = bench.switch.statistics().port("b", "drop_rx_ring_full") as usize;
    assert!(lost > 0);
    let frames = capture.frames(2 * count as usize);
    let with = |comment: &str| frames.iter().filter(|it| it.comment == comment).count();
    assert_eq!(with("to b, dropped there: rx_ring_full"), lost);
    assert_eq!(with("from a, dropped: rx_ring_full"), lost);
    assert_eq!(with("to b"), count as usize - lost);
    bench.switch.stop();
}

#[test]
fn large_frames_are_kept_whole_or_cut_and_tcpdump_reads_them() {
    let mut bench = Bench::new();
    let [whole, cut] = [&["a"][..], &["a", "--snaplen", "100"]].map(|args| bench.capture(args));
    let large = Flow::v4(1, 2).tcp(0, &vec![7; 60_000]).segmentable(1448);
    bench.send(0, &large);
    let frames = whole.frames(1);
    assert_eq!((frames[0].len as usize, &frames[0].bytes), (large.bytes.len(), &large.bytes));
    let path = bench.dir.path().join("a---snaplen-100.pcapng");
    let frames = cut.frames(1);
    assert_eq!(
        (frames[0].len as usize, &frames[0].bytes[..]),
        (large.bytes.len(), &large.bytes[..100])
    );
    let text = must(Command::new("tcpdump").args(["-nr"]).arg(&path));
    assert!(text.contains("IP ") && text.contains("length"), "{text}");
    bench.switch.stop();
}

#[test]
fn what_cannot_be_captured_is_refused_with_a_reason_and_changes_nothing() {
    let mut bench = Bench::new();
    let pid = bench.switch.process().pid();
    let before = holdings(pid);
    let file = bench.dir.path().join("file");
    let file = file.to_str().expect("a path");
    for (arguments, code, says) in [
        (&["capture", "d", "-w", file][..], 1, "there is no port \"d\"; there are a, b, c"),
        (&["capture", "a,", "-w", file], 1, "there is no port \"\""),
        (&["capture", "a", "tcp", "port", "80", "-w", file], 1, "the filter has \"port\""),
        (&["capture", "a", "--snaplen", "13", "-w", file], 2, "13 is not in 14.."),
        (&["capture", "a"], 2, "--write <FILE>"),
        (&["capture", "a", "-w", "/nowhere/file"], 1, "cannot write frames to /nowhere/file"),
        (&["capture", "a", "-w", "/dev/full"], 1, "No space left"),
    ] {
        let output = bench.switch.client(arguments).output().expect("run");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(says), "{arguments:?}: {text}");
        assert!(!Path::new(file).exists(), "{arguments:?}");
    }
    // That a client has gone is seen at the next statistics.
    holds_again(pid, before);
    let mut many: Vec<_> =
        (0..8).map(|n| bench.capture(&["a", "--snaplen", &format!("{}", 100 + n)])).collect();
    let mut one_more = bench.switch.client(&["capture", "a", "-w", file, "--seconds", "1"]);
    let output = one_more.output().expect("run");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("8 captures already"), "{text}");
    // Also one that ends without a word.
    many.pop().expect("a capture").process.signal("KILL");
    wait_for("room for one more", PATIENCE, || {
        one_more.status().expect("run").success().then_some(())
    });
    bench.switch.stop();
}

#[test]
fn a_client_that_reads_nothing_loses_frames_and_nobody_else_does() {
    let mut bench = Bench::new();
    let mut stream = UnixStream::connect(bench.switch.api_socket()).expect("an API");
    let request = b"GET /v1/capture?ports=a HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(request).expect("written");
    let mut first = [0; 12];
    stream.read_exact(&mut first).expect("an answer");
    assert_eq!(&first, b"HTTP/1.1 200");
    let before = holdings(bench.switch.process().pid());
    // More than all buffers on the way hold.
    let large = Flow::v4(1, 2).tcp(0, &vec![7; 60_000]).segmentable(1448);
    for _ in 0..400 {
        bench.send(0, &large);
        bench.receive(1, &large);
    }
    let now = holdings(bench.switch.process().pid());
    assert!(now.private_kib < before.private_kib + (32 << 10), "{now:?} after {before:?}");
    assert_eq!(bench.switch.statistics().dropped(), 0);
    drop(stream);
    bench.capture(&["a"]);
    bench.switch.stop();
}

#[test]
fn an_upgrade_ends_a_capture_and_says_so() {
    let mut bench = Bench::new();
    let mut capture = bench.capture(&["a"]);
    bench.switch.upgrade();
    assert_eq!(capture.process.wait(PATIENCE).code(), Some(1));
    let text = capture.process.output();
    assert!(text.contains("another process took over"), "{text}");
    read(&capture.path);
    bench.switch.stop();
}
