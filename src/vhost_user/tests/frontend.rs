//! A frontend for tests, and what the workers were told.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::config::{SocketRole, VhostUserSettings};
use crate::ring::{LinkState, QueueEvents, Queues};
use crate::sys::sandbox::Sandbox;
use crate::vhost_user::{Endpoint, PortSocket};

/// Longest wait for something that has to happen.
pub const LONG: Duration = Duration::from_secs(20);
/// Address of guest memory in the frontend.
pub const USER: u64 = 0x7000_0000;
/// Address of guest memory in the guest.
pub const GUEST: u64 = 0x10_0000;
/// Size of guest memory, bytes.
pub const SIZE: u64 = 1 << 20;
/// Bytes between two rings.
const STRIDE: u64 = 0x4000;
/// NEED_REPLY and the version.
pub const NEED: u32 = 9;

pub const VERSION_1: u64 = 1 << 32;
pub const LOG_ALL: u64 = 1 << 26;
pub const PROTOCOL: u64 = 1 << 30;

/// What a worker was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    Kick(usize, bool),
    Changed(usize),
    Link(LinkState),
    Announce([u8; 6]),
}

/// Records what workers are told.
#[derive(Default)]
pub struct Recorder {
    told: Mutex<Vec<Told>>,
    news: Condvar,
}

impl Recorder {
    fn add(&self, told: Told) {
        self.told.lock().push(told);
        self.news.notify_all();
    }

    /// What was told since the last call.
    pub fn take(&self) -> Vec<Told> {
        std::mem::take(&mut self.told.lock())
    }

    /// Waits until `what` was told, and forgets everything up to it.
    pub fn await_told(&self, what: &Told) {
        let mut told = self.told.lock();
        loop {
            if let Some(at) = told.iter().position(|told| told == what) {
                told.drain(..=at);
                return;
            }
            assert!(!self.news.wait_for(&mut told, LONG).timed_out(), "{what:?} not in {told:?}");
        }
    }

    /// Waits until a frontend is gone.
    pub fn await_end(&self) {
        self.await_told(&Told::Link(LinkState::default()));
    }
}

impl QueueEvents for Recorder {
    fn kick(&self, ring: usize, kick: Option<std::os::fd::BorrowedFd<'_>>) {
        self.add(Told::Kick(ring, kick.is_some()));
    }

    fn changed(&self, ring: usize) {
        self.add(Told::Changed(ring));
    }

    fn link(&self, state: &LinkState) {
        self.add(Told::Link(*state));
    }

    fn announce(&self, mac: [u8; 6]) {
        self.add(Told::Announce(mac));
    }
}

/// A port with its socket in a directory of its own.
pub struct Port {
    pub endpoint: Option<Endpoint>,
    pub queues: Arc<Queues>,
    pub told: Arc<Recorder>,
    pub path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Port {
    pub fn new(role: SocketRole) -> Self {
        // What the endpoint says is shown with a test that fails.
        let _ = env_logger::builder().is_test(true).parse_filters("info").try_init();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("port.sock");
        let settings = VhostUserSettings {
            socket: path.clone(),
            role,
            owner: None,
            mode: None,
            queue_pairs: 2,
            mtu: Some(9000),
        };
        let queues = Arc::new(Queues::new(settings.queue_pairs));
        let told = Arc::new(Recorder::default());
        let socket = PortSocket::open(&settings).unwrap();
        let endpoint = Endpoint::spawn(
            "test",
            socket,
            settings.mtu,
            Arc::clone(&queues),
            told.clone(),
            &Sandbox::none(),
        )
        .unwrap();
        Self { endpoint: Some(endpoint), queues, told, path, _directory: directory }
    }

    pub fn server() -> Self {
        Self::new(SocketRole::Server)
    }

    pub fn connect(&self) -> Frontend {
        Frontend::connect(&self.path)
    }

    /// Which rings run.
    pub fn running(&self) -> Vec<bool> {
        self.queues.lock_all().iter().map(|ring| ring.is_running()).collect()
    }

    /// Checks that the port serves a frontend from the beginning.
    pub fn assert_serves(&self) {
        let mut frontend = self.connect();
        frontend.negotiate(VERSION_1 | PROTOCOL);
        // The ends of earlier frontends.
        self.told.take();
        frontend.share_memory();
        frontend.start(0);
        frontend.enable(0, 1);
        frontend.sync();
        assert_eq!(self.running(), [true, false, false, false]);
        drop(frontend);
        self.told.await_end();
        assert_eq!(self.running(), [false; 4]);
    }
}

/// The frontend's side of a connection.
pub struct Frontend {
    pub stream: UnixStream,
    pub memory: File,
    pub kick: EventFd,
    pub call: EventFd,
    pub err: EventFd,
}

impl Frontend {
    pub fn connect(path: &Path) -> Self {
        Self::over(UnixStream::connect(path).unwrap())
    }

    pub fn over(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        let memory = tempfile::tempfile().unwrap();
        memory.set_len(SIZE).unwrap();
        let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        Self { stream, memory, kick: event(), call: event(), err: event() }
    }

    /// Sends a message; the flags are the version and `flags`.
    pub fn send_with(&mut self, request: u32, flags: u32, payload: &[u8], fds: &[i32]) {
        let bytes = message(request, flags, payload);
        let sent = self.stream.send_with_fds(&[bytes.as_slice()], fds).unwrap();
        assert_eq!(sent, bytes.len());
    }

    pub fn send(&mut self, request: u32, payload: &[u8]) {
        self.send_with(request, 1, payload, &[]);
    }

    /// Receives the reply to `request`.
    pub fn reply(&mut self, request: u32) -> Vec<u8> {
        let mut header = [0; 12];
        self.stream.read_exact(&mut header).unwrap();
        assert_eq!(header[..4], request.to_ne_bytes());
        assert_eq!(header[4..8], 5u32.to_ne_bytes(), "version 1, REPLY");
        let size = u32::from_ne_bytes(header[8..].try_into().unwrap());
        let mut payload = vec![0; size as usize];
        self.stream.read_exact(&mut payload).unwrap();
        payload
    }

    pub fn reply_u64(&mut self, request: u32) -> u64 {
        u64::from_ne_bytes(self.reply(request).try_into().unwrap())
    }

    pub fn get(&mut self, request: u32) -> u64 {
        self.send(request, &[]);
        self.reply_u64(request)
    }

    pub fn set(&mut self, request: u32, value: u64) {
        self.send(request, &value.to_ne_bytes());
    }

    /// Sends with NEED_REPLY and returns the acknowledgement: 0 for success.
    pub fn ack(&mut self, request: u32, payload: &[u8], fds: &[i32]) -> u64 {
        self.send_with(request, NEED, payload, fds);
        self.reply_u64(request)
    }

    /// Returns when all messages before were followed.
    pub fn sync(&mut self) {
        self.get(1);
    }

    /// GET_FEATURES to SET_FEATURES, with REPLY_ACK among all protocol features.
    pub fn negotiate(&mut self, features: u64) {
        assert_eq!(self.get(1) & features, features);
        let protocol = self.get(15);
        self.set(16, protocol);
        self.send(3, &[]);
        self.set(2, features);
    }

    pub fn share_memory(&mut self) {
        let fd = self.memory.as_raw_fd();
        self.send_with(5, 1, &table(&[(GUEST, SIZE, USER, 0)]), &[fd]);
    }

    /// NUM, BASE, ADDR, KICK, CALL, ERR of a ring, as QEMU does it.
    pub fn start(&mut self, ring: u32) {
        self.send(8, &pair(ring, 256));
        self.send(10, &pair(ring, 0));
        self.send(9, &address(ring, 0));
        self.descriptor(12, ring);
        self.descriptor(13, ring);
        self.descriptor(14, ring);
    }

    /// SET_VRING_KICK (12), CALL (13) or ERR (14).
    pub fn descriptor(&mut self, request: u32, ring: u32) {
        let event = match request {
            12 => &self.kick,
            13 => &self.call,
            _ => &self.err,
        };
        let fd = event.as_raw_fd();
        self.send_with(request, 1, &u64::from(ring).to_ne_bytes(), &[fd]);
    }

    pub fn enable(&mut self, ring: u32, enabled: u32) {
        self.send(18, &pair(ring, enabled));
    }

    /// GET_VRING_BASE.
    pub fn stop(&mut self, ring: u32) -> u32 {
        self.send(11, &pair(ring, 0));
        let state = self.reply(11);
        assert_eq!(state[..4], ring.to_ne_bytes());
        u32::from_ne_bytes(state[4..].try_into().unwrap())
    }

    /// Checks that the other side closed the connection.
    pub fn assert_closed(mut self) {
        let mut rest = Vec::new();
        // ECONNRESET when it closed with some of our bytes unread.
        if let Err(error) = self.stream.read_to_end(&mut rest) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
        assert_eq!(rest, Vec::<u8>::new());
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }
}

pub fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in [request, flags, payload.len() as u32] {
        bytes.extend(part.to_ne_bytes());
    }
    bytes.extend(payload);
    bytes
}

/// A vring state: index and number.
pub fn pair(index: u32, num: u32) -> Vec<u8> {
    [index.to_ne_bytes(), num.to_ne_bytes()].concat()
}

/// Payload of SET_VRING_ADDR; `flags` 1 asks for a log of the used ring.
pub fn address(ring: u32, flags: u32) -> Vec<u8> {
    let at = u64::from(ring) * STRIDE;
    let mut bytes = pair(ring, flags);
    for address in [USER + at, USER + at + 0x2000, USER + at + 0x1000, GUEST + at + 0x2000] {
        bytes.extend(address.to_ne_bytes());
    }
    bytes
}

type RegionFields = (u64, u64, u64, u64);

fn region(fields: RegionFields) -> Vec<u8> {
    let (guest, size, user, offset) = fields;
    [guest, size, user, offset].iter().flat_map(|field| field.to_ne_bytes()).collect()
}

/// Payload of SET_MEM_TABLE.
pub fn table(regions: &[RegionFields]) -> Vec<u8> {
    let mut bytes = pair(regions.len() as u32, 0);
    regions.iter().for_each(|fields| bytes.extend(region(*fields)));
    bytes
}

/// Payload of ADD_MEM_REG and REM_MEM_REG.
pub fn single(fields: RegionFields) -> Vec<u8> {
    [vec![0; 8], region(fields)].concat()
}

/// How many descriptors of this process are this very eventfd.
pub fn duplicates(event: &EventFd) -> usize {
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
