//! A driver that does anything to its ring, against the device side of `ringswitch::ring`.
//!
//! An input is a configuration and a list of steps. Beside the ring runs a [`Model`] on an image of
//! the same memory; after each step of the device, the memory is compared with the image.
//!
//! | role | the driver | what is compared |
//! |---|---|---|
//! | transmit | writes anything anywhere, at any time but within a burst | everything: frames, counts, each byte of memory, calls |
//! | receive | posts good and bad chains, and leaves them alone | everything |
//! | hostile receive | as in transmit | nothing is written but used entries and buffers that were posted |

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ringswitch::frame::{BURST, Frame, HEAD_LEN};
use ringswitch::mem::{DirtyLog, SegmentPool};
use ringswitch::ring::{AnyReceiver, Format, Receiver, Ring, RingAddress, RxFault, feature};
use ringswitch::wire::vnet::Encoded;
use vmm_sys_util::eventfd::EventFd;

use crate::input::Input;
use crate::memory::{Image, Memory, REGIONS, user};
use crate::model::{AVAIL, Chain, INDIRECT, Layout, Model, NEXT, USED, WRITE};

/// Where a ring lies unless the input says otherwise.
const DESC: u64 = REGIONS[0].0;
const DRIVER: u64 = DESC + 0x1000;
const DEVICE: u64 = DESC + 0x1400;
/// Indirect tables of the honest driver: 64 of four descriptors.
const TABLES: u64 = DESC + 0x1d00;
/// Buffers of the honest driver begin here.
const BUFFERS: u64 = DESC + 0x2d00;
/// The most steps of one input.
const STEPS: usize = 200;
/// Where the dirty log lies in its file.
const LOG: u64 = 1000;

/// What is made once and serves all inputs.
struct Fixture {
    memory: Memory,
    log: Arc<DirtyLog>,
    short_log: Arc<DirtyLog>,
    log_file: File,
    call: EventFd,
    pool: SegmentPool,
    frames: Vec<Frame>,
    payload: Vec<u8>,
}

/// Bytes of the dirty log, and of the one that is too short for all of the memory.
const LOG_LEN: u64 = 65;
const SHORT_LOG: u64 = 33;

impl Fixture {
    fn new() -> Self {
        let log_file = tempfile::tempfile_in("/dev/shm").expect("shared memory");
        log_file.set_len(4096).expect("room for the log");
        let log = |len| {
            let file = log_file.try_clone().expect("a descriptor");
            Arc::new(DirtyLog::map(file, len, LOG).expect("a log"))
        };
        Self {
            memory: Memory::new(),
            log: log(LOG_LEN),
            short_log: log(SHORT_LOG),
            call: EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).expect("an eventfd"),
            pool: SegmentPool::default(),
            frames: vec![Frame::default(); BURST],
            payload: (0..70_000u32).map(|i| (i * 7 + i / 251) as u8).collect(),
            log_file,
        }
    }
}

thread_local! {
    static FIXTURE: RefCell<Fixture> = RefCell::new(Fixture::new());
}

/// A split ring.
pub fn run_split(data: &[u8]) {
    FIXTURE.with_borrow_mut(|fixture| run(fixture, data, false));
}

/// A packed ring.
pub fn run_packed(data: &[u8]) {
    FIXTURE.with_borrow_mut(|fixture| run(fixture, data, true));
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Transmit,
    Receive,
    HostileReceive,
}

/// Everything about one input.
struct Run<'f> {
    fixture: &'f mut Fixture,
    role: Role,
    features: u64,
    ring: Ring,
    model: Model,
    /// What the memory holds by the guest and by the model.
    image: Image,
    /// Where the driver writes next: index of the available ring, or slot and wrap counter.
    avail: u16,
    wrap: bool,
    /// The driver's next free descriptor.
    free: u16,
    /// Receive: buffers that were posted and aren't used.
    posted: VecDeque<Chain>,
    /// For each of them: descriptors of the ring, and descriptors that are read to look at it.
    costs: VecDeque<(usize, usize)>,
    tables: u64,
    /// Hostile receive: what the device may have been told to write.
    allowed: Vec<bool>,
    /// Hostile receive: that can't be told any more.
    entangled: bool,
    frames: u8,
}

fn run(fixture: &mut Fixture, data: &[u8], packed: bool) {
    let mut input = Input::new(data);
    let Some(mut run) = Run::new(fixture, &mut input, packed) else { return };
    for _ in 0..STEPS {
        if input.is_empty() || !run.step(&mut input) {
            break;
        }
    }
    run.finish();
}

impl<'f> Run<'f> {
    /// Sets up the ring. None when it lies where no ring can be.
    fn new(fixture: &'f mut Fixture, input: &mut Input<'_>, packed: bool) -> Option<Self> {
        let (flags, size, start) = (input.u8(), input.u8(), input.u16());
        let role = match flags & 3 {
            0 | 1 => Role::Transmit,
            2 => Role::Receive,
            _ => Role::HostileReceive,
        };
        let size = if packed { u16::from(size) + 1 } else { 2 << (size % 8) };
        let mut areas = [DESC, DRIVER, DEVICE];
        if flags & 0x80 != 0 && role != Role::Receive {
            let any = |input: &mut Input<'_>| DESC + u64::from(input.below(0x5100) & !3);
            areas = [any(input), any(input), any(input)];
        }
        let mut features = 0;
        for (bit, feature) in [
            (4, feature::EVENT_IDX),
            (8, feature::INDIRECT_DESC),
            (16, feature::VERSION_1),
            (32, feature::MRG_RXBUF),
            (64, feature::LOG_ALL),
        ] {
            features |= if flags & bit == 0 { 0 } else { feature };
        }
        features |= if packed { feature::RING_PACKED } else { 0 };
        let (next, wrap) = if packed { (start % size, start & 0x8000 != 0) } else { (start, true) };
        let layout = Layout {
            packed,
            size,
            desc: areas[0],
            avail: areas[1],
            used: areas[2],
            event_idx: false,
            indirect: false,
            header: 0,
            mergeable: false,
        };
        let mut image = Image::new();
        if !packed {
            image.write(layout.avail + 2, &next.to_le_bytes());
            image.write(layout.used + 2, &next.to_le_bytes());
        }
        fixture.log_file.write_all_at(&[0; 4096], 0).expect("the log");
        let mut run = Self {
            fixture,
            role,
            features,
            ring: Ring::default(),
            model: Model::new(layout, next, wrap),
            image,
            avail: next,
            wrap,
            free: 0,
            posted: VecDeque::new(),
            costs: VecDeque::new(),
            tables: 0,
            allowed: vec![false; (REGIONS[2].0 + REGIONS[2].1 - REGIONS[0].0) as usize],
            entangled: false,
            frames: 0,
        };
        let runs = run.set_up(next, wrap);
        if packed {
            (run.avail, run.wrap) = (run.model.next, run.model.wrap);
        }
        runs.then_some(run)
    }

    /// Gives the ring what it needs to run. Returns whether it can, which the model knows as well.
    fn set_up(&mut self, next: u16, wrap: bool) -> bool {
        let has = |bit| self.features & bit != 0;
        let layout = &mut self.model.layout;
        layout.event_idx = has(feature::EVENT_IDX);
        layout.indirect = has(feature::INDIRECT_DESC);
        layout.mergeable = has(feature::MRG_RXBUF);
        layout.header = if has(feature::VERSION_1 | feature::MRG_RXBUF) { 12 } else { 10 };
        let layout = *layout;
        self.model = Model::new(layout, next, wrap);
        let areas = [layout.desc, layout.avail, layout.used];
        let [desc, avail, used] = areas.map(|area| user(area).unwrap_or(0x10));
        let ring = &mut self.ring;
        ring.set_features(self.features);
        ring.set_num(layout.size.into()).expect("a size that rings have");
        ring.set_base(self.model.base()).expect("a base of this ring");
        let address = RingAddress { desc, avail, used, log_guest_addr: None };
        ring.set_address(address).expect("any address is taken");
        ring.set_memory(Some(Arc::clone(&self.fixture.memory.map)));
        let long = layout.size.is_multiple_of(2) || self.model.next.is_multiple_of(2);
        let log = if long { &self.fixture.log } else { &self.fixture.short_log };
        ring.set_log(Some(Arc::clone(log)));
        ring.set_call(self.fixture.call.try_clone().ok().map(Into::into));
        ring.set_started();
        ring.set_enabled(true);
        self.fixture.memory.store(&self.image);
        let fits = |(area, len): (u64, u64)| self.image.read(area, len as usize).is_some();
        let aligns = if layout.packed { [16, 4, 4] } else { [16, 2, 4] };
        // Regions lie in the file, and so in the mapping, at multiples of 16.
        let aligned = areas.iter().zip(aligns).all(|(area, align)| area % align == 0);
        let can = areas.into_iter().zip(layout.lengths()).all(fits) && aligned;
        assert_eq!(ring.start_if_ready().ok(), can.then_some(true), "{layout:x?}");
        if can && layout.packed {
            // It may have found a better position (`ring::packed::resume`), and has signed.
            self.image = self.fixture.memory.load();
            let base = self.ring.position() as u16;
            self.model = Model::new(layout, base & 0x7fff, base >> 15 != 0);
            // Buffers that it gave back may want a call, with the next ones.
            self.model.undecided = self.ring.undecided().into();
        }
        can
    }

    fn step(&mut self, input: &mut Input<'_>) -> bool {
        let code = input.u8();
        let honest = self.role == Role::Receive;
        match code % 16 {
            0..=2 if honest => return self.post(input),
            0 if !honest => {
                let slot = u64::from(input.below(self.model.layout.size));
                let bytes = self.desc_bytes(input, 0, true);
                self.image.write(self.model.layout.desc + 16 * slot, &bytes);
            }
            1 | 2 if !honest => self.offer(input, code >> 4),
            3 if !honest => self.write_anything(input),
            4 if !honest => self.write_table(input),
            5 if !honest => {
                // The same again, many times.
                for _ in 0..input.u8() {
                    self.offer_again();
                }
            }
            6 if !honest && !self.model.layout.packed => {
                self.avail = input.u16();
                self.image.write(self.model.layout.avail + 2, &self.avail.to_le_bytes());
            }
            7 => {
                let (event, flags) = (input.u16(), input.u8() & 0x83);
                let near = self.model.near(event as i8);
                self.set_event(if code & 16 == 0 { near } else { event }, flags);
            }
            8 => self.want_kicks(code & 16 != 0),
            9 => return self.restart(input, code >> 4),
            10 if self.role != Role::Transmit => {
                self.fixture.memory.store(&self.image);
                self.allow();
                self.ring.look_ahead();
                self.compare("after looking ahead", &[]);
            }
            _ if self.role == Role::Transmit => return self.receive(code),
            _ => return self.deliver(input, code),
        }
        true
    }

    fn finish(&mut self) {
        if self.role != Role::HostileReceive {
            self.fixture.memory.store(&self.image);
            let runs = self.ring.is_running();
            assert_eq!(self.ring.stop(), self.model.base(), "the position");
            if runs {
                self.model.stop(&mut self.image);
            }
            self.compare("at the end", &[]);
        }
        let mut bytes = [0; 4096];
        self.fixture.log_file.read_exact_at(&mut bytes, 0).expect("the log");
        let end = (LOG + LOG_LEN) as usize;
        let outside = bytes[..LOG as usize].iter().chain(&bytes[end..]);
        assert!(outside.into_iter().all(|byte| *byte == 0), "marks outside of the log");
    }

    // What the driver does.

    fn desc_bytes(&self, input: &mut Input<'_>, next: u16, last: bool) -> [u8; 16] {
        let kind = input.u8();
        let addr = match kind & 3 {
            3 => input.u64(),
            region => REGIONS[usize::from(region)].0 + u64::from(input.below(0x3010)),
        };
        let len = match kind >> 2 & 3 {
            0 => u32::from(input.u8()),
            1 => u32::from(input.u16()),
            2 => u32::from(input.u8()) * 16,
            _ => input.u32(),
        };
        let more = if last == (kind & 16 != 0) { NEXT } else { 0 };
        let mut flags = more | if kind & 32 != 0 { INDIRECT } else { 0 };
        if (self.role == Role::Transmit) == (kind & 64 != 0) {
            flags |= WRITE;
        }
        let mut link = next;
        if kind & 128 != 0 {
            (flags, link) = (flags ^ input.u16(), input.u16());
        }
        self.encode(addr, len, flags, link)
    }

    fn encode(&self, addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
        let words = if self.model.layout.packed { [next, flags] } else { [flags, next] };
        let mut out = [0; 16];
        out[..8].copy_from_slice(&addr.to_le_bytes());
        out[8..12].copy_from_slice(&len.to_le_bytes());
        out[12..14].copy_from_slice(&words[0].to_le_bytes());
        out[14..].copy_from_slice(&words[1].to_le_bytes());
        out
    }

    /// Writes a descriptor to the driver's next place, and moves on. Returns its index.
    fn put(&mut self, mut bytes: [u8; 16]) -> u16 {
        let Layout { packed, size, desc, .. } = self.model.layout;
        let index = if packed { self.avail } else { self.free };
        if packed {
            let flags = u16::from_le_bytes([bytes[14], bytes[15]]);
            let flags = flags ^ if self.wrap { AVAIL } else { USED };
            bytes[14..].copy_from_slice(&flags.to_le_bytes());
            self.avail += 1;
            if self.avail == size {
                (self.avail, self.wrap) = (0, !self.wrap);
            }
        } else {
            self.free = (self.free + 1) % size;
        }
        self.image.write(desc + 16 * u64::from(index), &bytes);
        index
    }

    /// Makes the chain that begins with descriptor `head` available in a split ring.
    fn show(&mut self, head: u16) {
        let Layout { packed, size, avail, .. } = self.model.layout;
        if !packed {
            let entry = avail + 4 + 2 * u64::from(self.avail % size);
            self.image.write(entry, &head.to_le_bytes());
            self.avail = self.avail.wrapping_add(1);
            self.image.write(avail + 2, &self.avail.to_le_bytes());
        }
    }

    fn offer(&mut self, input: &mut Input<'_>, descs: u8) {
        let size = self.model.layout.size;
        let id = if self.model.layout.packed { self.avail ^ 0x100 } else { 0 };
        let mut head = None;
        for left in (0..=descs).rev() {
            let next = if self.model.layout.packed { id } else { (self.free + 1) % size };
            let bytes = self.desc_bytes(input, next, left == 0);
            let index = self.put(bytes);
            head.get_or_insert(index);
        }
        self.show(head.unwrap_or(0));
    }

    /// Makes one more chain available: the last descriptor that was written.
    fn offer_again(&mut self) {
        let Layout { packed, size, desc, .. } = self.model.layout;
        if packed {
            let last = desc + 16 * u64::from((self.avail + size - 1) % size);
            let bytes = self.image.read(last, 16).and_then(|bytes| bytes.try_into().ok());
            let mut bytes: [u8; 16] = bytes.expect("a slot");
            // As if it were put for the first time.
            (bytes[14], bytes[15]) = (bytes[14] & !0x80, bytes[15] & !0x80);
            self.put(bytes);
        } else {
            self.show((self.free + size - 1) % size);
        }
    }

    fn write_anything(&mut self, input: &mut Input<'_>) {
        let at = REGIONS[0].0 + u64::from(input.below(0x5080));
        let len = input.u8() % 40;
        let bytes = input.bytes(len.into());
        self.image.write(at, bytes);
    }

    /// An indirect table; sometimes a long one, of the same descriptor again and again.
    fn write_table(&mut self, input: &mut Input<'_>) {
        let at = REGIONS[0].0 + u64::from(input.below(0x5080) & !7);
        let (count, repeat) = (u16::from(input.u8() % 16), input.u8());
        let mut bytes = [0; 16];
        for index in 0..count {
            bytes = self.desc_bytes(input, index + 1, index + 1 == count && repeat == 0);
            self.image.write(at + 16 * u64::from(index), &bytes);
        }
        for index in count..count + 4 * u16::from(repeat) {
            let next = (index + 1).to_le_bytes();
            let place = if self.model.layout.packed { 12 } else { 14 };
            bytes[place..place + 2].copy_from_slice(&next);
            self.image.write(at + 16 * u64::from(index), &bytes);
        }
    }

    fn set_event(&mut self, event: u16, flags: u8) {
        let Layout { packed, size, avail, .. } = self.model.layout;
        if packed {
            self.image.write(avail, &event.to_le_bytes());
            self.image.write(avail + 2, &[flags, 0]);
        } else {
            self.image.write(avail, &[flags, 0]);
            self.image.write(avail + 4 + 2 * u64::from(size), &event.to_le_bytes());
        }
    }

    /// The honest driver posts a receive buffer that is good or bad, and won't change it any more.
    fn post(&mut self, input: &mut Input<'_>) -> bool {
        let Layout { packed, size, .. } = self.model.layout;
        let (count, kind) = (usize::from(input.u8() % 4) + 1, input.u8());
        let indirect = kind & 1 != 0;
        let slots = if indirect { 1 } else { count as u16 };
        let in_use: usize = self.costs.iter().map(|(descs, _)| descs).sum();
        if in_use + usize::from(slots) > size.into() || self.posted.len() >= 64 && indirect {
            return true;
        }
        let bad = kind >> 1;
        let mut descs: Vec<_> = (0..count).map(|_| self.buffer(input)).collect();
        match bad {
            1 => descs[count / 2].2 ^= WRITE,
            2 => descs[0].0 = input.u64() | 1 << 40,
            3 => descs[count - 1].2 |= INDIRECT,
            4 => descs[count - 1].1 = input.u32() | 1 << 20,
            _ => {}
        }
        let id = if packed { self.avail ^ 0x55 } else { 0 };
        let first = if packed { self.avail } else { self.free };
        if indirect {
            let table = TABLES + 64 * (self.tables % 64);
            self.tables += 1;
            for (index, (addr, len, flags)) in (0..).zip(&descs) {
                let more = if usize::from(index) + 1 < count { NEXT } else { 0 };
                let bytes = self.encode(*addr, *len, flags | more, index + 1);
                self.image.write(table + 16 * u64::from(index), &bytes);
            }
            let len = 16 * count as u32 - if bad == 5 { 8 } else { 0 };
            let with = if bad == 6 && !packed { NEXT } else { 0 };
            self.put(self.encode(table, len, INDIRECT | with, id));
        } else {
            for (index, (addr, len, flags)) in descs.iter().enumerate() {
                let more = if index + 1 < count { NEXT } else { 0 };
                let next = match bad {
                    // Beyond the table, or a loop of its own.
                    7 if more != 0 => size,
                    8 if more != 0 => first,
                    _ => (self.free + 1) % size,
                };
                let next = if packed { id } else { next };
                self.put(self.encode(*addr, *len, flags | more, next));
            }
        }
        self.show(first);
        // Read as it stands now: nobody changes it.
        let taken = self.posted.iter().map(|chain| chain.slots).sum();
        let chain = self.model.chains(&self.image, taken, 1, true).ok().and_then(|mut c| c.pop());
        self.posted.push_back(chain.expect("the chain that was posted"));
        let read = if bad == 8 { 1 + usize::from(size) } else { 1 + count };
        self.costs.push_back((slots.into(), read));
        // A burst reads so many descriptors at most.
        self.costs.iter().map(|(_, read)| read).sum::<usize>() < 4000
    }

    /// A writable buffer that lies over no ring and no table.
    fn buffer(&self, input: &mut Input<'_>) -> (u64, u32, u16) {
        let (at, len) = (input.u16(), input.u16());
        let (start, room) = if at & 0x8000 != 0 {
            (REGIONS[2].0, REGIONS[2].1)
        } else {
            (BUFFERS, REGIONS[1].0 + REGIONS[1].1 - BUFFERS)
        };
        let offset = u64::from(at & 0x7fff) % room;
        // Sometimes longer than there is memory.
        let len = u64::from(len & 0x1fff).min(room - offset + u64::from(len >> 15));
        (start + offset, len as u32, WRITE)
    }

    // What the device does.

    fn want_kicks(&mut self, wanted: bool) {
        self.fixture.memory.store(&self.image);
        let before = self.image.clone();
        let again = self.ring.want_kicks(wanted);
        let expected = self.model.want_kicks(&mut self.image, wanted);
        assert_eq!(again, expected, "whether to look again");
        self.compare("after asking for kicks", &[&before]);
    }

    fn receive(&mut self, code: u8) -> bool {
        self.fixture.memory.store(&self.image);
        let most = if code >> 4 == 0 { 7 } else { BURST };
        let before = self.image.clone();
        let expected = self.model.receive(&mut self.image, most);
        let Fixture { pool, frames, .. } = &mut *self.fixture;
        let got = self.ring.receive(pool, &mut frames[..most]).map(|burst| {
            let read = |frame: &Frame| {
                let mut bytes = frame.head().to_vec();
                burst.segments.tail(frame.tail.clone()).read(|part| bytes.extend(part));
                assert_eq!(bytes.len(), frame.len as usize, "the length of a frame");
                (frame.vnet.to_bytes().to_vec(), bytes)
            };
            let frames: Vec<_> = burst.frames.iter().map(read).collect();
            let (bad_chains, bad_lengths) = burst.bad(burst.taken, frames.len());
            crate::model::Burst { frames, taken: burst.taken, bad_chains, bad_lengths }
        });
        let Ok(expected) = expected else {
            assert!(got.is_none(), "a burst of a ring that can't be");
            assert!(!self.ring.is_running(), "it goes on after what can't be");
            self.compare("after a ring failed", &[]);
            return false;
        };
        if expected.taken == 0 {
            assert!(got.is_none(), "a burst of nothing");
            return true;
        }
        let got = got.expect("a burst");
        let counts = |b: &crate::model::Burst| (b.taken, b.bad_chains, b.bad_lengths);
        assert_eq!(counts(&got), counts(&expected), "taken, bad chains, bad lengths");
        assert_eq!(got, expected, "the frames of a burst");
        self.ring.complete_burst(got.taken);
        self.publish("after a burst", &before);
        true
    }

    /// Shows what was completed, and decides about a call.
    fn publish(&mut self, when: &str, before: &Image) {
        self.ring.publish();
        self.model.publish(&mut self.image);
        let call = self.ring.call_if_wanted();
        if self.role == Role::HostileReceive {
            self.adopt(before);
            return;
        }
        assert_eq!(call, self.model.wants_call(&self.image, call), "whether the driver is called");
        self.compare(when, &[before]);
    }

    fn deliver(&mut self, input: &mut Input<'_>, code: u8) -> bool {
        let len = match code >> 4 & 3 {
            0 => 14 + u32::from(input.u8()),
            1 => 14 + u32::from(input.below(2000)),
            2 => 14 + u32::from(input.u16()),
            _ => 60,
        }
        .min(65_557);
        self.frames = self.frames.wrapping_add(1);
        let before = self.image.clone();
        self.allow();
        self.fixture.memory.store(&self.image);
        let Fixture { pool, frames, payload, .. } = &mut *self.fixture;
        let bytes = &payload[usize::from(self.frames)..][..len as usize];
        let head = bytes.len().min(HEAD_LEN);
        let (middle, end) = (head + (bytes.len() - head) / 3, bytes.len());
        let segments = pool.local(bytes, [head..middle, middle..end].into_iter());
        let frame = &mut frames[0];
        frame.set_whole(bytes);
        frame.len = len;
        frame.tail = 0..2;
        let vnet = Encoded { low: 0x0102_0304_0506_0708, high: u32::from(self.frames) };
        let Some(receiver) = self.ring.transmit() else { panic!("the ring doesn't run") };
        let whole = code & 128 == 0;
        let got = match receiver {
            AnyReceiver::Split(ring) => put(ring, vnet, frame, segments.tail(0..2), whole),
            AnyReceiver::Packed(ring) => put(ring, vnet, frame, segments.tail(0..2), whole),
        };
        if self.role == Role::Receive {
            if self.model.kicks != Some(false) {
                self.model.want_kicks(&mut self.image, false);
            }
            let vnet = vnet.to_bytes();
            let expected = self.model.deliver(&mut self.image, &mut self.posted, &vnet, bytes);
            let fault = |small| if small { RxFault::TooSmall } else { RxFault::Full };
            assert_eq!(got, expected.map_err(fault), "how the frame went");
            self.costs.drain(..self.costs.len() - self.posted.len());
        }
        self.publish("after a frame", &before);
        true
    }

    /// Stops the ring and starts it again, with other features perhaps.
    fn restart(&mut self, input: &mut Input<'_>, change: u8) -> bool {
        self.fixture.memory.store(&self.image);
        let base = self.ring.stop();
        if self.role == Role::HostileReceive {
            return false;
        }
        assert_eq!(base, self.model.base(), "the position");
        self.model.stop(&mut self.image);
        self.compare("after a stop", &[]);
        let negotiable = [feature::EVENT_IDX, feature::LOG_ALL, feature::MRG_RXBUF];
        for (bit, feature) in negotiable.into_iter().enumerate() {
            // What changes how buffers are read waits until there are none.
            if change >> bit & 1 != 0 && (self.posted.is_empty() || bit < 2) {
                self.features ^= feature;
            }
        }
        let (mut next, mut wrap) = (self.model.next, self.model.wrap);
        if change & 8 != 0 && self.role == Role::Transmit && !self.model.layout.packed {
            // The index in memory counts, not the frontend's.
            next = self.image.u16(self.model.layout.used + 2);
        } else if !self.model.layout.packed {
            self.image.write(self.model.layout.used + 2, &next.to_le_bytes());
        } else if change & 8 != 0 && self.role == Role::Transmit {
            (next, wrap) = (input.below(self.model.layout.size), input.u8() & 1 != 0);
        }
        self.set_up(next, wrap)
    }

    // What must be.

    /// Compares the memory with what it should be. `before`: what it was, if the dirty log is to be
    /// looked at.
    fn compare(&mut self, when: &str, before: &[&Image]) {
        let now = self.fixture.memory.load();
        if let Some(at) = self.image.changes(&now).next() {
            panic!(
                "{when}: byte {at:#x} is {:?}, should be {:?}; {:x?}",
                now.read(at, 1),
                self.image.read(at, 1),
                self.model.layout
            );
        }
        for before in before {
            self.check_log(before, &now);
        }
    }

    /// Pages that changed must be in the dirty log, as far as it reaches.
    fn check_log(&self, before: &Image, now: &Image) {
        if self.features & feature::LOG_ALL == 0 {
            return;
        }
        let mut log = [0; LOG_LEN as usize];
        self.fixture.log_file.read_exact_at(&mut log, LOG).expect("the log");
        for at in before.changes(now) {
            let page = at >> 12;
            let short = page / 8 >= SHORT_LOG;
            let marked = log[(page / 8) as usize] >> (page % 8) & 1 != 0;
            assert!(marked || short, "page {page:#x} was written and isn't marked");
        }
    }

    /// Remembers what a hostile driver's ring says that the device may write.
    fn allow(&mut self) {
        if self.role != Role::HostileReceive {
            return;
        }
        let Layout { size, desc, used, packed, .. } = self.model.layout;
        let [descs, _, useds] = self.model.layout.lengths();
        let meets =
            |at: u64, len: u64, other: u64, others: u64| at < other + others && other < at + len;
        let mut tables = vec![(desc, u64::from(size), true)];
        while let Some((at, count, outer)) = tables.pop() {
            // Used entries over descriptors that are still to be read: who knows what they become.
            self.entangled |= meets(at, 16 * count, used, useds)
                || packed && !outer && meets(at, 16 * count, desc, descs);
            for index in 0..count {
                let at = at + 16 * index;
                let (addr, len) = (self.image.u64(at), self.image.u32(at + 8));
                let flags = self.image.u16(at + if packed { 14 } else { 12 });
                if flags & INDIRECT != 0 && outer && self.image.read(addr, len as usize).is_some() {
                    tables.push((addr, u64::from(len) / 16, false));
                }
                if flags & WRITE != 0 {
                    let mut end = addr;
                    while let Some(part) =
                        crate::memory::piece(end, len.saturating_sub((end - addr) as u32))
                        && part > 0
                    {
                        let from = (end - REGIONS[0].0) as usize;
                        self.allowed[from..from + part as usize].fill(true);
                        end += u64::from(part);
                    }
                }
            }
        }
    }

    /// Takes over what the device has written, if it may.
    fn adopt(&mut self, before: &Image) {
        let now = self.fixture.memory.load();
        let Layout { packed, desc, used, .. } = self.model.layout;
        let [descs, _, useds] = self.model.layout.lengths();
        for at in before.changes(&now) {
            let entries = if packed { desc..desc + descs } else { used..used + useds };
            let ours = entries.contains(&at) || (used..used + useds).contains(&at);
            let posted = self.entangled || self.allowed[(at - REGIONS[0].0) as usize];
            assert!(ours || posted, "{at:#x} was written, which no buffer holds");
        }
        self.check_log(before, &now);
        self.image = now;
        let base = self.ring.position() as u16;
        let model = &mut self.model;
        model.kicks = Some(false);
        (model.next, model.wrap) =
            if packed { (base & 0x7fff, base >> 15 != 0) } else { (base, true) };
    }
}

/// Puts a frame into a receive ring as a port does.
fn put<F: Format>(
    mut ring: Receiver<'_, F>,
    vnet: Encoded,
    frame: &Frame,
    tail: ringswitch::mem::Tail<'_>,
    whole: bool,
) -> Result<(), RxFault> {
    ring.prepare(1);
    ring.prefetch_room(frame.len);
    if whole && ring.deliver_whole(vnet, frame, tail) {
        return Ok(());
    }
    ring.deliver(vnet, frame.len, frame.head(), tail)
}
