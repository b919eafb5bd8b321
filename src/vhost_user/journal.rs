//! What a port's protocol side logs: bounded, whatever its frontend does.
//!
//! A frontend that breaks a rule in each message, or reconnects forever, must not fill the host's
//! log. Lines come out of a budget that refills with time; what was left out is counted.

use std::fmt::Arguments;
use std::time::{Duration, Instant};

use log::Level;
use parking_lot::Mutex;

/// Lines that may be logged at once.
const BURST: u32 = 40;
/// The budget grows by one line in this time.
const REFILL: Duration = Duration::from_secs(2);

/// Logs for one port.
#[derive(Debug)]
pub(super) struct Journal {
    port: String,
    budget: Mutex<Budget>,
}

impl Journal {
    pub fn new(port: &str) -> Self {
        Self { port: port.to_owned(), budget: Mutex::new(Budget::new(Instant::now())) }
    }

    /// Logs something that went as it should.
    pub fn info(&self, text: Arguments<'_>) {
        self.line(Level::Info, text);
    }

    /// Logs something that somebody should look after.
    pub fn warn(&self, text: Arguments<'_>) {
        self.line(Level::Warn, text);
    }

    fn line(&self, level: Level, text: Arguments<'_>) {
        // The lock is not held while the line is written.
        let Some(left_out) = self.budget.lock().take(Instant::now()) else {
            return;
        };
        let port = &self.port;
        if left_out > 0 {
            log::warn!(
                "port {port}: {left_out} messages were not logged: too many in a short time"
            );
        }
        log::log!(level, "port {port}: {text}");
    }
}

/// How much may still be logged.
#[derive(Debug)]
struct Budget {
    lines: u32,
    refilled: Instant,
    left_out: u64,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self { lines: BURST, refilled: now, left_out: 0 }
    }

    /// Takes one line. Returns how many were left out before it, or `None` if this one is too.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.refilled).as_secs() / REFILL.as_secs();
        let grown = u32::try_from(passed).unwrap_or(u32::MAX).min(BURST);
        if grown > 0 {
            self.lines = (self.lines + grown).min(BURST);
            self.refilled = now;
        }
        if self.lines == 0 {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        self.lines -= 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_budget_are_counted_and_reported() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let logged = (0..1000).filter(|_| budget.take(start).is_some()).count();
        assert_eq!(logged, BURST as usize);
        assert_eq!(budget.take(start + REFILL), Some(1000 - u64::from(BURST)));
        assert_eq!(budget.take(start + REFILL), None, "one line for each interval");
        let later = start + REFILL * 1_000_000;
        assert_eq!(budget.take(later), Some(1));
        let logged = (0..1000).filter(|_| budget.take(later).is_some()).count();
        assert_eq!(logged, BURST as usize - 1, "the budget has a limit");
    }
}
