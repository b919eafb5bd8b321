//! What a worker takes frames from.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::MAX_QUEUE_PAIRS;
use crate::frame::PortId;
use crate::port::Port;

use super::Ports;

/// A transmit ring or a queue of a TAP, as its worker sees it.
#[derive(Debug)]
pub(super) struct Source {
    /// See [`source_id`].
    pub id: u32,
    pub port: Arc<Port>,
    /// The queue pair of a guest, or the queue of a TAP.
    pub queue: usize,
    /// It is polled.
    pub hot: bool,
    /// Its guest may want a call for completed buffers.
    pub owes_call: bool,
    /// The last burst ended for its limits: more frames are waiting.
    pub waits: bool,
    /// The last look at it found nothing.
    pub drained: bool,
    /// When it last had frames, or became hot; ns of the monotonic clock.
    pub last_work: u64,
}

/// What orders and epoll's events call a source: the same as long as its port has its number. No port
/// has more queues than a guest may have pairs: a TAP has one for each worker.
#[inline]
#[must_use]
pub fn source_id(port: PortId, queue: usize) -> u32 {
    u32::from(port.0) * u32::from(MAX_QUEUE_PAIRS) + queue as u32
}

/// The sources of `worker`, in the order of their ids. Those that it had before are as they were.
pub(super) fn sources(ports: &Ports, worker: usize, before: Vec<Source>) -> Vec<Source> {
    let mut before: BTreeMap<_, _> = before.into_iter().map(|source| (source.id, source)).collect();
    let mut sources = Vec::new();
    for port in ports.iter() {
        for queue in
            (0..port.queues()).filter(|queue| ports.worker_of(port, *queue) == Some(worker))
        {
            let id = source_id(port.id, queue);
            let known = before.remove(&id).filter(|known| Arc::ptr_eq(&known.port, port));
            sources.push(known.unwrap_or_else(|| Source {
                id,
                port: Arc::clone(port),
                queue,
                hot: false,
                owes_call: false,
                waits: false,
                drained: true,
                last_work: 0,
            }));
        }
    }
    sources
}
