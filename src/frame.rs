//! A frame on its way, what is decided about it, and why frames end.

use std::fmt;
use std::ops::Range;

use crate::wire::vnet::Encoded;

/// Bytes of a frame that are fetched once, looked at, and written out from the copy. They hold
/// Ethernet, two VLAN tags, and IPv4 or IPv6 and TCP with options.
pub const HEAD_LEN: usize = 128;
/// The most frames of one burst.
pub const BURST: usize = 64;
/// The longest frame: an IP packet of 65,535 bytes behind Ethernet and two VLAN tags.
pub const MAX_FRAME: u32 = 65_535 + 14 + 8;
/// The shortest frame that can be switched: an Ethernet header.
pub const MIN_FRAME: u32 = 14;

/// Index of a port in the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u16);

impl PortId {
    /// As an index.
    #[inline]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Lists the reasons once: enum, names and texts come from this list.
macro_rules! drop_reasons {
    ($($variant:ident $name:literal $text:literal,)*) => {
        /// Why a frame was dropped. Each drop is counted with its reason, at the port named in
        /// the reason's text.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason {
            $(#[doc = $text] $variant,)*
        }

        impl DropReason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)*];
            /// How many reasons there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The counter's name.
            pub fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)* }
            }

            /// What it means, in one sentence.
            pub fn text(self) -> &'static str {
                match self { $(DropReason::$variant => $text,)* }
            }
        }
    };
}

drop_reasons! {
    BadChain "bad_chain" "Ingress: the guest's descriptor chain breaks the rules or holds memory it doesn't have.",
    BadLength "bad_length" "Ingress: the frame is shorter than an Ethernet header or longer than 64 KiB.",
    BadVnetHeader "bad_vnet_header" "Ingress: the virtio-net header doesn't fit the frame or uses an offload that wasn't negotiated.",
    NoDestination "no_destination" "Ingress: the destination is on the port that the frame came from, or no other port exists.",
    ReservedAddress "reserved_address" "Ingress: the destination is a group address that never crosses a bridge (IEEE 802.1Q, table 8-1).",
    Isolated "isolated" "Ingress: the port's `isolated` or `group` keeps it from the port of the destination, or from all others.",
    MirrorPort "mirror_port" "Ingress: the port gets a mirror's copies, and sends nothing.",
    LinkDown "link_down" "Egress: no guest is attached to the port, or its driver isn't up.",
    RxRingFull "rx_ring_full" "Egress: the guest is too slow: it has no receive buffer left.",
    RxBufferTooSmall "rx_buffer_too_small" "Egress: the guest's receive buffers can't hold the frame.",
    RxRingBusy "rx_ring_busy" "Egress: the guest's receive ring stayed locked: its port is being reconfigured.",
    BadOffload "bad_offload" "Egress: the frame can't be segmented or its checksum completed for this receiver.",
    MirrorOverBudget "mirror_over_budget" "Egress: a copy that a mirror made none of, for it had its part of the worker's time.",
    TapFull "tap_full" "Egress: the TAP device didn't take the frame.",
    TapDown "tap_down" "Egress: the TAP device is down or gone.",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What happens to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It ends here.
    Drop(DropReason),
    /// It goes out of one port.
    To(PortId),
    /// It goes out of all ports but the one it came from.
    Flood,
}

/// A frame, borrowed from where it came from: the head is a copy, the rest stays in place.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Frame {
    /// The first `min(len, HEAD_LEN)` bytes. Bytes behind them are left over from other frames.
    head: [u8; HEAD_LEN],
    /// The virtio-net header, checked against the frame and the sender's features.
    pub vnet: Encoded,
    /// Length without the virtio-net header, bytes.
    pub len: u32,
    /// The segments that hold what follows the head.
    pub tail: Range<u32>,
    /// What was decided.
    pub verdict: Verdict,
    /// The hash of its flow, where it was needed already.
    pub flow: Option<u32>,
    /// The buffer that it was in, counted from the first one of the burst.
    pub buffer: u16,
}

impl Default for Frame {
    fn default() -> Self {
        Self {
            head: [0; HEAD_LEN],
            vnet: Encoded::PLAIN,
            len: 0,
            tail: 0..0,
            verdict: Verdict::Drop(DropReason::BadChain),
            flow: None,
            buffer: 0,
        }
    }
}

impl Frame {
    /// The head: fetched once from the sender, and the bytes that are sent.
    #[inline]
    pub fn head(&self) -> &[u8] {
        let len = (self.len as usize).min(HEAD_LEN);
        self.head.get(..len).unwrap_or_default()
    }

    /// The two addresses as they stand in the frame, in numbers that say nothing but whether they
    /// are the same as another frame's. None for what is too short to be a frame.
    #[inline]
    pub fn addresses(&self) -> Option<(u64, u32)> {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *self.head.first_chunk()?;
        let words =
            (u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u32::from_ne_bytes([i, j, k, l]));
        (self.len >= MIN_FRAME).then_some(words)
    }

    /// Makes it a frame that is all head, without offloads. Bytes behind [`HEAD_LEN`] are cut.
    pub fn set_whole(&mut self, bytes: &[u8]) {
        let len = bytes.len().min(HEAD_LEN);
        self.head.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        self.len = len as u32;
        self.vnet = Encoded::PLAIN;
        self.tail = 0..0;
        self.flow = None;
    }

    /// The head, to be changed. Its length follows [`Frame::len`].
    #[inline]
    pub fn head_mut(&mut self) -> &mut [u8] {
        let len = (self.len as usize).min(HEAD_LEN);
        self.head.get_mut(..len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_distinct_names_and_match_their_index() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::COUNT);
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }
}
