//! The running switch: its ports, workers and protocol threads.

use std::collections::BTreeMap;
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
use crate::sys::poller::Trigger;
use crate::sys::sandbox::{Sandbox, Thread};
use crate::sys::{clock, thread as sys_thread};
use crate::table::mac::{self, MacTable, MacTableConfig};
use crate::vhost_user::Endpoint;
use crate::worker::{PortEvents, Shared, Worker, source_id};

use super::change::{give, rules};
use super::open::{Opened, OpenedSocket};
use super::upgrade::{Inherited, PortIdentity, Predecessor};
use super::watchdog::Watchdog;
use super::{Error, Statistics};

/// How often aged addresses are swept out of the MAC table.
const SWEEP: Duration = Duration::from_secs(10);

/// The sockets of vhost-user ports that are served.
pub(super) type Endpoints = BTreeMap<PortId, Endpoint>;

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
    threads: Vec<JoinHandle<()>>,
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
        let Opened { ports, sockets, watchdog, .. } = opened;
        let shared = Arc::new(share(settings, ports)?);
        shared.gate.shut();
        let mut switch = Self {
            shared,
            settings: Arc::new(Desired::new(settings.clone())),
            endpoints: Mutex::default(),
            threads: Vec::new(),
            sandboxed: settings.sandbox.mode != SandboxMode::Off,
            opens_taps: settings.sandbox.mode == SandboxMode::Off || settings.has_taps(),
            watchdog: watchdog.as_ref().map(Watchdog::time),
        };
        for port in switch.shared.ports.now().iter() {
            watch_tap(&switch.shared, port)?;
        }
        switch.start_threads(settings, watchdog, sandbox)?;
        // Last: a frontend that is served finds a working switch.
        for opened in sockets {
            let port = Arc::clone(&opened.port);
            let endpoint = serve(&switch.shared, opened, sandbox)?;
            switch.endpoints.get_mut().extend(endpoint.map(|endpoint| (port.id, endpoint)));
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
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            if thread.join().is_err() {
                log::error!("a worker ended by a panic: please report it");
            }
        }
        // They reset the rings, and guests see an orderly end.
        let endpoints = self.endpoints.get_mut();
        endpoints.values().for_each(Endpoint::begin_to_stop);
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

    fn start_threads(
        &mut self,
        settings: &Settings,
        watchdog: Option<Watchdog>,
        sandbox: &Sandbox,
    ) -> Result<(), Error> {
        for index in 0..settings.workers.count {
            let shared = Arc::clone(&self.shared);
            let mut worker = Worker::new(shared, index, settings.workers.mode);
            let cpu = settings.workers.cpus.get(index).copied();
            let sandbox = sandbox.clone();
            self.spawn(format!("worker{index}"), move || {
                if let Some(cpu) = cpu
                    && let Err(e) = sys_thread::pin_current(cpu)
                {
                    log::error!("worker {index}: cannot pin to CPU {cpu}: {e}; it runs unpinned");
                }
                sandbox.confine(Thread::Worker);
                worker.run();
            })?;
        }
        let shared = Arc::clone(&self.shared);
        let sandbox = sandbox.clone();
        let watch = Watch::new()
            .map_err(|source| Error::System { what: "handle signals of the watch", source })?;
        self.spawn("sweeper".into(), move || {
            sandbox.confine(Thread::Sweeper);
            sweep(&shared, watch, watchdog);
        })
    }

    fn spawn(&mut self, name: String, job: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let thread = thread::Builder::new().name(name).spawn(job);
        let thread = thread.map_err(|source| Error::System { what: "start a thread", source })?;
        self.threads.push(thread);
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
        ports.map(|(identity, port)| (identity, port.as_ref(), self.endpoints.get(&port.id)))
    }
}

/// Registers a TAP with its workers.
pub(super) fn watch_tap(shared: &Shared, port: &Port) -> Result<(), Error> {
    let Kind::Tap(tap) = &port.kind else { return Ok(()) };
    for queue in 0..tap.queues() {
        let watched = shared.mailboxes.get(port.worker_of(queue)).zip(tap.queue_fd(queue));
        let Some((mailbox, fd)) = watched else { continue };
        let token = u64::from(source_id(port.id, queue));
        let added = mailbox.poller.add(fd, token, Trigger::Edge);
        added.map_err(|source| Error::System { what: "watch a TAP device", source })?;
    }
    Ok(())
}

/// Takes a TAP away from its workers.
pub(super) fn unwatch_tap(shared: &Shared, port: &Port) {
    let Kind::Tap(tap) = &port.kind else { return };
    for queue in 0..tap.queues() {
        let watched = shared.mailboxes.get(port.worker_of(queue)).zip(tap.queue_fd(queue));
        if let Some((mailbox, fd)) = watched {
            // Not in any more: the goal is reached.
            let _ = mailbox.poller.remove(fd);
        }
    }
}

/// Serves the socket of a port.
pub(super) fn serve(
    shared: &Arc<Shared>,
    opened: OpenedSocket,
    sandbox: &Sandbox,
) -> Result<Option<Endpoint>, Error> {
    let OpenedSocket { port, socket, mtu } = opened;
    let Kind::Vhost(vhost) = &port.kind else { return Ok(None) };
    let events = PortEvents::new(Arc::clone(shared), Arc::clone(&port));
    let queues = Arc::clone(vhost.queues());
    let endpoint = Endpoint::spawn(&port.name, socket, mtu, queues, Arc::new(events), sandbox);
    let failed = |source| Error::Endpoint { port: port.name.clone(), source };
    endpoint.map(Some).map_err(failed)
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

fn share(settings: &Settings, ports: Box<[Arc<Port>]>) -> Result<Shared, Error> {
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
    Shared::new(rules(all, settings), macs, settings.workers.count)
        .map_err(|source| Error::System { what: "create an epoll instance", source })
}
