//! Every output is compared, byte for byte, with the packet that etherparse builds for it.

use proptest::prelude::*;

use super::super::testing::{Packet, complete, payload};
use super::super::vnet::{GSO_ECN, GSO_TCPV4, GSO_UDP_L4};
use super::*;

const TSO: Offloads = Offloads::TSO4;

/// The output frames, and the header of each, as a port would write them.
fn convert(
    frame: &[u8],
    vnet: &VnetHeader,
    accepts: Offloads,
) -> Result<Vec<(Vec<u8>, VnetHeader)>, PlanError> {
    let plan =
        Plan::new(&frame[..frame.len().min(MAX_HEADERS)], vnet, frame.len() as u32, accepts)?;
    assert_eq!(plan.needs_payload_sum(), !accepts.contains(Offloads::CSUM));
    let mut outputs = Vec::new();
    for i in 0..plan.count() {
        let range = plan.payload(i);
        let piece = &frame[range.start as usize..range.end as usize];
        let mut sum = Sum::default();
        if plan.needs_payload_sum() {
            sum.add(piece);
        }
        let mut head = [0xee; MAX_HEADERS];
        let header = plan.write_header(i, sum, &mut head);
        let mut output = head[..plan.header_len()].to_vec();
        output.extend_from_slice(piece);
        outputs.push((output, header));
    }
    Ok(outputs)
}

/// The packets that `packet` is to become.
fn expected(packet: &Packet, gso_size: usize) -> Vec<Vec<u8>> {
    let mut pieces: Vec<&[u8]> = packet.payload.chunks(gso_size).collect();
    if pieces.is_empty() {
        pieces.push(&[]);
    }
    let last = pieces.len() - 1;
    let segment = |(i, piece): (usize, &&[u8])| {
        Packet {
            id: packet.id.wrapping_add(i as u16),
            sequence: packet.sequence.wrapping_add((i * gso_size) as u32),
            fin: packet.fin && i == last,
            psh: packet.psh && i == last,
            cwr: packet.cwr && i == 0,
            payload: piece.to_vec(),
            ..packet.clone()
        }
        .build()
    };
    pieces.iter().enumerate().map(segment).collect()
}

/// Segments `packet` for receivers without and with CSUM and compares all of it.
fn check_segments(packet: &Packet, gso_size: u16) {
    let (frame, vnet) = packet.build_offloaded(gso_size);
    let head = &frame[..frame.len().min(128)];
    let vnet = offload::check(&vnet, head, frame.len() as u32, Offloads::all()).unwrap();
    let expected = expected(packet, usize::from(gso_size));

    let outputs = convert(&frame, &vnet, TSO).unwrap();
    assert_eq!(outputs.len(), expected.len());
    for ((output, header), expected) in outputs.iter().zip(&expected) {
        assert_eq!(output, expected);
        assert_eq!(*header, VnetHeader::default());
    }

    let outputs = convert(&frame, &vnet, Offloads::CSUM).unwrap();
    assert_eq!(outputs.len(), expected.len());
    for ((mut output, header), expected) in outputs.into_iter().zip(&expected) {
        let passes = offload::check(&header, &output, output.len() as u32, Offloads::CSUM);
        assert_eq!(passes, Ok(header));
        complete(&mut output, &header);
        assert_eq!(output, *expected);
    }
}

#[test]
fn tcp_over_ipv4_and_ipv6() {
    for v6 in [false, true] {
        let packet = Packet { v6, payload: payload(10_000), ..Packet::default() };
        check_segments(&packet, 1448);
        // An odd segment size, a last segment of one byte, and one that is full.
        check_segments(&Packet { payload: payload(1429 * 3 + 1), ..packet.clone() }, 1429);
        check_segments(&Packet { payload: payload(1429 * 3), ..packet }, 1429);
    }
}

#[test]
fn udp_over_ipv4_and_ipv6() {
    for v6 in [false, true] {
        let packet = Packet { v6, tcp: false, payload: payload(4001), ..Packet::default() };
        check_segments(&packet, 1000);
        check_segments(&packet, 1333);
    }
}

#[test]
fn payload_that_fits_one_segment_and_none_at_all() {
    for tcp in [false, true] {
        for len in [0, 1, 99, 100] {
            let packet = Packet { tcp, payload: payload(len), ..Packet::default() };
            check_segments(&packet, 100);
        }
    }
}

#[test]
fn the_largest_frames() {
    let packet = Packet { payload: payload(65_535 - 40), ..Packet::default() };
    check_segments(&packet, 1460);
    check_segments(&packet, 65_495);
    let packet = Packet { v6: true, payload: payload(65_535 - 20), ..Packet::default() };
    check_segments(&packet, 48);
}

#[test]
fn vlan_tags_options_and_extension_headers() {
    for vlan_tags in 0..=2 {
        for (v6, l3_options) in [(false, 0), (false, 40), (true, 6), (true, 14)] {
            for tcp_options in [0, 12, 20] {
                let packet = Packet {
                    v6,
                    vlan_tags,
                    l3_options,
                    tcp_options,
                    payload: payload(3000),
                    ..Packet::default()
                };
                check_segments(&packet, 1400);
            }
        }
    }
}

#[test]
fn flags_stand_on_the_segments_they_belong_to() {
    let packet =
        Packet { fin: true, psh: true, cwr: true, payload: payload(500), ..Packet::default() };
    check_segments(&packet, 100);
    let (frame, mut vnet) = packet.build_offloaded(100);
    vnet.gso_type |= GSO_ECN;
    let without_ecn = Offloads::CSUM | Offloads::TSO4;
    assert_eq!(offload::for_receiver(&vnet, without_ecn), None);
    let flags = |(output, _): &(Vec<u8>, VnetHeader)| output[14 + 20 + TCP_FLAGS];
    let outputs = convert(&frame, &vnet, without_ecn).unwrap();
    assert_eq!(outputs.iter().map(flags).collect::<Vec<_>>(), [0x90, 0x10, 0x10, 0x10, 0x19]);
}

#[test]
fn a_zero_udp_checksum_is_written_as_ones() {
    // The last two bytes make the sum come out as zero.
    let mut packet = Packet { tcp: false, payload: vec![0; 6], ..Packet::default() };
    let plain = packet.build();
    packet.payload[4..].copy_from_slice(&plain[40..42]);
    for gso_size in [0, 6] {
        let (frame, vnet) = packet.build_offloaded(gso_size);
        let outputs = convert(&frame, &vnet, Offloads::empty()).unwrap();
        assert_eq!(outputs[0].0[40..42], [0xff, 0xff]);
        assert_eq!(outputs, [(packet.build(), VnetHeader::default())]);
    }
}

#[test]
fn the_checksum_alone_is_completed() {
    for v6 in [false, true] {
        for tcp in [false, true] {
            for len in [0, 1, 2, 1400, 65_000] {
                let packet = Packet { v6, tcp, payload: payload(len), ..Packet::default() };
                let (frame, vnet) = packet.build_offloaded(0);
                let outputs = convert(&frame, &vnet, Offloads::empty()).unwrap();
                assert_eq!(outputs, [(packet.build(), VnetHeader::default())]);
            }
        }
    }
}

#[test]
fn a_checksum_of_an_unknown_protocol_is_completed() {
    // The field starts at an odd offset of what is summed, so the payload does too.
    let mut frame = payload(101);
    let vnet =
        VnetHeader { flags: NEEDS_CSUM, csum_start: 40, csum_offset: 7, ..VnetHeader::default() };
    let outputs = convert(&frame, &vnet, Offloads::empty()).unwrap();
    complete(&mut frame, &vnet);
    assert_eq!(outputs, [(frame, VnetHeader::default())]);
}

#[test]
fn the_pseudo_header_of_a_routed_packet_is_kept() {
    // The field was summed over the final destination, which is in a routing header: whatever it
    // holds, a segment's differs from it by the length alone.
    let packet = Packet { v6: true, tcp: false, payload: payload(300), ..Packet::default() };
    let (mut frame, vnet) = packet.build_offloaded(100);
    let field = usize::from(vnet.csum_start + vnet.csum_offset);
    frame[field..field + 2].copy_from_slice(&0x1234u16.to_be_bytes());
    for (output, _) in convert(&frame, &vnet, Offloads::CSUM).unwrap() {
        assert_eq!(output[field..field + 2], (0x1234u16 - 200).to_be_bytes());
    }
}

#[test]
fn what_cannot_be_converted_is_refused() {
    let packet = Packet { payload: payload(9000), ..Packet::default() };
    let (frame, vnet) = packet.build_offloaded(1);
    assert_eq!(convert(&frame, &vnet, TSO).unwrap_err(), PlanError::TooManySegments(9000));

    let plain = VnetHeader::default();
    assert_eq!(convert(&frame, &plain, TSO).unwrap_err(), PlanError::NothingToDo);

    let far = VnetHeader { csum_start: 250, csum_offset: 5, ..vnet };
    let far = VnetHeader { gso_type: GSO_NONE, ..far };
    let error = PlanError::HeadersTooLong { end: 257, available: 256 };
    assert_eq!(convert(&frame, &far, TSO).unwrap_err(), error);
    let error = PlanError::HeadersTooLong { end: 52, available: 40 };
    let checksum = VnetHeader { gso_type: GSO_NONE, ..vnet };
    assert_eq!(Plan::new(&frame[..40], &checksum, 9054, TSO).unwrap_err(), error);

    // A frame longer than IP can say, in segments that are so too.
    let long = VnetHeader { gso_size: 65_500, ..vnet };
    let error = PlanError::SegmentTooLong(65_540);
    assert_eq!(Plan::new(&frame[..256], &long, 70_000, TSO).unwrap_err(), error);
}

fn any_packet() -> impl Strategy<Value = Packet> {
    let flags = any::<(bool, bool, bool, bool, bool)>();
    let sizes = (0..3usize, 0..4usize, 0..6usize, prop::collection::vec(any::<u8>(), 0..5000));
    (flags, sizes, any::<u16>(), any::<u32>()).prop_map(
        |((v6, tcp, fin, psh, cwr), (vlan_tags, l3, l4, payload), id, sequence)| {
            let l3_options = match (v6, l3) {
                (false, l3) => l3 * 4,
                (true, 0) => 0,
                (true, l3) => l3 * 8 - 2,
            };
            let tcp_options = if tcp { l4 * 4 } else { 0 };
            Packet {
                v6,
                tcp,
                vlan_tags,
                l3_options,
                tcp_options,
                fragment: false,
                id,
                sequence,
                fin,
                psh,
                cwr,
                payload,
            }
        },
    )
}

/// Calls everything there is on a plan, for outputs that exist and some that don't.
fn exercise(plan: &Plan, frame_len: u32) {
    assert!((1..=MAX_OUTPUTS).contains(&plan.count()));
    assert!(plan.header_len() <= MAX_HEADERS);
    let mut end = plan.header_len() as u32;
    for i in 0..plan.count() {
        assert_eq!(plan.payload(i).start, end);
        end = plan.payload(i).end;
    }
    assert_eq!(end, frame_len);
    for i in [0, 1, plan.count() - 1, plan.count(), u32::MAX] {
        assert!(plan.payload(i).end <= frame_len);
        plan.write_header(i, Sum::default(), &mut [0; MAX_HEADERS]);
    }
}

proptest! {
    #[test]
    fn any_packet_becomes_its_segments(packet in any_packet(), gso_size in 8..2000u16) {
        check_segments(&packet, gso_size);
    }

    #[test]
    fn garbage_never_panics(
        head in prop::collection::vec(any::<u8>(), 0..300),
        vnet in any::<[u8; 12]>(),
        frame_len in prop_oneof![0..400u32, 0..70_000u32, any::<u32>()],
    ) {
        let vnet = VnetHeader::from_bytes(&vnet);
        if let Ok(plan) = Plan::new(&head, &vnet, frame_len, Offloads::empty()) {
            exercise(&plan, frame_len);
        }
    }

    /// Garbage that gets further: a packet with a few bytes of its headers changed.
    #[test]
    fn damaged_packets_never_panic(
        packet in any_packet(),
        gso_size in any::<u16>(),
        damage in prop::collection::vec((0..100usize, any::<u8>()), 0..4),
        damaged_vnet in prop::option::of((0..12usize, any::<u8>())),
        cut in 0..300usize,
        frame_len in prop_oneof![Just(None), any::<u32>().prop_map(Some)],
    ) {
        let (mut frame, vnet) = packet.build_offloaded(gso_size);
        for (at, value) in damage {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        let mut vnet = vnet.encode().to_bytes();
        if let Some((at, value)) = damaged_vnet {
            vnet[at] = value;
        }
        let vnet = VnetHeader::from_bytes(&vnet);
        let head = &frame[..frame.len().min(cut)];
        let frame_len = frame_len.unwrap_or(frame.len() as u32);
        let checked = offload::check(&vnet, head, frame_len, Offloads::all());
        if let Ok(plan) = Plan::new(head, &vnet, frame_len, Offloads::empty()) {
            prop_assert!(checked.is_ok());
            exercise(&plan, frame_len);
        }
    }
}

#[test]
fn types_of_gso_need_their_protocols() {
    let (frame, vnet) = Packet::default().build_offloaded(50);
    let error = PlanError::Offload(BadOffload::GsoChecksum { start: 34, offset: 16 });
    let udp = VnetHeader { gso_type: GSO_UDP_L4, ..vnet };
    assert_eq!(convert(&frame, &udp, TSO).unwrap_err(), BadOffload::GsoProtocol.into());
    let udp = Packet { tcp: false, ..Packet::default() };
    let (frame, vnet) = udp.build_offloaded(50);
    let tcp = VnetHeader { csum_offset: 16, ..vnet };
    assert_eq!(convert(&frame, &tcp, TSO).unwrap_err(), error);
    let tcp = VnetHeader { gso_type: GSO_TCPV4, ..tcp };
    assert_eq!(convert(&frame, &tcp, TSO).unwrap_err(), BadOffload::GsoProtocol.into());
}
