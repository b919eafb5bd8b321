//! Frames out of words.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use etherparse::{ArpEthIpv4Packet, ArpOperation, IpHeaders, Ipv4Header, Ipv6Header};
use etherparse::{Ethernet2Header, PacketBuilder, PacketBuilderStep, VlanId};
use ringswitch::api::TraceHeader;
use ringswitch::frame::{MAX_FRAME, MIN_FRAME};
use ringswitch::wire::ethernet::{HEADER_LEN, MacAddr, MacAddrError, VLAN_TAG_LEN};
use ringswitch::wire::headers::{IPV4_LEN, IPV6_LEN};
use ringswitch::wire::hex::{self, HexError};
use ringswitch::wire::vnet::{GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM};
use thiserror::Error;

/// Ports unless said: some client's, and a web server's.
const PORTS: (u16, u16) = (50_000, 80);
/// Hops that an IP packet has left.
const HOPS: u8 = 64;
/// Segments of a frame that is to be cut.
const SEGMENTS: u32 = 10;
/// The longest payload of such a frame.
const MAX_PAYLOAD: u32 = 60_000;

/// Why that is no frame.
#[derive(Debug, Error)]
pub enum TraceError {
    #[error("{0:?} is nothing to trace: expected tcp, udp, icmp, arp, hex or pcap")]
    Kind(String),
    #[error("{kind} needs two addresses, as in: ringswitch trace {port} {kind} {example}")]
    Ends { kind: &'static str, port: String, example: &'static str },
    #[error("{0:?} is no address: expected one as 10.0.0.1{1}")]
    Address(String, &'static str),
    #[error("{0} and {1} can't be in one packet: expected two addresses of IPv4, or two of IPv6")]
    Families(IpAddr, IpAddr),
    #[error("arp is for IPv4: {0} is found by icmp6, which hex or pcap can have")]
    Arp(IpAddr),
    #[error("the switch doesn't know who has {0}: add --to PORT or --to MAC; it learned {1}")]
    NoDestination(IpAddr, String),
    #[error("{0:?} is neither a MAC address, as 52:54:00:12:34:56, nor a port; there are {1}")]
    NoPort(String, String),
    #[error("no address was learned at {0}: say which one to take, by {1}")]
    NoneLearned(String, &'static str),
    #[error("several addresses were learned at {0}: choose one by {1}; there are {2}")]
    Several(String, &'static str, String),
    #[error("{0} bytes are too few: with these headers a frame has {1} at least")]
    Short(u32, u32),
    #[error("{0} bytes are more than such a packet can have")]
    Long(u32),
    #[error("only tcp and udp can be cut: leave --tso out")]
    Segments,
    #[error(
        "what hex and pcap have is a frame as it is: leave --from, --to, --vlan, --size and --tso out"
    )]
    Ready,
    #[error("a frame has {MIN_FRAME} to {MAX_FRAME} bytes, this one {0}")]
    Length(usize),
    #[error(transparent)]
    Mac(#[from] MacAddrError),
    #[error(transparent)]
    Hex(#[from] HexError),
    #[error("hex needs the frame's bytes, or - to read them from standard input")]
    NoBytes,
    #[error("cannot read standard input")]
    Input(#[source] io::Error),
    #[error("pcap needs a file and, if it isn't the first frame, its number from 1 on")]
    NoFile,
    #[error("cannot read {}", .0.display())]
    Open(PathBuf, #[source] io::Error),
    #[error("{} is no pcap or pcapng file, or a damaged one", .0.display())]
    NotPcap(PathBuf, #[source] anyhow::Error),
    #[error("{} has {count} frames, and no frame {number}", path.display())]
    NoFrame { path: PathBuf, count: usize, number: usize },
    #[error("frame {number} of {} is of another network than Ethernet", path.display())]
    NotEthernet { path: PathBuf, number: usize },
}

/// What is to be traced.
pub enum What {
    Packet(Packet),
    Bytes(Vec<u8>),
    File { path: PathBuf, number: usize },
}

/// A packet between two addresses.
pub struct Packet {
    kind: Kind,
    ends: Ends,
    ports: (u16, u16),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Udp,
    Icmp,
    Arp,
}

/// Two addresses of one family.
enum Ends {
    V4([u8; 4], [u8; 4]),
    V6([u8; 16], [u8; 16]),
}

/// A frame, and its virtio-net header.
#[derive(Default)]
pub struct Built {
    pub bytes: Vec<u8>,
    pub header: TraceHeader,
}

impl What {
    /// Reads the words behind the port.
    pub fn parse(port: &str, words: &[String]) -> Result<Self, TraceError> {
        let (kind, rest) = words.split_first().map_or(("", words), |(kind, rest)| (kind, rest));
        let (kind, name) = match kind {
            "tcp" => (Kind::Tcp, "tcp"),
            "udp" => (Kind::Udp, "udp"),
            "icmp" => (Kind::Icmp, "icmp"),
            "arp" => (Kind::Arp, "arp"),
            "hex" => return Ok(Self::Bytes(bytes(rest)?)),
            "pcap" => return file(rest),
            other => return Err(TraceError::Kind(other.to_owned())),
        };
        let with_ports = matches!(kind, Kind::Tcp | Kind::Udp);
        let [from, to] = rest else {
            let example =
                if with_ports { "10.0.0.1:1234 10.0.0.2:80" } else { "10.0.0.1 10.0.0.2" };
            return Err(TraceError::Ends { kind: name, port: port.to_owned(), example });
        };
        let ((from, source), (to, destination)) = (end(from, with_ports)?, end(to, with_ports)?);
        let ends = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => Ends::V4(from.octets(), to.octets()),
            (IpAddr::V6(_), _) if kind == Kind::Arp => return Err(TraceError::Arp(from)),
            (IpAddr::V6(from), IpAddr::V6(to)) => Ends::V6(from.octets(), to.octets()),
            _ => return Err(TraceError::Families(from, to)),
        };
        let ports = (source.unwrap_or(PORTS.0), destination.unwrap_or(PORTS.1));
        Ok(Self::Packet(Packet { kind, ends, ports }))
    }
}

/// `10.0.0.1`, `fd00::1`, and with a port `10.0.0.1:80`, `[fd00::1]:80`.
fn end(text: &str, with_port: bool) -> Result<(IpAddr, Option<u16>), TraceError> {
    if let Ok(address) = text.parse() {
        return Ok((address, None));
    }
    match text.parse::<SocketAddr>() {
        Ok(end) if with_port => Ok((end.ip(), Some(end.port()))),
        _ => {
            let more =
                if with_port { ", 10.0.0.1:80, fd00::1 or [fd00::1]:80" } else { " or fd00::1" };
            Err(TraceError::Address(text.to_owned(), more))
        }
    }
}

fn bytes(words: &[String]) -> Result<Vec<u8>, TraceError> {
    let text = match words {
        [] => return Err(TraceError::NoBytes),
        [word] if word == "-" => {
            let mut text = String::new();
            // No more than the longest frame, with what may stand between its digits.
            let limit = 4 * u64::from(MAX_FRAME);
            io::stdin().lock().take(limit).read_to_string(&mut text).map_err(TraceError::Input)?;
            text
        }
        words => words.concat(),
    };
    let digits: String = text.chars().filter(|c| !c.is_whitespace() && *c != ':').collect();
    Ok(hex::decode(&digits)?)
}

fn file(words: &[String]) -> Result<What, TraceError> {
    let (path, number) = match words {
        [path] => (path, 1),
        [path, number] => (path, number.parse().unwrap_or(0)),
        _ => return Err(TraceError::NoFile),
    };
    if number == 0 {
        return Err(TraceError::NoFile);
    }
    Ok(What::File { path: path.into(), number })
}

impl Packet {
    /// Its destination.
    pub fn to(&self) -> IpAddr {
        match self.ends {
            Ends::V4(_, to) => to.into(),
            Ends::V6(_, to) => to.into(),
        }
    }

    /// The MAC address of its destination, if that is not one station (RFC 1112, 6.4; RFC 2464, 7).
    pub fn group(&self) -> Option<MacAddr> {
        match self.ends {
            _ if self.kind == Kind::Arp => Some(MacAddr([0xff; 6])),
            Ends::V4(_, [255, 255, 255, 255]) => Some(MacAddr([0xff; 6])),
            Ends::V4(_, [224..=239, b, c, d]) => Some(MacAddr([1, 0, 0x5e, b & 0x7f, c, d])),
            Ends::V6(_, [0xff, .., a, b, c, d]) => Some(MacAddr([0x33, 0x33, a, b, c, d])),
            _ => None,
        }
    }

    /// The packet as a frame between two stations, of `size` bytes, to be cut as `tso` says.
    pub fn build(
        &self,
        (from, to): (MacAddr, MacAddr),
        vlan: Option<u16>,
        size: Option<u32>,
        tso: Option<u16>,
    ) -> Result<Built, TraceError> {
        let l4 = HEADER_LEN
            + if vlan.is_some() { VLAN_TAG_LEN } else { 0 }
            + if matches!(self.ends, Ends::V4(..)) { IPV4_LEN } else { IPV6_LEN };
        let (type_v4, type_v6, checksum, l4_len) = match self.kind {
            Kind::Tcp => (GSO_TCPV4, GSO_TCPV6, 16, 20),
            Kind::Udp => (GSO_UDP_L4, GSO_UDP_L4, 6, 8),
            Kind::Icmp | Kind::Arp if tso.is_some() => return Err(TraceError::Segments),
            Kind::Icmp => (0, 0, 0, 8),
            Kind::Arp => (0, 0, 0, ArpEthIpv4Packet::LEN - IPV4_LEN),
        };
        let least = (l4 + l4_len) as u32;
        let payload = match (size, tso) {
            (Some(size), _) => size.checked_sub(least).ok_or(TraceError::Short(size, least))?,
            (None, Some(tso)) => (SEGMENTS * u32::from(tso)).min(MAX_PAYLOAD),
            (None, None) => 0,
        };
        let too_long = TraceError::Long(least + payload);
        let bytes = self.write((from.0, to.0), vlan, &vec![0; payload as usize]).ok_or(too_long)?;
        let header = match tso {
            None => TraceHeader::default(),
            Some(gso_size) => TraceHeader {
                flags: NEEDS_CSUM,
                gso_type: if matches!(self.ends, Ends::V4(..)) { type_v4 } else { type_v6 },
                gso_size,
                csum_start: l4 as u16,
                csum_offset: checksum,
            },
        };
        Ok(Built { bytes, header })
    }

    /// None if IP can't have so much payload.
    fn write(
        &self,
        (from, to): ([u8; 6], [u8; 6]),
        vlan: Option<u16>,
        payload: &[u8],
    ) -> Option<Vec<u8>> {
        let ethernet = PacketBuilder::ethernet2(from, to);
        let tag = vlan.and_then(|id| VlanId::try_new(id).ok());
        let mut bytes = Vec::new();
        let (source, destination) = self.ports;
        let written = match (self.kind, &self.ends) {
            (Kind::Arp, Ends::V4(sender, target)) => {
                let arp = ArpEthIpv4Packet {
                    operation: ArpOperation::REQUEST,
                    sender_mac: from,
                    sender_ipv4: *sender,
                    target_mac: [0; 6],
                    target_ipv4: *target,
                };
                let written = match tag {
                    Some(tag) => ethernet.single_vlan(tag).arp(arp.into()).write(&mut bytes),
                    None => ethernet.arp(arp.into()).write(&mut bytes),
                };
                bytes.extend_from_slice(payload);
                written
            }
            (kind, ends) => {
                let ip = ip(ethernet, tag, ends);
                match (kind, ends) {
                    (Kind::Tcp, _) => {
                        ip.tcp(source, destination, 0, u16::MAX).write(&mut bytes, payload)
                    }
                    (Kind::Udp, _) => ip.udp(source, destination).write(&mut bytes, payload),
                    (_, Ends::V4(..)) => ip.icmpv4_echo_request(1, 1).write(&mut bytes, payload),
                    (_, Ends::V6(..)) => ip.icmpv6_echo_request(1, 1).write(&mut bytes, payload),
                }
            }
        };
        written.ok().map(|()| bytes)
    }
}

fn ip(
    ethernet: PacketBuilderStep<Ethernet2Header>,
    tag: Option<VlanId>,
    ends: &Ends,
) -> PacketBuilderStep<IpHeaders> {
    let ip = match *ends {
        Ends::V4(source, destination) => {
            let header =
                Ipv4Header { time_to_live: HOPS, source, destination, ..Default::default() };
            IpHeaders::Ipv4(header, Default::default())
        }
        Ends::V6(source, destination) => {
            let header = Ipv6Header { hop_limit: HOPS, source, destination, ..Default::default() };
            IpHeaders::Ipv6(header, Default::default())
        }
    };
    match tag {
        Some(tag) => ethernet.single_vlan(tag).ip(ip),
        None => ethernet.ip(ip),
    }
}
