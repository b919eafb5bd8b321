//! Where clients come in: the API's socket, and TCP for metrics.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::Settings;
use crate::sys::socket::{Listener, SocketError};

/// What a door is to another process: if it has the same, it goes on with the socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Door {
    /// The API's UNIX socket.
    Api(PathBuf),
    /// The UNIX socket of those who look only.
    ReadOnly(PathBuf),
    /// Metrics only, over TCP.
    Metrics(SocketAddr),
}

impl Door {
    /// The doors that these settings want.
    pub fn wanted(settings: &Settings) -> Vec<Self> {
        let api = settings.api.clone().map(Self::Api);
        let read_only = settings.read_only.clone().map(Self::ReadOnly);
        api.into_iter().chain(read_only).chain(settings.metrics.map(Self::Metrics)).collect()
    }
}

/// Why clients can't come in.
#[derive(Debug, Error)]
pub enum DoorError {
    /// The API's socket.
    #[error("API socket")]
    Api(#[source] SocketError),
    /// The address for metrics.
    #[error("cannot listen on {0} for metrics: choose a free port in [api] of the configuration")]
    Metrics(SocketAddr, #[source] io::Error),
}

/// A door that is open.
pub struct OpenDoor {
    /// Which one.
    pub door: Door,
    /// The socket.
    pub socket: DoorSocket,
}

/// The socket of a door.
pub enum DoorSocket {
    /// And its file.
    Unix(Listener),
    /// On loopback.
    Tcp(TcpListener),
}

impl OpenDoor {
    /// Opens `door`, or goes on with the socket of the process before.
    pub fn open(door: Door, inherited: Option<OwnedFd>) -> Result<Self, DoorError> {
        let socket = match (&door, inherited) {
            (Door::Api(path) | Door::ReadOnly(path), Some(socket)) => {
                DoorSocket::Unix(Listener::inherit(socket, path))
            }
            (Door::Api(path) | Door::ReadOnly(path), None) => {
                let mode = if matches!(door, Door::Api(_)) { 0o600 } else { 0o666 };
                let listener = Listener::bind(path, None, Some(mode));
                DoorSocket::Unix(listener.map_err(DoorError::Api)?)
            }
            (Door::Metrics(_), Some(socket)) => DoorSocket::Tcp(socket.into()),
            (Door::Metrics(address), None) => {
                let failed = |error| DoorError::Metrics(*address, error);
                let listener = TcpListener::bind(address).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                DoorSocket::Tcp(listener)
            }
        };
        Ok(Self { door, socket })
    }

    /// From now on the socket's file is this process's to remove.
    pub fn own(&mut self) {
        if let DoorSocket::Unix(listener) = &mut self.socket {
            listener.own();
        }
    }

    /// From now on the socket's file is another process's.
    pub fn disown(&mut self) {
        if let DoorSocket::Unix(listener) = &mut self.socket {
            listener.disown();
        }
    }
}

impl AsFd for OpenDoor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            DoorSocket::Unix(listener) => listener.as_fd(),
            DoorSocket::Tcp(listener) => listener.as_fd(),
        }
    }
}
