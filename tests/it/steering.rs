//! Answers come by the queue pair that their flow is sent on (virtio 1.2, 5.1.6.5.5), and rings
//! that several workers write to stay correct under load.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use fakeguest::frames::{Flow, mac, payload};
use fakeguest::{Frame, Guest, Layout};

use crate::support::lan::{PATIENCE, arrived_on, guest, send};
use crate::support::switch::Switch;

/// A datagram of a flow: `client` is one end, at port 5000 + `number`, guest 9 the other.
fn request(client: u8, number: u16, text: &[u8]) -> Frame {
    Flow { ports: (5000 + number, 80), ..Flow::v4(client, 9) }.udp(text)
}

/// The other direction.
fn answer(client: u8, number: u16, text: &[u8]) -> Frame {
    Flow { ports: (80, 5000 + number), ..Flow::v4(9, client) }.udp(text)
}

/// Sends on a queue and returns when the switch has delivered it.
fn send_on(guest: &mut Guest, queue: usize, frame: &Frame) {
    guest.send(queue, frame, &Layout::whole());
    assert!(guest.flush(queue, PATIENCE));
}

/// The queues by which frames came, each as often as one did.
fn queues_of(guest: &mut Guest, queues: usize) -> Vec<usize> {
    (0..queues).flat_map(|queue| vec![queue; arrived_on(guest, queue).len()]).collect()
}

#[test]
fn answers_come_by_the_queue_that_the_flow_was_sent_on() {
    for arguments in [&[][..], &["--workers", "2"]] {
        let mut switch = Switch::builder().port("c").port("s").args(arguments).start();
        let mut client = guest(&switch, "c").queue_pairs(4).attach().expect("a client");
        let mut server = guest(&switch, "s").attach().expect("a server");
        send(&mut server, &[Frame::pattern([0xff; 6], mac(9), 60, 0)]);
        assert_eq!(queues_of(&mut client, 4).len(), 1);
        // The guest moves its flows: the answers follow, all of them.
        for round in 0..3 {
            for number in 0..40 {
                let queue = usize::from(number + round) % 4;
                send_on(&mut client, queue, &request(1, number, b"?"));
                send(&mut server, &[answer(1, number, b"one"), answer(1, number, b"two")]);
                assert_eq!(queues_of(&mut client, 4), [queue; 2], "flow {number}");
            }
            assert_eq!(arrived_on(&mut server, 0).len(), 40);
        }
        // A pair that is gone is no place for answers.
        client.enable_rings(2).and_then(|()| client.sync()).expect("two pairs");
        for number in 0..40 {
            send(&mut server, &[answer(1, number, b"!")]);
            let queues = queues_of(&mut client, 4);
            assert!(matches!(queues[..], [0 | 1]), "flow {number}: {queues:?}");
        }
        let statistics = switch.statistics();
        statistics.assert_balanced();
        assert_eq!(statistics.dropped(), 0);
        switch.stop();
    }
}

#[test]
fn a_guest_that_invents_flows_moves_no_flow_in_use() {
    let switch = Switch::builder().port("c").port("s").start();
    let mut client = guest(&switch, "c").queue_pairs(4).ring_size(1024).attach().expect("a client");
    let mut server = guest(&switch, "s").ring_size(1024).attach().expect("a server");
    send(&mut server, &[Frame::pattern([0xff; 6], mac(9), 60, 0)]);
    assert_eq!(queues_of(&mut client, 4).len(), 1);
    for number in 0..20 {
        send_on(&mut client, 3, &request(1, number, b"?"));
    }
    // Many times what the switch remembers.
    for chunk in 0..40 {
        for number in 0..500 {
            client.send(1, &request(1, 100 + chunk * 500 + number, b"?"), &Layout::whole());
        }
        assert!(client.flush(1, PATIENCE));
        (0..20).for_each(|number| send_on(&mut client, 3, &request(1, number, b"?")));
        while !arrived_on(&mut server, 0).is_empty() {}
    }
    for number in 0..20 {
        send(&mut server, &[answer(1, number, b"!")]);
        assert_eq!(queues_of(&mut client, 4), [3], "flow {number}");
    }
    switch.stop();
}

/// Frames that each sender sends on each of its two pairs.
const COUNT: u32 = 3000;

/// Sends numbered datagrams of one flow per pair, whatever becomes of them.
fn flood(guest: &mut Guest, number: u8) {
    for sequence in 0..COUNT {
        for queue in 0..2 {
            let text = sequence.to_be_bytes().repeat(1 + sequence as usize % 300);
            let frame = request(number, queue, &text);
            guest.send(usize::from(queue), &frame, &Layout::whole());
        }
    }
    (0..2).for_each(|queue| assert!(guest.flush(queue, PATIENCE)));
}

#[test]
fn workers_that_write_to_one_ring_lose_repeat_and_reorder_nothing() {
    let senders = ["a", "b", "c"];
    let builder = senders.iter().fold(Switch::builder().port("s"), |all, name| all.port(name));
    let mut switch = builder.args(&["--workers", "2"]).start();
    let mut server = guest(&switch, "s").ring_size(1024).attach().expect("a receiver");
    let mut guests = senders
        .map(|port| guest(&switch, port).queue_pairs(2).tx_slot(2048).attach().expect("a sender"));
    send(&mut server, &[Frame::pattern([0xff; 6], mac(9), 60, 0)]);
    let busy = AtomicUsize::new(guests.len());
    let mut next: BTreeMap<(u8, u16), u32> = BTreeMap::new();
    let mut received = 0;
    std::thread::scope(|scope| {
        for (number, guest) in (1..).zip(&mut guests) {
            let busy = &busy;
            scope.spawn(move || {
                flood(guest, number);
                busy.fetch_sub(1, Ordering::AcqRel);
            });
        }
        loop {
            let last = busy.load(Ordering::Acquire) == 0;
            for frame in arrived_on(&mut server, 0) {
                let (from, port) = (frame.bytes[11], frame.bytes[35]);
                let flow = u16::from_be_bytes([frame.bytes[34], port]) - 5000;
                let text = payload(&frame.bytes).expect("a datagram");
                let sequence = u32::from_be_bytes([text[0], text[1], text[2], text[3]]);
                let whole = sequence.to_be_bytes().repeat(1 + sequence as usize % 300);
                assert!(frame.bytes == request(from, flow, &whole).bytes, "other bytes");
                let next = next.entry((from, flow)).or_default();
                assert!(sequence >= *next, "{from}, flow {flow}: {sequence} behind {next}");
                *next = sequence + 1;
                received += 1;
            }
            if last {
                break;
            }
            std::thread::yield_now();
        }
    });
    let statistics = switch.statistics();
    statistics.assert_balanced();
    assert_eq!(next.len(), 6, "every flow");
    assert_eq!(statistics.port("s", "egress_frames"), received);
    // A full ring is the receiver's pace. A ring that is busy for 500 microseconds is a worker that
    // the host took its CPU from, in the middle of a burst: its frames are counted, too.
    let lost = ["drop_rx_ring_full", "drop_rx_ring_busy"].map(|name| statistics.port("s", name));
    assert_eq!(received + lost.iter().sum::<u64>(), 3 * 2 * u64::from(COUNT), "{lost:?}");
    for worker in ["0", "1"] {
        assert!(statistics.workers[worker]["frames"] > 0, "both took part");
    }
    switch.stop();
}
