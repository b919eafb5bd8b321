//! Traces: what is said of a frame's way is what then happens to it, saying so changes nothing, and
//! who asks badly is told what to do.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use fakeguest::features as feature;
use fakeguest::frames::{Flow, Frame, Header, NEEDS_CSUM, mac};
use fakeguest::{Guest, Layout};
use pcap_file::DataLink;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionBlock;
use serde_json::{Value, json};

use crate::support::lan::{arrived, arrived_on, attach, guest, receive, send};
use crate::support::netns::Netns;
use crate::support::switch::Switch;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The addresses of the guests, as text.
const MACS: [&str; 3] = ["02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"];

/// A switch with guests on `a`, `b`, `c`, who know each other, and nobody on `down`. `b` takes no
/// offloads, and has a ring of 32.
struct Bench {
    switch: Switch,
    guests: [Guest; 3],
}

impl Bench {
    fn new() -> Bench {
        let ports = ["a", "b", "c", "down"];
        let builder = ports.iter().fold(Switch::builder(), |builder, port| builder.port(port));
        let switch = builder.api().start();
        let plain = feature::GUEST_TSO4
            | feature::GUEST_TSO6
            | feature::GUEST_ECN
            | feature::GUEST_USO4
            | feature::GUEST_USO6
            | feature::GUEST_CSUM;
        let b = guest(&switch, "b").without(plain).ring_size(32).attach().expect("a guest");
        let guests = [attach(&switch, "a"), b, attach(&switch, "c")];
        let mut bench = Bench { switch, guests };
        for from in 0..3 {
            send(&mut bench.guests[from], &[hello(from)]);
            for to in (0..3).filter(|to| *to != from) {
                receive(&mut bench.guests[to], &[hello(from)]);
            }
        }
        bench
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.switch.client(&["trace"]);
        command.args(arguments).stdin(Stdio::null()).output().expect("run")
    }

    /// What it prints for programs.
    fn trace(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat());
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// The trace of these bytes, from `port`.
    fn of(&self, port: &str, frame: &Frame) -> Value {
        let fields = frame.header();
        let header = json!({
            "flags": fields.flags,
            "gso_type": fields.gso_type,
            "gso_size": fields.gso_size,
            "csum_start": fields.csum_start,
            "csum_offset": fields.csum_offset,
        });
        let body = json!({ "port": port, "frame": hex(&frame.bytes), "header": header });
        let (status, answer) = self.post(&body.to_string());
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// Status and answer to this body.
    fn post(&self, body: &str) -> (u16, Value) {
        let mut stream = UnixStream::connect(self.switch.api_socket()).expect("an API");
        let head = format!(
            "POST /v1/trace HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        // It may have closed before it has read all.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
        let mut got = Vec::new();
        match stream.read_to_end(&mut got) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
            _ => (),
        }
        let got = String::from_utf8(got).expect("text");
        let status = got.split(' ').nth(1).expect("a status").parse().expect("a number");
        let (_, body) = got.split_once("\r\n\r\n").expect("a body");
        (status, serde_json::from_str(body).expect("JSON"))
    }

    /// Sends a frame from guest 0 and returns how many each of the others got.
    fn sent(&mut self, frame: &Frame) -> [usize; 2] {
        send(&mut self.guests[0], std::slice::from_ref(frame));
        [1, 2].map(|to| arrived(&mut self.guests[to]).len())
    }
}

fn hello(from: usize) -> Frame {
    Frame::pattern([0xff; 6], mac(from as u8 + 1), 64, 0)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The decision of a step, at a port if it is one's.
fn decision<'a>(trace: &'a Value, step: &str, port: Option<&str>) -> &'a str {
    let steps = trace["steps"].as_array().expect("steps");
    let found = steps.iter().find(|it| it["step"] == step && it["port"].as_str() == port);
    found.and_then(|it| it["decision"].as_str()).unwrap_or_else(|| panic!("no {step}: {trace}"))
}

/// The ports that a frame would leave by, the frames that it is there, and why it is dropped.
fn exits(trace: &Value) -> Vec<(&str, u64, Option<&str>)> {
    let exits = trace["exits"].as_array().expect("a list").iter();
    exits
        .map(|it| {
            let port = it["port"].as_str().expect("a name");
            (port, it["frames"].as_u64().expect("a number"), it["dropped"].as_str())
        })
        .collect()
}

#[test]
fn what_is_said_is_what_happens() {
    let mut bench = Bench::new();
    let limit = |to: [u8; 6], len| Frame::pattern(to, mac(1), len, 7);
    // A known station; one that nobody knows; itself; a pause frame; all.
    let cases: [(&str, Frame, Option<&str>); 5] = [
        ("delivered to b", limit(mac(2), 60), None),
        ("delivered to b, c", limit(mac(9), 60), None),
        ("dropped, no_destination. Ingress: ", limit(mac(1), 60), Some("no_destination")),
        (
            "dropped, reserved_address. Ingress: ",
            limit([1, 0x80, 0xc2, 0, 0, 1], 60),
            Some("reserved_address"),
        ),
        ("delivered to b, c", limit([0xff; 6], 1514), None),
    ];
    for (verdict, frame, dropped) in cases {
        let trace = bench.of("a", &frame);
        let text = trace["verdict"].as_str().expect("a verdict");
        assert!(text.starts_with(verdict), "{trace}");
        assert_eq!(trace["dropped"].as_str(), dropped, "{trace}");
        let before = bench.switch.statistics().dropped();
        let got = bench.sent(&frame);
        let said = ["b", "c"].map(|port| exits(&trace).iter().filter(|it| it.0 == port).count());
        assert_eq!(got, said, "{trace}");
        let now = bench.switch.statistics();
        assert_eq!(now.dropped() - before, u64::from(dropped.is_some()));
        if let Some(reason) = dropped {
            assert!(now.port("a", &format!("drop_{reason}")) > 0, "{reason}");
        }
    }
    bench.switch.stop();
}

#[test]
fn learning_is_foretold_with_moves_and_limits() {
    let settings = "[mac-table]\nper-port = 1\n";
    let switch = Switch::builder().settings(settings).port("a").port("b").api().start();
    let guests = ["a", "b"].map(|port| attach(&switch, port));
    let [mut a, mut b] = guests;
    let learns = |port: &str, from: u8| {
        let bytes = hex(&Frame::pattern([0xff; 6], mac(from), 60, 0).bytes);
        let mut command = switch.client(&["trace", port, "hex", &bytes, "--json"]);
        let output = command.output().expect("run");
        let trace: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        decision(&trace, "learn", Some(port)).to_owned()
    };
    assert_eq!(learns("a", 1), "would be learned");
    send(&mut a, &[hello(0)]);
    receive(&mut b, &[hello(0)]);
    assert_eq!(learns("a", 1), "is known here: refreshed");
    assert_eq!(learns("b", 1), "would move here from a");
    assert_eq!(learns("a", 2), "refused: the port has as many as it may");
    assert_eq!(learns("a", 0x0f).split(':').next(), Some("refused"));
    switch.stop();
}

#[test]
fn offloads_are_foretold_as_they_are_converted() {
    let mut bench = Bench::new();
    let large = Flow::v4(1, 2).tcp(0, &[7; 20_000]).segmentable(1448);
    let to_c = Flow::v4(1, 3).tcp(0, &[7; 20_000]).segmentable(1448);
    let open = Flow::v4(1, 2).udp(b"odd").open_checksum();
    for (frame, verdict, step) in [
        (&large, "delivered to b as 14 frames", "cut into 14 frames of 1502 bytes at most"),
        (&to_c, "delivered to c", "passes as it is"),
        (&open, "delivered to b", "its checksum is completed"),
    ] {
        let trace = bench.of("a", frame);
        assert_eq!(trace["verdict"], verdict, "{trace}");
        let [(port, frames, None)] = exits(&trace)[..] else { panic!("{trace}") };
        assert_eq!(decision(&trace, "offload", Some(port)), step);
        assert_eq!(bench.sent(frame).iter().sum::<usize>() as u64, frames, "{trace}");
    }
    // As many segments as there is room for, and one more.
    for (segments, dropped) in [(32, None), (33, Some("rx_ring_full"))] {
        let frame = Flow::v4(1, 2).tcp(0, &vec![7; segments * 100]).segmentable(100);
        let trace = bench.of("a", &frame);
        let frames = if dropped.is_some() { 0 } else { segments as u64 };
        assert_eq!(exits(&trace), [("b", frames, dropped)], "{trace}");
        assert_eq!(bench.sent(&frame), [32, 0]);
        assert_eq!(bench.switch.statistics().dropped(), u64::from(dropped.is_some()));
    }
    // To all, it is not cut into more than 64.
    let flooded = Flow::v4(1, 9).tcp(0, &[7; 6500]).segmentable(100);
    let trace = bench.of("a", &flooded);
    assert_eq!(exits(&trace), [("b", 0, Some("bad_offload")), ("c", 1, None)]);
    assert_eq!(trace["verdict"], "delivered to c; dropped at b (bad_offload)");
    assert_eq!(bench.sent(&flooded), [0, 1]);
    // What its header says isn't true, or wasn't negotiated.
    let header = Header { flags: NEEDS_CSUM, csum_start: 60, csum_offset: 40, ..Header::default() };
    let bad = Flow::v4(1, 2).udp(b"odd").with_header(header);
    let trace = bench.of("a", &bad);
    assert_eq!(trace["dropped"], "bad_vnet_header");
    assert!(decision(&trace, "sanitise", None).contains("checksum at 60+40"), "{trace}");
    assert_eq!(bench.sent(&bad), [0, 0]);
    assert_eq!(bench.switch.statistics().port("a", "drop_bad_vnet_header"), 1);
    bench.switch.stop();
}

#[test]
fn a_queue_is_foretold_by_the_flow() {
    let switch = Switch::builder().port("a").port("b").port("c").api().start();
    let mut a = attach(&switch, "a");
    let mut b = guest(&switch, "b").queue_pairs(4).attach().expect("a guest");
    send(&mut b, &[hello(1)]);
    receive(&mut a, &[hello(1)]);
    let run = |from: &str, to: &str| {
        let mut command = switch.client(&["trace", "a", "tcp", from, to, "--to", "b", "--json"]);
        let output = command.args(["--from", MACS[0]]).output().expect("run");
        assert!(output.status.success(), "{output:?}");
        let trace: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        decision(&trace, "egress", Some("b")).to_owned()
    };
    for number in 0..8u16 {
        let flow = Flow { ports: (2000, 1000 + number), ..Flow::v4(2, 1) };
        let queue = usize::from(number % 4);
        b.send(queue, &flow.tcp(0, b"?"), &Layout::whole());
        assert!(b.flush(queue, PATIENCE));
        let said = run(&format!("10.0.0.1:{}", 1000 + number), "10.0.0.2:2000");
        assert_eq!(said, format!("by queue pair {queue}"));
    }
    // Flows that it doesn't send go where their hash says.
    for number in 0..8u16 {
        let said = run(&format!("10.0.0.1:{}", 3000 + number), "10.0.0.2:2000");
        let frame = Flow { ports: (3000 + number, 2000), ..Flow::v4(1, 2) }.tcp(0, b"!");
        send(&mut a, &[frame]);
        let queues: Vec<_> = (0..4).filter(|at| !arrived_on(&mut b, *at).is_empty()).collect();
        assert_eq!([said], [format!("by queue pair {}", queues[0])]);
    }
    // Pairs that are enabled and have no buffers are passed over.
    let c = guest(&switch, "c").queue_pairs(4).manual_posting().attach();
    let mut c = c.expect("a guest");
    assert!(c.queue(0).rx.post(usize::MAX) > 0);
    send(&mut c, &[hello(2)]);
    let unused = (0..8u16).filter(|number| {
        let from = format!("10.0.0.1:{}", 3000 + number);
        let mut command = switch.client(&["trace", "a", "udp", &from, "10.0.0.3", "--json"]);
        let output = command.args(["--from", MACS[0], "--to", MACS[2]]).output().expect("run");
        let trace: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(decision(&trace, "egress", Some("c")), "by queue pair 0");
        assert_eq!(trace["verdict"], "delivered to c");
        trace.to_string().contains("the driver doesn't use the flow's")
    });
    assert!(unused.count() > 0);
    switch.stop();
}

#[test]
fn a_trace_changes_nothing() {
    let mut bench = Bench::new();
    // One frame lies in the ring of `c`, whose guest is slow.
    send(&mut bench.guests[0], &[Frame::pattern(mac(3), mac(1), 99, 0)]);
    let state = |bench: &mut Bench| {
        let show = |what: &str| {
            let output = bench.switch.client(&["show", what, "--json"]).output().expect("run");
            serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
        };
        let [mut macs, ports, flows] = ["macs", "ports", "flows"].map(show);
        for mac in macs.as_array_mut().expect("a list") {
            mac.as_object_mut().expect("an address").remove("age_seconds");
        }
        (macs, ports, flows)
    };
    let before = state(&mut bench);
    for (to, from) in [(2, 1), (3, 1), (9, 1), (1, 1), (2, 8), (2, 3), (0xff, 7)] {
        let to = if to == 0xff { [0xff; 6] } else { mac(to) };
        bench.of("a", &Frame::pattern(to, mac(from), 60, 0));
        bench.of("down", &Frame::pattern(to, mac(from), 60, 0));
    }
    bench.of("a", &Flow::v4(1, 2).tcp(0, &[7; 20_000]).segmentable(1448));
    assert_eq!(state(&mut bench), before);
    let got: Vec<_> = bench.guests.iter_mut().map(|guest| arrived(guest).len()).collect();
    assert_eq!(got, [0, 0, 1]);
    // And everything goes on as it would have.
    assert_eq!(bench.sent(&Frame::pattern(mac(2), mac(1), 60, 1)), [1, 0]);
    bench.switch.stop();
}

#[test]
fn a_trace_of_memory_that_is_gone_ends_that_port_only() {
    let bench = Bench::new();
    // Its ring is short: there is always more to look for.
    let guest = &bench.guests[1];
    guest.memory().file().set_len(0).expect("a shorter file");
    let frame = Frame::pattern(mac(2), mac(1), 60, 0);
    bench.of("a", &frame);
    assert!(guest.connection().closed_within(PATIENCE), "the connection is ended");
    bench.of("a", &frame);
    let trace = bench.of("a", &Frame::pattern(mac(3), mac(1), 60, 0));
    assert_eq!(trace["verdict"], "delivered to c");
    let log = bench.switch.stop();
    assert!(log.contains("the file behind the guest's memory"), "{log}");
}

#[test]
fn an_uplink_is_a_port_as_others() {
    let netns = Netns::new();
    let switch = Switch::builder().netns(&netns).port("a").uplink("t0").api().start();
    let mut a = attach(&switch, "a");
    let trace = |words: &str| {
        let mut command = switch.client(&["trace", "--json"]);
        let output = command.args(words.split(' ')).output().expect("run");
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
    };
    // The kernel's own words may be there already: an address that nobody has.
    let there = trace("a icmp 10.0.0.1 10.0.0.2 --from 02:00:00:00:00:01 --to 02:00:00:00:00:99");
    assert_eq!(there["verdict"], "delivered to uplink");
    assert_eq!(decision(&there, "egress", Some("uplink")), "by queue 0");
    assert_eq!(decision(&there, "offload", Some("uplink")), "passes as it is");
    send(&mut a, &[hello(0)]);
    let back = trace("uplink tcp 10.0.0.2 10.0.0.1 --from 02:00:00:00:00:99 --to a --tso 1000");
    assert_eq!(back["verdict"], "delivered to a");
    assert_eq!(decision(&back, "learn", Some("uplink")), "would be learned");
    switch.stop();
}

/// A file in the two formats: frames of these lengths to guest 3, the last one cut when captured.
fn files(dir: &Path) -> [String; 2] {
    let lengths = [60, 61, 3000];
    let frame = |len: usize| Frame::pattern(mac(3), mac(1), len, 0).bytes;
    let kept = |len: usize| frame(len)[..len.min(100)].to_vec();
    let [old, new] = ["old.pcap", "new.pcapng"].map(|name| dir.join(name));
    let file = fs::File::create(&old).expect("a file");
    let header = PcapHeader { datalink: DataLink::ETHERNET, ..Default::default() };
    let mut writer = PcapWriter::with_header(file, header).expect("a header");
    for len in lengths {
        let packet = PcapPacket::new(Duration::ZERO, len as u32, kept(len)).expect("a packet");
        writer.write_packet(&packet).expect("written");
    }
    let mut writer = PcapNgWriter::new(fs::File::create(&new).expect("a file")).expect("a header");
    let interface = InterfaceDescriptionBlock::new(DataLink::ETHERNET, 0);
    writer.write_pcapng_block(interface).expect("written");
    for len in lengths {
        let block = EnhancedPacketBlock {
            interface_id: 0,
            timestamp: Duration::ZERO,
            original_len: len as u32,
            data: kept(len).into(),
            options: Vec::new(),
        };
        writer.write_pcapng_block(block).expect("written");
    }
    [old, new].map(|path| path.to_str().expect("a path").to_owned())
}

#[test]
fn frames_can_be_said_in_many_ways() {
    let bench = Bench::new();
    let dir = tempfile::tempdir().expect("a directory");
    let [old, new] = files(dir.path());
    let plain = hex(&Frame::pattern(mac(3), mac(1), 64, 0).bytes);
    let colons = plain.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("text"));
    let colons = colons.collect::<Vec<_>>().join(":");
    let to_b = &["--to", "b"][..];
    for (words, saw, exits_by) in [
        ("tcp 10.0.0.1:1234 10.0.0.2:80 --to b", "54 bytes, tcp 10.0.0.1:1234 > 10.0.0.2:80;", "b"),
        ("tcp 10.0.0.1 10.0.0.2 --to b", "54 bytes, tcp 10.0.0.1:50000 > 10.0.0.2:80;", "b"),
        ("udp [fd00::1]:5 fd00::2 --to c", "62 bytes, udp [fd00::1]:5 > [fd00::2]:80;", "c"),
        ("icmp 10.0.0.1 10.0.0.2 --to b", "42 bytes, icmp 10.0.0.1 > 10.0.0.2;", "b"),
        ("icmp fd00::1 fd00::2 --to b", "62 bytes, icmp6 fd00::1 > fd00::2;", "b"),
        ("arp 10.0.0.1 10.0.0.2", "42 bytes, arp 10.0.0.1 > 10.0.0.2;", "b c"),
        ("udp 10.0.0.1 239.255.0.1 --vlan 7", "46 bytes, vlan 7 udp 10.0.0.1:50000 > ", "b c"),
        ("udp 10.0.0.1 255.255.255.255", "42 bytes, udp ", "b c"),
        ("udp fd00::1 ff02::fb", "62 bytes, udp ", "b c"),
        ("tcp 10.0.0.1 10.0.0.2 --to b --size 1514", "1514 bytes, tcp ", "b"),
        ("tcp 10.0.0.1 10.0.0.2 --to 02:00:00:00:00:03 --tso 1448", "14534 bytes, tcp ", "c"),
        (&format!("hex {plain}"), "64 bytes, ethertype 0x88b5;", "c"),
        (&format!("hex {colons}"), "64 bytes, ethertype 0x88b5;", "c"),
        (&format!("hex {} {}", &plain[..20], &plain[20..]), "64 bytes, ", "c"),
        (&format!("pcap {old}"), "60 bytes, ", "c"),
        (&format!("pcap {new}"), "60 bytes, ", "c"),
        (&format!("pcap {old} 2"), "61 bytes, ", "c"),
        (&format!("pcap {new} 3"), "3000 bytes, ", "c"),
    ] {
        let trace = bench.trace(&format!("a {words}").split(' ').collect::<Vec<_>>());
        let step = &trace["steps"][0];
        assert!(step["saw"].as_str().expect("text").starts_with(saw), "{words}: {step}");
        let names: Vec<_> = exits(&trace).into_iter().map(|(port, ..)| port).collect();
        assert_eq!(names.join(" "), exits_by, "{words}");
        assert_eq!(trace["dropped"], Value::Null, "{words}");
    }
    // From standard input; from an address that says otherwise; from a port where nobody is.
    let mut command = bench.switch.client(&["trace", "a", "hex", "-"]);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = piped.spawn().expect("run");
    child.stdin.take().expect("its input").write_all(colons.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("its output");
    assert!(
        String::from_utf8_lossy(&output.stdout).ends_with("\n\ndelivered to c\n"),
        "{output:?}"
    );
    let ends = ["icmp", "10.0.0.9", "10.0.0.2", "--from", "02:00:00:00:00:09"];
    let trace = bench.trace(&[&["down"], &ends[..], to_b].concat());
    assert_eq!(decision(&trace, "learn", Some("down")), "would be learned");
    assert_eq!(trace["verdict"], "delivered to b");
    bench.switch.stop();
}

#[test]
fn the_steps_stand_in_a_table() {
    let bench = Bench::new();
    let output = bench.run(&["a", "tcp", "10.0.0.1", "10.0.0.2", "--to", "b", "--tso", "1000"]);
    let text = String::from_utf8(output.stdout).expect("text");
    let cells = |line: &str| {
        line.split("  ")
            .map(str::trim)
            .filter(|it| !it.is_empty())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let lines: Vec<_> = text.lines().map(cells).collect();
    assert_eq!(lines[0], ["STEP", "PORT", "LOOKED AT", "DECISION"]);
    let first: Vec<_> = lines.iter().map(|line| line.first().map_or("", String::as_str)).collect();
    assert_eq!(
        first,
        [
            "STEP",
            "ingress",
            "sanitise",
            "learn",
            "look-up",
            "rules",
            "egress",
            "offload",
            "room",
            "",
            "delivered to b as 10 frames"
        ]
    );
    assert_eq!(lines[4], ["look-up", "02:00:00:00:00:02 is at b", "to b"]);
    assert_eq!(lines[8], ["room", "b", "131072 bytes in 32 receive buffers", "delivered"]);
    bench.switch.stop();
}

#[test]
fn what_is_no_frame_is_refused_with_what_to_do() {
    let mut bench = Bench::new();
    let dir = tempfile::tempdir().expect("a directory");
    let [old, _] = files(dir.path());
    let text = dir.path().join("text");
    fs::write(&text, "this is no capture, whatever it is called").expect("a file");
    let text = text.to_str().expect("a path");
    let two = "tcp 10.0.0.1 10.0.0.2";
    let long = "00".repeat(65_558);
    let most = &format!("a {two} --to b --size 65557");
    for (words, code, says) in [
        (
            "nobody tcp 10.0.0.1 10.0.0.2 --to b",
            1,
            "there is no port \"nobody\"; there are a, b, c, down",
        ),
        ("nobody hex ffffffffffff0200000000010800", 1, "there is no port \"nobody\""),
        ("a sctp 10.0.0.1 10.0.0.2", 2, "\"sctp\" is nothing to trace: expected tcp, udp,"),
        ("a tcp 10.0.0.1", 2, "as in: ringswitch trace a tcp 10.0.0.1:1234 10.0.0.2:80"),
        ("a icmp 10.0.0.1:5 10.0.0.2", 2, "\"10.0.0.1:5\" is no address: expected one as"),
        ("a tcp 10.0.0.256 10.0.0.2", 2, "\"10.0.0.256\" is no address"),
        ("a tcp 10.0.0.1 fd00::1", 2, "10.0.0.1 and fd00::1 can't be in one packet"),
        ("a arp fd00::1 fd00::2", 2, "arp is for IPv4"),
        (&format!("a {two}"), 2, "add --to PORT or --to MAC; it learned 02:00:00:00:00:01 at a, "),
        (&format!("a {two} --to d"), 2, "\"d\" is neither a MAC address"),
        (
            &format!("a {two} --to down"),
            2,
            "no address was learned at down: say which one to take, by --to MAC",
        ),
        (
            &format!("down {two} --to b"),
            2,
            "no address was learned at down: say which one to take, by --from MAC",
        ),
        (&format!("a {two} --from 02:00"), 2, "\"02:00\" is not a MAC address"),
        (
            &format!("a {two} --to b --size 40"),
            2,
            "40 bytes are too few: with these headers a frame has 54",
        ),
        (most, 2, "65557 bytes are more than such a packet can have"),
        ("a arp 10.0.0.1 10.0.0.2 --tso 100", 2, "only tcp and udp can be cut"),
        ("a hex 0g", 2, "'g' is no hex digit"),
        ("a hex 0ff", 2, "3 hex digits are no whole bytes"),
        ("a hex", 2, "hex needs the frame's bytes"),
        ("a hex 0102", 2, "a frame has 14 to 65557 bytes, this one 2"),
        ("a hex 0102 --to b", 2, "leave --from, --to"),
        ("a pcap", 2, "pcap needs a file"),
        ("a pcap /nowhere/x", 2, "cannot read /nowhere/x"),
        (&format!("a pcap {text}"), 2, "is no pcap or pcapng file"),
        (&format!("a pcap {old} 4"), 2, "has 3 frames, and no frame 4"),
        (&format!("a pcap {old} 0"), 2, "its number from 1 on"),
        ("a", 2, "<WHAT>..."),
        ("--live nobody", 1, "there is no port \"nobody\""),
        ("--live a tcp port", 1, "the filter has \"port\""),
        ("--live a --to b", 2, "cannot be used with"),
        ("a hex 00 --count 3", 2, "--live"),
    ] {
        let output = bench.run(&words.split(' ').collect::<Vec<_>>());
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words}: {text}");
        assert!(text.contains(says) && output.stdout.is_empty(), "{words}: {text}");
    }
    // Several addresses at a port: which one?
    send(&mut bench.guests[0], &[Frame::pattern([0xff; 6], mac(8), 60, 0)]);
    let output = bench.run(&format!("a {two} --to b").split(' ').collect::<Vec<_>>());
    let says = "choose one by --from MAC; there are 02:00:00:00:00:01 at a, 02:00:00:00:00:08 at a";
    assert!(String::from_utf8_lossy(&output.stderr).contains(says), "{output:?}");
    // What the command would not say.
    for (body, status, says) in [
        ("{}".to_owned(), 422, "missing field"),
        ("nonsense".to_owned(), 400, "JSON"),
        (json!({ "port": "a", "frame": "0x" }).to_string(), 400, "'x' is no hex digit"),
        (json!({ "port": "a", "frame": "00" }).to_string(), 400, "a frame has 14 to 65557 bytes"),
        (json!({ "port": "a", "frame": long }).to_string(), 400, "this one 65558"),
        (json!({ "port": "a", "frame": "0".repeat(200_000) }).to_string(), 413, "limit"),
        (json!({ "port": "x", "frame": "00" }).to_string(), 404, "there is no port \"x\""),
    ] {
        let (got, answer) = bench.post(&body);
        assert_eq!(got, status, "{answer}");
        assert!(answer["error"].as_str().expect("a problem").contains(says), "{answer}");
    }
    bench.switch.stop();
}

/// A live trace with these arguments, which has begun, and its lines.
fn live(bench: &Bench, arguments: &[&str]) -> (Child, impl Iterator<Item = Value> + use<>) {
    let mut command = bench.switch.client(&["trace", "--live", "--json", "--seconds", "60"]);
    let piped = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = piped.spawn().expect("run");
    let out = BufReader::new(child.stdout.take().expect("its output"));
    let mut lines = out
        .lines()
        .map(|line| -> Value { serde_json::from_str(&line.expect("a line")).expect("JSON") });
    assert_eq!(lines.next().expect("the first line"), json!({ "left-out": 0 }));
    (child, lines)
}

#[test]
fn real_frames_are_shown_with_the_times_of_their_stages() {
    let mut bench = Bench::new();
    let (mut child, lines) = live(&bench, &["a", "--count", "6"]);
    let there = Flow::v4(1, 2).tcp(0, b"hello");
    let back = Flow::v4(2, 1).udp(b"hello");
    send(&mut bench.guests[0], std::slice::from_ref(&there));
    send(&mut bench.guests[1], &[back]);
    // Not of interest; to all; to nobody.
    send(&mut bench.guests[1], &[Frame::pattern(mac(3), mac(2), 60, 0)]);
    send(&mut bench.guests[0], &[hello(0)]);
    send(&mut bench.guests[0], &[Frame::pattern(mac(1), mac(1), 90, 0)]);
    // Of a frame to all, that which comes here.
    send(&mut bench.guests[2], &[hello(2)]);
    let frames: Vec<_> = lines
        .filter_map(|mut line| match line["frame"].take() {
            Value::Null => None,
            frame => Some(frame),
        })
        .collect();
    assert!(child.wait().expect("its end").success());
    let text = |frame: &Value, name: &str| frame[name].as_str().unwrap_or("-").to_owned();
    let told: Vec<_> = frames
        .iter()
        .map(|it| ["from", "to", "dropped", "summary"].map(|name| text(it, name)).join(" "))
        .collect();
    assert_eq!(
        told,
        [
            "a b - tcp 10.0.0.1:1000 > 10.0.0.2:2000",
            "b a - udp 10.0.0.2:1000 > 10.0.0.1:2000",
            "a b - ethertype 0x88b5",
            "a c - ethertype 0x88b5",
            "a - no_destination ethertype 0x88b5",
            "c a - ethertype 0x88b5",
        ]
    );
    let (source, destination) = (text(&frames[0], "source"), text(&frames[0], "destination"));
    assert_eq!([source.as_str(), &destination], [MACS[0], MACS[1]]);
    assert_eq!(frames[0]["length"], there.bytes.len());
    let number = |frame: &Value, name: &str| frame[name].as_u64().expect("a number");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time");
    for frame in &frames {
        assert!(number(frame, "decided_ns") > 0, "{frame}");
        assert!(number(frame, "left_ns") >= number(frame, "decided_ns"), "{frame}");
        let age = now.as_nanos().saturating_sub(number(frame, "time_ns").into());
        assert!(age < 600_000_000_000, "{frame}");
    }
    assert!(frames.is_sorted_by_key(|frame| number(frame, "time_ns")), "{frames:?}");
    // One port behind the other.
    assert!(number(&frames[3], "left_ns") > number(&frames[2], "left_ns"), "{frames:?}");
    bench.switch.stop();
}

#[test]
fn a_live_trace_is_a_sample_by_a_filter_and_says_what_it_leaves_out() {
    let mut bench = Bench::new();
    let (mut drops, drop_lines) = live(&bench, &["b", "dropped", "--count", "1"]);
    let (mut all, all_lines) = live(&bench, &["a"]);
    // `b` has a ring of 32, and takes nothing out of it: more than a sample holds is sent at once.
    let count = 64 + 32;
    let frames: Vec<_> = (0..count).map(|n| Frame::pattern(mac(2), mac(1), 60, n)).collect();
    send(&mut bench.guests[0], &frames);
    let (mut shown, mut left_out, mut lost) = (0, 0, 0);
    for line in all_lines {
        match line["left-out"].as_u64() {
            Some(count) => left_out = count,
            None => {
                shown += 1;
                lost += u64::from(line["frame"]["dropped"] == "rx_ring_full");
            }
        }
        if shown + left_out == u64::from(count) {
            break;
        }
    }
    assert_eq!(shown + left_out, u64::from(count));
    assert!(shown > 0 && lost < shown, "{shown} {left_out} {lost}");
    all.kill().and_then(|()| all.wait()).expect("its end");
    let frame = drop_lines.map(|line| line["frame"].clone()).find(|frame| !frame.is_null());
    let frame = frame.expect("a frame");
    assert_eq!((&frame["from"], &frame["to"]), (&json!("a"), &json!("b")));
    assert_eq!(frame["dropped"], "rx_ring_full");
    assert!(drops.wait().expect("its end").success());
    assert_eq!(bench.switch.statistics().port("b", "drop_rx_ring_full"), u64::from(count) - 32);
    // For people.
    let mut command =
        bench.switch.client(&["trace", "--live", "a", "--seconds", "60", "--count", "1"]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("run");
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let head = lines.next().expect("a head").expect("text");
    assert!(head.starts_with("TIME, UTC           FROM        TO "), "{head}");
    send(&mut bench.guests[0], &[Flow::v4(1, 3).tcp(0, b"hello")]);
    let line = lines.next().expect("a line").expect("text");
    assert!(line.ends_with("delivered         02:00:00:00:00:01 > 02:00:00:00:00:03 tcp 10.0.0.1:1000 > 10.0.0.3:2000"), "{line}");
    assert!(child.wait().expect("its end").success());
    bench.switch.stop();
}
