//! Several queue pairs and several workers: flows keep their order, nothing is lost uncounted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fakeguest::frames::{Flow, mac, payload};
use fakeguest::{Frame, Guest, Layout};

use crate::support::lan::{PATIENCE, arrived_on, attach_with, bytes_arrived, guest, send};
use crate::support::over_both_formats;
use crate::support::switch::Switch;

over_both_formats! {
    flows_keep_to_one_queue_and_use_them_all
    queues_that_the_driver_does_not_use_are_left_alone
    disabled_transmit_queues_are_drained_while_others_run
    changing_the_number_of_queues_under_traffic_loses_nothing_uncounted
    one_worker_keeps_order_and_count
    two_workers_keep_order_and_count
    three_workers_keep_order_and_count
}

/// Frame `sequence` of flow `number`: a UDP datagram that says so, of some length.
fn datagram(from: u8, to: u8, number: u16, sequence: u32) -> Frame {
    let mut text = Vec::from(number.to_be_bytes());
    text.extend_from_slice(&sequence.to_be_bytes());
    text.resize(20 + (sequence as usize * 37 + usize::from(number)) % 1400, number as u8);
    Flow { ports: (1000 + number, 2000), ..Flow::v4(from, to) }.udp(&text)
}

/// What arrived of many flows.
#[derive(Default)]
struct Flows {
    /// By source and flow: the next sequence number that may come.
    next: BTreeMap<(u8, u16), u32>,
    /// By source and flow: the queues it came by.
    queues: BTreeMap<(u8, u16), Vec<usize>>,
    frames: u64,
}

impl Flows {
    /// Takes a frame in: it must be whole, not older than the one before it, and not twice.
    fn take(&mut self, queue: usize, bytes: &[u8], to: u8) {
        let (from, text) = (bytes[11], payload(bytes).expect("a datagram"));
        let number = u16::from_be_bytes([text[0], text[1]]);
        let sequence = u32::from_be_bytes([text[2], text[3], text[4], text[5]]);
        assert!(bytes == datagram(from, to, number, sequence).bytes, "a frame with other bytes");
        let next = self.next.entry((from, number)).or_default();
        assert!(sequence >= *next, "flow {number} of {from}: {sequence} came behind {next}");
        *next = sequence + 1;
        let queues = self.queues.entry((from, number)).or_default();
        if !queues.contains(&queue) {
            queues.push(queue);
        }
        self.frames += 1;
    }

    /// Takes in what is in the receive rings.
    fn take_from(&mut self, guest: &mut Guest, queues: usize, to: u8) -> usize {
        let mut count = 0;
        for queue in 0..queues {
            for received in arrived_on(guest, queue) {
                self.take(queue, &received.bytes, to);
                count += 1;
            }
        }
        count
    }
}

/// Two guests, known to each other, with so many queue pairs.
fn two(switch: &Switch, format: u64, pairs: usize) -> (Guest, Guest) {
    let guest = |port| guest(switch, port).with(format).queue_pairs(pairs).tx_slot(2048);
    let mut a = guest("a").attach().expect("a sender");
    let mut b = guest("b").attach().expect("a receiver");
    send(&mut b, &[Frame::pattern(mac(1), mac(2), 60, 0)]);
    let greeted: usize = (0..pairs).map(|queue| arrived_on(&mut a, queue).len()).sum();
    assert_eq!(greeted, 1);
    (a, b)
}

fn flows_keep_to_one_queue_and_use_them_all(format: u64) {
    let mut switch = Switch::builder().port("a").port("b").start();
    let (mut a, mut b) = two(&switch, format, 4);
    let mut flows = Flows::default();
    for sequence in 0..50 {
        // A flow is sent on one queue as well, or its order would be lost before the switch.
        for number in 0..40 {
            let queue = usize::from(number % 4);
            a.send(queue, &datagram(1, 2, number, sequence), &Layout::whole());
        }
        (0..4).for_each(|queue| assert!(a.flush(queue, PATIENCE)));
        flows.take_from(&mut b, 4, 2);
    }
    assert_eq!(flows.frames, 2000);
    assert!(flows.queues.values().all(|queues| queues.len() == 1), "{:?}", flows.queues);
    let mut used: Vec<_> = flows.queues.values().flatten().collect();
    used.sort();
    used.dedup();
    assert_eq!(used, [&0, &1, &2, &3]);
    let statistics = switch.statistics();
    statistics.assert_balanced();
    assert_eq!(statistics.dropped(), 0);
    switch.stop();
}

fn queues_that_the_driver_does_not_use_are_left_alone(format: u64) {
    // As Cloud Hypervisor does it: all pairs are enabled, the driver has buffers in one.
    let mut switch = Switch::builder().port("a").port("b").start();
    let mut a = attach_with(&switch, "a", format);
    let mut b = guest(&switch, "b")
        .with(format)
        .queue_pairs(4)
        .manual_posting()
        .attach()
        .expect("a receiver");
    b.queue(0).rx.post(usize::MAX);
    let mut flows = Flows::default();
    for number in 0..40 {
        send(&mut a, &[datagram(1, 2, number, 0)]);
        assert_eq!(flows.take_from(&mut b, 4, 2), 1);
        b.queue(0).rx.post(usize::MAX);
    }
    assert!(flows.queues.values().all(|queues| *queues == [0]));
    // The driver begins to use the others.
    (1..4).for_each(|queue| assert!(b.queue(queue).rx.post(usize::MAX) > 0));
    for number in 0..40 {
        send(&mut a, &[datagram(1, 2, number, 1)]);
    }
    assert_eq!(flows.take_from(&mut b, 4, 2), 40);
    let spread = flows.queues.values().filter(|queues| **queues != [0]).count();
    assert!(spread > 10, "{spread} flows on other queues: {:?}", flows.queues);
    assert_eq!(switch.statistics().dropped(), 0);
    switch.stop();
}

fn disabled_transmit_queues_are_drained_while_others_run(format: u64) {
    // What a guest posted just before `ethtool -L` took the queue away: as long as the ring has
    // it, Linux doesn't send that TCP segment again.
    let mut switch = Switch::builder().port("a").port("b").start();
    let (mut a, mut b) = two(&switch, format, 4);
    let frames: Vec<Frame> = (0..4).map(|queue| datagram(1, 2, queue, 0)).collect();
    a.enable_rings(0).and_then(|()| a.sync()).expect("no pair");
    for queue in [3, 2, 1, 0] {
        assert!(a.try_send(queue, &frames[queue], &Layout::whole()));
        a.ring(2 * queue + 1).kick_now();
    }
    // The worker has looked at kicks that came before this frame.
    send(&mut b, &[datagram(2, 1, 0, 0)]);
    (0..4).for_each(|queue| assert_eq!(a.ring(2 * queue + 1).in_flight(), 1, "all are disabled"));
    // What waits is found without another kick.
    a.enable_rings(1).and_then(|()| a.sync()).expect("one pair");
    (0..4).for_each(|queue| assert!(a.flush(queue, PATIENCE)));
    let mut flows = Flows::default();
    assert_eq!(flows.take_from(&mut b, 4, 2), 4);
    // And what is posted in a disabled ring afterwards is found by its kick.
    for queue in [3, 2, 1] {
        a.send(queue, &datagram(1, 2, queue as u16, 1), &Layout::whole());
        assert!(a.flush(queue, PATIENCE));
    }
    assert_eq!(flows.take_from(&mut b, 4, 2), 3);
    let statistics = switch.statistics();
    let only = statistics.port("b", "drop_no_destination");
    assert_eq!((statistics.dropped(), only), (1, 1), "the frame to a while it was disabled");
    switch.stop();
}

/// Sends the flows of one guest to another in turn, whatever becomes of them; returns how many
/// frames that were.
fn send_flows(guest: &mut Guest, (from, to): (u8, u8), pairs: u16, rounds: u32) -> u64 {
    let mut sent = 0;
    for sequence in 0..rounds {
        for number in 0..12 {
            let queue = usize::from(number % pairs);
            guest.send(queue, &datagram(from, to, number, sequence), &Layout::whole());
            sent += 1;
        }
    }
    (0..usize::from(pairs)).for_each(|queue| assert!(guest.flush(queue, PATIENCE)));
    sent
}

fn changing_the_number_of_queues_under_traffic_loses_nothing_uncounted(format: u64) {
    let mut switch = Switch::builder().port("a").port("b").args(&["--workers", "2"]).start();
    let (mut a, mut b) = two(&switch, format, 4);
    let done = AtomicBool::new(false);
    let mut received = 0;
    let sent = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let sent = send_flows(&mut a, (1, 2), 4, 500);
            done.store(true, Ordering::Release);
            sent
        });
        // Sequence numbers of a flow that changes queues may overtake each other: bytes and
        // number are what must be right.
        let mut take = |b: &mut Guest| {
            for queue in 0..4 {
                for frame in arrived_on(b, queue) {
                    Flows::default().take(queue, &frame.bytes, 2);
                    received += 1;
                }
            }
        };
        for pairs in [1, 3, 4, 2, 0, 4].into_iter().cycle() {
            b.enable_rings(pairs).and_then(|()| b.sync()).expect("rings switched");
            let pause = Instant::now() + Duration::from_millis(3);
            while Instant::now() < pause {
                take(&mut b);
            }
            if done.load(Ordering::Acquire) {
                break;
            }
        }
        b.enable_rings(4).and_then(|()| b.sync()).expect("all rings");
        take(&mut b);
        sender.join().expect("a sender that ends")
    });
    let statistics = switch.statistics();
    statistics.assert_balanced();
    assert_eq!(statistics.port("a", "ingress_frames"), sent);
    assert_eq!(statistics.port("b", "egress_frames"), received);
    assert_eq!(statistics.port("a", "flooded_frames"), 0, "b never left");
    assert_eq!(received + statistics.egress_drops("b"), sent);
    assert!(received > 0);
    // And all is well again.
    let mut flows = Flows::default();
    for number in 0..20 {
        send(&mut a, &[datagram(1, 2, number, 0)]);
        assert_eq!(flows.take_from(&mut b, 4, 2), 1);
    }
    switch.stop();
}

/// Three guests that all send to the next one at once, over two pairs each.
fn all_at_once(format: u64, arguments: &[&str]) {
    let mut switch = Switch::builder().port("a").port("b").port("c").args(arguments).start();
    let mut guests = ["a", "b", "c"].map(|port| {
        let guest = guest(&switch, port).with(format).queue_pairs(2).tx_slot(2048);
        guest.ring_size(1024).attach().expect("a guest")
    });
    for (number, guest) in (1..).zip(&mut guests) {
        send(guest, &[Frame::pattern([0xff; 6], mac(number), 60, 0)]);
    }
    for guest in &mut guests {
        let greetings: usize = (0..2).map(|queue| arrived_on(guest, queue).len()).sum();
        assert_eq!(greetings, 2);
    }
    let before = switch.statistics();
    let busy = std::sync::atomic::AtomicUsize::new(3);
    let exchange = |guest: &mut Guest, number: u8| {
        let (to, rounds) = (number % 3 + 1, 300);
        let mut flows = Flows::default();
        for sequence in 0..rounds {
            for flow in 0..12 {
                let frame = datagram(number, to, flow, sequence);
                while !guest.try_send(usize::from(flow % 2), &frame, &Layout::whole()) {
                    flows.take_from(guest, 2, number);
                    std::thread::yield_now();
                }
            }
            flows.take_from(guest, 2, number);
        }
        (0..2).for_each(|queue| assert!(guest.flush(queue, PATIENCE)));
        busy.fetch_sub(1, Ordering::AcqRel);
        while busy.load(Ordering::Acquire) > 0 {
            flows.take_from(guest, 2, number);
            std::thread::yield_now();
        }
        flows.take_from(guest, 2, number);
        flows
    };
    let received: Vec<Flows> = std::thread::scope(|scope| {
        let exchange = &exchange;
        let threads: Vec<_> = (1..)
            .zip(&mut guests)
            .map(|(number, guest)| scope.spawn(move || exchange(guest, number)))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a guest that ends")).collect()
    });
    let statistics = switch.statistics();
    statistics.assert_balanced();
    for (port, flows) in ["a", "b", "c"].into_iter().zip(&received) {
        assert_eq!(statistics.port(port, "ingress_frames"), 1 + 300 * 12);
        assert_eq!(statistics.port(port, "flooded_frames"), 1);
        let delivered = statistics.port(port, "egress_frames") - before.port(port, "egress_frames");
        assert_eq!(flows.frames, delivered, "{port}");
        assert_eq!(flows.frames + statistics.egress_drops(port), 300 * 12, "{port}");
        assert!(flows.queues.values().all(|queues| queues.len() == 1), "{:?}", flows.queues);
        assert!(flows.frames > 0);
    }
    switch.stop();
}

fn one_worker_keeps_order_and_count(format: u64) {
    all_at_once(format, &[]);
}

fn two_workers_keep_order_and_count(format: u64) {
    all_at_once(format, &["--workers", "2"]);
}

fn three_workers_keep_order_and_count(format: u64) {
    all_at_once(format, &["--workers", "3"]);
}

#[test]
fn a_polling_worker_never_sleeps_and_serves() {
    let mut switch = Switch::builder().port("a").port("b").args(&["--poll"]).start();
    let (mut a, mut b) = two(&switch, 0, 1);
    for sequence in 0..200 {
        let frame = datagram(1, 2, 0, sequence);
        send(&mut a, std::slice::from_ref(&frame));
        assert_eq!(bytes_arrived(&mut b), [frame.bytes]);
    }
    // The worker counts its burst after the buffers went back.
    let statistics = switch.statistics_when(|now| now.workers["0"]["frames"] == 201);
    statistics.assert_balanced();
    assert_eq!(statistics.workers["0"]["sleeps"], 0);
    switch.stop();
}
