//! What a frame is made of, and what it is put into, changes nothing about its bytes.

use fakeguest::frames::mac;
use fakeguest::layout::Piece;
use fakeguest::{Builder, Frame, Guest, Layout, features};

use crate::support::lan::{arrived, attach_with, bytes_arrived, guest, send, send_as};
use crate::support::over_both_formats;
use crate::support::switch::Switch;

over_both_formats! {
    every_size_in_every_layout_reaches_every_kind_of_buffer
    frames_are_sent_from_two_regions
    frames_are_received_into_two_regions
    done_when_4_bytes_copied_equal_bytes_delivered_guest_to_guest
    a_full_receive_ring_drops_what_comes_last_and_counts_it
    frames_that_no_buffer_can_hold_are_counted_and_the_ring_goes_on
    a_guest_whose_rings_rest_gets_nothing_and_it_is_counted
}

const BROADCAST: [u8; 6] = [0xff; 6];
/// An IP packet of 65,535 bytes behind Ethernet and two VLAN tags.
const LONGEST: usize = 65_535 + 14 + 8;
/// From a bare Ethernet header, around the 128 bytes that the switch fetches first, to the longest.
const SIZES: [usize; 12] = [14, 15, 60, 64, 127, 128, 129, 1514, 9014, 40_001, 65_549, LONGEST];

/// Descriptor layouts of a transmit buffer, the 12 bytes of virtio-net header included.
fn layouts() -> Vec<Layout> {
    let split = Layout::split;
    vec![
        Layout::whole(),
        Layout::header_apart(),
        split(&[1; 60]),
        split(&[11, 2, 1, 1, 113]),
        split(&[12, 127]),
        split(&[12, 128]),
        split(&[12, 129]),
        split(&[12, 14, 20, 8, 1, 4096, 4096, 4096, 333]),
        split(&[5, 0, 7, 0, 1448]),
        Layout::whole().in_indirect_table(),
        Layout::header_apart().in_indirect_table(),
        split(&[1; 63]).in_indirect_table(),
        split(&[12, 127, 1, 1, 8000, 17]).in_indirect_table(),
    ]
}

/// Receivers whose buffers differ: mergeable and not, in one piece and in many.
fn receivers(switch: &Switch, format: u64) -> Vec<(&'static str, Guest)> {
    let on = |port| guest(switch, port).with(format).tx_slot(2048);
    let unmerged = |port| on(port).without(features::MRG_RXBUF).ring_size(32).rx_buffer(65_600);
    let settings: [(&str, Builder); 8] = [
        ("b0", on("b0").rx_buffer(1526)),
        ("b1", on("b1")),
        ("b2", on("b2").rx_buffer(1999).rx_layout(Layout::split(&[12, 1, 500]))),
        ("b3", on("b3").rx_buffer(777).rx_layout(Layout::split(&[5, 3, 1]).in_indirect_table())),
        ("b4", unmerged("b4")),
        ("b5", unmerged("b5").rx_layout(Layout::split(&[12, 127, 1, 1000, 4096]))),
        ("b6", unmerged("b6").rx_layout(Layout::split(&[1; 40]).in_indirect_table())),
        // The header of a driver older than virtio 1.0 has 10 bytes; its rings are split.
        ("b7", unmerged("b7").without(features::VERSION_1 | features::RING_PACKED)),
    ];
    settings.map(|(name, builder)| (name, builder.attach().expect("a receiver"))).into()
}

fn every_size_in_every_layout_reaches_every_kind_of_buffer(format: u64) {
    let ports = ["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7"];
    let builder = Switch::builder().port("a");
    let mut switch = ports.iter().fold(builder, |builder, port| builder.port(port)).start();
    let mut a = attach_with(&switch, "a", format);
    let mut receivers = receivers(&switch, format);
    let (mut frames, mut bytes) = (0u64, 0u64);
    for (number, layout) in layouts().iter().enumerate() {
        for size in SIZES {
            let frame = Frame::pattern(BROADCAST, mac(1), size, (number * 100_000 + size) as u32);
            send_as(&mut a, std::slice::from_ref(&frame), layout);
            (frames, bytes) = (frames + 1, bytes + size as u64);
            for (name, receiver) in &mut receivers {
                let received = arrived(receiver);
                let what = format!("{size} bytes as {layout:?} at {name}");
                assert_eq!(received.len(), 1, "{what}");
                assert!(received[0].bytes == frame.bytes, "{what}: other bytes");
                assert_eq!(received[0].header[..10], [0; 10], "{what}: a plain frame");
            }
        }
    }
    let statistics = switch.statistics();
    statistics.assert_balanced();
    assert_eq!(statistics.port("a", "ingress_bytes"), bytes);
    for (name, receiver) in &mut receivers {
        assert!(receiver.queue(0).rx.gaps_intact(), "{name}: written past the end of a buffer");
        assert_eq!(statistics.port(name, "egress_frames"), frames);
        assert_eq!(statistics.port(name, "copied_bytes"), bytes, "{name}: one copy each");
    }
    assert_eq!(statistics.dropped(), 0);
    switch.stop();
}

/// A guest with 16 MiB in each of two adjacent regions.
fn two_regions(switch: &Switch, format: u64, port: &str) -> Builder {
    let size = 16 << 20;
    guest(switch, port).with(format).ring_size(64).regions(&[(0, size), (size, size)])
}

/// Where a buffer is cut by the boundary, around header, fetched bytes and payload.
const CUTS: [u64; 10] = [1, 11, 12, 13, 138, 139, 140, 141, 1000, 40_000];

fn frames_are_sent_from_two_regions(format: u64) {
    let switch = Switch::builder().port("a").port("b").start();
    let mut a = two_regions(&switch, format, "a").attach().expect("a sender");
    let mut b = attach_with(&switch, "b", format);
    for (seed, cut) in CUTS.into_iter().enumerate() {
        for size in [150, 1514, 65_549] {
            if cut >= 12 + size as u64 {
                continue;
            }
            let frame = Frame::pattern(mac(2), mac(1), size, seed as u32);
            let addr = a.memory().across_boundary(cut).expect("adjacent regions");
            for layout in [Layout::whole(), Layout::whole().in_indirect_table()] {
                assert!(a.queue(0).tx.post_at(addr, &frame, &layout));
                send(&mut a, &[]);
                assert!(bytes_arrived(&mut b) == [frame.bytes.as_slice()], "{size} cut at {cut}");
            }
        }
    }
    switch.stop();
}

fn frames_are_received_into_two_regions(format: u64) {
    let switch = Switch::builder().port("a").port("b").start();
    let mut a = attach_with(&switch, "a", format);
    let mut b = two_regions(&switch, format, "b").manual_posting().attach().expect("a receiver");
    for (seed, cut) in CUTS.into_iter().enumerate() {
        let addr = b.memory().across_boundary(cut).expect("adjacent regions");
        for (size, indirect) in [(150, false), (1514, true), (65_549, false)] {
            let rx = &mut b.queue(0).rx;
            rx.drop_idle();
            assert!(rx.post_pieces(&[Piece { addr, len: 66_000 }], indirect));
            let frame = Frame::pattern(mac(2), mac(1), size, seed as u32);
            send(&mut a, std::slice::from_ref(&frame));
            assert!(bytes_arrived(&mut b) == [frame.bytes.as_slice()], "{size} cut at {cut}");
        }
    }
    switch.stop();
}

fn done_when_4_bytes_copied_equal_bytes_delivered_guest_to_guest(format: u64) {
    let mut switch = Switch::builder().port("a").port("b").port("c").start();
    let (mut a, mut b) = (attach_with(&switch, "a", format), attach_with(&switch, "b", format));
    let mut c = guest(&switch, "c").with(format).rx_buffer(1526).attach().expect("a receiver");
    let flow = fakeguest::frames::Flow::v4(1, 2);
    let mut frames: Vec<Frame> =
        SIZES.iter().map(|size| Frame::pattern(mac(2), mac(1), *size, 1)).collect();
    frames.push(flow.tcp(1, &[7; 64_000]).segmentable(1448));
    frames.push(flow.udp(&[8; 1400]).open_checksum());
    frames.push(Frame::pattern(BROADCAST, mac(1), 777, 2));
    send(&mut b, &[Frame::pattern(mac(9), mac(2), 60, 3)]);
    for frame in &frames {
        send(&mut a, std::slice::from_ref(frame));
        assert_eq!(bytes_arrived(&mut b), [frame.bytes.as_slice()]);
    }
    assert_eq!(bytes_arrived(&mut c).len(), 2, "the two that flooded");
    let statistics = switch.statistics();
    statistics.assert_balanced();
    let sent: usize = frames.iter().map(|frame| frame.bytes.len()).sum();
    assert_eq!(statistics.port("b", "egress_bytes"), sent as u64);
    for port in ["a", "b", "c"] {
        let (copied, delivered) = ("copied_bytes", "egress_bytes");
        assert_eq!(statistics.port(port, copied), statistics.port(port, delivered), "{port}");
    }
    assert_eq!(statistics.port("b", "segments") + statistics.port("b", "checksummed_frames"), 0);
    switch.stop();
}

/// Two guests, of which `b` has the MAC address 2 and is known.
fn sender_and(format: u64, b: impl Fn(&Switch) -> Builder) -> (Switch, Guest, Guest) {
    let switch = Switch::builder().port("a").port("b").start();
    let mut a = attach_with(&switch, "a", format);
    let mut b = b(&switch).attach().expect("a receiver");
    send(&mut b, &[Frame::pattern(mac(1), mac(2), 60, 0)]);
    assert_eq!(bytes_arrived(&mut a).len(), 1);
    (switch, a, b)
}

fn numbered(count: u32, size: usize) -> Vec<Frame> {
    (0..count).map(|seed| Frame::pattern(mac(2), mac(1), size, seed)).collect()
}

fn a_full_receive_ring_drops_what_comes_last_and_counts_it(format: u64) {
    let (mut switch, mut a, mut b) = sender_and(format, |switch| {
        guest(switch, "b").with(format).rx_buffer(1526).manual_posting()
    });
    let frames = numbered(25, 60);
    send(&mut a, &frames[..3]);
    assert_eq!(bytes_arrived(&mut b).len(), 0, "no buffer was ever posted");
    b.queue(0).rx.post(10);
    send(&mut a, &frames);
    let expected: Vec<_> = frames[..10].iter().map(|frame| frame.bytes.clone()).collect();
    assert_eq!(bytes_arrived(&mut b), expected);
    // A frame of seven buffers doesn't go into three, but a small one behind it does.
    b.queue(0).rx.post(3);
    let mut mixed = numbered(1, 9014);
    mixed.extend(numbered(2, 100));
    send(&mut a, &mixed);
    assert_eq!(bytes_arrived(&mut b), [mixed[1].bytes.clone(), mixed[2].bytes.clone()]);
    b.queue(0).rx.post(6);
    send(&mut a, &mixed[..1]);
    assert_eq!(bytes_arrived(&mut b), [mixed[0].bytes.clone()], "one was left of the three");
    let statistics = switch.statistics();
    statistics.assert_balanced();
    assert_eq!(statistics.port("b", "drop_rx_ring_full"), 3 + 15 + 1);
    assert_eq!(statistics.port("b", "egress_frames"), 10 + 2 + 1);
    assert_eq!(statistics.dropped(), 19);
    switch.stop();
}

fn frames_that_no_buffer_can_hold_are_counted_and_the_ring_goes_on(format: u64) {
    let unmerged = features::MRG_RXBUF;
    let (mut switch, mut a, mut b) = sender_and(format, |switch| {
        guest(switch, "b").with(format).without(unmerged).rx_buffer(1526)
    });
    let fits = 1526 - 12;
    for size in [fits + 1, 65_549] {
        let mut frames = numbered(1, size);
        frames.extend(numbered(1, fits));
        send(&mut a, &frames);
        assert_eq!(bytes_arrived(&mut b), [frames[1].bytes.clone()]);
    }
    let statistics = switch.statistics();
    statistics.assert_balanced();
    assert_eq!(statistics.port("b", "drop_rx_buffer_too_small"), 2);
    assert_eq!(statistics.dropped(), 2);
    assert!(b.queue(0).rx.gaps_intact());
    switch.stop();
}

fn a_guest_whose_rings_rest_gets_nothing_and_it_is_counted(format: u64) {
    let (mut switch, mut a, mut b) = sender_and(format, |switch| guest(switch, "b").with(format));
    let frames = numbered(5, 60);
    b.stop().expect("stopped rings");
    send(&mut a, &frames[..2]);
    b.resume().and_then(|()| b.sync()).expect("running rings");
    send(&mut a, &frames[2..3]);
    b.enable_rings(0).and_then(|()| b.sync()).expect("disabled rings");
    send(&mut a, &frames[3..4]);
    b.enable_rings(1).and_then(|()| b.sync()).expect("enabled rings");
    send(&mut a, &frames[4..]);
    assert_eq!(bytes_arrived(&mut b), [frames[2].bytes.clone(), frames[4].bytes.clone()]);
    let statistics = switch.statistics();
    statistics.assert_balanced();
    assert_eq!(statistics.port("b", "drop_link_down"), 3);
    assert_eq!(statistics.dropped(), 3);
    switch.stop();
}
