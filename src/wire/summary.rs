//! A frame in a few words, for people: `tcp 10.0.0.1:1234 > 10.0.0.2:80`.

use std::net::{IpAddr, SocketAddr};

use super::ethernet::{ETHERTYPE_VLAN, HEADER_LEN};
use super::headers::{self, PROTOCOL_ICMP, PROTOCOL_ICMP6, PROTOCOL_TCP, PROTOCOL_UDP, arp_hosts};

/// What the frame is that begins with `head`: protocol, addresses, ports.
#[must_use]
pub fn summary(head: &[u8]) -> String {
    let word = |offset: usize| -> Option<u16> {
        head.get(offset..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
    };
    let ethertype = word(HEADER_LEN - 2).unwrap_or_default();
    let vlan = match (ethertype, word(HEADER_LEN)) {
        (ETHERTYPE_VLAN, Some(tag)) => format!("vlan {} ", tag & 0xfff),
        _ => String::new(),
    };
    let Some(found) = headers::parse(head) else {
        return match arp_hosts(head) {
            Some(hosts) => format!("arp {}", ends(hosts, [None, None])),
            None => format!("{vlan}ethertype {ethertype:#06x}"),
        };
    };
    let protocol = match found.l4_protocol {
        PROTOCOL_TCP => "tcp".to_owned(),
        PROTOCOL_UDP => "udp".to_owned(),
        PROTOCOL_ICMP => "icmp".to_owned(),
        PROTOCOL_ICMP6 => "icmp6".to_owned(),
        other => format!("ip protocol {other}"),
    };
    format!("{vlan}{protocol} {}", ends(found.hosts(head), found.ports(head)))
}

/// `10.0.0.1:1234 > 10.0.0.2:80`
fn ends([from, to]: [Option<IpAddr>; 2], [source, destination]: [Option<u16>; 2]) -> String {
    let end = |host: Option<IpAddr>, port| match (host, port) {
        (Some(host), Some(port)) => SocketAddr::new(host, port).to_string(),
        (Some(host), None) => host.to_string(),
        (None, _) => "?".to_owned(),
    };
    format!("{} > {}", end(from, source), end(to, destination))
}

#[cfg(test)]
mod tests {
    use super::super::testing::Packet;
    use super::*;

    #[test]
    fn frames_are_told_apart() {
        let mut arp = [0; 42];
        arp[12..14].copy_from_slice(&[8, 6]);
        arp[28..32].copy_from_slice(&[10, 0, 0, 1]);
        arp[38..42].copy_from_slice(&[10, 0, 0, 2]);
        assert_eq!(summary(&arp), "arp 10.0.0.1 > 10.0.0.2");
        assert_eq!(summary(&arp[..30]), "arp ? > ?");
        assert_eq!(summary(&[0; 14]), "ethertype 0x0000");
        assert_eq!(summary(&[]), "ethertype 0x0000");
        let tagged = Packet { vlan_tags: 1, tcp: true, ..Packet::default() }.build();
        let text = summary(&tagged);
        assert!(text.starts_with("vlan ") && text.contains(" tcp "), "{text}");
        let v6 = Packet { v6: true, ..Packet::default() }.build();
        assert!(summary(&v6).starts_with("tcp ["), "{}", summary(&v6));
        let fragment = Packet { fragment: true, ..Packet::default() }.build();
        assert_eq!(summary(&fragment).matches(':').count(), 0, "no ports: {}", summary(&fragment));
    }
}
