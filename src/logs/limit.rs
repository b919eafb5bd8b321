//! How much may be logged: bounded, whatever guests, VMMs and clients do.
//!
//! Who breaks a rule in each message, or connects again and again, must not fill the host's log, nor
//! make others' lines disappear. So each place in the program has a budget of its own, for each port
//! apart, that refills with time; lines that were left out are counted.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// Lines that may be logged at once.
const BURST: u32 = 40;
/// The budget grows by one line in this time.
const REFILL: Duration = Duration::from_secs(2);

/// Where a line comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// The module's path.
    pub module: &'static str,
    /// The line in its source.
    pub line: u32,
    /// The port that it is about.
    pub port: Option<String>,
}

/// The budgets of all places that logged lately.
#[derive(Debug)]
pub(super) struct Limits(BTreeMap<Place, Budget>);

impl Limits {
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Takes one line. Returns how many were left out before it, or `None` if this one is too.
    pub fn take(&mut self, place: Place, now: Instant) -> Option<u64> {
        self.0.entry(place).or_insert_with(|| Budget::new(now)).take(now)
    }

    /// Takes a line for each place where some were left out and one is possible again; returns how
    /// many they were. Forgets places that are as new.
    pub fn sweep(&mut self, now: Instant) -> Vec<(Place, u64)> {
        let waiting = self.0.iter_mut().filter(|(_, budget)| budget.left_out > 0);
        let told: Vec<_> = waiting
            .filter_map(|(place, budget)| Some((place.clone(), budget.take(now)?)))
            .collect();
        self.0.retain(|_, budget| !budget.is_full(now));
        told
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

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.refilled).as_secs() / REFILL.as_secs();
        let grown = u32::try_from(passed).unwrap_or(u32::MAX).min(BURST);
        if grown > 0 {
            self.lines = (self.lines + grown).min(BURST);
            self.refilled = now;
        }
    }

    fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.lines == BURST && self.left_out == 0
    }

    fn take(&mut self, now: Instant) -> Option<u64> {
        self.refill(now);
        if self.lines == 0 {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        self.lines -= 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

/// What is said of lines that were left out.
pub(super) struct LeftOut(pub u64);

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} messages were not logged: too many in a short time", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(line: u32, port: Option<&str>) -> Place {
        Place { module: "here", line, port: port.map(str::to_owned) }
    }

    /// Lines of `place` that are logged, of so many at once.
    fn logged(limits: &mut Limits, place: &Place, count: usize, now: Instant) -> usize {
        (0..count).filter(|_| limits.take(place.clone(), now).is_some()).count()
    }

    #[test]
    fn lines_beyond_the_budget_are_counted_and_reported() {
        let start = Instant::now();
        let mut limits = Limits::new();
        let here = place(1, None);
        assert_eq!(logged(&mut limits, &here, 1000, start), BURST as usize);
        let next = start + REFILL;
        assert_eq!(limits.take(here.clone(), next), Some(1000 - u64::from(BURST)));
        assert_eq!(limits.take(here.clone(), next), None, "one line for each interval");
        let later = start + REFILL * 1_000_000;
        assert_eq!(limits.take(here.clone(), later), Some(1));
        let rest = logged(&mut limits, &here, 1000, later);
        assert_eq!(rest, BURST as usize - 1, "the budget has a limit");
    }

    #[test]
    fn a_flood_takes_nothing_from_others() {
        let now = Instant::now();
        let mut limits = Limits::new();
        assert!(logged(&mut limits, &place(1, Some("a")), 1000, now) < 1000);
        for other in [place(1, Some("b")), place(1, None), place(2, Some("a"))] {
            assert_eq!(limits.take(other, now), Some(0));
        }
    }

    #[test]
    fn what_was_left_out_is_told_when_nothing_follows_and_then_forgotten() {
        let start = Instant::now();
        let mut limits = Limits::new();
        let (loud, quiet) = (place(1, Some("a")), place(2, None));
        logged(&mut limits, &loud, 50, start);
        limits.take(quiet, start);
        assert_eq!(limits.sweep(start), [], "no line is possible yet");
        assert_eq!(limits.0.len(), 2);
        assert_eq!(limits.sweep(start + REFILL), [(loud, 50 - u64::from(BURST) + 1)]);
        assert_eq!(limits.0.len(), 1, "one line of the quiet place is made up for");
        assert_eq!(limits.sweep(start + REFILL * (BURST + 2)), []);
        assert_eq!(limits.0.len(), 0);
    }
}
