//! Frames to send, with the virtio-net header they go with, and checks of frames received.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{IpHeaders, Ipv4Header, Ipv6Header, PacketBuilder, SlicedPacket};
use etherparse::{TransportSlice, VlanHeader, VlanId, checksum::Sum16BitWords};

/// Length of the virtio-net header (virtio 1.2, section 5.1.6).
pub const HEADER_LEN: usize = 12;

/// Header flag: the checksum is open, complete it from `csum_start` on.
pub const NEEDS_CSUM: u8 = 1;
/// Header flag: the checksum was verified.
pub const DATA_VALID: u8 = 2;
/// gso_type: TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// gso_type: TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// gso_type: UDP, segmented by datagrams.
pub const GSO_UDP_L4: u8 = 5;

/// A frame and its virtio-net header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The virtio-net header as it stands in memory.
    pub header: [u8; HEADER_LEN],
    /// From the destination address on, without FCS.
    pub bytes: Vec<u8>,
}

/// The fields of a virtio-net header, to be set freely.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Header {
    pub flags: u8,
    pub gso_type: u8,
    pub hdr_len: u16,
    pub gso_size: u16,
    pub csum_start: u16,
    pub csum_offset: u16,
    pub num_buffers: u16,
}

impl Header {
    /// As it stands in memory.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let words =
            [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, self.num_buffers];
        let mut bytes = [0; HEADER_LEN];
        (bytes[0], bytes[1]) = (self.flags, self.gso_type);
        for (at, word) in words.iter().enumerate() {
            bytes[2 + 2 * at..4 + 2 * at].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// From memory.
    pub fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Header {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Header {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
            num_buffers: word(10),
        }
    }
}

/// The locally administered MAC address of guest `number`.
pub fn mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, number]
}

impl Frame {
    /// A frame as it is, without offloads.
    pub fn plain(bytes: Vec<u8>) -> Frame {
        Frame { header: [0; HEADER_LEN], bytes }
    }

    /// A frame of `len` bytes (at least 14) of an experimental EtherType, whose payload is a
    /// pattern that `seed` determines.
    pub fn pattern(destination: [u8; 6], source: [u8; 6], len: usize, seed: u32) -> Frame {
        let mut bytes = Vec::with_capacity(len);
        bytes.extend_from_slice(&destination);
        bytes.extend_from_slice(&source);
        bytes.extend_from_slice(&[0x88, 0xb5]);
        let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
        while bytes.len() < len {
            // xorshift: no run of it equals another, so misplaced bytes show.
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            bytes.push(state as u8);
        }
        Frame::plain(bytes)
    }

    /// The header's fields.
    pub fn header(&self) -> Header {
        Header::from_bytes(&self.header)
    }

    /// The same frame with other header fields.
    pub fn with_header(mut self, header: Header) -> Frame {
        self.header = header.to_bytes();
        self
    }

    /// The same TCP or UDP frame with its checksum left open: the field holds the sum over the
    /// pseudo-header, and the header says where it is.
    pub fn open_checksum(mut self) -> Frame {
        let l4 = L4::of(&self.bytes).expect("a TCP or UDP frame");
        let field = l4.start + l4.field;
        // Not complemented: whoever completes the sum adds the rest to it.
        let sum = !l4.pseudo_sum.ones_complement();
        self.bytes[field..field + 2].copy_from_slice(&sum.to_ne_bytes());
        let header = Header {
            flags: NEEDS_CSUM,
            csum_start: l4.start as u16,
            csum_offset: l4.field as u16,
            ..self.header()
        };
        self.with_header(header)
    }

    /// The same frame with open checksum, to be cut into segments of `gso_size` payload bytes.
    pub fn segmentable(self, gso_size: u16) -> Frame {
        let l4 = L4::of(&self.bytes).expect("a TCP or UDP frame");
        let gso_type = match (l4.tcp, l4.v6) {
            (true, false) => GSO_TCPV4,
            (true, true) => GSO_TCPV6,
            (false, _) => GSO_UDP_L4,
        };
        let hdr_len = l4.payload as u16;
        let frame = self.open_checksum();
        let header = Header { gso_type, gso_size, hdr_len, ..frame.header() };
        frame.with_header(header)
    }
}

/// Where frames come from and go to.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Ethernet source and destination.
    pub macs: ([u8; 6], [u8; 6]),
    /// IP source and destination, of one family.
    pub ips: (IpAddr, IpAddr),
    /// Source and destination port.
    pub ports: (u16, u16),
    /// A VLAN tag.
    pub vlan: Option<u16>,
}

impl Flow {
    /// From guest `from` to guest `to` over IPv4: 10.0.0.x, ports 1000 and 2000.
    pub fn v4(from: u8, to: u8) -> Flow {
        let ip = |number| IpAddr::V4(Ipv4Addr::new(10, 0, 0, number));
        Flow {
            macs: (mac(from), mac(to)),
            ips: (ip(from), ip(to)),
            ports: (1000, 2000),
            vlan: None,
        }
    }

    /// The same over IPv6: fd00::x.
    pub fn v6(from: u8, to: u8) -> Flow {
        let ip = |number: u8| IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()));
        Flow { ips: (ip(from), ip(to)), ..Flow::v4(from, to) }
    }

    /// A UDP datagram with a correct checksum.
    pub fn udp(&self, payload: &[u8]) -> Frame {
        let mut bytes = Vec::new();
        self.ip()
            .udp(self.ports.0, self.ports.1)
            .write(&mut bytes, payload)
            .expect("a payload that IP can carry");
        Frame::plain(bytes)
    }

    /// A TCP segment (ACK, PSH) with a correct checksum.
    pub fn tcp(&self, sequence: u32, payload: &[u8]) -> Frame {
        let mut bytes = Vec::new();
        self.ip()
            .tcp(self.ports.0, self.ports.1, sequence, 65535)
            .ack(1)
            .psh()
            .write(&mut bytes, payload)
            .expect("a payload that IP can carry");
        Frame::plain(bytes)
    }

    fn ip(&self) -> etherparse::PacketBuilderStep<IpHeaders> {
        let ip = match self.ips {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let header = Ipv4Header {
                    time_to_live: 64,
                    dont_fragment: true,
                    identification: 0x1234,
                    source: from.octets(),
                    destination: to.octets(),
                    ..Default::default()
                };
                IpHeaders::Ipv4(header, Default::default())
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let header = Ipv6Header {
                    hop_limit: 64,
                    source: from.octets(),
                    destination: to.octets(),
                    ..Default::default()
                };
                IpHeaders::Ipv6(header, Default::default())
            }
            mixed => panic!("addresses of two families: {mixed:?}"),
        };
        let ethernet = PacketBuilder::ethernet2(self.macs.0, self.macs.1);
        match self.vlan {
            None => ethernet.ip(ip),
            Some(id) => {
                let vlan_id = VlanId::try_new(id).expect("a VLAN id below 4096");
                let tag = etherparse::SingleVlanHeader { vlan_id, ..Default::default() };
                ethernet.vlan(VlanHeader::Single(tag)).ip(ip)
            }
        }
    }
}

/// What is wrong with the checksums of a frame that claims to be complete: `None` if the IPv4
/// header's and the TCP or UDP checksum are right. A frame that is neither is wrong as well.
pub fn checksum_error(bytes: &[u8]) -> Option<String> {
    let packet = match SlicedPacket::from_ethernet(bytes) {
        Ok(packet) => packet,
        Err(error) => return Some(error.to_string()),
    };
    if let Some(etherparse::NetSlice::Ipv4(ip)) = &packet.net {
        let header = ip.header().to_header();
        if header.calc_header_checksum() != header.header_checksum {
            return Some(format!("IPv4 header checksum {:#06x}", header.header_checksum));
        }
    }
    let Some(l4) = L4::of(bytes) else {
        return Some("neither TCP nor UDP over IP".into());
    };
    let sum = l4.pseudo_sum.add_slice(&bytes[l4.start..l4.end]).ones_complement();
    (sum != 0).then(|| format!("checksum is off by {sum:#06x}"))
}

/// The payload of a TCP or UDP frame.
pub fn payload(bytes: &[u8]) -> Option<&[u8]> {
    let l4 = L4::of(bytes)?;
    bytes.get(l4.payload..l4.end)
}

/// What the checksum of a TCP or UDP frame is about.
struct L4 {
    tcp: bool,
    v6: bool,
    /// Offset of the TCP or UDP header.
    start: usize,
    /// Offset of the checksum from there.
    field: usize,
    /// Offset of the payload.
    payload: usize,
    /// End of the IP packet.
    end: usize,
    pseudo_sum: Sum16BitWords,
}

impl L4 {
    fn of(bytes: &[u8]) -> Option<L4> {
        let packet = SlicedPacket::from_ethernet(bytes).ok()?;
        let ip = packet.ip_payload()?.payload;
        let start = ip.as_ptr() as usize - bytes.as_ptr() as usize;
        let (tcp, header, field) = match packet.transport.as_ref()? {
            TransportSlice::Tcp(tcp) => (true, tcp.header_slice().len(), 16),
            TransportSlice::Udp(_) => (false, 8, 6),
            _ => return None,
        };
        let mut sum = Sum16BitWords::new();
        let v6 = match packet.net.as_ref()? {
            etherparse::NetSlice::Ipv4(ip) => {
                sum = sum.add_4bytes(ip.header().source()).add_4bytes(ip.header().destination());
                false
            }
            etherparse::NetSlice::Ipv6(ip) => {
                sum = sum.add_16bytes(ip.header().source()).add_16bytes(ip.header().destination());
                true
            }
            _ => return None,
        };
        let length = u32::try_from(ip.len()).ok()?;
        let pseudo_sum =
            sum.add_4bytes(length.to_be_bytes()).add_2bytes([0, if tcp { 6 } else { 17 }]);
        let (payload, end) = (start + header, start + ip.len());
        Some(L4 { tcp, v6, start, field, payload, end, pseudo_sum })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_frames_are_right_and_broken_ones_are_noticed() {
        for flow in [Flow::v4(1, 2), Flow::v6(1, 2), Flow { vlan: Some(7), ..Flow::v4(1, 2) }] {
            for frame in [flow.udp(b"odd"), flow.tcp(5, &[3; 1000])] {
                assert_eq!(checksum_error(&frame.bytes), None);
                let mut broken = frame.clone();
                *broken.bytes.last_mut().unwrap() ^= 1;
                assert!(checksum_error(&broken.bytes).is_some());
                assert!(checksum_error(&frame.open_checksum().bytes).is_some());
            }
        }
    }

    #[test]
    fn an_open_checksum_completes_to_the_right_one() {
        for frame in [Flow::v4(1, 2).udp(b"odd"), Flow::v6(1, 2).tcp(1, b"even")] {
            let open = frame.clone().open_checksum();
            let (start, field) = (open.header().csum_start, open.header().csum_offset);
            let mut bytes = open.bytes.clone();
            let sum =
                Sum16BitWords::new().add_slice(&bytes[usize::from(start)..]).ones_complement();
            let at = usize::from(start + field);
            bytes[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
            assert_eq!(bytes, frame.bytes);
        }
    }

    #[test]
    fn a_segmentable_frame_says_how() {
        let frame = Flow::v6(1, 2).tcp(1, &[0; 5000]).segmentable(1440);
        let expected = Header {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV6,
            hdr_len: 74,
            gso_size: 1440,
            csum_start: 54,
            csum_offset: 16,
            num_buffers: 0,
        };
        assert_eq!(frame.header(), expected);
        assert_eq!(payload(&frame.bytes).map(<[u8]>::len), Some(5000));
    }
}
