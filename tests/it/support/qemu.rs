//! A real Linux guest in QEMU, booted by `qemu-scripts/guest` and commanded over its control
//! socket (the protocol is described in `qemu-scripts/lib/control.py`).

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::proc::Process;
use super::{unique, wait_for};

/// Time to boot under TCG with both cores busy.
const BOOT: Duration = Duration::from_secs(300);
/// What a serial port may take beyond a command's own time limit.
const GRACE: Duration = Duration::from_secs(20);

/// A running guest; its QEMU is killed on drop.
#[derive(Debug)]
pub struct QemuGuest {
    process: Process,
    control: UnixStream,
    received: Vec<u8>,
    qmp: PathBuf,
    _dir: tempfile::TempDir,
}

impl QemuGuest {
    /// Boots a guest with its NIC on the vhost-user socket at `socket` and waits until it takes
    /// commands. `options` are those of `qemu-scripts/guest`, such as `--ip 10.0.0.1/24`.
    pub fn boot(name: &str, socket: &Path, options: &[&str]) -> QemuGuest {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, qmp) = (dir.path().join("control"), dir.path().join("qmp"));
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/qemu-scripts/guest");
        let mut command = Command::new(script);
        command.arg(name).arg(socket).arg("--control").arg(&path).arg("--qmp").arg(&qmp);
        command.args(options);
        let mut process = Process::start(name, command, &dir.path().join("log"));
        let control = wait_for("control socket of the guest", BOOT, || {
            let ended = process.ended();
            assert!(ended.is_none(), "{name}: QEMU ended at once: {ended:?}");
            UnixStream::connect(&path).ok()
        });
        let mut guest = QemuGuest { process, control, received: Vec::new(), qmp, _dir: dir };
        guest.wait_ready();
        guest
    }

    /// Waits until the guest has booted, once more if it had: it says so. Nothing is sent before.
    pub fn wait_ready(&mut self) {
        let deadline = Instant::now() + BOOT;
        loop {
            let line = self.line(deadline).unwrap_or_else(|| panic!("no boot within {BOOT:?}"));
            if line.starts_with("ready ") {
                return;
            }
        }
    }

    /// Resets the machine, as its button does, and waits until it takes commands again.
    pub fn reset(&mut self) {
        self.qmp("system_reset", "{}");
        self.wait_ready();
    }

    /// Has QEMU do a QMP command; `arguments` is a JSON object. Panics if it refuses.
    pub fn qmp(&self, command: &str, arguments: &str) -> String {
        let mut socket = UnixStream::connect(&self.qmp).expect("QEMU's socket for commands");
        socket.set_read_timeout(Some(BOOT)).expect("a time limit");
        let mut lines = BufReader::new(socket.try_clone().expect("a second handle")).lines();
        lines.next().expect("a greeting").expect("a line");
        let mut ask = |command: &str, arguments: &str| {
            let line = format!("{{\"execute\": \"{command}\", \"arguments\": {arguments}}}\n");
            socket.write_all(line.as_bytes()).expect("QEMU is alive");
            // Events come in between.
            let answer = lines
                .by_ref()
                .map(|line| line.expect("a line"))
                .find(|line| line.starts_with("{\"return\"") || line.starts_with("{\"error\""));
            let answer = answer.expect("an answer");
            assert!(answer.starts_with("{\"return\""), "{command} {arguments}: {answer}");
            answer
        };
        ask("qmp_capabilities", "{}");
        ask(command, arguments)
    }

    /// The process of its QEMU.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Runs a command line in the guest: its exit code and its output. The guest kills it after
    /// `limit` (exit code 137).
    pub fn try_run(&mut self, line: &str, limit: Duration) -> (i32, String) {
        let token = self.send(line, limit.as_secs().max(1));
        let answer = self.answer(&token, limit + GRACE);
        answer.unwrap_or_else(|| panic!("no answer to {line:?} within {limit:?}"))
    }

    /// Runs a command line in the guest and returns its output; panics unless it succeeds.
    pub fn run(&mut self, line: &str, limit: Duration) -> String {
        let (code, output) = self.try_run(line, limit);
        assert_eq!(code, 0, "{line:?} in the guest:\n{output}");
        output
    }

    /// Starts a command; [`QemuGuest::finish`] takes its answer. Two guests so work at a time.
    pub fn begin(&mut self, line: &str, limit: Duration) -> String {
        self.send(line, limit.as_secs().max(1))
    }

    /// The answer to a command that was begun.
    pub fn finish(&mut self, token: &str, limit: Duration) -> (i32, String) {
        self.answer(token, limit + GRACE).unwrap_or_else(|| panic!("no answer within {limit:?}"))
    }

    fn send(&mut self, line: &str, limit_secs: u64) -> String {
        assert!(!line.contains('\n'), "the control channel takes one line");
        let token = unique("t").replace('-', "x");
        // The empty line in front ends whatever half a line the guest may have seen before.
        let request = format!("\n? {token} {limit_secs} {line}\n");
        self.control.write_all(request.as_bytes()).expect("QEMU is alive");
        token
    }

    /// The answer to `token`, if it comes within `timeout`; answers to other tokens are dropped.
    fn answer(&mut self, token: &str, timeout: Duration) -> Option<(i32, String)> {
        let deadline = Instant::now() + timeout;
        loop {
            let line = self.line(deadline)?;
            let words: Vec<&str> = line.split_whitespace().collect();
            let &["=", of, status, length] = words.as_slice() else {
                continue;
            };
            let length: usize = length.parse().expect("a length");
            self.fill_until(deadline, |bytes| (bytes.len() >= length).then_some(length))?;
            let output: Vec<u8> = self.received.drain(..length).collect();
            if of == token {
                let status = status.parse().expect("an exit code");
                return Some((status, String::from_utf8_lossy(&output).into_owned()));
            }
        }
    }

    fn line(&mut self, deadline: Instant) -> Option<String> {
        let end = self.fill_until(deadline, |bytes| bytes.iter().position(|&b| b == b'\n'))?;
        let line: Vec<u8> = self.received.drain(..=end).collect();
        Some(String::from_utf8_lossy(&line).into_owned())
    }

    fn fill_until(
        &mut self,
        deadline: Instant,
        found: impl Fn(&[u8]) -> Option<usize>,
    ) -> Option<usize> {
        loop {
            if let Some(at) = found(&self.received) {
                return Some(at);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.control.set_read_timeout(Some(left)).expect("a time limit");
            let mut buffer = [0; 65536];
            match self.control.read(&mut buffer) {
                Ok(0) => panic!("the guest's QEMU ended"),
                Ok(read) => self.received.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("control socket: {error}"),
            }
        }
    }
}
