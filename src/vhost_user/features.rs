//! What this device offers in the negotiation.
//!
//! The offer never depends on the configuration and never shrinks from one version to the next: a
//! guest keeps the features that it negotiated when its VMM reconnects to a restarted switch, and
//! a VMM that misses one of them gives the device up.

use vhost::vhost_user::message::VhostUserProtocolFeatures;

use crate::ring::feature;

/// VIRTIO_NET_F_MTU (virtio 1.2, section 5.1.3).
///
/// Offered with and without a configured MTU. The device's configuration space is the frontend's:
/// QEMU (`host_mtu=`) and Cloud Hypervisor (`mtu=`) show the guest their own value, if they have
/// one, and Cloud Hypervisor only if we offer the bit. The port's MTU limits what they may announce
/// ([`VhostUserProtocolFeatures::MTU`], NET_SET_MTU).
pub const MTU: u64 = 1 << 3;
/// VIRTIO_NET_F_CTRL_VQ. The control queue lives in the frontend, but a guest gets it, and with it
/// MQ, only if we offer this.
pub const CTRL_VQ: u64 = 1 << 17;
/// VIRTIO_NET_F_GUEST_ANNOUNCE: the guest announces itself after a migration.
pub const GUEST_ANNOUNCE: u64 = 1 << 21;
/// VIRTIO_NET_F_MQ: several queue pairs.
pub const MQ: u64 = 1 << 22;
/// VHOST_USER_F_PROTOCOL_FEATURES (vhost-user specification, "Feature bits").
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// VIRTIO_F_IN_ORDER (virtio 1.2, section 6): makes Cloud Hypervisor go on at the used index
/// when it reconnects, without which all posted receive buffers would be lost.
pub const IN_ORDER: u64 = 1 << 35;

/// The virtio features on offer.
///
/// Not among them: ACCESS_PLATFORM (there are no IOTLB messages) and RSS (no message carries its
/// table).
pub const OFFERED: u64 = feature::CSUM
    | feature::GUEST_CSUM
    | MTU
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::GUEST_ECN
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::HOST_ECN
    | feature::MRG_RXBUF
    | CTRL_VQ
    | GUEST_ANNOUNCE
    | MQ
    | feature::LOG_ALL
    | feature::INDIRECT_DESC
    | feature::EVENT_IDX
    | PROTOCOL_FEATURES
    | feature::VERSION_1
    | feature::RING_PACKED
    | IN_ORDER
    | feature::GUEST_USO4
    | feature::GUEST_USO6
    | feature::HOST_USO;

/// The vhost-user protocol features on offer. QEMU uses each bit that it sees, so each one here is
/// served in full.
///
/// Not among them: INFLIGHT_SHMFD, with which Cloud Hypervisor doesn't rely on IN_ORDER when it
/// reconnects; PAGEFAULT (postcopy), since a fault would stall a worker and with it every port.
pub const OFFERED_PROTOCOL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::LOG_SHMFD)
    .union(VhostUserProtocolFeatures::RARP)
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::MTU)
    .union(VhostUserProtocolFeatures::RESET_DEVICE)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(VhostUserProtocolFeatures::STATUS);
