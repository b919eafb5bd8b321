//! The header of a message, and the list of messages that we understand.
//!
//! Everything that can be told without knowing the session is checked here: version, flags, size,
//! and the number of attached descriptors.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use thiserror::Error;

use crate::sys::socket::{MAX_DESCRIPTORS, Received, receive};

/// REPLY in the header's flags.
const REPLY: u32 = 1 << 2;
/// NEED_REPLY in the header's flags: the frontend waits for an answer.
const NEED_REPLY: u32 = 1 << 3;
/// The only version of the protocol.
const VERSION: u32 = 1;
/// The most regions of one SET_MEM_TABLE: the `vhost` crate's limit; the specification's is 8.
const MAX_TABLE: u32 = 32;
/// Size of a memory region in a message, bytes.
const REGION: u32 = 32;

/// The largest payload, bytes: a full SET_MEM_TABLE.
const MAX_PAYLOAD: usize = 8 + (MAX_TABLE * REGION) as usize;

/// Requests that are named in the code; numbers of the specification ("Front-end message types").
pub(super) mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SEND_RARP: u32 = 19;
    pub const NET_SET_MTU: u32 = 20;
    pub const ADD_MEM_REG: u32 = 37;
    pub const SET_STATUS: u32 = 39;
    pub const GET_STATUS: u32 = 40;
}

/// A message's header (vhost-user specification, "Header").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub request: u32,
    pub flags: u32,
    /// Size of the payload, bytes.
    pub size: u32,
}

impl Header {
    /// Size of a header, bytes.
    pub const LEN: usize = 12;

    /// Reads a header. Messages are in the byte order of the host.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *bytes;
        Self {
            request: u32::from_ne_bytes([a, b, c, d]),
            flags: u32::from_ne_bytes([e, f, g, h]),
            size: u32::from_ne_bytes([i, j, k, l]),
        }
    }

    /// The bytes of a message that wants no acknowledgement.
    pub fn request(request: u32, size: u32) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        for (to, part) in bytes.chunks_exact_mut(4).zip([request, VERSION, size]) {
            to.copy_from_slice(&part.to_ne_bytes());
        }
        bytes
    }

    /// The bytes of a reply to this message whose payload is `value`.
    pub fn reply(&self, value: u64) -> [u8; Self::LEN + 8] {
        let mut bytes = [0; Self::LEN + 8];
        let parts = [self.request, VERSION | REPLY, 8];
        for (to, part) in bytes.chunks_exact_mut(4).zip(parts) {
            to.copy_from_slice(&part.to_ne_bytes());
        }
        bytes[Self::LEN..].copy_from_slice(&value.to_ne_bytes());
        bytes
    }

    /// Whether the frontend wants to know how the message went (REPLY_ACK).
    pub fn needs_reply(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }
}

/// How a message is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Not, or on demand with its success (REPLY_ACK).
    Ack,
    /// Always, with what it asks for.
    Reply,
}

/// What is known of a message before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    /// The specification's name.
    pub name: &'static str,
    pub answer: Answer,
    /// Descriptors that can come with it: at least and at most.
    descriptors: (usize, usize),
    /// Size of the payload, bytes.
    size: u32,
}

/// Why a message can't be read at all. The connection ends: what follows can't be trusted.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadMessage {
    #[error("message {0} is unknown or was not negotiated")]
    Unknown(u32),
    #[error("{name} has the flags {flags:#x}")]
    Flags { name: &'static str, flags: u32 },
    #[error("{name} has a payload of {size} bytes")]
    Size { name: &'static str, size: u32 },
    #[error("{name} has {count} descriptors")]
    Descriptors { name: &'static str, count: usize },
}

/// Finds out what a message is and whether its header holds together.
pub(super) fn classify(header: &Header) -> Result<Kind, BadMessage> {
    let kind = kind(header).ok_or(BadMessage::Unknown(header.request))?;
    let Kind { name, size, .. } = kind;
    if header.flags & !NEED_REPLY != VERSION {
        return Err(BadMessage::Flags { name, flags: header.flags });
    }
    if header.size != size {
        return Err(BadMessage::Size { name, size: header.size });
    }
    Ok(kind)
}

impl Kind {
    /// Checks how many descriptors came with the message.
    pub fn check_descriptors(&self, count: usize) -> Result<(), BadMessage> {
        let (least, most) = self.descriptors;
        let fits = (least..=most).contains(&count);
        if fits { Ok(()) } else { Err(BadMessage::Descriptors { name: self.name, count }) }
    }
}

fn kind(header: &Header) -> Option<Kind> {
    use Answer::{Ack, Reply};
    let (name, answer, size, descriptors) = match header.request {
        request::GET_FEATURES => ("GET_FEATURES", Reply, 0, (0, 0)),
        request::SET_FEATURES => ("SET_FEATURES", Ack, 8, (0, 0)),
        3 => ("SET_OWNER", Ack, 0, (0, 0)),
        4 => ("RESET_OWNER", Ack, 0, (0, 0)),
        request::SET_MEM_TABLE => {
            let regions = (header.size.saturating_sub(8) / REGION).clamp(1, MAX_TABLE);
            let count = regions as usize;
            ("SET_MEM_TABLE", Ack, 8 + regions * REGION, (count, count))
        }
        request::SET_LOG_BASE => ("SET_LOG_BASE", Reply, 16, (1, 1)),
        request::SET_VRING_NUM => ("SET_VRING_NUM", Ack, 8, (0, 0)),
        request::SET_VRING_ADDR => ("SET_VRING_ADDR", Ack, 40, (0, 0)),
        request::SET_VRING_BASE => ("SET_VRING_BASE", Ack, 8, (0, 0)),
        11 => ("GET_VRING_BASE", Reply, 8, (0, 0)),
        request::SET_VRING_KICK => ("SET_VRING_KICK", Ack, 8, (0, 1)),
        request::SET_VRING_CALL => ("SET_VRING_CALL", Ack, 8, (0, 1)),
        request::SET_VRING_ERR => ("SET_VRING_ERR", Ack, 8, (0, 1)),
        15 => ("GET_PROTOCOL_FEATURES", Reply, 0, (0, 0)),
        request::SET_PROTOCOL_FEATURES => ("SET_PROTOCOL_FEATURES", Ack, 8, (0, 0)),
        17 => ("GET_QUEUE_NUM", Reply, 0, (0, 0)),
        request::SET_VRING_ENABLE => ("SET_VRING_ENABLE", Ack, 8, (0, 0)),
        request::SEND_RARP => ("SEND_RARP", Ack, 8, (0, 0)),
        request::NET_SET_MTU => ("NET_SET_MTU", Ack, 8, (0, 0)),
        34 => ("RESET_DEVICE", Ack, 0, (0, 0)),
        36 => ("GET_MAX_MEM_SLOTS", Reply, 0, (0, 0)),
        request::ADD_MEM_REG => ("ADD_MEM_REG", Ack, 8 + REGION, (1, 1)),
        // Old frontends attach the region's descriptor; it is closed (specification, REM_MEM_REG).
        38 => ("REM_MEM_REG", Ack, 8 + REGION, (0, 1)),
        request::SET_STATUS => ("SET_STATUS", Ack, 8, (0, 0)),
        request::GET_STATUS => ("GET_STATUS", Reply, 0, (0, 0)),
        _ => return None,
    };
    Some(Kind { name, answer, descriptors, size })
}

/// A whole message.
#[derive(Debug)]
pub(super) struct Message<'a> {
    pub header: Header,
    pub kind: Kind,
    /// Header and payload.
    pub bytes: &'a [u8],
    /// As many as the message needs.
    pub descriptors: Vec<OwnedFd>,
}

impl Message<'_> {
    /// The payload, of the size that the message has.
    pub fn payload(&self) -> &[u8] {
        self.bytes.get(Header::LEN..).unwrap_or(&[])
    }
}

/// What came of the message that is next.
#[derive(Debug)]
pub(super) struct Inbox {
    bytes: [u8; Header::LEN + MAX_PAYLOAD],
    len: usize,
    descriptors: Vec<OwnedFd>,
}

/// Why there is no whole message.
#[derive(Debug)]
pub(super) enum Lack {
    /// More has to come.
    Incomplete,
    /// Nothing more will come. Whether a part of a message came before.
    Ended { within: bool },
    /// It is none.
    Bad(BadMessage),
    /// The socket failed, or descriptors were lost.
    Socket(io::Error),
}

impl Inbox {
    pub fn new() -> Self {
        Self { bytes: [0; Header::LEN + MAX_PAYLOAD], len: 0, descriptors: Vec::new() }
    }

    /// Takes one message out of `stream`, or the part of it that is there.
    pub fn next(&mut self, stream: &UnixStream) -> Result<Message<'_>, Lack> {
        self.fill(stream, Header::LEN)?;
        let header = self.bytes.first_chunk().map(Header::from_bytes);
        let header = header.ok_or(Lack::Incomplete)?;
        let kind = classify(&header).map_err(Lack::Bad)?;
        let end = Header::LEN.saturating_add(kind.size as usize);
        self.fill(stream, end)?;
        self.len = 0;
        let descriptors = std::mem::take(&mut self.descriptors);
        kind.check_descriptors(descriptors.len()).map_err(Lack::Bad)?;
        let bytes = self.bytes.get(..end).ok_or(Lack::Incomplete)?;
        Ok(Message { header, kind, bytes, descriptors })
    }

    /// The part of a message that has come, and its descriptors.
    pub fn part(&self) -> (&[u8], &[OwnedFd]) {
        (self.bytes.get(..self.len).unwrap_or_default(), &self.descriptors)
    }

    /// Takes bytes until `end` of them are there, and not one more: descriptors of the next
    /// message come with its first byte.
    fn fill(&mut self, stream: &UnixStream, end: usize) -> Result<(), Lack> {
        while let Some(space) = self.bytes.get_mut(self.len..end).filter(|s| !s.is_empty()) {
            match receive(stream, space, &mut self.descriptors).map_err(Lack::Socket)? {
                Received::Bytes(count) => self.len = self.len.saturating_add(count),
                Received::Nothing => return Err(Lack::Incomplete),
                Received::Ended => {
                    return Err(Lack::Ended { within: self.len > 0 });
                }
            }
            if self.descriptors.len() > MAX_DESCRIPTORS {
                let count = self.descriptors.len();
                return Err(Lack::Bad(BadMessage::Descriptors { name: "a message", count }));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(request: u32, flags: u32, size: u32) -> Header {
        Header { request, flags, size }
    }

    #[test]
    fn headers_are_read_and_answered_in_host_order() {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&18u32.to_ne_bytes());
        bytes[4..8].copy_from_slice(&9u32.to_ne_bytes());
        bytes[8..].copy_from_slice(&8u32.to_ne_bytes());
        let read = Header::from_bytes(&bytes);
        assert_eq!(read, header(18, 9, 8));
        assert!(read.needs_reply() && !header(18, 1, 8).needs_reply());
        let reply = read.reply(0x1234_5678_9abc);
        let (head, value) = reply.split_at(12);
        assert_eq!(Header::from_bytes(head.try_into().unwrap()), header(18, 5, 8));
        assert_eq!(u64::from_ne_bytes(value.try_into().unwrap()), 0x1234_5678_9abc);
    }

    #[test]
    fn headers_that_do_not_hold_together_are_refused() {
        assert_eq!(classify(&header(2, 1, 8)).unwrap().name, "SET_FEATURES");
        assert_eq!(classify(&header(2, 9, 8)).unwrap().answer, Answer::Ack);
        for unknown in [0, 7, 21, 22, 24, 31, 42, 45, u32::MAX] {
            assert_eq!(classify(&header(unknown, 1, 8)), Err(BadMessage::Unknown(unknown)));
        }
        for flags in [0, 2, 3, 5, 0x11, u32::MAX] {
            let bad = classify(&header(2, flags, 8));
            assert_eq!(bad, Err(BadMessage::Flags { name: "SET_FEATURES", flags }));
        }
        for size in [0, 7, 9, 4096, u32::MAX] {
            let bad = classify(&header(2, 1, size));
            assert_eq!(bad, Err(BadMessage::Size { name: "SET_FEATURES", size }));
        }
        for (request, size, wrong) in [(2, 8, 1), (6, 16, 0), (6, 16, 2), (12, 8, 2), (37, 40, 0)] {
            let bad = classify(&header(request, 1, size)).unwrap().check_descriptors(wrong);
            assert!(matches!(bad, Err(BadMessage::Descriptors { count, .. }) if count == wrong));
        }
    }

    #[test]
    fn a_memory_table_has_a_descriptor_for_each_region() {
        for regions in [1, 2, 32] {
            let size = 8 + regions * 32;
            let kind = classify(&header(5, 1, size)).unwrap();
            assert!(kind.check_descriptors(regions as usize).is_ok());
            assert!(kind.check_descriptors(regions as usize + 1).is_err());
            assert!(kind.check_descriptors(regions as usize - 1).is_err());
            assert!(classify(&header(5, 1, size + 1)).is_err());
        }
        for size in [0, 8, 39, 8 + 33 * 32, u32::MAX] {
            assert!(matches!(classify(&header(5, 1, size)), Err(BadMessage::Size { .. })));
        }
    }
}
