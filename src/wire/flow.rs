//! A hash of a frame's flow, to choose a queue by.
//!
//! Owns what a flow is: the 5-tuple of TCP and UDP; addresses and protocol of other IP packets and
//! of fragments, which carry no ports but must stay with each other; the MAC addresses and the
//! ethertype of the rest. Frames of one flow have one hash, in both directions: so a queue that is
//! chosen by it keeps their order, and what a guest sends tells where it wants the answers.
//!
//! It is no defence: a sender can choose flows that collide, and gains nothing but one busy queue
//! at the receiver that it floods anyway.

use super::ethernet::{self, ETHERTYPE_IPV4, MacAddr};
use super::headers::{self, Headers, L3, PROTOCOL_TCP, PROTOCOL_UDP};

/// Odd, and without a pattern: 2^64 divided by the golden ratio.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// One side of a flow, as numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct End {
    address: u128,
    port: u16,
}

/// The hash of the flow of the frame whose first bytes are `head`; its low bits are as good as any.
#[inline]
pub fn flow_hash(head: &[u8]) -> u32 {
    plain_hash(head).unwrap_or_else(|| any_hash(head))
}

/// The hash of most frames: TCP or UDP in whole IPv4 packets without options and VLAN tags.
#[inline]
fn plain_hash(head: &[u8]) -> Option<u32> {
    let ip: &[u8; headers::IPV4_LEN + 4] = head.get(ethernet::HEADER_LEN..)?.first_chunk()?;
    let [version, _, _, _, _, _, f0, f1, _, protocol, _, _, ends @ ..] = *ip;
    let [a0, a1, a2, a3, b0, b1, b2, b3, p0, p1, q0, q1] = ends;
    let plain = head.get(12..14) == Some(&ETHERTYPE_IPV4.to_be_bytes())
        && version == 0x45
        && !headers::is_fragment([f0, f1])
        && matches!(protocol, PROTOCOL_TCP | PROTOCOL_UDP);
    let end = |address: [u8; 4], port: [u8; 2]| End {
        address: u128::from(u32::from_be_bytes(address)),
        port: u16::from_be_bytes(port),
    };
    let (a, b) = (end([a0, a1, a2, a3], [p0, p1]), end([b0, b1, b2, b3], [q0, q1]));
    plain.then(|| hash_ends(u64::from(protocol), a, b))
}

#[inline(never)]
fn any_hash(head: &[u8]) -> u32 {
    if let Some(headers) = headers::parse(head) {
        return ip_hash(head, &headers);
    }
    let end = |mac: Option<MacAddr>| End {
        address: u128::from(mac.unwrap_or_default().to_u64()),
        port: 0,
    };
    let ethertype = head.get(12..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
    let kind = u64::from(u16::from_be_bytes(ethertype)) << 8;
    hash_ends(kind, end(ethernet::src(head)), end(ethernet::dst(head)))
}

fn ip_hash(head: &[u8], headers: &Headers) -> u32 {
    let (begin, len) = match headers.l3 {
        L3::Ipv4 => (headers.l3_offset + 12, 4),
        L3::Ipv6 => (headers.l3_offset + 8, 16),
    };
    let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u128::from(*byte));
    let field = |at: usize, len: usize| number(head.get(at..at + len).unwrap_or_default());
    let transport = matches!(headers.l4_protocol, PROTOCOL_TCP | PROTOCOL_UDP);
    // The ports may lie beyond the head.
    let has_ports = transport && !headers.fragment && headers.l4_offset + 4 <= head.len();
    let port = |at: usize| if has_ports { field(at, 2) as u16 } else { 0 };
    let end = |side: usize| End {
        address: field(begin + side * len, len),
        port: port(headers.l4_offset + side * 2),
    };
    hash_ends(u64::from(headers.l4_protocol), end(0), end(1))
}

/// Mixes a flow's two ends, whichever of them sends.
#[inline]
fn hash_ends(kind: u64, a: End, b: End) -> u32 {
    let (low, high) = if a <= b { (a, b) } else { (b, a) };
    let mut hash = mix(kind, u64::from(low.port) << 16 | u64::from(high.port));
    hash = mix(mix(hash, low.address as u64), high.address as u64);
    if (low.address | high.address) >> 64 != 0 {
        hash = mix(mix(hash, (low.address >> 64) as u64), (high.address >> 64) as u64);
    }
    finish(hash)
}

#[inline]
fn mix(hash: u64, word: u64) -> u64 {
    (hash ^ word).wrapping_mul(MULTIPLIER).rotate_left(29)
}

/// Spreads every input bit over the low half: a product carries upwards only.
#[inline]
fn finish(hash: u64) -> u32 {
    let hash = (hash ^ (hash >> 32)).wrapping_mul(MULTIPLIER);
    (hash ^ (hash >> 29)) as u32
}

#[cfg(test)]
mod tests {
    use super::super::testing::Packet;
    use super::*;

    fn hash_with(packet: &Packet, changes: &[(usize, u8)]) -> u32 {
        let mut frame = packet.build();
        for (at, value) in changes {
            frame[*at] = *value;
        }
        flow_hash(&frame)
    }

    #[test]
    fn a_flow_is_its_five_tuple() {
        for v6 in [false, true] {
            let packet = Packet { v6, ..Packet::default() };
            let hash = hash_with(&packet, &[]);
            // Payload, sequence number and MAC addresses are no part of it.
            let other = Packet { sequence: 1, payload: vec![1; 9], ..packet.clone() };
            assert_eq!(hash_with(&other, &[(0, 6), (11, 9)]), hash);
            let other = Packet { vlan_tags: 1, ..packet.clone() };
            assert_eq!(hash_with(&other, &[]), hash);
            // Each of the five is.
            let l4 = packet.l4_offset();
            let addresses = if v6 { 14 + 8..14 + 40 } else { 14 + 12..14 + 20 };
            for at in addresses.chain(l4..l4 + 4) {
                assert_ne!(hash_with(&packet, &[(at, 0x55)]), hash, "byte {at}");
            }
            let protocol = if v6 { 14 + 6 } else { 14 + 9 };
            assert_ne!(hash_with(&packet, &[(protocol, PROTOCOL_UDP)]), hash);
        }
    }

    #[test]
    fn both_directions_are_one_flow() {
        for v6 in [false, true] {
            let packet = Packet { v6, ..Packet::default() };
            let (l4, mut frame) = (packet.l4_offset(), packet.build());
            let there = flow_hash(&frame);
            let (at, len) = if v6 { (14 + 8, 16) } else { (14 + 12, 4) };
            let (source, destination) = frame[at..at + 2 * len].split_at_mut(len);
            source.swap_with_slice(destination);
            assert_ne!(flow_hash(&frame), there, "ports belong to their addresses");
            let (source, destination) = frame[l4..l4 + 4].split_at_mut(2);
            source.swap_with_slice(destination);
            assert_eq!(flow_hash(&frame), there);
        }
        let arp: Vec<u8> = (0..60).collect();
        let mut back = arp.clone();
        back[..12].rotate_left(6);
        assert_eq!(flow_hash(&arp), flow_hash(&back));
    }

    #[test]
    fn fragments_of_a_packet_stay_together() {
        for v6 in [false, true] {
            let packet = Packet { v6, tcp: false, fragment: true, ..Packet::default() };
            let ports = packet.l4_offset();
            let hash = hash_with(&packet, &[]);
            assert_eq!(hash_with(&packet, &[(ports, 0xaa), (ports + 3, 0xbb)]), hash);
            assert_ne!(hash_with(&Packet { fragment: false, ..packet }, &[]), hash);
        }
    }

    #[test]
    fn other_frames_are_told_apart_by_mac_addresses() {
        let mut arp = [0; 60];
        arp[12..14].copy_from_slice(&[8, 6]);
        let hash = flow_hash(&arp);
        for at in 0..12 {
            let mut other = arp;
            other[at] = 1;
            assert_ne!(flow_hash(&other), hash);
        }
        arp[20] = 1;
        assert_eq!(flow_hash(&arp), hash);
        // Too short for anything, and not looked into.
        assert_eq!(flow_hash(&[]), flow_hash(&[]));
        flow_hash(&arp[..13]);
    }

    #[test]
    fn low_bits_spread_flows_evenly() {
        let packet = Packet::default();
        let mut queues = [0; 8];
        for port in 0..=255 {
            let port_low = packet.l4_offset() + 1;
            queues[hash_with(&packet, &[(port_low, port)]) as usize % 8] += 1;
        }
        // 32 each on average; the hash is fixed, so this is no matter of luck.
        assert!(queues.iter().all(|flows| (16..=48).contains(flows)), "{queues:?}");
    }
}
