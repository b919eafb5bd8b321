//! Opens what the switch needs: TAP devices and sockets.
//!
//! This is all that may need the rights of root, and it comes before the first thread.

use std::sync::Arc;

use crate::config::{PortKind, PortSettings, Settings, TapSettings};
use crate::frame::PortId;
use crate::port::{Kind, Port, TapPort, VhostPort};
use crate::ring::Queues;
use crate::sys::limits;
use crate::sys::tap::{Tap, TapOptions};
use crate::vhost_user::PortSocket;

use super::Error;

/// What was opened. Dropping it closes all of it, and unlinks the sockets.
pub struct Opened {
    pub(super) ports: Box<[Arc<Port>]>,
    pub(super) sockets: Vec<OpenedSocket>,
}

/// The socket of a port.
pub(super) struct OpenedSocket {
    pub port: PortId,
    pub socket: PortSocket,
    pub mtu: Option<u16>,
}

impl Opened {
    /// Opens the ports. Frontends can connect from then on, and wait for the switch to start.
    ///
    /// # Errors
    ///
    /// [`enum@Error`]; what was opened before it is closed again.
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        if let Err(e) = limits::raise_nofile() {
            log::warn!("cannot raise the limit of open files: {e}");
        }
        let workers = settings.workers.count;
        let open = |(index, wanted): (usize, &PortSettings)| {
            let kind = match &wanted.kind {
                PortKind::VhostUser(vhost) => {
                    Kind::Vhost(VhostPort::new(Arc::new(Queues::new(vhost.queue_pairs))))
                }
                PortKind::Tap(tap) => Kind::Tap(open_tap(&wanted.name, tap, workers)?),
            };
            Ok(Arc::new(Port::new(PortId(index as u16), wanted.name.clone(), kind, workers)))
        };
        let ports = settings.ports.iter().enumerate().map(open).collect::<Result<_, Error>>()?;
        let sockets = open_sockets(&settings.ports)?;
        Ok(Self { ports, sockets })
    }
}

fn open_tap(port: &str, tap: &TapSettings, workers: usize) -> Result<TapPort, Error> {
    let options = TapOptions { queues: workers, mtu: tap.mtu, bridge: tap.bridge.clone() };
    let opened = Tap::open(&tap.device, &options);
    Ok(TapPort::new(opened.map_err(|source| Error::Tap { port: port.to_owned(), source })?))
}

fn open_sockets(ports: &[PortSettings]) -> Result<Vec<OpenedSocket>, Error> {
    let mut sockets = Vec::new();
    for (index, wanted) in ports.iter().enumerate() {
        let PortKind::VhostUser(vhost) = &wanted.kind else { continue };
        let socket = PortSocket::open(vhost)
            .map_err(|source| Error::Endpoint { port: wanted.name.clone(), source })?;
        sockets.push(OpenedSocket { port: PortId(index as u16), socket, mtu: vhost.mtu });
    }
    Ok(sockets)
}
