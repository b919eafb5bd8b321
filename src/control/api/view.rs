//! What there is to be seen of a switch.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::api::{Flow, Mac, Port, PortKind, Process, Worker};
use crate::config::{self, PortSettings, Settings};
use crate::frame::DropReason;
use crate::port;
use crate::sys::clock;
use crate::wire::ethernet::MacAddr;
use crate::worker::{self, Flows, Shared};

use super::super::{Statistics, Switch};

/// A look at a running switch: it waits for nobody, and nobody waits for it.
pub struct View {
    shared: Arc<Shared>,
    ports: Vec<PortSettings>,
    since: Instant,
    /// Seconds since 1970.
    began_at: f64,
    /// The time-stamp counter at `since`.
    tsc: u64,
    /// Its cycles in a second, once they are known well.
    tsc_rate: OnceLock<f64>,
}

/// How long it takes to know the rate of the time-stamp counter to a millionth.
const CALIBRATION: Duration = Duration::from_secs(1);

impl View {
    /// A look at `switch`, which was built from `settings`.
    #[must_use]
    pub fn new(switch: &Switch, settings: &Settings) -> Self {
        Self {
            shared: Arc::clone(&switch.shared),
            ports: settings.ports.clone(),
            since: Instant::now(),
            began_at: Duration::from_nanos(clock::unix_ns()).as_secs_f64(),
            tsc: clock::tsc(),
            tsc_rate: OnceLock::new(),
        }
    }

    /// Cycles in a second. It stays the same but for the first second: what is made of it grows only.
    pub(super) fn tsc_rate(&self) -> f64 {
        let measure = || {
            let cycles = clock::tsc().saturating_sub(self.tsc);
            cycles as f64 / self.since.elapsed().as_secs_f64()
        };
        match self.since.elapsed() {
            age if age < CALIBRATION => measure(),
            _ => *self.tsc_rate.get_or_init(measure),
        }
    }

    /// What the workers share.
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The index of the port of this name.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.shared.ports.iter().position(|port| port.name == name)
    }

    /// The names of all ports.
    pub(super) fn names(&self) -> Vec<&str> {
        self.shared.ports.iter().map(|port| port.name.as_str()).collect()
    }

    /// When it became the switch, seconds since 1970.
    pub(super) fn began_at(&self) -> f64 {
        self.began_at
    }

    /// How many addresses were learned.
    pub(super) fn addresses(&self) -> u64 {
        self.shared.macs.len() as u64
    }

    /// Port, reason and number of drops, all of them.
    pub(super) fn drops(&self) -> Vec<(String, DropReason, u64)> {
        let of = |port: &Arc<port::Port>| {
            let totals = port.totals();
            totals.drops().map(|(reason, count)| (port.name.clone(), reason, count)).collect()
        };
        self.shared.ports.iter().flat_map(|port| -> Vec<_> { of(port) }).collect()
    }

    pub(super) fn process(&self) -> Process {
        Process {
            program: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.since.elapsed().as_secs(),
        }
    }

    pub(super) fn ports(&self) -> Vec<Port> {
        let ports = self.shared.ports.iter().zip(&self.ports);
        ports.map(|(port, settings)| self.port(port, settings)).collect()
    }

    fn port(&self, port: &port::Port, settings: &PortSettings) -> Port {
        let totals = port.totals();
        let (kind, place, uplink) = match &settings.kind {
            config::PortKind::VhostUser(vhost) => {
                (PortKind::VhostUser, vhost.socket.display().to_string(), false)
            }
            config::PortKind::Tap(tap) => (PortKind::Tap, tap.device.clone(), tap.uplink),
        };
        let queues = match &port.kind {
            port::Kind::Vhost(vhost) => vhost.enabled_pairs(),
            port::Kind::Tap(tap) => u32::try_from(tap.queues()).unwrap_or(u32::MAX),
        };
        let drops = totals.drops().filter(|(_, count)| *count > 0);
        Port {
            name: port.name.clone(),
            kind,
            place,
            uplink,
            up: port.is_up(),
            queues,
            addresses: self.shared.macs.port_len(port.id.0),
            counters: totals.named().map(|(name, count)| (name.to_owned(), count)).collect(),
            drops: drops.map(|(reason, count)| (reason.to_string(), count)).collect(),
        }
    }

    pub(super) fn workers(&self) -> Vec<Worker> {
        let workers = Statistics::workers(&self.shared);
        let named = |counters: Vec<(&'static str, u64)>| -> BTreeMap<String, u64> {
            counters.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
        };
        let rate = self.tsc_rate();
        (0..)
            .zip(workers)
            .map(|(worker, counters)| {
                let counters = named(counters);
                let cycles = counters.get("busy_cycles").copied().unwrap_or_default();
                Worker { worker, busy_seconds: cycles as f64 / rate, counters }
            })
            .collect()
    }

    /// What went from port to port: all pairs that had frames.
    pub(super) fn flows(&self) -> Vec<Flow> {
        let name = |index: usize| self.shared.ports.get(index).map(|port| port.name.clone());
        let sums = Flows::sums(&self.shared.flows).into_iter();
        let flow = |(from, to, flow): (usize, usize, worker::Flow)| {
            let worker::Flow { frames, bytes, dropped } = flow;
            Some(Flow { from: name(from)?, to: name(to)?, frames, bytes, dropped })
        };
        sums.filter_map(flow).collect()
    }

    pub(super) fn macs(&self) -> Vec<Mac> {
        let mut macs = Vec::new();
        self.shared.macs.for_each(clock::coarse_seconds(), |mac, port, age_seconds| {
            let Some(port) = self.shared.ports.get(usize::from(port)) else { return };
            let address = MacAddr::from_u64(mac).to_string();
            macs.push(Mac { address, port: port.name.clone(), age_seconds });
        });
        macs.sort_unstable();
        macs
    }
}
