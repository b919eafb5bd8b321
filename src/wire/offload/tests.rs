use proptest::prelude::*;

use super::super::testing::{Packet, payload};
use super::super::vnet::{GSO_UDP, RSC_INFO};
use super::*;

fn check_whole(frame: &[u8], vnet: &VnetHeader) -> Result<VnetHeader, BadOffload> {
    check(vnet, &frame[..frame.len().min(128)], frame.len() as u32, Offloads::all())
}

/// A TCP frame of 1054 bytes that asks for segments of 100.
fn tcp() -> (Vec<u8>, VnetHeader) {
    Packet { payload: payload(1000), ..Packet::default() }.build_offloaded(100)
}

#[test]
fn sets_say_what_they_contain() {
    let set = Offloads::CSUM | Offloads::TSO6;
    assert!(set.contains(Offloads::CSUM) && set.contains(set) && set.contains(Offloads::empty()));
    assert!(!set.contains(Offloads::TSO4) && !set.contains(Offloads::all()));
    assert_eq!(Offloads::all().without(set), Offloads::TSO4 | Offloads::ECN | Offloads::USO);
    assert_eq!(Offloads::all().to_string(), "csum tso4 tso6 ecn uso");
    assert_eq!(set.to_string(), "csum tso6");
    assert_eq!(Offloads::empty().to_string(), "none");
}

#[test]
fn a_frame_without_offloads_passes_with_an_empty_header() {
    let junk = VnetHeader {
        hdr_len: 1,
        gso_size: 2,
        csum_start: 3,
        csum_offset: 4,
        num_buffers: 5,
        ..VnetHeader::default()
    };
    assert_eq!(check(&junk, &[], 60, Offloads::empty()), Ok(VnetHeader::default()));
}

#[test]
fn only_flags_with_a_meaning_are_left() {
    let frame = [0; 60];
    let vnet = VnetHeader { flags: 0xfe, csum_start: 40, ..VnetHeader::default() };
    let valid = VnetHeader { flags: DATA_VALID, ..VnetHeader::default() };
    assert_eq!(check_whole(&frame, &vnet), Ok(valid));
    let vnet = VnetHeader { flags: RSC_INFO, ..vnet };
    assert_eq!(check_whole(&frame, &vnet), Ok(VnetHeader::default()));
    let vnet = VnetHeader { flags: 0xff, hdr_len: 7, gso_size: 7, num_buffers: 7, ..vnet };
    let partial = VnetHeader { flags: NEEDS_CSUM, csum_start: 40, ..VnetHeader::default() };
    assert_eq!(check_whole(&frame, &vnet), Ok(partial));
}

#[test]
fn the_checksum_field_lies_in_the_packet() {
    let frame = [0; 60];
    let at = |csum_start, csum_offset| {
        let header = VnetHeader { csum_start, csum_offset, ..VnetHeader::default() };
        check_whole(&frame, &VnetHeader { flags: NEEDS_CSUM, ..header }).is_ok()
    };
    assert!(at(14, 0) && at(42, 16) && at(58, 0));
    assert!(!at(13, 16) && !at(43, 16) && !at(59, 0) && !at(0xffff, 0xffff) && !at(34, 0xffff));
}

#[test]
fn gso_frames_get_their_header_length() {
    for (v6, tcp, header_len) in
        [(false, true, 66), (true, true, 86), (false, false, 42), (true, false, 62)]
    {
        let tcp_options = if tcp { 12 } else { 0 };
        let packet = Packet { v6, tcp, tcp_options, ..Packet::default() };
        let (frame, right) = packet.build_offloaded(50);
        let vnet = VnetHeader { hdr_len: 0xffff, num_buffers: 9, ..right };
        assert_eq!(check_whole(&frame, &vnet), Ok(VnetHeader { hdr_len: header_len, ..right }));
        // A payload that fits one segment is legal.
        let vnet = VnetHeader { gso_size: 1000, ..right };
        assert_eq!(check_whole(&frame, &vnet), Ok(vnet));
    }
}

#[test]
fn gso_fields_that_do_not_hold_are_refused() {
    let (frame, right) = tcp();
    let gso_type = |gso_type| VnetHeader { gso_type, ..right };
    let checksum = |csum_start, csum_offset| VnetHeader { csum_start, csum_offset, ..right };
    let cases = [
        (gso_type(GSO_UDP), BadOffload::GsoType(3)),
        (gso_type(2), BadOffload::GsoType(2)),
        (gso_type(0x41), BadOffload::GsoType(0x41)),
        (gso_type(GSO_ECN), BadOffload::GsoType(GSO_ECN)),
        (gso_type(GSO_UDP_L4 | GSO_ECN), BadOffload::GsoType(0x85)),
        (gso_type(GSO_TCPV6), BadOffload::GsoProtocol),
        (gso_type(GSO_UDP_L4), BadOffload::GsoProtocol),
        (VnetHeader { flags: 0, ..right }, BadOffload::GsoWithoutChecksum),
        (VnetHeader { flags: DATA_VALID, ..right }, BadOffload::GsoWithoutChecksum),
        (VnetHeader { gso_size: 0, ..right }, BadOffload::GsoSizeZero),
        (checksum(34, 18), BadOffload::GsoChecksum { start: 34, offset: 18 }),
        (checksum(36, 16), BadOffload::GsoChecksum { start: 36, offset: 16 }),
    ];
    for (vnet, error) in cases {
        assert_eq!(check_whole(&frame, &vnet), Err(error));
    }
}

#[test]
fn gso_packets_that_are_malformed_are_refused() {
    let (frame, vnet) = tcp();
    let with = |at: usize, value| {
        let mut frame = frame.clone();
        frame[at] = value;
        check_whole(&frame, &vnet)
    };
    assert_eq!(with(12, 9), Err(BadOffload::GsoProtocol));
    assert_eq!(with(14, 0x44), Err(BadOffload::GsoProtocol));
    assert_eq!(with(14 + 9, 1), Err(BadOffload::GsoProtocol));
    assert_eq!(with(14 + 20 + 12, 0x40), Err(BadOffload::GsoProtocol));
    assert_eq!(with(14 + 6, 0x20), Err(BadOffload::GsoFragment));

    let short = |len: usize| check(&vnet, &frame[..len], len as u32, Offloads::all());
    assert_eq!(short(54), Ok(vnet));
    assert_eq!(short(53), Err(BadOffload::HeadersTooLong(53)));
    // The head is longer than the frame: its end does not count.
    let error = check(&vnet, &frame, 53, Offloads::all());
    assert_eq!(error, Err(BadOffload::HeadersTooLong(53)));
}

#[test]
fn headers_beyond_the_head_are_refused() {
    let packet = Packet { vlan_tags: 2, l3_options: 40, tcp_options: 40, ..Packet::default() };
    let (frame, vnet) = packet.build_offloaded(50);
    assert_eq!(packet.header_len(), 142);
    assert_eq!(check_whole(&frame, &vnet), Err(BadOffload::HeadersTooLong(128)));
}

#[test]
fn offloads_that_were_not_negotiated_are_refused() {
    let (frame, vnet) = tcp();
    let check = |vnet: &VnetHeader, sender| check(vnet, &frame[..128], 1054, sender);
    let missing = |offloads| Err(BadOffload::NotNegotiated(offloads));
    assert_eq!(check(&vnet, Offloads::CSUM | Offloads::TSO4), Ok(vnet));
    assert_eq!(check(&vnet, Offloads::CSUM | Offloads::TSO6), missing(Offloads::TSO4));
    assert_eq!(check(&vnet, Offloads::empty()), missing(Offloads::CSUM | Offloads::TSO4));
    let ecn = VnetHeader { gso_type: GSO_TCPV4 | GSO_ECN, ..vnet };
    assert_eq!(check(&ecn, Offloads::all()), Ok(ecn));
    assert_eq!(check(&ecn, Offloads::CSUM | Offloads::TSO4), missing(Offloads::ECN));
}

#[test]
fn receivers_get_what_they_accept() {
    let plain = VnetHeader::default();
    assert_eq!(for_receiver(&plain, Offloads::empty()), Some(plain));
    let valid = VnetHeader { flags: DATA_VALID, ..plain };
    assert_eq!(for_receiver(&valid, Offloads::CSUM), Some(valid));
    assert_eq!(for_receiver(&valid, Offloads::TSO4), Some(plain));
    let partial = VnetHeader { flags: NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..plain };
    assert_eq!(for_receiver(&partial, Offloads::CSUM), Some(partial));
    assert_eq!(for_receiver(&partial, Offloads::empty()), None);
    let (_, gso) = tcp();
    assert_eq!(for_receiver(&gso, Offloads::CSUM | Offloads::TSO4), Some(gso));
    assert_eq!(for_receiver(&gso, Offloads::all().without(Offloads::TSO4)), None);
    assert_eq!(for_receiver(&gso, Offloads::all().without(Offloads::CSUM)), None);
    let needed = [(GSO_TCPV6, Offloads::TSO6), (GSO_UDP_L4, Offloads::USO)];
    for (gso_type, offload) in needed {
        assert_eq!(needs(&VnetHeader { gso_type, ..gso }), Offloads::CSUM | offload);
    }
}

proptest! {
    #[test]
    fn what_passes_once_passes_unchanged(
        vnet in any::<[u8; 12]>(),
        head in prop::collection::vec(any::<u8>(), 0..128),
        more in 0..70_000u32,
    ) {
        let frame_len = head.len() as u32 + more;
        let vnet = VnetHeader::from_bytes(&vnet);
        if let Ok(checked) = check(&vnet, &head, frame_len, Offloads::all()) {
            prop_assert_eq!(check(&checked, &head, frame_len, Offloads::all()), Ok(checked));
        }
    }
}
