//! A frontend that sends anything, and a guest and workers that use the rings meanwhile.
//!
//! An input is a list of steps: messages that are nearly right, bytes that are none, messages in
//! pieces, descriptors of the wrong kind and number; writes to guest memory, memory files that
//! become shorter; bursts on the rings that run; and the session passes to another process, or is told
//! to one that fails. At the end, whatever came: each session could be told, the rings that ran ran
//! on, no ring runs, nothing is watched, no descriptor is left, and each answer was one to a message
//! that asked for it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ringswitch::frame::{BURST, Frame};
use ringswitch::mem::{SegmentPool, Tail};
use ringswitch::ring::{AnyReceiver, LinkState, QueueEvents, Queues, feature};
use ringswitch::sys::fault::Alarm;
use ringswitch::sys::poller::{Poller, Waker};
use ringswitch::vhost_user::features::{OFFERED, OFFERED_PROTOCOL};
use ringswitch::vhost_user::{Order, Place, serve_stream};
use ringswitch::wire::vnet::Encoded;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::input::Input;

/// Queue pairs of the port.
const PAIRS: u16 = 2;
/// Rings of the port.
const RINGS: u32 = 2 * PAIRS as u32;
/// Where the first memory file lies in guest and frontend, unless the input says otherwise.
const GUEST: u64 = 0x10_0000;
const USER: u64 = 0x7000_0000;
/// Bytes of the memory files.
const FILES: [u64; 2] = [0x2_0000, 0x3000];
/// The most steps of one input.
const STEPS: usize = 100;
/// All requests that are known, and two that aren't.
const REQUESTS: [u32; 28] = [
    1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 34, 36, 37, 38, 39, 40, 5,
    21, 31,
];

/// What the switch's workers were told to watch: one bit for each ring.
#[derive(Default)]
struct Watched(AtomicU64);

impl QueueEvents for Watched {
    fn kick(&self, ring: usize, kick: Option<BorrowedFd<'_>>) {
        assert!(ring < RINGS as usize, "a kick of ring {ring}");
        let bit = 1 << ring;
        match kick {
            Some(_) => self.0.fetch_or(bit, Ordering::Relaxed),
            None => self.0.fetch_and(!bit, Ordering::Relaxed),
        };
    }

    fn changed(&self, ring: usize) {
        assert!(ring < RINGS as usize, "news of ring {ring}");
    }

    fn link(&self, state: &LinkState) {
        assert!(state.receive_pairs < 1 << PAIRS, "{state:?}");
    }

    fn announce(&self, _: [u8; 6]) {}
}

/// What is made once and serves all inputs.
struct Fixture {
    /// What a frontend may attach: two memory files, two eventfds, a pipe, a socket, a file.
    files: [File; 2],
    events: [EventFd; 2],
    pipe: std::io::PipeWriter,
    socket: UnixStream,
    null: File,
    poller: Poller,
    pool: SegmentPool,
    frames: Vec<Frame>,
    payload: Vec<u8>,
    _others: (std::io::PipeReader, UnixStream),
}

impl Fixture {
    fn new() -> Self {
        let file = || tempfile::tempfile_in("/dev/shm").expect("shared memory");
        let event = || EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let (reader, pipe) = std::io::pipe().expect("a pipe");
        let (socket, peer) = UnixStream::pair().expect("sockets");
        Self {
            files: [file(), file()],
            events: [event(), event()],
            pipe,
            socket,
            null: File::open("/dev/null").expect("/dev/null"),
            poller: Poller::new().expect("epoll"),
            pool: SegmentPool::default(),
            frames: vec![Frame::default(); BURST],
            payload: (0..66_000u32).map(|i| (i * 7 + i / 251) as u8).collect(),
            _others: (reader, peer),
        }
    }

    fn fd(&self, kind: u8) -> RawFd {
        match kind % 8 {
            0 => self.files[0].as_raw_fd(),
            1 => self.files[1].as_raw_fd(),
            2 | 3 => self.events[0].as_raw_fd(),
            4 => self.events[1].as_raw_fd(),
            5 => self.pipe.as_raw_fd(),
            6 => self.socket.as_raw_fd(),
            _ => self.null.as_raw_fd(),
        }
    }
}

thread_local! {
    static FIXTURE: RefCell<Fixture> = RefCell::new(Fixture::new());
}

/// Runs one input.
pub fn run(data: &[u8]) {
    FIXTURE.with_borrow_mut(|fixture| run_with(fixture, data));
}

fn next_descriptor(fixture: &Fixture) -> RawFd {
    fixture.null.try_clone().expect("a descriptor").as_raw_fd()
}

fn run_with(fixture: &mut Fixture, data: &[u8]) {
    for (file, len) in fixture.files.iter().zip(FILES) {
        file.set_len(0).expect("an empty file");
        file.set_len(len).expect("a file of zeros");
    }
    let first = next_descriptor(fixture);
    let waker = || Waker::new(&fixture.poller, 0).expect("an eventfd");
    let mut places = vec![Own::new(waker())];
    let wakers = [(); HANDOVERS].map(|()| waker());
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    ours.set_nonblocking(true).expect("a socket");
    let mut frontend = Frontend {
        fixture,
        queues: Arc::clone(&places[0].queues),
        stream: Some(ours),
        rest: Vec::new(),
        asked: VecDeque::new(),
        wild: false,
        frames: 0,
    };
    let mut input = Input::new(data);
    frontend.begin(&mut input);
    let (mut steps, mut wakers) = (0, wakers.into_iter());
    let place = places[0].place();
    let handovers = serve_stream(theirs, place, Some(9000), || {
        frontend.read_answers();
        steps += 1;
        if steps >= STEPS || input.is_empty() && frontend.stream.is_some() {
            return Ok(Order::Stop);
        }
        if frontend.stream.is_none() {
            // The end is found on the socket.
            return Ok(Order::GoOn);
        }
        Ok(match frontend.step(&mut input) {
            Next::GoOn => Order::GoOn,
            Next::CallOff => Order::CallOff,
            Next::HandOver => wakers.next().map_or(Order::GoOn, |waker| {
                let own = Own::new(waker);
                frontend.queues = Arc::clone(&own.queues);
                let place = own.place();
                places.push(own);
                Order::HandOver(place)
            }),
        })
    })
    .expect("descriptors for a session, and sessions that can be told");
    for (before, after) in handovers {
        assert_eq!(before & !after, 0, "{before:b} ran before a hand-over, {after:b} after it");
    }
    frontend.read_answers();
    drop(frontend);
    drop(wakers);
    places.into_iter().for_each(Own::check);
    assert_eq!(next_descriptor(fixture), first, "descriptors are left");
}

/// The most hand-overs of one input.
const HANDOVERS: usize = 3;

/// A process that a session is in, or was.
struct Own {
    queues: Arc<Queues>,
    watched: Arc<Watched>,
    alarm: Arc<Alarm>,
}

impl Own {
    fn new(waker: Waker) -> Self {
        let (queues, watched) = (Arc::new(Queues::new(PAIRS)), Arc::new(Watched::default()));
        Self { queues, watched, alarm: Arc::new(Alarm::new(waker)) }
    }

    fn place(&self) -> Place {
        Place {
            queues: Arc::clone(&self.queues),
            events: Arc::clone(&self.watched) as _,
            alarm: Arc::clone(&self.alarm),
        }
    }

    /// The session left nothing behind.
    fn check(self) {
        for ring in self.queues.lock_all().iter() {
            assert!(!ring.is_running(), "a ring runs without a frontend");
            assert_eq!(ring.size(), 0, "a ring knows its size without a frontend");
        }
        assert_eq!(self.watched.0.load(Ordering::Relaxed), 0, "rings that are still watched");
        assert_eq!(Arc::strong_count(&self.queues), 1, "somebody still has the rings");
    }
}

/// What the frontend's process or the switch's does after a step.
enum Next {
    GoOn,
    HandOver,
    CallOff,
}

/// The frontend, its guest and the switch's workers.
struct Frontend<'f> {
    fixture: &'f mut Fixture,
    queues: Arc<Queues>,
    /// None when it is closed.
    stream: Option<UnixStream>,
    /// Answers that are there in part.
    rest: Vec<u8>,
    /// Requests that were sent and not answered.
    asked: VecDeque<u32>,
    /// Bytes were sent that were no message: who knows what they ask for.
    wild: bool,
    frames: u8,
}

fn numbers(parts: &[u64]) -> Vec<u8> {
    parts.iter().flat_map(|part| part.to_ne_bytes()).collect()
}

fn pair(index: u32, number: u32) -> Vec<u8> {
    numbers(&[u64::from(index) | u64::from(number) << 32])
}

impl Frontend<'_> {
    /// A session that is set up already, unless the input wants to do it all by itself.
    fn begin(&mut self, input: &mut Input<'_>) {
        let (what, more) = (input.u8(), input.u8());
        if what & 1 == 0 {
            return;
        }
        let optional = [feature::EVENT_IDX, feature::MRG_RXBUF, feature::RING_PACKED];
        let chosen = optional.iter().zip([2, 4, 8]).filter(|(_, bit)| what & bit != 0);
        let protocol = 1 << 30 | feature::VERSION_1 | feature::INDIRECT_DESC;
        let features = chosen.fold(protocol, |all, (feature, _)| all | feature);
        let file = self.fixture.files[0].as_raw_fd();
        let event = self.fixture.events[0].as_raw_fd();
        self.send(1, 1, &[], &[]);
        self.send(16, 1, &numbers(&[OFFERED_PROTOCOL.bits()]), &[]);
        self.send(2, 9, &numbers(&[features]), &[]);
        if what & 16 != 0 {
            self.send(37, 9, &numbers(&[0, GUEST, FILES[0], USER, 0]), &[file]);
        } else {
            self.send(5, 9, &[pair(1, 0), numbers(&[GUEST, FILES[0], USER, 0])].concat(), &[file]);
        }
        for ring in 0..u32::from(more % 5) {
            self.send(8, 1, &pair(ring, 16), &[]);
            self.send(9, 1, &address(ring, 0), &[]);
            self.send(10, 1, &pair(ring, if what & 8 == 0 { 0 } else { 0x8000_8000 }), &[]);
            self.send(12, 1, &numbers(&[ring.into()]), &[event]);
            self.send(13, 1, &numbers(&[ring.into()]), &[event]);
            self.send(18, 1, &pair(ring, 1), &[]);
        }
    }

    fn step(&mut self, input: &mut Input<'_>) -> Next {
        let code = input.u8();
        match code % 12 {
            0..=4 => self.message(input, code >> 4),
            5 => self.write_bytes(input),
            6 => {
                let (at, len) = (input.u16(), input.u8());
                let bytes = input.bytes(usize::from(len % 64));
                let file = &self.fixture.files[usize::from(code >> 7)];
                // A hole beyond the end makes it longer again.
                file.write_all_at(bytes, u64::from(at)).expect("a file of memory");
            }
            7 => {
                let file = &self.fixture.files[usize::from(code >> 7)];
                file.set_len(u64::from(input.u8()) << 9).expect("a file of memory");
            }
            8 => self.offer(input, u32::from(code >> 4) % RINGS),
            9 | 10 => self.work(u32::from(code >> 4) % RINGS, input),
            _ => match code >> 4 {
                15 => self.stream = None,
                10..=14 => return Next::HandOver,
                8 | 9 => return Next::CallOff,
                _ => {}
            },
        }
        Next::GoOn
    }

    /// A message that is right, but for what the input wants to be wrong.
    fn message(&mut self, input: &mut Input<'_>, how: u8) {
        let request = REQUESTS[usize::from(input.u8()) % REQUESTS.len()];
        let flags = if how & 1 == 0 { 1 } else { 9 };
        let (mut payload, mut kinds) = self.payload(request, input);
        if how & 2 != 0 {
            let (kind, count) = (input.u8(), input.u8() % 4);
            kinds.resize(usize::from(count), kind);
        }
        if how & 4 != 0 && !payload.is_empty() {
            let at = usize::from(input.u8()) % payload.len();
            payload[at] = input.u8();
        }
        let fds: Vec<_> = kinds.iter().map(|kind| self.fixture.fd(*kind)).collect();
        self.send(request, flags, &payload, &fds);
    }

    /// The payload of a request, and the kinds of its descriptors.
    fn payload(&self, request: u32, input: &mut Input<'_>) -> (Vec<u8>, Vec<u8>) {
        let ring = |input: &mut Input<'_>| u32::from(input.u8() % 5);
        let region = |input: &mut Input<'_>| {
            let [guest, size, user, offset] = std::array::from_fn(|_| u64::from(input.u8()) << 9);
            let wide = u64::from(input.u8() & 3) << 62;
            ([GUEST + guest, size + 0x80, (USER + user) ^ wide, offset], input.u8() & 1)
        };
        match request {
            2 => (numbers(&[(input.u64() & OFFERED) | 1 << 30]), vec![]),
            16 => (numbers(&[input.u64() & OFFERED_PROTOCOL.bits()]), vec![]),
            5 => {
                let count = input.u8() % 6;
                let regions: Vec<_> = (0..count).map(|_| region(input)).collect();
                let bytes = regions.iter().flat_map(|(region, _)| numbers(region));
                let payload = pair(count.into(), 0).into_iter().chain(bytes).collect();
                (payload, regions.iter().map(|(_, file)| *file).collect())
            }
            37 | 38 => {
                let ([guest, size, user, offset], file) = region(input);
                (
                    numbers(&[0, guest, size, user, offset]),
                    if request == 37 { vec![file] } else { vec![] },
                )
            }
            6 => (numbers(&[input.u16().into(), u64::from(input.u8()) << 6]), vec![1]),
            8 => (pair(ring(input), 1 << (input.u8() % 18)), vec![]),
            9 => (address(ring(input), input.u8()), vec![]),
            10 => (pair(ring(input), input.u32()), vec![]),
            11 => (pair(ring(input), 0), vec![]),
            12..=14 => {
                let index = u64::from(input.u8() % 5) | u64::from(input.u8() & 1) << 8;
                (numbers(&[index]), if index >> 8 == 0 { vec![2] } else { vec![] })
            }
            18 => (pair(ring(input), u32::from(input.u8() % 3)), vec![]),
            19 => (numbers(&[input.u64()]), vec![]),
            20 => (numbers(&[input.u16().into()]), vec![]),
            39 => (numbers(&[u64::from(input.u8() & 0x8f)]), vec![]),
            _ => (vec![], vec![]),
        }
    }

    fn send(&mut self, request: u32, flags: u32, payload: &[u8], fds: &[RawFd]) {
        let mut bytes = Vec::with_capacity(12 + payload.len());
        for part in [request, flags, payload.len() as u32] {
            bytes.extend(part.to_ne_bytes());
        }
        bytes.extend(payload);
        self.asked.push_back(request);
        self.put(&bytes, fds);
    }

    fn put(&mut self, bytes: &[u8], fds: &[RawFd]) {
        if let Some(stream) = &self.stream {
            // It may be closed or full.
            let _ = stream.send_with_fds(&[bytes], fds);
        }
    }

    /// Bytes that are no message, or the beginning or the rest of one.
    fn write_bytes(&mut self, input: &mut Input<'_>) {
        self.wild = true;
        let (len, fds) = (input.u8() % 48, input.u8());
        let bytes = input.bytes(len.into());
        let attached = vec![self.fixture.fd(fds); usize::from(fds >> 6)];
        self.put(bytes, if bytes.is_empty() { &[] } else { &attached });
    }

    /// Looks at what was answered.
    fn read_answers(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        let mut bytes = [0; 4096];
        while let Ok(len @ 1..) = stream.read(&mut bytes) {
            self.rest.extend(&bytes[..len]);
        }
        while let Some(header) = self.rest.get(..12) {
            let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("four"));
            let (request, flags, size) = (word(0), word(4), word(8) as usize);
            assert_eq!(flags, 5, "the flags of an answer to {request}");
            assert!(size <= 64, "an answer to {request} of {size} bytes");
            if self.rest.len() < 12 + size {
                break;
            }
            self.rest.drain(..12 + size);
            let asked = self.asked.iter().position(|asked| *asked == request);
            match asked {
                Some(at) => drop(self.asked.drain(..=at)),
                None => assert!(self.wild, "an answer to {request}, which nobody sent"),
            }
        }
    }

    /// The guest makes a buffer available in a ring that lies where [`address`] has it.
    fn offer(&mut self, input: &mut Input<'_>, ring: u32) {
        let at = u64::from(ring) * STRIDE;
        let (index, len, flags) = (input.u8(), input.u16(), input.u8());
        let (head, addr) = (u64::from(index % 16), GUEST + u64::from(input.u16()));
        let mut desc = [0; 16];
        desc[..8].copy_from_slice(&addr.to_le_bytes());
        desc[8..10].copy_from_slice(&len.to_le_bytes());
        // Split: flags and next; packed: id and flags.
        let write = if ring.is_multiple_of(2) { 2 } else { 0 };
        desc[12] = (flags & 7) ^ write;
        desc[14] = (flags & 7) ^ write | if flags & 8 != 0 { 0x80 } else { 0 };
        let file = &self.fixture.files[0];
        let put = |offset, bytes: &[u8]| file.write_all_at(bytes, at + offset).expect("memory");
        put(16 * head, &desc);
        put(0x2004 + 2 * u64::from(flags >> 4), &[index % 16, 0]);
        put(0x2002, &[index >> 4, 0]);
    }

    /// What a worker does with a ring: takes a burst, or puts one frame.
    fn work(&mut self, ring: u32, input: &mut Input<'_>) {
        let Some(lock) = self.queues.ring(ring as usize) else { return };
        let mut ring_lock = lock.lock();
        let Fixture { pool, frames, payload, .. } = &mut *self.fixture;
        if ring % 2 == 1 {
            let taken = ring_lock.receive(pool, frames).map(|burst| {
                for frame in burst.frames.iter() {
                    let mut len = frame.head().len();
                    burst.segments.tail(frame.tail.clone()).read(|bytes| len += bytes.len());
                    assert_eq!(len, frame.len as usize, "the length of a frame");
                }
                burst.taken
            });
            ring_lock.complete_burst(taken.unwrap_or(0));
        } else if let Some(receiver) = ring_lock.transmit() {
            self.frames = self.frames.wrapping_add(1);
            let bytes = &payload[usize::from(self.frames)..][..14 + usize::from(input.u16() >> 3)];
            let len = bytes.len() as u32;
            // It may well not fit.
            let _ = match receiver {
                AnyReceiver::Split(mut ring) => {
                    ring.deliver(Encoded::PLAIN, len, bytes, Tail::EMPTY)
                }
                AnyReceiver::Packed(mut ring) => {
                    ring.deliver(Encoded::PLAIN, len, bytes, Tail::EMPTY)
                }
            };
        }
        ring_lock.publish();
        ring_lock.call_if_wanted();
        if input.u8() & 1 != 0 {
            ring_lock.look_ahead();
            ring_lock.want_kicks(true);
        }
    }
}

/// Bytes between two rings.
const STRIDE: u64 = 0x4000;

/// The payload of SET_VRING_ADDR for a ring where it should be, but for what `wrong` says.
fn address(ring: u32, wrong: u8) -> Vec<u8> {
    let at = USER + u64::from(ring) * STRIDE;
    let off = |bit: u8, by: u64| if wrong & bit != 0 { by } else { 0 };
    let desc = at + off(4, 8) + off(8, 0x1_0000);
    let used = at + 0x1000 + off(16, 0x40) + off(32, 1 << 40);
    let avail = at + 0x2000 + off(64, 0xff8);
    let log = GUEST + at - USER + 0x1000 + off(128, 1 << 62);
    [pair(ring, u32::from(wrong & 3)), numbers(&[desc, used, avail, log])].concat()
}
