//! `ringswitch top` in a terminal of its own, which `script` makes.

use std::num::NonZero;
use std::process::Command;
use std::time::Duration;

use fakeguest::frames::{Frame, mac};
use fakeguest::{Guest, Layout};

use super::support::proc::Process;
use super::support::switch::Switch;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Lines and columns.
const SIZE: [u16; 2] = [24, 80];

/// A terminal with the program in it.
struct Terminal {
    process: Process,
    _dir: tempfile::TempDir,
}

impl Terminal {
    /// `ringswitch top`, which watches this switch.
    fn new(switch: &Switch) -> Terminal {
        let dir = tempfile::tempdir().expect("a directory");
        let [lines, columns] = SIZE;
        let binary = env!("CARGO_BIN_EXE_ringswitch");
        let script = format!(
            "stty rows {lines} cols {columns}; echo before $(stty -g); \
             sh -c 'echo pid $$.; exec {binary} top'; \
             echo ended with $?; echo after $(stty -g). "
        );
        let mut command = Command::new("script");
        command.args(["--quiet", "--flush", "--command", &script, "/dev/null"]);
        command.env("RINGSWITCH_API", switch.api_socket()).env("TERM", "xterm-256color");
        let process = Process::start("ringswitch top", command, &dir.path().join("log"));
        Terminal { process, _dir: dir }
    }

    /// Types a key.
    fn key(&mut self, key: &str) {
        // The end of the line is Ctrl-J there, which does nothing.
        self.process.type_line(key);
    }

    /// The screen, once all of this stands there.
    #[track_caller]
    fn shows(&mut self, parts: &[&str]) {
        let seen = |text: &str| {
            let screen = screen(text).screen().contents();
            parts.iter().all(|part| screen.contains(part))
        };
        self.process.output_when(&format!("{parts:?}"), 0, PATIENCE, seen);
    }

    /// It has ended with 0, and the terminal is as it was.
    #[track_caller]
    fn gives_the_terminal_back(mut self) {
        let text = self.process.output_when("the end", 0, PATIENCE, |text| {
            text.split_once("after ").is_some_and(|(_, rest)| rest.contains('.'))
        });
        let part = |begin: &str| {
            let (_, rest) = text.split_once(begin).expect("a part");
            rest.split(['.', '\r', '\n']).next().expect("a line").to_owned()
        };
        assert_eq!(part("ended with "), "0");
        assert_eq!(part("after "), part("before "), "modes of the terminal");
        let parser = screen(&text);
        assert!(!parser.screen().alternate_screen(), "what stood there before is seen again");
        assert!(!parser.screen().hide_cursor(), "and the cursor");
        assert!(self.process.wait(PATIENCE).success());
    }
}

/// What a terminal shows of this.
fn screen(text: &str) -> vt100::Parser {
    let [lines, columns] = SIZE.map(|size| NonZero::new(size).expect("a size"));
    let mut parser = vt100::Parser::new(lines, columns, 0);
    parser.process(text.as_bytes());
    parser
}

/// A switch with guests on its ports, and 10 frames from the first one to the second one.
fn bench() -> (Switch, Vec<Guest>) {
    let switch = Switch::builder().port("web").port("store").api().upgradable().start();
    let guest = |port: &str| Guest::builder(switch.socket(port)).attach().expect("a guest");
    let mut guests = vec![guest("web"), guest("store")];
    for seed in 0..10 {
        guests[0].send(0, &Frame::pattern(mac(2), mac(1), 100, seed), &Layout::whole());
        guests[1].recv(0, PATIENCE).expect("a frame");
    }
    (switch, guests)
}

#[test]
fn views_follow_keys_and_the_switch_may_go_and_come() {
    let (mut switch, mut guests) = bench();
    let mut terminal = Terminal::new(&switch);
    terminal.shows(&["ringswitch", "FRAMES", "web ", "store ", "guest   up", "q quit"]);
    // There are rates when there is something to count.
    for seed in 0..10 {
        guests[0].send(0, &Frame::pattern(mac(2), mac(1), 100, seed), &Layout::whole());
    }
    terminal.key("2");
    terminal.shows(&["WORKER", "BUSY", "1 worker"]);
    terminal.key("3");
    terminal.shows(&["nothing was dropped since the process began"]);
    terminal.key("4");
    terminal.shows(&["FROM \\ TO", "= guest to guest", "web", "store"]);
    terminal.key("?");
    terminal.shows(&["Any key closes this."]);
    terminal.key("?");
    terminal.key("1");
    terminal.key("/sto");
    terminal.shows(&["/sto", "1 port,"]);
    terminal.key("\x7f\x7f\x7f\r");
    terminal.shows(&["2 ports,"]);

    let old = switch.process().pid();
    switch.upgrade();
    terminal.shows(&[&format!("another process has taken over from {old}")]);
    switch.end("TERM");
    terminal.shows(&["nobody answers at ", "trying again"]);
    let old = switch.process().pid();
    switch.start_again();
    terminal.shows(&[&format!("taken over from {old}"), "guest   down", "web "]);
    terminal.key("q");
    terminal.gives_the_terminal_back();
    switch.stop();
}

#[test]
fn signals_give_the_terminal_back() {
    let (switch, _guests) = bench();
    for signal in ["TERM", "INT", "HUP"] {
        let mut terminal = Terminal::new(&switch);
        terminal.shows(&["web ", "q quit"]);
        let text = terminal.process.output();
        let (_, pid) = text.split_once("pid ").expect("its number");
        let (pid, _) = pid.split_once('.').expect("its end");
        let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).status();
        assert!(sent.expect("a shell").success());
        terminal.gives_the_terminal_back();
    }
    switch.stop();
}

#[test]
fn without_a_terminal_it_says_what_to_use() {
    let (switch, _guests) = bench();
    let output = switch.client(&["top"]).output().expect("run");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("use `ringswitch show ports --watch`"), "{text}");
    assert!(output.stdout.is_empty());
    switch.stop();
}
