//! The virtio-net header that precedes every frame in a ring and on a TAP with vnet headers.
//!
//! Owns its layout and its constants (virtio 1.2, section 5.1.6). What the values may be is
//! decided in [`offload`](super::offload).

/// `flags`: the checksum from `csum_start` to the end of the frame is still to be computed.
pub const NEEDS_CSUM: u8 = 1;
/// `flags`: the checksum has been verified.
pub const DATA_VALID: u8 = 2;
/// `flags`: `csum_start` and `csum_offset` carry receive-segment-coalescing counts instead.
pub const RSC_INFO: u8 = 4;

/// `gso_type`: an ordinary frame.
pub const GSO_NONE: u8 = 0;
/// `gso_type`: TCP over IPv4, to be cut into segments of `gso_size` bytes of payload.
pub const GSO_TCPV4: u8 = 1;
/// `gso_type`: UDP fragmentation (UFO), which nothing here offers.
pub const GSO_UDP: u8 = 3;
/// `gso_type`: TCP over IPv6, to be cut into segments of `gso_size` bytes of payload.
pub const GSO_TCPV6: u8 = 4;
/// `gso_type`: UDP, to be cut into datagrams of `gso_size` bytes of payload (USO).
pub const GSO_UDP_L4: u8 = 5;
/// `gso_type`, or-ed to a TCP type: the frame has CWR set, which only its first segment may carry.
pub const GSO_ECN: u8 = 0x80;

/// `struct virtio_net_hdr` with `num_buffers`: 12 bytes, little endian, as every device with
/// VERSION_1 has it (virtio 1.2, section 5.1.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// [`NEEDS_CSUM`], [`DATA_VALID`], [`RSC_INFO`].
    pub flags: u8,
    /// One of [`GSO_NONE`], [`GSO_TCPV4`], [`GSO_UDP`], [`GSO_TCPV6`], [`GSO_UDP_L4`], with
    /// [`GSO_ECN`] perhaps.
    pub gso_type: u8,
    /// Bytes of Ethernet, IP and transport headers; a hint, with GSO only.
    pub hdr_len: u16,
    /// Bytes of payload in each segment; with GSO only.
    pub gso_size: u16,
    /// Where the checksummed bytes start, from the frame's first byte; with NEEDS_CSUM only.
    pub csum_start: u16,
    /// Where the checksum field is, from `csum_start`; with NEEDS_CSUM only.
    pub csum_offset: u16,
    /// Buffers that the frame takes in a guest's receive ring; zero everywhere else.
    pub num_buffers: u16,
}

impl VnetHeader {
    /// Bytes of the header.
    pub const LEN: usize = 12;

    /// Reads the header.
    #[inline]
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1] = *bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
            num_buffers: u16::from_le_bytes([n0, n1]),
        }
    }

    /// The header as it stands before the frame.
    #[inline]
    pub fn encode(&self) -> Encoded {
        let low = u64::from(self.flags)
            | u64::from(self.gso_type) << 8
            | u64::from(self.hdr_len) << 16
            | u64::from(self.gso_size) << 32
            | u64::from(self.csum_start) << 48;
        Encoded { low, high: u32::from(self.csum_offset) | u32::from(self.num_buffers) << 16 }
    }
}

/// A header as it stands before the frame. Two numbers in registers: put together in memory byte
/// by byte and then copied as a whole, it would make the CPU wait for its own stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The first eight bytes, little-endian.
    pub low: u64,
    /// The last four bytes, little-endian.
    pub high: u32,
}

impl Encoded {
    /// No flags and no GSO: what most frames have. The fields without a meaning are zero.
    pub const PLAIN: Self = Self { low: 0, high: 0 };

    /// From the bytes in a ring.
    #[inline]
    pub fn from_bytes(bytes: &[u8; VnetHeader::LEN]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *bytes;
        Self {
            low: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            high: u32::from_le_bytes([i, j, k, l]),
        }
    }

    /// Whether it has neither flags nor a GSO type, so that nothing else in it counts.
    #[inline]
    pub fn is_plain(self) -> bool {
        self.low as u16 == 0
    }

    /// The fields.
    pub fn decode(self) -> VnetHeader {
        VnetHeader::from_bytes(&self.to_bytes())
    }

    /// The header with another number of buffers.
    #[inline]
    #[must_use]
    pub fn with_num_buffers(self, count: u16) -> Self {
        Self { high: self.high & 0xffff | u32::from(count) << 16, ..self }
    }

    /// The bytes.
    #[inline]
    pub fn to_bytes(self) -> [u8; VnetHeader::LEN] {
        let ([a, b, c, d, e, f, g, h], [i, j, k, l]) =
            (self.low.to_le_bytes(), self.high.to_le_bytes());
        [a, b, c, d, e, f, g, h, i, j, k, l]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_little_endian_in_the_order_of_the_specification() {
        let bytes = [1, 0x81, 0x36, 0, 0xb4, 0x05, 0x22, 0x01, 0x10, 0, 3, 0x02];
        let header = VnetHeader::from_bytes(&bytes);
        let expected = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV4 | GSO_ECN,
            hdr_len: 54,
            gso_size: 1460,
            csum_start: 0x122,
            csum_offset: 16,
            num_buffers: 0x203,
        };
        assert_eq!(header, expected);
        assert_eq!(header.encode().to_bytes(), bytes);
        let other = VnetHeader { num_buffers: 7, ..header };
        assert_eq!(header.encode().with_num_buffers(7), other.encode());
    }
}
