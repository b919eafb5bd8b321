//! Settings: what an operator wrote, turned into what the switch may rely on.
//!
//! Owns the configuration file's format, every default and every range. It opens no device and no
//! socket and resolves no user name: a value that passes here is well formed, and whether the
//! machine can provide it shows when [`crate::control`] builds the switch.
//!
//! # Theory of operation
//!
//! Text becomes raw values that remember where they stood (`raw`), raw values become [`Settings`]
//! (`validate`). Syntax and type errors end at the first one, because nothing behind it can be
//! trusted; what well-formed values mean is checked to the end, so that an operator sees every
//! mistake at once ([`ConfigErrors`]). Ports given on the command line take the same checks.

mod logs;
mod mirrors;
mod ports;
mod problem;
mod raw;
#[cfg(test)]
mod tests;
mod validate;

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

pub use logs::{LEVELS, LogFormat, LogSettings};
use problem::Source;
pub use problem::{ConfigErrors, Position, Problem};
use raw::{RawApi, RawLog, RawMacTable, RawPort, RawSandbox, RawSettings, RawUpgrade, RawWorkers};

/// The largest configuration file, in bytes; [`MAX_PORTS`] ports need a quarter of it.
pub const MAX_FILE_SIZE: u64 = 1 << 20;
/// The name of the uplink's port when the command line asks for one.
const UPLINK_PORT: &str = "uplink";

/// Everything an operator can set; validated.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The threads that move frames.
    pub workers: WorkerSettings,
    /// The MAC table's size and ageing.
    pub mac_table: MacTableSettings,
    /// The socket on which another process may take this one's place: absolute, at most 107 bytes.
    pub upgrade: Option<PathBuf>,
    /// The socket of the API: absolute, at most 107 bytes.
    pub api: Option<PathBuf>,
    /// The same for those who may look only.
    pub read_only: Option<PathBuf>,
    /// Where Prometheus finds metrics over TCP: an address of this host alone.
    pub metrics: Option<SocketAddr>,
    /// What the process gives up once it has opened its ports.
    pub sandbox: SandboxSettings,
    /// What is logged.
    pub log: LogSettings,
    /// The ports in the order of the file: at most [`MAX_PORTS`], of which at most one is the uplink.
    /// Only a switch with an API may begin without any.
    pub ports: Vec<PortSettings>,
    /// What is copied to ports that are for looking on, at most [`MAX_MIRRORS`].
    pub mirrors: Vec<MirrorSettings>,
}

impl Settings {
    /// Reads and checks the configuration file `path`.
    ///
    /// # Errors
    ///
    /// The file can't be read, is no UTF-8 text or is larger than 1 MiB; otherwise as
    /// [`Settings::from_toml`].
    pub fn load(path: &Path) -> Result<Settings, ConfigErrors> {
        let whole = |message: String| {
            ConfigErrors::from(Source::File { name: path, text: "" }.problem(None, &message))
        };
        let unreadable = |error| whole(format!("cannot read the configuration: {error}"));
        let file = File::open(path).map_err(unreadable)?;
        let mut bytes = Vec::new();
        // One byte more than allowed tells a file that fits from one that does not.
        file.take(MAX_FILE_SIZE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > MAX_FILE_SIZE {
            return Err(whole(format!(
                "the file is too large; expected a configuration of at most {MAX_FILE_SIZE} bytes"
            )));
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            whole(format!("the file is no text at byte {at}; expected TOML in UTF-8"))
        })?;
        Self::from_toml(&text, path)
    }

    /// Checks the configuration `text`, which errors call `file_name`.
    ///
    /// # Errors
    ///
    /// The first error of syntax or type; or, when there is none, every value that is out of
    /// range, missing, or at odds with another.
    pub fn from_toml(text: &str, file_name: &Path) -> Result<Settings, ConfigErrors> {
        let source = Source::File { name: file_name, text };
        let raw: RawSettings =
            toml::from_str(text).map_err(|error| source.problem(error.span(), error.message()))?;
        validate::validate(&raw, source)
    }

    /// Whether there are TAPs.
    #[must_use]
    pub fn has_taps(&self) -> bool {
        self.ports.iter().any(|port| matches!(port.kind, PortKind::Tap(_)))
    }

    /// Settings for `ports`, each a name and its socket, and for an uplink through the TAP device
    /// `uplink`, whose port is called `uplink`. Everything else has its default.
    ///
    /// # Errors
    ///
    /// Every value that a file could not have either.
    pub fn from_args(
        ports: &[(String, PathBuf)],
        uplink: Option<String>,
    ) -> Result<Settings, ConfigErrors> {
        let source = Source::Arguments;
        // Spans are meaningless here; `Source::Arguments` never looks at one.
        let mut raw = Vec::new();
        for (name, socket) in ports {
            let Some(socket) = socket.to_str() else {
                let message = format!("socket {socket:?} is no UTF-8 text; expected a plain path");
                return Err(source.problem(None, &message).into());
            };
            raw.push(RawPort {
                name: Some(unplaced(name.clone())),
                r#type: Some(unplaced("vhost-user".to_owned())),
                socket: Some(unplaced(socket.to_owned())),
                ..RawPort::default()
            });
        }
        raw.extend(uplink.map(|device| RawPort {
            name: Some(unplaced(UPLINK_PORT.to_owned())),
            r#type: Some(unplaced("tap".to_owned())),
            device: Some(unplaced(device)),
            uplink: Some(unplaced(true)),
            ..RawPort::default()
        }));
        let raw = RawSettings {
            workers: RawWorkers::default(),
            mac_table: RawMacTable::default(),
            upgrade: RawUpgrade::default(),
            api: RawApi::default(),
            sandbox: RawSandbox::default(),
            log: RawLog::default(),
            port: raw.into_iter().map(unplaced).collect(),
            mirror: Vec::new(),
        };
        validate::validate(&raw, source)
    }
}

fn unplaced<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}

/// The threads that move frames.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerSettings {
    /// Number of workers, 1 to [`MAX_WORKERS`].
    pub count: usize,
    /// What a worker does while there is nothing to do.
    pub mode: PollMode,
    /// The CPU of each worker, one per worker; empty when the workers aren't pinned.
    pub cpus: Vec<usize>,
}

/// What a worker does while there is nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PollMode {
    /// Polls while there is traffic and shortly after, then sleeps until a ring is kicked.
    Adaptive,
    /// Never sleeps: one CPU per worker, always.
    Poll,
}

/// What the process gives up once it has opened its ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxSettings {
    /// How much.
    pub mode: SandboxMode,
    /// `user` or `user:group` to run as, as names or ids; `None` stands for a default if the process
    /// is started as root, and for the user that starts it otherwise.
    pub user: Option<String>,
}

/// How much the process gives up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SandboxMode {
    /// All of it, or it doesn't start.
    Strict,
    /// All that the kernel can enforce.
    #[default]
    On,
    /// Root and capabilities; what else would be refused is logged by the kernel and passes.
    Log,
    /// Nothing.
    Off,
}

impl SandboxMode {
    /// The modes by their names.
    pub const NAMES: [(&'static str, SandboxMode); 4] =
        [("strict", Self::Strict), ("on", Self::On), ("log", Self::Log), ("off", Self::Off)];
}

/// The MAC table (the filtering database of IEEE 802.1Q, section 8.8).
#[derive(Debug, Clone, PartialEq)]
pub struct MacTableSettings {
    /// How long an entry stays after the address was last seen as a source, in whole seconds
    /// (IEEE 802.1Q, table 8-6 recommends 300 s).
    pub ageing: Duration,
    /// Entries in the whole table.
    pub capacity: usize,
    /// Entries that one port may hold, the uplink excepted; at most `capacity`.
    pub per_port: usize,
}

/// One port of the switch.
#[derive(Debug, Clone, PartialEq)]
pub struct PortSettings {
    /// Unique name: 1 to 32 of `A-Z a-z 0-9 _ . -`.
    pub name: String,
    /// What is attached there.
    pub kind: PortKind,
    /// MAC addresses that this port may hold; `None` stands for the table's default, see
    /// [`MacTableSettings::limit`].
    pub mac_limit: Option<usize>,
    /// Addresses that are there, whether they are heard or not, and nowhere else.
    pub macs: Vec<[u8; 6]>,
    /// Whom its frames may reach.
    pub isolation: Isolation,
}

/// Which ports the frames of a port may reach, as in a private VLAN (RFC 5517).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Isolation {
    /// All.
    #[default]
    Open,
    /// Those that are open, and no others.
    Isolated,
    /// Those that are open, and those of the same group.
    Group(String),
}

/// A port whose frames are copied to another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorSettings {
    /// Whose frames.
    pub port: String,
    /// The port that the copies leave by. It takes part in nothing else.
    pub to: String,
    /// Which ones.
    pub directions: Directions,
}

/// Which frames of a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Directions {
    /// What comes in by it and what leaves by it.
    #[default]
    Both,
    /// What comes in by it.
    In,
    /// What is to leave by it.
    Out,
}

impl Directions {
    /// The directions by their names.
    pub const NAMES: [(&'static str, Self); 3] =
        [("both", Self::Both), ("in", Self::In), ("out", Self::Out)];
}

/// What is attached to a port.
#[derive(Debug, Clone, PartialEq)]
pub enum PortKind {
    /// A guest's NIC over vhost-user.
    VhostUser(VhostUserSettings),
    /// A TAP device of this host.
    Tap(TapSettings),
}

/// A guest's NIC over vhost-user.
#[derive(Debug, Clone, PartialEq)]
pub struct VhostUserSettings {
    /// The UNIX socket: absolute, unique among the ports, at most 107 bytes.
    pub socket: PathBuf,
    /// Who listens there.
    pub role: SocketRole,
    /// `user` or `user:group` as names or ids, resolved when the socket is made. Server only.
    pub owner: Option<String>,
    /// Permission bits of the socket, at most `0o777`. Server only.
    pub mode: Option<u32>,
    /// Queue pairs that the guest may use, 1 to [`MAX_QUEUE_PAIRS`].
    pub queue_pairs: u16,
    /// The MTU advertised to the guest (virtio 1.2, 5.1.4: `mtu`), in bytes without the Ethernet
    /// header, 68 to 65535; `None` advertises none.
    pub mtu: Option<u16>,
}

/// This process's part in setting up a vhost-user connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketRole {
    /// This process listens; the VMM connects, and may do so again after it left.
    Server,
    /// The VMM listens; this process connects, and retries until it succeeds.
    Client,
}

/// A TAP device of this host.
#[derive(Debug, Clone, PartialEq)]
pub struct TapSettings {
    /// Unique interface name, at most 15 bytes.
    pub device: String,
    /// The interface's MTU in bytes, 68 to [`MAX_TAP_MTU`]; `None` leaves it as it is.
    pub mtu: Option<u32>,
    /// The bridge that the interface is made a port of.
    pub bridge: Option<String>,
    /// Whether this port leads to the rest of the network. At most one port does.
    pub uplink: bool,
}

/// Ports in one switch.
pub const MAX_PORTS: usize = 1024;
/// Mirrors in one switch.
pub const MAX_MIRRORS: usize = 16;
/// Workers in one switch.
pub const MAX_WORKERS: usize = 64;
/// Queue pairs of one vhost-user port. vhost-user's ring index is a byte wide, and a frontend
/// counts the rings of all pairs with it.
pub const MAX_QUEUE_PAIRS: u16 = 64;
/// The largest MTU of a TAP: Linux allows 65535 bytes less the 14 of the Ethernet header.
pub const MAX_TAP_MTU: u32 = 65_535 - 14;

impl Default for WorkerSettings {
    fn default() -> Self {
        Self { count: 1, mode: PollMode::Adaptive, cpus: Vec::new() }
    }
}

impl Default for MacTableSettings {
    fn default() -> Self {
        Self { ageing: Duration::from_secs(300), capacity: 131_072, per_port: 1024 }
    }
}

impl MacTableSettings {
    /// The number of MAC addresses that `port` may hold.
    ///
    /// Without a limit of its own, the uplink may fill the table, because everything outside the
    /// host is behind it; any other port gets `per_port`, so that a guest that invents addresses
    /// can't push out the others' entries.
    pub fn limit(&self, port: &PortSettings) -> usize {
        let default = match &port.kind {
            PortKind::Tap(tap) if tap.uplink => self.capacity,
            PortKind::Tap(_) | PortKind::VhostUser(_) => self.per_port,
        };
        port.mac_limit.unwrap_or(default)
    }
}
