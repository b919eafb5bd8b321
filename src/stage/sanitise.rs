//! The first stage: what the sender says of its frames must be true.

use crate::frame::{DropReason, Frame, Verdict};
use crate::wire::offload::{self, Offloads};
use crate::wire::vnet::{Encoded, GSO_NONE};

/// Checks each frame's virtio-net header against the frame and against what the sender
/// negotiated (`sends`), and keeps only what may go on. Every frame gets a verdict: flood, until
/// a later stage knows better, or drop. Returns whether there are frames that a receiver may want
/// cut.
#[inline]
pub fn sanitise(frames: &mut [Frame], sends: Offloads) -> bool {
    let mut segmentable = false;
    for frame in frames {
        if frame.vnet.is_plain() {
            frame.vnet = Encoded::PLAIN;
            frame.verdict = Verdict::Flood;
            continue;
        }
        match offload::check(&frame.vnet.decode(), frame.head(), frame.len, sends) {
            Ok(vnet) => {
                segmentable |= vnet.gso_type != GSO_NONE;
                frame.vnet = vnet.encode();
                frame.verdict = Verdict::Flood;
            }
            Err(_) => frame.verdict = Verdict::Drop(DropReason::BadVnetHeader),
        }
    }
    segmentable
}
