//! Child processes with their logs, and what /proc tells of a process.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::wait_for;

/// A child whose output goes to a file. Killed, by its process id, and reaped on drop; when the
/// test is failing, the end of its log is shown.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    stdin: Option<ChildStdin>,
}

impl Process {
    /// Starts `command` with its output at the end of the file `log`. Its input stays open, and empty but for
    /// what [`Process::type_line`] writes.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Process {
        let output = File::options().create(true).append(true).open(log).expect("a log file");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} ({command:?}) does not start: {error}"));
        let stdin = child.stdin.take();
        Process { name: name.to_owned(), child, log: log.to_owned(), stdin }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name, such as `TERM`, unless it has ended already.
    pub fn signal(&mut self, signal: &str) {
        if self.ended().is_none() {
            // The child isn't reaped, so the number is still its own.
            let sent = Command::new("sh")
                .args(["-c", &format!("kill -{signal} {}", self.pid())])
                .status()
                .expect("a shell");
            assert!(sent.success(), "no signal {signal} to {}", self.name);
        }
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child of ours")
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self, timeout: Duration) -> ExitStatus {
        let what = format!("end of {}", self.name);
        wait_for(&what, timeout, || self.ended())
    }

    /// Everything it has written.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).expect("the log")).into_owned()
    }

    /// How much it has written, bytes.
    pub fn written(&self) -> usize {
        fs::metadata(&self.log).expect("the log").len() as usize
    }

    /// What it has written after the first `from` bytes.
    pub fn output_after(&self, from: usize) -> String {
        let mut log = File::open(&self.log).expect("the log");
        let mut bytes = Vec::new();
        log.seek(SeekFrom::Start(from as u64)).expect("a file");
        log.read_to_end(&mut bytes).expect("the log");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What it wrote after the first `from` bytes, once that contains `wanted`. Panics when it
    /// ends first.
    pub fn output_with(&mut self, wanted: &str, from: usize, timeout: Duration) -> String {
        self.output_when(&format!("{wanted:?}"), from, timeout, |text| text.contains(wanted))
    }

    /// What it wrote after the first `from` bytes, once `found` says so of it.
    pub fn output_when(
        &mut self,
        what: &str,
        from: usize,
        timeout: Duration,
        found: impl Fn(&str) -> bool,
    ) -> String {
        wait_for(&format!("{what} from {}", self.name), timeout, || {
            let ended = self.ended();
            let new = self.output_after(from);
            if found(&new) {
                return Some(new);
            }
            assert!(ended.is_none(), "{} ended ({ended:?}) without {what}", self.name);
            None
        })
    }

    /// Writes a line to its input.
    pub fn type_line(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("an open input");
        writeln!(stdin, "{line}").unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    /// Ends it without warning, as when its machine fails.
    pub fn kill(&mut self) {
        // Fails only if it has ended already, which is what is wanted.
        let _ = self.child.kill();
        self.child.wait().expect("a child of ours");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let text = fs::read(&self.log).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            for line in &lines[lines.len().saturating_sub(40)..] {
                eprintln!("{}: {line}", self.name);
            }
        }
    }
}

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// Open file descriptors.
    pub fds: usize,
    /// Threads.
    pub threads: usize,
    /// Memory mappings.
    pub mappings: usize,
    /// Resident memory in KiB.
    pub rss_kib: u64,
    /// That part of it which is the process's own, and not memory that guests share with it.
    pub private_kib: u64,
}

/// What process `pid` holds now.
pub fn holdings(pid: u32) -> Holdings {
    let entries =
        |what| fs::read_dir(format!("/proc/{pid}/{what}")).expect("a live process").count();
    let text = |what| fs::read_to_string(format!("/proc/{pid}/{what}")).expect("a live process");
    let status = text("status");
    let kib = |name: &str| -> u64 {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_suffix(" kB"));
        value.and_then(|value| value.trim().parse().ok()).expect("a number of kB in the status")
    };
    Holdings {
        fds: entries("fd"),
        threads: entries("task"),
        mappings: text("maps").lines().count(),
        rss_kib: kib("VmRSS:"),
        private_kib: kib("RssAnon:"),
    }
}

/// Waits until process `pid` holds as many descriptors and threads as `before`, and hardly more
/// mappings: the allocator may keep a few.
pub fn holds_again(pid: u32, before: Holdings) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let now = holdings(pid);
        if (now.fds, now.threads) == (before.fds, before.threads)
            && now.mappings <= before.mappings + 10
        {
            return;
        }
        assert!(Instant::now() < deadline, "it holds {now:?}, and before {before:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Reads and writes that the workers of process `pid` have made, whatever to: of eventfds, sockets
/// and TAPs.
pub fn worker_calls(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("a live process");
    let calls = |task: fs::DirEntry| -> u64 {
        let text = |what| fs::read_to_string(task.path().join(what)).expect("a live thread");
        if !text("comm").starts_with("worker") {
            return 0;
        }
        let count = |line: &str| {
            let value = line.strip_prefix("syscr: ").or_else(|| line.strip_prefix("syscw: "))?;
            value.parse::<u64>().ok()
        };
        text("io").lines().filter_map(count).sum()
    };
    tasks.map(|task| calls(task.expect("a thread"))).sum()
}

/// Processor time that process `pid` has used, all its threads together.
pub fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a live process");
    // The name, in parentheses, may hold anything; utime and stime are fields 14 and 15.
    let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().expect("a number of ticks"))
        .sum();
    // USER_HZ is 100 on every Linux that Debian ships.
    Duration::from_millis(ticks * 10)
}
