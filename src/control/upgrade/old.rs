//! The old process's side of an upgrade: the upgrade socket, and handing over.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::logs;
use crate::port::{Kind, Port};
use crate::sys::channel::Channel;
use crate::sys::clock;
use crate::sys::poller::{Events, Poller, Trigger, Waker};
use crate::sys::socket::{Listener, SocketError};
use crate::vhost_user::{Endpoint, Estate, Handover};

use super::super::Switch;
use super::super::api::{ApiServer, Door};
use super::super::switch::Members;
use super::{
    FromNew, FromOld, PATIENCE, PortIdentity, STANDSTILL, VERSION, program, receive, send,
};

/// How long a port's thread may be busy with its frontend before that one is disconnected.
const PORT_PATIENCE: Duration = Duration::from_secs(2);
/// Entries of a table in one line.
const CHUNK: usize = 4096;

const WAKER: u64 = 0;
const LISTENER: u64 = 1;

/// The upgrade socket.
pub struct UpgradeServer {
    listener: Mutex<Listener>,
    poller: Poller,
    waker: Waker,
    stopping: AtomicBool,
}

impl UpgradeServer {
    /// Listens on `path`, or goes on with the socket of the process before.
    ///
    /// # Errors
    ///
    /// [`SocketError`]
    pub fn new(path: &Path, inherited: Option<OwnedFd>) -> Result<Self, SocketError> {
        let system =
            |source| SocketError::System { action: "listen on", path: path.to_owned(), source };
        let listener = match inherited {
            Some(socket) => Listener::inherit(socket, path),
            None => Listener::bind(path, None, Some(0o600))?,
        };
        let poller = Poller::new().map_err(system)?;
        poller.add(listener.as_fd(), LISTENER, Trigger::Level).map_err(system)?;
        let waker = Waker::new(&poller, WAKER).map_err(system)?;
        let listener = Mutex::new(listener);
        Ok(Self { listener, poller, waker, stopping: AtomicBool::new(false) })
    }

    /// The socket's file is ours from now on.
    pub fn own(&self) {
        self.listener.lock().own();
    }

    /// Waits for processes that want to take over, until one has, or [`Self::stop`]. Returns its
    /// number.
    pub fn serve(&self, switch: &Switch, api: Option<&ApiServer>) -> Option<u32> {
        let mut events = Events::with_capacity(2);
        while !self.stopping.load(Ordering::Acquire) {
            let accepted = self.listener.lock().accept();
            match accepted {
                Ok(Some(stream)) => match self.meet(stream, switch, api) {
                    Ok(pid) => return Some(pid),
                    Err(error) => log::warn!("not handed over, everything goes on: {error}"),
                },
                Ok(None) => drop(self.poller.wait(&mut events, None)),
                Err(error) => {
                    log::warn!("cannot accept on the upgrade socket: {error}");
                    drop(self.poller.wait(&mut events, Some(Duration::from_secs(1))));
                }
            }
        }
        None
    }

    /// Ends [`Self::serve`].
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Hands everything over to the process behind `stream`, and returns its number.
    fn meet(
        &self,
        stream: UnixStream,
        switch: &Switch,
        api: Option<&ApiServer>,
    ) -> Result<u32, anyhow::Error> {
        let mut channel = Channel::new(stream, PATIENCE)?;
        if !channel.is_trusted()? {
            let reason = "only root and the user that the switch runs as may upgrade it".to_owned();
            send(&channel, &FromOld::Refused { reason: reason.clone() }, &[])?;
            anyhow::bail!(reason);
        }
        let hello = receive(&mut channel, "hello", Instant::now() + PATIENCE)?;
        let FromNew::Hello { version, program: who, pid, ports, doors } = hello else {
            anyhow::bail!("expected `hello`");
        };
        if version != VERSION {
            let reason =
                format!("it speaks version {VERSION} of upgrades, not {version}; restart it");
            send(&channel, &FromOld::Refused { reason: reason.clone() }, &[])?;
            anyhow::bail!("{who} speaks version {version} of upgrades, not {VERSION}");
        }
        log::info!("{who}, process {pid}, wants to take over");
        let members = switch.members();
        let mut leaving =
            Leaving { switch, members, channel, ports, handovers: Vec::new(), paused: false };
        leaving.introduce(&self.listener.lock(), api, &doors)?;
        leaving.pass_on()?;
        self.listener.lock().disown();
        if let Some(api) = api {
            api.disown(&doors);
        }
        Ok(pid)
    }
}

/// A switch that is being handed over. Unless it was, all goes on when this is dropped.
struct Leaving<'a> {
    switch: &'a Switch,
    members: Members<'a>,
    channel: Channel,
    /// The ports of the other process.
    ports: Vec<PortIdentity>,
    handovers: Vec<(String, Handover)>,
    paused: bool,
}

impl Leaving<'_> {
    /// Hands over all but the rings, while frames go on.
    fn introduce(
        &mut self,
        listener: &Listener,
        api: Option<&ApiServer>,
        doors: &[Door],
    ) -> io::Result<()> {
        let pid = std::process::id();
        let watchdog = self.switch.watchdog.map(|time| time.as_micros() as u64);
        send(&self.channel, &FromOld::Welcome { program: program(), pid, watchdog }, &[])?;
        let log = FromOld::Log { journal: logs::is_to_journal() };
        send(&self.channel, &log, &[io::stderr().as_fd()])?;
        send(&self.channel, &FromOld::Listener, &[listener.as_fd()])?;
        if let Some(api) = api {
            api.tell(doors, |door, socket| {
                send(&self.channel, &FromOld::Door { door: door.clone() }, &[socket])
            })?;
        }
        let mut leaving = Vec::new();
        for (identity, port, endpoint) in self.members.iter() {
            if !self.ports.contains(identity) {
                log::info!(port = identity.name.as_str(); "ends: the other process doesn't have it");
                continue;
            }
            match (&port.kind, endpoint) {
                (Kind::Vhost(_), Some(endpoint)) => {
                    leaving.push((&identity.name, endpoint, endpoint.hand_over()));
                }
                (Kind::Tap(tap), _) => {
                    for queue in (0..tap.queues()).filter_map(|queue| tap.queue_fd(queue)) {
                        let name = identity.name.clone();
                        send(&self.channel, &FromOld::TapQueue { name }, &[queue])?;
                    }
                }
                _ => {}
            }
        }
        let deadline = Instant::now() + PORT_PATIENCE;
        for (name, endpoint, handover) in leaving {
            let estate = estate(name, endpoint, &handover, deadline)?;
            self.handovers.push((name.to_owned(), handover));
            self.bequeath(name, estate)?;
        }
        self.tables()?;
        send(&self.channel, &FromOld::All, &[])
    }

    fn bequeath(&self, name: &str, estate: Estate) -> io::Result<()> {
        let (listens, connected) = (estate.listener.is_some(), estate.connection.is_some());
        let port = FromOld::Port { name: name.to_owned(), listens, connected };
        let connection = estate.connection.as_ref();
        let of_connection = connection.map(|c| [c.stream.as_fd(), c.tale.as_fd()]);
        let descriptors: Vec<_> = estate
            .listener
            .iter()
            .map(AsFd::as_fd)
            .chain(of_connection.into_iter().flatten())
            .collect();
        send(&self.channel, &port, &descriptors)
    }

    fn tables(&self) -> io::Result<()> {
        let macs = &self.switch.shared.macs;
        let mut by_port: BTreeMap<u16, Vec<(u64, u32)>> = BTreeMap::new();
        macs.for_each(clock::coarse_seconds(), |mac, port, age| {
            // The other process has those that were given out of its own configuration.
            by_port.entry(port).or_default().extend(age.map(|age| (mac, age)));
        });
        for (identity, Port { id, kind, .. }, _) in self.members.iter() {
            for chunk in by_port.remove(&id.0).unwrap_or_default().chunks(CHUNK) {
                let (name, addresses) = (identity.name.clone(), chunk.to_vec());
                send(&self.channel, &FromOld::Addresses { name, addresses }, &[])?;
            }
            if let Kind::Vhost(vhost) = kind {
                for chunk in vhost.known_flows().chunks(CHUNK) {
                    let (name, flows) = (identity.name.clone(), chunk.to_vec());
                    send(&self.channel, &FromOld::Flows { name, flows }, &[])?;
                }
            }
        }
        Ok(())
    }

    /// Hands over the rings: frames stand still from here on, until the other process goes on or
    /// this one does.
    fn pass_on(mut self) -> Result<(), anyhow::Error> {
        let ready = receive(&mut self.channel, "ready", Instant::now() + PATIENCE)?;
        anyhow::ensure!(matches!(ready, FromNew::Ready), "expected `ready`");
        let start = Instant::now();
        let deadline = start + STANDSTILL;
        let shared = &self.switch.shared;
        self.paused = true;
        let mailboxes = shared.active().iter().map(AsRef::as_ref);
        anyhow::ensure!(shared.gate.close(mailboxes, deadline), "a worker doesn't stop");
        self.handovers.iter().for_each(|(_, handover)| handover.tell_rings());
        let mut running = BTreeMap::new();
        for (name, handover) in &self.handovers {
            let ran = handover.told(deadline)?;
            running.insert(name.clone(), (ran as u64, (ran >> 64) as u64));
        }
        send(&self.channel, &FromOld::Rings { running }, &[])?;
        let restored = receive(&mut self.channel, "restored", deadline)?;
        anyhow::ensure!(matches!(restored, FromNew::Restored), "expected `restored`");
        // The last moment at which anything can go wrong.
        send(&self.channel, &FromOld::Go, &[])?;
        self.paused = false;
        self.handovers.drain(..).for_each(|(_, handover)| handover.leave());
        let micros = start.elapsed().as_micros();
        log::info!("handed over; frames stood still for {micros} microseconds");
        Ok(())
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        // The rings first: frames for a ring that doesn't run would be dropped.
        self.handovers.drain(..).for_each(|(_, handover)| handover.call_off());
        if self.paused {
            self.switch.shared.gate.open();
        }
    }
}

/// What there is of a port; a frontend that keeps the port's thread from answering is disconnected.
fn estate(
    name: &str,
    endpoint: &Endpoint,
    handover: &Handover,
    deadline: Instant,
) -> io::Result<Estate> {
    match handover.estate(deadline) {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            log::warn!(port = name; "disconnected: its frontend doesn't read our answers");
            endpoint.disconnect();
            handover.estate(Instant::now() + PATIENCE)
        }
        result => result,
    }
}
