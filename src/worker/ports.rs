//! The ports that there are, and how workers go over to others.
//!
//! A [`Ports`] never changes: whoever has one sees the ports of one moment. Control makes another
//! one and publishes it; each worker takes it up between two bursts, and control waits for all of
//! them. So a burst meets one set of ports and rules, and what was taken out is used by no worker
//! when that wait is over.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::frame::{DropReason, PortId};
use crate::port::Port;

use super::{Mailbox, Order};

/// The ports at one moment, by [`PortId`]. There may be gaps where ports were taken out.
#[derive(Debug, Clone, Default)]
pub struct Ports {
    slots: Box<[Option<Slot>]>,
    mirrors: Box<[Mirror]>,
    /// Over how many workers the sources are spread, and over how many they will be. A source that is
    /// to move to another worker is nobody's meanwhile: its frames wait, and keep their order.
    workers: [usize; 2],
}

/// A port and the rules for it.
#[derive(Debug, Clone)]
struct Slot {
    port: Arc<Port>,
    reach: Reach,
    /// A mirror's copies leave here, and nothing else.
    is_probe: bool,
}

/// Whom the frames of a port may reach: see [`crate::config::Isolation`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reach {
    /// All.
    #[default]
    Open,
    /// Those that are open.
    Isolated,
    /// Those that are open, and those of the group of this number.
    Group(u16),
}

impl Reach {
    /// Whether frames may go from a port to another one.
    #[inline]
    fn extends_to(self, other: Self) -> bool {
        match (self, other) {
            (Self::Open, _) | (_, Self::Open) => true,
            (Self::Group(ours), Self::Group(theirs)) => ours == theirs,
            _ => false,
        }
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("open"),
            Self::Isolated => f.write_str("isolated"),
            Self::Group(number) => write!(f, "in group {number}"),
        }
    }
}

/// Frames of the port `from` are copied to the port `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mirror {
    /// Whose frames.
    pub from: PortId,
    /// Where the copies leave.
    pub to: PortId,
    /// What comes in by the port.
    pub inbound: bool,
    /// What is to leave by it.
    pub outbound: bool,
}

impl Ports {
    /// These ports; each stands at the place that its number says.
    #[must_use]
    pub fn new(ports: impl IntoIterator<Item = Arc<Port>>) -> Self {
        Self::with_rules(ports.into_iter().map(|port| (port, Reach::Open)), Vec::new())
    }

    /// These ports, whom they may reach, and mirrors between them.
    #[must_use]
    pub fn with_rules(
        ports: impl IntoIterator<Item = (Arc<Port>, Reach)>,
        mirrors: Vec<Mirror>,
    ) -> Self {
        let mut slots: Vec<Option<Slot>> = Vec::new();
        for (port, reach) in ports {
            let index = port.id.index();
            if slots.len() <= index {
                slots.resize(index + 1, None);
            }
            if let Some(slot) = slots.get_mut(index) {
                let is_probe = mirrors.iter().any(|mirror| mirror.to == port.id);
                *slot = Some(Slot { port, reach, is_probe });
            }
        }
        Self { slots: slots.into(), mirrors: mirrors.into(), workers: [1, 1] }
    }

    /// The same, for so many workers. As long as there are others, `next`, who take sources over, those
    /// sources are nobody's.
    #[must_use]
    pub fn spread_over(self, workers: usize, next: usize) -> Self {
        Self { workers: [workers, next], ..self }
    }

    /// The worker that takes what comes in by a queue of a port, unless it is to move.
    #[must_use]
    pub fn worker_of(&self, port: &Port, queue: usize) -> Option<usize> {
        let [now, next] = self.workers.map(|workers| port.worker_of(queue, workers));
        (now == next).then_some(now)
    }

    #[inline]
    fn slot(&self, id: PortId) -> Option<&Slot> {
        self.slots.get(id.index()).and_then(Option::as_ref)
    }

    /// The port of this number, if there is one.
    #[inline]
    #[must_use]
    pub fn get(&self, id: PortId) -> Option<&Arc<Port>> {
        self.slot(id).map(|slot| &slot.port)
    }

    /// The ports, by number.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Port>> {
        self.slots.iter().flatten().map(|slot| &slot.port)
    }

    /// Where frames from one port to all go: whoever is up, may be reached and is no probe.
    #[inline]
    pub fn flooded(&self, from: PortId) -> impl Iterator<Item = &Arc<Port>> {
        let reach = self.reach(from);
        let is_in = move |slot: &&Slot| {
            slot.port.id != from
                && !slot.is_probe
                && reach.extends_to(slot.reach)
                && slot.port.is_up()
        };
        self.slots.iter().flatten().filter(is_in).map(|slot| &slot.port)
    }

    /// Why frames of one port don't go to another one, if the rules say so.
    #[inline]
    #[must_use]
    pub fn refuses(&self, from: PortId, to: PortId) -> Option<DropReason> {
        match (self.slot(from), self.slot(to)) {
            (Some(from), Some(to)) if to.is_probe || !from.reach.extends_to(to.reach) => {
                Some(DropReason::Isolated)
            }
            (Some(_), Some(_)) => None,
            // It was taken out a moment ago, and the address is about to be forgotten.
            _ => Some(DropReason::NoDestination),
        }
    }

    /// Whom the frames of a port may reach.
    #[must_use]
    pub fn reach(&self, id: PortId) -> Reach {
        self.slot(id).map(|slot| slot.reach).unwrap_or_default()
    }

    /// Why frames to all ports go to none.
    #[must_use]
    pub fn refuses_all(&self, from: PortId) -> DropReason {
        match self.reach(from) {
            Reach::Open => DropReason::NoDestination,
            Reach::Isolated | Reach::Group(_) => DropReason::Isolated,
        }
    }

    /// Whether the port gets a mirror's copies.
    #[inline]
    #[must_use]
    pub fn is_probe(&self, id: PortId) -> bool {
        self.slot(id).is_some_and(|slot| slot.is_probe)
    }

    /// What is copied.
    #[inline]
    #[must_use]
    pub fn mirrors(&self) -> &[Mirror] {
        &self.mirrors
    }

    /// The port of this name, if there is one.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Arc<Port>> {
        self.iter().find(|port| port.name == name)
    }

    /// One more than the largest number.
    #[must_use]
    pub fn places(&self) -> usize {
        self.slots.len()
    }

    /// The smallest number that no port has.
    #[must_use]
    pub fn free(&self) -> PortId {
        let free = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        PortId(u16::try_from(free).unwrap_or(u16::MAX))
    }
}

/// The ports that there are now, and which workers know.
#[derive(Debug)]
pub struct Roster {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    ports: Arc<Ports>,
    /// How often they were changed.
    version: u64,
    /// By worker: the version that it goes by.
    known: Box<[u64]>,
}

impl Roster {
    /// The ports that `workers` workers begin with.
    #[must_use]
    pub fn new(ports: Ports, workers: usize) -> Self {
        let state = State { ports: Arc::new(ports), version: 0, known: vec![0; workers].into() };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The ports now.
    #[must_use]
    pub fn now(&self) -> Arc<Ports> {
        Arc::clone(&self.state.lock().ports)
    }

    /// Puts `ports` in the place of those before, and returns when the first workers, which have these
    /// mailboxes, go by them, or at `deadline`. Tells whether they do.
    pub fn change(&self, ports: Ports, workers: &[Arc<Mailbox>], deadline: Instant) -> bool {
        let mut state = self.state.lock();
        // Gone here, and not in a worker: with them may go devices and memory.
        let _before = std::mem::replace(&mut state.ports, Arc::new(ports));
        state.version += 1;
        workers.iter().for_each(|mailbox| mailbox.send(Order::Ports));
        let all_know = |state: &State| {
            let mut known = state.known.iter().take(workers.len());
            known.all(|known| *known >= state.version)
        };
        while !all_know(&state) {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return all_know(&state);
            }
        }
        true
    }

    /// A worker goes by `ports` from now on: it has no frame under way, and none of those before.
    pub(super) fn confirm(&self, worker: usize, ports: &Arc<Ports>) {
        let mut state = self.state.lock();
        // Else there are others again, and an order to go over to them.
        if Arc::ptr_eq(&state.ports, ports) {
            let version = state.version;
            state.known.get_mut(worker).into_iter().for_each(|known| *known = version);
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::port::{Kind, VhostPort};
    use crate::ring::Queues;

    fn port(id: u16, name: &str) -> Arc<Port> {
        let kind = Kind::Vhost(VhostPort::new(Arc::new(Queues::new(1))));
        Arc::new(Port::new(PortId(id), name.into(), kind, 1))
    }

    #[test]
    fn ports_keep_their_numbers_and_gaps_are_filled() {
        let ports = Ports::new([port(3, "d"), port(1, "b")]);
        let names: Vec<_> = ports.iter().map(|port| port.name.as_str()).collect();
        assert_eq!((names, ports.places(), ports.free()), (vec!["b", "d"], 4, PortId(0)));
        assert!(ports.get(PortId(0)).is_none() && ports.get(PortId(9)).is_none());
        assert_eq!(ports.find("d").map(|port| port.id), Some(PortId(3)));
        assert_eq!(Ports::new([port(0, "a"), port(1, "b")]).free(), PortId(2));
    }

    #[test]
    fn frames_go_where_the_rules_allow() {
        let reaches = [Reach::Open, Reach::Isolated, Reach::Isolated, Reach::Group(1)];
        let reaches = reaches.into_iter().chain([Reach::Group(1), Reach::Group(2), Reach::Open]);
        let ports = (0..7).map(|id| port(id, &id.to_string())).zip(reaches);
        let [from, to] = [PortId(1), PortId(6)];
        let mirror = Mirror { from, to, inbound: true, outbound: true };
        let ports = Ports::with_rules(ports, vec![mirror]);
        let refused = |from: u16| {
            (0..7u16).map(move |to| (to, PortId(from), PortId(to))).filter_map({
                let ports = &ports;
                move |(to, a, b)| ports.refuses(a, b).map(|_| to)
            })
        };
        assert_eq!(refused(0).collect::<Vec<_>>(), [6], "open: all but the probe");
        assert_eq!(refused(1).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(refused(3).collect::<Vec<_>>(), [1, 2, 5, 6]);
        assert_eq!(refused(5).collect::<Vec<_>>(), [1, 2, 3, 4, 6]);
        assert_eq!(ports.refuses(PortId(0), PortId(9)), Some(DropReason::NoDestination));
        assert!(ports.is_probe(PortId(6)) && !ports.is_probe(PortId(1)));
    }

    #[test]
    fn a_change_is_over_when_all_workers_know() {
        let mailboxes = [(), ()].map(|()| Arc::new(Mailbox::new().unwrap()));
        let roster = Roster::new(Ports::new([port(0, "a")]), 2);
        let soon = Instant::now() + Duration::from_millis(10);
        assert!(!roster.change(Ports::default(), &mailboxes, soon), "nobody came");
        roster.confirm(0, &Arc::new(Ports::default()));
        assert_eq!(roster.now().places(), 0);
        assert_eq!(
            mailboxes.each_ref().map(|mailbox| mailbox.take()),
            [const { Some(()) }; 2].map(|_| Some(vec![Order::Ports]))
        );
        std::thread::scope(|scope| {
            let change = scope.spawn(|| {
                let later = Instant::now() + Duration::from_secs(60);
                roster.change(Ports::new([port(5, "f")]), &mailboxes, later)
            });
            for (worker, mailbox) in mailboxes.iter().enumerate() {
                while mailbox.take().is_none() {
                    std::thread::yield_now();
                }
                assert!(!change.is_finished());
                assert_eq!(roster.now().places(), 6);
                roster.confirm(worker, &roster.now());
            }
            assert!(change.join().unwrap());
        });
    }
}
