//! Guests that are too slow, in words: which ones, how much they lost, at which queues.

use std::fmt;

use ringswitch::api::{Port, Queue};
use ringswitch::frame::DropReason;

use super::numbers::{scaled, whole};

/// What can be done about it, for all of them.
pub const ADVICE: &str = "Give it larger rings, more queue pairs, or more CPU time.";
/// So many queues of a guest are named.
const NAMED: usize = 3;

/// A guest that lost frames because its receive ring had no buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct Slow {
    /// The name of its port.
    pub port: String,
    /// The frames that it lost, and in how many seconds; None: since the process began.
    frames: u64,
    secs: Option<f64>,
    /// The queues where that was, those with most first.
    queues: Vec<Queue>,
}

/// The guests that are too slow, those that lost most first. With what was seen so many seconds
/// before, only what came since counts.
pub fn guests(now: &[Port], before: Option<(&[Port], f64)>) -> Vec<Slow> {
    let of = |port: &Port| {
        let then = before.and_then(|(then, _)| then.iter().find(|then| then.name == port.name));
        let gained = |now: u64, then: Option<u64>| now.saturating_sub(then.unwrap_or_default());
        let frames = gained(full(&port.drops), then.map(|then| full(&then.drops)));
        let at = |queue: &Queue| {
            let then = then?.egress_queues.iter().find(|then| then.queue == queue.queue)?;
            Some(full(&then.drops))
        };
        let queues = port.egress_queues.iter();
        let mut queues: Vec<_> =
            queues.map(|queue| (gained(full(&queue.drops), at(queue)), queue)).collect();
        queues.retain(|(lost, _)| *lost > 0);
        queues.sort_by_key(|(lost, _)| std::cmp::Reverse(*lost));
        (frames > 0).then(|| Slow {
            port: port.name.clone(),
            frames,
            secs: before.map(|(_, secs)| secs),
            queues: queues.into_iter().map(|(_, queue)| queue.clone()).collect(),
        })
    };
    let mut all: Vec<_> = now.iter().filter_map(of).collect();
    all.sort_by_key(|slow| std::cmp::Reverse(slow.frames));
    all
}

/// How many of these drops are of full rings.
fn full(drops: &std::collections::BTreeMap<String, u64>) -> u64 {
    drops.get(DropReason::RxRingFull.name()).copied().unwrap_or_default()
}

/// How many buffers a queue has, in words.
fn buffers(queue: &Queue) -> String {
    let number = queue.queue;
    let Some(ring) = &queue.ring else { return format!("queue {number} isn't in use now") };
    match ring.buffers {
        Some(0) => format!("queue {number} has no buffers"),
        _ => format!("queue {number} has buffers for {} of {}", ring.free(), ring.entries),
    }
}

impl fmt::Display for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { port, frames, secs, queues } = self;
        let empty = |queue: &Queue| queue.ring.as_ref().is_some_and(|ring| ring.buffers == Some(0));
        match secs {
            Some(secs) => {
                let rate = scaled(*frames as f64 / secs);
                write!(f, "{port} is too slow: its receive ring was full for {rate} frames/s")?;
            }
            None => {
                let verb = if queues.iter().any(empty) { "is" } else { "was" };
                let frames = whole(*frames);
                write!(f, "{port} {verb} too slow: its receive ring was full for {frames} frames")?;
            }
        }
        for (index, queue) in queues.iter().take(NAMED).enumerate() {
            write!(f, "{} {}", if index == 0 { ";" } else { "," }, buffers(queue))?;
        }
        let others = queues.len().saturating_sub(NAMED);
        if others > 0 { write!(f, ", and {others} more") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ringswitch::api::{PortKind, ReceiveRing, RingFormat};

    use super::*;

    fn queue(queue: u32, full: u64, buffers: Option<u32>) -> Queue {
        let ring = ReceiveRing { format: RingFormat::Split, entries: 256, buffers };
        let drops = BTreeMap::from([("rx_ring_full".to_owned(), full)]);
        Queue { queue, frames: 10, drops, ring: Some(ring) }
    }

    fn port(name: &str, queues: Vec<Queue>) -> Port {
        let full = queues.iter().map(|queue| full(&queue.drops)).sum();
        Port {
            name: name.to_owned(),
            kind: PortKind::VhostUser,
            place: String::new(),
            uplink: false,
            up: true,
            queues: 1,
            addresses: 0,
            counters: BTreeMap::new(),
            drops: BTreeMap::from([("rx_ring_full".to_owned(), full)]),
            egress_queues: queues,
        }
    }

    fn said(now: &[Port], before: Option<(&[Port], f64)>) -> Vec<String> {
        guests(now, before).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn who_lost_most_comes_first_with_its_queues() {
        let quick = port("quick", vec![queue(0, 0, Some(256))]);
        let was = port("was", vec![queue(0, 5, Some(200)), queue(1, 7, None)]);
        let is =
            port("is", vec![queue(0, 1, Some(9)), queue(1, 0, Some(3)), queue(2, 1999, Some(0))]);
        assert_eq!(
            said(&[quick, was, is], None),
            [
                "is is too slow: its receive ring was full for 2,000 frames; queue 2 has no \
                 buffers, queue 0 has buffers for 9 of 256",
                "was was too slow: its receive ring was full for 12 frames; queue 1 has buffers \
                 for - of 256, queue 0 has buffers for 200 of 256",
            ]
        );
    }

    #[test]
    fn what_was_lost_before_does_not_count() {
        let then = [port("a", vec![queue(0, 50, Some(0))]), port("b", vec![queue(0, 9, Some(0))])];
        let now = [port("a", vec![queue(0, 250, Some(0))]), port("b", vec![queue(0, 9, Some(0))])];
        assert_eq!(
            said(&now, Some((&then, 2.0))),
            ["a is too slow: its receive ring was full for 100 frames/s; queue 0 has no buffers"]
        );
    }

    #[test]
    fn of_many_queues_some_are_named() {
        let many = (0..6).map(|number| queue(number, 10, Some(0))).collect();
        let said = said(&[port("a", many)], None);
        assert!(said[0].ends_with("queue 2 has no buffers, and 3 more"), "{said:?}");
        let mut stopped = port("a", vec![queue(0, 1, None)]);
        stopped.egress_queues[0].ring = None;
        assert!(guests(&[stopped], None)[0].to_string().ends_with("queue 0 isn't in use now"));
    }
}
