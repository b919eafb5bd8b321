//! What one frontend negotiated, and what its messages do to the port's rings.
//!
//! Owns the state of a connection: features, guest memory, kick descriptors, the dirty log. It
//! speaks in terms of the vhost-user specification and knows nothing of sockets and bytes.
//!
//! # Theory of operation
//!
//! Each message that touches rings goes through [`Session::change`]: lock all rings, change them,
//! start those that have all they need now, unlock, tell the workers. A worker is inside of a
//! guest's memory only while it holds one of these locks, so when a message is answered nobody
//! uses what it replaced. Old memory is unmapped after unlocking.
//!
//! A ring runs when it has its size, addresses, memory and a kick and is enabled, in any order.
//! QEMU enables before it negotiates features, and sends one set of messages for each queue pair.
//!
//! A transmit ring that is disabled while others are enabled is drained: a guest that gives up a
//! queue pair (`ethtool -L`) may have posted frames there a moment before, and Linux doesn't send
//! a TCP segment again while the ring still has it: its connections would hang. When all rings
//! are disabled, which is how Cloud Hypervisor pauses, none is touched.
//!
//! Kick descriptors stay here; a worker watches them. It is told to watch a descriptor before the
//! ring runs, and to stop before the descriptor is closed: the frontend holds a duplicate, so
//! closing ours does not take it out of the worker's epoll.

mod handover;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use parking_lot::MutexGuard;
use thiserror::Error;

use crate::mem::{DirtyLog, MapError, RegionMap, RegionSpec};
use crate::ring::{LinkState, QueueEvents, Queues, Ring, RingAddress, RingError, feature};
use crate::sys::call::Call;
use crate::sys::fault::Alarm;
use crate::sys::socket::{eventfd_to_signal, eventfd_to_watch};

use super::features::{OFFERED, OFFERED_PROTOCOL, PROTOCOL_FEATURES};
use super::journal::Journal;

/// The smallest MTU of a virtio-net device (virtio 1.2, section 5.1.4.1).
const MIN_MTU: u64 = 68;
/// The largest MTU of a virtio-net device.
const MAX_MTU: u64 = 65535;

/// Why a message is not followed. Nothing of it was done, unless a ring can't start: then it
/// stays stopped.
#[derive(Debug, Error)]
pub(super) enum Refusal {
    /// A ring that the port doesn't have.
    #[error(
        "ring {index} of {rings}: give the guest at most {pairs} queue pairs, or raise the port's \
         queue-pairs", pairs = rings / 2
    )]
    NoSuchRing {
        /// The ring asked for.
        index: usize,
        /// How many there are.
        rings: usize,
    },
    /// A ring can't be as the frontend wants it.
    #[error("ring {index}: {error}")]
    Ring {
        /// The ring.
        index: usize,
        /// What is wrong with it.
        error: RingError,
    },
    /// A descriptor can't be a kick, call or error descriptor.
    #[error("ring {index}: unusable descriptor: {error}")]
    Descriptor {
        /// The ring.
        index: usize,
        /// What is wrong with it.
        error: io::Error,
    },
    /// A transmit ring that is to be polled.
    #[error("ring {index} has no kick descriptor: the guest's notifications must be eventfds")]
    NoKick {
        /// The ring.
        index: usize,
    },
    /// Guest memory or the dirty log can't be mapped.
    #[error(transparent)]
    Memory(#[from] MapError),
    /// Feature bits that were never offered.
    #[error("features {0:#x} were not offered")]
    Features(u64),
    /// A value that the message can't have.
    #[error("{what} {value:#x} is out of range")]
    Value {
        /// What it stands for.
        what: &'static str,
        /// What it is.
        value: u64,
    },
    /// An MTU above the port's.
    #[error("MTU {wanted} is more than the port's {limit}: lower the guest's, or raise the port's")]
    Mtu {
        /// What the frontend announces to its guest.
        wanted: u64,
        /// The configured one.
        limit: u16,
    },
    /// A message that needs something that wasn't negotiated or isn't served.
    #[error("not negotiated")]
    NotNegotiated,
}

/// The state of one connection. Dropping it resets the port's rings.
pub(super) struct Session {
    queues: Arc<Queues>,
    events: Arc<dyn QueueEvents>,
    journal: Arc<Journal>,
    /// The largest MTU that the frontend may announce to its guest.
    mtu: Option<u16>,
    /// Rings when the frontend takes memory away that it shared.
    alarm: Arc<Alarm>,
    features: u64,
    /// The frontend asked what is on offer: a condition of REPLY_ACK in the `vhost` crate.
    features_read: bool,
    protocol_features: u64,
    /// The virtio device status, as the frontend says (virtio 1.2, section 2.1).
    status: u8,
    memory: Option<Arc<RegionMap>>,
    /// A file was shorter than what the frontend said to be in it.
    short_file: bool,
    log: Option<Arc<DirtyLog>>,
    /// What workers watch, for each ring.
    kicks: Vec<Option<OwnedFd>>,
    enabled: Vec<bool>,
    /// One bit for each ring that ran after the last change.
    running: u128,
    /// What workers were told last.
    link: LinkState,
}

impl Session {
    /// A connection without any message yet. `mtu` limits what the frontend may announce, bytes;
    /// `alarm` rings when the frontend takes memory away that it shared.
    pub fn new(
        queues: Arc<Queues>,
        events: Arc<dyn QueueEvents>,
        journal: Arc<Journal>,
        mtu: Option<u16>,
        alarm: Arc<Alarm>,
    ) -> Self {
        let rings = queues.len();
        let mut session = Self {
            queues,
            events,
            journal,
            mtu,
            alarm,
            features: 0,
            features_read: false,
            protocol_features: 0,
            status: 0,
            memory: None,
            short_file: false,
            log: None,
            kicks: (0..rings).map(|_| None).collect(),
            enabled: vec![false; rings],
            running: 0,
            link: LinkState::default(),
        };
        session.tell_link();
        session
    }

    /// What rings when the frontend takes memory away that it shared.
    pub fn alarm(&self) -> Arc<Alarm> {
        Arc::clone(&self.alarm)
    }

    /// Whether messages with NEED_REPLY are acknowledged: as the `vhost` crate sees it.
    pub fn acknowledges(&self) -> bool {
        let bit = vhost::vhost_user::message::VhostUserProtocolFeatures::REPLY_ACK.bits();
        self.features_read && self.protocol_features & bit != 0
    }

    /// Whether this protocol feature was negotiated.
    pub fn negotiated(
        &self,
        feature: vhost::vhost_user::message::VhostUserProtocolFeatures,
    ) -> Result<(), Refusal> {
        let has = self.protocol_features & feature.bits() != 0;
        if has { Ok(()) } else { Err(Refusal::NotNegotiated) }
    }

    /// GET_FEATURES.
    pub fn features(&mut self) -> u64 {
        self.features_read = true;
        OFFERED
    }

    /// SET_FEATURES. On running rings too: migration adds and removes LOG_ALL. With that the log
    /// goes: the frontend gives another one for the next migration.
    pub fn set_features(&mut self, features: u64) -> Result<(), Refusal> {
        if features & !OFFERED != 0 {
            return Err(Refusal::Features(features & !OFFERED));
        }
        let before = std::mem::replace(&mut self.features, features);
        let logged_until_now = before & !features & feature::LOG_ALL != 0;
        // Unmapped at the end of this function, when no ring has it any more.
        let _log = if logged_until_now { self.log.take() } else { None };
        if features & PROTOCOL_FEATURES == 0 {
            // There is no SET_VRING_ENABLE then ("Ring states" in the specification).
            self.enabled.fill(true);
        }
        let enabled = self.enabled.clone();
        self.change(|rings| {
            for (ring, enabled) in rings.iter_mut().zip(enabled) {
                ring.set_features(features);
                if logged_until_now {
                    ring.set_log(None);
                }
                ring.set_enabled(enabled);
            }
        });
        Ok(())
    }

    /// SET_PROTOCOL_FEATURES.
    pub fn set_protocol_features(&mut self, features: u64) -> Result<(), Refusal> {
        match features & !OFFERED_PROTOCOL.bits() {
            0 => self.protocol_features = features,
            unknown => return Err(Refusal::Features(unknown)),
        }
        Ok(())
    }

    /// GET_QUEUE_NUM: the number of rings. Cloud Hypervisor compares it with its rings and QEMU
    /// with its queue pairs; too many pairs are refused when their rings are named.
    pub fn queue_num(&self) -> u64 {
        self.queues.len() as u64
    }

    /// SET_MEM_TABLE.
    pub fn set_memory(&mut self, specs: Vec<RegionSpec>) -> Result<(), Refusal> {
        let map = self.note_short_file(RegionMap::map(specs))?;
        self.replace_memory(map)
    }

    /// ADD_MEM_REG. A region that is there already is fine.
    pub fn add_region(&mut self, spec: RegionSpec) -> Result<(), Refusal> {
        let before = self.memory.as_ref().map_or(0, |map| map.len());
        let map = match &self.memory {
            Some(map) => map.add(spec),
            None => RegionMap::map(vec![spec]),
        };
        let map = self.note_short_file(map)?;
        if map.len() != before {
            self.replace_memory(map)?;
        }
        Ok(())
    }

    /// REM_MEM_REG. A region that is not there is fine: QEMU repeats it for each queue pair.
    pub fn remove_region(
        &mut self,
        guest_addr: u64,
        size: u64,
        user_addr: u64,
    ) -> Result<(), Refusal> {
        let Some(memory) = &self.memory else {
            return Ok(());
        };
        let map = memory.remove(guest_addr, size, user_addr);
        if map.len() != memory.len() {
            self.replace_memory(map)?;
        }
        Ok(())
    }

    fn note_short_file<T>(&mut self, mapped: Result<T, MapError>) -> Result<T, MapError> {
        self.short_file |= matches!(mapped, Err(MapError::FileTooShort { .. }));
        mapped
    }

    /// Whether a file was ever shorter than what the frontend said to be in it.
    pub fn has_seen_short_file(&self) -> bool {
        self.short_file
    }

    fn replace_memory(&mut self, mut map: RegionMap) -> Result<(), Refusal> {
        map.guard(&self.alarm)?;
        let map = Some(Arc::new(map));
        // Unmapped at the end of this function, when no ring has it any more.
        let _old = std::mem::replace(&mut self.memory, map.clone());
        self.change(|rings| rings.iter_mut().for_each(|ring| ring.set_memory(map.clone())));
        Ok(())
    }

    /// SET_LOG_BASE: `size` bytes of bitmap at `offset` of `file`. When it returns, no worker
    /// writes to the old log any more.
    pub fn set_log(&mut self, file: File, size: u64, offset: u64) -> Result<(), Refusal> {
        let mut log = self.note_short_file(DirtyLog::map(file, size, offset))?;
        log.guard(&self.alarm)?;
        let log = Some(Arc::new(log));
        let _old = std::mem::replace(&mut self.log, log.clone());
        self.change(|rings| rings.iter_mut().for_each(|ring| ring.set_log(log.clone())));
        Ok(())
    }

    /// SET_VRING_NUM.
    pub fn set_num(&mut self, index: u32, num: u32) -> Result<(), Refusal> {
        self.change_ring(index, |ring| ring.set_num(num))
    }

    /// SET_VRING_ADDR, on a running ring too.
    pub fn set_address(&mut self, index: u32, address: RingAddress) -> Result<(), Refusal> {
        self.change_ring(index, |ring| ring.set_address(address))
    }

    /// SET_VRING_BASE.
    pub fn set_base(&mut self, index: u32, base: u32) -> Result<(), Refusal> {
        self.change_ring(index, |ring| ring.set_base(base))
    }

    /// GET_VRING_BASE: stops the ring.
    pub fn stop(&mut self, index: u32) -> Result<u32, Refusal> {
        let index = self.index(index)?;
        self.unwatch_ring(index);
        let base = self.change(|rings| rings.get_mut(index).map(|ring| ring.stop())).value;
        base.ok_or(Refusal::NoSuchRing { index, rings: self.kicks.len() })
    }

    /// SET_VRING_KICK. Without a descriptor the frontend expects that the ring is polled: nobody
    /// waits for receive buffers, but a transmit ring would wait for a worker that sleeps.
    pub fn set_kick(&mut self, index: u32, kick: Option<File>) -> Result<(), Refusal> {
        let ring = self.index(index)?;
        if kick.is_none() && ring % 2 == 1 {
            return Err(Refusal::NoKick { index: ring });
        }
        let kick = kick.map(eventfd_to_watch).transpose();
        let kick = kick.map_err(|error| Refusal::Descriptor { index: ring, error })?;
        self.watch(ring, kick);
        self.change_ring(index, |ring| {
            ring.set_started();
            Ok(())
        })
    }

    /// SET_VRING_CALL. A running ring calls once at the new descriptor.
    pub fn set_call(&mut self, index: u32, call: Option<File>) -> Result<(), Refusal> {
        let call = self.to_signal(index, call)?;
        self.change_ring(index, |ring| {
            ring.set_call(call);
            Ok(())
        })
    }

    /// SET_VRING_ERR.
    pub fn set_err(&mut self, index: u32, err: Option<File>) -> Result<(), Refusal> {
        let err = self.to_signal(index, err)?;
        self.change_ring(index, |ring| {
            ring.set_err(err);
            Ok(())
        })
    }

    /// SET_VRING_ENABLE, at any time. A disabled ring is not touched, but for draining.
    pub fn set_enabled(&mut self, index: u32, enabled: u32) -> Result<(), Refusal> {
        let ring = self.index(index)?;
        let on = match enabled {
            0 => false,
            1 => true,
            other => {
                return Err(Refusal::Value { what: "ring state", value: other.into() });
            }
        };
        if let Some(enabled) = self.enabled.get_mut(ring) {
            *enabled = on;
        }
        self.change_ring(index, |ring| {
            ring.set_enabled(on);
            Ok(())
        })
    }

    /// RESET_OWNER: deprecated; the specification recommends to disable the rings at most.
    pub fn disable(&mut self) {
        self.enabled.fill(false);
        self.change(|rings| rings.iter_mut().for_each(|ring| ring.set_enabled(false)));
    }

    /// RESET_DEVICE: all state of the device is as new. Memory belongs to the connection and
    /// stays: QEMU sends only changes to it.
    pub fn reset(&mut self) {
        self.unwatch();
        self.enabled.fill(false);
        self.features = 0;
        self.status = 0;
        let memory = self.memory.clone();
        self.change(|rings| {
            for ring in rings {
                ring.reset();
                ring.set_memory(memory.clone());
            }
        });
        self.log = None;
    }

    /// GET_STATUS.
    pub fn status(&self) -> u64 {
        u64::from(self.status)
    }

    /// SET_STATUS. A driver that resets its device (0) must not find it at work afterwards. QEMU
    /// says so before it asks for each ring's position.
    pub fn set_status(&mut self, status: u64) -> Result<(), Refusal> {
        let what = "device status";
        self.status = u8::try_from(status).map_err(|_| Refusal::Value { what, value: status })?;
        if status == 0 {
            self.unwatch();
            self.change(|rings| {
                for ring in rings {
                    ring.stop();
                }
            });
        }
        Ok(())
    }

    /// NET_SET_MTU: what the frontend announced to its guest, bytes.
    pub fn set_mtu(&mut self, mtu: u64) -> Result<(), Refusal> {
        if !(MIN_MTU..=MAX_MTU).contains(&mtu) {
            return Err(Refusal::Value { what: "MTU", value: mtu });
        }
        match self.mtu {
            Some(limit) if mtu > u64::from(limit) => Err(Refusal::Mtu { wanted: mtu, limit }),
            _ => Ok(()),
        }
    }

    /// SEND_RARP: the guest with this address moved here.
    pub fn announce(&mut self, mac: [u8; 6]) {
        self.events.announce(mac);
    }

    fn index(&self, index: u32) -> Result<usize, Refusal> {
        let rings = self.kicks.len();
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        if index < rings { Ok(index) } else { Err(Refusal::NoSuchRing { index, rings }) }
    }

    fn to_signal(&self, index: u32, file: Option<File>) -> Result<Option<Call>, Refusal> {
        let index = self.index(index)?;
        let event = file.map(eventfd_to_signal).transpose();
        let event = event.map_err(|error| Refusal::Descriptor { index, error })?;
        Ok(event.map(|event| Call::new(event, Arc::clone(&self.alarm))))
    }

    /// Has a worker watch `kick` instead of what it watched for this ring.
    fn watch(&mut self, ring: usize, kick: Option<OwnedFd>) {
        // The old one is still open while the worker takes it out of its epoll.
        self.events.kick(ring, kick.as_ref().map(AsFd::as_fd));
        if let Some(place) = self.kicks.get_mut(ring) {
            *place = kick;
        }
    }

    fn unwatch(&mut self) {
        for ring in 0..self.kicks.len() {
            self.unwatch_ring(ring);
        }
    }

    fn unwatch_ring(&mut self, ring: usize) {
        if self.kicks.get(ring).is_some_and(Option::is_some) {
            self.watch(ring, None);
        }
    }

    /// Changes one ring. It is an error of the message if that ring can't start then.
    fn change_ring(
        &mut self,
        index: u32,
        f: impl FnOnce(&mut Ring) -> Result<(), RingError>,
    ) -> Result<(), Refusal> {
        let index = self.index(index)?;
        let changed = self.change(|rings| rings.get_mut(index).map_or(Ok(()), |ring| f(ring)));
        let failed = changed.failed.into_iter().find(|(ring, _)| *ring == index);
        let error = changed.value.err().or(failed.map(|(_, error)| error));
        error.map_or(Ok(()), |error| Err(Refusal::Ring { index, error }))
    }

    /// Changes rings under the locks of all of them, starts those that are ready, and tells the
    /// workers after unlocking.
    fn change<T>(&mut self, f: impl FnOnce(&mut [MutexGuard<'_, Ring>]) -> T) -> Changed<T> {
        let (mut running, mut started, mut failed) = (0, 0, Vec::new());
        let mut rings = self.queues.lock_all();
        let value = f(&mut rings);
        let any_enabled = self.enabled.contains(&true);
        for (index, ring) in rings.iter_mut().enumerate() {
            ring.set_drained(any_enabled && index % 2 == 1);
            match ring.start_if_ready() {
                Ok(true) => started |= bit(index),
                Ok(false) => {}
                Err(error) => failed.push((index, error)),
            }
            if ring.is_running() {
                running |= bit(index);
            }
        }
        drop(rings);
        for (index, error) in &failed {
            self.journal.warn(format_args!("ring {index} can't run: {error}"));
        }
        let before = std::mem::replace(&mut self.running, running);
        self.log_running(before);
        self.tell_link();
        let look = (started | !before) & running;
        for index in (0..self.kicks.len()).filter(|index| look & bit(*index) != 0) {
            self.events.changed(index);
        }
        Changed { value, failed }
    }

    fn log_running(&self, before: u128) {
        match (before, self.running) {
            (0, running) if running != 0 => self.journal.info(format_args!(
                "the guest's driver is up; it accepts {}, and may send {}",
                feature::accepted(self.features),
                feature::used(self.features)
            )),
            (before, 0) if before != 0 => {
                self.journal.info(format_args!("the guest's rings are stopped"));
            }
            _ => {}
        }
    }

    fn tell_link(&mut self) {
        let mut receive_pairs = 0;
        for (pair, ring) in (0..self.kicks.len()).step_by(2).enumerate() {
            if self.running & bit(ring) != 0 {
                receive_pairs |= 1 << pair.min(63);
            }
        }
        let link = LinkState { connected: true, features: self.features, receive_pairs };
        if link != self.link {
            self.link = link;
            self.events.link(&link);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.unwatch();
        self.queues.lock_all().iter_mut().for_each(|ring| ring.reset());
        self.events.link(&LinkState::default());
    }
}

/// What came of a change.
struct Changed<T> {
    value: T,
    /// Rings that have everything but can't run.
    failed: Vec<(usize, RingError)>,
}

/// The bit of a ring; a port has at most 128 of them.
fn bit(index: usize) -> u128 {
    u32::try_from(index).map_or(0, |index| 1u128.checked_shl(index).unwrap_or(0))
}
