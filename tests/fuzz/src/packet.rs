//! Packets, and where their headers are: plainly, from the specifications.

use ringswitch::wire::vnet::{
    GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHeader,
};

use crate::input::Input;

/// Where the headers of a frame are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// IPv6, not IPv4.
    pub v6: bool,
    /// Where the IP header begins.
    pub l3: usize,
    /// What the last IP header says comes next.
    pub protocol: u8,
    /// Where that begins.
    pub l4: usize,
    /// A fragment, whichever.
    pub fragment: bool,
}

/// Finds the headers of an IP frame, behind up to two VLAN tags (802.1Q, 802.1ad); IPv6 with up to
/// eight extension headers.
pub fn layout(frame: &[u8]) -> Option<Layout> {
    let be16 = |at: usize| Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?));
    let byte = |at: usize| frame.get(at).copied();
    let mut l3 = 14;
    while l3 < 22 && matches!(be16(l3 - 2)?, 0x8100 | 0x88a8) {
        l3 += 4;
    }
    let kind = be16(l3 - 2)?;
    if kind == 0x0800 {
        let (first, words) = (byte(l3)?, usize::from(byte(l3)? & 15));
        let l4 = l3 + 4 * words;
        if frame.len() < l3 + 20 || first >> 4 != 4 || words < 5 || l4 > frame.len() {
            return None;
        }
        let fragment = be16(l3 + 6)? & 0x3fff != 0;
        return Some(Layout { v6: false, l3, protocol: byte(l3 + 9)?, l4, fragment });
    }
    if kind != 0x86dd || frame.len() < l3 + 40 || byte(l3)? >> 4 != 6 {
        return None;
    }
    let (mut protocol, mut l4, mut extensions) = (byte(l3 + 6)?, l3 + 40, 0);
    loop {
        let len = match protocol {
            0 | 43 | 60 => 8 * (usize::from(byte(l4 + 1)?) + 1),
            51 => 4 * (usize::from(byte(l4 + 1)?) + 2),
            44 => 8,
            _ => return Some(Layout { v6: true, l3, protocol, l4, fragment: false }),
        };
        if extensions == 9 || l4 + len > frame.len() {
            return None;
        }
        let fragment = protocol == 44;
        (protocol, l4, extensions) = (byte(l4)?, l4 + len, extensions + 1);
        if fragment {
            return Some(Layout { v6: true, l3, protocol, l4, fragment });
        }
    }
}

/// The ones-complement sum of big-endian words, word by word (RFC 1071), below 0xffff: there, zero
/// and 0xffff are the same number.
pub fn sum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u64::from));
    (words.sum::<u64>() % 0xffff) as u16
}

/// A TCP or UDP packet with a virtio-net header that may be believed.
pub struct Packet {
    /// The frame.
    pub frame: Vec<u8>,
    /// Its header.
    pub vnet: VnetHeader,
}

impl Packet {
    /// A packet as an input describes it.
    pub fn from_input(input: &mut Input<'_>) -> Self {
        let (kind, shape, options) = (input.u8(), input.u8(), input.u8());
        let (v6, tcp, gso) = (kind & 1 != 0, kind & 2 != 0, kind & 4 != 0);
        let len = match kind >> 3 & 3 {
            0 => usize::from(input.u8()),
            1 => usize::from(input.u16() & 0x3fff),
            2 => usize::from(input.u16()),
            _ => 1448,
        };
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for tag in 0..shape % 3 {
            frame.extend([[0x81, 0, 0, 7], [0x88, 0xa8, 0x20, 9]][usize::from(tag)]);
        }
        let protocol = if tcp { 6 } else { 17 };
        let l4_header = if tcp { 20 + 4 * usize::from(options & 7) } else { 8 };
        let l3 = frame.len() + 2;
        let room = 65_535 - l4_header - if v6 { 64 } else { 60 };
        let len = len.min(room);
        let addresses = if v6 {
            v6_header(&mut frame, protocol, shape >> 2, l4_header + len);
            l3 + 8..l3 + 40
        } else {
            let words = usize::from(options >> 3 & 7).min(10);
            v4_header(&mut frame, protocol, words, l4_header + len, input.u16());
            l3 + 12..l3 + 20
        };
        let l4 = frame.len();
        frame.extend([0x9c, 0x40, 0x14, 0x51]);
        if tcp {
            frame.extend(input.u32().to_be_bytes());
            let offset = (l4_header / 4) as u8;
            frame.extend([0, 0, 0, 77, offset << 4, input.u8(), 0x10, 0, 0, 0, 0, 0]);
            frame.extend(vec![1; l4_header - 20]);
        } else {
            frame.extend(((8 + len) as u16).to_be_bytes());
            frame.extend([0, 0]);
        }
        let seed = usize::from(input.u8());
        frame.extend((0..len).map(|i| (i * 131 + i / 256 + seed) as u8));
        let field = l4 + if tcp { 16 } else { 6 };
        let mut pseudo = frame[addresses].to_vec();
        pseudo.extend(((l4_header + len) as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, protocol]);
        let pseudo = sum(&pseudo).to_be_bytes();
        frame[field..field + 2].copy_from_slice(&pseudo);
        let ecn = if tcp && shape & 0x80 != 0 { GSO_ECN } else { 0 };
        let gso_type = match (tcp, v6) {
            _ if !gso => GSO_NONE,
            (false, _) => GSO_UDP_L4,
            (true, false) => GSO_TCPV4 | ecn,
            (true, true) => GSO_TCPV6 | ecn,
        };
        let vnet = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type,
            hdr_len: if gso { (l4 + l4_header) as u16 } else { 0 },
            gso_size: if gso { input.u16().max(1) } else { 0 },
            csum_start: l4 as u16,
            csum_offset: (field - l4) as u16,
            num_buffers: 0,
        };
        Self { frame, vnet }
    }
}

fn v4_header(frame: &mut Vec<u8>, protocol: u8, options: usize, len: usize, id: u16) {
    frame.extend([8, 0]);
    let begin = frame.len();
    let header = 20 + 4 * options;
    frame.extend([0x40 | (header / 4) as u8, 0]);
    frame.extend(((header + len) as u16).to_be_bytes());
    frame.extend(id.to_be_bytes());
    frame.extend([0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend(vec![1; 4 * options]);
    let checksum = (!sum(&frame[begin..])).to_be_bytes();
    frame[begin + 10..begin + 12].copy_from_slice(&checksum);
}

/// With up to three extension headers of 8 bytes each.
fn v6_header(frame: &mut Vec<u8>, protocol: u8, extensions: u8, len: usize) {
    let kinds: &[u8] = &[0, 60, 43][..usize::from(extensions % 4)];
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend(((8 * kinds.len() + len) as u16).to_be_bytes());
    frame.extend([kinds.first().copied().unwrap_or(protocol), 64]);
    frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    for index in 0..kinds.len() {
        frame.extend([kinds.get(index + 1).copied().unwrap_or(protocol), 0, 1, 4, 0, 0, 0, 0]);
    }
}

/// Changes bytes of a frame and of its header, as an input says; whether it did.
pub fn damage(packet: &mut Packet, input: &mut Input<'_>) -> bool {
    let count = input.u8() % 4;
    for _ in 0..count {
        let (at, value) = (usize::from(input.u16()), input.u8());
        match at.checked_sub(12) {
            Some(at) => {
                let at = at % packet.frame.len().min(160);
                packet.frame[at] = value;
            }
            None => {
                let mut bytes = packet.vnet.encode().to_bytes();
                bytes[at] = value;
                packet.vnet = VnetHeader::from_bytes(&bytes);
            }
        }
    }
    count > 0
}
