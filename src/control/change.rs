//! Changes a running switch: from the settings that it goes by to others, all of it or nothing.
//!
//! # Theory of operation
//!
//! What can fail comes first: the sockets and TAP devices of new ports are opened while everything
//! goes on. Then the workers take up the new set of ports and rules, each between two bursts
//! ([`Roster`](crate::worker::Roster)), and nothing fails any more. Ports that are gone end when no
//! worker has them. So a frame meets the settings before or those behind, and one of a port that
//! isn't concerned meets no pause.
//!
//! More or fewer workers: sources that are to move are nobody's for a moment, so that no frame overtakes
//! another one.
//!
//! Some things belong to the process as it was started: its own sockets, the sandbox, the size of the
//! MAC table. Those take another process, which is `ringswitch upgrade`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::api::config::Changed;
use crate::config::{
    Directions, Isolation, MAX_PORTS, PollMode, PortKind, PortSettings, Settings, SocketRole,
    TapSettings,
};
use crate::frame::PortId;
use crate::logs;
use crate::port::{Kind, Port, VhostPort};
use crate::ring::Queues;
use crate::sys::clock;
use crate::sys::sandbox::Sandbox;
use crate::sys::tap::{Tap, TapOptions};
use crate::table::mac::MacTable;
use crate::vhost_user::PortSocket;
use crate::wire::ethernet::MacAddr;
use crate::worker::{Mirror, Order, Ports, Reach};

use super::open::{OpenedSocket, open_tap};
use super::switch::{Endpoints, serve, unwatch_tap, watch_tap};
use super::{Error as StartError, Switch};

/// How long workers may take for the burst that they are at.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why nothing was changed.
#[derive(Debug, Error)]
pub(super) enum ChangeError {
    /// Another process is taking over.
    #[error("an upgrade is under way: ask the next process")]
    Busy,
    /// Settings of the process itself.
    #[error(
        "{0} can't be changed while this process runs: write it into the file and use `ringswitch \
         upgrade`, which loses no frame"
    )]
    Fixed(String),
    /// More workers than there is room for.
    #[error(
        "`count` is {0}: this process was made for {1} workers, as many as it saw CPUs; write it into \
         the file and use `ringswitch upgrade`, which loses no frame"
    )]
    Workers(usize, usize),
    /// There is no number left for a port.
    #[error("there are {MAX_PORTS} ports: remove one before another is added")]
    Full,
    /// Nobody opens TAPs any more.
    #[error(
        "port {0}: none of its ports was a TAP when this process started, so it has given up what it \
         takes to open one: write it into the file and use `ringswitch upgrade`, which loses no frame"
    )]
    NoTaps(String),
    /// Nobody looks names up any more.
    #[error(
        "port {0}: the process has given up what it takes to look up the owner {1:?}: write numbers, \
         or write it into the file and use `ringswitch upgrade`, which loses no frame"
    )]
    Names(String, String),
    /// A port can't be opened.
    #[error(
        "{} (what only root can do, and directories where nothing was at the start, take \
         `ringswitch upgrade`, which loses no frame)", super::chain(.0)
    )]
    Open(#[from] StartError),
}

/// A port of the next set, and its settings.
type Next<'s> = (&'s PortSettings, Arc<Port>);

/// What is opened for a change, and closed again if nothing comes of it.
#[derive(Default)]
struct Fresh {
    ports: Vec<Arc<Port>>,
    sockets: Vec<OpenedSocket>,
    endpoints: Endpoints,
}

impl Switch {
    /// Goes over to the settings `wanted`. If `dry`, it only says what that would change; what can't
    /// be opened is not found out then.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]; nothing has changed.
    pub(super) fn change(
        &self,
        wanted: Settings,
        sandbox: &Sandbox,
        dry: bool,
    ) -> Result<Changed, ChangeError> {
        let mut endpoints = self.endpoints.try_lock().ok_or(ChangeError::Busy)?;
        let before = self.settings.now();
        let most = self.shared.mailboxes.len();
        fixed(&before, &wanted, most)?;
        let changed = difference(&before, &wanted);
        if dry || changed == Changed::default() {
            return Ok(changed);
        }
        let ports = self.shared.ports.now();
        let mut fresh = Fresh::default();
        let next = self.open(&before, &wanted, &ports, &mut fresh)?;
        let mut crew = self.crew.lock();
        crew.hire(&self.shared, &wanted.workers, sandbox)?;
        let opened = adjust_taps(&before, &wanted).and_then(|()| self.admit(&mut fresh, sandbox));
        if let Err(error) = opened {
            crew.dismiss(&self.shared, before.workers.count);
            return Err(error);
        }

        let all = || next.iter().map(|(wanted, port)| (*wanted, port));
        for (wanted_port, port) in all() {
            let limit = wanted.mac_table.limit(wanted_port);
            self.shared.macs.set_port_limit(port.id.0, limit as u32);
        }
        let there = rules(all(), &wanted);
        let (then, now) = (before.workers.count, wanted.workers.count);
        self.go_over(there.clone().spread_over(then, now), then.max(now));
        let stays = |port: &Port| next.iter().any(|(_, next)| std::ptr::eq(&**next, port));
        self.dismiss(ports.iter().filter(|port| !stays(port)), &mut endpoints, &next);
        endpoints.append(&mut fresh.endpoints);
        if then != now {
            self.move_sources(&endpoints, &there, now);
            self.go_over(there.spread_over(now, now), then.max(now));
        }
        crew.dismiss(&self.shared, now);
        if before.workers != wanted.workers {
            crew.pin(&wanted.workers.cpus);
        }
        drop(crew);

        self.shared.macs.set_ageing(wanted.mac_table.ageing.as_secs() as u32);
        give(&self.shared.macs, &before, all());
        let mode = wanted.workers.mode;
        let poll = mode == PollMode::Poll;
        self.shared.active().iter().for_each(|mailbox| mailbox.send(Order::Poll(poll)));
        if before.log.level != wanted.log.level {
            logs::set_level(wanted.log.level);
        }
        self.settings.set(wanted);
        Ok(changed)
    }

    /// Has the first `workers` workers go by `ports`.
    fn go_over(&self, ports: Ports, workers: usize) {
        let all = &self.shared.mailboxes;
        let all = all.get(..workers).unwrap_or(all);
        if !self.shared.ports.change(ports, all, Instant::now() + PATIENCE) {
            log::error!("a worker doesn't go on, and has the ports of before");
        }
    }

    /// Registers the sources with the workers that there are to be. Those that move are nobody's.
    fn move_sources(&self, endpoints: &Endpoints, ports: &Ports, workers: usize) {
        ports.iter().for_each(|port| unwatch_tap(&self.shared, port));
        self.shared.set_workers(workers);
        for port in ports.iter() {
            if let Err(error) = watch_tap(&self.shared, port) {
                log::error!("port {}: {}; its frames wait", port.name, super::chain(&error));
            }
        }
        endpoints.values().for_each(|served| served.events.move_kicks());
    }

    /// The ports of `wanted`: those that stay, and new ones, which are opened.
    fn open<'s>(
        &self,
        before: &Settings,
        wanted: &'s Settings,
        ports: &Ports,
        fresh: &mut Fresh,
    ) -> Result<Vec<Next<'s>>, ChangeError> {
        let (queues, most) = (wanted.workers.count, self.shared.mailboxes.len());
        let mut used: BTreeSet<_> = ports.iter().map(|port| port.id.0).collect();
        let mut next = Vec::new();
        for wanted in &wanted.ports {
            let known = before.ports.iter().find(|port| port.name == wanted.name);
            let known = known.zip(ports.find(&wanted.name));
            if let Some((_, port)) = known.filter(|(before, _)| stays(before, wanted)) {
                next.push((wanted, Arc::clone(port)));
                continue;
            }
            let kind = match &wanted.kind {
                PortKind::VhostUser(vhost) => {
                    if let Some(owner) = vhost.owner.as_ref().filter(|owner| self.is_name(owner)) {
                        return Err(ChangeError::Names(wanted.name.clone(), owner.clone()));
                    }
                    Kind::Vhost(VhostPort::new(Arc::new(Queues::new(vhost.queue_pairs))))
                }
                PortKind::Tap(_) if !self.opens_taps => {
                    return Err(ChangeError::NoTaps(wanted.name.clone()));
                }
                PortKind::Tap(tap) => Kind::Tap(open_tap(&wanted.name, tap, queues, None)?),
            };
            let port = match known {
                Some((_, port)) => port.successor(kind),
                None => {
                    let id = (0..MAX_PORTS as u16).find(|id| !used.contains(id));
                    let id = id.ok_or(ChangeError::Full)?;
                    used.insert(id);
                    Port::new(PortId(id), wanted.name.clone(), kind, most)
                }
            };
            let port = Arc::new(port);
            if let PortKind::VhostUser(vhost) = &wanted.kind {
                // Its own one, which is to be replaced, may be in the way.
                let beside = known.is_some_and(|(before, _)| match &before.kind {
                    PortKind::VhostUser(old) => {
                        old.socket == vhost.socket && old.role == SocketRole::Server
                    }
                    PortKind::Tap(_) => false,
                });
                let socket =
                    if beside { PortSocket::open_beside(vhost) } else { PortSocket::open(vhost) };
                let name = || wanted.name.clone();
                let socket =
                    socket.map_err(|source| StartError::Endpoint { port: name(), source })?;
                let port = Arc::clone(&port);
                fresh.sockets.push(OpenedSocket { port, socket, mtu: vhost.mtu });
            }
            fresh.ports.push(Arc::clone(&port));
            next.push((wanted, port));
        }
        Ok(next)
    }

    /// Whether an owner can't be found any more.
    fn is_name(&self, owner: &str) -> bool {
        self.sandboxed && owner.split(':').any(|part| part.parse::<u32>().is_err())
    }

    /// Serves what was opened. Its frames wait until the workers know the ports.
    fn admit(&self, fresh: &mut Fresh, sandbox: &Sandbox) -> Result<(), ChangeError> {
        for opened in &mut fresh.sockets {
            let failed = |source| StartError::Endpoint { port: opened.port.name.clone(), source };
            opened.socket.settle().map_err(failed)?;
        }
        for port in &fresh.ports {
            watch_tap(&self.shared, port)?;
        }
        for opened in fresh.sockets.drain(..) {
            let id = opened.port.id;
            let served = serve(&self.shared, opened, sandbox)?;
            fresh.endpoints.extend(served.map(|served| (id, served)));
        }
        Ok(())
    }

    /// Ends ports that no worker has any more.
    fn dismiss<'p>(
        &self,
        gone: impl Iterator<Item = &'p Arc<Port>>,
        endpoints: &mut Endpoints,
        next: &[Next<'_>],
    ) {
        let gone: Vec<_> = gone.collect();
        let ended: Vec<_> = gone.iter().filter_map(|port| endpoints.remove(&port.id)).collect();
        ended.iter().for_each(|served| served.endpoint.begin_to_stop());
        drop(ended);
        for port in gone {
            unwatch_tap(&self.shared, port);
            if !next.iter().any(|(_, next)| next.id == port.id) {
                self.shared.macs.forget(port.id.0);
            }
        }
    }
}

/// Whether a port can go on as it is.
fn stays(before: &PortSettings, wanted: &PortSettings) -> bool {
    match (&before.kind, &wanted.kind) {
        (PortKind::VhostUser(before), PortKind::VhostUser(wanted)) => before == wanted,
        (PortKind::Tap(before), PortKind::Tap(wanted)) => before.device == wanted.device,
        _ => false,
    }
}

/// Refuses what takes another process.
fn fixed(before: &Settings, wanted: &Settings, most_workers: usize) -> Result<(), ChangeError> {
    let differ = [
        ("mac-table.capacity", before.mac_table.capacity != wanted.mac_table.capacity),
        ("upgrade.socket", before.upgrade != wanted.upgrade),
        ("api.socket", before.api != wanted.api),
        ("api.read-only-socket", before.read_only != wanted.read_only),
        ("api.metrics", before.metrics != wanted.metrics),
        ("sandbox", before.sandbox != wanted.sandbox),
        ("log.format", before.log.format != wanted.log.format),
    ];
    let keys: Vec<_> = differ.iter().filter(|(_, differs)| *differs).map(|(key, _)| *key).collect();
    if !keys.is_empty() {
        return Err(ChangeError::Fixed(keys.join(", ")));
    }
    let count = wanted.workers.count;
    if count > most_workers { Err(ChangeError::Workers(count, most_workers)) } else { Ok(()) }
}

/// What there is to change.
fn difference(before: &Settings, wanted: &Settings) -> Changed {
    let mut changed = Changed::default();
    let of =
        |settings: &Settings, name: &str| settings.ports.iter().position(|port| port.name == name);
    for port in &wanted.ports {
        let old = of(before, &port.name).and_then(|at| before.ports.get(at));
        let list = match old {
            None => &mut changed.added,
            Some(old) if old == port => continue,
            Some(old) if stays(old, port) => &mut changed.changed,
            Some(_) => &mut changed.replaced,
        };
        list.push(port.name.clone());
    }
    let gone = before.ports.iter().filter(|port| of(wanted, &port.name).is_none());
    changed.removed = gone.map(|port| port.name.clone()).collect();
    for (key, differs) in [
        ("workers", before.workers != wanted.workers),
        ("mac-table", before.mac_table != wanted.mac_table),
        ("log.level", before.log.level != wanted.log.level),
        ("mirror", before.mirrors != wanted.mirrors),
    ] {
        changed.changed.extend(differs.then(|| key.to_owned()));
    }
    changed
}

/// Sets MTU and bridge of the devices that stay.
fn adjust_taps(before: &Settings, wanted: &Settings) -> Result<(), ChangeError> {
    for port in &wanted.ports {
        let PortKind::Tap(TapSettings { device, mtu, bridge, uplink: _ }) = &port.kind else {
            continue;
        };
        let old = before.ports.iter().find(|old| old.name == port.name && stays(old, port));
        let Some(PortKind::Tap(old)) = old.map(|old| &old.kind) else { continue };
        if (&old.mtu, &old.bridge) != (mtu, bridge) {
            let options = TapOptions { queues: 0, mtu: *mtu, bridge: bridge.clone() };
            let failed = |source| StartError::Tap { port: port.name.clone(), source };
            Tap::adjust(device, &options).map_err(failed)?;
        }
    }
    Ok(())
}

/// The ports with the rules of `settings`.
pub(super) fn rules<'a>(
    ports: impl Iterator<Item = (&'a PortSettings, &'a Arc<Port>)> + Clone,
    settings: &Settings,
) -> Ports {
    let mut groups = BTreeMap::new();
    for port in &settings.ports {
        if let Isolation::Group(name) = &port.isolation {
            let number = groups.len() as u16;
            groups.entry(name.as_str()).or_insert(number);
        }
    }
    let reach = |wanted: &PortSettings| match &wanted.isolation {
        Isolation::Open => Reach::Open,
        Isolation::Isolated => Reach::Isolated,
        Isolation::Group(name) => {
            groups.get(name.as_str()).map_or(Reach::Isolated, |number| Reach::Group(*number))
        }
    };
    let id =
        |name: &str| ports.clone().find(|(port, _)| port.name == name).map(|(_, port)| port.id);
    let mirrors = settings.mirrors.iter().filter_map(|mirror| {
        Some(Mirror {
            from: id(&mirror.port)?,
            to: id(&mirror.to)?,
            inbound: mirror.directions != Directions::Out,
            outbound: mirror.directions != Directions::In,
        })
    });
    let mirrors = mirrors.collect();
    Ports::with_rules(ports.map(|(wanted, port)| (Arc::clone(port), reach(wanted))), mirrors)
}

/// Gives each port the addresses that its settings say, and takes away those that it had by the
/// settings before.
pub(super) fn give<'a>(
    macs: &MacTable,
    before: &Settings,
    ports: impl Iterator<Item = (&'a PortSettings, &'a Arc<Port>)> + Clone,
) {
    let number = |mac: &[u8; 6]| MacAddr(*mac).to_u64();
    let wanted: BTreeSet<_> = ports.clone().flat_map(|(port, _)| &port.macs).collect();
    let had = before.ports.iter().flat_map(|port| &port.macs);
    for mac in had.filter(|mac| !wanted.contains(mac)) {
        macs.remove(number(mac));
    }
    for (wanted, port) in ports {
        for mac in &wanted.macs {
            if !macs.give(number(mac), port.id.0, clock::coarse_seconds()) {
                log::error!(
                    "port {}: the MAC table has no room for {}: raise its `capacity`",
                    wanted.name,
                    MacAddr(*mac)
                );
            }
        }
    }
}
