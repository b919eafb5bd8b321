//! Who may have a worker's time when more is wanted than there is.
//!
//! A worker visits its sources in turn, a burst each, and bursts differ: 64 short frames take 3
//! microseconds, a frame that must be cut into 1,366 segments takes more than a hundred. Here the
//! time of each visit is charged to the port that it was for, and a port that is ahead of others
//! that have something to do is passed over for a while. All of a port's queues share an account.
//!
//! # Theory of operation
//!
//! Two rules, because two kinds of neighbours suffer.
//!
//! *A port that was left with frames* (a burst has its limits) shows that it wants more. While there
//! is such a port, all ports' times are added up (`used`, from a common start), and nobody may be
//! more than [`LEAD`] ahead of the port among them that had least. So ports that always have frames
//! get equal times, whatever their bursts cost. A port that has nothing more to send holds nobody:
//! no time is lost by this rule.
//!
//! *A port with few frames under way* never leaves any, but each of its frames waits for the long
//! visits of another port. So a visit longer than [`FREE`] is followed by a rest, once its own time
//! for each port that is busy besides. If it wasn't longer than [`LONG`], which bursts of long
//! frames may be, the rest is limited to [`GROWTH`] times what those ports used of the time lately:
//! by this limit, ports that have all they want cost others little, and one that is held down gets
//! more from window to window. Behind a longer one the limit is of the worker's patience.
//!
//! Times are cycles of the time-stamp counter; they are arguments, nothing here reads a clock. With
//! no port waiting and no long visits, a visit costs a look at the account and two additions.
#![expect(clippy::indexing_slicing, reason = "there is an account for each port")]

/// How far ahead of the port with least a port may be: about 10 us.
const LEAD: u64 = 30_000;
/// What a visit may take without a rest: about 10 us. 64 frames of 1518 bytes take 7.
const FREE: u64 = 30_000;
/// No burst of frames that go as they are takes longer, about 30 us: it has 256 KiB at most.
const LONG: u64 = 90_000;
/// The most that is charged for a visit, about 0.5 ms: what lasts longer was interrupted.
const MOST: u64 = 1_500_000;
/// So many times what the busy ports used lately, a port rests for them at most.
const GROWTH: u64 = 2;
/// The use of a port is measured over this time, about 0.5 ms.
const WINDOW: u64 = 1_500_000;
/// Shares of a window are counted in this unit.
const WHOLE: u64 = 1024;
/// A port is busy that had frames so long before, about 50 us.
const BUSY_TIME: u64 = 150_000;

/// What a port had of this worker.
#[derive(Clone, Debug, Default)]
struct Account {
    /// Time since the common start, as long as somebody is waiting.
    used: u64,
    /// How many of its queues were left with frames.
    waiting: u32,
    /// Time in this window.
    recent: u64,
    /// Its share of the last windows.
    share: u64,
    last_work: u64,
    rests_until: u64,
}

/// The accounts of one worker.
#[derive(Debug)]
pub(super) struct Budget {
    /// By port.
    accounts: Vec<Account>,
    /// How many queues of whichever port were left with frames.
    waiting: u32,
    /// The least that a port among those has used; the common start of those that come to it.
    least: u64,
    /// The most that any port has used.
    most: u64,
    window: u64,
}

impl Budget {
    /// Accounts for so many ports.
    pub fn new(ports: usize) -> Self {
        let accounts = vec![Account::default(); ports];
        Self { accounts, waiting: 0, least: 0, most: 0, window: 0 }
    }

    /// Has accounts for so many ports from now on, while none is waiting.
    pub fn resize(&mut self, ports: usize) {
        self.accounts.resize(ports, Account::default());
    }

    /// Begins a round at `now` over sources of these ports.
    #[inline]
    pub fn begin(&mut self, now: u64, ports: impl Iterator<Item = usize>) {
        if now.wrapping_sub(self.window) >= WINDOW {
            self.next_window(now);
        }
        if self.waiting > 0 {
            self.find_least(now, ports);
        }
    }

    /// Whether `port` is to be passed over at `now`.
    #[inline]
    pub fn holds(&self, port: usize, now: u64) -> bool {
        let account = &self.accounts[port];
        account.rests_until > now || self.waiting > 0 && account.used > self.least + LEAD
    }

    /// Charges `port` for a visit that took `cost` and ended at `now`.
    #[inline]
    pub fn charge(&mut self, port: usize, cost: u64, now: u64) {
        let account = &mut self.accounts[port];
        account.recent += cost;
        account.last_work = now;
        if self.waiting > 0 {
            account.used = account.used.max(self.least) + cost.min(MOST);
            self.most = self.most.max(account.used);
        }
        if cost > FREE {
            self.rest(port, cost, now);
        }
    }

    /// One of the queues of `port` was left with frames, or isn't any more.
    pub fn set_waiting(&mut self, port: usize, waits: bool) {
        let account = &mut self.accounts[port];
        if !waits {
            account.waiting -= 1;
            self.waiting -= 1;
            return;
        }
        if self.waiting == 0 {
            // What was used while nobody waited was nobody's loss.
            self.least = self.most;
        }
        account.waiting += 1;
        self.waiting += 1;
    }

    /// Makes `port` rest after a visit that took `cost` and ended at `now`, if others are busy.
    #[cold]
    fn rest(&mut self, port: usize, cost: u64, now: u64) {
        let (begin, cost) = (now.wrapping_sub(cost), cost.min(MOST));
        let (mut count, mut share) = (0, 0);
        for (_, other) in self.accounts.iter().enumerate().filter(|(other, _)| *other != port) {
            let is_recent = begin.saturating_sub(other.last_work) < BUSY_TIME;
            if is_recent {
                (count, share) = (count + 1, share + other.share);
            }
        }
        let times = count * WHOLE;
        let times = if cost > LONG { times } else { times.min(GROWTH * share) };
        let time = cost * times / WHOLE;
        self.accounts[port].rests_until = now + time.min(2 * MOST);
    }

    /// Measures what the ports used of the window that ends `now`.
    #[cold]
    fn next_window(&mut self, now: u64) {
        let time = now.wrapping_sub(self.window);
        self.window = now;
        for account in &mut self.accounts {
            let share = std::mem::take(&mut account.recent) * WHOLE / time;
            account.share = (account.share + share) / 2;
        }
    }

    /// Finds the least that a port among `ports` has used that was left with frames and may have
    /// them taken.
    fn find_least(&mut self, now: u64, ports: impl Iterator<Item = usize>) {
        let accounts = ports.map(|port| &self.accounts[port]);
        let waiting = accounts.filter(|one| one.waiting > 0 && one.rests_until <= now);
        let least = waiting.map(|account| account.used).min();
        // None: they rest, or have gone. That is no reason to hold anybody.
        self.least = self.least.max(least.unwrap_or(self.most));
    }
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
