//! Where workers wait while control needs all of them out of the way.

use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::{Mailbox, Order};

/// A gate in the workers' way. Open, it costs nothing: a worker is told to look at it.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    /// Workers that wait here.
    waiting: usize,
}

impl Gate {
    /// Closes the gate for workers that aren't started yet.
    pub fn shut(&self) {
        self.state.lock().closed = true;
    }

    /// Closes the gate, and returns when all workers wait at it or at `deadline`. Tells whether they
    /// do: no frame is under way then.
    pub fn close<'a>(
        &self,
        mailboxes: impl ExactSizeIterator<Item = &'a Mailbox>,
        deadline: Instant,
    ) -> bool {
        let workers = mailboxes.len();
        let mut state = self.state.lock();
        state.closed = true;
        mailboxes.for_each(|mailbox| mailbox.send(Order::Pause));
        while state.waiting < workers {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return state.waiting >= workers;
            }
        }
        true
    }

    /// Lets the workers go on.
    pub fn open(&self) {
        self.state.lock().closed = false;
        self.changed.notify_all();
    }

    /// Waits while the gate is closed. For workers, without any lock.
    pub(super) fn pass(&self) {
        let mut state = self.state.lock();
        state.waiting += 1;
        self.changed.notify_all();
        while state.closed {
            self.changed.wait(&mut state);
        }
        state.waiting -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;

    /// Threads that count as long as they may, and obey.
    #[test]
    fn nobody_passes_while_it_is_closed() {
        let gate = Gate::default();
        let boxes = [Mailbox::new().unwrap(), Mailbox::new().unwrap()];
        let (counts, end) = ([const { AtomicU64::new(0) }; 2], AtomicU64::new(0));
        let sum = || counts.iter().map(|count| count.load(Ordering::SeqCst)).sum::<u64>();
        std::thread::scope(|scope| {
            for (mailbox, count) in boxes.iter().zip(&counts) {
                scope.spawn(|| {
                    while end.load(Ordering::SeqCst) == 0 {
                        count.fetch_add(1, Ordering::SeqCst);
                        if mailbox.take().is_some_and(|orders| orders == [Order::Pause]) {
                            gate.pass();
                        }
                    }
                });
            }
            for _ in 0..20 {
                assert!(gate.close(boxes.iter(), Instant::now() + Duration::from_secs(60)));
                let before = sum();
                std::thread::sleep(Duration::from_millis(2));
                assert_eq!(sum(), before);
                gate.open();
                while sum() == before {}
            }
            end.store(1, Ordering::SeqCst);
        });
    }

    #[test]
    fn workers_that_do_not_come_are_not_waited_for() {
        let (gate, mailbox) = (Gate::default(), Mailbox::new().unwrap());
        assert!(!gate.close([&mailbox].into_iter(), Instant::now() + Duration::from_millis(10)));
        gate.open();
    }
}
