//! The running switch: its ports, workers and protocol threads.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::config::{MAX_PORTS, PortSettings, SandboxMode, Settings};
use crate::frame::PortId;
use crate::logs;
use crate::port::{Kind, Port};
use crate::sys::call::Watch;
use crate::sys::clock;
use crate::sys::poller::Trigger;
use crate::sys::sandbox::{Sandbox, Thread};
use crate::table::mac::{self, MacTable, MacTableConfig};
use crate::vhost_user::Endpoint;
use crate::worker::{Mailbox, PortEvents, Shared, source_id};

use super::change::{give, rules};
use super::crew::Crew;
use super::open::{Opened, OpenedSocket};
use super::upgrade::{Inherited, PortIdentity, Predecessor};
use super::watchdog::Watchdog;
use super::{Error, Statistics};

/// How often aged addresses are swept out of the MAC table.
const SWEEP: Duration = Duration::from_secs(10);

/// The sockets of vhost-user ports that are served.
pub(super) type Endpoints = BTreeMap<PortId, Served>;

/// A socket, and what it tells the workers.
pub(super) struct Served {
    pub endpoint: Endpoint,
    pub events: Arc<PortEvents>,
}

/// The settings that a switch goes by now.
#[derive(Debug)]
pub(super) struct Desired(Mutex<Arc<Settings>>);

impl Desired {
    /// These ones.
    pub fn new(settings: Settings) -> Self {
        Self(Mutex::new(Arc::new(settings)))
    }

    /// The settings now.
    pub fn now(&self) -> Arc<Settings> {
        Arc::clone(&self.0.lock())
    }

    /// Others from now on.
    pub fn set(&self, settings: Settings) {
        *self.0.lock() = Arc::new(settings);
    }
}

/// A running switch. Dropping it ends it, too.
pub struct Switch {
    pub(super) shared: Arc<Shared>,
    /// What it is to be.
    pub(super) settings: Arc<Desired>,
    /// By port; TAPs have none. Locked by whoever changes the ports or hands them over.
    pub(super) endpoints: Mutex<Endpoints>,
    /// Locked behind the endpoints.
    pub(super) crew: Mutex<Crew>,
    sweeper: Option<JoinHandle<()>>,
    /// Whether the process has given up its rights, and whether it may open TAPs.
    pub(super) sandboxed: bool,
    pub(super) opens_taps: bool,
    /// The time of systemd's watchdog, if there is one.
    pub(super) watchdog: Option<Duration>,
}

impl Switch {
    /// Starts the threads, on ports that were opened by these settings.
    ///
    /// # Errors
    ///
    /// [`enum@Error`]; what was opened is closed again, and sockets are unlinked.
    pub fn start(settings: &Settings, opened: Opened, sandbox: &Sandbox) -> Result<Self, Error> {
        let switch = Self::build(settings, opened, sandbox)?;
        switch.shared.gate.open();
        Ok(switch)
    }

    /// Takes the place of the switch behind `predecessor`, with the tables `inherited` from it.
    ///
    /// # Errors
    ///
    /// [`enum@Error`]; the other one goes on then.
    pub(super) fn take_over(
        settings: &Settings,
        mut opened: Opened,
        predecessor: &mut Predecessor,
        inherited: &Inherited,
        sandbox: &Sandbox,
    ) -> Result<Self, Error> {
        let arrivals = std::mem::take(&mut opened.arrivals);
        let switch = Self::build(settings, opened, sandbox)?;
        switch.remember(inherited);
        if let Err(error) = predecessor.take_over(&arrivals) {
            // In this order: the threads of ports wait for the word to go on, or for the other
            // process to say more.
            drop(arrivals);
            predecessor.give_up();
            drop(switch);
            return Err(error.into());
        }
        switch.shared.gate.open();
        arrivals.into_iter().for_each(|(_, arrival)| arrival.go());
        Ok(switch)
    }

    /// A switch whose workers wait at the gate.
    fn build(settings: &Settings, opened: Opened, sandbox: &Sandbox) -> Result<Self, Error> {
        let Opened { ports, sockets, watchdog, most_workers, .. } = opened;
        let shared = Arc::new(share(settings, ports, most_workers)?);
        shared.gate.shut();
        let mut switch = Self {
            shared,
            settings: Arc::new(Desired::new(settings.clone())),
            endpoints: Mutex::default(),
            crew: Mutex::default(),
            sweeper: None,
            sandboxed: settings.sandbox.mode != SandboxMode::Off,
            opens_taps: settings.sandbox.mode == SandboxMode::Off || settings.has_taps(),
            watchdog: watchdog.as_ref().map(Watchdog::time),
        };
        for port in switch.shared.ports.now().iter() {
            watch_tap(&switch.shared, port)?;
        }
        switch.crew.get_mut().hire(&switch.shared, &settings.workers, sandbox)?;
        switch.crew.get_mut().pin(&settings.workers.cpus);
        switch.start_sweeper(watchdog, sandbox)?;
        // Last: a frontend that is served finds a working switch.
        for opened in sockets {
            let port = Arc::clone(&opened.port);
            let served = serve(&switch.shared, opened, sandbox)?;
            switch.endpoints.get_mut().extend(served.map(|served| (port.id, served)));
        }
        Ok(switch)
    }

    /// The counters now.
    pub fn statistics(&self) -> Statistics {
        Statistics::collect(&self.shared)
    }

    /// Ends the switch: frontends are disconnected, sockets unlinked, threads joined. Returns the
    /// counters, in which every frame is accounted for.
    pub fn stop(mut self) -> Statistics {
        self.end();
        self.statistics()
    }

    fn end(&mut self) {
        // Workers first: what guests still send waits in their rings for the next switch. A port that
        // ended before the others would have it dropped.
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.gate.open();
        self.shared.mailboxes.iter().for_each(|mailbox| mailbox.wake());
        self.crew.get_mut().join();
        if let Some(sweeper) = self.sweeper.take() {
            sweeper.thread().unpark();
            if sweeper.join().is_err() {
                log::error!("the sweeper ended by a panic: please report it");
            }
        }
        // They reset the rings, and guests see an orderly end.
        let endpoints = self.endpoints.get_mut();
        endpoints.values().for_each(|served| served.endpoint.begin_to_stop());
        endpoints.clear();
    }

    /// Its ports, which don't change as long as the answer lives.
    pub(super) fn members(&self) -> Members<'_> {
        let endpoints = self.endpoints.lock();
        let (settings, ports) = (self.settings.now(), self.shared.ports.now());
        let member = |wanted: &PortSettings| {
            Some((PortIdentity::from(wanted), Arc::clone(ports.find(&wanted.name)?)))
        };
        Members { list: settings.ports.iter().filter_map(member).collect(), endpoints }
    }

    /// Learns the tables of the process before.
    fn remember(&self, inherited: &Inherited) {
        let now = clock::coarse_seconds();
        let ports = self.shared.ports.now();
        for (name, addresses) in &inherited.addresses {
            let Some(port) = ports.find(name) else { continue };
            for (mac, age) in addresses {
                self.shared.macs.learn(*mac, port.id.0, now.saturating_sub(*age));
            }
        }
        for (name, flows) in &inherited.flows {
            if let Some(Kind::Vhost(vhost)) = ports.find(name).map(|port| &port.kind) {
                vhost.remember_flows(flows, now);
            }
        }
    }

    fn start_sweeper(
        &mut self,
        watchdog: Option<Watchdog>,
        sandbox: &Sandbox,
    ) -> Result<(), Error> {
        let (shared, sandbox) = (Arc::clone(&self.shared), sandbox.clone());
        let system = |what| move |source| Error::System { what, source };
        let watch = Watch::new().map_err(system("handle signals of the watch"))?;
        let sweeper = thread::Builder::new().name("sweeper".into()).spawn(move || {
            sandbox.confine(Thread::Sweeper);
            sweep(&shared, watch, watchdog);
        });
        self.sweeper = Some(sweeper.map_err(system("start a thread"))?);
        Ok(())
    }
}

/// The ports of a switch that is not changed meanwhile.
pub(super) struct Members<'s> {
    list: Vec<(PortIdentity, Arc<Port>)>,
    endpoints: MutexGuard<'s, Endpoints>,
}

impl Members<'_> {
    /// The ports: what each is to another process, itself, and its socket if it has one.
    pub fn iter(&self) -> impl Iterator<Item = (&PortIdentity, &Port, Option<&Endpoint>)> {
        let ports = self.list.iter();
        let endpoint = |port: &Port| self.endpoints.get(&port.id).map(|served| &served.endpoint);
        ports.map(move |(identity, port)| (identity, port.as_ref(), endpoint(port)))
    }
}

/// Registers a TAP with its workers.
pub(super) fn watch_tap(shared: &Shared, port: &Port) -> Result<(), Error> {
    for (queue, mailbox, fd) in tap_queues(shared, port) {
        let token = u64::from(source_id(port.id, queue));
        let added = mailbox.poller.add(fd, token, Trigger::Edge);
        added.map_err(|source| Error::System { what: "watch a TAP device", source })?;
    }
    Ok(())
}

/// Takes a TAP away from its workers.
pub(super) fn unwatch_tap(shared: &Shared, port: &Port) {
    for (_, mailbox, fd) in tap_queues(shared, port) {
        // Not in any more: the goal is reached.
        let _ = mailbox.poller.remove(fd);
    }
}

/// The queues of a TAP, each with the mailbox of its worker.
fn tap_queues<'a>(
    shared: &'a Shared,
    port: &'a Port,
) -> impl Iterator<Item = (usize, &'a Mailbox, BorrowedFd<'a>)> {
    let tap = match &port.kind {
        Kind::Tap(tap) => Some(tap),
        Kind::Vhost(_) => None,
    };
    let workers = shared.workers();
    let queues = tap.into_iter().flat_map(|tap| (0..tap.queues()).map(move |queue| (tap, queue)));
    queues.filter_map(move |(tap, queue)| {
        let mailbox = shared.mailboxes.get(port.worker_of(queue, workers))?;
        Some((queue, mailbox.as_ref(), tap.queue_fd(queue)?))
    })
}

/// Serves the socket of a port.
pub(super) fn serve(
    shared: &Arc<Shared>,
    opened: OpenedSocket,
    sandbox: &Sandbox,
) -> Result<Option<Served>, Error> {
    let OpenedSocket { port, socket, mtu } = opened;
    let Kind::Vhost(vhost) = &port.kind else { return Ok(None) };
    let events = Arc::new(PortEvents::new(Arc::clone(shared), Arc::clone(&port)));
    let queues = Arc::clone(vhost.queues());
    let endpoint =
        Endpoint::spawn(&port.name, socket, mtu, queues, Arc::clone(&events) as _, sandbox);
    let failed = |source| Error::Endpoint { port: port.name.clone(), source };
    Ok(Some(Served { endpoint: endpoint.map_err(failed)?, events }))
}

/// Removes aged addresses, and watches over calls of guests and over workers, until the switch stops.
fn sweep(shared: &Shared, mut watch: Watch, mut watchdog: Option<Watchdog>) {
    watch.attach();
    let mut swept = Instant::now();
    while !shared.stop.load(Ordering::Relaxed) {
        let next = watch.look().unwrap_or(SWEEP);
        thread::park_timeout(match &mut watchdog {
            Some(watchdog) => next.min(watchdog.look(shared)),
            None => next,
        });
        if swept.elapsed() >= SWEEP {
            swept = Instant::now();
            shared.macs.expire(clock::coarse_seconds());
            logs::sweep();
        }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.end();
    }
}

fn share(
    settings: &Settings,
    ports: Box<[Arc<Port>]>,
    most_workers: usize,
) -> Result<Shared, Error> {
    let table = &settings.mac_table;
    let macs = MacTable::new(
        &MacTableConfig {
            capacity: table.capacity,
            ageing_secs: table.ageing.as_secs() as u32,
            seed: mac::random_seed(),
        },
        MAX_PORTS,
    );
    let all = settings.ports.iter().zip(&ports);
    for (wanted, port) in all.clone() {
        macs.set_port_limit(port.id.0, table.limit(wanted) as u32);
    }
    give(&macs, settings, all.clone());
    let workers = settings.workers.count;
    let ports = rules(all, settings).spread_over(workers, workers);
    Shared::new(ports, macs, workers, most_workers)
        .map_err(|source| Error::System { what: "create an epoll instance", source })
}
