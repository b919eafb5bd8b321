//! Checksums and segmentation: passed through where the receiver takes them, done by the switch
//! where it doesn't.
//!
//! What comes out is judged by `etherparse` and by sums of the tests' own, never by the switch's
//! own code.

use etherparse::checksum::Sum16BitWords;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use fakeguest::features as feature;
use fakeguest::frames::{Flow, Header, NEEDS_CSUM, checksum_error, mac, payload};
use fakeguest::{Frame, Guest, Received};

use crate::support::lan::{arrived, attach, guest, send};
use crate::support::switch::{Statistics, Switch};

/// What a guest must accept to receive segmentable frames whole.
const SEGMENTATION: u64 = feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::GUEST_ECN
    | feature::GUEST_USO4
    | feature::GUEST_USO6;

/// The kinds of receivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accepts {
    /// Segmentable frames and open checksums.
    All,
    /// Open checksums.
    Checksums,
    /// Only frames that are as they would be on a wire.
    Nothing,
}

const KINDS: [Accepts; 3] = [Accepts::All, Accepts::Checksums, Accepts::Nothing];

impl Accepts {
    /// A guest of this kind.
    fn attach(self, switch: &Switch, port: &str) -> Guest {
        let without = match self {
            Accepts::All => 0,
            Accepts::Checksums => SEGMENTATION,
            Accepts::Nothing => SEGMENTATION | feature::GUEST_CSUM,
        };
        // With room for the segments of a burst: the default ring of 256 is too short for them.
        guest(switch, port)
            .without(without)
            .ring_size(1024)
            .tx_slot(2048)
            .attach()
            .expect("a guest")
    }
}

/// A switch, a sender on port `a`, and a receiver of each kind on its port.
fn all_kinds() -> (Switch, Guest, [(Accepts, &'static str, Guest); 3]) {
    let switch = Switch::builder().port("a").port("all").port("sums").port("none").start();
    let a = attach(&switch, "a");
    let ports = ["all", "sums", "none"];
    let receivers = std::array::from_fn(|at| {
        let (kind, port) = (KINDS[at], ports[at]);
        (kind, port, kind.attach(&switch, port))
    });
    (switch, a, receivers)
}

/// The statistics, which must balance, at the end of a test.
fn finish(mut switch: Switch) -> Statistics {
    let statistics = switch.statistics();
    statistics.assert_balanced();
    switch.stop();
    statistics
}

/// Bytes in which a wrong place shows.
fn text(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

fn flows() -> [Flow; 4] {
    let tagged = |flow: Flow| Flow { vlan: Some(77), ..flow };
    let (v4, v6) = (Flow::v4(1, 2), Flow::v6(1, 2));
    [v4, v6, tagged(v4), tagged(v6)]
}

/// The fields of a TCP or UDP frame that differ between segments.
#[derive(Debug, PartialEq, Eq)]
struct Fields {
    /// Of IPv4, the identification.
    id: Option<u16>,
    /// Bytes of the IP packet, as its header says.
    ip_len: usize,
    /// TCP's sequence number.
    sequence: Option<u32>,
    /// TCP's FIN, PSH and CWR.
    flags: (bool, bool, bool),
    /// UDP's length.
    udp_len: Option<u16>,
}

fn fields(bytes: &[u8]) -> Fields {
    let packet = SlicedPacket::from_ethernet(bytes).expect("a packet");
    let (id, ip_len) = match packet.net.expect("IP") {
        NetSlice::Ipv4(ip) => {
            (Some(ip.header().identification()), usize::from(ip.header().total_len()))
        }
        NetSlice::Ipv6(ip) => (None, 40 + usize::from(ip.header().payload_length())),
        other => panic!("{other:?}"),
    };
    let (sequence, flags, udp_len) = match packet.transport.expect("TCP or UDP") {
        TransportSlice::Tcp(tcp) => {
            (Some(tcp.sequence_number()), (tcp.fin(), tcp.psh(), tcp.cwr()), None)
        }
        TransportSlice::Udp(udp) => (None, (false, false, false), Some(udp.length())),
        other => panic!("{other:?}"),
    };
    Fields { id, ip_len, sequence, flags, udp_len }
}

/// Checks that `received` is what `kind` of receiver gets of a frame with an open checksum. What
/// it would be on a wire is returned.
fn completed(kind: Accepts, received: &Received, like: &Header) -> Vec<u8> {
    let header = Header { num_buffers: 0, ..Header::from_bytes(&received.header) };
    let mut bytes = received.bytes.clone();
    if kind == Accepts::Nothing {
        assert_eq!(header, Header::default(), "a receiver without offloads");
    } else {
        let (csum_start, csum_offset) = (like.csum_start, like.csum_offset);
        let open = Header { flags: NEEDS_CSUM, csum_start, csum_offset, ..Header::default() };
        assert_eq!(header, open);
        assert!(checksum_error(&bytes).is_some(), "it says that its checksum is open");
        let sum = Sum16BitWords::new().add_slice(&bytes[usize::from(csum_start)..]);
        let at = usize::from(csum_start + csum_offset);
        bytes[at..at + 2].copy_from_slice(&sum.ones_complement().to_ne_bytes());
    }
    assert_eq!(checksum_error(&bytes), None, "{kind:?}");
    bytes
}

/// Checks that `received` are the segments of `frame` for this kind of receiver.
fn assert_segments(kind: Accepts, frame: &Frame, received: &[Received]) {
    let header = frame.header();
    let whole = payload(&frame.bytes).expect("a payload");
    let (size, original) = (usize::from(header.gso_size), fields(&frame.bytes));
    let count = whole.len().div_ceil(size).max(1);
    assert_eq!(received.len(), count, "segments of {} bytes", whole.len());
    let headers_len = frame.bytes.len() - whole.len();
    let mut joined = Vec::new();
    for (number, segment) in received.iter().enumerate() {
        let bytes = completed(kind, segment, &header);
        let part = payload(&bytes).expect("a payload");
        let last = number + 1 == count;
        assert_eq!(part.len(), if last { whole.len() - size * number } else { size });
        let cut = whole.len() - part.len();
        let expected = Fields {
            id: original.id.map(|id| id.wrapping_add(number as u16)),
            ip_len: original.ip_len - cut,
            sequence: original.sequence.map(|first| first.wrapping_add((size * number) as u32)),
            flags: (
                original.flags.0 && last,
                original.flags.1 && last,
                original.flags.2 && number == 0,
            ),
            udp_len: original.udp_len.map(|len| len - cut as u16),
        };
        assert_eq!(fields(&bytes), expected, "segment {number} of {count}");
        assert_eq!(bytes[..14], frame.bytes[..14], "Ethernet header");
        assert_eq!(bytes.len(), headers_len + part.len());
        joined.extend_from_slice(part);
    }
    assert!(joined == whole, "the segments hold another payload");
}

/// Sends a frame to all kinds of receivers at once and checks what each gets. Returns the number
/// of segments.
fn flood(a: &mut Guest, receivers: &mut [(Accepts, &str, Guest); 3], frame: &Frame) -> u64 {
    send(a, std::slice::from_ref(frame));
    let segmentable = frame.header().gso_type != 0;
    let mut segments = 0;
    for (kind, port, guest) in receivers {
        let received = arrived(guest);
        let passes = *kind == Accepts::All || *kind == Accepts::Checksums && !segmentable;
        if passes {
            assert_eq!(received.len(), 1, "{port}");
            assert!(received[0].bytes == frame.bytes, "{port}: other bytes");
            let got = Header { num_buffers: 0, ..Header::from_bytes(&received[0].header) };
            assert_eq!(got, frame.header(), "{port}");
        } else if segmentable {
            assert_segments(*kind, frame, &received);
            segments = received.len() as u64;
        } else {
            assert_eq!(received.len(), 1, "{port}");
            let bytes = completed(*kind, &received[0], &frame.header());
            assert_eq!(payload(&bytes), payload(&frame.bytes));
        }
    }
    segments
}

#[test]
fn open_checksums_pass_or_are_completed() {
    let (switch, mut a, mut receivers) = all_kinds();
    let mut count = 0;
    for flow in flows() {
        // Around the 128 bytes that are fetched first; odd and even.
        for len in [0, 1, 2, 57, 58, 59, 60, 85, 86, 87, 1400, 1401, 9000, 60_001] {
            for frame in [flow.udp(&text(len)), flow.tcp(9, &text(len))] {
                let complete = frame.bytes.clone();
                flood(&mut a, &mut receivers, &frame.open_checksum());
                // And a complete one goes as it is.
                flood(&mut a, &mut receivers, &Frame::plain(complete));
                count += 1;
            }
        }
    }
    let statistics = finish(switch);
    assert_eq!(statistics.port("none", "checksummed_frames"), count);
    assert_eq!(statistics.port("sums", "checksummed_frames"), 0);
    assert_eq!(statistics.port("all", "checksummed_frames"), 0);
    assert_eq!(statistics.dropped(), 0);
}

#[test]
fn checksums_of_unknown_protocols_are_completed_where_the_header_says() {
    let (switch, mut a, mut receivers) = all_kinds();
    // Odd and even; within the 128 bytes that are fetched first, across their end, behind it.
    let places = [(14, 0), (20, 5), (21, 4), (34, 7), (100, 26), (120, 7), (130, 9), (14, 240)];
    for (start, offset) in places {
        for len in [300, 301, 9001] {
            let header = Header {
                flags: NEEDS_CSUM,
                csum_start: start,
                csum_offset: offset,
                ..Header::default()
            };
            let frame = Frame::pattern([0xff; 6], mac(1), len, 5).with_header(header);
            send(&mut a, std::slice::from_ref(&frame));
            let mut complete = frame.bytes.clone();
            let sum = Sum16BitWords::new().add_slice(&complete[usize::from(start)..]);
            let at = usize::from(start + offset);
            complete[at..at + 2].copy_from_slice(&sum.ones_complement().to_ne_bytes());
            for (kind, _, guest) in &mut receivers {
                let received = arrived(guest);
                assert_eq!(received.len(), 1);
                let open = *kind != Accepts::Nothing;
                assert_eq!(received[0].header[0], if open { NEEDS_CSUM } else { 0 });
                let expected = if open { &frame.bytes } else { &complete };
                assert!(received[0].bytes == *expected, "{start}+{offset} of {len} at {kind:?}");
            }
        }
    }
    // A field that far behind the headers is no checksum's.
    let far = Header { flags: NEEDS_CSUM, csum_start: 14, csum_offset: 5000, ..Header::default() };
    send(&mut a, &[Frame::pattern([0xff; 6], mac(1), 9000, 5).with_header(far)]);
    let counts = receivers.each_mut().map(|(_, _, guest)| arrived(guest).len());
    assert_eq!(counts, [1, 1, 0]);
    let statistics = finish(switch);
    assert_eq!(statistics.port("none", "drop_bad_offload"), 1);
    assert_eq!(statistics.port("none", "checksummed_frames"), places.len() as u64 * 3);
    assert_eq!(statistics.dropped(), 1);
}

#[test]
fn segmentable_frames_pass_whole_or_are_segmented() {
    let (switch, mut a, mut receivers) = all_kinds();
    let (mut frames, mut segments, mut bytes) = (0, 0, 0);
    for flow in flows() {
        for (len, size) in [
            (65_000, 1448),
            (64_000, 1000),
            (3001, 1000),
            (1000, 1000),
            (999, 1000),
            (5, 1),
            (0, 9),
        ] {
            for frame in [flow.tcp(0xffff_f000, &text(len)), flow.udp(&text(len))] {
                let frame = frame.segmentable(size);
                segments += flood(&mut a, &mut receivers, &frame);
                (frames, bytes) = (frames + 1, bytes + frame.bytes.len() as u64);
            }
        }
    }
    let statistics = finish(switch);
    for (port, converted) in [("all", false), ("sums", true), ("none", true)] {
        let expected = if converted { (frames, segments) } else { (0, 0) };
        let counted =
            (statistics.port(port, "segmented_frames"), statistics.port(port, "segments"));
        assert_eq!(counted, expected, "{port}");
        assert_eq!(statistics.port(port, "egress_frames"), frames);
        assert_eq!(statistics.port(port, "egress_bytes"), bytes, "as sent");
        let copied = statistics.port(port, "copied_bytes");
        assert!(if converted { copied > bytes } else { copied == bytes }, "{port}: {copied}");
        assert_eq!(statistics.port(port, "checksummed_frames"), 0, "counted as segmented");
    }
    assert_eq!(statistics.dropped(), 0);
}

/// The same frame with these flags of TCP set, its checksum open and segmentable as before.
fn with_tcp_flags(frame: &Frame, flags: u8) -> Frame {
    let mut frame = frame.clone();
    let at = usize::from(frame.header().csum_start) + 13;
    frame.bytes[at] |= flags;
    frame
}

#[test]
fn flags_of_tcp_go_to_the_segments_that_they_belong_to() {
    const FIN: u8 = 1;
    const CWR: u8 = 0x80;
    let (switch, mut a, mut receivers) = all_kinds();
    for flow in flows() {
        let plain = flow.tcp(1, &text(5000)).segmentable(1000);
        flood(&mut a, &mut receivers, &with_tcp_flags(&plain, FIN));
        let mut congested = with_tcp_flags(&plain, FIN | CWR);
        congested.header[1] |= 0x80; // VIRTIO_NET_HDR_GSO_ECN
        flood(&mut a, &mut receivers, &congested);
    }
    assert_eq!(finish(switch).dropped(), 0);
}

#[test]
fn options_of_ip_and_tcp_are_in_every_segment() {
    let (switch, mut a, mut receivers) = all_kinds();
    // Timestamps, as Linux sends them, and a router alert before them.
    let tcp_options = [1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
    let ip_options = [0x94, 4, 0, 0];
    let mut frame = Flow::v4(1, 2).tcp(1, &text(7000));
    frame.bytes.splice(54..54, tcp_options);
    frame.bytes[34 + 12] = 8 << 4;
    frame.bytes.splice(34..34, ip_options);
    frame.bytes[14] = 0x46;
    let len = (frame.bytes.len() - 14) as u16;
    frame.bytes[16..18].copy_from_slice(&len.to_be_bytes());
    frame.bytes[24..26].fill(0);
    let sum = Sum16BitWords::new().add_slice(&frame.bytes[14..38]).ones_complement();
    frame.bytes[24..26].copy_from_slice(&sum.to_ne_bytes());
    let frame = frame.segmentable(1436);
    assert_eq!(flood(&mut a, &mut receivers, &frame), 5);
    for (kind, _, guest) in &mut receivers {
        assert!(guest.queue(0).rx.gaps_intact(), "{kind:?}");
    }
    assert_eq!(finish(switch).dropped(), 0);
}

#[test]
fn segments_reach_receivers_without_mergeable_buffers() {
    let switch = Switch::builder().port("a").port("b").start();
    let mut a = attach(&switch, "a");
    let mut b = guest(&switch, "b")
        .without(SEGMENTATION | feature::GUEST_CSUM | feature::MRG_RXBUF)
        .rx_buffer(1526)
        .attach()
        .expect("a receiver");
    for flow in flows() {
        let size = if flow.vlan.is_some() { 1436 } else { 1440 };
        let frame = flow.tcp(1, &text(60_000)).segmentable(size);
        send(&mut a, std::slice::from_ref(&frame));
        assert_segments(Accepts::Nothing, &frame, &arrived(&mut b));
    }
    assert!(b.queue(0).rx.gaps_intact());
    // Segments that are too long for its buffers.
    send(&mut a, &[Flow::v4(1, 2).tcp(1, &text(60_000)).segmentable(9000)]);
    assert_eq!(arrived(&mut b).len(), 0);
    let statistics = finish(switch);
    assert_eq!(statistics.port("b", "drop_rx_buffer_too_small"), 1);
    assert_eq!(statistics.dropped(), 1);
}

#[test]
fn a_ring_that_ends_within_a_segmented_frame_counts_one_drop() {
    let switch = Switch::builder().port("a").port("b").start();
    let mut a = attach(&switch, "a");
    let mut b = guest(&switch, "b")
        .without(SEGMENTATION)
        .rx_buffer(1526)
        .manual_posting()
        .attach()
        .expect("a receiver");
    b.queue(0).rx.post(10);
    let frame = Flow::v4(1, 2).tcp(1, &text(14_000)).segmentable(1000);
    send(&mut a, std::slice::from_ref(&frame));
    let received = arrived(&mut b);
    assert_eq!(received.len(), 10, "as on a wire: the end of it is lost");
    let firsts: Vec<u8> = received.iter().map(|r| payload(&r.bytes).expect("payload")[0]).collect();
    let expected: Vec<u8> = (0..10).map(|number| text(14_000)[number * 1000]).collect();
    assert_eq!(firsts, expected);
    let statistics = finish(switch);
    assert_eq!(statistics.port("b", "drop_rx_ring_full"), 1);
    assert_eq!(statistics.port("b", "egress_frames"), 0);
}

#[test]
fn a_mixed_burst_keeps_its_order_at_every_receiver() {
    let (switch, mut a, mut receivers) = all_kinds();
    let flow = Flow::v4(1, 2);
    let frames: Vec<Frame> = (0..32)
        .map(|number| match number % 4 {
            0 => flow.udp(&[number; 100]),
            1 => flow.udp(&[number; 100]).open_checksum(),
            2 => flow.tcp(1, &[number; 3000]).segmentable(1000),
            _ => flow.tcp(1, &[number; 1000]),
        })
        .collect();
    assert_eq!(a.send_all(0, &frames, &fakeguest::Layout::whole()), frames.len());
    send(&mut a, &[]);
    for (kind, port, guest) in &mut receivers {
        let first = |received: Received| payload(&received.bytes).expect("a payload")[0];
        let order: Vec<u8> = arrived(guest).into_iter().map(first).collect();
        let copies = |number| if *kind != Accepts::All && number % 4 == 2 { 3 } else { 1 };
        let expected: Vec<u8> =
            (0..32).flat_map(|number| std::iter::repeat_n(number, copies(number))).collect();
        assert_eq!(order, expected, "{port}");
    }
    assert_eq!(finish(switch).dropped(), 0);
}

#[test]
fn offloads_that_were_not_negotiated_are_refused() {
    let switch = Switch::builder().port("a").port("b").start();
    let mut b = attach(&switch, "b");
    let (v4, v6) = (Flow::v4(1, 2), Flow::v6(1, 2));
    let open = v4.udp(&text(100)).open_checksum();
    let tso4 = v4.tcp(1, &text(3000)).segmentable(1000);
    let tso6 = v6.tcp(1, &text(3000)).segmentable(1000);
    let uso4 = v4.udp(&text(3000)).segmentable(1000);
    let uso6 = v6.udp(&text(3000)).segmentable(1000);
    let mut ecn = tso4.clone();
    ecn.header[1] |= 0x80;
    let frames = [open, tso4, tso6, uso4, uso6, ecn];
    let all = feature::CSUM
        | feature::HOST_TSO4
        | feature::HOST_TSO6
        | feature::HOST_ECN
        | feature::HOST_USO;
    // What a sender didn't accept, and which of the frames it may send.
    let cases: [(u64, &[usize]); 7] = [
        (0, &[0, 1, 2, 3, 4, 5]),
        (feature::HOST_TSO4, &[0, 2, 3, 4]),
        (feature::HOST_TSO6, &[0, 1, 3, 4, 5]),
        (feature::HOST_ECN, &[0, 1, 2, 3, 4]),
        (feature::HOST_USO, &[0, 1, 2, 5]),
        (all & !feature::CSUM, &[0]),
        (all, &[]),
    ];
    let mut switch = switch;
    let mut dropped = 0;
    for (without, may) in cases {
        let mut a = guest(&switch, "a").without(without).attach().expect("a sender");
        for (number, frame) in frames.iter().enumerate() {
            send(&mut a, std::slice::from_ref(frame));
            let passes = may.contains(&number);
            assert_eq!(arrived(&mut b).len(), usize::from(passes), "{number} without {without:#x}");
            dropped += u64::from(!passes);
        }
        assert_eq!(switch.statistics().port("a", "drop_bad_vnet_header"), dropped);
    }
    assert_eq!(finish(switch).dropped(), dropped);
}

#[test]
fn more_segments_than_the_switch_makes_are_counted() {
    let (switch, mut a, mut receivers) = all_kinds();
    // 60,000 segments of one byte each: a claim on the switch's time.
    let frame = Flow::v4(1, 2).tcp(1, &text(60_000)).segmentable(1);
    send(&mut a, std::slice::from_ref(&frame));
    let counts = receivers.each_mut().map(|(_, _, guest)| arrived(guest).len());
    assert_eq!(counts, [1, 0, 0]);
    let statistics = finish(switch);
    for port in ["sums", "none"] {
        assert_eq!(statistics.port(port, "drop_bad_offload"), 1);
        assert_eq!(statistics.port(port, "segments"), 0);
    }
}

#[test]
fn addresses_are_learned_from_converted_frames_too() {
    let (switch, mut a, mut receivers) = all_kinds();
    flood(&mut a, &mut receivers, &Flow::v4(1, 2).tcp(1, &text(3000)).segmentable(1000));
    let back = Frame::pattern(mac(1), mac(9), 60, 1);
    for (_, _, guest) in &mut receivers {
        send(guest, std::slice::from_ref(&back));
    }
    assert_eq!(arrived(&mut a).len(), 3);
    assert_eq!(finish(switch).dropped(), 0);
}
