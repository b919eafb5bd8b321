//! The API and the commands that speak it: what they say is what happened, whoever asks badly is
//! told so, and nobody who asks disturbs a frame.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use fakeguest::frames::{Frame, mac};
use fakeguest::{Guest, Layout};
use serde_json::Value;

use super::support::http::{answer, get, parts, request};
use super::support::netns::Netns;
use super::support::proc::{Process, holdings, holds_again};
use super::support::switch::Switch;
use super::support::wait_for;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Clients that the switch has at a time.
const CLIENTS: usize = 16;

/// A switch with an API, and guests on its ports `a` and `b`.
struct Bench {
    switch: Switch,
    a: Guest,
    b: Guest,
}

impl Bench {
    fn new() -> Bench {
        Self::with(Switch::builder().port("a").port("b").api().upgradable().start(), ["a", "b"])
    }

    /// Guests on these ports.
    fn with(switch: Switch, ports: [&str; 2]) -> Bench {
        let guest = |port: &str| Guest::builder(switch.socket(port)).attach().expect("a guest");
        let [a, b] = ports.map(guest);
        Bench { switch, a, b }
    }

    /// `count` frames of 100 bytes from `a` to `b`; they arrive.
    fn frames(&mut self, count: u32) {
        for seed in 0..count {
            let frame = Frame::pattern(mac(2), mac(1), 100, seed);
            self.a.send(0, &frame, &Layout::whole());
            let got = self.b.recv(0, PATIENCE).expect("a frame");
            assert_eq!(got.bytes, frame.bytes);
        }
    }

    /// What `ringswitch` prints with these arguments.
    fn says(&self, arguments: &[&str]) -> String {
        let output = self.switch.client(arguments).output().expect("run");
        assert!(output.status.success(), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.says(&[arguments, &["--json"]].concat())).expect("JSON")
    }
}

/// The lines of a table, without the runs of blanks that align it.
fn cells(table: &str) -> Vec<String> {
    table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn what_is_shown_is_what_happened() {
    let mut bench = Bench::new();
    bench.frames(10);
    bench.b.enable_rings(0).and_then(|()| bench.b.sync()).expect("disabled rings");
    let ports = bench.json(&["show", "ports"]);
    let [a, b] = [&ports[0], &ports[1]];
    assert_eq!((&a["name"], &b["name"]), (&"a".into(), &"b".into()));
    assert_eq!(a["place"], bench.switch.socket("a").to_str().expect("a path"));
    assert_eq!(
        (&a["kind"], &a["up"], &b["up"]),
        (&"vhost-user".into(), &true.into(), &false.into())
    );
    assert_eq!(a["counters"]["ingress_frames"], 10);
    assert_eq!(b["counters"]["egress_bytes"], 1000);
    assert_eq!(bench.json(&["show", "port", "a"]), *a);
    let macs = bench.json(&["show", "macs"]);
    assert_eq!(macs.as_array().expect("a list").len(), 1, "b has sent nothing: {macs}");
    assert_eq!((&macs[0]["address"], &macs[0]["port"]), (&"02:00:00:00:00:01".into(), &"a".into()));
    let workers = bench.json(&["show", "workers"]);
    assert_eq!(workers[0]["counters"]["frames"], 10);
    let latency = &workers[0]["latency"];
    let buckets = latency["buckets"].as_array().expect("buckets");
    let (mut frames, mut least, mut from) = (0, 0, 0);
    for bucket in buckets {
        let number = |name: &str| bucket[name].as_u64();
        assert!(number("from_ns") >= Some(from), "in order: {latency}");
        from = number("upto_ns").unwrap_or(u64::MAX);
        frames += number("frames").expect("a count");
        least += number("frames").expect("a count") * number("from_ns").expect("a limit");
    }
    assert_eq!(frames, 10, "each is in one bucket");
    // What is known of a time is known to a sixteenth.
    let sum = latency["sum_seconds"].as_f64().expect("a sum");
    assert!(sum * 17.0 / 16.0 > least as f64 / 1e9, "{latency}");

    let lines = cells(&bench.says(&["show", "ports"]));
    assert_eq!(lines[0], "PORT KIND STATE QUEUES MACS FRAMES IN OUT BYTES IN OUT DROPS");
    assert_eq!(lines[1], "a guest up 1 1 10 0 1,000 0 0");
    assert_eq!(lines[2], "b guest down 0 0 0 10 0 1,000 0");
    assert_eq!(bench.says(&["show", "drops"]), "nothing was dropped\n");
    let lines = cells(&bench.says(&["show", "port", "a"]));
    assert!(lines.contains(&"ingress_bytes 1,000".to_owned()), "{lines:?}");
    assert_eq!(lines[0], "port a", "as it is written");
    bench.switch.stop();
}

#[test]
fn drops_are_named_by_port_and_reason() {
    let mut bench = Bench::new();
    bench.frames(1);
    bench.b.enable_rings(0).and_then(|()| bench.b.sync()).expect("disabled rings");
    bench.a.send(0, &Frame::pattern(mac(2), mac(1), 100, 0), &Layout::whole());
    let lines = wait_for("a drop", PATIENCE, || {
        let lines = cells(&bench.says(&["show", "drops"]));
        (lines.len() > 1).then_some(lines)
    });
    assert_eq!(lines, ["PORT REASON FRAMES", "a no_destination 1"]);
    bench.switch.stop();
}

/// Of each port, the flows that lead to it are what left by it: floods, and what it dropped, too.
#[test]
fn flows_add_up_to_what_ports_delivered_and_dropped() {
    const RING: u16 = 64;
    let builder = Switch::builder().port("a").port("b").port("c").api().args(&["--workers", "2"]);
    let mut bench = Bench::with(builder.start(), ["a", "b"]);
    let third = Guest::builder(bench.switch.socket("c")).ring_size(RING).attach();
    let mut third = third.expect("a guest");
    assert_eq!(bench.says(&["show", "flows"]), "no frame has gone from one port to another\n");
    // Port, its worker and direction apart: b and c become known, and c never takes a frame out of
    // its ring. One after the other: an address isn't learned while another worker learns one.
    third.send(0, &Frame::pattern([0xff; 6], mac(3), 60, 0), &Layout::whole());
    bench.a.recv(0, PATIENCE).expect("one broadcast");
    bench.b.recv(0, PATIENCE).expect("c's");
    bench.b.send(0, &Frame::pattern([0xff; 6], mac(2), 70, 0), &Layout::whole());
    bench.a.recv(0, PATIENCE).expect("the other");
    let known = bench.json(&["show", "macs"]).as_array().map(Vec::len);
    assert_eq!(known, Some(2), "c is not sent to all");
    bench.frames(20);
    for seed in 0..u32::from(RING) + 30 {
        bench.a.send(0, &Frame::pattern(mac(3), mac(1), 200, seed), &Layout::whole());
    }
    // Or those of b, which another worker takes, would still find room.
    assert!(bench.a.flush(0, PATIENCE));
    for seed in 0..10 {
        bench.b.send(0, &Frame::pattern([0xff; 6], mac(2), 300, seed), &Layout::whole());
        bench.a.recv(0, PATIENCE).expect("a broadcast");
    }
    let count = |value: &Value, name: &str| value[name].as_u64().unwrap_or_default();
    let sum = |flows: &[Value], name: &str| flows.iter().map(|flow| count(flow, name)).sum::<u64>();
    // Four copies of the first broadcasts, 20 to b, those to c, two copies of the last ones.
    let all = 4 + 20 + u64::from(RING) + 30 + 20;
    let flows = wait_for("all frames", PATIENCE, || {
        let flows = bench.json(&["show", "flows"]).as_array().expect("a list").clone();
        (sum(&flows, "frames") + sum(&flows, "dropped") == all).then_some(flows)
    });
    for port in bench.json(&["show", "ports"]).as_array().expect("a list") {
        let to: Vec<_> = flows.iter().filter(|flow| flow["to"] == port["name"]).cloned().collect();
        let name = &port["name"];
        assert_eq!(sum(&to, "frames"), count(&port["counters"], "egress_frames"), "{name}");
        assert_eq!(sum(&to, "bytes"), count(&port["counters"], "egress_bytes"), "{name}");
        let drops = port["drops"].as_object().expect("reasons").values();
        let drops = drops.map(|count| count.as_u64().expect("a count")).sum::<u64>();
        assert_eq!(sum(&to, "dropped"), drops, "{name}");
    }
    let drops = |from: &str| {
        let flow = flows.iter().find(|flow| flow["from"] == from && flow["to"] == "c");
        count(flow.expect("a flow"), "dropped")
    };
    assert!(drops("a") > 0 && drops("b") > 0, "c is full, for both: {flows:?}");

    // By bytes: the largest first.
    let lines = cells(&bench.says(&["show", "flows"]));
    assert_eq!(lines[0], "FROM TO WAY FRAMES BYTES DROPS");
    assert!(lines[1].starts_with("a c guests "), "{lines:?}");
    assert_eq!(lines.len(), 1 + flows.len());
    let (_, metrics) = get(&bench.switch.api_socket(), "/metrics");
    let samples = samples(&metrics);
    assert_eq!(samples["ringswitch_flow_frames_total{from=\"a\",to=\"b\"}"], "20");
    assert_eq!(samples["ringswitch_flow_bytes_total{from=\"a\",to=\"b\"}"], "2000");
    let none = "ringswitch_flow_frames_total{from=\"a\",to=\"a\"}";
    assert!(!samples.contains_key(none), "only those that had frames");
    bench.switch.stop();
}

#[test]
fn watching_shows_rates() {
    let mut bench = Bench::new();
    let mut command = bench.switch.client(&["show", "ports", "--watch"]);
    command.stdin(Stdio::null());
    let dir = tempfile::tempdir().expect("a directory");
    let mut watch = Process::start("ringswitch show", command, &dir.path().join("log"));
    watch.output_with("FRAMES IN", 0, PATIENCE);
    bench.frames(50);
    // Frames moved between two of its looks.
    let moved = |text: &str| {
        let lines = cells(text);
        let rate = lines.iter().filter_map(|line| line.strip_prefix("a guest up 1 1 "));
        text.contains("FRAMES/S IN")
            && rate.filter_map(|line| line.split(' ').next()).any(|rate| rate != "0")
    };
    watch.output_when("a rate", 0, PATIENCE, moved);
    // It ends when nobody reads on, or its switch has ended.
    bench.switch.stop();
    assert_eq!(watch.wait(PATIENCE).code(), Some(1));
    assert!(watch.output().contains("no switch answers at"), "{}", watch.output());
}

/// Runs it: fails with 1, and says all of `parts`.
#[track_caller]
fn fails(command: &mut Command, parts: &[&str]) {
    let output = command.output().expect("run");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(output.stdout.is_empty());
    for part in parts {
        assert!(text.contains(part), "{text} lacks {part:?}");
    }
}

#[test]
fn who_cannot_be_answered_is_told_what_to_do() {
    let bench = Bench::new();
    let socket = bench.switch.api_socket();
    fails(
        &mut bench.switch.client(&["show", "port", "vm/7"]),
        &["there is no port \"vm/7\"; there are a, b"],
    );
    let mut nowhere = bench.switch.client(&["show", "ports"]);
    fails(nowhere.env("RINGSWITCH_API", "/nowhere"), &["no switch answers at /nowhere", "[api]"]);
    let mode = std::fs::metadata(&socket).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    std::fs::set_permissions(socket.parent().expect("a directory"), Permissions::from_mode(0o777))
        .expect("a directory that all may enter");
    let mut stranger = Command::new("setpriv");
    stranger.args(["--reuid", "65533", "--regid", "65533", "--clear-groups", "--"]);
    stranger.arg("socat").args(["-u", &format!("UNIX-CONNECT:{}", socket.display()), "-"]);
    fails(&mut stranger, &["Permission denied"]);
    bench.switch.stop();
}

#[test]
fn bad_requests_get_a_problem_for_an_answer() {
    let bench = Bench::new();
    let socket = bench.switch.api_socket();
    let post =
        b"POST /v1/ports HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(answer(&socket, post).0, 400);
    let post = String::from_utf8_lossy(post).replace("/ports", "/process");
    assert_eq!(answer(&socket, post.as_bytes()).0, 405);
    for (path, status) in [
        ("/", 404),
        ("/v2/ports", 404),
        ("/v1/ports/%00", 404),
        ("/v1/ports/a/b", 404),
        ("/v1/ports/%FF", 400),
        (&format!("/v1/ports/{}", "x".repeat(8000)), 404),
    ] {
        assert_eq!(get(&socket, path).0, status, "{path:.40}");
    }
    let (_, body) = get(&socket, "/v1/ports/c");
    let problem: Value = serde_json::from_str(&body).expect("a problem");
    assert_eq!(problem["error"], "there is no port \"c\"; there are a, b");
    let endless = [b"GET / HTTP/1.1\r\nx: ".as_slice(), &[b'y'; 100_000]].concat();
    for (bytes, status) in [
        (b"nonsense\r\n\r\n".as_slice(), 400),
        (b"GET /v1/ports HTTP/9.9\r\n\r\n", 400),
        (b"\0\xff\xfe\r\n\r\n", 400),
        (&endless, 431),
    ] {
        let (got, _) = answer(&socket, bytes);
        // It may have closed with bytes unread, which takes the answer away.
        assert!(got == status || (got == 0 && status == 431), "{got}, not {status}");
    }
    assert_eq!(get(&socket, "/v1/ports").0, 200);
    let (_, page) = get(&socket, "/v1/openapi.yaml");
    assert_eq!(page, include_str!("../../docs/openapi.yaml"));
    bench.switch.stop();
}

#[test]
fn clients_that_stall_or_flood_keep_nobody_out_for_long() {
    let mut bench = Bench::new();
    let socket = bench.switch.api_socket();
    let pid = bench.switch.process().pid();
    let before = holdings(pid);
    let silent: Vec<_> = (0..2 * CLIENTS)
        .map(|n| {
            let mut stream = UnixStream::connect(&socket).expect("a place in the queue");
            // Some have begun, some never read what they asked for.
            let words: [&[u8]; 3] =
                [b"", b"GET /v1/po", b"GET /v1/ports HTTP/1.1\r\nhost: x\r\n\r\n"];
            stream.write_all(words[n % 3]).expect("written");
            stream
        })
        .collect();
    bench.frames(100);
    // They are left one after the other, and whoever comes behind them is served.
    assert_eq!(get(&socket, "/v1/process").0, 200);
    bench.frames(100);
    drop(silent);
    bench.says(&["show", "ports"]);
    holds_again(pid, before);
    bench.switch.stop();
}

#[test]
fn an_upgrade_takes_the_api_along() {
    let mut bench = Bench::new();
    let process = |bench: &Bench| {
        let (status, body) = get(&bench.switch.api_socket(), "/v1/process");
        assert_eq!(status, 200);
        serde_json::from_str::<Value>(&body).expect("JSON")["pid"].as_u64()
    };
    for _ in 0..2 {
        let pid = bench.switch.process().pid();
        assert_eq!(process(&bench), Some(pid.into()));
        bench.switch.upgrade();
        bench.frames(5);
    }
    assert_eq!(process(&bench), Some(bench.switch.process().pid().into()));
    let socket = bench.switch.api_socket();
    bench.switch.stop();
    assert!(!socket.exists(), "it went with the last of them");
}

/// The commands on the page and what they print, numbers apart.
#[test]
fn the_page_shows_what_is_printed() {
    let page = include_str!("../../docs/seeing.md");
    let switch = Switch::builder().port("vm1").port("vm2").port("vm3").api().start();
    let mut bench = Bench::with(switch, ["vm1", "vm2"]);
    bench.frames(12);
    // To itself.
    bench.a.send(0, &Frame::pattern(mac(1), mac(1), 100, 0), &Layout::whole());
    wait_for("a drop", PATIENCE, || bench.says(&["show", "drops"]).contains("vm1").then_some(()));
    let directory = bench.switch.socket("vm1").with_file_name("").display().to_string();
    let shape = |text: &str| -> Vec<String> {
        let text = text.replace(&directory, "/run/ringswitch/");
        let number = |c: char| c.is_ascii_digit() || ",.".contains(c);
        let word = |word: &str| match word.chars().all(number) {
            true => "N".to_owned(),
            false => word.to_owned(),
        };
        let line = |line: &str| line.split_whitespace().map(word).collect::<Vec<_>>().join(" ");
        text.trim_end().lines().map(line).collect()
    };
    let mut commands = 0;
    for block in page.split("```console\n$ ").skip(1) {
        let (line, shown) =
            block.split("\n```").next().and_then(|b| b.split_once('\n')).expect("both");
        if let Some(arguments) = line.strip_prefix("ringswitch ") {
            let said = bench.says(&arguments.split(' ').collect::<Vec<_>>());
            assert_eq!(shape(&said), shape(shown), "{line}");
        } else {
            let (_, path) = line.rsplit_once("localhost").expect("a URL");
            let fields = |body: &str| {
                let value: Value = serde_json::from_str(body).expect("JSON");
                value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>()
            };
            assert_eq!(fields(&get(&bench.switch.api_socket(), path).1), fields(shown), "{line}");
        }
        commands += 1;
    }
    assert_eq!(commands, 10);
    bench.switch.stop();
}

/// The samples of a text in the OpenMetrics format: name with labels, and value.
fn samples(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.rsplit_once(' '));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn prometheus_gets_all_counters_over_tcp_and_nothing_else() {
    let netns = Netns::new();
    let settings = "[api]\nmetrics = \"127.0.0.1:9479\"\n";
    let builder = Switch::builder().netns(&netns).settings(settings).port("a").port("b");
    let mut bench = Bench::with(builder.upgradable().start(), ["a", "b"]);
    let get = |path: &str| {
        let mut socat = netns.command("socat");
        let mut socat = socat
            .args(["-t", "60", "-", "TCP:127.0.0.1:9479"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("socat");
        socat.stdin.take().expect("its input").write_all(&request(path)).expect("a request");
        parts(socat.wait_with_output().expect("its output").stdout)
    };
    bench.frames(10);
    let (status, text) = get("/metrics");
    assert_eq!(status, 200);
    assert!(text.ends_with("# EOF\n"), "{text}");
    let samples = samples(&text);
    let sample = |name: &str| samples.get(name).unwrap_or_else(|| panic!("no {name} in {text}"));
    assert_eq!(sample("ringswitch_port_ingress_frames_total{port=\"a\"}"), "10");
    assert_eq!(sample("ringswitch_port_egress_bytes_total{port=\"b\"}"), "1000");
    assert_eq!(sample("ringswitch_worker_frames_total{worker=\"0\"}"), "10");
    assert_eq!(sample("ringswitch_worker_frame_seconds_count{worker=\"0\"}"), "10");
    assert_eq!(sample("ringswitch_worker_frame_seconds_bucket{le=\"+Inf\",worker=\"0\"}"), "10");
    assert_eq!(sample("ringswitch_port_queue_frames_total{port=\"b\",queue=\"0\"}"), "10");
    assert_eq!(sample("ringswitch_port_ring_entries{port=\"b\",queue=\"0\"}"), "256");
    assert_eq!(sample("ringswitch_port_up{port=\"b\"}"), "1");
    let full = "ringswitch_port_dropped_frames_total{port=\"b\",reason=\"rx_ring_full\"}";
    assert_eq!(sample(full), "0", "also what never was");
    let page = include_str!("../../docs/seeing.md");
    for name in samples.keys() {
        let name = name.split('{').next().expect("a name");
        let part = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
        let name = part.unwrap_or(name);
        let counter =
            ["port", "worker"].iter().any(|of| name.starts_with(&format!("ringswitch_{of}_")));
        assert!(
            page.contains(&format!("| `{name}`")) || (counter && name.ends_with("_total")),
            "{name}"
        );
    }
    for path in ["/", "/v1/ports"] {
        assert_eq!(get(path).0, 404, "{path}");
    }
    bench.switch.upgrade();
    assert_eq!(get("/metrics").0, 200);
    bench.switch.stop();
}
