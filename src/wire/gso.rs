//! How one frame becomes the frames that a receiver without its offloads accepts: segmentation of
//! TCP and UDP, and completion of checksums.
//!
//! Owns the headers of the resulting frames. Does not touch the payload: a [`Plan`] says which
//! bytes of the original belong to each output, and the caller copies them, summing them when
//! [`Plan::needs_payload_sum`] says so.
//!
//! # Theory of operation
//!
//! Under NEEDS_CSUM the checksum field of a frame holds the sum of the pseudo header, with the
//! length of the whole transport packet in it (virtio 1.2, section 5.1.6.2, and what drivers have
//! always done for GSO frames too). A segment's pseudo header differs from it in the length only,
//! so it is derived from the field, as in RFC 1624. That holds also where the addresses in the IP
//! header are not those of the pseudo header, as with an IPv6 routing header.
//!
//! All of a frame's length becomes payload, whatever length the IP header announces: some drivers
//! leave it zero in GSO frames.

use std::ops::Range;

use super::checksum::Sum;
use super::headers::{IPV6_LEN, L3};
use super::offload::{self, BadOffload, GsoLayout, Offloads, UDP_CHECKSUM};
use super::vnet::{GSO_NONE, NEEDS_CSUM, VnetHeader};

/// Bytes of headers that an output frame may have.
pub const MAX_HEADERS: usize = 256;

/// Output frames of one plan: 64 KiB in segments of 48 bytes, the smallest that Linux sends
/// (TCP_MIN_SND_MSS). A sender that asks for more wants the switch's time rather than segments.
pub const MAX_OUTPUTS: u32 = 1366;

const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 13;
const TCP_FIN_PSH: u8 = 0x09;
const TCP_CWR: u8 = 0x80;
const UDP_LENGTH: usize = 4;
const IPV4_TOTAL_LENGTH: usize = 2;
const IPV4_ID: usize = 4;
const IPV4_CHECKSUM: usize = 10;
const IPV6_PAYLOAD_LENGTH: usize = 4;

/// Why a frame can't be converted. It is to be dropped for this receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The virtio-net header and the frame disagree, which [`offload::check`] would have found.
    #[error(transparent)]
    Offload(#[from] BadOffload),
    /// The frame needs nothing: it has neither NEEDS_CSUM nor a GSO type.
    #[error("the frame asks for no offload")]
    NothingToDo,
    /// The headers, or the checksum field, lie beyond the bytes that were handed over.
    #[error("headers or checksum field end at {end}, beyond the first {available} bytes")]
    HeadersTooLong {
        /// Where they end.
        end: usize,
        /// Bytes that were handed over, or [`MAX_HEADERS`].
        available: usize,
    },
    /// Segments would be longer than IP can say.
    #[error("segments of {0} bytes are longer than an IP packet")]
    SegmentTooLong(u32),
    /// There would be more than [`MAX_OUTPUTS`] segments.
    #[error("{0} segments are more than {MAX_OUTPUTS}")]
    TooManySegments(u32),
}

/// What a frame becomes for one receiver.
///
/// For each output `i` below [`count`](Self::count): the header bytes out of
/// [`write_header`](Self::write_header), then the bytes [`payload`](Self::payload) of the original.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The original's headers.
    head: [u8; MAX_HEADERS],
    header_len: u16,
    frame_len: u32,
    count: u32,
    /// Bytes of payload in each output but the last.
    step: u32,
    csum_start: u16,
    csum_offset: u16,
    /// Whether checksums are completed here, not by the receiver.
    complete: bool,
    /// What differs between outputs; `None` when only the checksum is completed.
    segments: Option<GsoLayout>,
}

impl Plan {
    /// Plans the conversion of a frame for a receiver that accepts `accepts`.
    ///
    /// `head` holds the frame's first bytes, up to [`MAX_HEADERS`]; fewer do as long as all headers
    /// and the checksum field are among them. `vnet` came out of [`offload::check`], and `frame_len`
    /// counts the whole frame.
    ///
    /// # Errors
    ///
    /// See [`PlanError`]; a frame that [`offload::check`] let pass can still fail for the place of
    /// its checksum field and for the number and length of its segments.
    pub fn new(
        head: &[u8],
        vnet: &VnetHeader,
        frame_len: u32,
        accepts: Offloads,
    ) -> Result<Plan, PlanError> {
        if vnet.flags & NEEDS_CSUM == 0 {
            return Err(if vnet.gso_type == GSO_NONE {
                PlanError::NothingToDo
            } else {
                BadOffload::GsoWithoutChecksum.into()
            });
        }
        offload::check_checksum(vnet, frame_len)?;
        let head = offload::within_frame(head, frame_len);
        let segments = match vnet.gso_type {
            GSO_NONE => None,
            _ => Some(GsoLayout::of(head, vnet)?),
        };
        let header_len = match &segments {
            Some(layout) => usize::from(layout.header_len),
            None => usize::from(vnet.csum_start) + usize::from(vnet.csum_offset) + 2,
        };
        let available = head.len().min(MAX_HEADERS);
        let too_long = PlanError::HeadersTooLong { end: header_len, available };
        let mut copy = [0; MAX_HEADERS];
        let headers = head.get(..header_len).ok_or(too_long)?;
        copy.get_mut(..header_len).ok_or(too_long)?.copy_from_slice(headers);
        let mut plan = Plan {
            head: copy,
            header_len: u16::try_from(header_len).map_err(|_| too_long)?,
            frame_len,
            count: 1,
            step: u32::MAX,
            csum_start: vnet.csum_start,
            csum_offset: vnet.csum_offset,
            complete: !accepts.contains(Offloads::CSUM),
            segments,
        };
        if let Some(layout) = segments {
            plan.cut(&layout, vnet.gso_size)?;
        }
        Ok(plan)
    }

    /// Sets the number of segments and prepares what they have in common.
    fn cut(&mut self, layout: &GsoLayout, gso_size: u16) -> Result<(), PlanError> {
        self.step = u32::from(gso_size);
        let payload = self.frame_len.saturating_sub(u32::from(self.header_len));
        self.count = payload.div_ceil(self.step).max(1);
        if self.count > MAX_OUTPUTS {
            return Err(PlanError::TooManySegments(self.count));
        }
        let l3_offset = u32::try_from(layout.l3_offset).unwrap_or(u32::MAX);
        let longest = u32::from(self.header_len).saturating_sub(l3_offset) + payload.min(self.step);
        if longest > u32::from(u16::MAX) {
            return Err(PlanError::SegmentTooLong(longest));
        }
        // The pseudo header's sum, less the length that is in it.
        let l4_offset = u32::from(self.csum_start);
        let l4_len = self.frame_len.saturating_sub(l4_offset);
        let field = layout.l4_offset + usize::from(self.csum_offset);
        let mut pseudo = Sum::default();
        pseudo.add(&get::<2>(&self.head, field));
        pseudo.add(&(!l4_len).to_be_bytes());
        put(&mut self.head, field, pseudo.partial().to_be_bytes());
        Ok(())
    }

    /// Output frames: from 1 to [`MAX_OUTPUTS`].
    #[inline]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Header bytes of each output, at most [`MAX_HEADERS`]. They stand for as many bytes at the
    /// start of the original.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.header_len)
    }

    /// The payload of output `i`, as offsets into the original frame. May be empty.
    #[inline]
    pub fn payload(&self, i: u32) -> Range<u32> {
        let header_len = u32::from(self.header_len);
        let start = header_len.saturating_add(i.saturating_mul(self.step)).min(self.frame_len);
        start..start.saturating_add(self.step).min(self.frame_len)
    }

    /// Whether [`write_header`](Self::write_header) needs the sum of the output's payload.
    #[inline]
    pub fn needs_payload_sum(&self) -> bool {
        self.complete
    }

    /// Writes the header bytes of output `i` to the start of `out` and returns the virtio-net
    /// header to go before them (with `num_buffers` zero).
    ///
    /// `payload_sum` was taken over [`payload(i)`](Self::payload) on its own, from an even offset;
    /// it is not looked at unless [`needs_payload_sum`](Self::needs_payload_sum).
    pub fn write_header(
        &self,
        i: u32,
        payload_sum: Sum,
        out: &mut [u8; MAX_HEADERS],
    ) -> VnetHeader {
        *out = self.head;
        if let Some(layout) = &self.segments {
            self.write_segment(layout, i, out);
        }
        if !self.complete {
            return VnetHeader {
                flags: NEEDS_CSUM,
                csum_start: self.csum_start,
                csum_offset: self.csum_offset,
                ..VnetHeader::default()
            };
        }
        let start = usize::from(self.csum_start);
        let mut sum = Sum::default();
        sum.add(out.get(start..self.header_len()).unwrap_or_default());
        sum.combine(payload_sum, self.header_len().saturating_sub(start) % 2 != 0);
        let checksum = match sum.finish() {
            // UDP's zero says that there is no checksum (RFC 768).
            0 if self.csum_offset == UDP_CHECKSUM => 0xffff,
            checksum => checksum,
        };
        put(out, start + usize::from(self.csum_offset), checksum.to_be_bytes());
        VnetHeader::default()
    }

    /// Turns the headers in `out` into those of segment `i`, but for the transport checksum, whose
    /// field gets the sum of the pseudo header.
    fn write_segment(&self, layout: &GsoLayout, i: u32, out: &mut [u8; MAX_HEADERS]) {
        let payload = self.payload(i);
        let payload_len = payload.end - payload.start;
        // What `cut` found to fit 16 bits.
        let length_from = |offset: usize| {
            let headers = self.header_len().saturating_sub(offset);
            u16::try_from(payload_len as usize + headers).unwrap_or(u16::MAX)
        };
        let l3 = layout.l3_offset;
        match layout.l3 {
            L3::Ipv4 => {
                put(out, l3 + IPV4_TOTAL_LENGTH, length_from(l3).to_be_bytes());
                let id = u16::from_be_bytes(get(out, l3 + IPV4_ID)).wrapping_add(i as u16);
                put(out, l3 + IPV4_ID, id.to_be_bytes());
                put(out, l3 + IPV4_CHECKSUM, [0, 0]);
                let mut sum = Sum::default();
                sum.add(out.get(l3..layout.l4_offset).unwrap_or_default());
                put(out, l3 + IPV4_CHECKSUM, sum.finish().to_be_bytes());
            }
            L3::Ipv6 => {
                let length = length_from(l3 + IPV6_LEN);
                put(out, l3 + IPV6_PAYLOAD_LENGTH, length.to_be_bytes());
            }
        }
        let l4 = layout.l4_offset;
        let l4_len = length_from(l4);
        if layout.tcp {
            let sequence = u32::from_be_bytes(get(out, l4 + TCP_SEQUENCE));
            let sequence = sequence.wrapping_add(i.wrapping_mul(self.step));
            put(out, l4 + TCP_SEQUENCE, sequence.to_be_bytes());
            let [mut flags] = get::<1>(out, l4 + TCP_FLAGS);
            if i.saturating_add(1) < self.count {
                flags &= !TCP_FIN_PSH;
            }
            if i != 0 {
                flags &= !TCP_CWR;
            }
            put(out, l4 + TCP_FLAGS, [flags]);
        } else {
            put(out, l4 + UDP_LENGTH, l4_len.to_be_bytes());
        }
        let field = l4 + usize::from(self.csum_offset);
        let mut pseudo = Sum::default();
        pseudo.add(&get::<2>(out, field));
        pseudo.add(&l4_len.to_be_bytes());
        put(out, field, pseudo.partial().to_be_bytes());
    }
}

/// The `N` bytes at `offset`; zeros should they lie beyond `bytes`, which no caller lets happen.
#[inline]
fn get<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes.get(offset..).and_then(|bytes| bytes.first_chunk()).copied().unwrap_or([0; N])
}

/// Writes `value` at `offset`; nothing should it lie beyond `bytes`, which no caller lets happen.
#[inline]
fn put<const N: usize>(bytes: &mut [u8], offset: usize, value: [u8; N]) {
    if let Some(field) = bytes.get_mut(offset..).and_then(|bytes| bytes.first_chunk_mut()) {
        *field = value;
    }
}

#[cfg(test)]
mod tests;
