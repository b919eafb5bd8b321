//! MAC addresses and the Ethernet header (IEEE 802.3, 802.1Q).
//!
//! Owns the frame's first bytes up to the ethertype, and the text form of addresses. What follows
//! is in [`headers`](super::headers).

use std::fmt;
use std::str::FromStr;

/// Bytes of an untagged header; a frame with fewer is no frame.
pub const HEADER_LEN: usize = 14;
/// Bytes of one VLAN tag.
pub const VLAN_TAG_LEN: usize = 4;

/// Ethertype of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// Ethertype of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// Ethertype of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Tag protocol identifier of a customer VLAN tag (IEEE 802.1Q).
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// Tag protocol identifier of a service VLAN tag (IEEE 802.1ad).
pub const ETHERTYPE_QINQ: u16 = 0x88a8;

/// A MAC address, in the order of the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Whether it names a group (broadcast among them): the I/G bit of the first octet.
    #[inline]
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether it is 00:00:00:00:00:00, which no station may have.
    #[inline]
    pub fn is_zero(self) -> bool {
        self.0 == [0; 6]
    }

    /// The address as a number below 2^48, its first octet the most significant.
    #[inline]
    pub fn to_u64(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// The inverse of [`to_u64`](Self::to_u64); the upper 16 bits are ignored.
    #[inline]
    pub fn from_u64(value: u64) -> Self {
        let [_, _, a, b, c, d, e, f] = value.to_be_bytes();
        Self([a, b, c, d, e, f])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A text that is no MAC address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a MAC address: expected six pairs of hex digits, as in 52:54:00:12:34:56")]
pub struct MacAddrError(pub String);

impl FromStr for MacAddr {
    type Err = MacAddrError;

    /// Reads `52:54:00:12:34:56`, in either case.
    fn from_str(text: &str) -> Result<Self, MacAddrError> {
        let error = || MacAddrError(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or_else(error)?;
            // from_str_radix alone would take "+5" too.
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(error());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() {
            return Err(error());
        }
        Ok(Self(octets))
    }
}

/// The destination address of a frame; `None` when it is shorter than the address.
#[inline]
pub fn dst(frame: &[u8]) -> Option<MacAddr> {
    frame.first_chunk().map(|octets| MacAddr(*octets))
}

/// The source address of a frame; `None` when it is shorter than that.
#[inline]
pub fn src(frame: &[u8]) -> Option<MacAddr> {
    let octets: &[u8; 12] = frame.first_chunk()?;
    octets.last_chunk().map(|octets| MacAddr(*octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_the_order_of_the_wire() {
        let frame = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 8, 0];
        assert_eq!(dst(&frame), Some(MacAddr([1, 2, 3, 4, 5, 6])));
        assert_eq!(src(&frame), Some(MacAddr([7, 8, 9, 10, 11, 12])));
        assert_eq!((dst(&frame[..5]), src(&frame[..11])), (None, None));
    }

    #[test]
    fn text_and_number_round_trip() {
        let mac = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0xfe]);
        assert_eq!(mac.to_string(), "52:54:00:12:34:fe");
        assert_eq!("52:54:00:12:34:FE".parse(), Ok(mac));
        assert_eq!(mac.to_u64(), 0x5254_0012_34fe);
        assert_eq!(MacAddr::from_u64(0xffff_5254_0012_34fe), mac);
    }

    #[test]
    fn malformed_text_is_refused() {
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:00:12:34:5",
            "52:54:00:12:34:+5",
            "52-54-00-12-34-56",
            "52:54:00:12:34:5g",
            "52:54:00:12:34:é",
        ] {
            assert_eq!(text.parse::<MacAddr>(), Err(MacAddrError(text.into())));
        }
    }

    #[test]
    fn group_and_zero_addresses_are_told_apart() {
        assert!(MacAddr([0xff; 6]).is_multicast());
        assert!(MacAddr([0x33, 0x33, 0, 0, 0, 1]).is_multicast());
        assert!(!MacAddr([0x52, 0x55, 0, 0, 0, 1]).is_multicast());
        assert!(MacAddr::default().is_zero());
        assert!(!MacAddr([0, 0, 0, 0, 0, 1]).is_zero());
    }
}
