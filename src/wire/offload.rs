//! What a sender may ask for in a virtio-net header, and what a receiver takes.
//!
//! Owns the set of offloads that a port negotiated ([`Offloads`]), the sanitation of headers on
//! ingress ([`check`]) and the choice on egress between passing a frame as it is and converting it
//! ([`for_receiver`]). How it is converted is in [`gso`](super::gso).
//!
//! # Theory of operation
//!
//! A virtio-net header is a promise about the frame behind it, and receivers act on it: a kernel
//! that believes a wrong `csum_start` or `gso_size` reads or writes where it should not. So a header
//! passes only when it agrees with the frame's own headers, and only fields that mean something
//! for it are kept. Most frames have neither flags nor a GSO type; [`check`] and [`for_receiver`]
//! settle these inline.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};

use super::ethernet;
use super::headers::{self, L3, PROTOCOL_TCP, PROTOCOL_UDP};
use super::vnet::{
    DATA_VALID, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHeader,
};

/// Where TCP's checksum field is in its header (RFC 9293).
pub(super) const TCP_CHECKSUM: u16 = 16;
/// Where UDP's checksum field is in its header (RFC 768).
pub(super) const UDP_CHECKSUM: u16 = 6;

/// A set of offloads: those that a sender may use, or those that a receiver takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Offloads(u8);

impl Offloads {
    /// Checksums left to the other side (virtio: CSUM for what a guest sends, GUEST_CSUM for what
    /// it receives).
    pub const CSUM: Self = Self(1);
    /// TCP segmentation over IPv4 (HOST_TSO4, GUEST_TSO4).
    pub const TSO4: Self = Self(2);
    /// TCP segmentation over IPv6 (HOST_TSO6, GUEST_TSO6).
    pub const TSO6: Self = Self(4);
    /// TCP segmentation of frames with CWR set (HOST_ECN, GUEST_ECN).
    pub const ECN: Self = Self(8);
    /// UDP segmentation, over IPv4 and IPv6 (HOST_USO; GUEST_USO4 and GUEST_USO6).
    pub const USO: Self = Self(16);

    const NAMES: [(Self, &'static str); 5] = [
        (Self::CSUM, "csum"),
        (Self::TSO4, "tso4"),
        (Self::TSO6, "tso6"),
        (Self::ECN, "ecn"),
        (Self::USO, "uso"),
    ];

    /// No offload.
    #[inline]
    pub const fn empty() -> Self {
        Self(0)
    }

    /// Every offload.
    #[inline]
    pub const fn all() -> Self {
        Self(0x1f)
    }

    /// Whether all of `other` are in the set.
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// Those of the set that are not in `other`.
    #[inline]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitOr for Offloads {
    type Output = Self;

    #[inline]
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Offloads {
    #[inline]
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}

impl fmt::Display for Offloads {
    /// The names, as in `csum tso4`, or `none`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::empty() {
            return f.write_str("none");
        }
        let names = Self::NAMES.iter().filter(|(offload, _)| self.contains(*offload));
        for (i, (_, name)) in names.enumerate() {
            let separator = if i == 0 { "" } else { " " };
            write!(f, "{separator}{name}")?;
        }
        Ok(())
    }
}

/// Why a sender's header was refused. The frame is to be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadOffload {
    /// The checksum field ends beyond the frame, or the checksummed bytes start in the Ethernet
    /// header.
    #[error(
        "checksum at {start}+{offset} does not lie in the packet of a frame of {frame_len} bytes"
    )]
    ChecksumRange {
        /// `csum_start`.
        start: u16,
        /// `csum_offset`.
        offset: u16,
        /// Bytes of the frame.
        frame_len: u32,
    },
    /// UFO, or a type that virtio 1.2 does not know.
    #[error("gso_type {0:#04x} is not supported")]
    GsoType(u8),
    /// Segments need their checksums computed, and the header does not ask for it.
    #[error("gso_type without NEEDS_CSUM")]
    GsoWithoutChecksum,
    /// Segments of no bytes.
    #[error("gso_size is 0")]
    GsoSizeZero,
    /// The frame is not what `gso_type` says it is, or its IP headers are malformed or do not end
    /// within the bytes that were looked at.
    #[error("gso_type does not agree with the packet's protocols")]
    GsoProtocol,
    /// A fragment can't be segmented.
    #[error("gso_type on an IP fragment")]
    GsoFragment,
    /// `csum_start` and `csum_offset` are not those of the transport header that `gso_type` names.
    #[error("checksum at {start}+{offset} is not that of the transport header")]
    GsoChecksum {
        /// `csum_start`.
        start: u16,
        /// `csum_offset`.
        offset: u16,
    },
    /// The transport header does not end within the bytes that were looked at, or the frame.
    #[error("the transport header of a GSO frame does not end within its first {0} bytes")]
    HeadersTooLong(usize),
    /// The sender used what it did not negotiate.
    #[error("offloads that the sender did not negotiate: {0}")]
    NotNegotiated(Offloads),
}

/// The offloads that a receiver must have accepted to take the frame as it is.
///
/// For headers out of [`check`]; one with an unknown GSO type is said to need everything.
#[inline]
pub fn needs(vnet: &VnetHeader) -> Offloads {
    if vnet.flags & NEEDS_CSUM == 0 && vnet.gso_type == GSO_NONE {
        return Offloads::empty();
    }
    let gso = match vnet.gso_type & !GSO_ECN {
        GSO_NONE => Offloads::empty(),
        GSO_TCPV4 => Offloads::TSO4,
        GSO_TCPV6 => Offloads::TSO6,
        GSO_UDP_L4 => Offloads::USO,
        _ => Offloads::all(),
    };
    let ecn = if vnet.gso_type & GSO_ECN != 0 { Offloads::ECN } else { Offloads::empty() };
    Offloads::CSUM | gso | ecn
}

/// The header with which a receiver that accepts `accepts` takes the frame as it is, or `None` when
/// the frame must be converted (see [`gso::Plan`](super::gso::Plan)).
///
/// `vnet` came out of [`check`].
#[inline]
pub fn for_receiver(vnet: &VnetHeader, accepts: Offloads) -> Option<VnetHeader> {
    if !accepts.contains(needs(vnet)) {
        return None;
    }
    let mut header = *vnet;
    if !accepts.contains(Offloads::CSUM) {
        // Without GUEST_CSUM no flag at all may be set, DATA_VALID included (section 5.1.6.4.1).
        header.flags = 0;
    }
    Some(header)
}

/// Sanitises the header that a sender put before a frame: the header that may go on, or why the
/// frame must be dropped.
///
/// `head` holds the frame's first bytes, all of them or enough for its headers (128 are plenty),
/// `frame_len` counts the whole frame without the virtio-net header, and `sender` is what the sender
/// may ask for. In the result only NEEDS_CSUM and DATA_VALID (never both) are left of the flags,
/// `num_buffers` is zero, `hdr_len` is computed from the packet, and fields without a meaning are
/// zero.
///
/// Without GSO, `csum_start` and `csum_offset` may point anywhere behind the Ethernet header, as
/// virtio has it for protocols that it does not know: a stage that decides on a field of the packet
/// must not take for granted that completing the checksum leaves it alone.
#[inline]
pub fn check(
    vnet: &VnetHeader,
    head: &[u8],
    frame_len: u32,
    sender: Offloads,
) -> Result<VnetHeader, BadOffload> {
    if vnet.flags == 0 && vnet.gso_type == GSO_NONE {
        return Ok(VnetHeader::default());
    }
    check_used(vnet, head, frame_len, sender)
}

#[inline(never)]
fn check_used(
    vnet: &VnetHeader,
    head: &[u8],
    frame_len: u32,
    sender: Offloads,
) -> Result<VnetHeader, BadOffload> {
    let gso = vnet.gso_type != GSO_NONE;
    if vnet.flags & NEEDS_CSUM == 0 {
        if gso {
            return Err(BadOffload::GsoWithoutChecksum);
        }
        return Ok(VnetHeader { flags: vnet.flags & DATA_VALID, ..VnetHeader::default() });
    }
    check_checksum(vnet, frame_len)?;
    let mut checked = VnetHeader {
        flags: NEEDS_CSUM,
        csum_start: vnet.csum_start,
        csum_offset: vnet.csum_offset,
        ..VnetHeader::default()
    };
    if gso {
        let head = within_frame(head, frame_len);
        let layout = GsoLayout::of(head, vnet)?;
        checked.gso_type = vnet.gso_type;
        checked.gso_size = vnet.gso_size;
        checked.hdr_len = layout.header_len;
    }
    let missing = needs(&checked).without(sender);
    if missing != Offloads::empty() {
        return Err(BadOffload::NotNegotiated(missing));
    }
    Ok(checked)
}

/// `head` without what does not belong to the frame, should a caller have handed over more.
pub(super) fn within_frame(head: &[u8], frame_len: u32) -> &[u8] {
    usize::try_from(frame_len).ok().and_then(|len| head.get(..len)).unwrap_or(head)
}

/// Checks that the checksum field lies in the packet.
pub(super) fn check_checksum(vnet: &VnetHeader, frame_len: u32) -> Result<(), BadOffload> {
    let (start, offset) = (vnet.csum_start, vnet.csum_offset);
    if usize::from(start) < ethernet::HEADER_LEN
        || u32::from(start) + u32::from(offset) + 2 > frame_len
    {
        return Err(BadOffload::ChecksumRange { start, offset, frame_len });
    }
    Ok(())
}

/// Where the parts of a GSO frame are, after they were found to agree with its virtio-net header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GsoLayout {
    pub(super) l3: L3,
    pub(super) l3_offset: usize,
    pub(super) tcp: bool,
    pub(super) l4_offset: usize,
    /// Bytes of all headers: where the payload starts.
    pub(super) header_len: u16,
}

impl GsoLayout {
    /// Checks the GSO fields of `vnet` against the packet whose first bytes are `head`.
    pub(super) fn of(head: &[u8], vnet: &VnetHeader) -> Result<Self, BadOffload> {
        let (l3, tcp) = match vnet.gso_type {
            GSO_UDP_L4 => (None, false),
            _ => match vnet.gso_type & !GSO_ECN {
                GSO_TCPV4 => (Some(L3::Ipv4), true),
                GSO_TCPV6 => (Some(L3::Ipv6), true),
                _ => return Err(BadOffload::GsoType(vnet.gso_type)),
            },
        };
        if vnet.gso_size == 0 {
            return Err(BadOffload::GsoSizeZero);
        }
        let packet = headers::parse(head).ok_or(BadOffload::GsoProtocol)?;
        let protocol = if tcp { PROTOCOL_TCP } else { PROTOCOL_UDP };
        if packet.l4_protocol != protocol || l3.is_some_and(|l3| l3 != packet.l3) {
            return Err(BadOffload::GsoProtocol);
        }
        if packet.fragment {
            return Err(BadOffload::GsoFragment);
        }
        let (start, offset) = (vnet.csum_start, vnet.csum_offset);
        let field = if tcp { TCP_CHECKSUM } else { UDP_CHECKSUM };
        if usize::from(start) != packet.l4_offset || offset != field {
            return Err(BadOffload::GsoChecksum { start, offset });
        }
        let l4_len = l4_header_len(head, packet.l4_offset, tcp)?;
        let header_len = packet.l4_offset + l4_len;
        if header_len > head.len() {
            return Err(BadOffload::HeadersTooLong(head.len()));
        }
        let header_len =
            u16::try_from(header_len).map_err(|_| BadOffload::HeadersTooLong(head.len()))?;
        let (l3, l3_offset, l4_offset) = (packet.l3, packet.l3_offset, packet.l4_offset);
        Ok(Self { l3, l3_offset, tcp, l4_offset, header_len })
    }
}

/// Bytes of the TCP header with its options, or of the UDP header.
fn l4_header_len(head: &[u8], l4_offset: usize, tcp: bool) -> Result<usize, BadOffload> {
    const DATA_OFFSET: usize = 12;
    if !tcp {
        return Ok(8);
    }
    let field = head.get(l4_offset + DATA_OFFSET).ok_or(BadOffload::HeadersTooLong(head.len()))?;
    let length = usize::from(field >> 4) * 4;
    if length < 20 { Err(BadOffload::GsoProtocol) } else { Ok(length) }
}

#[cfg(test)]
mod tests;
