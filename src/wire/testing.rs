//! Packets for the tests of this group, built by etherparse and summed by the plainest arithmetic.

use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions,
    Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, PacketBuilder, TcpHeader, VlanId,
};

use super::vnet::{GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHeader};

/// What a packet is made of. The identification (IPv4) and the sequence number (TCP) are close to
/// their ends, so that they wrap.
#[derive(Clone, Debug)]
pub struct Packet {
    pub v6: bool,
    pub tcp: bool,
    pub vlan_tags: usize,
    /// Bytes of IPv4 options, or of IPv6 hop-by-hop options after its two first bytes (6 + 8n).
    pub l3_options: usize,
    /// Bytes of TCP options, a multiple of 4.
    pub tcp_options: usize,
    pub fragment: bool,
    pub id: u16,
    pub sequence: u32,
    pub fin: bool,
    pub psh: bool,
    pub cwr: bool,
    pub payload: Vec<u8>,
}

impl Default for Packet {
    fn default() -> Self {
        Self {
            v6: false,
            tcp: true,
            vlan_tags: 0,
            l3_options: 0,
            tcp_options: 0,
            fragment: false,
            id: 0xfffe,
            sequence: 0xffff_ff00,
            fin: false,
            psh: false,
            cwr: false,
            payload: payload(100),
        }
    }
}

/// Bytes that differ from place to place.
pub fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 131 + i / 256) as u8).collect()
}

impl Packet {
    pub fn l3_offset(&self) -> usize {
        14 + 4 * self.vlan_tags
    }

    pub fn l4_offset(&self) -> usize {
        let l3 = match (self.v6, self.l3_options) {
            (false, options) => 20 + options,
            (true, 0) => 40,
            (true, options) => 42 + options,
        };
        self.l3_offset() + l3 + if self.v6 && self.fragment { 8 } else { 0 }
    }

    pub fn header_len(&self) -> usize {
        self.l4_offset() + if self.tcp { 20 + self.tcp_options } else { 8 }
    }

    /// The frame, all lengths and checksums right.
    pub fn build(&self) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let id = |id| VlanId::try_new(id).unwrap();
        let builder = match self.vlan_tags {
            0 => builder.ip(self.ip_headers()),
            1 => builder.single_vlan(id(7)).ip(self.ip_headers()),
            _ => builder.double_vlan(id(8), id(9)).ip(self.ip_headers()),
        };
        let mut frame = Vec::new();
        if self.tcp {
            let mut tcp = TcpHeader::new(40_000, 5201, self.sequence, 4096);
            (tcp.ack, tcp.acknowledgment_number) = (true, 77);
            (tcp.fin, tcp.psh, tcp.cwr) = (self.fin, self.psh, self.cwr);
            tcp.set_options_raw(&vec![1; self.tcp_options]).unwrap();
            builder.tcp_header(tcp).write(&mut frame, &self.payload).unwrap();
        } else {
            builder.udp(40_000, 5201).write(&mut frame, &self.payload).unwrap();
        }
        assert_eq!(frame.len(), self.header_len() + self.payload.len());
        frame
    }

    fn ip_headers(&self) -> IpHeaders {
        let number = if self.tcp { IpNumber::TCP } else { IpNumber::UDP };
        if self.v6 {
            let mut exts = Ipv6Extensions::default();
            if self.l3_options != 0 {
                // PadN options would be proper; nobody looks.
                let options = Ipv6RawExtHeader::new_raw(number, &vec![0; self.l3_options]);
                exts.hop_by_hop_options = Some(options.unwrap());
            }
            if self.fragment {
                let header = Ipv6FragmentHeader::new(number, IpFragOffset::ZERO, true, 1);
                exts.fragment = Some(header);
            }
            let mut source = [0xfd; 16];
            source[15] = 1;
            let header = Ipv6Header {
                source,
                destination: [0xfd; 16],
                hop_limit: 64,
                next_header: number,
                ..Ipv6Header::default()
            };
            IpHeaders::Ipv6(header, exts)
        } else {
            let mut header = Ipv4Header::new(0, 64, number, [10, 0, 0, 1], [10, 0, 0, 2]).unwrap();
            header.identification = self.id;
            header.more_fragments = self.fragment;
            header.options = vec![1; self.l3_options].as_slice().try_into().unwrap();
            IpHeaders::Ipv4(header, Ipv4Extensions::default())
        }
    }

    /// The frame as a driver hands it over: the sum of the pseudo header in its checksum field, and
    /// the virtio-net header that asks for segments of `gso_size` bytes (0: for the checksum only).
    pub fn build_offloaded(&self, gso_size: u16) -> (Vec<u8>, VnetHeader) {
        let mut frame = self.build();
        let l4_offset = self.l4_offset();
        let field = l4_offset + usize::from(self.csum_offset());
        let l4_len = (frame.len() - l4_offset) as u32;
        let addresses = if self.v6 { 8..40 } else { 12..20 };
        let l3 = &frame[self.l3_offset()..];
        let mut pseudo = l3[addresses].to_vec();
        pseudo.extend(l4_len.to_be_bytes());
        pseudo.extend([0, 0, 0, if self.tcp { 6 } else { 17 }]);
        let sum = naive_sum(&pseudo);
        frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        let gso_type = match (self.tcp, self.v6) {
            _ if gso_size == 0 => 0,
            (false, _) => GSO_UDP_L4,
            (true, false) => GSO_TCPV4,
            (true, true) => GSO_TCPV6,
        };
        let vnet = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type,
            hdr_len: if gso_size == 0 { 0 } else { self.header_len() as u16 },
            gso_size,
            csum_start: l4_offset as u16,
            csum_offset: self.csum_offset(),
            num_buffers: 0,
        };
        (frame, vnet)
    }

    fn csum_offset(&self) -> u16 {
        if self.tcp { 16 } else { 6 }
    }
}

/// The ones-complement sum of big-endian words, word by word (RFC 1071, section 4.1).
pub fn naive_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        if sum > 0xffff {
            sum -= 0xffff;
        }
    }
    sum as u16
}

/// Completes the checksum that `vnet` asks for, as a receiver does.
pub fn complete(frame: &mut [u8], vnet: &VnetHeader) {
    let start = usize::from(vnet.csum_start);
    let field = start + usize::from(vnet.csum_offset);
    let mut checksum = !naive_sum(&frame[start..]);
    if checksum == 0 && vnet.csum_offset == 6 {
        checksum = 0xffff;
    }
    frame[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
}
