//! A guest's NIC as a port.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::frame::{BURST, DropReason, Frame};
use crate::mem::{Segments, Tail};
use crate::ring::{AnyReceiver, Fill, Format, LinkState, Queues, Receiver, Ring, RxFault, feature};
use crate::sys::allowance::Allowance;
use crate::sys::clock;
use crate::wire::flow::flow_hash;
use crate::wire::offload::Offloads;
use crate::wire::vnet::Encoded;

use super::offload::{convert, passes};
use super::steer::FlowQueues;
use super::{Counters, Egress, QueueCounters};

/// How long a worker waits for a receive ring that another one writes to, or whose port is being
/// reconfigured. A burst takes some 50 microseconds at most.
const RING_WAIT: Duration = Duration::from_micros(500);

/// How long workers may wait for a port's frontend to change its rings: for good one part in so
/// many of the time, and [`RING_WAIT`] at once. Who changes them all the time loses frames instead
/// of other guests' time.
const CHANGE_PART: u64 = 200;

/// The data side of a vhost-user port.
#[derive(Debug)]
pub struct VhostPort {
    queues: Arc<Queues>,
    /// Bit k: the guest receives on pair k.
    receive_pairs: AtomicU64,
    /// The features that it negotiated.
    features: AtomicU64,
    /// What workers may wait for its frontend.
    patience: Allowance,
    /// Where the guest's flows are, if it may have several pairs.
    flows: Option<FlowQueues>,
}

impl VhostPort {
    /// A port over `queues`.
    pub fn new(queues: Arc<Queues>) -> Self {
        let flows = (Queues::len(&queues) > 2).then(FlowQueues::default);
        Self {
            queues,
            receive_pairs: AtomicU64::new(0),
            features: AtomicU64::new(0),
            patience: Allowance::new(RING_WAIT.as_nanos() as u64, CHANGE_PART),
            flows,
        }
    }

    /// The port's rings.
    pub fn queues(&self) -> &Arc<Queues> {
        &self.queues
    }

    /// How many queue pairs the guest may have.
    pub fn pairs(&self) -> usize {
        self.queues.len() / 2
    }

    /// What is known of the receive ring of a pair, if it runs.
    pub fn fill(&self, pair: usize) -> Option<Fill> {
        self.queues.fill(2 * pair)
    }

    /// Takes over what the frontend negotiated.
    pub fn set_link(&self, link: &LinkState) {
        self.features.store(link.features, Ordering::Relaxed);
        self.receive_pairs.store(link.receive_pairs, Ordering::Relaxed);
    }

    /// Whether the guest receives.
    #[inline]
    pub fn is_up(&self) -> bool {
        self.receive_pairs.load(Ordering::Relaxed) != 0
    }

    /// Offloads that the guest accepts, for estimates: its rings may have others by now.
    pub(super) fn accepts(&self) -> Offloads {
        feature::accepted(self.features.load(Ordering::Relaxed))
    }

    /// Offloads that the guest may use, as [`Self::accepts`].
    pub(super) fn sends(&self) -> Offloads {
        feature::used(self.features.load(Ordering::Relaxed))
    }

    /// The transmit ring of a queue pair.
    #[inline]
    pub fn guest_tx(&self, pair: usize) -> Option<&Mutex<Ring>> {
        self.queues.ring(2 * pair + 1)
    }

    /// How many pairs the guest receives on: the first ones, since `ethtool -L` takes the last ones
    /// away.
    #[inline]
    pub fn enabled_pairs(&self) -> u32 {
        self.receive_pairs.load(Ordering::Relaxed).trailing_ones()
    }

    /// Notes that the guest sent frames on `pair`, for their answers to come by the same one. `now`
    /// is in seconds.
    #[inline]
    pub fn note_flows(&self, pair: usize, frames: &mut [Frame], now: u32) {
        let Some(flows) = self.flows.as_ref().filter(|_| self.enabled_pairs() > 1) else {
            return;
        };
        for frame in frames {
            let hash = flow_hash(frame.head());
            frame.flow = Some(hash);
            flows.note(hash, pair as u8, now);
        }
    }

    /// The flows that the guest sent, by hash, and the pair of each.
    pub fn known_flows(&self) -> Vec<(u32, u8)> {
        self.flows.as_ref().map(FlowQueues::list).unwrap_or_default()
    }

    /// Notes flows that the guest sent while another process served it. `now` is in seconds.
    pub fn remember_flows(&self, flows: &[(u32, u8)], now: u32) {
        if let Some(known) = &self.flows {
            flows.iter().for_each(|(hash, pair)| known.note(*hash, *pair, now));
        }
    }

    /// Delivers frames to the guest.
    #[inline]
    pub(super) fn egress(&self, burst: Egress<'_>, counters: &Counters) {
        let pairs = self.enabled_pairs();
        match pairs {
            0 => burst.lose(DropReason::LinkDown, counters, None),
            1 => self.deliver(0, burst, counters),
            _ => self.spread(pairs, burst, counters),
        }
    }

    /// Delivers frames to several queues: each flow keeps to one, so its order is kept.
    fn spread(&self, pairs: u32, burst: Egress<'_>, counters: &Counters) {
        // Decided once: another worker may change what is known of a flow meanwhile.
        let mut chosen = [0u8; BURST];
        let mut wanted = 0u64;
        for (frame, pair) in burst.frames().zip(&mut chosen) {
            (*pair, _) = self.pair_for(frame, pairs);
            wanted |= 1 << *pair;
        }
        let mut list = [0u16; BURST];
        while wanted != 0 {
            let pair = wanted.trailing_zeros();
            wanted &= wanted - 1;
            let mut len = 0;
            for (index, _) in burst.list.iter().zip(&chosen).filter(|(_, of)| **of == pair as u8) {
                if let Some(place) = list.get_mut(len) {
                    *place = *index;
                    len += 1;
                }
            }
            let list = list.get(..len).unwrap_or_default();
            self.deliver(pair as usize, Egress { list, ..burst }, counters);
        }
    }

    /// The pair, of the first `pairs`, for a frame: that on which the guest sends the flow (true), else
    /// one by the flow's hash (false).
    #[inline]
    pub(super) fn pair_for(&self, frame: &Frame, pairs: u32) -> (u8, bool) {
        let hash = frame.flow.unwrap_or_else(|| flow_hash(frame.head()));
        let noted = self.flows.as_ref().and_then(|flows| flows.pair(hash));
        match noted.filter(|pair| u32::from(*pair) < pairs) {
            Some(pair) => (pair, true),
            None => ((hash % pairs) as u8, false),
        }
    }

    fn deliver(&self, pair: usize, burst: Egress<'_>, counters: &Counters) {
        let queue = counters.queue(pair);
        let Some(mut ring) = self.lock(2 * pair) else {
            return burst.lose(DropReason::RxRingBusy, counters, Some(queue));
        };
        let accepts = ring.accepts();
        let Some(receiver) = ring.transmit() else {
            return burst.lose(DropReason::LinkDown, counters, Some(queue));
        };
        if pair != 0 && receiver.is_untouched() {
            // The frontend enabled more queues than the driver uses (Cloud Hypervisor).
            drop(ring);
            return self.deliver(0, burst, counters);
        }
        let before = counters.egress_frames.get();
        match receiver {
            AnyReceiver::Split(ring) => deliver_all(ring, burst, accepts, counters, queue),
            AnyReceiver::Packed(ring) => deliver_all(ring, burst, accepts, counters, queue),
        }
        queue.frames.add(counters.egress_frames.get().wrapping_sub(before));
        ring.publish();
        if ring.call_if_wanted() {
            counters.calls.add(1);
        }
        ring.look_ahead();
    }

    #[inline]
    fn lock(&self, index: usize) -> Option<MutexGuard<'_, Ring>> {
        let ring = self.queues.ring(index)?;
        ring.try_lock().or_else(|| self.wait(ring))
    }

    /// Waits for a ring that is locked.
    #[cold]
    fn wait<'q>(&self, ring: &'q Mutex<Ring>) -> Option<MutexGuard<'q, Ring>> {
        if !self.queues.is_changing() {
            // Another worker has it.
            return ring.try_lock_for(RING_WAIT);
        }
        let begin = clock::now_ns();
        let left = Duration::from_nanos(self.patience.left(begin));
        let locked = if left.is_zero() { None } else { ring.try_lock_for(left) };
        self.patience.spend(begin, clock::now_ns().saturating_sub(begin));
        locked
    }
}

/// Copies frames to the guest.
#[inline]
fn deliver_all<F: Format>(
    mut receiver: Receiver<'_, F>,
    burst: Egress<'_>,
    accepts: Offloads,
    counters: &Counters,
    queue: &QueueCounters,
) {
    receiver.prepare(burst.list.len());
    // Counted here, and written once for all.
    let (mut count, mut bytes) = (0u64, 0u64);
    for (index, frame) in burst.indexed() {
        receiver.prefetch_room(frame.len);
        let tail = burst.segments.tail(frame.tail.clone());
        if let Some(vnet) = passes(frame.vnet, accepts)
            && receiver.deliver_whole(vnet, frame, tail)
        {
            count += 1;
            bytes += u64::from(frame.len);
        } else {
            let done = deliver_any(&mut receiver, frame, burst.segments, accepts, counters);
            burst.count(index, frame, done, counters, queue);
        }
    }
    counters.egress_frames.add(count);
    counters.egress_bytes.add(bytes);
    counters.copied_bytes.add(bytes);
}

/// Delivers a frame of any kind into buffers of any kind.
#[inline(never)]
fn deliver_any<F: Format>(
    receiver: &mut Receiver<'_, F>,
    frame: &Frame,
    segments: &Segments<'_>,
    accepts: Offloads,
    counters: &Counters,
) -> Result<(), DropReason> {
    let mut deliver = |vnet: Encoded, head: &[u8], tail: Tail<'_>, len: u32| {
        receiver.deliver(vnet, len, head, tail).map_err(reason)?;
        counters.copied_bytes.add(u64::from(len));
        Ok(())
    };
    match passes(frame.vnet, accepts) {
        Some(vnet) => {
            let tail = segments.tail(frame.tail.clone());
            deliver(vnet, frame.head(), tail, frame.len)
        }
        None => convert(frame, segments, accepts, counters, deliver),
    }
}

pub(super) fn reason(fault: RxFault) -> DropReason {
    match fault {
        RxFault::Full => DropReason::RxRingFull,
        RxFault::TooSmall => DropReason::RxBufferTooSmall,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frontend_that_keeps_its_rings_locked_is_waited_for_once() {
        let port = VhostPort::new(Arc::new(Queues::new(1)));
        // What was spent, at whatever time one asks.
        let spent = || port.patience.debt(0);
        let from_elsewhere = || std::thread::scope(|s| s.spawn(|| port.lock(0).is_some()).join());
        assert!(from_elsewhere().unwrap() && spent() == 0);

        let rings = port.queues.lock_all();
        assert!(!from_elsewhere().unwrap());
        assert!(spent() > 0, "the wait was its frontend's fault");
        port.patience.spend(clock::now_ns(), 1_000_000_000);
        assert!(!from_elsewhere().unwrap() && port.patience.left(clock::now_ns()) == 0);
        drop(rings);
        assert!(from_elsewhere().unwrap(), "who finds the ring free doesn't wait");

        // Another worker's burst is waited for, and isn't the frontend's fault.
        let before = spent();
        let ring = port.queues.ring(0).unwrap().lock();
        assert!(!from_elsewhere().unwrap());
        drop(ring);
        assert_eq!(spent(), before);
    }
}
