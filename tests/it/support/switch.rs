//! The switch itself: the real binary, started, watched and stopped.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::netns::Netns;
use super::proc::Process;
use super::wait_for;

/// How long the switch may take to start, to stop, to print its statistics.
const PATIENCE: Duration = Duration::from_secs(60);

/// The user that it becomes: nobody.
pub const USER: u32 = 65534;

/// What to start.
#[derive(Debug, Default)]
pub struct Builder<'a> {
    ports: Vec<String>,
    dialled: Vec<String>,
    uplink: Option<String>,
    netns: Option<&'a Netns>,
    settings: Option<String>,
    more: Vec<String>,
    upgradable: bool,
    api: bool,
    environment: Vec<(String, PathBuf)>,
}

impl<'a> Builder<'a> {
    /// With this variable in its environment.
    pub fn env(mut self, name: &str, value: &Path) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With an upgrade socket.
    pub fn upgradable(mut self) -> Self {
        self.upgradable = true;
        self
    }

    /// With an API.
    pub fn api(mut self) -> Self {
        self.api = true;
        self
    }

    /// A vhost-user port that listens on a socket of its own.
    pub fn port(mut self, name: &str) -> Self {
        self.ports.push(name.to_owned());
        self
    }

    /// A vhost-user port that connects to the frontend's socket, which [`Switch::socket`] names. From
    /// a configuration file: see [`Builder::settings`], which comes before.
    pub fn dialled_port(mut self, name: &str) -> Self {
        self.dialled.push(name.to_owned());
        // QEMU is root's here, and so is its socket.
        self.settings.get_or_insert_with(|| "[sandbox]\nuser = \"root\"\n".to_owned());
        self
    }

    /// A TAP uplink.
    pub fn uplink(mut self, device: &str) -> Self {
        self.uplink = Some(device.to_owned());
        self
    }

    /// Runs it in this namespace.
    pub fn netns(mut self, netns: &'a Netns) -> Self {
        self.netns = Some(netns);
        self
    }

    /// Starts it from a configuration file: these settings, and behind them the ports given by
    /// [`Builder::port`]. Arguments that a file has a key for can't be given besides.
    pub fn settings(mut self, toml: &str) -> Self {
        self.settings = Some(toml.to_owned());
        self
    }

    /// More arguments for `ringswitch run`.
    pub fn args(mut self, more: &[&str]) -> Self {
        self.more.extend(more.iter().map(ToString::to_string));
        self
    }

    /// Starts it and waits until it is ready.
    pub fn start(self) -> Switch {
        let dir = if self.dialled.is_empty() {
            directory()
        } else {
            // The user stays root: see `dialled_port`.
            tempfile::tempdir().expect("a directory")
        };
        let binary = env!("CARGO_BIN_EXE_ringswitch");
        let mut command = match self.netns {
            Some(netns) => netns.command(binary),
            None => Command::new(binary),
        };
        command.arg("run");
        if let Some(settings) = &self.settings {
            let path = dir.path().join("ringswitch.toml");
            let mut text = settings.clone();
            if !settings.contains("[sandbox]") {
                text += &format!("\n[sandbox]\nuser = \"{USER}:{USER}\"\n");
            }
            if self.upgradable {
                text +=
                    &format!("\n[upgrade]\nsocket = \"{}\"\n", upgrade_in(dir.path()).display());
            }
            if self.api {
                text += &format!("\n[api]\nsocket = \"{}\"\n", api_in(dir.path()).display());
            }
            text += &self.port_tables(dir.path());
            std::fs::write(&path, text).expect("a configuration file");
            command.arg("--config").arg(path);
        } else {
            if !self.more.iter().any(|argument| argument == "--config") {
                command.args(["--user", &format!("{USER}:{USER}")]);
            }
            for name in &self.ports {
                let socket = socket_in(dir.path(), name);
                command.args(["--port", &format!("{name}={}", socket.display())]);
            }
        }
        if let Some(uplink) = &self.uplink {
            command.args(["--uplink", uplink]);
        }
        command.args(&self.more);
        if self.upgradable && self.settings.is_none() {
            command.arg("--upgrade-socket").arg(upgrade_in(dir.path()));
        }
        if self.api && self.settings.is_none() {
            command.arg("--api-socket").arg(api_in(dir.path()));
        }
        let line = std::iter::once(command.get_program()).chain(command.get_args());
        let line = line.map(ToOwned::to_owned).collect();
        let environment = self.environment;
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        let process = Process::start("ringswitch", command, &dir.path().join("log"));
        let mut switch = Switch { process, ports: self.ports, line, environment, dir };
        switch.wait_until_ready(0);
        switch
    }

    /// The vhost-user ports as tables of a configuration file.
    fn port_tables(&self, dir: &Path) -> String {
        let table = |(name, role): (&String, &str)| {
            let socket = socket_in(dir, name);
            format!(
                "\n[[port]]\nname = \"{name}\"\ntype = \"vhost-user\"\nsocket = \"{}\"\n\
                 role = \"{role}\"\n",
                socket.display()
            )
        };
        let listening = self.ports.iter().map(|name| (name, "server"));
        listening.chain(self.dialled.iter().map(|name| (name, "client"))).map(table).collect()
    }
}

/// A running switch; killed on drop.
#[derive(Debug)]
pub struct Switch {
    process: Process,
    /// Those that listen.
    ports: Vec<String>,
    /// Program and arguments that it was started with.
    line: Vec<OsString>,
    environment: Vec<(String, PathBuf)>,
    dir: tempfile::TempDir,
}

/// Named counters.
pub type Counters = BTreeMap<String, u64>;

/// What the switch prints on SIGUSR1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// By port name.
    pub ports: BTreeMap<String, Counters>,
    /// By worker number.
    pub workers: BTreeMap<String, Counters>,
}

impl Statistics {
    /// A counter of a port; one that isn't printed is 0.
    pub fn port(&self, port: &str, counter: &str) -> u64 {
        let counters = self.ports.get(port).unwrap_or_else(|| panic!("no port {port}: {self:?}"));
        counters.get(counter).copied().unwrap_or(0)
    }

    /// All that was dropped, for whatever reason, at whatever port.
    pub fn dropped(&self) -> u64 {
        let counters = self.ports.values().chain(self.workers.values()).flatten();
        counters.filter(|(name, _)| name.starts_with("drop_")).map(|(_, count)| count).sum()
    }

    /// The lines `stats port=NAME key=value ...` and `stats worker=N key=value ...`, each behind
    /// whatever the logger puts in front.
    pub fn parse(log: &str) -> Statistics {
        let mut statistics = Statistics::default();
        for line in log.lines() {
            let Some((_, fields)) = line.split_once("stats ") else {
                continue;
            };
            let mut fields = fields.split_whitespace().filter_map(|field| field.split_once('='));
            let group = match fields.next() {
                Some(("port", name)) => statistics.ports.entry(name.to_owned()),
                Some(("worker", number)) => statistics.workers.entry(number.to_owned()),
                _ => continue,
            };
            group.or_default().extend(fields.map(|(key, value)| {
                let value = value.parse().unwrap_or_else(|_| panic!("{key}={value} in {line:?}"));
                (key.to_owned(), value)
            }));
        }
        statistics
    }
}

impl Switch {
    /// Settings for a switch without ports.
    pub fn builder<'a>() -> Builder<'a> {
        Builder::default()
    }

    /// The socket of a port.
    pub fn socket(&self, port: &str) -> PathBuf {
        socket_in(self.dir.path(), port)
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The command that starts it, with other words in the place of `run`.
    pub fn command(&self, words: &[&str]) -> Command {
        let line = self.line.iter().flat_map(|word| match word.to_str() {
            Some("run") => words.iter().map(OsString::from).collect(),
            _ => vec![word.clone()],
        });
        let line: Vec<_> = line.collect();
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The next process will have the port `to` in the place of `from`.
    pub fn rename_port(&mut self, from: &str, to: &str) {
        let of = |port: &str| OsString::from(format!("{port}={}", self.socket(port).display()));
        let (old, new) = (of(from), of(to));
        self.line.iter_mut().filter(|word| **word == old).for_each(|word| *word = new.clone());
        self.ports.iter_mut().filter(|port| *port == from).for_each(|port| *port = to.to_owned());
    }

    /// Its log, which the processes that take over go on with.
    pub fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// The socket on which another process can take over.
    pub fn upgrade_socket(&self) -> PathBuf {
        upgrade_in(self.dir.path())
    }

    /// The API's socket.
    pub fn api_socket(&self) -> PathBuf {
        api_in(self.dir.path())
    }

    /// `ringswitch` with these arguments, which finds this switch's API.
    pub fn client(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringswitch"));
        command.args(arguments).env("RINGSWITCH_API", self.api_socket());
        command
    }

    /// Has a new process take over, as `ringswitch upgrade` does, and the old one end in order.
    /// Returns what they logged.
    pub fn upgrade(&mut self) -> String {
        let from = self.process.output().len();
        let new = Process::start("ringswitch", self.command(&["run", "--take-over"]), &self.log());
        let mut old = std::mem::replace(&mut self.process, new);
        let status = wait_for("end of the old process", PATIENCE, || {
            let failed = self.process.ended();
            assert!(failed.is_none(), "the new process ended with {failed:?}");
            old.ended()
        });
        assert!(status.success(), "the old process ended with {status}");
        self.process.output_with("ready: ", from, PATIENCE);
        self.process.output()[from..].to_owned()
    }

    /// Starts it again after it has ended, in whatever way.
    pub fn start_again(&mut self) {
        assert!(self.process.ended().is_some(), "it still runs");
        let from = self.process.written();
        self.process = Process::start("ringswitch", self.command(&["run"]), &self.log());
        self.wait_until_ready(from);
    }

    /// Waits until it is ready, by what its log says behind the first `from` bytes.
    fn wait_until_ready(&mut self, from: usize) {
        // Sockets are there before the threads that serve them.
        self.process.output_with("ready: ", from, PATIENCE);
        for port in &self.ports {
            assert!(self.socket(port).exists(), "no socket for port {port}");
        }
    }

    /// Ends it by this signal and starts it again, with the same sockets.
    pub fn restart(&mut self, signal: &str) {
        self.end(signal);
        self.start_again();
    }

    /// Ends it by this signal: in order by TERM, in the middle of whatever it does by KILL.
    pub fn end(&mut self, signal: &str) {
        self.process.signal(signal);
        let status = self.process.wait(PATIENCE);
        assert!(status.success() || signal == "KILL", "the switch ended with {status}");
        let log = self.process.output();
        assert!(!log.contains("panicked"), "the switch panicked:\n{log}");
    }

    /// Its statistics now.
    pub fn statistics(&mut self) -> Statistics {
        let from = self.process.written();
        self.process.signal("USR1");
        Statistics::parse(&self.process.output_with("stats end", from, PATIENCE))
    }

    /// Statistics that satisfy `wanted`, as soon as they do.
    pub fn statistics_when(&mut self, wanted: impl Fn(&Statistics) -> bool) -> Statistics {
        wait_for("such statistics", PATIENCE, || Some(self.statistics()).filter(|now| wanted(now)))
    }

    /// Ends it in order: exit code 0, sockets gone, no panic in its log. Returns the log.
    pub fn stop(mut self) -> String {
        self.process.signal("TERM");
        let status = self.process.wait(PATIENCE);
        assert!(status.success(), "the switch ended with {status}");
        for port in &self.ports {
            assert!(!self.socket(port).exists(), "the socket of {port} was left behind");
        }
        let log = self.process.output();
        assert!(!log.contains("panicked"), "the switch panicked:\n{log}");
        assert!(!log.contains("sandbox: refused"), "a call that it needs is forbidden:\n{log}");
        log
    }
}

/// A directory in which the switch may remove its sockets at the end.
pub fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    chown(dir.path(), Some(USER), None).expect("a directory of the switch's user");
    dir
}

fn upgrade_in(dir: &Path) -> PathBuf {
    dir.join("upgrade")
}

fn api_in(dir: &Path) -> PathBuf {
    dir.join("api")
}

fn socket_in(dir: &Path, port: &str) -> PathBuf {
    dir.join(format!("{port}.sock"))
}

#[test]
fn statistics_are_read_from_the_log() {
    let log = "[2026-01-01T00:00:00Z INFO  ringswitch] hello\n\
               [x INFO y] stats port=vm1 ingress_frames=3 drop_rx_ring_full=2\n\
               stats port=up ingress_frames=4 drop_bad_chain=5\n\
               stats worker=0 bursts=7\n\
               stats end\n";
    let statistics = Statistics::parse(log);
    assert_eq!(statistics.port("vm1", "ingress_frames"), 3);
    assert_eq!(statistics.port("up", "egress_frames"), 0);
    assert_eq!(statistics.workers["0"]["bursts"], 7);
    assert_eq!(statistics.dropped(), 7);
}
