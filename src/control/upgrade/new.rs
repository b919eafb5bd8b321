//! The new process's side of an upgrade.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::config::Settings;
use crate::sys::channel::Channel;
use crate::sys::socket::connect;
use crate::vhost_user::{Arrival, Estate, Inheritance};

use super::super::api::Door;
use super::{
    FromNew, FromOld, PATIENCE, PortIdentity, STANDSTILL, UpgradeError, VERSION, program, receive,
    send,
};

/// What the old process hands over; each thing is taken out by who goes on with it.
#[derive(Debug, Default)]
pub struct Inherited {
    /// The upgrade socket.
    pub listener: Option<OwnedFd>,
    /// Where clients of the API come in.
    pub doors: Vec<(Door, OwnedFd)>,
    /// Standard error.
    pub log: Option<OwnedFd>,
    /// Whether that leads to the journal.
    pub is_journal: bool,
    /// The vhost-user ports, by name.
    pub ports: HashMap<String, Estate>,
    /// The queues of the TAPs, by name.
    pub taps: HashMap<String, Vec<OwnedFd>>,
    /// Addresses and their ages in seconds, by the port's name.
    pub addresses: Vec<(String, Vec<(u64, u32)>)>,
    /// Flows and their queue pairs, by the port's name.
    pub flows: Vec<(String, Vec<(u32, u8)>)>,
    /// The time of systemd's watchdog, if there is one.
    pub watchdog: Option<Duration>,
}

/// The process whose place is taken.
#[derive(Debug)]
pub struct Predecessor {
    channel: Channel,
    pid: u32,
}

impl Predecessor {
    /// Meets the process behind the upgrade socket `socket`, and takes what it has of the ports of
    /// `settings`. Nothing of it may be used before [`Self::take_over`] returned.
    ///
    /// # Errors
    ///
    /// [`UpgradeError`]
    pub fn meet(socket: &Path, settings: &Settings) -> Result<(Self, Inherited), UpgradeError> {
        let nobody = |source| UpgradeError::Nobody { socket: socket.display().to_string(), source };
        let step = |source| UpgradeError::Channel { step: "hello", source };
        let stream = connect(socket).map_err(nobody)?;
        let mut this = Self { channel: Channel::new(stream, PATIENCE).map_err(step)?, pid: 0 };
        let ports = settings.ports.iter().map(PortIdentity::from).collect();
        let pid = std::process::id();
        let doors = Door::wanted(settings);
        let hello = FromNew::Hello { version: VERSION, program: program(), pid, ports, doors };
        this.send("hello", &hello)?;
        let inherited = this.collect()?;
        Ok((this, inherited))
    }

    /// The old process's number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Has the old process stop, checks that each port of `arrivals` is as it was there, and
    /// returns when everything is ours.
    ///
    /// # Errors
    ///
    /// [`UpgradeError`]; everything is the old process's still.
    pub fn take_over(&mut self, arrivals: &[(String, Arrival)]) -> Result<(), UpgradeError> {
        self.send("ready", &FromNew::Ready)?;
        let running = self.rings()?;
        let deadline = Instant::now() + STANDSTILL;
        for (name, arrival) in arrivals {
            let failed = |reason| UpgradeError::Port { port: name.clone(), reason };
            let runs = arrival.restored(deadline).map_err(failed)?;
            let (low, high) = running.get(name).copied().unwrap_or_default();
            let ran = u128::from(high) << 64 | u128::from(low);
            if ran & !runs != 0 {
                let reason = "a ring that runs there can't run here; see the lines above";
                return Err(failed(reason.to_owned()));
            }
        }
        self.send("restored", &FromNew::Restored)?;
        match receive(&mut self.channel, "go", Instant::now() + STANDSTILL)? {
            FromOld::Go => Ok(()),
            other => Err(unexpected("go", &other)),
        }
    }

    /// Tells the old process that nothing will come of it.
    pub fn give_up(&self) {
        self.channel.close();
    }

    fn rings(&mut self) -> Result<BTreeMap<String, (u64, u64)>, UpgradeError> {
        match receive(&mut self.channel, "rings", Instant::now() + PATIENCE)? {
            FromOld::Rings { running } => Ok(running),
            other => Err(unexpected("rings", &other)),
        }
    }

    /// Takes everything up to `all`.
    fn collect(&mut self) -> Result<Inherited, UpgradeError> {
        let mut got = Inherited::default();
        let deadline = Instant::now() + PATIENCE;
        loop {
            match receive(&mut self.channel, "all", deadline)? {
                FromOld::Welcome { program, pid, watchdog } => {
                    log::info!("taking over from {program}, process {pid}");
                    self.pid = pid;
                    got.watchdog = watchdog.map(Duration::from_micros);
                }
                FromOld::Refused { reason } => return Err(UpgradeError::Refused(reason)),
                FromOld::Log { journal } => {
                    got.log = Some(self.descriptor()?);
                    got.is_journal = journal;
                }
                FromOld::Door { door } => got.doors.push((door, self.descriptor()?)),
                FromOld::Listener => got.listener = Some(self.descriptor()?),
                FromOld::Port { name, listens, connected } => {
                    let listener = listens.then(|| self.descriptor()).transpose()?;
                    let connection = connected.then(|| self.inheritance()).transpose()?;
                    got.ports.insert(name, Estate { listener, connection });
                }
                FromOld::TapQueue { name } => {
                    let queue = self.descriptor()?;
                    got.taps.entry(name).or_default().push(queue);
                }
                FromOld::Addresses { name, addresses } => got.addresses.push((name, addresses)),
                FromOld::Flows { name, flows } => got.flows.push((name, flows)),
                FromOld::All => return Ok(got),
                other @ (FromOld::Rings { .. } | FromOld::Go) => {
                    return Err(unexpected("all", &other));
                }
            }
        }
    }

    fn inheritance(&mut self) -> Result<Inheritance, UpgradeError> {
        Ok(Inheritance { stream: self.descriptor()?, tale: self.descriptor()? })
    }

    fn descriptor(&mut self) -> Result<OwnedFd, UpgradeError> {
        let taken = self.channel.take();
        taken.map_err(|source| UpgradeError::Channel { step: "descriptors", source })
    }

    fn send(&mut self, step: &'static str, message: &FromNew) -> Result<(), UpgradeError> {
        let sent = send(&self.channel, message, &[]);
        sent.map_err(|source| UpgradeError::Channel { step, source })
    }
}

fn unexpected(step: &'static str, message: &FromOld) -> UpgradeError {
    let source = std::io::Error::other(format!("unexpected {message:?}"));
    UpgradeError::Channel { step, source }
}
