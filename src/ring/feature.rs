//! Virtio feature bits that the data path acts on (virtio 1.2, sections 5.1.3 and 6), and what
//! they say about offloads.

use crate::wire::offload::Offloads;

/// The device completes checksums of frames that the driver sends.
pub const CSUM: u64 = 1 << 0;
/// The driver takes frames whose checksum isn't complete.
pub const GUEST_CSUM: u64 = 1 << 1;
/// The driver takes TSO over IPv4.
pub const GUEST_TSO4: u64 = 1 << 7;
/// The driver takes TSO over IPv6.
pub const GUEST_TSO6: u64 = 1 << 8;
/// The driver takes TSO with ECN.
pub const GUEST_ECN: u64 = 1 << 9;
/// The device takes TSO over IPv4.
pub const HOST_TSO4: u64 = 1 << 11;
/// The device takes TSO over IPv6.
pub const HOST_TSO6: u64 = 1 << 12;
/// The device takes TSO with ECN.
pub const HOST_ECN: u64 = 1 << 13;
/// Receive buffers can be merged to hold one frame.
pub const MRG_RXBUF: u64 = 1 << 15;
/// The dirty log is wanted (vhost-user, VHOST_F_LOG_ALL).
pub const LOG_ALL: u64 = 1 << 26;
/// Descriptors can point to tables of descriptors.
pub const INDIRECT_DESC: u64 = 1 << 28;
/// `used_event` and `avail_event` suppress notifications.
pub const EVENT_IDX: u64 = 1 << 29;
/// The device is not a legacy one: the header has 12 bytes.
pub const VERSION_1: u64 = 1 << 32;
/// Rings are packed ones.
pub const RING_PACKED: u64 = 1 << 34;
/// The driver takes UDP segmentation over IPv4.
pub const GUEST_USO4: u64 = 1 << 54;
/// The driver takes UDP segmentation over IPv6.
pub const GUEST_USO6: u64 = 1 << 55;
/// The device takes UDP segmentation.
pub const HOST_USO: u64 = 1 << 56;

fn offloads(features: u64, map: &[(u64, Offloads)]) -> Offloads {
    let has = |bits: u64| features & bits == bits;
    map.iter().filter(|(bits, _)| has(*bits)).fold(Offloads::empty(), |set, (_, o)| set | *o)
}

/// What a driver with these features accepts in frames that it receives.
pub fn accepted(features: u64) -> Offloads {
    offloads(
        features,
        &[
            (GUEST_CSUM, Offloads::CSUM),
            (GUEST_CSUM | GUEST_TSO4, Offloads::TSO4),
            (GUEST_CSUM | GUEST_TSO6, Offloads::TSO6),
            (GUEST_CSUM | GUEST_ECN, Offloads::ECN),
            // One bit here stands for both IP versions.
            (GUEST_CSUM | GUEST_USO4 | GUEST_USO6, Offloads::USO),
        ],
    )
}

/// What a driver with these features may use in frames that it sends.
pub fn used(features: u64) -> Offloads {
    offloads(
        features,
        &[
            (CSUM, Offloads::CSUM),
            (CSUM | HOST_TSO4, Offloads::TSO4),
            (CSUM | HOST_TSO6, Offloads::TSO6),
            (CSUM | HOST_ECN, Offloads::ECN),
            (CSUM | HOST_USO, Offloads::USO),
        ],
    )
}
