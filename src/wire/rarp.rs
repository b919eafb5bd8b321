//! The frame by which a station that moved is announced (RFC 903).

use super::ethernet::MacAddr;

/// Length of an announcement: the shortest Ethernet frame, without its checksum.
pub const LEN: usize = 60;

/// A broadcast RARP request that asks for `mac`'s own address. Nobody answers it; the bridges on
/// its way learn where `mac` is.
pub fn announcement(mac: MacAddr) -> [u8; LEN] {
    let fields: [&[u8]; 8] = [
        &[0xff; 6],
        &mac.0,
        &[0x80, 0x35],             // EtherType RARP
        &[0, 1, 8, 0, 6, 4, 0, 3], // Ethernet, IPv4, address lengths, request reverse
        &mac.0,                    // sender
        &[0; 4],
        &mac.0, // target
        &[0; 4],
    ];
    let mut bytes = fields.into_iter().flatten().copied();
    std::array::from_fn(|_| bytes.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_broadcast_request_for_the_station_itself() {
        let mac = MacAddr([2, 0, 0, 0, 0, 9]);
        let frame = announcement(mac);
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!(frame[6..12], mac.0);
        assert_eq!(frame[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!((&frame[22..28], &frame[32..38]), (&mac.0[..], &mac.0[..]));
    }
}
