//! Feature bits of virtio 1.2 (sections 5.1.3 and 6) and of vhost-user, by their standard names.

/// The device completes checksums that the driver left open.
pub const CSUM: u64 = 1 << 0;
/// The driver takes frames with an open checksum.
pub const GUEST_CSUM: u64 = 1 << 1;
/// The device has a maximum MTU to tell.
pub const MTU: u64 = 1 << 3;
/// The driver takes TSO frames over IPv4.
pub const GUEST_TSO4: u64 = 1 << 7;
/// The driver takes TSO frames over IPv6.
pub const GUEST_TSO6: u64 = 1 << 8;
/// The driver takes TSO frames with ECN.
pub const GUEST_ECN: u64 = 1 << 9;
/// The device takes TSO frames over IPv4.
pub const HOST_TSO4: u64 = 1 << 11;
/// The device takes TSO frames over IPv6.
pub const HOST_TSO6: u64 = 1 << 12;
/// The device takes TSO frames with ECN.
pub const HOST_ECN: u64 = 1 << 13;
/// The driver can merge receive buffers.
pub const MRG_RXBUF: u64 = 1 << 15;
/// There is a control queue.
pub const CTRL_VQ: u64 = 1 << 17;
/// The device can ask the guest to announce itself.
pub const GUEST_ANNOUNCE: u64 = 1 << 21;
/// There may be several queue pairs.
pub const MQ: u64 = 1 << 22;
/// The driver takes segmentable UDP over IPv4.
pub const GUEST_USO4: u64 = 1 << 54;
/// The driver takes segmentable UDP over IPv6.
pub const GUEST_USO6: u64 = 1 << 55;
/// The device takes segmentable UDP.
pub const HOST_USO: u64 = 1 << 56;

/// vhost: the frontend wants the pages it shares logged when the device writes them.
pub const LOG_ALL: u64 = 1 << 26;
/// Chains may live in indirect tables.
pub const INDIRECT_DESC: u64 = 1 << 28;
/// Notifications are suppressed by ring index.
pub const EVENT_IDX: u64 = 1 << 29;
/// vhost-user: there are protocol features to negotiate.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// virtio 1.x.
pub const VERSION_1: u64 = 1 << 32;
/// Packed virtqueues.
pub const RING_PACKED: u64 = 1 << 34;
/// The device uses buffers in the order in which they were made available.
pub const IN_ORDER: u64 = 1 << 35;

/// Every offload in either direction.
pub const OFFLOADS: u64 = CSUM
    | GUEST_CSUM
    | GUEST_TSO4
    | GUEST_TSO6
    | GUEST_ECN
    | HOST_TSO4
    | HOST_TSO6
    | HOST_ECN
    | GUEST_USO4
    | GUEST_USO6
    | HOST_USO;

/// What a current Linux guest accepts of what a vhost-user backend can offer.
pub const LINUX: u64 = OFFLOADS
    | MTU
    | MRG_RXBUF
    | CTRL_VQ
    | GUEST_ANNOUNCE
    | MQ
    | INDIRECT_DESC
    | EVENT_IDX
    | PROTOCOL_FEATURES
    | VERSION_1;

/// What a Linux guest accepts of what Cloud Hypervisor passes on. Kernels that know IN_ORDER accept
/// that, too.
pub const CLOUD_HYPERVISOR: u64 = LINUX & !(GUEST_USO4 | GUEST_USO6 | HOST_USO);

/// The least that a virtio 1.x driver can accept.
pub const MINIMAL: u64 = VERSION_1 | PROTOCOL_FEATURES;

/// Protocol feature bits of vhost-user.
pub mod protocol {
    /// More than one queue pair.
    pub const MQ: u64 = 1 << 0;
    /// The dirty log is passed as a file descriptor.
    pub const LOG_SHMFD: u64 = 1 << 1;
    /// The backend can announce the guest (SEND_RARP).
    pub const RARP: u64 = 1 << 2;
    /// Any message may ask for an acknowledgement.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// The frontend tells the MTU.
    pub const NET_MTU: u64 = 1 << 4;
    /// RESET_DEVICE.
    pub const RESET_DEVICE: u64 = 1 << 13;
    /// Memory regions come and go one by one.
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    /// The device status byte is passed on.
    pub const STATUS: u64 = 1 << 16;

    /// What this crate can speak.
    pub const ALL: u64 =
        MQ | LOG_SHMFD | RARP | REPLY_ACK | NET_MTU | RESET_DEVICE | CONFIGURE_MEM_SLOTS | STATUS;
}
