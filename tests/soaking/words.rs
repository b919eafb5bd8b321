//! Frames that say themselves what must be in them.
//!
//! A frame's payload is a run of words of 8 bytes. Each word names its flow and its place in it, and
//! no two are the same, so a frame can be checked whatever became of it on the way: whole, cut into
//! segments, its checksum completed. Within a flow places only grow: a frame that comes twice, too
//! early or too late shows.

use std::collections::HashMap;

use fakeguest::Received;
use fakeguest::features;
use fakeguest::frames::{self, Frame, NEEDS_CSUM, checksum_error, mac};

/// EtherType of frames without IP.
const PLAIN: [u8; 2] = [0x88, 0xb5];
/// EtherType of frames that nobody looks into.
pub const FOREIGN: [u8; 2] = [0x88, 0xb6];
/// Destination port of those with IP.
const PORT: u16 = 2000;
/// Destination of frames to all.
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// How a frame is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// No IP.
    Plain,
    /// A datagram or a segment with or without its checksum.
    Whole { tcp: bool, v6: bool, open: bool },
    /// To be cut by whoever can't take it, each piece of so many words.
    Large { tcp: bool, v6: bool, words: u16 },
}

/// Where the numbered words of one sender's queue are.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Number of the sender, 8 bits, and of its queue and life.
    tag: u32,
    next: u32,
}

/// The last number that a frame begins with: the longest one doesn't reach the end.
const LAST: u32 = u32::MAX - (1 << 20);

impl Flow {
    /// A new one of sender `station`, life `life` and queue `queue`.
    pub fn new(station: u8, life: u32, queue: usize) -> Flow {
        Flow { tag: u32::from(station) << 24 | (life & 0xf_ffff) << 4 | queue as u32, next: 0 }
    }

    /// The next frame to `destination`, with `words` words.
    pub fn frame(&mut self, destination: [u8; 6], shape: Shape, words: usize) -> Frame {
        if self.next > LAST {
            // After an hour or so: as if its guest had begun anew.
            let (station, life, queue) = (self.tag >> 24, self.tag >> 4 & 0xf_ffff, self.tag & 15);
            *self = Self::new(station as u8, life + 1, queue as usize);
        }
        let payload: Vec<u8> = (self.next..)
            .take(words)
            .flat_map(|at| (u64::from(self.tag) << 32 | u64::from(at)).to_le_bytes())
            .collect();
        self.next += words as u32;
        let station = (self.tag >> 24) as u8;
        let flow = |v6| {
            let flow = if v6 { frames::Flow::v6 } else { frames::Flow::v4 };
            let mut flow = flow(station, destination[5]);
            flow.macs = (mac(station), destination);
            flow.ports = (1000 + (self.tag & 15) as u16, PORT);
            flow
        };
        let packet = |tcp, v6| match tcp {
            // Sequence numbers of TCP go round.
            true => flow(v6).tcp(self.next.wrapping_mul(8), &payload),
            false => flow(v6).udp(&payload),
        };
        match shape {
            Shape::Plain => {
                let head = [&destination[..], &mac(station)[..], &PLAIN[..]].concat();
                Frame::plain([head, payload].concat())
            }
            Shape::Whole { tcp, v6, open: false } => packet(tcp, v6),
            Shape::Whole { tcp, v6, open: true } => packet(tcp, v6).open_checksum(),
            Shape::Large { tcp, v6, words } => packet(tcp, v6).segmentable(8 * words),
        }
    }
}

/// What a frame holds.
struct Run {
    tag: u32,
    first: u32,
    words: u32,
}

/// Checks the frames that one guest receives.
#[derive(Debug, Default)]
pub struct Checker {
    /// By flow and receive queue: the place from which on words are new. The frames of a sender's
    /// queue are of several flows as the switch sees them: by protocol and destination.
    expected: HashMap<(u32, usize, [u8; 4]), u32>,
}

impl Checker {
    /// Checks a frame that a guest with these features received on `queue`. Returns its sender, if
    /// it is one of those that send numbered words.
    pub fn check(
        &mut self,
        queue: usize,
        received: &Received,
        features: u64,
    ) -> Result<Option<u8>, String> {
        let frame = Frame { header: received.header, bytes: received.bytes.clone() };
        check_header(&frame, features)?;
        let Some(payload) = payload(&frame.bytes) else { return Ok(None) };
        if frame.header().flags & NEEDS_CSUM == 0
            && frame.bytes[12..14] != PLAIN
            && let Some(error) = checksum_error(&frame.bytes)
        {
            return Err(format!("{error} in {}", show(&frame)));
        }
        let run = run(payload).ok_or_else(|| format!("changed on the way: {}", show(&frame)))?;
        let station = (run.tag >> 24) as u8;
        if frame.bytes[6..12] != mac(station) {
            return Err(format!("not of station {station}: {}", show(&frame)));
        }
        let bytes = &frame.bytes;
        let protocol = if bytes[12] == 0x08 { bytes[23] } else { bytes[20] };
        let flow =
            [bytes[5], bytes[12], bytes[13], if bytes[12..14] == PLAIN { 0 } else { protocol }];
        let expected = self.expected.entry((run.tag, queue, flow)).or_insert(run.first);
        if run.first < *expected {
            let expected = *expected;
            return Err(format!("word {expected} or later is due: {}", show(&frame)));
        }
        *expected = run.first + run.words;
        Ok(Some(station))
    }

    /// Frames that were under way when the switch was killed may come again: what is due is not
    /// known of any flow.
    pub fn forget(&mut self) {
        self.expected.clear();
    }
}

/// What a frame's virtio-net header may say to a guest with these features.
fn check_header(frame: &Frame, accepted: u64) -> Result<(), String> {
    let header = frame.header();
    let needed = match header.gso_type & 0x7f {
        0 => 0,
        frames::GSO_TCPV4 => features::GUEST_TSO4,
        frames::GSO_TCPV6 => features::GUEST_TSO6,
        frames::GSO_UDP_L4 => features::GUEST_USO4 | features::GUEST_USO6,
        other => return Err(format!("a GSO type {other}")),
    };
    let open = header.flags & NEEDS_CSUM != 0;
    let has = |bits: u64| bits == 0 || accepted & bits != 0;
    if !has(needed) || open && !has(features::GUEST_CSUM) {
        return Err(format!("{header:?} to a guest that negotiated {accepted:#x}"));
    }
    Ok(())
}

/// The payload of a frame that may hold words.
fn payload(bytes: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    if bytes.get(6..11)? != &mac(0)[..5] {
        return None;
    }
    let (protocol, start, end) = match bytes.get(12..14)? {
        kind if kind == PLAIN => return bytes.get(14..),
        [0x08, 0x00] => (*bytes.get(23)?, 34, 14 + usize::from(word(16)?)),
        [0x86, 0xdd] => (*bytes.get(20)?, 54, 54 + usize::from(word(18)?)),
        _ => return None,
    };
    if word(start + 2)? != PORT {
        return None;
    }
    match protocol {
        17 => bytes.get(start + 8..end),
        6 => bytes.get(start + 4 * usize::from(*bytes.get(start + 12)? >> 4)..end),
        _ => None,
    }
}

/// The words of a payload, if they follow one another.
fn run(payload: &[u8]) -> Option<Run> {
    let mut words = payload.chunks(8).map(|word| Some(u64::from_le_bytes(word.try_into().ok()?)));
    let first = words.next()??;
    let mut next = first;
    for word in words {
        next += 1;
        if word? != next {
            return None;
        }
    }
    let words = (payload.len() / 8) as u32;
    Some(Run { tag: (first >> 32) as u32, first: first as u32, words })
}

/// Its first bytes, and those where a word isn't the one behind the word before it.
fn show(frame: &Frame) -> String {
    let bytes = &frame.bytes;
    let shown = &bytes[..bytes.len().min(96)];
    let mut text = format!("{} bytes, {:?}, {shown:02x?}", bytes.len(), frame.header());
    let words: Vec<_> = payload(bytes).unwrap_or_default().chunks_exact(8).collect();
    let number = |word: &[u8]| word.try_into().map_or(0, u64::from_le_bytes);
    let wrong = words.windows(2).position(|pair| number(pair[1]) != number(pair[0]) + 1);
    if let Some(at) = wrong {
        let after: Vec<_> = words[at..].iter().take(8).map(|word| number(word)).collect();
        text += &format!("; words from {at} of {}: {after:#x?}", words.len());
    }
    text
}
