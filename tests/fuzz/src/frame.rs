//! A sender of any frames: what the switch takes the headers for, and what it lets pass.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use ringswitch::frame::HEAD_LEN;
use ringswitch::wire::ethernet;
use ringswitch::wire::flow::flow_hash;
use ringswitch::wire::headers::{self, L3};
use ringswitch::wire::offload::{self, Offloads};
use ringswitch::wire::vnet::{DATA_VALID, Encoded, GSO_NONE, NEEDS_CSUM, VnetHeader};

use crate::input::Input;
use crate::packet::{Layout, Packet, damage, layout};

/// IP protocol number of the authentication header (RFC 4302).
const AUTHENTICATION: u8 = 51;

/// Runs one input.
///
/// # Panics
///
/// When the switch is wrong.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (kind, sender) = (input.u8(), set(input.u8()));
    let packet = if kind & 1 == 0 {
        let mut vnet = [0; VnetHeader::LEN];
        vnet.iter_mut().for_each(|byte| *byte = input.u8());
        assert_eq!(Encoded::from_bytes(&vnet).to_bytes(), vnet);
        assert_eq!(VnetHeader::from_bytes(&vnet).encode().to_bytes(), vnet);
        Packet { frame: input.rest().to_vec(), vnet: VnetHeader::from_bytes(&vnet) }
    } else {
        let mut packet = Packet::from_input(&mut input);
        damage(&mut packet, &mut input);
        packet
    };
    let frame = &packet.frame[..];
    let head = &frame[..frame.len().min(HEAD_LEN)];
    check_layout(frame);
    check_layout(head);
    check_flow(head);
    let octets = |at: usize| frame.get(at..at + 6).map(<[u8]>::to_vec);
    assert_eq!(ethernet::dst(frame).map(|mac| mac.0.to_vec()), octets(0));
    assert_eq!(ethernet::src(frame).map(|mac| mac.0.to_vec()), octets(6));
    check_header(&packet.vnet, head, frame.len() as u32, sender);
}

/// A set of offloads.
pub fn set(bits: u8) -> Offloads {
    let all = [Offloads::CSUM, Offloads::TSO4, Offloads::TSO6, Offloads::ECN, Offloads::USO];
    let chosen = all.iter().enumerate().filter(|(bit, _)| bits >> bit & 1 != 0);
    chosen.fold(Offloads::empty(), |set, (_, offload)| set | *offload)
}

/// The headers are where the specifications have them, and where etherparse finds them.
fn check_layout(frame: &[u8]) {
    let found = headers::parse(frame).map(|headers| Layout {
        v6: headers.l3 == L3::Ipv6,
        l3: headers.l3_offset,
        protocol: headers.l4_protocol,
        l4: headers.l4_offset,
        fragment: headers.fragment,
    });
    assert_eq!(found, layout(frame), "where the headers are");
    let (Some(found), Ok(packet)) = (found, SlicedPacket::from_ethernet(frame)) else { return };
    let offset = |part: &[u8]| part.as_ptr() as usize - frame.as_ptr() as usize;
    let l3 = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => (false, offset(ip.header().slice())),
        Some(NetSlice::Ipv6(ip)) => (true, offset(ip.header().slice())),
        _ => return,
    };
    assert_eq!(l3, (found.v6, found.l3), "the IP header, says etherparse");
    let l4 = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => (6, offset(tcp.slice())),
        Some(TransportSlice::Udp(udp)) => (17, offset(udp.slice())),
        _ => return,
    };
    // Behind a fragment header nothing is looked for, though all of the packet may be there; nor is it
    // behind an authentication header, which is a protocol of IPv4 and no part of it.
    let beyond = if found.v6 { found.fragment } else { found.protocol == AUTHENTICATION };
    assert!(beyond || l4 == (found.protocol, found.l4), "{l4:?}, says etherparse; {found:?}");
}

/// Both directions of a flow are one, and nothing behind the ports matters.
fn check_flow(head: &[u8]) {
    let hash = flow_hash(head);
    let Some(at) = layout(head) else { return };
    let (address, len) = if at.v6 { (at.l3 + 8, 16) } else { (at.l3 + 12, 4) };
    let mut back = head.to_vec();
    let (a, b) = back[address..address + 2 * len].split_at_mut(len);
    a.swap_with_slice(b);
    let transport = matches!(at.protocol, 6 | 17) && !at.fragment;
    let mut end = at.l4;
    if transport && at.l4 + 4 <= head.len() {
        end += 4;
        back[at.l4..end].rotate_left(2);
    }
    back[end..].fill(0x5a);
    assert_eq!(flow_hash(&back), hash, "the hash of a flow and of its answers");
}

/// A header that passes says nothing but what the frame bears out.
fn check_header(vnet: &VnetHeader, head: &[u8], len: u32, sender: Offloads) {
    let Ok(checked) = offload::check(vnet, head, len, sender) else {
        // Whoever may do less is refused as well.
        assert!(offload::check(vnet, head, len, Offloads::empty()).is_err(), "{vnet:?}");
        return;
    };
    assert_eq!(offload::check(&checked, head, len, sender), Ok(checked), "twice");
    assert_eq!(checked.num_buffers, 0);
    match checked.flags {
        0 | DATA_VALID => {
            let plain = VnetHeader { flags: checked.flags, ..VnetHeader::default() };
            assert_eq!(checked, plain, "fields without a meaning");
        }
        NEEDS_CSUM => {
            let (start, offset) = (u32::from(checked.csum_start), u32::from(checked.csum_offset));
            assert!(start >= 14 && start + offset + 2 <= len, "{checked:?} of {len}");
        }
        flags => panic!("flags {flags:#x}"),
    }
    if checked.gso_type == GSO_NONE {
        assert_eq!((checked.gso_size, checked.hdr_len), (0, 0));
    } else {
        let at = layout(head).expect("an IP packet");
        let tcp = matches!(checked.gso_type & 0x7f, 1 | 4);
        assert!(!at.fragment && checked.gso_size > 0, "{checked:?}");
        assert_eq!(at.protocol, if tcp { 6 } else { 17 });
        assert_eq!(usize::from(checked.csum_start), at.l4);
        assert_eq!(checked.csum_offset, if tcp { 16 } else { 6 });
        assert!(checked.gso_type & 0x7f != 1 || !at.v6, "TSO4 of IPv6");
        assert!(checked.gso_type & 0x7f != 4 || at.v6, "TSO6 of IPv4");
        let l4 = if tcp { usize::from(head[at.l4 + 12] >> 4) * 4 } else { 8 };
        assert_eq!(usize::from(checked.hdr_len), at.l4 + l4);
        assert!(usize::from(checked.hdr_len) <= head.len());
    }
    assert!(sender.contains(offload::needs(&checked)), "what wasn't negotiated");
    for bits in 0..32 {
        let accepts = set(bits);
        let takes = accepts.contains(offload::needs(&checked));
        let got = offload::for_receiver(&checked, accepts);
        assert_eq!(got.is_some(), takes, "{checked:?} for {accepts}");
        let flags = if bits & 1 == 0 { 0 } else { checked.flags };
        assert!(got.is_none_or(|got| got == VnetHeader { flags, ..checked }));
    }
}
