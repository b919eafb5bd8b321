//! Filters: which frames somebody wants to see, said in words that users of tcpdump know.
//!
//! ```text
//! filter    = all { "or" all }
//! all       = one { "and" one }
//! one       = "not" one | "(" filter ")" | term
//! term      = "arp" | "ip" | "ip6" | "tcp" | "udp" | "icmp" | "icmp6" | "broadcast" | "multicast"
//!           | "dropped"
//!           | [ "src" | "dst" ] ( "host" ADDRESS | "net" ADDRESS "/" BITS | "port" NUMBER )
//!           | "ether" [ "src" | "dst" ] MAC
//! ```
//!
//! Judged by a frame's first bytes alone: a port is that of a packet's first fragment.

use std::net::IpAddr;
use std::str::FromStr;

use thiserror::Error;

use super::ethernet::{self, ETHERTYPE_ARP, MacAddr};
use super::headers::{
    self, Headers, L3, PROTOCOL_ICMP, PROTOCOL_ICMP6, PROTOCOL_TCP, PROTOCOL_UDP,
};

/// The longest filter, in words.
const MAX_WORDS: usize = 128;
/// How deep parentheses and negations may be.
const MAX_DEPTH: usize = 16;

/// Which frames are wanted; all by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter(Option<Node>);

/// A text that is no filter.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FilterError {
    /// A word in the wrong place.
    #[error("the filter has {0:?}; expected {1}")]
    Unexpected(String, &'static str),
    /// It ends too early.
    #[error("the filter ends where {0} is expected")]
    Ends(&'static str),
    /// Too long, or too deep.
    #[error("the filter is too long: at most {MAX_WORDS} words, {MAX_DEPTH} deep")]
    TooLong,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Or(Vec<Node>),
    And(Vec<Node>),
    Not(Box<Node>),
    Term(Term),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    Arp,
    Ip(L3),
    Protocol(u8),
    Broadcast,
    Multicast,
    Dropped,
    Net(Side, IpAddr, u32),
    Port(Side, u16),
    Ether(Side, MacAddr),
}

/// Which of a frame's two addresses or ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
    Either,
}

impl Side {
    fn any(self, source: bool, destination: bool) -> bool {
        match self {
            Self::Source => source,
            Self::Destination => destination,
            Self::Either => source || destination,
        }
    }
}

impl Filter {
    /// Whether a frame is wanted that begins with `head`; `dropped`: it was, somewhere.
    #[must_use]
    pub fn matches(&self, head: &[u8], dropped: bool) -> bool {
        let Some(node) = &self.0 else { return true };
        node.matches(&Seen { head, headers: headers::parse(head), dropped })
    }
}

/// What is known of a frame.
struct Seen<'a> {
    head: &'a [u8],
    headers: Option<Headers>,
    dropped: bool,
}

impl Node {
    fn matches(&self, seen: &Seen<'_>) -> bool {
        match self {
            Self::Or(nodes) => nodes.iter().any(|node| node.matches(seen)),
            Self::And(nodes) => nodes.iter().all(|node| node.matches(seen)),
            Self::Not(node) => !node.matches(seen),
            Self::Term(term) => term.matches(seen),
        }
    }
}

impl Term {
    fn matches(&self, seen: &Seen<'_>) -> bool {
        let destination = ethernet::dst(seen.head);
        match self {
            Self::Arp => seen.head.get(12..14) == Some(&ETHERTYPE_ARP.to_be_bytes()),
            Self::Ip(l3) => seen.headers.is_some_and(|headers| headers.l3 == *l3),
            Self::Protocol(wanted) => seen.protocol() == Some(*wanted),
            Self::Broadcast => destination == Some(MacAddr([0xff; 6])),
            Self::Multicast => destination.is_some_and(MacAddr::is_multicast),
            Self::Dropped => seen.dropped,
            Self::Ether(side, mac) => {
                side.any(ethernet::src(seen.head) == Some(*mac), destination == Some(*mac))
            }
            Self::Net(side, net, bits) => {
                let within = |address: Option<IpAddr>| {
                    address.is_some_and(|address| is_within(address, *net, *bits))
                };
                let [source, destination] = seen.hosts();
                side.any(within(source), within(destination))
            }
            Self::Port(side, port) => {
                let [source, destination] = seen.ports();
                side.any(source == Some(*port), destination == Some(*port))
            }
        }
    }
}

impl Seen<'_> {
    fn protocol(&self) -> Option<u8> {
        self.headers.map(|headers| headers.l4_protocol)
    }

    /// Source and destination; those of an ARP packet, too.
    fn hosts(&self) -> [Option<IpAddr>; 2] {
        match &self.headers {
            Some(headers) => headers.hosts(self.head),
            None => headers::arp_hosts(self.head).unwrap_or_default(),
        }
    }

    fn ports(&self) -> [Option<u16>; 2] {
        self.headers.as_ref().map_or([None, None], |headers| headers.ports(self.head))
    }
}

/// Whether the first `bits` of both addresses are the same.
fn is_within(address: IpAddr, net: IpAddr, bits: u32) -> bool {
    let same = |a: u128, b: u128, width: u32| {
        (a ^ b).checked_shr(width.saturating_sub(bits)).unwrap_or(0) == 0
    };
    match (address, net) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(a.to_bits().into(), b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128),
        _ => false,
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let spaced = text.replace('(', " ( ").replace(')', " ) ");
        let words: Vec<_> = spaced.split_whitespace().collect();
        if words.is_empty() {
            return Ok(Self(None));
        }
        if words.len() > MAX_WORDS {
            return Err(FilterError::TooLong);
        }
        let mut words = Words(&words);
        let node = words.filter(0)?;
        match words.next() {
            None => Ok(Self(Some(node))),
            Some(word) => Err(unexpected(word, "\"and\", \"or\" or its end")),
        }
    }
}

fn unexpected(word: &str, expected: &'static str) -> FilterError {
    FilterError::Unexpected(word.to_owned(), expected)
}

/// What a filter's term may begin with.
const TERMS: &str = "arp, ip, ip6, tcp, udp, icmp, icmp6, broadcast, multicast, dropped, \
                     [src|dst] host|net|port or ether [src|dst]";

/// What a host is.
const ADDRESS: &str = "an IP address such as 10.0.0.1 or fd00::1";

/// The words that are left.
struct Words<'a>(&'a [&'a str]);

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// Takes `word` if it is next.
    fn takes(&mut self, word: &str) -> bool {
        let found = self.0.first() == Some(&word);
        if found {
            self.next();
        }
        found
    }

    fn filter(&mut self, depth: usize) -> Result<Node, FilterError> {
        let mut nodes = vec![self.all(depth)?];
        while self.takes("or") {
            nodes.push(self.all(depth)?);
        }
        Ok(Node::Or(nodes))
    }

    fn all(&mut self, depth: usize) -> Result<Node, FilterError> {
        let mut nodes = vec![self.one(depth)?];
        while self.takes("and") {
            nodes.push(self.one(depth)?);
        }
        Ok(Node::And(nodes))
    }

    fn one(&mut self, depth: usize) -> Result<Node, FilterError> {
        if depth > MAX_DEPTH {
            return Err(FilterError::TooLong);
        }
        if self.takes("not") {
            return Ok(Node::Not(Box::new(self.one(depth + 1)?)));
        }
        if self.takes("(") {
            let node = self.filter(depth + 1)?;
            return match self.next() {
                Some(")") => Ok(node),
                Some(word) => Err(unexpected(word, "\"and\", \"or\" or \")\"")),
                None => Err(FilterError::Ends("\")\"")),
            };
        }
        self.term().map(Node::Term)
    }

    fn term(&mut self) -> Result<Term, FilterError> {
        if self.takes("ether") {
            let side = self.side();
            return Ok(Term::Ether(side, self.value("a MAC address such as 52:54:00:12:34:56")?));
        }
        let side = self.side();
        let word = self.next().ok_or(FilterError::Ends(TERMS))?;
        Ok(match word {
            "host" => {
                let address: IpAddr = self.value(ADDRESS)?;
                Term::Net(side, address, if address.is_ipv4() { 32 } else { 128 })
            }
            "net" => self.net(side)?,
            "port" => Term::Port(side, self.value("a port from 0 to 65535")?),
            _ if side != Side::Either => return Err(unexpected(word, "host, net or port")),
            "arp" => Term::Arp,
            "ip" => Term::Ip(L3::Ipv4),
            "ip6" => Term::Ip(L3::Ipv6),
            "tcp" => Term::Protocol(PROTOCOL_TCP),
            "udp" => Term::Protocol(PROTOCOL_UDP),
            "icmp" => Term::Protocol(PROTOCOL_ICMP),
            "icmp6" => Term::Protocol(PROTOCOL_ICMP6),
            "broadcast" => Term::Broadcast,
            "multicast" => Term::Multicast,
            "dropped" => Term::Dropped,
            _ => return Err(unexpected(word, TERMS)),
        })
    }

    fn side(&mut self) -> Side {
        if self.takes("src") {
            Side::Source
        } else if self.takes("dst") {
            Side::Destination
        } else {
            Side::Either
        }
    }

    fn net(&mut self, side: Side) -> Result<Term, FilterError> {
        const NET: &str = "a network such as 10.0.0.0/8";
        let word = self.next().ok_or(FilterError::Ends(NET))?;
        let parts = word.split_once('/').and_then(|(address, bits)| {
            let (address, bits) = (address.parse::<IpAddr>().ok()?, bits.parse::<u32>().ok()?);
            (bits <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, bits))
        });
        let (address, bits) = parts.ok_or_else(|| unexpected(word, NET))?;
        Ok(Term::Net(side, address, bits))
    }

    fn value<T: FromStr>(&mut self, expected: &'static str) -> Result<T, FilterError> {
        let word = self.next().ok_or(FilterError::Ends(expected))?;
        word.parse().map_err(|_| unexpected(word, expected))
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn tcp() -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4([10, 1, 2, 3], [10, 1, 9, 9], 64)
            .tcp(1234, 80, 1, 1024)
            .write(&mut frame, b"hello")
            .unwrap();
        frame
    }

    fn udp6() -> Vec<u8> {
        let mut frame = Vec::new();
        let (a, b) = ("2001:db8::1".parse().unwrap(), "2001:db8:1::2".parse().unwrap());
        let addresses: [std::net::Ipv6Addr; 2] = [a, b];
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0xff; 6])
            .ipv6(addresses[0].octets(), addresses[1].octets(), 64)
            .udp(53, 5353)
            .write(&mut frame, b"hello")
            .unwrap();
        frame
    }

    fn arp() -> Vec<u8> {
        let mut frame = [[0xff; 6], [2, 0, 0, 0, 0, 1]].concat();
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1]);
        frame.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
        frame
    }

    #[test]
    fn filters_mean_what_users_of_tcpdump_expect() {
        let frames = [tcp(), udp6(), arp()];
        for (text, [a, b, c]) in [
            ("", [true, true, true]),
            ("ip", [true, false, false]),
            ("ip6", [false, true, false]),
            ("arp", [false, false, true]),
            ("tcp", [true, false, false]),
            ("udp", [false, true, false]),
            ("icmp or icmp6", [false, false, false]),
            ("broadcast", [false, true, true]),
            ("multicast and not arp", [false, true, false]),
            ("host 10.1.2.3", [true, false, false]),
            ("src host 10.1.9.9", [false, false, false]),
            ("dst host 10.1.9.9", [true, false, false]),
            ("host 10.0.0.2", [false, false, true]),
            ("net 10.0.0.0/8", [true, false, true]),
            ("net 10.1.0.0/16", [true, false, false]),
            ("net 0.0.0.0/0", [true, false, true]),
            ("src net 2001:db8::/48", [false, true, false]),
            ("host 2001:db8:1::2", [false, true, false]),
            ("net ::/0", [false, true, false]),
            ("port 80", [true, false, false]),
            ("src port 80", [false, false, false]),
            ("src port 53 or dst port 80", [true, true, false]),
            ("ether src 02:00:00:00:00:01", [true, true, true]),
            ("ether dst 02:00:00:00:00:02", [true, false, false]),
            ("ether 02:00:00:00:00:02", [true, false, false]),
            ("not (tcp or arp)", [false, true, false]),
            ("tcp and port 80 or arp", [true, false, true]),
            ("tcp and (port 81 or arp)", [false, false, false]),
        ] {
            let filter: Filter = text.parse().unwrap();
            assert_eq!(
                frames.each_ref().map(|frame| filter.matches(frame, false)),
                [a, b, c],
                "{text}"
            );
        }
        let dropped: Filter = "dropped and tcp".parse().unwrap();
        assert!(dropped.matches(&tcp(), true) && !dropped.matches(&tcp(), false));
    }

    #[test]
    fn what_is_no_filter_is_said_with_the_word() {
        for (text, says) in [
            ("tcp port 80", "the filter has \"port\"; expected \"and\", \"or\" or its end"),
            ("tcp and", "the filter ends where arp, ip"),
            ("host", "the filter ends where an IP address"),
            ("host example.org", "\"example.org\"; expected an IP address"),
            ("net 10.0.0.0/33", "expected a network"),
            ("port 65536", "expected a port from 0 to 65535"),
            ("src tcp", "\"tcp\"; expected host, net or port"),
            ("(tcp", "ends where \")\""),
            ("tcp)", "has \")\""),
            ("ether dst x", "expected a MAC address"),
        ] {
            let error = text.parse::<Filter>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        for text in ["not ".repeat(100) + "tcp", "(".repeat(100), "tcp or ".repeat(100) + "tcp"] {
            assert_eq!(text.parse::<Filter>(), Err(FilterError::TooLong), "{text}");
        }
    }

    #[test]
    fn short_frames_match_nothing_and_harm_nobody() {
        let filter: Filter =
            "host 10.1.2.3 or port 80 or ether src 02:00:00:00:00:01".parse().unwrap();
        for len in 0..12 {
            assert!(!filter.matches(tcp().get(..len).unwrap(), false));
        }
    }
}
