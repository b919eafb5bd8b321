//! The running switch: its ports, workers and protocol threads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::config::Settings;
use crate::frame::PortId;
use crate::logs;
use crate::port::{Kind, Port};
use crate::sys::call::Watch;
use crate::sys::poller::Trigger;
use crate::sys::sandbox::{Sandbox, Thread};
use crate::sys::{clock, thread as sys_thread};
use crate::table::mac::{self, MacTable, MacTableConfig};
use crate::vhost_user::Endpoint;
use crate::worker::{Flows, Gate, Mailbox, Placement, PortEvents, Shared, Worker, WorkerCounters};

use super::open::{Opened, OpenedSocket};
use super::upgrade::{Inherited, PortIdentity, Predecessor};
use super::watchdog::Watchdog;
use super::{Error, Statistics};

/// How often aged addresses are swept out of the MAC table.
const SWEEP: Duration = Duration::from_secs(10);

/// A running switch. Dropping it ends it, too.
pub struct Switch {
    pub(super) shared: Arc<Shared>,
    /// By port: what it is to another process.
    identities: Vec<PortIdentity>,
    /// By port; TAPs have none.
    endpoints: BTreeMap<PortId, Endpoint>,
    threads: Vec<JoinHandle<()>>,
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
        let placement = Arc::new(Placement::new(&ports, settings.workers.count));
        let shared = Arc::new(share(settings, ports)?);
        shared.gate.shut();
        let identities = settings.ports.iter().map(PortIdentity::from).collect();
        let (endpoints, threads) = (BTreeMap::new(), Vec::new());
        let time = watchdog.as_ref().map(Watchdog::time);
        let mut switch = Self { shared, identities, endpoints, threads, watchdog: time };
        switch.watch_taps(&placement)?;
        switch.start_threads(settings, &placement, watchdog, sandbox)?;
        switch.serve(sockets, &placement, sandbox)?;
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
        self.endpoints.values().for_each(Endpoint::begin_to_stop);
        self.endpoints.clear();
    }

    /// The ports: what each is to another process, itself, and its socket if it has one.
    pub(super) fn ports(&self) -> impl Iterator<Item = (&PortIdentity, &Port, Option<&Endpoint>)> {
        let ports = self.identities.iter().zip(&self.shared.ports);
        ports.map(|(identity, port)| (identity, port.as_ref(), self.endpoints.get(&port.id)))
    }

    /// Learns the tables of the process before.
    fn remember(&self, inherited: &Inherited) {
        let now = clock::coarse_seconds();
        let find = |name: &String| self.shared.ports.iter().find(|port| port.name == *name);
        for (name, addresses) in &inherited.addresses {
            let Some(port) = find(name) else { continue };
            for (mac, age) in addresses {
                self.shared.macs.learn(*mac, port.id.0, now.saturating_sub(*age));
            }
        }
        for (name, flows) in &inherited.flows {
            if let Some(Kind::Vhost(vhost)) = find(name).map(|port| &port.kind) {
                vhost.remember_flows(flows, now);
            }
        }
    }

    /// Registers the TAPs with their workers.
    fn watch_taps(&self, placement: &Placement) -> Result<(), Error> {
        for port in &self.shared.ports {
            let Kind::Tap(tap) = &port.kind else { continue };
            for queue in 0..tap.queues() {
                let Some((worker, source)) = placement.of(port, queue) else {
                    continue;
                };
                let watched = self.shared.mailboxes.get(worker).zip(tap.queue_fd(queue));
                let Some((mailbox, fd)) = watched else { continue };
                mailbox
                    .poller
                    .add(fd, u64::from(source), Trigger::Edge)
                    .map_err(|source| Error::System { what: "watch a TAP device", source })?;
            }
        }
        Ok(())
    }

    fn start_threads(
        &mut self,
        settings: &Settings,
        placement: &Placement,
        watchdog: Option<Watchdog>,
        sandbox: &Sandbox,
    ) -> Result<(), Error> {
        for index in 0..settings.workers.count {
            let shared = Arc::clone(&self.shared);
            let mut worker = Worker::new(shared, placement, index, settings.workers.mode);
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

    /// Serves the sockets, last: a frontend that is served finds a working switch.
    fn serve(
        &mut self,
        sockets: Vec<OpenedSocket>,
        placement: &Arc<Placement>,
        sandbox: &Sandbox,
    ) -> Result<(), Error> {
        for OpenedSocket { port, socket, mtu } in sockets {
            let Some(port) = self.shared.ports.get(port.index()) else { continue };
            let Kind::Vhost(vhost) = &port.kind else { continue };
            let events =
                PortEvents::new(Arc::clone(&self.shared), Arc::clone(placement), Arc::clone(port));
            let queues = Arc::clone(vhost.queues());
            let endpoint =
                Endpoint::spawn(&port.name, socket, mtu, queues, Arc::new(events), sandbox)
                    .map_err(|source| Error::Endpoint { port: port.name.clone(), source })?;
            self.endpoints.insert(port.id, endpoint);
        }
        Ok(())
    }
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
        ports.len(),
    );
    for (port, wanted) in ports.iter().zip(&settings.ports) {
        macs.set_port_limit(port.id.0, table.limit(wanted) as u32);
    }
    let mailboxes: std::io::Result<Box<[_]>> =
        (0..settings.workers.count).map(|_| Mailbox::new().map(Arc::new)).collect();
    Ok(Shared {
        flows: (0..settings.workers.count).map(|_| Flows::new(ports.len())).collect(),
        ports,
        macs,
        mailboxes: mailboxes
            .map_err(|source| Error::System { what: "create an epoll instance", source })?,
        counters: (0..settings.workers.count).map(|_| WorkerCounters::default()).collect(),
        stop: AtomicBool::new(false),
        gate: Gate::default(),
        captures: Mutex::default(),
    })
}
