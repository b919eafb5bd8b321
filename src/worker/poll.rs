//! The poll loop of one worker.
#![expect(clippy::indexing_slicing, reason = "indices are made with what they index, at start")]

use std::sync::Arc;
use std::time::Duration;

use crate::config::PollMode;
use crate::frame::{BURST, DropReason, Frame, PortId};
use crate::mem::SegmentPool;
use crate::port::{Kind, TapPort, TapReader, VhostPort};
use crate::sys::clock;
use crate::sys::poller::Events;
use crate::wire::ethernet::MacAddr;
use crate::wire::offload::Offloads;
use crate::wire::rarp;

use super::budget::Budget;
use super::pipeline::Pipeline;
use super::source::{Source, sources};
use super::{Mailbox, Order, Shared};

/// How long a source may be quiet and stay hot while the worker is busy with others, ns.
const COOL_NS: u64 = 200_000;
/// The same in poll mode, where nobody wants the guest to kick after a short silence; but the rings
/// of a guest that is idle for good are not to be polled for ever.
const COOL_POLL_NS: u64 = 1_000_000_000;
/// How often a busy worker looks at epoll for cold sources, ns.
const LOOK_NS: u64 = 20_000;
/// The longest a worker without work polls before it sleeps, ns.
const SPIN_MAX_NS: u64 = 50_000;
/// The first step of that time.
const SPIN_STEP_NS: u64 = 5_000;
/// How long a call for completed transmit buffers may be put off, ns. Drivers take such buffers
/// back with their next frame; one that does meanwhile needs no interrupt.
const CALL_DELAY_NS: u64 = 400_000;
/// So many completed transmit buffers bring the call at once, or a quarter of a small ring: the
/// driver may run out of descriptors, or its sockets of buffer (Linux's default holds some 90).
const CALL_BATCH: u16 = 48;
/// A sleep in which a kick that nobody sends is waited for ends after this time.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// A thread that moves frames.
#[derive(Debug)]
pub struct Worker {
    index: usize,
    mailbox: Arc<Mailbox>,
    mode: PollMode,
    /// It was told to end.
    ended: bool,
    /// In the order of their ids.
    sources: Vec<Source>,
    /// Indices of the hot sources.
    hot: Vec<u32>,
    /// Which ports are to be passed over.
    budget: Budget,
    pipeline: Pipeline,
    pool: SegmentPool,
    frames: Box<[Frame]>,
    reader: TapReader,
    /// What the last look at epoll reported.
    events: Events,
    /// How long to poll before the next sleep, ns: grows when work comes right after the worker
    /// fell asleep, shrinks when polling was in vain.
    spin_ns: u64,
    /// The end of the last round or sleep, ns of the monotonic clock.
    now: u64,
    last_look: u64,
    /// Sources whose guests may want a call for completed transmit buffers, and since when.
    owed: Vec<u32>,
    owed_since: u64,
}

/// What came of looking at a source.
enum Outcome {
    /// It had that many frames or bad buffers, and its guest may want a call for them. `more` may be
    /// waiting.
    Worked { frames: usize, owes_call: bool, more: bool },
    /// It had nothing, or can't be used.
    Quiet,
    /// Control holds its lock.
    Busy,
}

impl Worker {
    /// Worker `index` of the switch.
    pub fn new(shared: Arc<Shared>, index: usize, mode: PollMode) -> Self {
        let mailbox = Arc::clone(&shared.mailboxes[index]);
        let pipeline = Pipeline::new(shared, index);
        Self {
            index,
            mailbox,
            mode,
            ended: false,
            hot: Vec::new(),
            sources: sources(pipeline.ports(), index, Vec::new()),
            budget: Budget::new(pipeline.ports().places()),
            pipeline,
            pool: SegmentPool::default(),
            frames: (0..BURST).map(|_| Frame::default()).collect(),
            reader: TapReader::default(),
            events: Events::with_capacity(64),
            spin_ns: 0,
            now: 0,
            last_look: 0,
            owed: Vec::new(),
            owed_since: 0,
        }
    }

    /// Moves frames until the switch stops.
    pub fn run(&mut self) {
        self.pipeline.shared().gate.pass();
        self.now = clock::now_ns();
        let mut quiet_since = self.now;
        while !self.ended && !self.pipeline.stopping() {
            let frames = self.step();
            // The only reading of the clock in a round: all times are of its end.
            self.now = clock::now_ns();
            if !self.owed.is_empty() && self.now - self.owed_since >= CALL_DELAY_NS {
                self.call_owed();
            }
            if frames > 0 {
                quiet_since = self.now;
            } else if self.mode == PollMode::Adaptive && self.now - quiet_since >= self.spin_ns {
                self.sleep();
                quiet_since = self.now;
                continue;
            }
            if self.now - self.last_look >= LOOK_NS {
                self.last_look = self.now;
                self.pipeline.shared().counters[self.index].looks.add(1);
                self.look(Some(Duration::ZERO));
                self.cool(self.now);
            }
        }
    }

    /// Does what control ordered, and takes one burst from each hot source. Returns how many frames
    /// there were. Never sleeps: benches, which have no threads, call this instead of [`Self::run`].
    #[inline]
    pub fn step(&mut self) -> usize {
        self.obey();
        self.round()
    }

    /// Takes one burst from each hot source whose port isn't ahead of others. Returns how many frames
    /// there were.
    #[inline]
    fn round(&mut self) -> usize {
        let seconds = clock::coarse_seconds();
        let mut total = 0;
        let start = clock::tsc();
        let mut begin = start;
        let Self { budget, hot, sources, .. } = self;
        budget.begin(begin, hot.iter().map(|index| sources[*index as usize].port.id.index()));
        for position in 0..self.hot.len() {
            let index = self.hot[position] as usize;
            let port = self.sources[index].port.id.index();
            if self.budget.holds(port, begin) {
                self.pipeline.shared().counters[self.index].passed_over.add(1);
                continue;
            }
            let outcome = self.take_burst(index, seconds);
            let end = clock::tsc();
            match outcome {
                Outcome::Worked { frames, owes_call, more } => {
                    total += frames;
                    let source = &mut self.sources[index];
                    source.last_work = self.now;
                    source.drained = false;
                    if more != source.waits {
                        source.waits = more;
                        self.budget.set_waiting(port, more);
                    }
                    let cost = end.wrapping_sub(begin);
                    self.budget.charge(port, cost, end);
                    let counters = &self.pipeline.shared().counters[self.index];
                    counters.latency.count(frames as u64, cost);
                    if owes_call {
                        self.owe(index);
                    }
                }
                Outcome::Busy => self.sources[index].last_work = self.now,
                Outcome::Quiet => {
                    self.sources[index].drained = true;
                    self.stop_waiting(index);
                }
            }
            begin = end;
        }
        if total > 0 {
            let counters = &self.pipeline.shared().counters[self.index];
            counters.busy_cycles.add(begin.wrapping_sub(start));
            counters.frames.add(total as u64);
        }
        total
    }

    /// Notes that a source has no more frames.
    #[inline]
    fn stop_waiting(&mut self, index: usize) {
        let source = &mut self.sources[index];
        if std::mem::take(&mut source.waits) {
            self.budget.set_waiting(source.port.id.index(), false);
        }
    }

    /// Takes a burst from a source and switches it. `now` is in seconds.
    #[inline]
    fn take_burst(&mut self, index: usize, now: u32) -> Outcome {
        let source = &self.sources[index];
        let Self { pipeline, pool, frames, reader, .. } = self;
        match &source.port.kind {
            Kind::Vhost(vhost) => from_guest(source, vhost, pipeline, pool, frames, now),
            Kind::Tap(tap) => from_tap(source, tap, pipeline, reader, pool, frames, now),
        }
    }

    /// Remembers that a guest may want a call.
    fn owe(&mut self, index: usize) {
        if !std::mem::replace(&mut self.sources[index].owes_call, true) {
            if self.owed.is_empty() {
                self.owed_since = self.now;
            }
            self.owed.push(index as u32);
        }
    }

    /// Calls the guests that still want it.
    fn call_owed(&mut self) {
        let Self { owed, sources, .. } = self;
        owed.retain(|index| {
            let source = &mut sources[*index as usize];
            let Kind::Vhost(vhost) = &source.port.kind else { return false };
            // Control holds the lock: the next time.
            let Some(mut ring) = vhost.guest_tx(source.queue).and_then(|ring| ring.try_lock())
            else {
                return true;
            };
            if ring.call_if_wanted() {
                source.port.counters(self.index).calls.add(1);
            }
            source.owes_call = false;
            false
        });
        self.owed_since = self.now;
    }

    /// Makes the hot sources cold that were quiet for long, if nothing came meanwhile.
    fn cool(&mut self, now: u64) {
        let Self { hot, sources, budget, mode, .. } = self;
        let limit = if *mode == PollMode::Poll { COOL_POLL_NS } else { COOL_NS };
        hot.retain(|index| {
            let source = &mut sources[*index as usize];
            let mut stays = now.saturating_sub(source.last_work) < limit;
            if !stays && set_kicks(source, true) {
                // It isn't cold after all, and its guest is not to kick for each burst from now on.
                set_kicks(source, false);
                stays = true;
            }
            source.hot = stays;
            if !stays && std::mem::take(&mut source.waits) {
                budget.set_waiting(source.port.id.index(), false);
            }
            stays
        });
    }

    /// Sleeps until a kick, a frame of a TAP or an order, unless there is work after all.
    fn sleep(&mut self) {
        self.cool(u64::MAX);
        if !self.hot.is_empty() {
            return;
        }
        if !self.owed.is_empty() {
            let left = CALL_DELAY_NS.saturating_sub(self.now - self.owed_since);
            self.look(Some(Duration::from_nanos(left)));
            if self.hot.is_empty() {
                self.call_owed();
            }
            return;
        }
        self.pipeline.shared().counters[self.index].sleeps.add(1);
        let before = self.now;
        self.look(Some(SLEEP_MAX));
        let slept = self.now - before;
        self.spin_ns = if slept < SPIN_MAX_NS {
            (self.spin_ns + SPIN_STEP_NS).min(SPIN_MAX_NS)
        } else {
            self.spin_ns / 2
        };
    }

    /// Asks epoll which sources to heat.
    fn look(&mut self, timeout: Option<Duration>) {
        // An error (none is expected of an open epoll instance) shows as no events.
        let Ok(_) = self.mailbox.poller.wait(&mut self.events, timeout) else {
            return;
        };
        self.now = clock::now_ns();
        let Self { events, sources, hot, now, .. } = self;
        for token in events.tokens().filter(|token| *token != Mailbox::WAKE) {
            heat(sources, hot, token as u32, *now);
        }
    }

    /// Carries out what control ordered.
    #[inline]
    fn obey(&mut self) {
        let Some(orders) = self.mailbox.take() else {
            return;
        };
        for order in orders {
            match order {
                Order::Look { source } => {
                    heat(&mut self.sources, &mut self.hot, source, self.now);
                }
                Order::Announce { port, mac } => self.announce(port, mac),
                Order::Watch => self.pipeline.watch(),
                Order::Ports => self.take_up_ports(),
                Order::End => self.ended = true,
                Order::Poll(poll) => {
                    self.mode = if poll { PollMode::Poll } else { PollMode::Adaptive };
                }
                Order::Pause => {
                    // Who goes on with the rings may be another process.
                    self.call_owed();
                    self.pipeline.shared().gate.pass();
                    if self.pipeline.stopping() {
                        self.hot.clear();
                    }
                }
            }
        }
    }

    /// Goes over to the ports that there are now.
    fn take_up_ports(&mut self) {
        self.call_owed();
        (0..self.sources.len()).for_each(|index| self.stop_waiting(index));
        self.pipeline.take_up_ports();
        let ports = self.pipeline.ports();
        self.budget.resize(ports.places());
        self.sources = sources(ports, self.index, std::mem::take(&mut self.sources));
        self.hot.clear();
        self.owed.clear();
        let Self { sources, hot, owed, now, .. } = self;
        let owing = (0..).zip(&*sources).filter(|(_, source)| source.owes_call);
        owed.extend(owing.map(|(index, _)| index));
        // All are looked at: what came to new ones before now was nobody's to see.
        let ids: Vec<_> = sources.iter().map(|source| source.id).collect();
        sources.iter_mut().for_each(|source| source.hot = false);
        ids.into_iter().for_each(|id| heat(sources, hot, id, *now));
        self.pipeline.shared().ports.confirm(self.index, self.pipeline.ports());
    }

    /// Sends a RARP request from `mac`, as a guest would that moved: the other bridges learn.
    fn announce(&mut self, port: PortId, mac: [u8; 6]) {
        let from = self.pipeline.ports().get(port).map(Arc::clone);
        let Some((from, frame)) = from.zip(self.frames.first_mut()) else {
            return;
        };
        frame.set_whole(&rarp::announcement(MacAddr(mac)));
        let segments = self.pool.local(&[], std::iter::empty());
        let frames = &mut self.frames[..1];
        let now = clock::coarse_seconds();
        self.pipeline.run(&from, frames, &segments, Offloads::empty(), now);
    }
}

/// Makes a source hot.
fn heat(sources: &mut [Source], hot: &mut Vec<u32>, id: u32, now: u64) {
    // It may have been taken out since.
    let Ok(index) = sources.binary_search_by_key(&id, |source| source.id) else {
        return;
    };
    let source = &mut sources[index];
    source.last_work = now;
    source.drained = false;
    if !source.hot {
        source.hot = true;
        set_kicks(source, false);
        hot.push(index as u32);
    }
}

/// Asks a source's guest for kicks or to spare them. Returns whether there is something to take.
fn set_kicks(source: &Source, wanted: bool) -> bool {
    match &source.port.kind {
        Kind::Vhost(vhost) => match vhost.guest_tx(source.queue) {
            // Control holds the lock: stay awake until it has finished.
            Some(ring) => ring.try_lock().is_none_or(|mut ring| ring.want_kicks(wanted)),
            None => false,
        },
        // Edge triggered: only a frame that comes after a read that found nothing makes an event.
        Kind::Tap(_) => wanted && !source.drained,
    }
}

/// Takes a burst from a transmit ring and switches it.
#[inline]
fn from_guest(
    source: &Source,
    vhost: &VhostPort,
    pipeline: &mut Pipeline,
    pool: &mut SegmentPool,
    frames: &mut [Frame],
    now: u32,
) -> Outcome {
    let Source { port, queue: pair, .. } = source;
    let Some(ring) = vhost.guest_tx(*pair) else {
        return Outcome::Quiet;
    };
    let Some(mut ring) = ring.try_lock() else {
        return Outcome::Busy;
    };
    let sends = ring.sends();
    let Some(burst) = ring.receive(pool, frames) else {
        return Outcome::Quiet;
    };
    let counters = port.counters(pipeline.worker());
    vhost.note_flows(*pair, burst.frames, now);
    let good = pipeline.run(port, burst.frames, &burst.segments, sends, now);
    let (mut taken, mut more) = (burst.taken, burst.more);
    if let Some(next) = burst.frames.get(good) {
        // It was cut short: what is left stays in the ring, and is read again.
        (taken, more) = (next.buffer, true);
    }
    if usize::from(taken) > good {
        let (chains, lengths) = burst.bad(taken, good);
        counters.ingress_frames.add(u64::from(chains + lengths));
        counters.drop(DropReason::BadChain, u64::from(chains));
        counters.drop(DropReason::BadLength, u64::from(lengths));
    }
    ring.complete_burst(taken);
    ring.publish();
    let owes_call = ring.undecided() < CALL_BATCH.min(ring.size() / 4);
    if !owes_call && ring.call_if_wanted() {
        counters.calls.add(1);
    }
    Outcome::Worked { frames: usize::from(taken), owes_call, more }
}

/// Takes a burst from a TAP and switches it.
fn from_tap(
    source: &Source,
    tap: &TapPort,
    pipeline: &mut Pipeline,
    reader: &mut TapReader,
    pool: &mut SegmentPool,
    frames: &mut [Frame],
    now: u32,
) -> Outcome {
    let Source { port, queue, .. } = source;
    let (good, segments, bad) = tap.receive(*queue, reader, pool, frames);
    let taken = good + usize::from(bad);
    if taken == 0 {
        return Outcome::Quiet;
    }
    let counters = port.counters(pipeline.worker());
    counters.ingress_frames.add(u64::from(bad));
    counters.drop(DropReason::BadLength, u64::from(bad));
    let mut frames = frames.get_mut(..good).unwrap_or_default();
    while !frames.is_empty() {
        // What was read can't be put back: all of it is sent.
        let sent = pipeline.run(port, frames, &segments, tap.sends(), now);
        frames = frames.get_mut(sent..).unwrap_or_default();
    }
    Outcome::Worked { frames: taken, owes_call: false, more: taken == BURST }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
