//! systemd's watchdog: it is told again and again that frames move, and ends us when it isn't.
//!
//! A worker counts each sleep and each look at epoll, so its counters show whether it goes on. They
//! are compared at four moments in the watchdog's time, and all workers are woken up: a sleep may be
//! longer. systemd hears of it only if every worker has gone on since it last heard. So one that
//! hangs lets the time run out, while one that waits at the gate for an upgrade's standstill doesn't.
//! A process that takes over says nothing before its workers have passed the gate: until then the
//! other one answers for the switch.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use crate::worker::{Shared, WorkerCounters};

/// How often workers are looked at within the watchdog's time.
const LOOKS: u32 = 4;

/// What tells systemd's watchdog that the workers go on.
#[derive(Debug)]
pub(super) struct Watchdog {
    /// Connected before the sandbox is entered, which leaves no way to systemd's socket.
    socket: UnixDatagram,
    time: Duration,
    looked: Instant,
    progress: Progress,
}

impl Watchdog {
    /// A watchdog, if systemd wants one of this process (sd_watchdog_enabled(3)) or wanted one of this
    /// time from the process before: it tells `ExecReload` nothing of it.
    ///
    /// # Errors
    ///
    /// systemd's socket can't be connected to.
    pub fn new(inherited: Option<Duration>) -> io::Result<Option<Self>> {
        let time = sd_notify::watchdog_enabled().or(inherited);
        let (Some(time), Some(path)) = (time, std::env::var_os("NOTIFY_SOCKET")) else {
            return Ok(None);
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        // The sweeper has others to look after than a systemd that doesn't read.
        socket.set_nonblocking(true)?;
        Ok(Some(Self { socket, time, looked: Instant::now(), progress: Progress::default() }))
    }

    /// In this time systemd must hear of us.
    pub fn time(&self) -> Duration {
        self.time
    }

    /// Looks at the workers when it is time to. Returns when to call again, at the latest.
    pub fn look(&mut self, shared: &Shared) -> Duration {
        let tick = (self.time / LOOKS).max(Duration::from_millis(1));
        let left = tick.saturating_sub(self.looked.elapsed());
        if !left.is_zero() {
            return left;
        }
        self.looked = Instant::now();
        let beats = shared.counters.iter().take(shared.workers()).map(beats);
        if self.progress.all_went_on(beats) {
            // If it isn't told, it is the next time, or the time runs out.
            let _ = self.socket.send(b"WATCHDOG=1\n");
        }
        shared.active().iter().for_each(|mailbox| mailbox.wake());
        tick
    }
}

/// Changes in each round of a worker's that is long enough to matter.
fn beats(counters: &WorkerCounters) -> u64 {
    counters.sleeps.get().wrapping_add(counters.looks.get())
}

/// What the workers had counted when all had last gone on.
#[derive(Debug, Default)]
struct Progress {
    seen: Vec<u64>,
    /// Looks since then.
    waits: u32,
}

impl Progress {
    /// Whether every worker has gone on since this last said so; or since it began.
    fn all_went_on(&mut self, beats: impl Iterator<Item = u64>) -> bool {
        let now: Vec<_> = beats.collect();
        self.seen.resize(now.len(), 0);
        let hangs = now.iter().zip(&self.seen).position(|(now, seen)| now == seen);
        let Some(worker) = hangs else {
            self.seen = now;
            self.waits = 0;
            return true;
        };
        self.waits += 1;
        if self.waits == LOOKS / 2 {
            log::error!("worker {worker} doesn't go on: systemd's watchdog is not told otherwise");
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_worker_that_hangs_is_enough() {
        let mut progress = Progress::default();
        let mut look = |beats: [u64; 3]| progress.all_went_on(beats.into_iter());
        assert!(!look([1, 0, 1]), "the second one hasn't begun");
        assert!(look([1, 1, 1]), "nobody has to go on twice");
        assert!(!look([2, 1, 2]));
        assert!(!look([3, 1, 3]));
        assert!(!look([3, 1, 3]));
        assert!(look([3, 2, 3]), "it goes on, and the others have since they were last seen");
        assert!(!look([3, 2, 3]));
        assert!(look([u64::MAX, 3, 4]));
        assert!(look([0, 4, 5]), "counters may wrap");
    }
}
