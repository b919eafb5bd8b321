//! One virtqueue: what its frontend said of it, and its live part.

use std::sync::Arc;

use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::frame::BURST;
use crate::mem::{DirtyLog, RegionMap};
use crate::sys::call::Call;
use crate::wire::offload::Offloads;

use super::ahead::Ahead;
use super::feature;
use super::format::{Desc, Format, Head};
use super::gauge::Gauge;
use super::packed::PackedRing;
use super::split::SplitRing;

/// The most entries of a ring (virtio 1.2, sections 2.7 and 2.8.10.1).
const MAX_SIZE: u32 = 32768;

/// Why a ring can't be used as its frontend wants.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum RingError {
    /// SET_VRING_NUM with a size that no ring of the negotiated format has.
    #[error(
        "ring size {0} isn't from 1 to {MAX_SIZE}, or isn't a power of two from 2 on for a split \
         ring"
    )]
    Size(u32),
    /// SET_VRING_BASE with more than 16 bits (split), or beyond the end of the ring (packed).
    #[error("ring base {0} is out of range")]
    Base(u32),
    /// SET_VRING_ADDR with memory that the guest doesn't share, or badly aligned.
    #[error("the {what} at {addr:#x} is misaligned or not within one region of guest memory")]
    Address {
        /// Which of the three areas.
        what: &'static str,
        /// Its address in the frontend.
        addr: u64,
    },
}

/// Where a ring lies (SET_VRING_ADDR): addresses in the frontend's address space. For a packed ring
/// they are those of the descriptor ring, the driver's and the device's event suppression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddress {
    /// Descriptor table.
    pub desc: u64,
    /// Available ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
    /// Guest address of the used ring for the dirty log (VHOST_VRING_F_LOG). Packed rings have none.
    pub log_guest_addr: Option<u64>,
}

/// What a frontend said of a ring, and where the ring is: what another process needs to go on with
/// it.
#[derive(Debug)]
pub struct RingState {
    /// Number of entries.
    pub size: Option<u16>,
    /// Where it lies.
    pub address: Option<RingAddress>,
    /// The position, as GET_VRING_BASE tells it; None: the first one.
    pub base: Option<u32>,
    /// SET_VRING_KICK came, and the ring wasn't stopped since.
    pub started: bool,
    /// It was in work.
    pub ran: bool,
    /// What calls the guest.
    pub call: Option<EventFd>,
    /// What tells the frontend of a broken ring.
    pub err: Option<EventFd>,
}

/// The part of a ring that exists while it runs, in one of the two formats.
#[derive(Debug)]
pub(super) enum Live {
    Split(Box<LiveRing<SplitRing>>),
    Packed(Box<LiveRing<PackedRing>>),
}

/// Evaluates an expression for the live ring of either format.
macro_rules! with_live {
    ($live:expr, $ring:ident => $value:expr) => {
        match $live {
            $crate::ring::vring::Live::Split($ring) => $value,
            $crate::ring::vring::Live::Packed($ring) => $value,
        }
    };
}
pub(super) use with_live;

/// The part of a ring of format `F` that exists while it runs.
#[derive(Debug)]
pub(super) struct LiveRing<F> {
    /// Receive buffers that were looked at in advance. Before `mem`: it points into it.
    pub ahead: Ahead,
    pub ring: F,
    /// Chains that were looked at last. Heads: those of the transmit burst that is being worked on.
    pub heads: [Head; BURST],
    pub first: [Desc; BURST],
    pub mem: Arc<RegionMap>,
    /// Set while the frontend wants writes to be logged.
    pub log: Option<Arc<DirtyLog>>,
    /// Bytes of the virtio-net header: 10 for legacy drivers without mergeable buffers.
    pub header: usize,
    /// Whether a frame may fill several buffers.
    pub mergeable: bool,
    /// Nothing is to be done for a frame that fits its buffer but to write it: the header is the
    /// modern one, and there is no log.
    pub plain: bool,
}

/// One virtqueue of a guest.
///
/// The control methods take effect at once; the caller holds the locks of all rings of the port
/// ([`super::Queues::lock_all`]), and calls [`Ring::start_if_ready`] after changes.
#[derive(Debug, Default)]
pub struct Ring {
    size: Option<u16>,
    address: Option<RingAddress>,
    /// The position while the ring isn't live, as GET_VRING_BASE tells it; None: the first one.
    base: Option<u32>,
    /// The frontend gave the position, and it isn't the one that this ring stopped at.
    base_is_told: bool,
    /// SET_VRING_KICK came: the frontend started the ring.
    started: bool,
    enabled: bool,
    /// Frames are taken although the ring is disabled.
    drained: bool,
    features: u64,
    accepts: Offloads,
    sends: Offloads,
    mem: Option<Arc<RegionMap>>,
    log: Option<Arc<DirtyLog>>,
    call: Option<Call>,
    err: Option<Call>,
    /// What others see of it.
    pub(super) gauge: Arc<Gauge>,
    pub(super) live: Option<Live>,
}

impl Ring {
    /// Sets the number of entries.
    ///
    /// # Errors
    ///
    /// [`RingError::Size`]; the ring stays as it was.
    pub fn set_num(&mut self, num: u32) -> Result<(), RingError> {
        if !self.can_have(num) {
            return Err(RingError::Size(num));
        }
        self.retire();
        self.size = Some(num as u16);
        Ok(())
    }

    /// Sets the addresses. On a running ring (migration sends them again to switch logging on
    /// and off) it goes on at its position.
    ///
    /// # Errors
    ///
    /// [`RingError::Address`] from a ring that was running and can't at the new place.
    pub fn set_address(&mut self, address: RingAddress) -> Result<(), RingError> {
        self.retire();
        self.address = Some(address);
        Ok(())
    }

    fn is_packed(&self) -> bool {
        self.features & feature::RING_PACKED != 0
    }

    fn can_have(&self, size: u32) -> bool {
        (1..=MAX_SIZE).contains(&size) && (self.is_packed() || size > 1 && size.is_power_of_two())
    }

    /// Sets the position where the ring starts. Of a split ring it is only remembered: see
    /// `SplitRing::locate` and `PackedRing::locate` for the position that counts.
    ///
    /// # Errors
    ///
    /// [`RingError::Base`] for more than 16 bits, of a split ring.
    pub fn set_base(&mut self, base: u32) -> Result<(), RingError> {
        if !self.is_packed() && base > u32::from(u16::MAX) {
            return Err(RingError::Base(base));
        }
        self.base_is_told |= self.base != Some(base);
        self.base = Some(base);
        Ok(())
    }

    /// Stops the ring (GET_VRING_BASE) and returns its position.
    pub fn stop(&mut self) -> u32 {
        self.retire_in_order();
        self.started = false;
        self.position()
    }

    /// Ends the live part, and leaves it to the base to tell where that was.
    fn retire_in_order(&mut self) {
        if let Some(Live::Packed(live)) = &mut self.live {
            live.ring.unsign(live.log.as_deref());
        }
        self.retire();
    }

    /// Takes the ring out of work until [`Self::start_if_ready`], and tells its state.
    ///
    /// # Errors
    ///
    /// The process is out of descriptors.
    pub fn suspend(&mut self) -> std::io::Result<RingState> {
        let ran = self.is_running();
        self.retire_in_order();
        let copy = |call: &Option<Call>| call.as_ref().map(Call::event).transpose();
        Ok(RingState {
            size: self.size,
            address: self.address,
            base: self.base,
            started: self.started,
            ran,
            call: copy(&self.call)?,
            err: copy(&self.err)?,
        })
    }

    /// SET_VRING_KICK: the ring may run. The descriptor itself is the worker's business.
    pub fn set_started(&mut self) {
        self.started = true;
    }

    /// Sets the descriptor that calls the guest. A running ring calls it once: the guest may
    /// have waited on the old one.
    pub fn set_call(&mut self, call: Option<Call>) {
        self.call = call;
        if self.live.is_some() {
            self.call_guest();
        }
    }

    /// Sets the descriptor that tells the frontend of a broken ring.
    pub fn set_err(&mut self, err: Option<Call>) {
        self.err = err;
    }

    /// SET_VRING_ENABLE. A disabled ring isn't touched, unless it is drained.
    pub fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    /// Has the frames in a transmit ring taken although it is disabled, which the vhost-user
    /// specification ("Ring states") allows for network devices.
    pub fn set_drained(&mut self, drained: bool) {
        self.drained = drained;
    }

    /// Sets the negotiated features. They count from now on, also on a running ring: clearing
    /// LOG_ALL is how logging ends.
    pub fn set_features(&mut self, features: u64) {
        if self.features != features {
            self.retire();
            self.features = features;
            self.accepts = feature::accepted(features);
            self.sends = feature::used(features);
        }
    }

    /// Sets the guest's memory. A running ring is located again.
    pub fn set_memory(&mut self, mem: Option<Arc<RegionMap>>) {
        self.retire();
        self.mem = mem;
    }

    /// Sets the dirty log, which is written while LOG_ALL is among the features.
    pub fn set_log(&mut self, log: Option<Arc<DirtyLog>>) {
        self.retire();
        self.log = log;
    }

    /// Back to the state before the first message.
    pub fn reset(&mut self) {
        self.retire();
        *self = Self { gauge: Arc::clone(&self.gauge), ..Self::default() };
    }

    /// Starts the ring if all that it needs has come and it doesn't run. Returns whether it
    /// became live now.
    ///
    /// # Errors
    ///
    /// [`RingError`]: it stays stopped until the next change.
    pub fn start_if_ready(&mut self) -> Result<bool, RingError> {
        let (None, true, Some(size), Some(address), Some(mem)) =
            (&self.live, self.started, self.size, &self.address, &self.mem)
        else {
            return Ok(false);
        };
        if !self.can_have(u32::from(size)) {
            // The features changed after SET_VRING_NUM.
            return Err(RingError::Size(u32::from(size)));
        }
        self.live = Some(if self.is_packed() {
            let ring = PackedRing::locate(mem, size, address, self.features, self.base)?;
            let mut live = self.live_ring(mem, ring);
            if self.base_is_told {
                live.ring.resume(live.log.as_deref());
            }
            live.ring.sign(live.log.as_deref());
            Live::Packed(live)
        } else {
            let ring = SplitRing::locate(mem, size, address, self.features)?;
            Live::Split(self.live_ring(mem, ring))
        });
        self.gauge.start(size, self.is_packed());
        // A device before us may have died owing a call.
        self.call_guest();
        Ok(true)
    }

    fn live_ring<F>(&self, mem: &Arc<RegionMap>, ring: F) -> Box<LiveRing<F>> {
        let has = |bit| self.features & bit != 0;
        let logs = has(feature::LOG_ALL);
        let log = self.log.clone().filter(|_| logs);
        let modern = has(feature::VERSION_1) || has(feature::MRG_RXBUF);
        Box::new(LiveRing {
            ahead: Ahead::default(),
            ring,
            heads: [Head::NONE; BURST],
            first: [Desc::NONE; BURST],
            mem: Arc::clone(mem),
            plain: modern && log.is_none(),
            log,
            header: if modern { 12 } else { 10 },
            mergeable: has(feature::MRG_RXBUF),
        })
    }

    /// What can be seen of the ring without its lock.
    pub fn gauge(&self) -> &Arc<Gauge> {
        &self.gauge
    }

    /// Whether a worker may use the ring.
    #[inline]
    pub fn is_running(&self) -> bool {
        (self.enabled || self.drained) && self.live.is_some()
    }

    /// Offloads that the driver accepts in frames that it receives.
    #[inline]
    pub fn accepts(&self) -> Offloads {
        self.accepts
    }

    /// Offloads that the driver may use in frames that it sends.
    #[inline]
    pub fn sends(&self) -> Offloads {
        self.sends
    }

    /// Position of the next buffer, as GET_VRING_BASE tells it.
    pub fn position(&self) -> u32 {
        match &self.live {
            Some(live) => with_live!(live, live => live.ring.base()),
            None if self.is_packed() => self.base.unwrap_or(PackedRing::START),
            None => self.base.unwrap_or(0),
        }
    }

    /// Shows completed buffers to the guest, without calling it.
    #[inline]
    pub fn publish(&mut self) {
        if let Some(live) = &mut self.live {
            with_live!(live, live => live.ring.publish(live.log.as_deref()));
        }
    }

    /// Number of entries; 0 before the frontend said it.
    #[inline]
    pub fn size(&self) -> u16 {
        self.size.unwrap_or(0)
    }

    /// How many entries of the ring were published since the last decision about a call.
    #[inline]
    pub fn undecided(&self) -> u16 {
        self.live.as_ref().map_or(0, |live| with_live!(live, live => live.ring.undecided()))
    }

    /// Calls the guest if it wants to be, for what was published. Returns whether it was called:
    /// one system call for all of it.
    pub fn call_if_wanted(&mut self) -> bool {
        // The index is seen before the driver's wish is read (section 2.7.7.2).
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let live = self.live.as_mut();
        let wanted = live.is_some_and(|live| with_live!(live, live => live.ring.needs_call()));
        wanted && self.call_guest()
    }

    /// Signals the guest.
    fn call_guest(&self) -> bool {
        self.call.as_ref().is_some_and(Call::signal)
    }

    /// Asks the guest for kicks, or to spare them.
    ///
    /// Returns whether the worker must look again: buffers came while kicks were suppressed.
    pub fn want_kicks(&mut self, wanted: bool) -> bool {
        if !self.is_running() {
            return false;
        }
        let Some(live) = &mut self.live else {
            return false;
        };
        with_live!(live, live => live.want_kicks(wanted))
    }

    /// Stops a ring whose content breaks the rules, and tells its frontend. It runs again when
    /// the frontend sets it up anew.
    pub(super) fn fail(&mut self) {
        self.retire();
        self.started = false;
        if let Some(err) = &self.err {
            // A full counter has the news already.
            let _ = err.signal();
        }
    }

    /// Ends the live part, if there is one, and keeps the position.
    fn retire(&mut self) {
        self.publish();
        if let Some(live) = self.live.take() {
            self.gauge.stop();
            self.base = Some(with_live!(&live, live => live.ring.base()));
            self.base_is_told = false;
        }
    }
}

impl<F: Format> LiveRing<F> {
    fn want_kicks(&mut self, wanted: bool) -> bool {
        if wanted {
            // Each time: the event index names the next buffer.
            self.ring.request_kicks(self.log.as_deref());
            return self.ring.has_available() != Ok(false);
        }
        if self.ring.kicks_wanted() != Some(false) {
            self.ring.suppress_kicks(self.log.as_deref());
        }
        false
    }
}
