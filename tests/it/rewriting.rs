//! A guest that rewrites everything while the switch reads it: descriptors, tables, indices, headers
//! and frames, as fast as it can. What arrives elsewhere is what was judged, and nothing else.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fakeguest::frames::{DATA_VALID, GSO_TCPV4, Header, NEEDS_CSUM, mac};
use fakeguest::memory::Cells;
use fakeguest::ring::Ring;
use fakeguest::split::{Descriptor, INDIRECT, NEXT, WRITE};
use fakeguest::{Frame, Guest, Layout, Received, features};

use crate::support::lan::{PATIENCE, guest};
use crate::support::switch::Switch;
use crate::support::{Raise, over_both_formats};

over_both_formats! {
    what_arrives_is_what_was_judged_however_it_is_rewritten
}

/// Frames of the hostile guest that the switch takes, in all.
const FRAMES: u64 = 4000;
/// However slow the machine is.
const ENOUGH: Duration = Duration::from_secs(90);
/// Entries of the hostile guest's rings.
const SIZE: u16 = 64;
/// Entries of its neighbours' rings.
const RING: usize = 256;
/// All bytes of its buffers behind the two addresses.
const FILL: u8 = 0x41;
/// The bytes that other guests send, and that fill their buffers: it has no run of them, so none may
/// come from it.
const FOREIGN: [std::ops::RangeInclusive<u8>; 2] = [0xe0..=0xef, 0xa5..=0xa5];
/// Its buffers, each with a header and a frame.
const BUFFERS: u64 = 16;
const BUFFER: u64 = 4096;
/// The stations that it pretends to be: the last byte of their addresses.
const STATIONS: std::ops::Range<u8> = 0x40..0x50;
/// Its receivers.
const RECEIVERS: [u8; 2] = [3, 4];

/// A generator of numbers: xorshift.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.roll() >> 16) % bound
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// The guest that rewrites, and where everything is.
struct Rewriter {
    guest: Guest,
    /// Of each ring: buffers to receive, and to send.
    buffers: [u64; 2],
    tables: [u64; 2],
    /// The ring's descriptors, of either format.
    slots: [Cells<AtomicU64>; 2],
    packed: bool,
}

impl Rewriter {
    fn attach(switch: &Switch, format: u64) -> Rewriter {
        let builder = guest(switch, "h").with(format).ring_size(SIZE).tx_slot(2048);
        let guest = builder.rx_buffer(2048).manual_posting().attach().expect("a guest");
        let memory = guest.memory().clone();
        let buffers = [0, 1].map(|_| memory.alloc((BUFFERS + 1) * BUFFER, 4096));
        buffers.iter().for_each(|at| memory.fill(*at, (BUFFERS + 1) * BUFFER, FILL));
        let tables = [0, 1].map(|_| memory.alloc(16 * 64, 16));
        let slots = [0, 1].map(|ring: usize| {
            memory.cells(guest.ring(ring).addresses().desc, 2 * usize::from(SIZE))
        });
        for index in 0..BUFFERS {
            let at = buffers[1] + index * BUFFER;
            memory.fill(at, 12, 0);
            memory.write(at + 12, &mac(RECEIVERS[0]));
            memory.write(at + 18, &mac(STATIONS.start));
        }
        Rewriter { guest, buffers, tables, slots, packed: format != 0 }
    }

    /// A buffer for a ring: a frame, its beginning, its end, or nothing that the guest has.
    fn place(&self, dice: &mut Dice, ring: usize) -> (u64, u32) {
        let at = self.buffers[ring] + dice.below(BUFFERS) * BUFFER;
        match dice.below(16) {
            0 => (1 << 40, 100),
            1 => (u64::MAX - 50, 100),
            2 => (at, dice.pick(&[0, 1, 11, 12, 25, u32::MAX])),
            3 => (at + 200, dice.below(3000) as u32),
            4 => (at, 12),
            _ => (at, 12 + 60 + dice.below(1500) as u32),
        }
    }

    /// The second half of a descriptor in the ring.
    fn rest(&self, dice: &mut Dice, len: u32, write: u16) -> u64 {
        let flags = dice.pick(&[0, 0, 0, 0, 0, NEXT, INDIRECT, WRITE, NEXT | INDIRECT]) ^ write;
        let word = u64::from(len) | u64::from(flags) << 32;
        if self.packed {
            // The buffer id, and available for one lap or the other.
            let lap = dice.pick(&[1 << 7, 1 << 15]);
            return u64::from(len) | dice.below(300) << 32 | u64::from(flags | lap) << 48;
        }
        word | dice.below(u64::from(SIZE) + 2) << 48
    }

    /// Rewrites a descriptor of a ring, or of the table that some of them point to.
    fn rewrite_descriptor(&self, dice: &mut Dice, ring: usize) {
        let write = if ring == 0 { WRITE } else { 0 };
        let (mut addr, mut len) = self.place(dice, ring);
        if dice.below(4) == 0 {
            let flags = dice.pick(&[0, 0, NEXT, NEXT, WRITE]) ^ write;
            let next = dice.below(70) as u16;
            let entry = Descriptor { addr, len, flags, next };
            let table = self.tables[ring];
            self.guest.memory().write(table + 16 * dice.below(64), &entry.to_bytes());
            (addr, len) = (table, 16 * dice.below(64) as u32);
        }
        let slot = 2 * dice.below(u64::from(SIZE)) as usize;
        let rest = self.rest(dice, len, write);
        self.slots[ring].at(slot).store(addr, Ordering::Relaxed);
        self.slots[ring].at(slot + 1).store(rest, Ordering::Release);
    }

    /// Rewrites entries of the available ring, and shows some more of them: `next` is the index, which
    /// may be no further from the used one than the ring is long, or the ring is stopped.
    fn rewrite_index(&self, dice: &mut Dice, ring: &Ring, next: Option<&mut u16>) {
        if let Ring::Split(split) = ring {
            for _ in 0..8 {
                let head = dice.below(u64::from(SIZE) + 1) as u16;
                split.write_avail_entry(dice.roll() as u16, head);
            }
            if let Some(next) = next {
                let room = SIZE - next.wrapping_sub(ring.used_index());
                *next = next.wrapping_add(dice.below(u64::from(room) + 1) as u16);
                split.write_avail_index(*next);
            }
        }
        ring.kick_now();
    }

    /// Rewrites what a header and the two addresses say.
    fn rewrite_frame(&self, dice: &mut Dice) {
        let at = self.buffers[1] + dice.below(BUFFERS) * BUFFER;
        let memory = self.guest.memory();
        match dice.below(4) {
            0 => memory.write(at + 17, &[dice.pick(&RECEIVERS)]),
            1 => {
                let station = STATIONS.start + dice.below(STATIONS.len() as u64) as u8;
                memory.write(at + 23, &[station]);
            }
            2 => memory.write(at, &Header::default().to_bytes()),
            _ => {
                let header = Header {
                    flags: dice.pick(&[0, NEEDS_CSUM, DATA_VALID, 0x7f]),
                    gso_type: dice.pick(&[0, 0, GSO_TCPV4, 4, 5, 0x81, 0x7f]),
                    hdr_len: dice.pick(&[0, 54, 0x7f7f]),
                    gso_size: dice.pick(&[0, 1, 48, 1448, 0x7f7f]),
                    csum_start: dice.pick(&[0, 14, 34, 70, 1500, 0x7f7f]),
                    csum_offset: dice.pick(&[0, 6, 16, 0x7f7f]),
                    num_buffers: dice.pick(&[0, 1, 0x7f7f]),
                };
                memory.write(at, &header.to_bytes());
            }
        }
    }

    /// Rewrites until it is told to stop. One thread `leads`: it alone moves the indices.
    fn run(&self, seed: u64, leads: bool, stop: &AtomicBool) {
        let mut dice = Dice(seed);
        let mut next = [0, 1].map(|ring| self.guest.ring(ring).used_index());
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..64 {
                for _ in 0..4 {
                    self.rewrite_frame(&mut dice);
                    self.rewrite_descriptor(&mut dice, 1);
                }
                self.rewrite_descriptor(&mut dice, 0);
            }
            for (ring, next) in next.iter_mut().enumerate() {
                self.rewrite_index(&mut dice, self.guest.ring(ring), leads.then_some(next));
            }
        }
    }
}

/// Frames that came to a receiver: each is one that the hostile guest could send there.
fn check(got: &Received, receiver: u8, simple: bool) {
    let bytes = &got.bytes;
    assert_eq!(bytes[..6], mac(receiver), "judged for one station, and another one's");
    assert_eq!(bytes[6..11], mac(0)[..5], "a source that was never written");
    assert!(STATIONS.contains(&bytes[11]), "a source that was never written");
    // The checksum of a frame that a receiver without offloads gets may have been completed.
    // Its tables, which it may send as well, and checksums hold one now and then.
    let is_foreign = |byte: &u8| FOREIGN.iter().any(|range| range.contains(byte));
    let foreign = bytes.windows(8).any(|run| run.iter().all(is_foreign));
    assert!(!foreign, "bytes of another guest: {bytes:x?}");
    let header = Header::from_bytes(&got.header);
    assert_eq!(usize::from(header.num_buffers), got.buffers_used);
    if simple {
        assert_eq!(Header { num_buffers: 0, ..header }, Header::default());
        return;
    }
    // It isn't IP, so it has no segments.
    assert_eq!((header.gso_type, header.gso_size), (0, 0), "{header:?}");
    assert_eq!(header.flags & !(NEEDS_CSUM | DATA_VALID), 0);
    if header.flags & NEEDS_CSUM != 0 {
        let end = usize::from(header.csum_start) + usize::from(header.csum_offset) + 2;
        assert!(end <= bytes.len(), "{header:?} of {} bytes", bytes.len());
    }
}

/// A frame whose bytes behind the addresses are foreign to the guest that rewrites.
fn marked(to: u8, from: u8, len: usize, seed: u32) -> Frame {
    let mut frame = Frame::pattern(mac(to), mac(from), len, seed);
    frame.bytes[12..].iter_mut().for_each(|byte| *byte = 0xe0 | *byte & 0xf);
    frame
}

/// Sends frames from one neighbour to the other, port "b": they arrive in order, with their bytes. One
/// may be missing only where the hostile guest's frames to groups had filled the receiver's ring.
fn transfer(switch: &mut Switch, a: &mut Guest, b: &mut Guest, seed: u32) {
    let frames: Vec<_> = (0..20).map(|n| marked(2, 1, 60 + n as usize, seed << 8 | n)).collect();
    let full = switch.statistics().port("b", "drop_rx_ring_full");
    for frame in &frames {
        a.send(0, frame, &Layout::whole());
    }
    assert!(a.flush(0, PATIENCE), "the worker goes on");
    // Asked after the frames were taken: what was delivered of them is in the ring by then.
    let full = switch.statistics().port("b", "drop_rx_ring_full") - full;
    let (mut sent, mut arrived) = (frames.iter(), 0);
    // Others' frames keep coming: no more than the ring had.
    for got in std::iter::from_fn(|| b.queue(0).rx.recv()).take(RING) {
        if got.bytes[6..12] == mac(1) {
            assert!(sent.any(|frame| frame.bytes == got.bytes), "damage or disorder");
            arrived += 1;
        }
    }
    let missing = frames.len() as u64 - arrived;
    assert!(missing <= full, "{missing} frames are missing, {full} found a full ring");
}

fn what_arrives_is_what_was_judged_however_it_is_rewritten(format: u64) {
    let mut switch = Switch::builder().port("a").port("b").port("c").port("d").port("h").start();
    let attach = |port, features| {
        guest(&switch, port).features(features).rx_buffer(1100).attach().expect("a guest")
    };
    let simple = features::LINUX & !features::OFFLOADS;
    let (mut a, mut b) = (attach("a", features::LINUX), attach("b", features::LINUX));
    let mut receivers = [attach("c", simple | format), attach("d", features::LINUX | format)];
    for (receiver, number) in receivers.iter_mut().zip(RECEIVERS) {
        receiver.send(0, &marked(9, number, 60, 0), &Layout::whole());
        assert!(receiver.flush(0, PATIENCE));
    }
    let hostile = Rewriter::attach(&switch, format);
    let (stop, start) = (AtomicBool::new(false), Instant::now());
    let mut arrived = [0u64; 2];
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        for (seed, leads) in [(0x9e37_79b9_7f4a_7c15, true), (0x1234_5678_9abc_def1, false)] {
            let (hostile, stop) = (&hostile, &stop);
            scope.spawn(move || hostile.run(seed, leads, stop));
        }
        let mut seed = 0;
        loop {
            for (receiver, number) in receivers.iter_mut().zip(RECEIVERS) {
                let simple = number == RECEIVERS[0];
                while let Some(got) = receiver.queue(0).rx.recv() {
                    if got.bytes[6..11] == mac(0)[..5] && got.bytes[11] >= STATIONS.start {
                        check(&got, number, simple);
                        arrived[usize::from(!simple)] += 1;
                    }
                }
                // Into the buffers that are rewritten.
                let station = STATIONS.start + (seed % STATIONS.len() as u32) as u8;
                let frame = marked(station, number, 1000, seed);
                receiver.send(0, &frame, &Layout::whole());
            }
            seed += 1;
            transfer(&mut switch, &mut a, &mut b, seed);
            let taken = switch.statistics().port("h", "ingress_frames");
            if taken >= FRAMES && arrived.iter().all(|count| *count >= 100) {
                break;
            }
            assert!(start.elapsed() < ENOUGH, "{taken} frames, of which {arrived:?} arrived");
        }
    });
    // Who a delivered frame said that it was from is known to be there: nothing is flooded.
    let before = switch.statistics().port("c", "flooded_frames");
    let known = STATIONS.map(|station| marked(station, RECEIVERS[0], 60, 1));
    for frame in known {
        receivers[0].send(0, &frame, &Layout::whole());
    }
    assert!(receivers[0].flush(0, PATIENCE));
    let statistics = switch.statistics();
    assert_eq!(statistics.port("c", "flooded_frames"), before, "a source that wasn't learned");
    for guest in [&mut a, &mut b].into_iter().chain(&mut receivers) {
        assert!(guest.queue(0).rx.gaps_intact(), "written outside of the buffers");
    }
    println!("{arrived:?} arrived, {:?}", statistics.ports["h"]);
    drop(hostile);
    transfer(&mut switch, &mut a, &mut b, u32::MAX >> 8);
    switch.stop();
}

/// The same head twice, receive buffers over each other and over their own rings: the guest that
/// does it has garbage, and nobody else notices.
#[test]
fn buffers_over_each_other_and_over_rings_harm_their_guest_only() {
    let mut switch = Switch::builder().port("a").port("b").port("h").start();
    let attach = |port| guest(&switch, port).attach().expect("a guest");
    let (mut a, mut b) = (attach("a"), attach("b"));
    let mut h = guest(&switch, "h").manual_posting().attach().expect("a guest");
    for (guest, number) in [(&mut b, 2), (&mut h, 3)] {
        guest.send(0, &Frame::pattern(mac(9), mac(number), 60, 0), &Layout::whole());
        assert!(guest.flush(0, PATIENCE));
    }
    // To send: one head four times in a row.
    let sent = Frame::pattern(mac(2), mac(3), 100, 7);
    let tx = h.ring(1);
    let from = h.memory().alloc(200, 16);
    h.memory().fill(from, 200, 0);
    h.memory().write(from + 12, &sent.bytes);
    tx.split().write_descriptor(5, Descriptor { addr: from, len: 112, flags: 0, next: 0 });
    let first = tx.used_index();
    (0..4).for_each(|n| tx.split().write_avail_entry(first.wrapping_add(n), 5));
    tx.split().write_avail_index(first.wrapping_add(4));
    tx.kick_now();
    for _ in 0..4 {
        let got = std::iter::from_fn(|| b.recv(0, PATIENCE)).find(|got| got.bytes == sent.bytes);
        assert!(got.is_some(), "each time it is there, it is sent");
    }
    // To receive: over one another, over the descriptors, the available and the used ring.
    let (rx, memory) = (h.ring(0), h.memory());
    let at = rx.addresses();
    let buffer = memory.alloc(4096, 16);
    let places = [buffer, buffer, buffer + 100, at.desc, at.avail, at.used];
    for round in 0..20u16 {
        for (head, addr) in (0..).zip(places) {
            let descriptor = Descriptor { addr, len: 200, flags: WRITE, next: 0 };
            rx.split().write_descriptor(head, descriptor);
            rx.split().write_avail_entry(rx.used_index().wrapping_add(head), head);
        }
        rx.split().write_avail_index(rx.used_index().wrapping_add(places.len() as u16));
        for seed in 0..places.len() as u32 {
            a.send(0, &Frame::pattern(mac(3), mac(1), 150, seed), &Layout::whole());
        }
        assert!(a.flush(0, PATIENCE), "the worker goes on");
        transfer(&mut switch, &mut a, &mut b, u32::from(round));
    }
    for guest in [&mut a, &mut b] {
        assert!(guest.queue(0).rx.gaps_intact());
    }
    switch.statistics().assert_balanced();
    drop(h);
    transfer(&mut switch, &mut a, &mut b, 1000);
    switch.stop();
}
