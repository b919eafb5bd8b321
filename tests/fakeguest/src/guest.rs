//! A guest: a connection, memory and queue pairs, used together.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::features;
use crate::frames::{Frame, HEADER_LEN};
use crate::layout::Layout;
use crate::memory::Memory;
use crate::protocol::Connection;
pub use crate::queue::{Burst, Received, RxQueue, TxQueue};
use crate::ring::Ring;
use crate::setup::{Builder, SetupOrder};

/// How long [`Guest::send`] waits for room in the ring.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// The rings of one queue pair. Ring `2k` of the device is `rx` of pair `k`, `2k + 1` its `tx`.
#[derive(Debug)]
pub struct QueuePair {
    /// The guest receives here.
    pub rx: RxQueue,
    /// The guest sends here.
    pub tx: TxQueue,
}

/// A guest attached to a backend. Dropping it is its sudden death: the socket closes and the
/// memory is unmapped, without a word to the backend.
#[derive(Debug)]
pub struct Guest {
    pub(crate) connection: Connection,
    pub(crate) settings: Builder,
    listener: Option<UnixListener>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) queues: Vec<QueuePair>,
    /// Where the device was said to be when its rings were stopped last; None: never.
    pub(crate) stopped_at: Vec<Option<u32>>,
    pub(crate) offered: u64,
    pub(crate) features: u64,
    pub(crate) protocol_features: u64,
}

impl Drop for Guest {
    fn drop(&mut self) {
        // A process that another thread is just starting may hold a copy of the socket until its
        // exec; a guest that dies holds nothing. Fails if the backend has closed it already.
        let _ = self.connection.stream().shutdown(std::net::Shutdown::Both);
        if self.listener.is_some() {
            // It may have been replaced or removed by the test: nothing to do about that.
            let _ = std::fs::remove_file(&self.settings.path);
        }
    }
}

impl Guest {
    /// Settings for a guest on the socket at `path`.
    pub fn builder(path: impl AsRef<Path>) -> Builder {
        Builder::new(path.as_ref())
    }

    pub(crate) fn assemble(
        settings: Builder,
        connection: Connection,
        listener: Option<UnixListener>,
        memory: Arc<Memory>,
        queues: Vec<QueuePair>,
    ) -> Guest {
        let (offered, features, protocol_features) = (0, 0, 0);
        let stopped_at = vec![None; 2 * queues.len()];
        Guest {
            connection,
            settings,
            listener,
            memory,
            queues,
            stopped_at,
            offered,
            features,
            protocol_features,
        }
    }

    /// Accepts `features`: from here on the rings and headers are in that format.
    pub(crate) fn set_format(&mut self, features: u64) {
        self.features = features;
        let mergeable = features & features::MRG_RXBUF != 0;
        // virtio 1.2, section 5.1.6.1: legacy devices have num_buffers only when they merge.
        let short = !mergeable && features & features::VERSION_1 == 0;
        let header_len = if short { HEADER_LEN - 2 } else { HEADER_LEN };
        for pair in &mut self.queues {
            pair.rx.set_format(mergeable, header_len);
            pair.tx.set_format(header_len);
            pair.rx.ring.set_features(features);
            pair.tx.ring.set_features(features);
        }
    }

    pub(crate) fn first_post(&mut self) {
        if self.settings.posts_automatically() {
            for pair in &mut self.queues {
                pair.rx.post(usize::MAX);
            }
        }
    }

    /// The features that the backend offered.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// The features in use.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The protocol features in use.
    pub fn protocol_features(&self) -> u64 {
        self.protocol_features
    }

    /// The connection, for messages of the test's own.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Guest memory.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Queue pair `queue`.
    pub fn queue(&mut self, queue: usize) -> &mut QueuePair {
        &mut self.queues[queue]
    }

    /// Ring `index` as the device counts them.
    pub fn ring(&self, index: usize) -> &Ring {
        let pair = &self.queues[index / 2];
        if index.is_multiple_of(2) { &pair.rx.ring } else { &pair.tx.ring }
    }

    /// Sends a frame, waiting for room. Panics when the device makes none for 10 s.
    pub fn send(&mut self, queue: usize, frame: &Frame, layout: &Layout) {
        let deadline = Instant::now() + SEND_TIMEOUT;
        while !self.try_send(queue, frame, layout) {
            assert!(Instant::now() < deadline, "no room in TX ring {queue} for {SEND_TIMEOUT:?}");
            self.queues[queue].tx.ring.wait(Duration::from_millis(100));
        }
    }

    /// Sends a frame if there is room for it now.
    pub fn try_send(&mut self, queue: usize, frame: &Frame, layout: &Layout) -> bool {
        let tx = &mut self.queues[queue].tx;
        tx.reclaim();
        let posted = tx.post(frame, layout);
        tx.ring.publish();
        posted
    }

    /// Sends frames in one publication, as many as there is room for; tells how many.
    pub fn send_all(&mut self, queue: usize, frames: &[Frame], layout: &Layout) -> usize {
        let tx = &mut self.queues[queue].tx;
        tx.reclaim();
        let posted = frames.iter().take_while(|frame| tx.post(frame, layout)).count();
        tx.ring.publish();
        posted
    }

    /// Waits until the device has used all that was sent on `queue`; tells whether it did.
    pub fn flush(&mut self, queue: usize, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let tx = &mut self.queues[queue].tx;
        loop {
            tx.reclaim();
            let left = deadline.saturating_duration_since(Instant::now());
            if tx.ring.in_flight() == 0 || left.is_zero() {
                return tx.ring.in_flight() == 0;
            }
            tx.ring.wait(left);
        }
    }

    /// The next frame on `queue`, waiting for it (asleep, with calls asked for) up to `timeout`.
    pub fn recv(&mut self, queue: usize, timeout: Duration) -> Option<Received> {
        let rx = &mut self.queues[queue].rx;
        if rx.ring.ready() == 0 && !rx.ring.wait(timeout) {
            return None;
        }
        rx.recv()
    }

    /// The next frame on any queue, and which; looks at them in turn up to `timeout`.
    pub fn recv_any(&mut self, timeout: Duration) -> Option<(usize, Received)> {
        let deadline = Instant::now() + timeout;
        loop {
            for (queue, pair) in self.queues.iter_mut().enumerate() {
                if let Some(received) = pair.rx.recv() {
                    return Some((queue, received));
                }
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Sends up to `count` of the frames given to [`TxQueue::load`]; tells how many.
    pub fn send_burst(&mut self, queue: usize, count: usize) -> usize {
        self.queues[queue].tx.send_burst(count)
    }

    /// Takes up to `max` frames without reading them.
    pub fn recv_burst(&mut self, queue: usize, max: u64) -> Burst {
        self.queues[queue].rx.recv_burst(max)
    }

    /// Stops all rings in order (GET_VRING_BASE); returns their bases.
    pub fn stop(&mut self) -> io::Result<Vec<u32>> {
        for (ring, stopped_at) in self.stopped_at.iter_mut().enumerate() {
            *stopped_at = Some(self.connection.get_vring_base(ring as u32)?);
        }
        Ok(self.stopped_at.iter().copied().flatten().collect())
    }

    /// Brings the device up again over the same connection after RESET_DEVICE or a device status of
    /// 0, with rings and memory as they are. Where they are is known: the device is at rest.
    pub fn restart(&mut self) -> io::Result<()> {
        self.sync()?;
        self.stopped_at = (0..2 * self.queues.len()).map(|r| Some(self.ring(r).base())).collect();
        self.connection.set_features(self.features)?;
        for index in 0..2 * self.queues.len() {
            let err = self.ring(index).signals().err.as_raw_fd();
            self.connection.set_vring_err(index as u32, Some(err))?;
        }
        self.resume()?;
        if self.features & features::PROTOCOL_FEATURES != 0 {
            self.enable_rings(self.queues.len())?;
        }
        self.sync()
    }

    /// Loses the connection and attaches again with rings and memory as they are: the VMM's view
    /// of a backend that restarts. It doesn't know where a packed ring's device was, and says where
    /// that was stopped last, or that it begins: as QEMU does.
    pub fn reconnect(&mut self) -> io::Result<()> {
        // Both ends must not be busy at once: a backend may serve one frontend only.
        let _ = self.connection.stream().shutdown(std::net::Shutdown::Both);
        self.connection = self.settings.connect(self.listener.as_ref())?;
        match self.settings.order {
            SetupOrder::Qemu => self.bring_up_as_qemu(),
            SetupOrder::CloudHypervisor => self.reinitialise(),
        }
    }

    /// Goes on at another switch, to whose socket at `path` it connects: what a VMM does that
    /// received the guest from another host.
    pub fn move_to(&mut self, path: impl AsRef<Path>) -> io::Result<()> {
        let _ = self.connection.stream().shutdown(std::net::Shutdown::Both);
        path.as_ref().clone_into(&mut self.settings.path);
        self.connection = self.settings.connect(None)?;
        match self.settings.order {
            SetupOrder::Qemu => self.bring_up_as_qemu(),
            SetupOrder::CloudHypervisor => self.restore(),
        }
    }
}
