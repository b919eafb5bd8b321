//! Hitless upgrade: a new process takes the place of the one that runs, and no guest notices.
//!
//! # Theory of operation
//!
//! The new process connects to the old one's upgrade socket. They speak in lines of JSON with
//! descriptors ([`Channel`](crate::sys::channel::Channel)):
//!
//! | new | old | |
//! |---|---|---|
//! | `hello` | | the ports that the new one is configured with |
//! | | `welcome`, `log`, `listener`, `door`..., `port`..., `tap-queue`..., `addresses`..., `flows`..., `all` | of the ports that both have: sockets, descriptors, tables. Frames go on |
//! | `ready` | | everything is mapped and open, the workers wait |
//! | | `rings` | the workers wait, all rings are stopped and told |
//! | `restored` | | all rings that ran are as they were |
//! | | `go` | the old process ends |
//!
//! Until `go` was sent the old process can go on with everything, and does so at any error, when the
//! other falls silent or dies; from then on it touches nothing any more. The new one touches
//! nothing before. So at any time one of them, and no more, owns the rings. Frames wait in the
//! rings and in the TAPs' queues between `ready` and `go`, a few milliseconds.
//!
//! How a port's session is told is `vhost_user`'s business: as vhost-user messages.

mod new;
mod old;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::api::Door;
use crate::config::{PortKind, PortSettings, SocketRole};
use crate::sys::channel::Channel;

pub(super) use new::{Inherited, Predecessor};
pub(super) use old::UpgradeServer;

/// The version of this protocol. Another one is refused: the switch is to be restarted then.
const VERSION: u32 = 1;
/// How long either side waits for the other while frames go on.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long frames may stand still before all is called off.
const STANDSTILL: Duration = Duration::from_secs(5);

/// Why the new process doesn't take over. The old one goes on.
#[derive(Debug, Error)]
pub enum UpgradeError {
    /// Nobody is there.
    #[error("no switch answers at {socket}: start it with `ringswitch run`")]
    Nobody {
        /// The upgrade socket.
        socket: String,
        /// The system's reason.
        source: crate::sys::socket::SocketError,
    },
    /// It is there, but won't.
    #[error("the switch that runs refuses: {0}")]
    Refused(String),
    /// Something of a port can't be as it was.
    #[error("port {port} can't be taken over: {reason}")]
    Port {
        /// Its name.
        port: String,
        /// What is in the way.
        reason: String,
    },
    /// The two didn't understand each other, or one is gone.
    #[error("while waiting for `{step}`")]
    Channel {
        /// The step of the protocol.
        step: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

/// A port by what both processes must agree on for it to be taken over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct PortIdentity {
    name: String,
    /// Socket and role, or device.
    place: String,
}

impl From<&PortSettings> for PortIdentity {
    fn from(port: &PortSettings) -> Self {
        let place = match &port.kind {
            PortKind::VhostUser(settings) => {
                let role = match settings.role {
                    SocketRole::Server => "server",
                    SocketRole::Client => "client",
                };
                format!("vhost-user {role} {}", settings.socket.display())
            }
            PortKind::Tap(tap) => format!("tap {}", tap.device),
        };
        Self { name: port.name.clone(), place }
    }
}

/// What the new process says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "message")]
enum FromNew {
    Hello {
        version: u32,
        program: String,
        pid: u32,
        ports: Vec<PortIdentity>,
        /// Where clients of the API are to come in.
        #[serde(default)]
        doors: Vec<Door>,
    },
    Ready,
    Restored,
}

/// What the old process says. The number of descriptors that come with it stands beside it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "message")]
enum FromOld {
    Welcome {
        program: String,
        pid: u32,
        /// The time of systemd's watchdog, in microseconds: systemd tells it the first process only.
        #[serde(default)]
        watchdog: Option<u64>,
    },
    Refused {
        reason: String,
    },
    /// Standard error. 1.
    Log {
        /// Whether it leads to the journal: only the first process is told by systemd.
        #[serde(default)]
        journal: bool,
    },
    /// The upgrade socket. 1.
    Listener,
    /// Where clients of the API come in, if both have it. 1.
    Door {
        door: Door,
    },
    /// A vhost-user port. The listener, if there is one; the frontend's socket and the tale of its
    /// session, if one is connected.
    Port {
        name: String,
        listens: bool,
        connected: bool,
    },
    /// One queue of a TAP. 1.
    TapQueue {
        name: String,
    },
    /// Addresses of a port, and their ages in seconds.
    Addresses {
        name: String,
        addresses: Vec<(u64, u32)>,
    },
    /// The queue pairs that a port's guest sends its flows on.
    Flows {
        name: String,
        flows: Vec<(u32, u8)>,
    },
    All,
    /// The rings that ran, by port, one bit for each: the first 64 of them, and the others.
    Rings {
        running: BTreeMap<String, (u64, u64)>,
    },
    Go,
}

fn send(
    channel: &Channel,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    channel.send(&serde_json::to_string(message)?, descriptors)
}

fn receive<T: DeserializeOwned>(
    channel: &mut Channel,
    step: &'static str,
    deadline: Instant,
) -> Result<T, UpgradeError> {
    let line =
        channel.receive(deadline).map_err(|source| UpgradeError::Channel { step, source })?;
    let message = serde_json::from_str(&line);
    message.map_err(|error| UpgradeError::Channel { step, source: error.into() })
}

/// This program and its version, for the log of the other process.
fn program() -> String {
    format!("{} {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
}
