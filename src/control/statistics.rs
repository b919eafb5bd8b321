//! What the switch has counted, at one moment.

use crate::port::Totals;
use crate::worker::{Shared, WorkerCounters};

/// The counters of ports and workers.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// Name and counters of each port, by number.
    pub ports: Vec<(String, Totals)>,
    /// Name and value of each counter, for each worker.
    pub workers: Vec<Vec<(&'static str, u64)>>,
    /// How many addresses the MAC table holds.
    pub macs: usize,
}

impl Statistics {
    pub(super) fn collect(shared: &Shared) -> Self {
        Self {
            ports: shared.ports.now().iter().map(|p| (p.name.clone(), p.totals())).collect(),
            workers: Self::workers(shared),
            macs: shared.macs.len(),
        }
    }

    /// Name and value of each counter, for each worker.
    pub(super) fn workers(shared: &Shared) -> Vec<Vec<(&'static str, u64)>> {
        let of = |c: &WorkerCounters| {
            vec![
                ("frames", c.frames.get()),
                ("busy_cycles", c.busy_cycles.get()),
                ("sleeps", c.sleeps.get()),
                ("looks", c.looks.get()),
                ("passed_over", c.passed_over.get()),
            ]
        };
        shared.counters.iter().take(shared.workers()).map(of).collect()
    }

    /// Writes one line for each port and worker to the log, as `key=value` pairs.
    pub fn log(&self) {
        let pairs = |named: &mut dyn Iterator<Item = (&'static str, u64)>| {
            named.map(|(name, value)| format!(" {name}={value}")).collect::<String>()
        };
        for (name, totals) in &self.ports {
            let counts = pairs(&mut totals.named());
            let drops = totals.drops().filter(|(_, n)| *n > 0);
            let drops: String = drops.map(|(why, n)| format!(" drop_{why}={n}")).collect();
            log::info!(asked = true; "stats port={name}{counts}{drops}");
        }
        for (index, counts) in self.workers.iter().enumerate() {
            log::info!(asked = true; "stats worker={index}{}", pairs(&mut counts.iter().copied()));
        }
        log::info!(asked = true; "stats macs={}", self.macs);
        log::info!(asked = true; "stats end");
    }
}
