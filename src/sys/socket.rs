//! UNIX stream sockets between the switch and a VMM: listening, connecting, receiving.
//!
//! Owns the socket file that it makes. Knows nothing of what is said over a socket: messages and
//! their meaning belong to `vhost_user`.
//!
//! # Theory of operation
//!
//! Nothing here blocks on a peer. Listeners accept without waiting, [`connect`] fails at once
//! when the other side's backlog is full, and [`receive`] takes what is there. Between two looks a
//! caller sleeps in an edge-triggered [`super::poller::Poller`]: it is woken by each arrival, and
//! not by a part of a message that it has seen.
//!
//! Peeking (MSG_PEEK) would leave a message to somebody else, but can't tell whose descriptors it
//! shows: Linux looks past the bytes asked for, up to the next descriptors in the queue (6.18).

use std::fs::{File, Metadata, symlink_metadata};
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::account;

/// The longest socket path, bytes: `sun_path` less its final zero (unix(7)).
pub const MAX_PATH: usize = 107;
/// Connections that may wait to be accepted. One frontend uses a socket, so a few are plenty.
const BACKLOG: libc::c_int = 8;

/// Why a socket can't be listened on or connected to.
#[derive(Debug, Error)]
pub enum SocketError {
    /// The path doesn't fit into a socket address.
    #[error(
        "socket path {0} is empty, has a zero byte or more than {MAX_PATH} bytes: use a shorter one"
    )]
    Path(PathBuf),
    /// The directory isn't there.
    #[error("cannot make socket {0}: its directory does not exist; create it first")]
    NoDirectory(PathBuf),
    /// Somebody listens on the socket.
    #[error("socket {0} is in use by another process: end that one, or choose another path")]
    InUse(PathBuf),
    /// Something that is no stream socket has the path.
    #[error("{0} exists and is no stream socket: remove it, or choose another path")]
    NotASocket(PathBuf),
    /// We are not let in.
    #[error(
        "no permission to connect to socket {0}: the user that the switch runs as (`user` in \
         [sandbox]) needs write permission on it, and search permission on its directories"
    )]
    Denied(PathBuf),
    /// No such user or group, or not written as `user` or `user:group`.
    #[error("owner {0:?} of a socket: no such user or group; expected \"user\" or \"user:group\"")]
    Owner(String),
    /// A system call failed.
    #[error("cannot {action} socket {path}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl SocketError {
    fn system(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::System { action, path: path.to_owned(), source }
    }
}

/// A listening socket and its file. Dropping it removes the file, unless somebody replaced it or it
/// is another process's.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file, while it is ours to remove.
    file: Option<(u64, u64)>,
}

impl Listener {
    /// Listens on `path`.
    ///
    /// A file that a dead process left is replaced. `owner` is `user` or `user:group`, as names or
    /// ids; `mode` the permission bits, else the umask decides. The file is never more accessible
    /// than it ends up: it is made with its mode, given away, and only then freed of the umask.
    ///
    /// # Errors
    ///
    /// [`SocketError`], each of which says what to do; no file is left behind.
    pub fn bind(path: &Path, owner: Option<&str>, mode: Option<u32>) -> Result<Self, SocketError> {
        let address = Address::new(path)?;
        let unknown = |owner: &str| SocketError::Owner(owner.to_owned());
        let owner =
            owner.map(|owner| account::ids(owner).ok_or_else(|| unknown(owner))).transpose()?;
        remove_stale(path, &address)?;
        let system = |action| move |error| SocketError::system(action, path, error);
        let socket = stream_socket().map_err(system("create"))?;
        if let Some(mode) = mode {
            // The file takes its mode from the unbound socket, less the umask.
            // SAFETY: changes the mode of a descriptor that is owned here.
            check(unsafe { libc::fchmod(socket.as_raw_fd(), mode) }).map_err(system("create"))?;
        }
        bind(&socket, &address).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => SocketError::NoDirectory(path.to_owned()),
            Some(libc::EADDRINUSE) => SocketError::InUse(path.to_owned()),
            _ => SocketError::system("make", path, error),
        })?;
        let made = symlink_metadata(path).map_err(system("find"))?;
        // From here on the file is removed again when something fails.
        let listener = Self {
            listener: UnixListener::from(socket),
            path: path.to_owned(),
            file: Some(identity(&made)),
        };
        if let Some((user, group)) = owner {
            lchown(path, Some(user), group).map_err(system("change the owner of"))?;
        }
        if let Some(mode) = mode {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode))
                .map_err(system("change the mode of"))?;
        }
        // SAFETY: acts on a descriptor that is owned here.
        check(unsafe { libc::listen(listener.listener.as_raw_fd(), BACKLOG) })
            .map_err(system("listen on"))?;
        Ok(listener)
    }

    /// Takes a connection that waits, if there is one.
    ///
    /// # Errors
    ///
    /// The error of `accept4(2)`: the process or the host is out of descriptors or memory.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                Ok(Some(stream))
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// A listener that another process made on `path`. Its file isn't ours: see [`Self::own`].
    #[must_use]
    pub fn inherit(socket: OwnedFd, path: &Path) -> Self {
        Self { listener: UnixListener::from(socket), path: path.to_owned(), file: None }
    }

    /// Gives the file another path, where it takes the place of what is there.
    ///
    /// # Errors
    ///
    /// [`SocketError::System`]
    pub fn rename(&mut self, path: &Path) -> Result<(), SocketError> {
        if self.path != path {
            std::fs::rename(&self.path, path)
                .map_err(|error| SocketError::system("put into its place", path, error))?;
            self.path = path.to_owned();
        }
        Ok(())
    }

    /// From now on the file is ours to remove.
    pub fn own(&mut self) {
        self.file = symlink_metadata(&self.path).ok().map(|now| identity(&now));
    }

    /// From now on the file is another process's, and stays.
    pub fn disown(&mut self) {
        self.file = None;
    }

    /// The socket's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Some(file) = self.file else { return };
        let removed = match symlink_metadata(&self.path) {
            Ok(now) if identity(&now) == file => std::fs::remove_file(&self.path),
            // Somebody else's.
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            log::warn!(
                "socket file {} stays behind: {error}; whoever may write to its directory can \
                 remove it, or listen on it again",
                self.path.display()
            );
        }
    }
}

/// Connects to the listener at `path`, without waiting for room in its backlog.
///
/// # Errors
///
/// [`SocketError::Path`], or the error of `connect(2)`: `NotFound` or `ConnectionRefused` while
/// nobody listens, `WouldBlock` when the backlog is full.
pub fn connect(path: &Path) -> Result<UnixStream, SocketError> {
    let address = Address::new(path)?;
    connect_to(&address).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => SocketError::Denied(path.to_owned()),
        _ => SocketError::system("connect to", path, error),
    })
}

/// The most descriptors that [`receive`] takes at once.
pub const MAX_DESCRIPTORS: usize = 32;

/// What [`receive`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing is there yet.
    Nothing,
    /// The peer closed its side, and everything it sent was taken.
    Ended,
}

/// Takes bytes out of `stream` that are there already, at most as many as fit into `buffer`, and
/// adds the descriptors attached to them to `descriptors`. Never waits.
///
/// Whoever asks for no more than the rest of a message gets no other message's descriptors, if
/// the peer sends each message by itself.
///
/// # Errors
///
/// `InvalidData` when descriptors were lost: there were more than [`MAX_DESCRIPTORS`], or this
/// process has no room for them. Otherwise the error of `recvmsg(2)`.
pub fn receive(
    stream: &UnixStream,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<Received> {
    // Aligned as a `cmsghdr`.
    const CONTROL: usize = size_of::<libc::cmsghdr>() + MAX_DESCRIPTORS * size_of::<RawFd>();
    let mut control = [0u64; CONTROL.div_ceil(8)];
    let mut iovec = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all zero is a valid msghdr: no name, no buffers, no control data.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &mut iovec;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = CONTROL;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `message` names `buffer` and `control`, which outlive the call, with their sizes.
    let len = unsafe { libc::recvmsg(stream.as_raw_fd(), &mut message, flags) };
    let Ok(len) = usize::try_from(len) else {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(Received::Nothing),
            // It died with bytes of ours unread; there is nothing more of its own.
            io::ErrorKind::ConnectionReset => Ok(Received::Ended),
            _ => Err(error),
        };
    };
    take_descriptors(&message, descriptors);
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        let text = "too many descriptors at once, or none left in this process";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(if len == 0 { Received::Ended } else { Received::Bytes(len) })
}

/// Sends all of `bytes`, and `descriptors` with the first one.
///
/// # Errors
///
/// The error of `sendmsg(2)`, among them `WouldBlock` from a peer that doesn't read within the
/// stream's time limit.
pub fn send(stream: &UnixStream, bytes: &[u8], mut descriptors: &[RawFd]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let sent = stream.send_with_fds(&[rest], descriptors);
        let sent = sent.map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        descriptors = &[];
        rest = rest.get(sent..).unwrap_or_default();
    }
    Ok(())
}

/// Sleeps until there is something to receive from `stream`, or its peer has closed it.
///
/// # Errors
///
/// `TimedOut` after `limit`; the error of `poll(2)`.
pub fn wait_for_input(stream: &UnixStream, limit: Duration) -> io::Result<()> {
    let mut poll = libc::pollfd { fd: stream.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // Rounded up: a wait of no time would make the caller spin.
    let limit = limit.saturating_add(Duration::from_micros(999)).as_millis();
    // SAFETY: one pollfd, which outlives the call.
    let ready = unsafe { libc::poll(&mut poll, 1, i32::try_from(limit).unwrap_or(i32::MAX)) };
    match check(ready) {
        Ok(0) => Err(io::ErrorKind::TimedOut.into()),
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

/// Takes ownership of the descriptors that came with `message`.
fn take_descriptors(message: &libc::msghdr, descriptors: &mut Vec<OwnedFd>) {
    // SAFETY: recvmsg filled in `message`, whose control buffer is still alive.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: the CMSG functions return null or a header inside of the control buffer.
    while let Some(control) = unsafe { header.as_ref() } {
        if (control.cmsg_level, control.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: reads nothing; the data of a control message follows its header.
            let data = unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>();
            // SAFETY: computes a size, has no side effects.
            let empty = unsafe { libc::CMSG_LEN(0) } as usize;
            for i in 0..control.cmsg_len.saturating_sub(empty) / size_of::<RawFd>() {
                // SAFETY: the kernel wrote as many descriptors as fit behind the header; they are
                // new, and nobody owns them.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(data.add(i).read_unaligned()) });
            }
        }
        // SAFETY: `header` is a header inside of the control buffer of `message`.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
}

/// Takes a descriptor that a peer sent as an eventfd to wait for, which is never read.
///
/// Whatever has a place in a file system, pipes and sockets are refused: closing them can block
/// for as long as somebody else likes.
///
/// # Errors
///
/// `InvalidInput` for a descriptor that is no anonymous one; the error of `fstat(2)`.
pub fn eventfd_to_watch(file: File) -> io::Result<OwnedFd> {
    if file.metadata()?.mode() & libc::S_IFMT != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the descriptor is no eventfd"));
    }
    Ok(file.into())
}

/// Takes a descriptor that a peer sent as an eventfd to signal, and makes it non-blocking: a
/// worker must not wait until somebody reads a full counter.
///
/// The peer shares the open file and can make it block again: see [`super::call`].
///
/// # Errors
///
/// As [`eventfd_to_watch`], and the error of `fcntl(2)`.
pub fn eventfd_to_signal(file: File) -> io::Result<EventFd> {
    let fd = eventfd_to_watch(file)?;
    // SAFETY: F_GETFL takes no argument, and `fd` is open.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: F_SETFL takes an int, and `fd` is open.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
    // SAFETY: `into_raw_fd` gives up the ownership that the EventFd takes.
    Ok(unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) })
}

/// The address of a socket file.
struct Address(libc::sockaddr_un);

impl Address {
    fn new(path: &Path) -> Result<Self, SocketError> {
        let bytes = path.as_os_str().as_bytes();
        if bytes.is_empty() || bytes.len() > MAX_PATH || bytes.contains(&0) {
            return Err(SocketError::Path(path.to_owned()));
        }
        // SAFETY: all zero is a valid sockaddr_un: an unnamed address.
        let mut address: libc::sockaddr_un = unsafe { MaybeUninit::zeroed().assume_init() };
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        for (to, from) in address.sun_path.iter_mut().zip(bytes) {
            *to = *from as libc::c_char;
        }
        Ok(Self(address))
    }

    fn parts(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        (std::ptr::from_ref(&self.0).cast(), len)
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A new stream socket: close-on-exec, non-blocking.
fn stream_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    // SAFETY: socket(2) just returned it, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bind(socket: &OwnedFd, address: &Address) -> io::Result<()> {
    let (pointer, len) = address.parts();
    // SAFETY: `pointer` is valid for `len` bytes.
    check(unsafe { libc::bind(socket.as_raw_fd(), pointer, len) }).map(drop)
}

fn connect_to(address: &Address) -> io::Result<UnixStream> {
    let socket = stream_socket()?;
    let (pointer, len) = address.parts();
    // SAFETY: `pointer` is valid for `len` bytes.
    check(unsafe { libc::connect(socket.as_raw_fd(), pointer, len) })?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Removes a socket file on which nobody listens any more.
fn remove_stale(path: &Path, address: &Address) -> Result<(), SocketError> {
    let system = |action| move |error| SocketError::system(action, path, error);
    match symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system("find")(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match connect_to(address) {
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
        Err(error) => match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => std::fs::remove_file(path).map_err(system("replace")),
            Some(libc::EAGAIN) => Err(SocketError::InUse(path.to_owned())),
            Some(libc::EPROTOTYPE) => Err(SocketError::NotASocket(path.to_owned())),
            _ => Err(system("find out who uses")(error)),
        },
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixDatagram;

    use vmm_sys_util::sock_ctrl_msg::ScmSocket;

    use super::*;

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("port.sock");
        (directory, path)
    }

    #[test]
    fn a_connection_is_accepted_and_the_file_removed() {
        let (_directory, path) = directory();
        let listener = Listener::bind(&path, None, None).unwrap();
        assert!(listener.accept().unwrap().is_none(), "nobody connected yet");
        let mut client = connect(&path).unwrap();
        let mut server = listener.accept().unwrap().expect("a connection waits");
        client.write_all(b"abc").unwrap();
        let mut bytes = [0; 3];
        server.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"abc");
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_file_is_replaced_and_a_live_one_refused() {
        let (_directory, path) = directory();
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file");
        let listener = Listener::bind(&path, None, None).unwrap();
        let again = Listener::bind(&path, None, None).unwrap_err();
        assert!(matches!(&again, SocketError::InUse(used) if *used == path), "{again}");
        connect(&path).unwrap();
        drop(listener);
        let message = again.to_string();
        assert!(message.contains("in use") && message.contains("choose another"), "{message}");
    }

    #[test]
    fn a_full_backlog_is_a_live_socket_and_no_wait() {
        let (_directory, path) = directory();
        let _listener = Listener::bind(&path, None, None).unwrap();
        let mut clients = Vec::new();
        let full = loop {
            match connect(&path) {
                Ok(client) => clients.push(client),
                Err(error) => break error,
            }
            assert!(clients.len() < 100);
        };
        let SocketError::System { source, .. } = full else { panic!("{full}") };
        assert_eq!(source.kind(), io::ErrorKind::WouldBlock);
        assert!(matches!(Listener::bind(&path, None, None), Err(SocketError::InUse(_))));
    }

    #[test]
    fn other_files_and_missing_directories_are_refused() {
        let (directory, path) = directory();
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path, None, None), Err(SocketError::NotASocket(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");

        let datagram = directory.path().join("datagram.sock");
        let _bound = UnixDatagram::bind(&datagram).unwrap();
        assert!(matches!(Listener::bind(&datagram, None, None), Err(SocketError::NotASocket(_))));

        let link = directory.path().join("link.sock");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(Listener::bind(&link, None, None), Err(SocketError::NotASocket(_))));

        let missing = directory.path().join("none/port.sock");
        assert!(matches!(Listener::bind(&missing, None, None), Err(SocketError::NoDirectory(_))));

        let long = directory.path().join("x".repeat(MAX_PATH));
        assert!(matches!(Listener::bind(&long, None, None), Err(SocketError::Path(_))));
        assert!(matches!(connect(Path::new("")), Err(SocketError::Path(_))));
    }

    #[test]
    fn a_path_of_the_greatest_length_works() {
        let (directory, _) = directory();
        let space = MAX_PATH - directory.path().as_os_str().len() - 1;
        let path = directory.path().join("x".repeat(space));
        let _listener = Listener::bind(&path, None, None).unwrap();
        connect(&path).unwrap();
    }

    #[test]
    fn mode_and_owner_are_set() {
        let (_directory, path) = directory();
        let listener = Listener::bind(&path, Some("nobody:12345"), Some(0o662)).unwrap();
        let metadata = symlink_metadata(&path).unwrap();
        assert_eq!(metadata.mode() & 0o7777, 0o662);
        assert_eq!(metadata.gid(), 12345);
        assert_eq!(metadata.uid(), account::ids("nobody").unwrap().0);
        drop(listener);
        for wrong in ["no-such-user", "root:no-such-group", "", "root:", ":root"] {
            let error = Listener::bind(&path, Some(wrong), None).unwrap_err();
            assert!(matches!(error, SocketError::Owner(_)), "{wrong}: {error}");
            assert!(!path.exists());
        }
    }

    #[test]
    fn somebody_elses_file_stays() {
        let (_directory, path) = directory();
        let listener = Listener::bind(&path, None, None).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "new").unwrap();
        drop(listener);
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn receiving_takes_what_is_there_and_never_waits() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut descriptors = Vec::new();
        let mut buffer = [0; 12];
        let mut get = |len: usize| {
            let got = receive(&near, &mut buffer[..len], &mut descriptors).unwrap();
            (got, buffer)
        };
        assert_eq!(get(12).0, Received::Nothing);
        far.write_all(b"01234").unwrap();
        let (got, bytes) = get(12);
        assert_eq!((got, &bytes[..5]), (Received::Bytes(5), &b"01234"[..]));
        assert_eq!(get(12).0, Received::Nothing);
        far.write_all(b"abc").unwrap();
        far.write_all(b"def").unwrap();
        let (got, bytes) = get(4);
        assert_eq!((got, &bytes[..4]), (Received::Bytes(4), &b"abcd"[..]));
        drop(far);
        assert_eq!(get(12).0, Received::Bytes(2));
        assert_eq!(get(12).0, Received::Ended);
    }

    #[test]
    fn a_peer_that_died_with_bytes_unread_has_ended() {
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(b"unread").unwrap();
        drop(far);
        let got = receive(&near, &mut [0; 4], &mut Vec::new()).unwrap();
        assert_eq!(got, Received::Ended);
    }

    #[test]
    fn descriptors_come_with_their_bytes_and_surplus_is_an_error() {
        let (near, far) = UnixStream::pair().unwrap();
        let event = EventFd::new(0).unwrap();
        for count in [0, 1, 2, MAX_DESCRIPTORS, MAX_DESCRIPTORS + 1, 253] {
            far.send_with_fds(&[&[7u8; 12][..]], &vec![event.as_raw_fd(); count]).unwrap();
            (&far).write_all(&[8]).unwrap();
            let mut descriptors = Vec::new();
            let got = receive(&near, &mut [0; 12], &mut descriptors);
            if count <= MAX_DESCRIPTORS {
                assert_eq!(got.unwrap(), Received::Bytes(12));
                assert_eq!(descriptors.len(), count);
            } else {
                assert_eq!(got.unwrap_err().kind(), io::ErrorKind::InvalidData);
            }
            assert_eq!(duplicates(&event), 1 + descriptors.len());
            drop(descriptors);
            assert_eq!(duplicates(&event), 1);
            (&near).read_exact(&mut [0]).unwrap();
        }
    }

    /// How many of our descriptors are this very eventfd.
    fn duplicates(event: &EventFd) -> usize {
        let id = |fd: &str| {
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
            info.lines().find(|line| line.starts_with("eventfd-id")).map(str::to_owned)
        };
        let wanted = id(&event.as_raw_fd().to_string()).unwrap();
        std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| id(entry.ok()?.file_name().to_str()?))
            .filter(|found| *found == wanted)
            .count()
    }

    #[test]
    fn only_eventfds_pass_as_such() {
        let event = EventFd::new(0).unwrap();
        let sent = File::from(
            event
                .try_clone()
                .map(|e| {
                    // SAFETY: `into_raw_fd` gives up what File takes.
                    unsafe { OwnedFd::from_raw_fd(e.into_raw_fd()) }
                })
                .unwrap(),
        );
        let taken = eventfd_to_signal(sent).unwrap();
        taken.write(3).unwrap();
        assert_eq!(event.read().unwrap(), 3);
        assert_eq!(taken.read().unwrap_err().kind(), io::ErrorKind::WouldBlock);

        let (socket, _peer) = UnixStream::pair().unwrap();
        let (_reader, writer) = io::pipe().unwrap();
        for wrong in [
            File::open("/proc/self/exe").unwrap(),
            File::open("/dev/null").unwrap(),
            File::from(OwnedFd::from(socket)),
            File::from(OwnedFd::from(writer)),
        ] {
            assert_eq!(eventfd_to_signal(wrong).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }
}
