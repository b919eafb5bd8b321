//! Lines of text, with descriptors, between two processes that trust each other: a switch and the
//! one that takes its place.
//!
//! Owns the stream. What the lines mean is the caller's business.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::socket::{Received, receive, send, wait_for_input};

/// The longest line, bytes.
const MAX_LINE: usize = 1 << 20;
/// The most descriptors that wait to be taken: one for each ring of many ports.
const MAX_WAITING: usize = 1 << 16;

/// One end of a stream of lines.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    bytes: VecDeque<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Channel {
    /// Takes over `stream`. A peer that reads nothing for `patience` is an error.
    ///
    /// # Errors
    ///
    /// The error of `setsockopt(2)`.
    pub fn new(stream: UnixStream, patience: Duration) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self { stream, bytes: VecDeque::new(), descriptors: VecDeque::new() })
    }

    /// Whether the peer was root or this process's user when it connected.
    ///
    /// # Errors
    ///
    /// The error of `getsockopt(2)`.
    pub fn is_trusted(&self) -> io::Result<bool> {
        let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let mut len = size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: SO_PEERCRED writes one ucred, for which there is room.
        let result = unsafe {
            let value = (&raw mut peer).cast();
            let fd = self.stream.as_raw_fd();
            libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, value, &mut len)
        };
        // SAFETY: takes and touches nothing.
        let own = unsafe { libc::geteuid() };
        if result == 0 { Ok([0, own].contains(&peer.uid)) } else { Err(io::Error::last_os_error()) }
    }

    /// Sends a line, which has no line feed in it, and descriptors with it.
    ///
    /// # Errors
    ///
    /// The error of `sendmsg(2)`, among them `WouldBlock` from a peer that doesn't read.
    pub fn send(&self, line: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let descriptors: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        send(&self.stream, format!("{line}\n").as_bytes(), &descriptors)
    }

    /// The next line, waited for until `deadline`.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` when the peer is gone, `TimedOut`, `InvalidData` for what is no line, and
    /// the errors of `recvmsg(2)`.
    pub fn receive(&mut self, deadline: Instant) -> io::Result<String> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.bytes.iter().skip(searched).position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.bytes.drain(..=searched + at).collect();
                let text = line.strip_suffix(b"\n").unwrap_or(&line);
                return String::from_utf8(text.to_vec())
                    .map_err(|_| io::ErrorKind::InvalidData.into());
            }
            searched = self.bytes.len();
            if searched > MAX_LINE || self.descriptors.len() > MAX_WAITING {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.fill(deadline)?;
        }
    }

    /// Ends it for both sides.
    pub fn close(&self) {
        // An error means that it has ended already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Takes the first descriptor that came with a line and wasn't taken.
    ///
    /// # Errors
    ///
    /// `InvalidData` if there is none.
    pub fn take(&mut self) -> io::Result<OwnedFd> {
        self.descriptors.pop_front().ok_or(io::ErrorKind::InvalidData.into())
    }

    fn fill(&mut self, deadline: Instant) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let mut descriptors = Vec::new();
        match receive(&self.stream, &mut buffer, &mut descriptors)? {
            Received::Bytes(len) => self.bytes.extend(buffer.iter().take(len)),
            Received::Nothing => {
                let left = deadline.saturating_duration_since(Instant::now());
                wait_for_input(&self.stream, left)?;
            }
            Received::Ended => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        self.descriptors.extend(descriptors);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(200);

    fn pair() -> (Channel, Channel) {
        let (a, b) = UnixStream::pair().unwrap();
        (Channel::new(a, PATIENCE).unwrap(), Channel::new(b, PATIENCE).unwrap())
    }

    fn soon() -> Instant {
        Instant::now() + PATIENCE
    }

    #[test]
    fn lines_and_their_descriptors_arrive_in_order() {
        let (a, mut b) = pair();
        let (mut reader, writer) = std::io::pipe().unwrap();
        a.send("one", &[]).unwrap();
        a.send("two", &[writer.as_fd(), writer.as_fd()]).unwrap();
        let long = "x".repeat(100_000);
        let sender = std::thread::spawn(move || {
            a.send(&long, &[writer.as_fd()]).unwrap();
        });
        assert_eq!(b.receive(soon()).unwrap(), "one");
        assert_eq!(b.receive(soon()).unwrap(), "two");
        let pipe = b.take().unwrap();
        b.take().unwrap();
        assert_eq!(b.receive(Instant::now() + PATIENCE * 50).unwrap().len(), 100_000);
        b.take().unwrap();
        assert!(b.take().is_err());
        sender.join().unwrap();
        std::fs::File::from(pipe).write_all(b"y").unwrap();
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"y");
    }

    #[test]
    fn silence_and_the_end_are_errors() {
        let (a, mut b) = pair();
        assert_eq!(b.receive(soon()).unwrap_err().kind(), io::ErrorKind::TimedOut);
        a.stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(b.receive(soon()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_peer_that_reads_nothing_is_an_error() {
        let (a, _b) = pair();
        let line = "x".repeat(MAX_LINE);
        let failed = (0..10).find_map(|_| a.send(&line, &[]).err()).unwrap();
        assert_eq!(failed.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let (a, mut b) = pair();
        let sender = std::thread::spawn(move || a.send(&"x".repeat(MAX_LINE * 2), &[]));
        let error = b.receive(Instant::now() + PATIENCE * 50).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        drop(b);
        let _ = sender.join().unwrap();
    }

    #[test]
    fn our_own_user_is_trusted() {
        let (a, _b) = pair();
        assert!(a.is_trusted().unwrap());
    }
}
