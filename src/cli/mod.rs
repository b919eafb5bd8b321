//! The command line: what can be said, and the settings that it stands for.
//!
//! Owns names, defaults and help of arguments. Ranges that a configuration file has too are the
//! library's; arguments take the same checks.

pub mod attach;
pub mod capture;
pub mod change;
pub mod client;
pub mod extcap;
pub mod generate;
mod latency;
pub mod log_level;
mod numbers;
pub mod show;
mod slow;
mod tables;
pub mod top;
pub mod trace;
pub mod upgrade;
mod way;

use std::path::{self, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use log::Level;
use ringswitch::config::{ConfigErrors, MAX_WORKERS, PollMode, SandboxMode, Settings};
use ringswitch::control::Reread;

const EXAMPLES: &str = "\
Examples:
  Two guests and the host's network, without a file:
    ringswitch run --port vm1=/run/vm1.sock --port vm2=/run/vm2.sock --uplink rs0
  The same from a file, checked first:
    ringswitch check /etc/ringswitch.toml
    ringswitch run --config /etc/ringswitch.toml
  A new version in the place of the one that runs, without a pause:
    ringswitch upgrade --config /etc/ringswitch.toml
  What goes through it now: live in a terminal; as text, each second
    ringswitch top
    ringswitch show ports --watch
  What QEMU needs to attach a guest to the port vm1:
    ringswitch args qemu vm1 --config /etc/ringswitch.toml

Exit codes:
  0    success; `run` was ended by SIGTERM or SIGINT
  1    failure at run time: a socket, a TAP device, memory, ...
  2    wrong usage or configuration
  159  the sandbox ended it: the last line says what it had been asked for";

const RUN_EXAMPLES: &str = "\
Examples:
  ringswitch run --config /etc/ringswitch.toml
  ringswitch run --port vm1=/run/vm1.sock --port vm2=/run/vm2.sock --uplink rs0
  ringswitch run --port vm1=vm1.sock --port vm2=vm2.sock --workers 2 --poll

SIGTERM or SIGINT ends it: sockets are removed, the exit code is 0. A failure exits with 1, wrong
usage or configuration with 2.";

const UPGRADE_EXAMPLES: &str = "\
Examples:
  ringswitch upgrade --config /etc/ringswitch.toml
  ringswitch upgrade --upgrade-socket /run/rs.sock --port vm1=/run/vm1.sock --uplink rs0

The arguments are those of `run`, for the process that takes over; the configuration names the
upgrade socket of the one that runs. Ports that both have go on without a pause; those that only
the old one has end, those that only the new one has begin. If anything fails, the old process goes
on as if nothing had been, and the exit code is 1.";

const ARGS_EXAMPLES: &str = "\
Examples:
  ringswitch args qemu vm1 --port vm1=/run/vm1.sock --vcpus 2 --memory 2G
  ringswitch args cloud-hypervisor vm1 --config /etc/ringswitch.toml
  ringswitch args libvirt vm1 --config /etc/ringswitch.toml --mac 52:54:00:00:00:01

A guest with several ports needs the lines about its memory only once. QEMU 7.2 without KVM needs
vectors=0 in place of the vectors printed.";

/// An in-host network switch for virtual machines: frames go from ring to ring with one copy.
#[derive(Debug, Parser)]
#[command(name = "ringswitch", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the switch until SIGTERM or SIGINT
    Run(RunArgs),
    /// Put this program in the place of the one that runs; guests notice nothing
    Upgrade(UpgradeArgs),
    /// Check a configuration file; touches nothing
    Check {
        /// The file to check
        file: PathBuf,
    },
    /// Print what attaches a guest to a port
    Args(ArgsArgs),
    /// Show what the switch that runs does
    Show(show::ShowArgs),
    /// Add, change and remove ports while it runs
    Port(change::PortArgs),
    /// Give addresses to ports, and forget them
    Mac(change::MacArgs),
    /// Copy a port's frames to another port
    Mirror(change::MirrorArgs),
    /// Change other settings while it runs
    Set(change::SetArgs),
    /// Go over to what the configuration file says now
    Reload(change::ReloadArgs),
    /// Copy frames of ports, with what became of them, for Wireshark and tcpdump
    Capture(capture::CaptureArgs),
    /// Print what completes these commands in a shell
    Completions(generate::CompletionsArgs),
    /// Write the manual's pages, for packages
    #[command(hide = true)]
    Man(generate::ManArgs),
    /// Watch the switch that runs, in a terminal
    Top(top::TopArgs),
    /// Show how much the switch that runs logs, or change it
    LogLevel(log_level::LogLevelArgs),
    /// Answer Wireshark, which calls this
    #[command(hide = true)]
    Extcap(extcap::ExtcapArgs),
    /// Show the way that a frame would go, or the way that real frames go
    Trace(Box<trace::TraceArgs>),
}

#[derive(Debug, Clone, Args)]
#[command(after_help = RUN_EXAMPLES)]
#[command(group = ArgGroup::new("what").args(["config", "ports", "uplink"]).required(true).multiple(true))]
pub struct RunArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["ports", "uplink", "workers", "poll", "upgrade_socket", "api_socket", "user"])]
    config: Option<PathBuf>,
    /// A vhost-user port and the socket to listen on; may be repeated
    #[arg(long = "port", value_name = "NAME=SOCKET", value_parser = port)]
    ports: Vec<(String, PathBuf)>,
    /// The TAP device that leads to the rest of the network; made if it isn't there
    #[arg(long, value_name = "DEVICE")]
    uplink: Option<String>,
    /// Threads that move frames [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MAX_WORKERS as i64))]
    workers: Option<u16>,
    /// Never sleep: the lowest latency, for a whole CPU per worker
    #[arg(long)]
    poll: bool,
    /// The socket on which `ringswitch upgrade` finds this switch; root's and its user's only
    #[arg(long, value_name = "PATH", value_parser = absolute)]
    upgrade_socket: Option<PathBuf>,
    /// The socket on which `ringswitch show` finds this switch; root's and its user's only
    #[arg(long, value_name = "PATH", value_parser = absolute)]
    api_socket: Option<PathBuf>,
    /// Take the place of the switch behind the upgrade socket: `ringswitch upgrade` starts it so
    #[arg(long, hide = true)]
    pub take_over: bool,
    /// The user to run as when started as root [default: ringswitch if there is one, else nobody]
    #[arg(long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// strict, on, log or off, to look for a fault; goes before the file's [default: on]
    #[arg(long, value_name = "MODE", value_parser = sandbox_mode)]
    sandbox: Option<SandboxMode>,
    /// What to log to standard error; goes before the file's [default: info]
    #[arg(long, value_name = "LEVEL", env = "RINGSWITCH_LOG", value_parser = level())]
    log_level: Option<Level>,
}

#[derive(Debug, Args)]
#[command(after_help = UPGRADE_EXAMPLES)]
pub struct UpgradeArgs {
    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Debug, Args)]
#[command(after_help = ARGS_EXAMPLES)]
#[command(group = ArgGroup::new("what").args(["config", "ports"]).required(true))]
pub struct ArgsArgs {
    /// The virtual machine monitor
    pub vmm: Vmm,
    /// The port's name
    #[arg(value_name = "PORT")]
    pub port: String,
    /// The configuration file that has the port
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The port and its socket, as given to `run`; may be repeated
    #[arg(long = "port", id = "ports", value_name = "NAME=SOCKET", value_parser = port)]
    ports: Vec<(String, PathBuf)>,
    /// The guest's MAC address [default: derived from the port's name, always the same]
    #[arg(long, value_parser = attach::mac)]
    pub mac: Option<attach::Mac>,
    /// The guest's virtual CPUs: no more queue pairs are used; Cloud Hypervisor refuses more
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub vcpus: Option<u16>,
    /// The guest's memory in M or G; a libvirt domain states it elsewhere
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = attach::memory)]
    pub memory: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Vmm {
    /// Arguments of qemu-system-x86_64
    Qemu,
    /// Arguments of cloud-hypervisor
    CloudHypervisor,
    /// Elements of a libvirt domain
    Libvirt,
}

impl RunArgs {
    /// The settings that these arguments stand for.
    pub fn settings(&self) -> Result<Settings, ConfigErrors> {
        let mut settings = settings(self.config.as_ref(), &self.ports, self.uplink.clone())?;
        if let Some(workers) = self.workers {
            settings.workers.count = workers.into();
        }
        if self.poll {
            settings.workers.mode = PollMode::Poll;
        }
        if let Some(socket) = &self.upgrade_socket {
            settings.upgrade = Some(socket.clone());
        }
        if let Some(socket) = &self.api_socket {
            settings.api = Some(socket.clone());
        }
        if let Some(user) = &self.user {
            settings.sandbox.user = Some(user.clone());
        }
        if let Some(mode) = self.sandbox {
            settings.sandbox.mode = mode;
        }
        if let Some(level) = self.log_level {
            settings.log.level = level;
        }
        Ok(settings)
    }
}

impl RunArgs {
    /// How to read the settings again, if they are of a file.
    ///
    /// # Errors
    ///
    /// There is no current directory, which the path may be from.
    pub fn reread(&self) -> std::io::Result<Option<Reread>> {
        let Some(file) = &self.config else { return Ok(None) };
        let file = path::absolute(file)?;
        let again = Self { config: Some(file.clone()), ..self.clone() };
        Ok(Some(Reread { file, read: Box::new(move || again.settings()) }))
    }
}

impl ArgsArgs {
    /// The settings that have the port, or should.
    pub fn settings(&self) -> Result<Settings, ConfigErrors> {
        settings(self.config.as_ref(), &self.ports, None)
    }
}

fn settings(
    config: Option<&PathBuf>,
    ports: &[(String, PathBuf)],
    uplink: Option<String>,
) -> Result<Settings, ConfigErrors> {
    match config {
        Some(file) => Settings::load(file),
        None => Settings::from_args(ports, uplink),
    }
}

/// One of the names that a file may have.
fn sandbox_mode(text: &str) -> Result<SandboxMode, String> {
    let found = SandboxMode::NAMES.iter().find(|(name, _)| *name == text);
    found.map(|(_, mode)| *mode).ok_or_else(|| "expected strict, on, log or off".to_owned())
}

/// `NAME=SOCKET`. A relative path is one from the current directory, as everywhere in a shell.
fn port(text: &str) -> Result<(String, PathBuf), String> {
    let (name, socket) = text.split_once('=').ok_or("expected NAME=SOCKET")?;
    if socket.is_empty() {
        return Err("there is no path after `=`; expected NAME=SOCKET".to_owned());
    }
    let socket = path::absolute(socket).map_err(|error| error.to_string())?;
    Ok((name.to_owned(), socket))
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    path::absolute(text).map_err(|error| error.to_string())
}

/// One of the levels of the log.
fn level() -> impl TypedValueParser<Value = Level> {
    let words = ["error", "warn", "info", "debug", "trace"];
    PossibleValuesParser::new(words).try_map(|word| word.parse::<Level>())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::CommandFactory;
    use clap::error::ErrorKind;
    use ringswitch::config::{PortKind, PortSettings, SandboxSettings, TapSettings};

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(["ringswitch"].into_iter().chain(line.split_whitespace()))
    }

    fn run(line: &str) -> RunArgs {
        match parse(line).expect("a good command line").command {
            Command::Run(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn refused(line: &str) -> ErrorKind {
        let error = parse(line).expect_err("a bad command line");
        assert_eq!(error.exit_code(), 2, "{line}");
        error.kind()
    }

    fn socket(port: &PortSettings) -> &Path {
        match &port.kind {
            PortKind::VhostUser(settings) => &settings.socket,
            PortKind::Tap(_) => panic!("{} is a tap", port.name),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn ports_and_uplink_become_settings_in_order() {
        let settings =
            run("run --port a=/x/a.sock --uplink rs0 --port b=rel=1.sock --workers 3 --poll")
                .settings()
                .expect("good settings");
        assert_eq!(settings.workers.count, 3);
        assert_eq!(settings.workers.mode, PollMode::Poll);
        let names: Vec<_> = settings.ports.iter().map(|port| port.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "uplink"]);
        assert_eq!(socket(&settings.ports[0]), Path::new("/x/a.sock"));
        assert_eq!(socket(&settings.ports[1]), path::absolute("rel=1.sock").expect("absolute"));
        let tap = TapSettings { device: "rs0".into(), mtu: None, bridge: None, uplink: true };
        assert_eq!(settings.ports[2].kind, PortKind::Tap(tap));
    }

    #[test]
    fn the_sandbox_can_be_chosen() {
        let default = run("run --port a=/x").settings().expect("good settings");
        assert_eq!(default.sandbox, SandboxSettings::default());
        let line = "run --port a=/x --user sam:users --sandbox strict";
        let settings = run(line).settings().expect("good settings");
        assert_eq!(settings.sandbox.user.as_deref(), Some("sam:users"));
        assert_eq!(settings.sandbox.mode, SandboxMode::Strict);
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/ringswitch.toml");
        let settings = run(&format!("run --config {file} --sandbox off"));
        let settings = settings.settings().expect("good settings");
        assert_eq!(settings.sandbox.mode, SandboxMode::Off);
        assert_eq!(settings.sandbox.user.as_deref(), Some("ringswitch"));
        assert_eq!(refused("run --port a=/x --sandbox weak"), ErrorKind::ValueValidation);
    }

    #[test]
    fn a_port_that_a_file_could_not_have_is_refused() {
        let errors = run("run --port a=/x --port a=/y").settings().expect_err("a name twice");
        assert!(errors.to_string().starts_with("port name \"a\" is already taken"));
    }

    #[test]
    fn run_takes_a_file_or_ports() {
        assert_eq!(run("run --config f.toml").config, Some("f.toml".into()));
        assert_eq!(refused("run"), ErrorKind::MissingRequiredArgument);
        for rest in ["--port a=/x", "--uplink rs0", "--workers 2", "--poll", "--user x"] {
            let line = format!("run --config f.toml {rest}");
            assert_eq!(refused(&line), ErrorKind::ArgumentConflict, "{rest}");
        }
        assert_eq!(refused("run --workers 2"), ErrorKind::MissingRequiredArgument);
    }

    #[test]
    fn malformed_values_are_refused() {
        for line in [
            "run --port a",
            "run --port a=",
            "run --uplink t --workers 0",
            "run --uplink t --workers 65",
            "args qemu a --port a=/x --mac 52:54:00:00:00",
            "args qemu a --port a=/x --vcpus 0",
            "args qemu a --port a=/x --memory 1T",
        ] {
            assert_eq!(refused(line), ErrorKind::ValueValidation, "{line}");
        }
        assert_eq!(refused("run --uplink t --log-level loud"), ErrorKind::InvalidValue);
        assert_eq!(refused("args xen a --port a=/x"), ErrorKind::InvalidValue);
        assert_eq!(refused("check"), ErrorKind::MissingRequiredArgument);
        assert_eq!(refused("args qemu a"), ErrorKind::MissingRequiredArgument);
        assert_eq!(refused("args qemu a --port a=/x --config f"), ErrorKind::ArgumentConflict);
    }

    #[test]
    fn log_levels_are_those_of_the_log() {
        for (word, level) in [
            ("error", Level::Error),
            ("warn", Level::Warn),
            ("info", Level::Info),
            ("debug", Level::Debug),
            ("trace", Level::Trace),
        ] {
            let args = run(&format!("run --uplink t --log-level {word}"));
            assert_eq!(args.settings().expect("good settings").log.level, level);
        }
    }

    #[test]
    fn help_shows_examples_and_exit_codes() {
        let help = Cli::command().render_help().to_string();
        assert!(help.contains("Examples:") && help.contains("Exit codes:"), "{help}");
        for line in EXAMPLES.lines().chain(RUN_EXAMPLES.lines()).chain(ARGS_EXAMPLES.lines()) {
            let Some(example) = line.trim().strip_prefix("ringswitch ") else {
                continue;
            };
            assert!(parse(example).is_ok(), "{example}");
        }
    }
}
