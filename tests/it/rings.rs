//! What a driver does to its rings: notifications it asks for, order, and rules it breaks.

use fakeguest::frames::{DATA_VALID, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM};
use fakeguest::frames::{Flow, Header, mac};
use fakeguest::layout::Piece;
use fakeguest::ring::Ring;
use fakeguest::split::{Descriptor, INDIRECT, NEXT, WRITE};
use fakeguest::{Frame, Guest, Layout, features};

use crate::support::lan::{PATIENCE, arrived, arrived_on, attach, bytes_arrived, guest, send};
use crate::support::over_both_formats;
use crate::support::proc::worker_calls;
use crate::support::switch::Switch;
use crate::support::wait_for;

over_both_formats! {
    frames_cost_no_system_call_but_the_calls_that_are_wanted
    receivers_are_called_as_they_ask_and_once_a_burst_at_most
    senders_are_called_as_they_ask_and_once_a_burst_at_most
    buffers_come_back_in_the_order_in_which_they_were_given
    indirect_tables_that_were_not_negotiated_are_refused
}

fn numbered(count: u32) -> Vec<Frame> {
    (0..count).map(|seed| Frame::pattern(mac(2), mac(1), 60, seed)).collect()
}

fn bytes(frames: &[Frame]) -> Vec<Vec<u8>> {
    frames.iter().map(|frame| frame.bytes.clone()).collect()
}

/// A switch with guests on `a` and `b` that accept these features, both known to it.
fn two(features: u64) -> (Switch, Guest, Guest) {
    let mut switch = Switch::builder().port("a").port("b").start();
    let attach = |port| guest(&switch, port).features(features).attach().expect("a guest");
    let (mut a, mut b) = (attach("a"), attach("b"));
    send(&mut b, &[Frame::pattern(mac(1), mac(2), 60, 0)]);
    send(&mut a, &numbered(1));
    assert_eq!((arrived(&mut a).len(), arrived(&mut b).len()), (1, 1));
    settle(&mut switch, &a);
    (switch, a, b)
}

/// Returns when the worker has made all calls that it puts off: it doesn't sleep before. The kick
/// is there to end a sleep that has begun already.
fn settle(switch: &mut Switch, guest: &Guest) {
    let sleeps = |switch: &mut Switch| switch.statistics().workers["0"]["sleeps"];
    let before = sleeps(switch);
    guest.ring(1).kick_now();
    wait_for("worker that sleeps", PATIENCE, || (sleeps(switch) > before).then_some(()));
}

/// Calls since the last time.
fn calls(ring: &Ring) -> u64 {
    ring.signals().call.read().unwrap_or(0)
}

fn receivers_are_called_as_they_ask_and_once_a_burst_at_most(format: u64) {
    for (features, of_four_bursts) in
        [(features::LINUX, 1), (features::LINUX & !features::EVENT_IDX, 4)]
    {
        let (mut switch, mut a, mut b) = two(format | features);
        calls(&b.queue(0).rx.ring);
        let before = switch.statistics().port("b", "calls");
        for (count, wanted, expected) in
            [(32, false, 0), (32, true, 1), (200, true, of_four_bursts), (200, false, 0)]
        {
            if wanted {
                b.queue(0).rx.ring.arm();
            } else {
                b.queue(0).rx.ring.disarm();
            }
            let frames = numbered(count);
            assert_eq!(a.send_all(0, &frames, &Layout::whole()), frames.len());
            send(&mut a, &[]);
            assert_eq!(bytes_arrived(&mut b), bytes(&frames));
            let got = calls(&b.queue(0).rx.ring);
            assert_eq!(got, expected, "{count} frames, calls wanted: {wanted}, {features:#x}");
        }
        let counted = switch.statistics().port("b", "calls") - before;
        assert_eq!(counted, 1 + of_four_bursts);
        switch.stop();
    }
}

fn frames_cost_no_system_call_but_the_calls_that_are_wanted(format: u64) {
    let (mut switch, mut a, mut b) = two(format | features::LINUX);
    let pid = switch.process().pid();
    for (wanted, expected) in [(false, 0), (true, 1)] {
        let before = worker_calls(pid);
        if wanted {
            b.queue(0).rx.ring.arm();
        }
        for count in [1, 100, 200, 100] {
            let frames = numbered(count);
            assert_eq!(a.send_all(0, &frames, &Layout::whole()), frames.len());
            // Not by a wait that asks for a call.
            let ring = &mut a.queue(0).tx.ring;
            wait_for("frames", PATIENCE, || (u32::from(ring.ready()) == count).then_some(()));
            a.queue(0).tx.reclaim();
            assert_eq!(bytes_arrived(&mut b), bytes(&frames));
        }
        settle(&mut switch, &a);
        assert_eq!(worker_calls(pid) - before, expected, "calls wanted: {wanted}");
    }
    switch.stop();
}

fn senders_are_called_as_they_ask_and_once_a_burst_at_most(format: u64) {
    for (features, of_four_bursts) in
        [(features::LINUX, 1), (features::LINUX & !features::EVENT_IDX, 4)]
    {
        let (mut switch, mut a, mut b) = two(format | features);
        let mut burst = |wanted, expected| {
            a.queue(0).tx.reclaim();
            let ring = &mut a.queue(0).tx.ring;
            calls(ring);
            if wanted {
                ring.arm();
            } else {
                ring.disarm();
            }
            let frames = numbered(200);
            assert_eq!(a.send_all(0, &frames, &Layout::whole()), frames.len());
            let ring = &mut a.queue(0).tx.ring;
            wait_for("end of the burst", PATIENCE, || (ring.ready() == 200).then_some(()));
            // The call comes later than the used index.
            settle(&mut switch, &a);
            let got = calls(&a.queue(0).tx.ring);
            assert_eq!(got, expected, "calls wanted: {wanted}, {features:#x}");
            assert_eq!(arrived(&mut b).len(), 200);
        };
        burst(false, 0);
        burst(true, of_four_bursts);
        burst(false, 0);
        switch.stop();
    }
}

fn buffers_come_back_in_the_order_in_which_they_were_given(format: u64) {
    // One more than four bursts of 64, published at once, and then once around the ring.
    let switch = Switch::builder().port("a").port("b").start();
    let big = |port| guest(&switch, port).with(format).ring_size(512).tx_slot(2048);
    let mut a = big("a").attach().expect("a sender");
    let mut b = big("b").attach().expect("a receiver");
    let count = 257u16;
    let memory = a.memory().clone();
    for round in 0..5u16 {
        let frames = numbered(count.into());
        let ring = &mut a.queue(0).tx.ring;
        let mut heads = Vec::new();
        for frame in &frames {
            let addr = memory.alloc(72, 8);
            memory.write(addr, &frame.header);
            memory.write(addr + 12, &frame.bytes);
            // Some of one descriptor and some of two, as many as the ring has.
            let whole = [Piece { addr, len: 72 }];
            let apart = [Piece { addr, len: 12 }, Piece { addr: addr + 12, len: 60 }];
            let chain = if heads.len() < 200 { &whole[..] } else { &apart };
            heads.push(ring.build(chain, &[], false).expect("free descriptors"));
        }
        // In an order that has nothing to do with that of the descriptors.
        let order: Vec<usize> =
            (0..257).map(|at| at * (3 + 2 * usize::from(round)) % 257).collect();
        let expected: Vec<u16> = order.iter().map(|at| heads[*at]).collect();
        expected.iter().for_each(|head| ring.post(*head));
        ring.publish();
        wait_for("end of the frames", PATIENCE, || (ring.ready() == count).then_some(()));
        let used: Vec<u16> = std::iter::from_fn(|| ring.pop()).map(|used| used.head).collect();
        assert_eq!(used, expected);
        used.iter().for_each(|head| ring.free(*head));
        let sent: Vec<_> = order.iter().map(|at| frames[*at].bytes.clone()).collect();
        assert!(bytes_arrived(&mut b) == sent, "frames in another order");
    }
    switch.stop();
}

/// A transmit ring written word by word.
struct RawTx {
    next: u16,
}

impl RawTx {
    /// Makes these heads available in one publication and waits until all came back, in order
    /// and with length 0.
    fn pass(&mut self, ring: &Ring, heads: &[u16]) {
        let first = self.next;
        for head in heads {
            ring.split().write_avail_entry(self.next, *head);
            self.next = self.next.wrapping_add(1);
        }
        ring.split().write_avail_index(self.next);
        ring.kick_now();
        wait_for("buffers back", PATIENCE, || (ring.used_index() == self.next).then_some(()));
        for (slot, head) in (first..).zip(heads) {
            assert_eq!(ring.split().used_entry(slot), (u32::from(*head), 0));
        }
    }
}

/// Descriptor chains: those that break the rules, and those whose frames have wrong lengths. Each
/// begins at the head that stands beside it.
struct Chains {
    bad: Vec<(&'static str, u16)>,
    wrong_length: Vec<(&'static str, u16)>,
    good: u16,
}

/// Writes the chains into the guest's transmit ring. `good` is the content of a good buffer.
fn write_chains(a: &Guest, good: &Frame) -> Chains {
    let (ring, memory) = (a.ring(1).split(), a.memory());
    let buffer = memory.alloc(140_000, 16);
    memory.fill(buffer, 140_000, 0);
    memory.write(buffer + 12, &good.bytes);
    let last = memory.regions().last().expect("a region");
    let end = last.guest_addr + last.size;
    let mut next_free = 0;
    // Writes descriptors one behind the other; their `next` counts from the first.
    let mut chain = |descriptors: &[Descriptor]| {
        let head = next_free;
        for descriptor in descriptors {
            let next = if descriptor.next < 100 { head + descriptor.next } else { descriptor.next };
            ring.write_descriptor(next_free, Descriptor { next, ..*descriptor });
            next_free += 1;
        }
        head
    };
    let to = |addr, len, flags, next| Descriptor { addr, len, flags, next };
    let table = |descriptors: &[Descriptor]| {
        let addr = memory.alloc(16 * descriptors.len() as u64, 16);
        for (at, descriptor) in (0..).zip(descriptors) {
            memory.write(addr + 16 * at, &descriptor.to_bytes());
        }
        addr
    };
    let plain = to(buffer, 72, 0, 0);
    let one = table(&[plain]);
    let nested = table(&[to(one, 16, INDIRECT, 0)]);
    let looped = table(&[to(buffer, 10, NEXT, 1), to(buffer, 1, NEXT, 0)]);
    // The third entry is a good one, and lies behind the end of the table.
    let beyond = table(&[to(buffer, 36, NEXT, 2), plain, to(buffer + 36, 36, 0, 0)]);
    let written = table(&[to(buffer, 72, WRITE, 0)]);
    let many = vec![to(buffer, 1, NEXT, 1); 4000];
    let many: Vec<_> = (1..).zip(many).map(|(next, d)| Descriptor { next, ..d }).collect();
    let many = table(&many);
    let first = to(buffer, 12, NEXT, 1);
    let bad = vec![
        ("for the device to write", chain(&[to(buffer, 72, WRITE, 0)])),
        ("partly to write", chain(&[first, to(buffer, 60, WRITE, 0)])),
        ("outside of memory", chain(&[to(1 << 40, 72, 0, 0)])),
        ("second piece outside of memory", chain(&[first, to(1 << 40, 60, 0, 0)])),
        ("past the end of memory", chain(&[to(end - 71, 72, 0, 0)])),
        ("around the end of addresses", chain(&[to(u64::MAX - 20, 72, 0, 0)])),
        ("4 GiB long", chain(&[to(buffer, u32::MAX, 0, 0)])),
        ("its own successor", chain(&[to(buffer, 72, NEXT, 0)])),
        ("a loop of two", chain(&[to(buffer, 1, NEXT, 1), to(buffer, 1, NEXT, 0)])),
        ("a loop of empty ones", chain(&[to(buffer, 0, NEXT, 1), to(buffer, 0, NEXT, 0)])),
        ("next beyond the table", chain(&[to(buffer, 72, NEXT, 256)])),
        ("next far beyond the table", chain(&[to(buffer, 72, NEXT, 0xffff)])),
        ("indirect and next", chain(&[to(one, 16, INDIRECT | NEXT, 1), plain])),
        ("indirect in indirect", chain(&[to(nested, 16, INDIRECT, 0)])),
        ("an empty table", chain(&[to(one, 0, INDIRECT, 0)])),
        ("half a table entry", chain(&[to(one, 8, INDIRECT, 0)])),
        ("a table entry and a half", chain(&[to(one, 24, INDIRECT, 0)])),
        ("a table outside of memory", chain(&[to(1 << 40, 16, INDIRECT, 0)])),
        ("a table past the end of memory", chain(&[to(end - 16, 32, INDIRECT, 0)])),
        ("a table of 4 GiB", chain(&[to(one, !15, INDIRECT, 0)])),
        ("a loop in a table", chain(&[to(looped, 32, INDIRECT, 0)])),
        ("next beyond the indirect table", chain(&[to(beyond, 32, INDIRECT, 0)])),
        ("to write, indirect", chain(&[to(written, 16, INDIRECT, 0)])),
        ("4000 entries that never end", chain(&[to(many, 64_000, INDIRECT, 0)])),
        ("no such head", 256),
        ("nothing like a head", 0xffff),
    ];
    let wrong_length = vec![
        ("empty", chain(&[to(buffer, 0, 0, 0)])),
        ("half a virtio-net header", chain(&[to(buffer, 6, 0, 0)])),
        ("only a virtio-net header", chain(&[to(buffer, 12, 0, 0)])),
        ("one byte short of an Ethernet header", chain(&[to(buffer, 25, 0, 0)])),
        ("one byte too long", chain(&[to(buffer, 12 + 65_558, 0, 0)])),
        ("twice too long", chain(&[to(buffer, 65_550, NEXT, 1), to(buffer, 65_550, 0, 0)])),
    ];
    Chains { bad, wrong_length, good: chain(&[plain]) }
}

#[test]
fn broken_chains_are_counted_and_the_ring_goes_on() {
    let (mut switch, a, mut b) = two(features::LINUX);
    let good = Frame::pattern(mac(2), mac(1), 60, 77);
    let chains = write_chains(&a, &good);
    let ring = a.ring(1);
    let mut tx = RawTx { next: ring.used_index() };
    let counters = ["drop_bad_chain", "drop_bad_length"];
    let mut seen = [0, 0];
    for (kind, list) in [&chains.bad, &chains.wrong_length].into_iter().enumerate() {
        for (what, head) in list {
            tx.pass(ring, &[*head, chains.good]);
            assert_eq!(bytes_arrived(&mut b), [good.bytes.as_slice()], "the frame behind {what:?}");
            seen[kind] += 1;
            let statistics = switch.statistics();
            let counted = counters.map(|counter| statistics.port("a", counter));
            assert_eq!(counted, seen, "{what}");
        }
    }
    // All in one publication, a good one behind each.
    let all = chains.bad.iter().chain(&chains.wrong_length).map(|(_, head)| *head);
    let heads: Vec<u16> = all.flat_map(|head| [head, chains.good]).collect();
    for _ in 0..20 {
        tx.pass(ring, &heads);
        assert_eq!(bytes_arrived(&mut b), vec![good.bytes.clone(); heads.len() / 2]);
    }
    let statistics = switch.statistics();
    statistics.assert_balanced();
    assert_eq!(statistics.port("a", "drop_bad_chain"), 21 * chains.bad.len() as u64);
    assert_eq!(statistics.port("a", "drop_bad_length"), 21 * chains.wrong_length.len() as u64);
    switch.stop();
}

fn indirect_tables_that_were_not_negotiated_are_refused(format: u64) {
    let (mut switch, mut a, mut b) = two(format | features::LINUX & !features::INDIRECT_DESC);
    let frames = numbered(2);
    a.send(0, &frames[0], &Layout::whole().in_indirect_table());
    send(&mut a, &frames[1..]);
    assert_eq!(bytes_arrived(&mut b), bytes(&frames[1..]));
    assert_eq!(switch.statistics().port("a", "drop_bad_chain"), 1);
    switch.stop();
}

#[test]
fn broken_receive_buffers_are_passed_over() {
    let switch = Switch::builder().port("a").port("b").start();
    let mut a = attach(&switch, "a");
    let b = guest(&switch, "b").manual_posting().attach().expect("a receiver");
    let (ring, memory) = (b.ring(0).split(), b.memory());
    let buffer = memory.alloc(2048, 16);
    let chains = [
        (0, Descriptor { addr: buffer, len: 2048, flags: 0, next: 0 }),
        (1, Descriptor { addr: 1 << 40, len: 2048, flags: WRITE, next: 0 }),
        (2, Descriptor { addr: buffer, len: 2048, flags: WRITE | NEXT, next: 2 }),
        (3, Descriptor { addr: buffer, len: 0, flags: WRITE, next: 0 }),
        (4, Descriptor { addr: buffer, len: 2048, flags: WRITE, next: 0 }),
    ];
    for (slot, (head, descriptor)) in (0..).zip(chains) {
        ring.write_descriptor(head, descriptor);
        ring.write_avail_entry(slot, head);
    }
    ring.write_avail_entry(5, 4000);
    ring.write_avail_index(6);
    let frames = numbered(2);
    send(&mut a, &frames);
    assert_eq!(ring.used_index(), 6, "the last one can't be used, and is given back");
    let used: Vec<_> = (0..6).map(|slot| ring.used_entry(slot)).collect();
    assert_eq!(used, [(0, 0), (1, 0), (2, 0), (3, 0), (4, 72), (4000, 0)]);
    let mut received = [0; 60];
    memory.read(buffer + 12, &mut received);
    assert_eq!(received[..], frames[0].bytes);
    let mut switch = switch;
    let statistics = switch.statistics();
    statistics.assert_balanced();
    assert_eq!(statistics.port("b", "drop_rx_ring_full"), 1);
    switch.stop();
}

#[test]
fn an_impossible_avail_index_stops_its_ring_alone() {
    let switch = Switch::builder().port("a").port("b").start();
    let mut a = guest(&switch, "a").queue_pairs(2).attach().expect("a sender");
    let mut b = attach(&switch, "b");
    let frames = numbered(3);
    send(&mut a, &frames[..1]);
    assert_eq!(bytes_arrived(&mut b), bytes(&frames[..1]));
    let ring = a.ring(1);
    ring.split().write_avail_index(ring.used_index().wrapping_add(257));
    ring.kick_now();
    wait_for("error from the ring", PATIENCE, || ring.signals().err.read().ok());
    // The guest's other ring, and the other guest.
    assert_eq!(a.send_all(1, &frames[1..], &Layout::whole()), 2);
    assert!(a.flush(1, PATIENCE));
    assert_eq!(bytes_arrived(&mut b), bytes(&frames[1..]));
    send(&mut b, &[Frame::pattern(mac(1), mac(2), 60, 9)]);
    let received: usize = (0..2).map(|queue| arrived_on(&mut a, queue).len()).sum();
    assert_eq!(received, 1);
    assert!(a.ring(3).signals().err.read().is_err(), "no error from the good ring");
    assert_eq!(a.ring(1).used_index(), 1, "nothing more was taken from the bad one");
    let mut switch = switch;
    let statistics = switch.statistics();
    statistics.assert_balanced();
    assert_eq!(statistics.dropped(), 0);
    switch.stop();
}

#[test]
fn an_impossible_avail_index_of_a_receive_ring_looks_full() {
    let (mut switch, mut a, mut b) = two(features::LINUX);
    let ring = b.ring(0);
    // What the switch knows already of the ring's buffers, it may still use.
    ring.split().write_avail_index(ring.used_index().wrapping_add(0x8000));
    send(&mut a, &numbered(200));
    let statistics = switch.statistics();
    statistics.assert_balanced();
    let (dropped, delivered) =
        (statistics.port("b", "drop_rx_ring_full"), statistics.port("b", "egress_frames"));
    assert_eq!(dropped + delivered, 201);
    assert!(dropped >= 200 - 64, "only {dropped} dropped");
    // b's own sending doesn't suffer.
    send(&mut b, &[Frame::pattern(mac(1), mac(2), 60, 9)]);
    assert_eq!(arrived(&mut a).len(), 1);
    switch.stop();
}

/// A frame with a header that says too much of it, and what is wrong.
fn bad_headers() -> Vec<(&'static str, Frame)> {
    let (v4, v6) = (Flow::v4(1, 2), Flow::v6(1, 2));
    let open = v4.udp(&[1; 1000]).open_checksum();
    let tso4 = v4.tcp(1, &[2; 3000]).segmentable(1000);
    let tso6 = v6.tcp(1, &[3; 3000]).segmentable(1000);
    let uso = v4.udp(&[4; 3000]).segmentable(1000);
    let with = |frame: &Frame, change: fn(&mut Header)| {
        let mut header = frame.header();
        change(&mut header);
        frame.clone().with_header(header)
    };
    let patched = |frame: &Frame, at: usize, byte: u8| {
        let mut frame = frame.clone();
        frame.bytes[at] = byte;
        frame
    };
    let short = v4.tcp(1, &[5; 10]).segmentable(5);
    vec![
        ("checksum past the end", with(&open, |h| h.csum_start = 1042)),
        ("checksum field half past the end", with(&open, |h| h.csum_start = 1035)),
        ("checksum offset past the end", with(&open, |h| h.csum_offset = 0xffff)),
        ("checksum in the Ethernet header", with(&open, |h| h.csum_start = 13)),
        ("GSO without checksum", with(&tso4, |h| h.flags = 0)),
        ("GSO with DATA_VALID only", with(&tso4, |h| h.flags = DATA_VALID)),
        ("GSO type 2", with(&tso4, |h| h.gso_type = 2)),
        ("UFO", with(&uso, |h| h.gso_type = 3)),
        ("GSO type 0x7f", with(&tso4, |h| h.gso_type = 0x7f)),
        ("ECN alone", with(&tso4, |h| h.gso_type = 0x80)),
        ("ECN with UDP", with(&uso, |h| h.gso_type = GSO_UDP_L4 | 0x80)),
        ("segments of nothing", with(&tso4, |h| h.gso_size = 0)),
        ("IPv4 called IPv6", with(&tso4, |h| h.gso_type = GSO_TCPV6)),
        ("IPv6 called IPv4", with(&tso6, |h| h.gso_type = GSO_TCPV4)),
        ("TCP called UDP", with(&tso4, |h| h.gso_type = GSO_UDP_L4)),
        ("UDP called TCP", with(&uso, |h| h.gso_type = GSO_TCPV4)),
        ("checksum start of another header", with(&tso4, |h| h.csum_start = 36)),
        ("checksum field of another header", with(&tso4, |h| h.csum_offset = 6)),
        ("a fragment", patched(&tso4, 14 + 6, 0x20)),
        ("a later fragment", patched(&tso4, 14 + 7, 9)),
        ("a TCP header of 16 bytes", patched(&tso4, 34 + 12, 0x40)),
        ("a TCP header longer than the frame", patched(&short, 34 + 12, 0xf0)),
        ("an IPv4 header of 16 bytes", patched(&tso4, 14, 0x44)),
        ("not IP", patched(&tso4, 12, 0x88)),
    ]
}

#[test]
fn virtio_net_headers_that_lie_are_refused() {
    let (mut switch, mut a, mut b) = two(features::LINUX);
    let good = Flow::v4(1, 2).tcp(1, &[2; 3000]).segmentable(1000);
    let cases = bad_headers();
    for (number, (what, frame)) in (1..).zip(&cases) {
        send(&mut a, &[frame.clone(), good.clone()]);
        assert_eq!(bytes_arrived(&mut b), [good.bytes.as_slice()], "the frame behind {what:?}");
        assert_eq!(switch.statistics().port("a", "drop_bad_vnet_header"), number, "{what}");
    }
    let statistics = switch.statistics();
    statistics.assert_balanced();
    assert_eq!(statistics.dropped(), cases.len() as u64);
    switch.stop();
}

#[test]
fn only_what_has_a_meaning_is_left_of_a_header() {
    let (switch, mut a, mut b) = two(features::LINUX);
    let flow = Flow::v4(1, 2);
    let junk = Header { hdr_len: 9, gso_size: 8, csum_start: 7, csum_offset: 6, ..junk_flags(0) };
    let open = flow.udp(&[1; 100]).open_checksum();
    let tso = flow.tcp(1, &[2; 3000]).segmentable(1000);
    let cases = [
        (flow.udp(&[1; 100]).with_header(junk), Header::default()),
        (flow.udp(&[1; 100]).with_header(Header { ..junk_flags(4) }), Header::default()),
        (
            open.clone().with_header(Header { flags: NEEDS_CSUM | 0xfc, ..open.header() }),
            open.header(),
        ),
        (tso.clone().with_header(Header { hdr_len: 0, ..tso.header() }), tso.header()),
        (tso.clone().with_header(Header { hdr_len: 0xffff, ..tso.header() }), tso.header()),
    ];
    for (frame, expected) in cases {
        let sent = frame.header();
        send(&mut a, &[frame]);
        let received = arrived(&mut b).pop().expect("one frame");
        let got = Header { num_buffers: 0, ..Header::from_bytes(&received.header) };
        assert_eq!(got, expected, "of {sent:?}");
    }
    switch.stop();
}

fn junk_flags(flags: u8) -> Header {
    Header { flags, num_buffers: 0x5555, ..Header::default() }
}
