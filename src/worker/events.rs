//! What the protocol side of a port tells the workers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::port::{Kind, Port};
use crate::ring::{LinkState, QueueEvents};
use crate::sys::allowance::Allowance;
use crate::sys::clock;
use crate::sys::poller::Trigger;

use super::{Order, Shared, source_id};

/// What an announcement takes from a port's allowance, ns: ten a second for good ...
const ANNOUNCEMENT: u64 = 100_000_000;
/// ... and sixteen at once. QEMU makes five for a guest that moved.
const ANNOUNCEMENTS: u64 = 16 * ANNOUNCEMENT;

/// A kick descriptor, and the worker that watches it.
#[derive(Debug)]
struct Kick {
    descriptor: OwnedFd,
    worker: usize,
}

/// Translates the changes of one port's rings into registrations and orders.
#[derive(Debug)]
pub struct PortEvents {
    shared: Arc<Shared>,
    port: Arc<Port>,
    /// The registered kick descriptor of each pair: our own duplicates, because an epoll
    /// registration outlives the descriptor while the frontend holds the same open file.
    kicks: Mutex<Vec<Option<Kick>>>,
    /// A kick descriptor couldn't be watched, and it was said: a frontend could repeat it.
    complained: AtomicBool,
    /// For announcements: each goes to all ports.
    announcements: Allowance,
}

impl PortEvents {
    /// The events of `port`.
    pub fn new(shared: Arc<Shared>, port: Arc<Port>) -> Self {
        Self {
            shared,
            port,
            kicks: Mutex::default(),
            complained: AtomicBool::new(false),
            announcements: Allowance::new(ANNOUNCEMENTS, 1),
        }
    }

    /// The pair of a `guest_tx` ring, and who takes its frames.
    fn place(&self, ring: usize) -> Option<(usize, usize, u32)> {
        // Nobody waits for receive buffers: kicks of `guest_rx` rings are of no interest.
        let pair = (ring % 2 == 1).then_some(ring / 2)?;
        Some((pair, self.worker_of(pair), source_id(self.port.id, pair)))
    }

    fn worker_of(&self, pair: usize) -> usize {
        self.port.worker_of(pair, self.shared.workers())
    }

    /// Has the workers that there are now watch what others watched. No worker serves those sources
    /// meanwhile.
    pub fn move_kicks(&self) {
        for (pair, slot) in self.kicks.lock().iter_mut().enumerate() {
            let worker = self.worker_of(pair);
            if let Some(kick) = slot.take_if(|kick| kick.worker != worker) {
                self.forget(&kick);
                *slot = self.watch(pair, kick.descriptor);
            }
        }
    }

    /// Has nobody watch it any more.
    fn forget(&self, kick: &Kick) {
        if let Some(mailbox) = self.shared.mailboxes.get(kick.worker) {
            // Not in any more: the goal is reached.
            let _ = mailbox.poller.remove(kick.descriptor.as_fd());
        }
    }

    /// Has the pair's worker watch it.
    fn watch(&self, pair: usize, descriptor: OwnedFd) -> Option<Kick> {
        let worker = self.worker_of(pair);
        let mailbox = self.shared.mailboxes.get(worker)?;
        let source = u64::from(source_id(self.port.id, pair));
        match mailbox.poller.add(descriptor.as_fd(), source, Trigger::Edge) {
            Ok(()) => return Some(Kick { descriptor, worker }),
            Err(error) => self.complain(pair, &error),
        }
        None
    }

    fn complain(&self, pair: usize, error: &std::io::Error) {
        if !self.complained.swap(true, Ordering::Relaxed) {
            log::error!(
                port = self.port.name.as_str();
                "queue pair {pair}: cannot watch its kick descriptor, so its frames wait: {error}; \
                 raise the limit of open files (ulimit -n) and restart the guest"
            );
        }
    }
}

impl QueueEvents for PortEvents {
    fn kick(&self, ring: usize, kick: Option<BorrowedFd<'_>>) {
        let Some((pair, ..)) = self.place(ring) else {
            return;
        };
        let mut kicks = self.kicks.lock();
        if kicks.len() <= pair {
            kicks.resize_with(pair + 1, || None);
        }
        let Some(slot) = kicks.get_mut(pair) else {
            return;
        };
        if let Some(old) = slot.take() {
            self.forget(&old);
        }
        let Some(kick) = kick else { return };
        match kick.try_clone_to_owned() {
            Ok(descriptor) => *slot = self.watch(pair, descriptor),
            Err(error) => self.complain(pair, &error),
        }
    }

    fn changed(&self, ring: usize) {
        if let Some((_, worker, source)) = self.place(ring)
            && let Some(mailbox) = self.shared.mailboxes.get(worker)
        {
            mailbox.send(Order::Look { source });
        }
    }

    fn link(&self, state: &LinkState) {
        if let Kind::Vhost(vhost) = &self.port.kind {
            vhost.set_link(state);
        }
        if !state.connected {
            // As a bridge does when a link goes down: its stations may appear elsewhere.
            self.shared.macs.flush(Some(self.port.id.0));
        }
    }

    fn announce(&self, mac: [u8; 6]) {
        let now = clock::now_ns();
        if self.announcements.left(now) < ANNOUNCEMENT {
            let port = self.port.name.as_str();
            log::debug!(port; "too many announcements: one left out");
            return;
        }
        self.announcements.spend(now, ANNOUNCEMENT);
        if let Some(mailbox) = self.shared.mailboxes.first() {
            mailbox.send(Order::Announce { port: self.port.id, mac });
        }
    }
}
