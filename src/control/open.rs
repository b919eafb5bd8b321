//! Opens what the switch needs: TAP devices and sockets, also systemd's.
//!
//! This is all that may need the rights of root, and it comes before the first thread.

use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::config::{MAX_WORKERS, PortKind, PortSettings, Settings, TapSettings};
use crate::frame::PortId;
use crate::port::{Kind, Port, TapPort, VhostPort};
use crate::ring::Queues;
use crate::sys::limits;
use crate::sys::tap::{Tap, TapOptions};
use crate::vhost_user::{Arrival, PortSocket};

use super::Error;
use super::upgrade::Inherited;
use super::watchdog::Watchdog;

/// What was opened. Dropping it closes all of it, and unlinks the sockets.
pub struct Opened {
    pub(super) ports: Box<[Arc<Port>]>,
    pub(super) sockets: Vec<OpenedSocket>,
    /// The ports that another process hands over, by name.
    pub(super) arrivals: Vec<(String, Arrival)>,
    pub(super) watchdog: Option<Watchdog>,
    /// How many workers there may come to be.
    pub(super) most_workers: usize,
}

/// The socket of a port.
pub(super) struct OpenedSocket {
    pub port: Arc<Port>,
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
        Self::with(settings, &mut Inherited::default())
    }

    /// As [`Self::new`], but what another process hands over is taken.
    pub(super) fn with(settings: &Settings, inherited: &mut Inherited) -> Result<Self, Error> {
        if let Err(e) = limits::raise_nofile() {
            log::warn!("cannot raise the limit of open files: {e}");
        }
        let workers = settings.workers.count;
        // As many as can run at a time: more would be of no use.
        let most_workers = std::thread::available_parallelism().map_or(1, NonZero::get);
        let most_workers = most_workers.clamp(workers, MAX_WORKERS.max(workers));
        let open = |(index, wanted): (usize, &PortSettings)| {
            let kind = match &wanted.kind {
                PortKind::VhostUser(vhost) => {
                    Kind::Vhost(VhostPort::new(Arc::new(Queues::new(vhost.queue_pairs))))
                }
                PortKind::Tap(tap) => {
                    let queues = inherited.taps.remove(&wanted.name);
                    Kind::Tap(open_tap(&wanted.name, tap, workers, queues)?)
                }
            };
            Ok(Arc::new(Port::new(PortId(index as u16), wanted.name.clone(), kind, most_workers)))
        };
        let ports = settings.ports.iter().enumerate().map(open).collect::<Result<_, Error>>()?;
        let watchdog = Watchdog::new(inherited.watchdog).unwrap_or_else(|error| {
            log::warn!("cannot connect to systemd, whose watchdog will end the switch: {error}");
            None
        });
        let (sockets, arrivals) = (Vec::new(), Vec::new());
        let mut this = Self { ports, sockets, arrivals, watchdog, most_workers };
        this.open_sockets(&settings.ports, inherited)?;
        Ok(this)
    }

    fn open_sockets(
        &mut self,
        ports: &[PortSettings],
        inherited: &mut Inherited,
    ) -> Result<(), Error> {
        for (index, PortSettings { name, kind, .. }) in ports.iter().enumerate() {
            let PortKind::VhostUser(vhost) = kind else { continue };
            let socket = if let Some(estate) = inherited.ports.remove(name) {
                let (socket, arrival) = PortSocket::inherit(vhost, estate);
                self.arrivals.push((name.clone(), arrival));
                socket
            } else {
                let failed = |source| Error::Endpoint { port: name.clone(), source };
                PortSocket::open(vhost).map_err(failed)?
            };
            let Some(port) = self.ports.get(index).map(Arc::clone) else { continue };
            self.sockets.push(OpenedSocket { port, socket, mtu: vhost.mtu });
        }
        Ok(())
    }
}

/// A device, or the queues of it that another process handed over.
pub(super) fn open_tap(
    port: &str,
    tap: &TapSettings,
    workers: usize,
    queues: Option<Vec<OwnedFd>>,
) -> Result<TapPort, Error> {
    let options = TapOptions { queues: workers, mtu: tap.mtu, bridge: tap.bridge.clone() };
    let opened = match queues {
        None => Tap::open(&tap.device, &options),
        Some(queues) => Tap::inherit(&tap.device, &options, queues),
    };
    Ok(TapPort::new(opened.map_err(|source| Error::Tap { port: port.to_owned(), source })?))
}
