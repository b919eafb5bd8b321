//! vhost-user messages as the frontend sends them (the "Vhost-user Protocol" of QEMU's
//! interoperability documents), over a Unix stream socket.
//!
//! Every message has a method; [`Connection::raw`] sends anything at all. Replies are awaited at
//! most [`REPLY_TIMEOUT`], so that a switch that forgets one fails a test instead of hanging it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::Duration;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::memory::Region;

/// How long a reply may take.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Header flags: the protocol's version.
pub const VERSION: u32 = 1;
/// Header flag: this is a reply.
pub const REPLY: u32 = 1 << 2;
/// Header flag: the sender wants an acknowledgement.
pub const NEED_REPLY: u32 = 1 << 3;
/// In SET_VRING_KICK and its like: no descriptor comes with it.
pub const NO_FD: u64 = 1 << 8;
/// SET_VRING_ADDR flag: log writes to the used ring.
pub const VRING_LOG: u32 = 1;

/// Request codes by their names in the specification.
#[allow(missing_docs)]
pub mod code {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SEND_RARP: u32 = 19;
    pub const NET_SET_MTU: u32 = 20;
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    pub const SET_STATUS: u32 = 39;
    pub const GET_STATUS: u32 = 40;
}

/// When the frontend asks for acknowledgements, once REPLY_ACK is negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acks {
    /// For memory changes and the MTU, as QEMU does.
    Some,
    /// For every message that has no reply of its own, as Cloud Hypervisor does.
    All,
}

/// The addresses that SET_VRING_ADDR carries.
#[derive(Clone, Copy, Debug)]
pub struct VringAddr {
    /// 0 or [`VRING_LOG`].
    pub flags: u32,
    /// Descriptor table, in the frontend's address space.
    pub desc: u64,
    /// Used ring, in the frontend's address space.
    pub used: u64,
    /// Avail ring, in the frontend's address space.
    pub avail: u64,
    /// Guest-physical address under which writes to the used ring are logged.
    pub log: u64,
}

/// A connection to a vhost-user backend.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    acks: Acks,
    /// REPLY_ACK is negotiated.
    reply_ack: bool,
    /// Request and flags of each message since [`Connection::take_trace`].
    trace: Mutex<Vec<(u32, u32)>>,
}

impl Connection {
    /// Speaks over a connected stream.
    pub fn new(stream: UnixStream, acks: Acks) -> io::Result<Connection> {
        stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
        stream.set_write_timeout(Some(REPLY_TIMEOUT))?;
        Ok(Connection { stream, acks, reply_ack: false, trace: Mutex::default() })
    }

    /// The socket, for tests that write bytes of their own.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Request and flags of each message that was sent since the last call.
    pub fn take_trace(&self) -> Vec<(u32, u32)> {
        std::mem::take(&mut self.trace.lock().expect("nothing panics while it holds the lock"))
    }

    /// Sends one message with exactly these header fields, body and descriptors.
    pub fn raw(&self, code: u32, flags: u32, body: &[u8], fds: &[RawFd]) -> io::Result<()> {
        self.trace.lock().expect("nothing panics while it holds the lock").push((code, flags));
        let size = u32::try_from(body.len()).map_err(io::Error::other)?;
        let mut message = Vec::with_capacity(12 + body.len());
        for word in [code, flags, size] {
            message.extend_from_slice(&word.to_le_bytes());
        }
        message.extend_from_slice(body);
        self.bytes(&message, fds)
    }

    /// Sends bytes that need not be a message at all.
    pub fn bytes(&self, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
        let sent = self.stream.send_with_fds(&[bytes], fds).map_err(io::Error::from)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Receives a reply to `code` and returns its body.
    pub fn reply(&self, code: u32) -> io::Result<Vec<u8>> {
        let mut header = [0; 12];
        (&self.stream).read_exact(&mut header)?;
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
        let (got, flags, size) = (word(0), word(4), word(8));
        if got != code || flags & (REPLY | 3) != REPLY | VERSION || size > 4096 {
            let what = format!("request {code}: reply {got}, flags {flags:#x}, {size} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let mut body = vec![0; size as usize];
        (&self.stream).read_exact(&mut body)?;
        Ok(body)
    }

    /// Whether the backend has closed the connection, waiting for that at most `timeout`.
    pub fn closed_within(&self, timeout: Duration) -> bool {
        let Ok(()) = self.stream.set_read_timeout(Some(timeout)) else {
            return true;
        };
        let closed = match (&self.stream).read(&mut [0; 1]) {
            Ok(read) => read == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        };
        // Fails only on a socket that is gone, which the next message then tells.
        let _ = self.stream.set_read_timeout(Some(REPLY_TIMEOUT));
        closed
    }

    /// Sends a message without a reply of its own, and awaits the acknowledgement if `important`
    /// or if all are wanted.
    fn tell(&self, code: u32, body: &[u8], fds: &[RawFd], important: bool) -> io::Result<()> {
        let wanted = self.reply_ack && (important || self.acks == Acks::All);
        self.raw(code, if wanted { VERSION | NEED_REPLY } else { VERSION }, body, fds)?;
        if !wanted {
            return Ok(());
        }
        match to_u64(&self.reply(code)?)? {
            0 => Ok(()),
            error => Err(io::Error::other(format!("request {code} was refused: {error}"))),
        }
    }

    fn tell_u64(&self, code: u32, value: u64) -> io::Result<()> {
        self.tell(code, &value.to_le_bytes(), &[], false)
    }

    fn tell_state(&self, code: u32, index: u32, value: u32) -> io::Result<()> {
        self.tell(code, &state(index, value), &[], false)
    }

    fn ask_u64(&self, code: u32) -> io::Result<u64> {
        self.raw(code, VERSION, &[], &[])?;
        to_u64(&self.reply(code)?)
    }

    /// GET_FEATURES.
    pub fn get_features(&self) -> io::Result<u64> {
        self.ask_u64(code::GET_FEATURES)
    }

    /// SET_FEATURES.
    pub fn set_features(&self, features: u64) -> io::Result<()> {
        self.tell_u64(code::SET_FEATURES, features)
    }

    /// GET_PROTOCOL_FEATURES.
    pub fn get_protocol_features(&self) -> io::Result<u64> {
        self.ask_u64(code::GET_PROTOCOL_FEATURES)
    }

    /// SET_PROTOCOL_FEATURES; from here on acknowledgements are asked for if REPLY_ACK is among
    /// them.
    pub fn set_protocol_features(&mut self, features: u64) -> io::Result<()> {
        self.tell_u64(code::SET_PROTOCOL_FEATURES, features)?;
        self.reply_ack = features & crate::features::protocol::REPLY_ACK != 0;
        Ok(())
    }

    /// GET_QUEUE_NUM.
    pub fn get_queue_num(&self) -> io::Result<u64> {
        self.ask_u64(code::GET_QUEUE_NUM)
    }

    /// SET_OWNER.
    pub fn set_owner(&self) -> io::Result<()> {
        self.tell(code::SET_OWNER, &[], &[], false)
    }

    /// RESET_OWNER.
    pub fn reset_owner(&self) -> io::Result<()> {
        self.tell(code::RESET_OWNER, &[], &[], false)
    }

    /// RESET_DEVICE.
    pub fn reset_device(&self) -> io::Result<()> {
        self.tell(code::RESET_DEVICE, &[], &[], false)
    }

    /// SET_MEM_TABLE: all regions at once, each with the same file.
    pub fn set_mem_table(&self, regions: &[Region], file: &File) -> io::Result<()> {
        let count = u32::try_from(regions.len()).map_err(io::Error::other)?;
        let mut body = state(count, 0).to_vec();
        regions.iter().for_each(|region| body.extend_from_slice(&region_bytes(region)));
        let fds = vec![file.as_raw_fd(); regions.len()];
        self.tell(code::SET_MEM_TABLE, &body, &fds, true)
    }

    /// GET_MAX_MEM_SLOTS.
    pub fn get_max_mem_slots(&self) -> io::Result<u64> {
        self.ask_u64(code::GET_MAX_MEM_SLOTS)
    }

    /// ADD_MEM_REG.
    pub fn add_mem_reg(&self, region: &Region, file: &File) -> io::Result<()> {
        self.tell(code::ADD_MEM_REG, &padded(region), &[file.as_raw_fd()], true)
    }

    /// REM_MEM_REG.
    pub fn rem_mem_reg(&self, region: &Region) -> io::Result<()> {
        self.tell(code::REM_MEM_REG, &padded(region), &[], true)
    }

    /// SET_VRING_NUM: the ring's size.
    pub fn set_vring_num(&self, index: u32, size: u32) -> io::Result<()> {
        self.tell_state(code::SET_VRING_NUM, index, size)
    }

    /// SET_VRING_BASE: the next avail index to process.
    pub fn set_vring_base(&self, index: u32, base: u32) -> io::Result<()> {
        self.tell_state(code::SET_VRING_BASE, index, base)
    }

    /// GET_VRING_BASE: stops the ring and tells where.
    pub fn get_vring_base(&self, index: u32) -> io::Result<u32> {
        self.raw(code::GET_VRING_BASE, VERSION, &state(index, 0), &[])?;
        let body = self.reply(code::GET_VRING_BASE)?;
        match body.split_at_checked(4) {
            Some((got, base)) if got == index.to_le_bytes() && base.len() == 4 => {
                Ok(u32::from_le_bytes([base[0], base[1], base[2], base[3]]))
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("vring base {body:?}"))),
        }
    }

    /// SET_VRING_ADDR.
    pub fn set_vring_addr(&self, index: u32, addr: VringAddr) -> io::Result<()> {
        let mut body = state(index, addr.flags).to_vec();
        for word in [addr.desc, addr.used, addr.avail, addr.log] {
            body.extend_from_slice(&word.to_le_bytes());
        }
        self.tell(code::SET_VRING_ADDR, &body, &[], false)
    }

    /// SET_VRING_KICK; without a descriptor the backend is to poll.
    pub fn set_vring_kick(&self, index: u32, fd: Option<RawFd>) -> io::Result<()> {
        self.tell_fd(code::SET_VRING_KICK, index, fd)
    }

    /// SET_VRING_CALL; without a descriptor the frontend polls.
    pub fn set_vring_call(&self, index: u32, fd: Option<RawFd>) -> io::Result<()> {
        self.tell_fd(code::SET_VRING_CALL, index, fd)
    }

    /// SET_VRING_ERR.
    pub fn set_vring_err(&self, index: u32, fd: Option<RawFd>) -> io::Result<()> {
        self.tell_fd(code::SET_VRING_ERR, index, fd)
    }

    fn tell_fd(&self, code: u32, index: u32, fd: Option<RawFd>) -> io::Result<()> {
        let body = u64::from(index) | if fd.is_none() { NO_FD } else { 0 };
        self.tell(code, &body.to_le_bytes(), fd.as_slice(), false)
    }

    /// SET_VRING_ENABLE.
    pub fn set_vring_enable(&self, index: u32, on: bool) -> io::Result<()> {
        self.tell_state(code::SET_VRING_ENABLE, index, u32::from(on))
    }

    /// SET_LOG_BASE: the dirty log's length in bytes and its file; awaits the reply that
    /// LOG_SHMFD demands. It is the only one, also if an acknowledgement is asked for.
    pub fn set_log_base(&self, size: u64, file: &File) -> io::Result<()> {
        let mut body = size.to_le_bytes().to_vec();
        body.extend_from_slice(&0u64.to_le_bytes());
        let wanted = self.reply_ack && self.acks == Acks::All;
        let flags = if wanted { VERSION | NEED_REPLY } else { VERSION };
        self.raw(code::SET_LOG_BASE, flags, &body, &[file.as_raw_fd()])?;
        let reply = self.reply(code::SET_LOG_BASE)?;
        // Cloud Hypervisor reads as much as it sent, QEMU any length: DPDK's is 0.
        let reads = self.acks != Acks::All || reply.len() == body.len();
        if reads { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    /// SEND_RARP: announce the guest's address.
    pub fn send_rarp(&self, mac: [u8; 6]) -> io::Result<()> {
        let mut body = [0; 8];
        body[..6].copy_from_slice(&mac);
        self.tell(code::SEND_RARP, &body, &[], false)
    }

    /// NET_SET_MTU.
    pub fn net_set_mtu(&self, mtu: u64) -> io::Result<()> {
        self.tell(code::NET_SET_MTU, &mtu.to_le_bytes(), &[], true)
    }

    /// SET_STATUS: the device status byte (virtio 1.2, section 2.1).
    pub fn set_status(&self, status: u64) -> io::Result<()> {
        self.tell_u64(code::SET_STATUS, status)
    }

    /// GET_STATUS.
    pub fn get_status(&self) -> io::Result<u64> {
        self.ask_u64(code::GET_STATUS)
    }
}

fn state(index: u32, value: u32) -> [u8; 8] {
    (u64::from(index) | u64::from(value) << 32).to_le_bytes()
}

/// A region as the memory messages carry it.
pub fn region_bytes(region: &Region) -> [u8; 32] {
    let mut bytes = [0; 32];
    let words = [region.guest_addr, region.size, region.user_addr, region.file_offset];
    for (at, word) in words.iter().enumerate() {
        bytes[8 * at..8 * at + 8].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn padded(region: &Region) -> [u8; 40] {
    let mut bytes = [0; 40];
    bytes[8..].copy_from_slice(&region_bytes(region));
    bytes
}

fn to_u64(body: &[u8]) -> io::Result<u64> {
    let bytes = body.try_into().map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{} bytes for a u64", body.len()))
    })?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_laid_out_as_specified() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let connection = Connection::new(ours, Acks::Some).expect("a connection");
        connection.set_vring_num(3, 256).expect("sent");
        connection.set_vring_kick(5, None).expect("sent");
        let mut got = [0; 40];
        theirs.read_exact(&mut got).expect("two messages");
        let words = [8, 1, 8, 3, 256, 12, 1, 8, 0x105, 0u32];
        assert_eq!(got.as_slice(), words.map(u32::to_le_bytes).concat());
    }

    #[test]
    fn a_reply_to_something_else_is_an_error() {
        use std::io::Write;
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let connection = Connection::new(ours, Acks::Some).expect("a connection");
        theirs.write_all(&[2u32, 5, 8, 0, 0].map(u32::to_le_bytes).concat()).expect("written");
        let error = connection.get_features().expect_err("a reply to SET_FEATURES");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
