//! systemd's watchdog: it hears of the switch while all workers go on, and not when one hangs. The
//! tests are systemd.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::support::netns::must;
use super::support::switch::{Builder, Switch};
use super::support::wait_for;

const PATIENCE: Duration = Duration::from_secs(60);
/// The watchdog's time, and the same in microseconds.
const TIME: Duration = Duration::from_secs(2);
const USEC: &str = "2000000";
const PING: &str = "WATCHDOG=1\n";

/// systemd's end of its socket.
struct Systemd {
    socket: UnixDatagram,
    path: PathBuf,
    _dir: TempDir,
}

impl Systemd {
    fn new() -> Systemd {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        for open in [dir.path(), &path] {
            fs::set_permissions(open, Permissions::from_mode(0o777)).expect("our own");
        }
        Systemd { socket, path, _dir: dir }
    }

    /// Starts a switch as its service.
    fn start<'a>(&self, switch: Builder<'a>) -> Switch {
        switch.env("NOTIFY_SOCKET", &self.path).env("WATCHDOG_USEC", Path::new(USEC)).start()
    }

    /// The next message within this time.
    fn hears(&self, within: Duration) -> Option<String> {
        let mut text = [0; 256];
        self.socket.set_read_timeout(Some(within)).expect("a time limit");
        let length = self.socket.recv(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text[..length]).into_owned())
    }

    /// Forgets what has come.
    fn drain(&self) {
        while self.hears(Duration::from_millis(1)).is_some() {}
    }

    /// Hears so often of the switch that no watchdog's time runs out for two times.
    #[track_caller]
    fn is_content(&self) {
        self.drain();
        let end = Instant::now() + 2 * TIME;
        while Instant::now() < end {
            let heard = self.hears(TIME).expect("a word in the watchdog's time");
            assert_eq!(heard, PING);
        }
    }
}

/// A thread of a running process that is held until this is dropped.
struct Held(Child);

impl Held {
    fn thread(pid: u32, name: &str) -> Held {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("a live process");
        let task = tasks.map(|task| task.expect("a thread")).find(|task| {
            fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
        });
        let number = task.unwrap_or_else(|| panic!("no thread {name}")).file_name();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/hold.py");
        let mut python = Command::new("python3");
        python.arg(script).arg(number).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = python.spawn().expect("python3");
        let mut word = String::new();
        let output = child.stdout.as_mut().expect("a pipe");
        BufReader::new(output).read_line(&mut word).expect("a word");
        assert_eq!(word, "held\n");
        Held(child)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// A process that is no child of ours: ended with this.
struct Stranger(u32);

impl Stranger {
    fn is_there(&self) -> bool {
        Path::new(&format!("/proc/{}", self.0)).exists()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        if self.is_there() {
            let _ = Command::new("kill").args(["-KILL", &self.0.to_string()]).status();
        }
    }
}

#[test]
fn it_hears_of_the_switch_until_a_worker_hangs() {
    for mode in ["adaptive", "poll"] {
        let systemd = Systemd::new();
        let settings = format!("[workers]\ncount = 2\nmode = \"{mode}\"\n");
        let mut switch = systemd.start(Switch::builder().settings(&settings).port("a"));
        systemd.is_content();
        let held = Held::thread(switch.process().pid(), "worker1");
        // The last look before.
        std::thread::sleep(TIME / 2);
        systemd.drain();
        assert_eq!(systemd.hears(TIME), None, "{mode}: it hears of a switch that hangs");
        switch.process().output_with("worker 1 doesn't go on", 0, PATIENCE);
        drop(held);
        systemd.is_content();
        switch.stop();
    }
}

#[test]
fn without_a_watchdog_nothing_is_said() {
    let systemd = Systemd::new();
    let switch = Switch::builder().port("a").env("NOTIFY_SOCKET", &systemd.path).start();
    assert!(systemd.hears(PATIENCE).is_some_and(|heard| heard.starts_with("READY=1")));
    assert_eq!(systemd.hears(TIME), None);
    switch.stop();
}

/// Has another process take over as systemd does, which tells `ExecReload` where its socket is and
/// nothing of a watchdog.
fn reload(switch: &Switch) -> Stranger {
    let said = must(switch.command(&["upgrade"]).env_remove("WATCHDOG_USEC"));
    let heir = said.split_whitespace().nth(1).and_then(|pid| pid.parse().ok());
    Stranger(heir.unwrap_or_else(|| panic!("no process in {said:?}")))
}

#[test]
fn it_hears_of_those_that_take_over() {
    let systemd = Systemd::new();
    let mut switch = systemd.start(Switch::builder().port("a").upgradable());
    let first = reload(&switch);
    assert!(switch.process().wait(PATIENCE).success());
    let second = reload(&switch);
    wait_for("the first one's end", PATIENCE, || (!first.is_there()).then_some(()));
    // Nothing but pings from then on.
    wait_for("word of the new main process", PATIENCE, || {
        systemd.hears(PATIENCE).filter(|heard| heard.contains(&format!("MAINPID={}\n", second.0)))
    });
    systemd.is_content();
    must(Command::new("kill").args(["-TERM", &second.0.to_string()]));
    wait_for("its end", PATIENCE, || (!second.is_there()).then_some(()));
}
