//! The rings of a port, and what the workers are told of them.

use std::ops::{Deref, DerefMut};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::{Fill, Gauge, Ring};

/// A ring in its own cache lines: workers on other cores write to its neighbours.
#[repr(align(128))]
#[derive(Debug)]
struct Cell {
    ring: Mutex<Ring>,
    gauge: Arc<Gauge>,
}

impl Default for Cell {
    fn default() -> Self {
        let ring = Ring::default();
        Self { gauge: Arc::clone(ring.gauge()), ring: Mutex::new(ring) }
    }
}

/// All rings of a port. Ring 2k is `guest_rx` k (the guest receives), ring 2k + 1 is `guest_tx` k.
#[derive(Debug)]
pub struct Queues {
    cells: Box<[Cell]>,
    /// Control holds or wants all locks.
    changing: AtomicBool,
}

/// All rings of a port, locked.
#[derive(Debug)]
pub struct Locked<'q> {
    rings: Vec<MutexGuard<'q, Ring>>,
    changing: &'q AtomicBool,
}

impl<'q> Deref for Locked<'q> {
    type Target = [MutexGuard<'q, Ring>];

    fn deref(&self) -> &Self::Target {
        &self.rings
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.rings
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.rings.clear();
        self.changing.store(false, Ordering::Relaxed);
    }
}

impl Queues {
    /// The rings of `pairs` queue pairs.
    pub fn new(pairs: u16) -> Self {
        let cells = (0..usize::from(pairs) * 2).map(|_| Cell::default()).collect();
        Self { cells, changing: AtomicBool::new(false) }
    }

    /// How many rings there are: two for each pair.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// Locks every ring of the port; the guards come in the order of the rings. For control:
    /// while they live, no worker is inside of the guest's memory.
    ///
    /// The transmit rings are locked first: a worker that holds one of them may be waiting for
    /// another port's receive ring, so nobody may wait for a transmit ring with a receive ring
    /// in hand.
    pub fn lock_all(&self) -> Locked<'_> {
        self.changing.store(true, Ordering::Relaxed);
        let transmit: Vec<_> =
            self.cells.iter().skip(1).step_by(2).map(|c| c.ring.lock()).collect();
        let receive = self.cells.iter().step_by(2).map(|c| c.ring.lock());
        let rings = receive.zip(transmit).flat_map(<[_; 2]>::from).collect();
        Locked { rings, changing: &self.changing }
    }

    /// Whether control has the rings, or waits for them: a worker that waits, waits for it.
    pub fn is_changing(&self) -> bool {
        self.changing.load(Ordering::Relaxed)
    }

    /// The lock of one ring. For workers: try it, or wait with a bound.
    #[inline]
    pub fn ring(&self, index: usize) -> Option<&Mutex<Ring>> {
        self.cells.get(index).map(|cell| &cell.ring)
    }

    /// How many buffers a `guest_rx` ring had behind the last burst, if it runs. Takes no lock.
    pub fn fill(&self, index: usize) -> Option<Fill> {
        self.cells.get(index).and_then(|cell| cell.gauge.read())
    }
}

/// What a frontend's messages mean for a port as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    /// A frontend is connected.
    pub connected: bool,
    /// Negotiated virtio features.
    pub features: u64,
    /// One bit for each queue pair whose `guest_rx` ring is enabled.
    pub receive_pairs: u64,
}

/// How the protocol side tells the data path of changes. Called without any ring's lock.
pub trait QueueEvents: Send + Sync {
    /// The kick descriptor of `ring` changed: watch this one, or none any more.
    fn kick(&self, ring: usize, kick: Option<BorrowedFd<'_>>);
    /// Look at this ring: it may have buffers that nobody will kick for.
    fn changed(&self, ring: usize);
    /// A frontend came or went, or features or enabled queues changed.
    fn link(&self, state: &LinkState);
    /// The frontend asks to announce this address after a migration (SEND_RARP).
    fn announce(&self, mac: [u8; 6]);
}
