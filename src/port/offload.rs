//! Converting a frame for a receiver that didn't negotiate its offloads.
//!
//! `wire::gso` plans which frames the receiver gets and writes their headers; here the plan
//! meets the payload, which stays in the sender's memory: each output is a header written
//! locally, what the fetched head holds of its payload, and a slice of the frame's tail. So
//! segmentation copies the payload once, too.

use crate::frame::{DropReason, Frame, HEAD_LEN, Verdict};
use crate::mem::{Segments, Tail};
use crate::wire::checksum::Sum;
use crate::wire::gso::{MAX_HEADERS, Plan};
use crate::wire::offload::{self, Offloads};
use crate::wire::vnet::{self, Encoded};

use super::Counters;

/// A frame that goes to all ports is cut into so many for each of them at most: 64 KiB in segments
/// of 1 KiB. More would keep the worker for too long where there are many ports.
const MAX_FLOODED: u32 = 64;

/// A frame that leaves as other frames.
struct Outgoing<'s> {
    plan: Plan,
    frame: &'s Frame,
    tail: Tail<'s>,
    segmented: bool,
}

/// The local bytes of an output: its headers, and payload that was fetched with the head.
struct Local {
    bytes: [u8; MAX_HEADERS + HEAD_LEN],
    len: usize,
}

impl Local {
    fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// The header with which a receiver with the offloads `accepts` takes a frame as it is, or None when
/// the frame must be converted.
#[inline]
pub(super) fn passes(vnet: Encoded, accepts: Offloads) -> Option<Encoded> {
    if vnet.is_plain() {
        return Some(vnet);
    }
    offload::for_receiver(&vnet.decode(), accepts).map(|vnet| vnet.encode())
}

/// About how many frames a frame becomes for a receiver with the offloads `accepts`.
pub(super) fn outputs(frame: &Frame, accepts: Offloads) -> u32 {
    if passes(frame.vnet, accepts).is_some() {
        return 1;
    }
    let header = frame.vnet.decode();
    let cut = header.gso_type != vnet::GSO_NONE && header.gso_size > 0;
    if cut { frame.len.div_ceil(u32::from(header.gso_size)) } else { 1 }
}

/// Sends a frame as the frames that a receiver with the offloads `accepts` takes: `send` gets
/// virtio-net header, local bytes, the rest of the payload and the length of each. It ends with the
/// first one that `send` refuses: the rest is lost as on any wire.
#[cold]
pub(super) fn convert(
    frame: &Frame,
    segments: &Segments<'_>,
    accepts: Offloads,
    counters: &Counters,
    mut send: impl FnMut(Encoded, &[u8], Tail<'_>, u32) -> Result<(), DropReason>,
) -> Result<(), DropReason> {
    let outgoing = Outgoing::of(frame, segments, accepts)?;
    outgoing.count_conversion(counters);
    for index in 0..outgoing.count() {
        let (vnet, headers, payload, len) = outgoing.frame(index);
        send(vnet, headers.as_slice(), payload, len)?;
    }
    Ok(())
}

/// What a receiver gets of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Becomes {
    /// How.
    pub how: Conversion,
    /// How many frames it is.
    pub frames: u32,
    /// Their bytes, without virtio-net headers.
    pub bytes: u64,
    /// Those of the longest.
    pub longest: u32,
}

/// How a frame is converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conversion {
    /// It passes as it is.
    None,
    /// Its checksum is completed.
    Checksummed,
    /// It is cut.
    Segmented,
}

/// What a receiver with the offloads `accepts` would get of a frame.
pub(super) fn foresee(
    frame: &Frame,
    segments: &Segments<'_>,
    accepts: Offloads,
) -> Result<Becomes, DropReason> {
    if passes(frame.vnet, accepts).is_some() {
        let len = frame.len;
        return Ok(Becomes { how: Conversion::None, frames: 1, bytes: len.into(), longest: len });
    }
    let outgoing = Outgoing::of(frame, segments, accepts)?;
    let lengths = (0..outgoing.count()).map(|index| outgoing.len(index));
    Ok(Becomes {
        how: if outgoing.segmented { Conversion::Segmented } else { Conversion::Checksummed },
        frames: outgoing.count(),
        bytes: lengths.clone().map(u64::from).sum(),
        longest: lengths.max().unwrap_or(0),
    })
}

impl<'s> Outgoing<'s> {
    /// Plans the conversion of a frame that is to be sent.
    fn of(
        frame: &'s Frame,
        segments: &'s Segments<'_>,
        accepts: Offloads,
    ) -> Result<Self, DropReason> {
        let outgoing = Self::new(frame, segments, accepts).ok_or(DropReason::BadOffload)?;
        let dear = frame.verdict == Verdict::Flood && outgoing.count() > MAX_FLOODED;
        if dear { Err(DropReason::BadOffload) } else { Ok(outgoing) }
    }

    /// Plans the conversion of `frame` for a receiver with the offloads `accepts`. None when its
    /// headers can't be understood.
    fn new(frame: &'s Frame, segments: &'s Segments<'_>, accepts: Offloads) -> Option<Self> {
        let tail = segments.tail(frame.tail.clone());
        let mut head = [0u8; MAX_HEADERS];
        let fetched = frame.head().len();
        head.get_mut(..fetched)?.copy_from_slice(frame.head());
        let mut end = fetched;
        tail.slice(0, MAX_HEADERS - fetched).read(|bytes| {
            if let Some(room) = head.get_mut(end..end + bytes.len()) {
                room.copy_from_slice(bytes);
                end += bytes.len();
            }
        });
        let header = frame.vnet.decode();
        let plan = Plan::new(head.get(..end)?, &header, frame.len, accepts).ok()?;
        let segmented = header.gso_type != vnet::GSO_NONE;
        Some(Self { plan, frame, tail, segmented })
    }

    /// How many frames it becomes.
    fn count(&self) -> u32 {
        self.plan.count()
    }

    fn count_conversion(&self, counters: &Counters) {
        if self.segmented {
            counters.segmented_frames.add(1);
            counters.segments.add(u64::from(self.count()));
        } else {
            counters.checksummed_frames.add(1);
        }
    }

    /// Bytes of frame `index`.
    fn len(&self, index: u32) -> u32 {
        let payload = self.plan.payload(index);
        self.plan.header_len().min(MAX_HEADERS) as u32 + (payload.end - payload.start)
    }

    /// Frame `index`: virtio-net header, local bytes, the rest of the payload, and the length of
    /// all of it.
    fn frame(&self, index: u32) -> (Encoded, Local, Tail<'s>, u32) {
        let range = self.plan.payload(index);
        let (start, end) = (range.start as usize, range.end as usize);
        let head = self.frame.head();
        let fetched = head.get(start.min(head.len())..end.min(head.len())).unwrap_or_default();
        let rest = start.max(head.len());
        let tail = self.tail.slice(rest - head.len(), end.saturating_sub(rest));
        let mut sum = Sum::default();
        if self.plan.needs_payload_sum() {
            sum.add(fetched);
            tail.read(|bytes| sum.add(bytes));
        }
        let mut headers = [0u8; MAX_HEADERS];
        let vnet = self.plan.write_header(index, sum, &mut headers);
        let header_len = self.plan.header_len().min(MAX_HEADERS);
        let mut local = Local { bytes: [0; MAX_HEADERS + HEAD_LEN], len: 0 };
        let (front, back) = local.bytes.split_at_mut(header_len);
        front.copy_from_slice(headers.get(..header_len).unwrap_or_default());
        if let Some(room) = back.get_mut(..fetched.len()) {
            room.copy_from_slice(fetched);
            local.len = header_len + fetched.len();
        }
        (vnet.encode(), local, tail, self.len(index))
    }
}
