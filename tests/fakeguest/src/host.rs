//! The host's side of a TAP device: sockets in network namespaces.
//!
//! A socket stays in the namespace that it was made in, so a thread that enters the namespace
//! makes it and ends; whoever uses it stays where they are.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::wait;

/// Longest frame that a packet socket passes on here.
const FRAME_MAX: usize = 70_000;
/// Room for frames that wait in a packet socket or were sent and aren't taken, bytes.
const BUFFER: libc::c_int = 32 << 20;

/// Runs `job` in the network namespace that `ip netns` calls `name`.
///
/// # Errors
/// When there is no such namespace, or it may not be entered.
pub fn within<T: Send>(name: &str, job: impl FnOnce() -> T + Send) -> io::Result<T> {
    let namespace = File::open(format!("/run/netns/{name}"))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the descriptor is open, and the call has no other precondition. It changes
            // this thread only, which ends with the job.
            check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })?;
            Ok(job())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A packet socket: it sends frames out of a network device, and receives those that come in.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
}

impl PacketSocket {
    /// A socket on `device`, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When there is no such device, or without the capability NET_RAW.
    pub fn open(device: &str) -> io::Result<PacketSocket> {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: no memory is passed.
        let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind, protocol.into()) })?;
        // SAFETY: the descriptor was just made, and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let name = CString::new(device)?;
        // SAFETY: the name is a C string that lives across the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
            // SAFETY: one int, of the length given.
            check(unsafe {
                libc::setsockopt(
                    fd.as_raw_fd(),
                    libc::SOL_SOCKET,
                    option,
                    std::ptr::from_ref(&BUFFER).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                )
            })?;
        }
        // SAFETY: all zeros is a value of this plain C struct.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index as i32;
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: an address of the length given, which lives across the call.
        check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) })?;
        Ok(PacketSocket { fd })
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// What send(2) says; a frame longer than the device's MTU is one of it.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the bytes are readable for their length.
        let n = unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if n < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next frame of this EtherType that came in by the device, waiting for it up to
    /// `timeout`. All others are thrown away, and so are those that went out.
    pub fn recv(&self, ether_type: [u8; 2], timeout: Duration) -> Option<Vec<u8>> {
        let deadline = Instant::now() + timeout;
        while wait::readable(&self.fd, deadline.saturating_duration_since(Instant::now())) {
            if let Some(frame) = self.take().filter(|f| f.get(12..14) == Some(&ether_type[..])) {
                return Some(frame);
            }
        }
        None
    }

    fn take(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; FRAME_MAX];
        // SAFETY: all zeros is a value of this plain C struct.
        let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: a buffer and an address, both writable for the lengths given.
        let n = unsafe {
            libc::recvfrom(
                self.fd.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                libc::MSG_DONTWAIT,
                (&raw mut from).cast(),
                &raw mut len,
            )
        };
        frame.truncate(usize::try_from(n).ok()?);
        (from.sll_pkttype != libc::PACKET_OUTGOING).then_some(frame)
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
