//! What a worker takes frames from, and which worker takes it.
#![expect(clippy::indexing_slicing, reason = "indices are made with what they index, at start")]

use std::sync::Arc;

use crate::port::{Kind, Port};
use crate::ring::Queues;

/// A transmit ring or a queue of a TAP, as its worker sees it.
#[derive(Debug)]
pub(super) struct Source {
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

/// Which worker takes which source: known to all threads, fixed while the switch runs.
#[derive(Debug)]
pub struct Placement {
    /// By port: the (worker, source index) of each of its queue pairs, or queues of the TAP.
    places: Vec<Vec<(usize, u32)>>,
}

impl Placement {
    /// Spreads the sources of `ports` over `workers`.
    pub fn new(ports: &[Arc<Port>], workers: usize) -> Self {
        let mut next = vec![0u32; workers];
        let mut place = |port: &Port, queue: usize| {
            let worker = port.worker_of(queue);
            let source = next[worker];
            next[worker] += 1;
            (worker, source)
        };
        let places =
            ports.iter().map(|port| (0..queues(port)).map(|queue| place(port, queue)).collect());
        Self { places: places.collect() }
    }

    /// The worker of a source, and the source's index there.
    pub fn of(&self, port: &Port, queue: usize) -> Option<(usize, u32)> {
        self.places.get(port.id.index())?.get(queue).copied()
    }

    /// The sources of a worker, in the order of their indices.
    pub(super) fn sources(&self, ports: &[Arc<Port>], worker: usize) -> Vec<Source> {
        let mut sources: Vec<(u32, Source)> = Vec::new();
        for port in ports {
            for queue in 0..queues(port) {
                if let Some((_, index)) = self.of(port, queue).filter(|(w, _)| *w == worker) {
                    let port = Arc::clone(port);
                    sources.push((
                        index,
                        Source {
                            port,
                            queue,
                            hot: false,
                            owes_call: false,
                            waits: false,
                            drained: true,
                            last_work: 0,
                        },
                    ));
                }
            }
        }
        sources.sort_by_key(|(index, _)| *index);
        sources.into_iter().map(|(_, source)| source).collect()
    }
}

fn queues(port: &Port) -> usize {
    match &port.kind {
        Kind::Vhost(vhost) => Queues::len(vhost.queues()) / 2,
        Kind::Tap(tap) => tap.queues(),
    }
}
