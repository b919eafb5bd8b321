//! Where the IP and transport headers of a frame are.
//!
//! Owns the walk from the Ethernet header over VLAN tags, IPv4 options and IPv6 extension headers.
//! Reads nothing beyond the slice it is given, and changes nothing.

use std::net::IpAddr;

use super::ethernet::{
    ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, HEADER_LEN,
    VLAN_TAG_LEN,
};

/// IP protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = 1;

/// IP protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// IP protocol number of ICMPv6.
pub const PROTOCOL_ICMP6: u8 = 58;

/// Bytes of an IPv4 header without options (RFC 791).
pub const IPV4_LEN: usize = 20;
/// Bytes of the fixed IPv6 header (RFC 8200).
pub const IPV6_LEN: usize = 40;

/// VLAN tags that are skipped: a customer's inside a service provider's (IEEE 802.1ad).
const MAX_VLAN_TAGS: usize = 2;
/// Extension headers that are followed. RFC 8200, section 4.1, knows seven in one packet, and
/// each is to be there once (destination options twice).
const MAX_EXTENSIONS: usize = 8;

/// The network protocol of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L3 {
    /// RFC 791.
    Ipv4,
    /// RFC 8200.
    Ipv6,
}

/// Where the headers of an IP frame are. Offsets count from the frame's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// The network protocol.
    pub l3: L3,
    /// Where its header starts; all of its fixed part lies within the parsed bytes.
    pub l3_offset: usize,
    /// The protocol that the IP header (or the last extension header) announces.
    pub l4_protocol: u8,
    /// Where what follows the IP header, its options and extension headers starts; it may be the
    /// end of the parsed bytes.
    pub l4_offset: usize,
    /// Whether this is a fragment (IPv6: has a fragment header at all). All but a packet's first
    /// fragment have no transport header at `l4_offset`.
    pub fragment: bool,
}

impl Headers {
    /// Source and destination; `head` is what was parsed.
    pub fn hosts(&self, head: &[u8]) -> [Option<IpAddr>; 2] {
        let at = |offset: usize| address(head, self.l3_offset + offset, self.l3);
        match self.l3 {
            L3::Ipv4 => [at(12), at(16)],
            L3::Ipv6 => [at(8), at(24)],
        }
    }

    /// Source and destination port, where there are some; `head` is what was parsed.
    pub fn ports(&self, head: &[u8]) -> [Option<u16>; 2] {
        if self.fragment || ![PROTOCOL_TCP, PROTOCOL_UDP].contains(&self.l4_protocol) {
            return [None, None];
        }
        [be16(head, self.l4_offset), be16(head, self.l4_offset + 2)]
    }
}

/// Sender and target of an untagged ARP packet for IPv4 (RFC 826).
pub fn arp_hosts(head: &[u8]) -> Option<[Option<IpAddr>; 2]> {
    let is_arp = be16(head, HEADER_LEN - 2)? == ETHERTYPE_ARP;
    is_arp.then(|| [28, 38].map(|offset| address(head, offset, L3::Ipv4)))
}

fn address(bytes: &[u8], offset: usize, l3: L3) -> Option<IpAddr> {
    let bytes = bytes.get(offset..)?;
    match l3 {
        L3::Ipv4 => bytes.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        L3::Ipv6 => bytes.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
    }
}

/// Finds the headers of an IP frame in its first bytes, behind up to two VLAN tags.
///
/// `None` when it is not IP, when its IP header is malformed, or when the IP headers do not end
/// within `head`. Lengths that IP announces for the packet are not looked at.
pub fn parse(head: &[u8]) -> Option<Headers> {
    let mut l3_offset = HEADER_LEN;
    let mut ethertype = be16(head, l3_offset - 2)?;
    for _ in 0..MAX_VLAN_TAGS {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
            break;
        }
        l3_offset += VLAN_TAG_LEN;
        ethertype = be16(head, l3_offset - 2)?;
    }
    match ethertype {
        ETHERTYPE_IPV4 => parse_ipv4(head, l3_offset),
        ETHERTYPE_IPV6 => parse_ipv6(head, l3_offset),
        _ => None,
    }
}

fn parse_ipv4(head: &[u8], l3_offset: usize) -> Option<Headers> {
    let header: &[u8; IPV4_LEN] = head.get(l3_offset..)?.first_chunk()?;
    let length = usize::from(header[0] & 0xf) * 4;
    let l4_offset = l3_offset + length;
    if header[0] >> 4 != 4 || length < IPV4_LEN || l4_offset > head.len() {
        return None;
    }
    let fragment = is_fragment([header[6], header[7]]);
    Some(Headers { l3: L3::Ipv4, l3_offset, l4_protocol: header[9], l4_offset, fragment })
}

/// Whether these flags and fragment offset of an IPv4 header are those of a fragment: there are more
/// of it, or it has an offset. The flag "don't fragment" and the reserved one are no matter.
#[inline]
pub(super) fn is_fragment(field: [u8; 2]) -> bool {
    u16::from_be_bytes(field) & 0x3fff != 0
}

fn parse_ipv6(head: &[u8], l3_offset: usize) -> Option<Headers> {
    let header: &[u8; IPV6_LEN] = head.get(l3_offset..)?.first_chunk()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let mut next = header[6];
    let mut offset = l3_offset + IPV6_LEN;
    for _ in 0..=MAX_EXTENSIONS {
        let fragment = next == FRAGMENT;
        let Some(length) = extension_len(next, head.get(offset..)?)? else {
            return Some(Headers {
                l3: L3::Ipv6,
                l3_offset,
                l4_protocol: next,
                l4_offset: offset,
                fragment: false,
            });
        };
        next = *head.get(offset..offset + length)?.first()?;
        offset += length;
        // What follows is the middle of a packet perhaps, so no header is looked for in it.
        if fragment {
            return Some(Headers {
                l3: L3::Ipv6,
                l3_offset,
                l4_protocol: next,
                l4_offset: offset,
                fragment,
            });
        }
    }
    None
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// Bytes of the IPv6 extension header of type `kind` that starts `bytes`: `Some(None)` when `kind`
/// is no extension header, `None` when its length lies beyond `bytes`.
fn extension_len(kind: u8, bytes: &[u8]) -> Option<Option<usize>> {
    let length_field = || bytes.get(1).map(|length| usize::from(*length));
    Some(match kind {
        HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => Some((length_field()? + 1) * 8),
        // RFC 4302 counts in 4-byte units.
        AUTHENTICATION => Some((length_field()? + 2) * 4),
        FRAGMENT => Some(8),
        _ => None,
    })
}

/// The big-endian number at `offset`.
#[inline]
fn be16(bytes: &[u8], offset: usize) -> Option<u16> {
    let field: &[u8; 2] = bytes.get(offset..)?.first_chunk()?;
    Some(u16::from_be_bytes(*field))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::Packet;
    use super::*;

    #[test]
    fn offsets_are_found_behind_tags_and_options() {
        for vlan_tags in 0..=2 {
            for (v6, l3_options) in [(false, 0), (false, 12), (true, 0), (true, 22)] {
                for tcp in [false, true] {
                    for fragment in [false, true] {
                        let packet = Packet {
                            v6,
                            tcp,
                            vlan_tags,
                            l3_options,
                            fragment,
                            ..Packet::default()
                        };
                        let expected = Headers {
                            l3: if v6 { L3::Ipv6 } else { L3::Ipv4 },
                            l3_offset: packet.l3_offset(),
                            l4_protocol: if tcp { PROTOCOL_TCP } else { PROTOCOL_UDP },
                            l4_offset: packet.l4_offset(),
                            fragment,
                        };
                        let frame = packet.build();
                        assert_eq!(parse(&frame), Some(expected));
                        assert_eq!(parse(&frame[..packet.l4_offset()]), Some(expected));
                        assert_eq!(parse(&frame[..packet.l4_offset() - 1]), None);
                    }
                }
            }
        }
    }

    #[test]
    fn later_fragments_are_fragments() {
        let mut frame = Packet::default().build();
        frame[14 + 7] = 1;
        assert!(parse(&frame).unwrap().fragment);
        // Don't fragment.
        frame[14 + 6..14 + 8].copy_from_slice(&[0x40, 0]);
        assert!(!parse(&frame).unwrap().fragment);
    }

    #[test]
    fn what_is_not_ip_has_no_headers() {
        let frame = Packet::default().build();
        for (at, value) in [(13, 6), (14, 0x65), (14, 0x44)] {
            let mut frame = frame.clone();
            frame[at] = value;
            assert_eq!(parse(&frame), None);
        }
        // A third tag.
        let mut frame = Packet { vlan_tags: 2, ..Packet::default() }.build();
        frame[20..22].copy_from_slice(&[0x81, 0]);
        assert_eq!(parse(&frame), None);
    }

    #[test]
    fn extension_headers_are_followed_so_far() {
        let frame = |extensions: usize| {
            let mut frame = Packet { v6: true, ..Packet::default() }.build();
            frame.truncate(54);
            frame[14 + 6] = DESTINATION_OPTIONS;
            for i in 0..extensions {
                let next = if i + 1 < extensions { DESTINATION_OPTIONS } else { PROTOCOL_UDP };
                frame.extend([next, 0, 0, 0, 0, 0, 0, 0]);
            }
            frame
        };
        let found = parse(&frame(MAX_EXTENSIONS)).unwrap();
        assert_eq!((found.l4_protocol, found.l4_offset), (PROTOCOL_UDP, 54 + 8 * MAX_EXTENSIONS));
        assert_eq!(parse(&frame(MAX_EXTENSIONS + 1)), None);
    }

    #[test]
    fn an_authentication_header_counts_in_words() {
        let mut frame = Packet { v6: true, ..Packet::default() }.build();
        frame.truncate(54);
        frame[14 + 6] = AUTHENTICATION;
        frame.extend([PROTOCOL_TCP, 4]);
        frame.extend([0; 22]);
        let found = parse(&frame).unwrap();
        assert_eq!((found.l4_protocol, found.l4_offset), (PROTOCOL_TCP, 54 + 24));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_within_bounds(
            mut head in prop::collection::vec(any::<u8>(), 0..200),
            kind in 0..3,
        ) {
            // Two in three look like IP at first.
            let start: [u8; 3] = match kind {
                0 => [8, 0, 0x46],
                1 => [0x86, 0xdd, 0x60],
                _ => [0x81, 0, 0],
            };
            if let Some(bytes) = head.get_mut(12..15) {
                bytes.copy_from_slice(&start);
            }
            if let Some(found) = parse(&head) {
                prop_assert!(found.l3_offset < found.l4_offset && found.l4_offset <= head.len());
            }
            super::super::flow::flow_hash(&head);
        }
    }
}
