//! The frame by which a station that moved is announced (RFC 903).

use super::ethernet::MacAddr;

/// Length of an announcement: the shortest Ethernet frame, without its checksum.
pub const LEN: usize = 60;

/// A broadcast RARP request that asks for `mac`'s own address. Nobody answers it; the bridges on
/// its way learn where `mac` is.
pub fn announcement(mac: MacAddr) -> [u8; LEN] {
    let mut frame = [0; LEN];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        for byte in bytes {
            frame[at] = *byte;
            at += 1;
        }
    };
    put(&[0xff; 6]);
    put(&mac.0);
    put(&[0x80, 0x35]); // EtherType RARP
    put(&[0, 1, 8, 0, 6, 4, 0, 3]); // Ethernet, IPv4, lengths, request reverse
    put(&mac.0); // sender
    put(&[0; 4]);
    put(&mac.0); // target
    put(&[0; 4]);
    frame
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
