//! The ring engine against an independent one: the `virtio-queue` crate works on a copy of the same
//! memory, and after each turn of both devices the copies are compared. It knows split rings only;
//! both formats are compared with a model of the specification in `tests/fuzz`.
//!
//! Where the two differ on purpose, [`Flaw::seen_by_reference`] says what the crate makes of it:
//! the switch gives a chain that breaks a rule back with length 0, counts it and takes no frame from
//! it; the crate hands out the descriptors before the flaw as if they were all, or the whole chain.
//! It also refuses to give back a head that is out of range, and ignores NO_INTERRUPT.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use proptest::prelude::*;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::ahead::{BUFFER_BYTES, SMALL_BUFFERS};
use super::driver::{BASE, BUFFERS, Driver, INDIRECT, NEXT, WRITE};
use super::tests::{deliver, take};
use super::{AnyReceiver, Ring, RxFault, feature};

/// Entries of the rings, and descriptors of the table.
const SIZE: u16 = 256;
/// Guest address of the indirect tables; behind the buffers.
const TABLES: u64 = BUFFERS + 0x1_0000;
/// Bytes of them; then the first one is used again.
const TABLE_BYTES: u64 = 0x8000;
/// Bytes of memory that are copied and compared, and those around the border of the two regions.
const WINDOW: usize = 0x2_8000;
const BORDER: usize = 0x1000;

/// How a chain breaks the rules. Those of the second line need an indirect table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    Loop,
    NextOutOfRange,
    HeadOutOfRange,
    NotMemory,
    WrongDirection,
    // In a table:
    NestedTable,
    TableWithNext,
    OddTable,
    EmptyTable,
}

/// A chain: the lengths of its buffers, and how they are put.
#[derive(Clone, Debug)]
struct Chain {
    lens: Vec<u32>,
    indirect: bool,
    /// The first buffer lies over the border of two regions.
    crossing: bool,
    flaw: Option<Flaw>,
}

/// What the crate makes of a chain.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// This many of its descriptors, as a chain that is good.
    Descriptors(usize),
    /// All descriptors, and one names memory that isn't there.
    Fault,
}

impl Flaw {
    fn seen_by_reference(self, chain: &Chain) -> Seen {
        let count = chain.lens.len();
        Seen::Descriptors(match self {
            Self::NotMemory => return Seen::Fault,
            // As many as the ring or the table has: in a table just what a good chain would be.
            Self::Loop if chain.indirect => count,
            Self::Loop => SIZE.into(),
            Self::NextOutOfRange | Self::TableWithNext => count,
            Self::HeadOutOfRange | Self::OddTable | Self::EmptyTable => 0,
            Self::WrongDirection | Self::NestedTable => count - 1,
        })
    }
}

const FLAWS: [Flaw; 9] = [
    Flaw::Loop,
    Flaw::NextOutOfRange,
    Flaw::HeadOutOfRange,
    Flaw::NotMemory,
    Flaw::WrongDirection,
    Flaw::NestedTable,
    Flaw::TableWithNext,
    Flaw::OddTable,
    Flaw::EmptyTable,
];

fn flaws() -> impl Strategy<Value = Option<Flaw>> {
    prop_oneof![4 => Just(None), 1 => prop::sample::select(&FLAWS[..]).prop_map(Some)]
}

fn chains() -> impl Strategy<Value = Vec<Chain>> {
    let lens = prop::collection::vec(prop_oneof![9 => 1..400u32, 1 => Just(0)], 1..8);
    let chain = (lens, any::<bool>(), prop::bool::weighted(0.1), flaws());
    let chain = chain.prop_map(|(lens, indirect, crossing, flaw)| {
        use Flaw::{EmptyTable, NestedTable, OddTable, TableWithNext};
        let tables = matches!(flaw, Some(NestedTable | TableWithNext | OddTable | EmptyTable));
        Chain { lens, indirect: indirect || tables, crossing, flaw }
    });
    prop::collection::vec(chain, 1..16)
}

/// What the driver says of notifications before a turn.
#[derive(Clone, Copy, Debug)]
struct Wishes {
    no_interrupt: bool,
    /// `used_event`, counted from the used index; None: behind all that is offered, so that what
    /// is given back is one too few for a call.
    event: Option<u16>,
    /// The device asks for kicks.
    kicks: bool,
}

fn wishes() -> impl Strategy<Value = Wishes> {
    // One before all that comes, among it, one behind it, or anywhere.
    let event = prop_oneof![
        2 => Just(Some(u16::MAX)),
        4 => (0..20u16).prop_map(Some),
        2 => Just(None),
        1 => any::<u16>().prop_map(Some),
    ];
    (any::<bool>(), event, any::<bool>()).prop_map(|(no_interrupt, event, kicks)| Wishes {
        no_interrupt,
        event,
        kicks,
    })
}

/// Both devices, each on its own copy of the driver's memory.
struct Devices {
    driver: Driver,
    ring: Ring,
    event_idx: bool,
    indirect: bool,
    queue: Queue,
    copy: File,
    memory: Arc<GuestMemoryMmap<()>>,
    /// The driver's next free descriptor, and the flag of buffers that are right in this ring.
    free: u16,
    write: u16,
    /// Where the next indirect table goes.
    table: u64,
    /// Receive: chains that were posted and aren't used, with their descriptors of the table.
    posted: VecDeque<(Chain, u16)>,
}

impl Devices {
    fn new(features: u64, start: u16, write: u16) -> Self {
        let driver = Driver::split(SIZE);
        let noise: Vec<u8> = (0..0x1_0000u32).map(|i| (i.wrapping_mul(31) >> 3) as u8).collect();
        driver.write(BUFFERS, &noise);
        driver.write(Driver::border() - BORDER as u64, &noise[..2 * BORDER]);
        let copy = tempfile::tempfile().unwrap();
        copy.set_len(driver.len()).unwrap();
        let half = driver.len() / 2;
        let range = |at| {
            let file = FileOffset::new(copy.try_clone().unwrap(), at);
            (GuestAddress(BASE + at), half as usize, Some(file))
        };
        let memory = GuestMemoryMmap::from_ranges_with_files([range(0), range(half)]);
        let memory = Arc::new(memory.unwrap());
        let [desc, avail, used] = driver.guest_addresses().map(GuestAddress);
        let mut queue = Queue::new(SIZE).unwrap();
        queue.try_set_desc_table_address(desc).unwrap();
        queue.try_set_avail_ring_address(avail).unwrap();
        queue.try_set_used_ring_address(used).unwrap();
        queue.set_event_idx(features & feature::EVENT_IDX != 0);
        queue.set_ready(true);
        queue.set_next_avail(start);
        queue.set_next_used(start);
        driver.write(used.0 + 2, &start.to_le_bytes());
        let mut driver = driver;
        driver.set_avail_idx(start);
        let call = vmm_sys_util::eventfd::EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let mut ring = driver.ring(features);
        ring.set_call(Some(call.into()));
        let event_idx = features & feature::EVENT_IDX != 0;
        Self {
            driver,
            ring,
            event_idx,
            indirect: features & feature::INDIRECT_DESC != 0,
            queue,
            copy,
            memory,
            free: 0,
            write,
            table: 0,
            posted: VecDeque::new(),
        }
    }

    /// Parts of the memory that matter: offset and length.
    fn windows() -> [(u64, usize); 2] {
        [(0, WINDOW), (Driver::border() - BASE - BORDER as u64, 2 * BORDER)]
    }

    /// Gives the crate's device what the driver wrote.
    fn share(&self) {
        for (at, len) in Self::windows() {
            self.copy.write_all_at(&self.driver.read(BASE + at, len), at).unwrap();
        }
    }

    /// Checks that both devices wrote the same.
    fn compare(&self, when: &str) {
        for (at, len) in Self::windows() {
            let mut theirs = vec![0; len];
            self.copy.read_exact_at(&mut theirs, at).unwrap();
            let ours = self.driver.read(BASE + at, len);
            let differs = ours.iter().zip(&theirs).position(|(a, b)| a != b);
            assert_eq!(differs.map(|offset| at + offset as u64), None, "{when}: where they differ");
        }
        assert_eq!(self.ring.position(), u32::from(self.queue.next_used()), "{when}");
    }

    /// Puts chains into the ring, over one long run of buffers each; returns their heads.
    fn offer(&mut self, chains: &[Chain]) -> Vec<u16> {
        let (mut buffer, mut heads) = (BUFFERS, Vec::new());
        for chain in chains {
            let table = TABLES + self.table % TABLE_BYTES;
            let mut descs = self.descriptors(chain, &mut buffer);
            let count = descs.len() as u16;
            let head = self.free;
            let link = |i: u16| if chain.indirect { i } else { head.wrapping_add(i) % SIZE };
            let (end, places) = if chain.indirect { (count, 1) } else { (SIZE, count) };
            for (i, desc) in (0..).zip(&mut descs) {
                let more = if i + 1 < count { NEXT } else { 0 };
                (desc.2, desc.3) = (desc.2 | more, link(i + 1));
            }
            if let Some(flaw @ (Flaw::Loop | Flaw::NextOutOfRange)) = chain.flaw {
                let last = descs.last_mut().unwrap();
                let next = if flaw == Flaw::Loop { link(0) } else { end };
                (last.2, last.3) = (last.2 | NEXT, next);
            }
            for (i, (addr, len, flags, next)) in (0..).zip(descs) {
                let desc = self.driver.desc_bytes(addr, len, flags, next);
                let begin = if chain.indirect { table } else { BASE };
                self.driver.write(begin + 16 * u64::from(link(i)), &desc);
            }
            if chain.indirect {
                let len = match chain.flaw {
                    Some(Flaw::OddTable) => 16 * u32::from(count) - 8,
                    Some(Flaw::EmptyTable) => 0,
                    _ => 16 * u32::from(count),
                };
                let next = if chain.flaw == Some(Flaw::TableWithNext) { NEXT } else { 0 };
                self.driver.desc(head, table, len, INDIRECT | next, head);
                self.table += 16 * 8;
            }
            self.free = (self.free + places) % SIZE;
            if self.write != 0 {
                self.posted.push_back((chain.clone(), places));
            }
            let out = if chain.flaw == Some(Flaw::HeadOutOfRange) { SIZE } else { 0 };
            heads.push(head + out);
            self.driver.offer(head + out);
        }
        heads
    }

    /// Address, length, flags and (still to be set) next of a chain's descriptors.
    fn descriptors(&self, chain: &Chain, buffer: &mut u64) -> Vec<(u64, u32, u16, u16)> {
        let mut descs = Vec::new();
        for (i, len) in chain.lens.iter().enumerate() {
            let at = if chain.crossing && i == 0 {
                Driver::border() - u64::from(len / 2)
            } else {
                *buffer
            };
            *buffer += u64::from(*len) + 3;
            descs.push((at, *len, self.write, 0));
        }
        let middle = descs.len() / 2;
        let last = descs.len() - 1;
        match chain.flaw {
            // Whether an empty buffer is somewhere is no matter.
            Some(Flaw::NotMemory) => (descs[middle].0, descs[middle].1) = (0x10, 77),
            Some(Flaw::WrongDirection) => descs[middle].2 ^= WRITE,
            Some(Flaw::NestedTable) => descs[last].2 = INDIRECT,
            _ => {}
        }
        descs
    }

    /// What the driver wishes, as it stands in memory.
    fn wish(&mut self, wishes: Wishes, offered: usize) {
        self.driver.set_avail_flags(wishes.no_interrupt.into());
        let event = wishes.event.unwrap_or(offered as u16);
        let event = self.queue.next_used().wrapping_add(event);
        self.driver.set_used_event(event);
        self.share();
        // Both ask for kicks, or not to have them, and both say whether there are buffers now.
        let ours = self.ring.want_kicks(wishes.kicks);
        if wishes.kicks {
            assert_eq!(ours, self.queue.enable_notification(&*self.memory).unwrap());
        } else {
            self.queue.disable_notification(&*self.memory).unwrap();
        }
        self.compare("after asking for kicks");
    }

    /// Gives a chain back in the crate's way, but for heads that it refuses.
    fn add_used(&mut self, head: u16, len: u32) {
        let done = self.queue.add_used(&*self.memory, head, len);
        assert_eq!(done.is_err(), head >= SIZE, "the crate takes heads of the table only");
        if done.is_err() {
            let next = self.queue.next_used();
            let used = self.driver.guest_addresses()[2];
            let entry = GuestAddress(used + 4 + 8 * u64::from(next % SIZE));
            self.memory.write_obj(u64::from(head) | u64::from(len) << 32, entry).unwrap();
            self.queue.set_next_used(next.wrapping_add(1));
            let index = GuestAddress(used + 2);
            self.memory.write_obj(next.wrapping_add(1), index).unwrap();
        }
    }

    /// Whether the crate's device calls the driver.
    fn called(&mut self, wishes: Wishes) -> bool {
        let called = self.queue.needs_notification(&*self.memory).unwrap();
        // Without EVENT_IDX it always does: it doesn't know NO_INTERRUPT.
        assert!(self.event_idx || called);
        called && (self.event_idx || !wishes.no_interrupt)
    }

    /// Both devices take all that is in a transmit ring.
    fn transmit(&mut self, chains: &[Chain], heads: &[u16], wishes: Wishes) {
        let mut left = chains.iter().zip(heads);
        while let Some(ours) = take(&mut self.ring) {
            let (mut frames, mut bad, mut refused) = (Vec::new(), 0, false);
            for (chain, head) in left.by_ref().take(ours.taken.into()) {
                let (seen, bytes) = self.read(*head);
                let count = Seen::Descriptors(chain.lens.len());
                assert_eq!(seen, chain.flaw.map_or(count, |flaw| flaw.seen_by_reference(chain)));
                let negotiated = self.indirect || !chain.indirect;
                match chain.flaw {
                    Some(_) => bad += 1,
                    // The crate can't be told that it wasn't.
                    None if !negotiated => bad += 1,
                    None if bytes.len() >= 12 + 14 => frames.push(bytes[12..].to_vec()),
                    None => {}
                }
                self.add_used(*head, 0);
                refused |= *head >= SIZE;
            }
            assert_eq!(ours.bad_chains, bad, "chains that break the rules");
            let short = usize::from(ours.taken - bad) - frames.len();
            assert_eq!(usize::from(ours.bad_lengths), short, "chains that hold no frame");
            assert_eq!(ours.frames, frames);
            let called = self.called(wishes);
            // It doesn't count what it refused.
            assert!(refused || ours.called == called, "{wishes:?}: we say {}", ours.called);
            self.compare("after a burst");
        }
        assert!(left.next().is_none(), "a chain was left");
    }

    /// The crate's next chain: what it is, and the bytes to read in it.
    fn read(&mut self, head: u16) -> (Seen, Vec<u8>) {
        let chain =
            self.queue.pop_descriptor_chain(Arc::clone(&self.memory)).expect("one more chain");
        assert_eq!(chain.head_index(), head);
        let (mut count, mut bytes) = (0, Vec::new());
        for desc in chain.readable() {
            let mut part = vec![0; desc.len() as usize];
            if self.memory.read_slice(&mut part, desc.addr()).is_err() {
                return (Seen::Fault, bytes);
            }
            bytes.extend(part);
            count += 1;
        }
        (Seen::Descriptors(count), bytes)
    }

    /// Both devices put a frame into a receive ring.
    fn receive(&mut self, frame: &[u8], wishes: Wishes) {
        let ours = match self.ring.transmit().unwrap() {
            AnyReceiver::Split(receiver) => deliver(receiver, frame),
            AnyReceiver::Packed(_) => unreachable!("the ring is split"),
        };
        self.ring.publish();
        let called = self.ring.call_if_wanted();
        // As each burst on a receive ring: no kicks.
        self.queue.disable_notification(&*self.memory).unwrap();
        let before = self.queue.next_used();
        let (theirs, refused) = self.write(frame);
        assert_eq!(ours, theirs, "a frame of {} bytes", frame.len());
        let used_none = self.queue.next_used() == before;
        // The crate calls for nothing as well.
        let wanted = self.called(wishes) && !used_none;
        assert!(refused || called == wanted, "{wishes:?}: we say {called}");
        self.compare("after a frame");
    }

    /// Puts a frame into the crate's next buffers. Also says whether it refused a head.
    fn write(&mut self, frame: &[u8]) -> (Result<(), RxFault>, bool) {
        let memory = Arc::clone(&self.memory);
        let mut start = self.queue.next_avail();
        let (mut buffers, mut room, mut refused) = (Vec::new(), 0, false);
        let need = 12 + frame.len();
        while room < need {
            // Our own rule: not very many very small ones.
            if buffers.len() >= SMALL_BUFFERS + need / BUFFER_BYTES as usize {
                self.queue.set_next_avail(start);
                return (Err(RxFault::TooSmall), refused);
            }
            let Some(chain) = self.queue.pop_descriptor_chain(Arc::clone(&memory)) else {
                self.queue.set_next_avail(start);
                return (Err(RxFault::Full), refused);
            };
            let head = chain.head_index();
            let good = self.posted[buffers.len()].0.flaw.is_none();
            let writer = good.then(|| chain.writer(&*memory).unwrap());
            let space = writer.as_ref().map_or(0, |writer| writer.available_bytes());
            if buffers.is_empty() && space == 0 {
                self.posted.pop_front();
                self.add_used(head, 0);
                refused |= head >= SIZE;
                start = self.queue.next_avail();
                continue;
            }
            room += space;
            buffers.push((head, space, writer));
        }
        let mut bytes = [0; 12].to_vec();
        bytes[10..].copy_from_slice(&(buffers.len() as u16).to_le_bytes());
        bytes.extend(frame);
        let mut rest = &bytes[..];
        for (head, space, writer) in buffers {
            let (now, later) = rest.split_at(rest.len().min(space));
            if let Some(mut writer) = writer {
                writer.write_all(now).unwrap();
            }
            self.posted.pop_front();
            self.add_used(head, now.len() as u32);
            refused |= head >= SIZE;
            rest = later;
        }
        (Ok(()), refused)
    }

    /// Whether the descriptors of a chain are free.
    fn has_room(&self, chain: &Chain) -> bool {
        let places: usize = self.posted.iter().map(|(_, places)| usize::from(*places)).sum();
        places + chain.lens.len() <= SIZE.into()
    }
}

const MODERN: u64 = feature::VERSION_1 | feature::MRG_RXBUF;

proptest! {
    // A case compares megabytes.
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn transmit_rings_are_read_as_virtio_queue_reads_them(
        turns in prop::collection::vec((chains(), wishes()), 1..6),
        event_idx in any::<bool>(),
        indirect in prop::bool::weighted(0.8),
        start in any::<u16>(),
    ) {
        let optional = [(event_idx, feature::EVENT_IDX), (indirect, feature::INDIRECT_DESC)];
        let chosen = optional.iter().filter(|(has, _)| *has);
        let features = chosen.fold(MODERN, |all, (_, feature)| all | feature);
        let mut devices = Devices::new(features, start, 0);
        for (chains, wishes) in turns {
            let heads = devices.offer(&chains);
            devices.wish(wishes, chains.len());
            devices.transmit(&chains, &heads, wishes);
        }
    }

    #[test]
    fn receive_rings_are_filled_as_virtio_queue_fills_them(
        turns in prop::collection::vec(
            (chains(), wishes(), prop::collection::vec(14..2000usize, 0..8)), 1..6
        ),
        event_idx in any::<bool>(),
        start in any::<u16>(),
    ) {
        let event_idx = if event_idx { feature::EVENT_IDX } else { 0 };
        let features = MODERN | feature::INDIRECT_DESC | event_idx;
        let mut devices = Devices::new(features, start, WRITE);
        for (chains, wishes, lens) in turns {
            for chain in chains {
                // Long loops use up what one burst may read.
                let loops = chain.flaw == Some(Flaw::Loop) && !chain.indirect;
                if !loops && devices.has_room(&chain) {
                    devices.offer(&[chain]);
                }
            }
            devices.wish(wishes, lens.len());
            for len in lens {
                let frame: Vec<u8> = (0..len).map(|i| (i * 7 + len) as u8).collect();
                devices.receive(&frame, wishes);
            }
        }
    }

    #[test]
    fn an_impossible_index_stops_both(start in any::<u16>(), jump in SIZE + 1..=u16::MAX) {
        let mut devices = Devices::new(MODERN, start, 0);
        devices.driver.set_avail_idx(start.wrapping_add(jump));
        devices.share();
        prop_assert!(devices.queue.iter(Arc::clone(&devices.memory)).is_err());
        prop_assert!(take(&mut devices.ring).is_none());
        prop_assert!(!devices.ring.is_running());
        devices.compare("after the ring failed");
    }
}
