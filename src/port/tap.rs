//! A TAP device of the host as a port: the uplink, a container, the host itself.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use crate::frame::{BURST, DropReason, Frame, HEAD_LEN, MAX_FRAME, MIN_FRAME};
use crate::mem::{SegmentPool, Segments, Tail, write_frame};
use crate::sys::tap::{READ_BUFFER_LEN, Tap};
use crate::wire::offload::{self, Offloads};
use crate::wire::vnet::VnetHeader;

use super::offload::Outgoing;
use super::{Counters, Egress};

/// Frames that are read from a TAP in one burst: each takes a system call.
const TAP_BURST: usize = 16;
/// Room for one frame with its header.
const SLOT: usize = READ_BUFFER_LEN.next_multiple_of(64);

/// The data side of a TAP port.
#[derive(Debug)]
pub struct TapPort {
    tap: Tap,
}

/// A worker's buffer for frames that are read from TAPs.
#[derive(Debug)]
pub struct TapReader {
    buffer: Box<[u8]>,
}

impl Default for TapReader {
    fn default() -> Self {
        Self { buffer: vec![0; SLOT * TAP_BURST].into_boxed_slice() }
    }
}

impl TapPort {
    /// A port over an open device.
    pub fn new(tap: Tap) -> Self {
        Self { tap }
    }

    /// The device.
    pub fn tap(&self) -> &Tap {
        &self.tap
    }

    /// What is readable when frames wait.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.tap.as_fd()
    }

    /// Offloads that the kernel may use in frames that are read from the device.
    #[inline]
    pub fn sends(&self) -> Offloads {
        Offloads::all()
    }

    /// Offloads that the kernel takes in frames that are written to the device.
    fn accepts(&self) -> Offloads {
        let without_uso = Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6 | Offloads::ECN;
        if self.tap.has_uso() { Offloads::all() } else { without_uso }
    }

    /// Reads up to 16 frames. Returns the number of good ones, the segments of their
    /// tails, and the number of those with impossible lengths.
    pub fn receive<'m>(
        &self,
        reader: &'m mut TapReader,
        pool: &'m mut SegmentPool,
        frames: &mut [Frame],
    ) -> (usize, Segments<'m>, u16) {
        let mut tails: [Range<usize>; BURST] = std::array::from_fn(|_| 0..0);
        let (mut good, mut bad) = (0, 0);
        for slot in 0..TAP_BURST.min(frames.len()) {
            let begin = slot * SLOT;
            let Some(buffer) = reader.buffer.get_mut(begin..begin + SLOT) else {
                break;
            };
            // Nothing left, or the device is down: both end the burst.
            let Ok(n) = self.tap.read(buffer) else { break };
            let frame_and_tail = frames.get_mut(good).zip(tails.get_mut(good));
            let Some((frame, tail)) = frame_and_tail else {
                break;
            };
            match fill(frame, buffer.get(..n).unwrap_or_default(), good as u32) {
                Some(head) => {
                    *tail = begin + VnetHeader::LEN + head..begin + n;
                    good += 1;
                }
                None => bad += 1,
            }
        }
        let segments = pool.local(&reader.buffer, tails.into_iter().take(good));
        (good, segments, bad)
    }

    /// Writes frames to the device, one system call each.
    pub(super) fn egress(&self, burst: Egress<'_>, counters: &Counters) {
        let accepts = self.accepts();
        for frame in burst.frames() {
            let done = match offload::for_receiver(&frame.vnet, accepts) {
                Some(vnet) => {
                    let tail = burst.segments.tail(frame.tail.clone());
                    self.write(vnet, frame.head(), tail)
                }
                None => self.convert(frame, burst.segments, accepts, counters),
            };
            counters.count_egress(frame, done);
        }
    }

    #[cold]
    fn convert(
        &self,
        frame: &Frame,
        segments: &Segments<'_>,
        accepts: Offloads,
        counters: &Counters,
    ) -> Result<(), DropReason> {
        let outgoing = Outgoing::new(frame, segments, accepts).ok_or(DropReason::BadOffload)?;
        outgoing.count_conversion(counters);
        for index in 0..outgoing.count() {
            let (vnet, headers, payload, _) = outgoing.frame(index);
            self.write(vnet, headers.as_slice(), payload)?;
        }
        Ok(())
    }

    fn write(&self, vnet: VnetHeader, head: &[u8], tail: Tail<'_>) -> Result<(), DropReason> {
        match write_frame(self.tap.as_fd(), &vnet.to_bytes(), head, tail) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => Err(DropReason::BadOffload),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EIO | libc::EBADFD | libc::ENODEV)) => {
                Err(DropReason::TapDown)
            }
            Err(_) => Err(DropReason::TapFull),
        }
    }
}

/// Makes a frame of what was read. Returns the length of its head, or None for a frame of
/// impossible length. Its tail is segment `index`.
fn fill(frame: &mut Frame, read: &[u8], index: u32) -> Option<usize> {
    let (header, bytes) = read.split_first_chunk::<{ VnetHeader::LEN }>()?;
    let len = u32::try_from(bytes.len()).ok().filter(|n| (MIN_FRAME..=MAX_FRAME).contains(n))?;
    let head = bytes.len().min(HEAD_LEN);
    frame.len = len;
    frame.vnet = VnetHeader::from_bytes(header);
    frame.head_mut().copy_from_slice(bytes.get(..head)?);
    frame.tail = index..index + 1;
    Some(head)
}
