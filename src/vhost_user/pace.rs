//! How much of a processor the thread of a port may use for its frontend.
//!
//! Each message costs time of a processor that may be a worker's, and of the locks of the port's
//! rings, for which workers wait. A frontend that brings up the largest device needs some tens of
//! milliseconds; one that floods us with messages, or connects again and again, is slowed down to a
//! fifth of a processor.

use std::cell::Cell;
use std::time::Duration;

use crate::sys::allowance::Allowance;
use crate::sys::clock;

/// What may be used at once, ns of processor time.
const AT_ONCE: u64 = 1_000_000_000;
/// For good it is one part in so many.
const PART: u64 = 5;
/// The longest pause at a time: the switch may want to end.
const MAX_PAUSE: Duration = Duration::from_millis(20);

/// The account of one port, used by the port's thread only.
#[derive(Debug)]
pub(super) struct Pace {
    account: Allowance,
    /// The thread's processor time when it was asked last.
    used: Cell<u64>,
}

impl Pace {
    /// A full account.
    pub fn new() -> Self {
        Self { account: Allowance::new(AT_ONCE, PART), used: Cell::new(0) }
    }

    /// Charges what the thread used since the last time, and pauses if that was too much.
    pub fn keep(&self) {
        let used = clock::thread_cpu_ns();
        let spent = used.saturating_sub(self.used.replace(used));
        let now = clock::now_ns();
        self.account.spend(now, spent);
        let pause = Duration::from_nanos(self.account.debt(now)).min(MAX_PAUSE);
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
}
