//! What guests and their VMMs do: one act at a time.

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use fakeguest::features::{self, protocol};
use fakeguest::frames::{Frame, Header, NEEDS_CSUM, mac};
use fakeguest::layout::Piece;
use fakeguest::memory::Region;
use fakeguest::protocol::{Connection, NEED_REPLY, VERSION, code};
use fakeguest::{Layout, Memory, SetupOrder};
use vmm_sys_util::eventfd::EventFd;

use super::actor::PATIENCE;
use super::books::Tally;
use super::dice::Dice;
use super::guests::{Kind, Life};
use super::wild;
use super::words::{BROADCAST, FOREIGN, Shape};

/// What becomes of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    GoesOn,
    /// It stops its rings in order and goes.
    Leaves,
    /// Its connection ends at once.
    Dies,
    LostItsMemory,
}

/// Lists the acts once: names and weights come from this list.
macro_rules! acts {
    ($($act:ident $weight:literal $name:literal,)*) => {
        /// Something that a guest or its VMM does.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Act {
            $($act,)*
        }

        impl Act {
            const ALL: &[(u64, Act)] = &[$(($weight, Act::$act),)*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(Act::$act => $name,)* }
            }
        }
    };
}

acts! {
    Send 400 "send",
    Wait 100 "wait",
    BadChains 30 "bad chains",
    BadLengths 15 "bad lengths",
    BadHeaders 25 "bad headers",
    BadSendIndex 8 "bad index (send)",
    BadReceiveIndex 8 "bad index (receive)",
    InventAddresses 15 "invent addresses",
    KickStorm 15 "kick storm",
    Hoard 15 "hoard",
    Announce 10 "announce",
    StopResume 20 "stop and resume",
    Reset 12 "reset device",
    Status 12 "device status 0",
    Reconnect 20 "reconnect",
    Enable 25 "enable and disable",
    AddMemory 15 "add memory",
    RemoveMemory 12 "remove memory",
    MemoryTable 6 "memory table",
    Log 25 "dirty log",
    Refused 12 "refused message",
    Second 8 "second frontend",
    Garbage 8 "garbage",
    HalfMessage 6 "half a message",
    Descriptors 8 "surplus descriptors",
    Truncate 2 "truncate memory",
    Leave 12 "leave",
    Die 20 "die",
}

/// What a guest does next.
pub fn choose(life: &Life, dice: &mut Dice) -> Act {
    let act = dice.weighted(Act::ALL);
    let (wild, mute) = (life.wild, life.mute);
    match act {
        Act::Die | Act::Wait => act,
        // After half a message there are none but by its rings.
        _ if mute && !matches!(act, Act::Send | Act::Hoard | Act::KickStorm) => Act::Wait,
        Act::Leave | Act::Reset | Act::Log | Act::KickStorm | Act::Enable | Act::AddMemory => act,
        // Its rings are not for use.
        _ if wild => Act::Send,
        _ => act,
    }
}

/// Does it. What can't be done by this guest is not done.
pub fn perform(
    act: Act,
    life: &mut Life,
    station: u8,
    dice: &mut Dice,
    tally: &mut Tally,
) -> After {
    let fine = |result: std::io::Result<()>| {
        result.unwrap_or_else(|error| panic!("guest {station}: {}: {error}", act.name()));
        After::GoesOn
    };
    match act {
        Act::Send if life.wild => wild::scribble(&life.guest, life.senders.len(), dice),
        Act::Send => send(life, station, dice),
        Act::Wait => thread::sleep(Duration::from_micros(dice.below(3000))),
        Act::BadChains => bad_chains(life, dice),
        Act::BadLengths => bad_lengths(life, dice),
        Act::BadHeaders => bad_headers(life, station, dice),
        Act::BadSendIndex => return fine(bad_send_index(life, station, dice, tally)),
        Act::BadReceiveIndex => bad_receive_index(life, dice),
        Act::InventAddresses => invent_addresses(life, station, dice),
        Act::KickStorm => kick_storm(life, dice),
        Act::Hoard => life.hoards = !life.hoards,
        Act::Announce => return fine(announce(life, station, tally)),
        Act::StopResume => return fine(stop_and_resume(life, station, tally)),
        Act::Reset => return fine(reset(life)),
        Act::Status => return fine(status(life)),
        Act::Reconnect => {
            let result = life.guest.reconnect();
            life.forget_extras();
            return fine(result);
        }
        Act::Enable => return fine(enable(life, dice)),
        Act::AddMemory => return fine(add_memory(life, dice)),
        Act::RemoveMemory => return fine(remove_memory(life)),
        Act::MemoryTable => return fine(memory_table(life)),
        Act::Log => return fine(log(life, station, dice, tally)),
        Act::Refused => refused(life, station, dice),
        Act::Second => second(life, station),
        Act::Garbage => return garbage(life, dice),
        Act::HalfMessage => half_message(life, dice),
        Act::Descriptors => return descriptors(life, dice),
        Act::Truncate => return truncate(life, station, tally),
        Act::Leave => return After::Leaves,
        Act::Die => {
            if !life.wild {
                send(life, station, dice);
            }
            return After::Dies;
        }
    }
    After::GoesOn
}

/// A frame's destination.
fn destination(station: u8, guests: u8, dice: &mut Dice) -> [u8; 6] {
    let partner = ((station - 1) ^ 1) + 1;
    match dice.below(100) {
        0..60 => mac(partner),
        60..85 => mac(dice.between(1, guests.into()) as u8),
        85..90 => mac(199), // nobody's
        90..98 => BROADCAST,
        _ => mac(station),
    }
}

fn shape(life: &Life, words: usize, dice: &mut Dice) -> Shape {
    let (tcp, v6) = (dice.percent(60), dice.percent(50));
    let (open, large, piece) = (dice.percent(50), dice.percent(60), dice.pick(&[16, 64, 150]));
    let cut = match (tcp, v6) {
        (true, false) => features::HOST_TSO4,
        (true, true) => features::HOST_TSO6,
        (false, _) => features::HOST_USO,
    };
    if dice.percent(40) {
        Shape::Plain
    } else if large && words > usize::from(piece) && life.has(cut | features::CSUM) {
        Shape::Large { tcp, v6, words: piece }
    } else {
        Shape::Whole { tcp, v6, open: open && life.has(features::CSUM) }
    }
}

fn layout(life: &Life, dice: &mut Dice) -> Layout {
    let layout = dice.pick(&[
        Layout::whole(),
        Layout::whole(),
        Layout::header_apart(),
        Layout::split(&[12, 14, 20]),
        Layout::split(&[26, 1, 1, 1]),
        Layout::split(&[64, 100]),
    ]);
    let indirect = dice.percent(30) && life.has(features::INDIRECT_DESC);
    if indirect { layout.in_indirect_table() } else { layout }
}

/// The dice choose the queue, and how many buffers are to be filled.
fn queue_and_count(life: &Life, dice: &mut Dice) -> (usize, u64) {
    (dice.below(life.senders.len() as u64) as usize, dice.between(1, 64))
}

/// Posts frames, some or all, to whoever the dice choose.
fn send(life: &mut Life, station: u8, dice: &mut Dice) {
    let (queue, count) = queue_and_count(life, dice);
    let to = destination(station, wild::GUESTS.load(std::sync::atomic::Ordering::Relaxed), dice);
    // A frame to all is copied for each guest.
    let count = if to == BROADCAST || to == mac(199) { count.min(4) } else { count };
    let layout = layout(life, dice);
    for _ in 0..count {
        let most = if dice.percent(15) { life.words } else { life.words.min(180) };
        let words = dice.between(6, most as u64) as usize;
        let shape = shape(life, words, dice);
        let frame = life.senders[queue].flow.frame(to, shape, words);
        post(life, queue, &frame, &layout, Kind::Frame);
    }
    publish(life, queue);
}

fn post(life: &mut Life, queue: usize, frame: &Frame, layout: &Layout, kind: Kind) {
    if life.guest.queue(queue).tx.post(frame, layout) {
        life.senders[queue].posted.push_back(kind);
    }
}

fn publish(life: &mut Life, queue: usize) {
    life.guest.queue(queue).tx.ring.publish();
}

fn post_pieces(life: &mut Life, queue: usize, pieces: &[Piece], indirect: bool, kind: Kind) {
    if life.guest.queue(queue).tx.post_pieces(pieces, indirect) {
        life.senders[queue].posted.push_back(kind);
    }
}

fn bad_chains(life: &mut Life, dice: &mut Dice) {
    let (queue, count) = queue_and_count(life, dice);
    let last = *life.guest.memory().regions().last().expect("regions");
    let good = Piece { addr: life.scratch, len: 100 };
    let at = |addr, len| Piece { addr, len };
    let indirect = life.has(features::INDIRECT_DESC);
    for _ in 0..count.min(8) {
        let bad = dice.pick(&[
            at(1 << 45, 100),
            at(u64::MAX - 10, 100),
            at(last.guest_addr + last.size - 50, 100),
            at(last.guest_addr + last.size, 1),
            at(life.scratch, u32::MAX),
        ]);
        let (pieces, table) = match dice.below(4) {
            0 => (vec![bad], false),
            1 => (vec![good, good, bad], false),
            2 => (vec![bad, good], indirect),
            _ if !indirect => (vec![good], true),
            _ => (vec![good, bad, good], true),
        };
        post_pieces(life, queue, &pieces, table, Kind::BadChain);
    }
}

fn bad_lengths(life: &mut Life, dice: &mut Dice) {
    let (queue, count) = queue_and_count(life, dice);
    let first = life.guest.memory().regions()[0].guest_addr + 4096;
    for _ in 0..count.min(8) {
        let piece = dice.pick(&[
            Piece { addr: life.scratch, len: 25 },
            Piece { addr: life.scratch, len: 5 },
            Piece { addr: first, len: 65_570 },
            Piece { addr: first, len: 1 << 20 },
        ]);
        post_pieces(life, queue, &[piece], false, Kind::BadLength);
    }
}

fn bad_headers(life: &mut Life, station: u8, dice: &mut Dice) {
    let (queue, count) = queue_and_count(life, dice);
    for _ in 0..count.min(8) {
        let header = dice.pick(&[
            Header { flags: NEEDS_CSUM, csum_start: u16::MAX, ..Header::default() },
            Header { flags: NEEDS_CSUM, csum_start: 34, csum_offset: 999, ..Header::default() },
            Header { gso_type: 1, gso_size: 0, ..Header::default() },
            Header { gso_type: 0x77, gso_size: 100, ..Header::default() },
        ]);
        let frame = life.senders[queue].flow.frame(mac(station), Shape::Plain, 20);
        post(life, queue, &frame.with_header(header), &Layout::whole(), Kind::BadHeader);
    }
    publish(life, queue);
}

/// Shows more buffers than the ring has, waits until the switch has given the ring up, and sets it
/// up again as it was.
fn bad_send_index(
    life: &mut Life,
    station: u8,
    dice: &mut Dice,
    tally: &mut Tally,
) -> std::io::Result<()> {
    let runs = life.enabled == life.senders.len() && life.order == SetupOrder::Qemu;
    if life.is_packed() || !runs {
        return Ok(());
    }
    let (queue, more) = queue_and_count(life, dice);
    let ring = life.guest.ring(2 * queue + 1).split();
    let (good, bad) = (ring.avail_index(), ring.size() + more as u16);
    let _ = life.guest.ring(2 * queue + 1).signals().err.read();
    ring.write_avail_index(good.wrapping_add(bad));
    life.guest.ring(2 * queue + 1).kick_now();
    let deadline = Instant::now() + PATIENCE;
    while life.guest.ring(2 * queue + 1).signals().err.read().is_err() {
        assert!(Instant::now() < deadline, "guest {station}: a bad index is not told");
        thread::sleep(Duration::from_millis(1));
    }
    life.guest.ring(2 * queue + 1).split().write_avail_index(good);
    stop_and_resume(life, station, tally)
}

/// Shows more buffers than the ring has for a moment.
fn bad_receive_index(life: &mut Life, dice: &mut Dice) {
    let (queue, more) = queue_and_count(life, dice);
    if life.is_packed() {
        return;
    }
    let ring = life.guest.ring(2 * queue).split();
    ring.write_avail_index(ring.avail_index().wrapping_add(ring.size() + more as u16));
    thread::sleep(Duration::from_micros(500));
    ring.write_avail_index(ring.avail_index());
}

fn invent_addresses(life: &mut Life, station: u8, dice: &mut Dice) {
    let (queue, count) = queue_and_count(life, dice);
    let to = mac(((station - 1) ^ 1) + 1);
    for _ in 0..count {
        let mut from = [0x0e; 6];
        from[1..].copy_from_slice(&dice.bytes(5));
        let head = [&to[..], &from[..], &FOREIGN[..]].concat();
        let frame = Frame::plain([head, vec![0; 46]].concat());
        post(life, queue, &frame, &Layout::whole(), Kind::Frame);
    }
    publish(life, queue);
}

fn kick_storm(life: &Life, dice: &mut Dice) {
    let ring = dice.below(2 * life.senders.len() as u64) as usize;
    for _ in 0..2000 {
        life.guest.ring(ring).kick_now();
    }
}

fn announce(life: &Life, station: u8, tally: &mut Tally) -> std::io::Result<()> {
    if !life.speaks(protocol::RARP) {
        return Ok(());
    }
    for _ in 0..50 {
        life.guest.connection().send_rarp(mac(station))?;
        tally.announced += 1;
    }
    Ok(())
}

fn stop_and_resume(life: &mut Life, station: u8, tally: &mut Tally) -> std::io::Result<()> {
    let bases = life.guest.stop()?;
    for (index, base) in bases.into_iter().enumerate() {
        assert_eq!(base, life.guest.ring(index).base(), "guest {station}: base of ring {index}");
    }
    life.settle(station, tally);
    life.guest.resume()?;
    life.guest.sync()
}

fn reset(life: &mut Life) -> std::io::Result<()> {
    if !life.speaks(protocol::RESET_DEVICE) {
        return Ok(());
    }
    life.guest.connection().reset_device()?;
    again(life)
}

fn status(life: &mut Life) -> std::io::Result<()> {
    if !life.speaks(protocol::STATUS) {
        return Ok(());
    }
    life.guest.connection().set_status(0)?;
    again(life)?;
    life.guest.connection().set_status(15)
}

fn again(life: &mut Life) -> std::io::Result<()> {
    (life.log, life.enabled) = (None, life.senders.len());
    life.guest.restart()
}

fn enable(life: &mut Life, dice: &mut Dice) -> std::io::Result<()> {
    let pairs = dice.below(life.senders.len() as u64 + 1) as usize;
    if !life.has(features::PROTOCOL_FEATURES) {
        return Ok(());
    }
    life.enabled = pairs;
    life.guest.enable_rings(pairs)
}

fn add_memory(life: &mut Life, dice: &mut Dice) -> std::io::Result<()> {
    let size = dice.between(1, 64) << 16;
    if !life.speaks(protocol::CONFIGURE_MEM_SLOTS) || life.spare.len() > 7 {
        return Ok(());
    }
    let place = (0u64..).map(|n| (1 << 40) + (n << 30));
    let taken = |addr: &u64| life.spare.iter().any(|(region, _)| region.guest_addr == *addr);
    let guest_addr = place.filter(|addr| !taken(addr)).take(1).sum();
    let memory = Memory::new(&[(guest_addr, size)])?;
    let region: Region = memory.regions()[0];
    life.guest.connection().add_mem_reg(&region, memory.file())?;
    life.spare.push((region, memory));
    Ok(())
}

fn remove_memory(life: &mut Life) -> std::io::Result<()> {
    match life.spare.pop() {
        Some((region, _)) => life.guest.connection().rem_mem_reg(&region),
        None => Ok(()),
    }
}

fn memory_table(life: &mut Life) -> std::io::Result<()> {
    let memory = life.guest.memory();
    life.guest.connection().set_mem_table(memory.regions(), memory.file())?;
    life.spare.clear();
    Ok(())
}

/// Begins to log, goes on in another log, or ends it.
fn log(life: &mut Life, station: u8, dice: &mut Dice, tally: &mut Tally) -> std::io::Result<()> {
    let swap = dice.percent(60);
    if !life.speaks(protocol::LOG_SHMFD) {
        return Ok(());
    }
    let Some(old) = life.log.take() else {
        life.log = Some(life.guest.start_log()?);
        life.settle(station, tally);
        life.logged = false;
        return Ok(());
    };
    if swap {
        life.log = Some(life.guest.next_log()?);
    } else {
        life.guest.stop_log()?;
    }
    // It is complete now; more than what was received may be in it.
    let pages = old.take();
    let logged = std::mem::take(&mut life.logged) && !life.wild && !life.hoards;
    assert!(!logged || !pages.is_empty(), "guest {station}: received frames are not logged");
    life.settle(station, tally);
    life.logged = false;
    Ok(())
}

/// A message that is answered with an error, and changes nothing.
fn refused(life: &Life, station: u8, dice: &mut Dice) {
    let state = |index: u32, value: u32| [index, value].map(u32::to_le_bytes).concat();
    let (what, body) = dice.pick(&[
        (code::SET_VRING_NUM, state(0, 0)),
        (code::SET_VRING_NUM, state(200, 256)),
        (code::SET_VRING_ENABLE, state(0, 7)),
        (code::SET_VRING_ADDR, [state(99, 0), vec![0; 32]].concat()),
    ]);
    if !life.speaks(protocol::REPLY_ACK) {
        return;
    }
    let connection = life.guest.connection();
    connection.raw(what, VERSION | NEED_REPLY, &body, &[]).expect("sent");
    let reply = connection.reply(what);
    let reply = reply.unwrap_or_else(|error| panic!("guest {station}: message {what}: {error}"));
    assert_ne!(reply, [0; 8], "guest {station}: message {what} is accepted");
}

/// Another connection to the same port: it is turned away.
fn second(life: &Life, station: u8) {
    let path = life.guest.connection().stream().peer_addr().expect("a peer");
    let path = path.as_pathname().expect("a socket with a name");
    let stream = UnixStream::connect(path).expect("a listener");
    let connection = Connection::new(stream, fakeguest::protocol::Acks::Some).expect("sockets");
    assert!(connection.closed_within(PATIENCE), "guest {station}: a second frontend is served");
}

fn garbage(life: &Life, dice: &mut Dice) -> After {
    // The switch may close before all of it is written.
    let _ = life.guest.connection().bytes(&dice.bytes(200), &[]);
    assert!(life.guest.connection().closed_within(PATIENCE), "garbage is endured");
    After::Dies
}

/// A whole message.
pub fn message() -> Vec<u8> {
    [code::SET_FEATURES, VERSION, 8, 0, 0].map(u32::to_le_bytes).concat()
}

fn half_message(life: &mut Life, dice: &mut Dice) {
    let length = dice.between(1, 19) as usize;
    life.guest.connection().bytes(&message()[..length], &[]).expect("sent");
    life.mute = true;
}

/// A message with descriptors that it can't have.
pub fn flood_of_descriptors(connection: &Connection, count: usize) {
    let event = EventFd::new(0).expect("an eventfd");
    let fds: Vec<RawFd> = vec![event.as_raw_fd(); count];
    // The switch may have closed already.
    let _ = connection.bytes(&message(), &fds);
}

fn descriptors(life: &Life, dice: &mut Dice) -> After {
    flood_of_descriptors(life.guest.connection(), dice.pick(&[1, 8, 33, 253]));
    assert!(life.guest.connection().closed_within(PATIENCE), "surplus descriptors are endured");
    After::Dies
}

/// Makes the file of its memory shorter. Nobody but the switch touches the memory after that; and
/// the switch has no frame of it under way, which would go on with zeros for its last bytes.
fn truncate(life: &mut Life, station: u8, tally: &mut Tally) -> After {
    if life.enabled < life.senders.len() || !life.flush(station, tally) {
        return After::GoesOn;
    }
    life.guest.memory().file().set_len(0).expect("a shorter file");
    life.guest.ring(1).kick_now();
    let closed = life.guest.connection().closed_within(PATIENCE);
    assert!(closed, "guest {station}: the loss of its memory is not noticed");
    After::LostItsMemory
}
