//! How control talks to a worker: orders that the worker takes between bursts.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::frame::PortId;
use crate::sys::poller::{Poller, Waker};

/// What a worker is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Look at a source.
    Look {
        /// Index of the source, of this worker.
        source: u32,
    },
    /// Announce that the station `mac` is at `port` now (vhost-user SEND_RARP).
    Announce {
        /// The port.
        port: PortId,
        /// The station.
        mac: [u8; 6],
    },
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

    /// Leaves an order and wakes the worker. An order that waits already isn't left twice, so
    /// the box can't grow beyond the sources and ports there are.
    pub fn send(&self, order: Order) {
        let mut orders = self.orders.lock();
        if !orders.contains(&order) && orders.len() < 65_536 {
            orders.push(order);
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
        let mut orders = self.orders.lock();
        self.pending.store(false, Ordering::Relaxed);
        Some(std::mem::take(&mut orders))
    }
}
