//! How control talks to a worker: orders that the worker takes between bursts.

use crate::frame::PortId;
use crate::sys::poller::{Poller, Waker};
use crate::sys::sync::{AtomicBool, Mutex, Ordering};

/// What a worker is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Look at a source.
    Look {
        /// The source, see [`source_id`](super::source_id).
        source: u32,
    },
    /// Announce that the station `mac` is at `port` now (vhost-user SEND_RARP).
    Announce {
        /// The port.
        port: PortId,
        /// The station.
        mac: [u8; 6],
    },
    /// Wait at the [`Gate`](super::Gate) while it is closed.
    Pause,
    /// Serve the captures that there are now.
    Watch,
    /// Go over to the ports that there are now.
    Ports,
    /// End: there are fewer workers now.
    End,
    /// Never sleep; or sleep again when there is nothing to do.
    Poll(bool),
}

impl Order {
    fn is_replaced_by(&self, newer: &Self) -> bool {
        match (self, newer) {
            (Self::Look { source: a }, Self::Look { source: b }) => a == b,
            (Self::Announce { port: a, .. }, Self::Announce { port: b, .. }) => a == b,
            (Self::Pause, Self::Pause)
            | (Self::Watch, Self::Watch)
            | (Self::Ports, Self::Ports)
            | (Self::End, Self::End)
            | (Self::Poll(_), Self::Poll(_)) => true,
            _ => false,
        }
    }
}

/// Orders that wait for a worker, and its epoll instance.
#[derive(Debug)]
pub struct Mailbox {
    /// Where the worker sleeps; control adds and removes kick descriptors.
    pub poller: Poller,
    waker: Waker,
    orders: Mutex<Vec<Order>>,
    /// Whether there are orders: the worker reads it in each round.
    pending: AtomicBool,
}

impl Mailbox {
    /// The token of the waker's events.
    pub const WAKE: u64 = u64::MAX;

    /// An empty mailbox.
    ///
    /// # Errors
    ///
    /// When no epoll instance or eventfd can be had.
    pub fn new() -> std::io::Result<Self> {
        let poller = Poller::new()?;
        let waker = Waker::new(&poller, Self::WAKE)?;
        Ok(Self { poller, waker, orders: Mutex::default(), pending: AtomicBool::new(false) })
    }

    /// Leaves an order and wakes the worker. There is at most one order to look at each source,
    /// and one announcement of each port, the last one: the box can't grow beyond that.
    pub fn send(&self, order: Order) {
        let mut orders = self.orders.lock();
        match orders.iter_mut().find(|waiting| waiting.is_replaced_by(&order)) {
            Some(waiting) => *waiting = order,
            None => orders.push(order),
        }
        self.pending.store(true, Ordering::Release);
        drop(orders);
        self.wake();
    }

    /// Ends the worker's sleep.
    pub fn wake(&self) {
        self.waker.wake();
    }

    /// Takes the orders, if there are any.
    #[inline]
    pub fn take(&self) -> Option<Vec<Order>> {
        if !self.pending.load(Ordering::Relaxed) {
            return None;
        }
        // Busy: control is leaving one just now, and wakes us when it has.
        let mut orders = self.orders.try_lock()?;
        self.pending.store(false, Ordering::Relaxed);
        Some(std::mem::take(&mut orders))
    }
}
