//! The log of a running switch: its forms, its level, and what outsiders can do to it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use fakeguest::Guest;
use serde_json::Value;

use super::support::proc::Process;
use super::support::switch::{Switch, directory};
use super::support::wait_for;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// What each place in the program may log at once, and how long it takes to get one line back.
const BURST: usize = 40;
const REFILL: Duration = Duration::from_secs(2);
/// What is said of lines that were left out, behind their number.
const LEFT_OUT: &str = " messages were not logged: too many in a short time";

/// A switch with a port `a`, from a file with these settings.
fn switch(settings: &str) -> Switch {
    Switch::builder().settings(settings).port("a").api().upgradable().start()
}

/// The lines of a log that are there as a whole.
fn lines(log: &str) -> impl Iterator<Item = &str> {
    log.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'))
}

/// Those of one in JSON.
fn objects(log: &str) -> Vec<Value> {
    let object =
        |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    lines(log).map(object).collect()
}

/// What a command of this switch prints.
fn says(switch: &Switch, arguments: &[&str]) -> String {
    let output = switch.client(arguments).output().expect("run");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// Makes the switch say, at the level debug, that a client of the API is none.
fn speak_no_http(socket: &Path) {
    let mut stream = UnixStream::connect(socket).expect("an API");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    stream.write_all(b"nonsense\r\n\r\n").expect("written");
    // An answer, and the end.
    let _ = stream.read_to_end(&mut Vec::new());
}

/// Sends a request with a body; returns the status and the body of the answer, if there is one.
fn put(socket: &Path, kind: &str, body: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(socket).expect("an API");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    let length = body.len();
    let head = format!(
        "PUT /v1/log-level HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {kind}\r\n\
         content-length: {length}\r\n\r\n"
    );
    let mut answer = Vec::new();
    // It may close before it has read all, which can take the answer away.
    let _ = stream.write_all((head + body).as_bytes());
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).expect("text");
    let status = answer.split(' ').nth(1).map_or(0, |status| status.parse().expect("a status"));
    let body = answer.split_once("\r\n\r\n").map_or("null", |(_, body)| body);
    (status, serde_json::from_str(body).unwrap_or_default())
}

#[test]
fn json_is_an_object_for_each_line_through_upgrades() {
    let mut switch = switch("[log]\nformat = \"json\"\n");
    let _guest = Guest::builder(switch.socket("a")).attach().expect("a guest");
    let log = switch.process().output_with("a frontend connected", 0, PATIENCE);
    let line = objects(&log).into_iter().find(|line| line["message"] == "a frontend connected");
    let line = line.expect("that line");
    let fields = ["level", "module", "thread", "port"].map(|name| line[name].as_str());
    assert_eq!(fields, ["info", "vhost_user", "vu-a", "a"].map(Some));
    let time = line["time"].as_str().expect("a time");
    assert_eq!((time.len(), &time[10..11], &time[19..20], &time[23..]), (24, "T", ".", "Z"));
    let ready = objects(&log).into_iter().find(|line| line["thread"] == "main");
    assert!(ready.expect("a line of main").get("port").is_none());

    // Both processes write to it.
    let said = objects(&switch.upgrade());
    assert!(said.iter().any(|line| line["message"] == "ready: 1 ports, 1 workers"), "{said:?}");
    // The next one reads its own file.
    let file = switch.socket("a").with_file_name("ringswitch.toml");
    let settings = fs::read_to_string(&file).expect("a file");
    fs::write(&file, settings.replace("\"json\"", "\"journald\"")).expect("written");
    let said = switch.upgrade();
    assert!(said.contains("<6>control: taking over from ringswitch "), "{said}");
    assert!(said.contains("\n<6>control: ready: 1 ports, 1 workers\n"), "{said}");
    switch.stop();
}

#[test]
fn the_journal_gets_its_own_form_and_what_is_none_does_not() {
    let dir = directory();
    let place = |name: &str| dir.path().join(name);
    let journal = place("journal");
    let is = File::create(&journal).and_then(|file| file.metadata()).expect("a file");
    let port = format!("a={}", place("a").display());
    let socket = place("upgrade").display().to_string();
    let start = |more: &[&str], log: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringswitch"));
        command.arg("run").args(more).args(["--port", &port, "--upgrade-socket", &socket]);
        command.args(["--user", "65534:65534"]);
        // Whoever starts a program with another standard error leaves it as it is.
        command.env("JOURNAL_STREAM", format!("{}:{}", is.dev(), is.ino()));
        Process::start("ringswitch", command, log)
    };
    let said = |from: usize| fs::read_to_string(&journal).expect("the journal")[from..].to_owned();
    let mut running = start(&[], &journal);
    running.output_with("<6>control: ready: ", 0, PATIENCE);
    // From a terminal. It goes on with the first one's standard error, and so does the one after it.
    for terminal in ["terminal", "another"].map(place) {
        let from = said(0).len();
        let mut next = start(&["--take-over"], &terminal);
        assert!(running.wait(PATIENCE).success());
        next.output_with(" INFO  control: taking over from ", 0, PATIENCE);
        let text = wait_for("line of the new process", PATIENCE, || {
            Some(said(from)).filter(|text| text.contains("<6>control: ready: "))
        });
        assert!(lines(&text).all(|line| line.starts_with("<6>")), "{text}");
        let before = next.output();
        assert!(!before.contains("<6>") && !before.contains("ready"), "{before}");
        running = next;
    }
}

#[test]
fn the_level_changes_while_it_runs() {
    const DEBUG: &str = "DEBUG control: a client of the API: ";
    let mut switch = switch("[log]\nlevel = \"info\"\n");
    let socket = switch.api_socket();
    assert_eq!(says(&switch, &["log-level"]), "info\n");
    let json = says(&switch, &["log-level", "--json"]);
    assert_eq!(json, "{\n  \"level\": \"info\"\n}\n");
    speak_no_http(&socket);
    assert_eq!(says(&switch, &["log-level", "debug"]), "debug\n");
    let changed = "INFO  logs: the log level is debug now, and was info\n";
    let log = switch.process().output_with(changed, 0, PATIENCE);
    assert!(!log.contains(DEBUG), "{log}");
    let from = switch.process().written();
    speak_no_http(&socket);
    switch.process().output_with(DEBUG, from, PATIENCE);
    assert_eq!(says(&switch, &["log-level"]), "debug\n");

    for (kind, body, status) in [
        ("application/json", "{\"level\":\"loud\"}", 422),
        ("application/json", "{\"level\":\"info\",\"for\":\"me\"}", 422),
        ("application/json", "{\"level\":", 400),
        ("text/plain", "{\"level\":\"info\"}", 415),
    ] {
        let (got, problem) = put(&socket, kind, body);
        assert!(got == status && problem["error"].is_string(), "{body:.40}: {got} {problem}");
    }
    let (long, _) =
        put(&socket, "application/json", &(" ".repeat(2 << 20) + "{\"level\":\"warn\"}"));
    assert!([0, 413].contains(&long), "{long}");
    assert_eq!(says(&switch, &["log-level"]), "debug\n", "that changed nothing");
    let (status, level) = put(&socket, "application/json", "{\"level\":\"error\"}");
    assert_eq!((status, &level["level"]), (200, &"error".into()));
    let refused = switch.client(&["log-level", "loud"]).output().expect("run");
    assert_eq!(refused.status.code(), Some(2));

    // It was this process's.
    let from = switch.process().written();
    let said = switch.upgrade();
    assert!(!said.contains("handed over"), "the old one logs errors only: {said}");
    assert_eq!(says(&switch, &["log-level"]), "info\n");
    switch.process().output_with("ready: ", from, PATIENCE);
    switch.stop();
}

#[test]
fn what_others_say_stays_one_harmless_line() {
    const EVIL: &str = "evil\x1b[2J\n2026-01-31T12:00:00.000Z ERROR control: \u{202e}\u{9b}1m";
    let mut switch = Switch::builder().port("a").upgradable().start();
    let mut stream = UnixStream::connect(switch.upgrade_socket()).expect("an upgrade socket");
    let hello = serde_json::json!({
        "message": "hello", "version": 1, "program": EVIL, "pid": 1, "ports": [], "doors": []
    });
    writeln!(stream, "{hello}").expect("written");
    let log = switch.process().output_with("wants to take over", 0, PATIENCE);
    let line = log.lines().find(|line| line.contains("wants to take over")).expect("a line");
    assert!(
        line.ends_with(
            " INFO  control: evil\\u{1b}[2J\\n2026-01-31T12:00:00.000Z ERROR control: \
             \\u{202e}\\u{9b}1m, process 1, wants to take over"
        ),
        "{line:?}"
    );
    assert!(log.chars().all(|c| c == '\n' || !c.is_control()), "{log:?}");
    drop(stream);
    switch.stop();
}

/// Lines that somebody causes in a flood.
const LINES: usize = 200;

/// Floods the log with [`LINES`] lines that have `part`: each is there or counted, and few are there.
fn flood(switch: &mut Switch, part: &str, mut cause: impl FnMut(usize)) {
    let start = Instant::now();
    (0..LINES).for_each(&mut cause);
    let (written, left_out) = wait_for("account of all lines", PATIENCE, || {
        let log = switch.process().output();
        let left_out = log.lines().filter_map(|line| line.strip_suffix(LEFT_OUT));
        let number = |line: &str| line.rsplit_once(' ')?.1.parse::<usize>().ok();
        let left_out: usize = left_out.filter_map(number).sum();
        let written = log.matches(part).count();
        (written + left_out == LINES).then_some((written, left_out))
    });
    let refilled = start.elapsed().as_secs() / REFILL.as_secs() + 1;
    assert!(written <= BURST + refilled as usize, "{written}, and {left_out} left out");
    assert!(written >= BURST && left_out > 0, "{written}, and {left_out} left out");
}

#[test]
fn a_client_that_floods_the_log_is_counted_instead() {
    let mut switch = switch("[log]\nlevel = \"debug\"\n");
    let socket = switch.api_socket();
    flood(&mut switch, "DEBUG control: a client of the API: ", |_| speak_no_http(&socket));
    // An operator asks for statistics as often as he likes.
    for _ in 0..2 * BURST {
        switch.statistics();
    }
    switch.stop();
}

#[test]
fn a_frontend_that_floods_the_log_takes_no_line_from_others() {
    let mut switch = Switch::builder().port("a").port("b").start();
    let [socket, other] = ["a", "b"].map(|port| switch.socket(port));
    let speak_no_protocol = |socket: &Path| {
        let mut stream = UnixStream::connect(socket).expect("a port");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        stream.write_all(&[0xff; 12]).expect("written");
        // It may end with bytes unread.
        let _ = stream.read_to_end(&mut Vec::new());
    };
    flood(&mut switch, "WARN  vhost_user: port a: disconnected: ", |count| {
        speak_no_protocol(&socket);
        if count == 2 * BURST {
            speak_no_protocol(&other);
        }
    });
    switch.process().output_with("WARN  vhost_user: port b: disconnected: ", 0, PATIENCE);
    switch.stop();
}
