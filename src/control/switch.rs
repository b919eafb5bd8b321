//! The running switch: its ports, workers and protocol threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::config::Settings;
use crate::port::{Kind, Port};
use crate::sys::poller::Trigger;
use crate::sys::{clock, thread as sys_thread};
use crate::table::mac::{self, MacTable, MacTableConfig};
use crate::vhost_user::Endpoint;
use crate::worker::{Mailbox, Placement, PortEvents, Shared, Worker, WorkerCounters};

use super::open::{Opened, OpenedSocket};
use super::{Error, Statistics};

/// How often aged addresses are swept out of the MAC table.
const SWEEP: Duration = Duration::from_secs(10);

/// A running switch. Dropping it ends it, too.
pub struct Switch {
    shared: Arc<Shared>,
    endpoints: Vec<Endpoint>,
    threads: Vec<JoinHandle<()>>,
}

impl Switch {
    /// Starts the threads, on ports that were opened by these settings.
    ///
    /// # Errors
    ///
    /// [`enum@Error`]; what was opened is closed again, and sockets are unlinked.
    pub fn start(settings: &Settings, opened: Opened) -> Result<Self, Error> {
        let Opened { ports, sockets } = opened;
        let placement = Arc::new(Placement::new(&ports, settings.workers.count));
        let shared = Arc::new(share(settings, ports)?);
        let mut switch = Self { shared, endpoints: Vec::new(), threads: Vec::new() };
        switch.watch_taps(&placement)?;
        switch.start_threads(settings, &placement)?;
        switch.serve(sockets, &placement)?;
        Ok(switch)
    }

    /// The counters now.
    pub fn statistics(&self) -> Statistics {
        Statistics::collect(&self.shared)
    }

    /// Ends the switch: frontends are disconnected, sockets unlinked, threads joined.
    pub fn stop(self) {
        drop(self);
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

    fn start_threads(&mut self, settings: &Settings, placement: &Placement) -> Result<(), Error> {
        for index in 0..settings.workers.count {
            let shared = Arc::clone(&self.shared);
            let mut worker = Worker::new(shared, placement, index, settings.workers.mode);
            let cpu = settings.workers.cpus.get(index).copied();
            self.spawn(format!("worker{index}"), move || {
                if let Some(cpu) = cpu
                    && let Err(e) = sys_thread::pin_current(cpu)
                {
                    log::error!("worker {index}: cannot pin to CPU {cpu}: {e}; it runs unpinned");
                }
                worker.run();
            })?;
        }
        let shared = Arc::clone(&self.shared);
        self.spawn("sweeper".into(), move || {
            while !shared.stop.load(Ordering::Relaxed) {
                thread::park_timeout(SWEEP);
                shared.macs.expire(clock::coarse_seconds());
            }
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
    ) -> Result<(), Error> {
        for OpenedSocket { port, socket, mtu } in sockets {
            let Some(port) = self.shared.ports.get(port.index()) else { continue };
            let Kind::Vhost(vhost) = &port.kind else { continue };
            let events =
                PortEvents::new(Arc::clone(&self.shared), Arc::clone(placement), Arc::clone(port));
            let queues = Arc::clone(vhost.queues());
            let endpoint = Endpoint::spawn(&port.name, socket, mtu, queues, Arc::new(events))
                .map_err(|source| Error::Endpoint { port: port.name.clone(), source })?;
            self.endpoints.push(endpoint);
        }
        Ok(())
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // Protocol threads first: they reset the rings, and guests see an orderly end.
        self.endpoints.clear();
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.mailboxes.iter().for_each(|mailbox| mailbox.wake());
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            if thread.join().is_err() {
                log::error!("a worker ended by a panic: please report it");
            }
        }
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
        ports,
        macs,
        mailboxes: mailboxes
            .map_err(|source| Error::System { what: "create an epoll instance", source })?,
        counters: (0..settings.workers.count).map(|_| WorkerCounters::default()).collect(),
        stop: AtomicBool::new(false),
    })
}
