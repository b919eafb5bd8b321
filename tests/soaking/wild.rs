//! A guest that writes over its own rings while the switch reads them.
//!
//! It reads and writes nothing of what comes back. Readable buffers that it names lie in memory of
//! its own garbage, never where received frames may be: what it sends is nobody's frame.

use std::sync::atomic::{AtomicU8, Ordering};

use fakeguest::Guest;
use fakeguest::frames::mac;
use fakeguest::packed::{AVAIL, USED};
use fakeguest::ring::Ring;
use fakeguest::split::{Descriptor, INDIRECT, NEXT, WRITE};

use super::dice::Dice;
use super::words::FOREIGN;

/// How many guests there are.
pub static GUESTS: AtomicU8 = AtomicU8::new(64);

/// Bytes of garbage, at the end of the last region.
const GARBAGE: u64 = 256 << 10;
/// Bytes behind them that are for writing.
const DRAIN: u64 = 256 << 10;

/// Writes some hundred fields of the rings.
pub fn scribble(guest: &Guest, pairs: usize, dice: &mut Dice) {
    let last = *guest.memory().regions().last().expect("regions");
    let garbage = last.guest_addr + last.size - GARBAGE - DRAIN;
    plant(guest, garbage, dice);
    for _ in 0..dice.between(5, 40) {
        let index = dice.below(2 * pairs as u64) as usize;
        let ring = guest.ring(index);
        for _ in 0..dice.between(1, 16) {
            let descriptor = descriptor(garbage, index.is_multiple_of(2), ring.size(), dice);
            let slot = dice.below(ring.size().into()) as u16;
            match ring {
                Ring::Split(ring) => {
                    ring.write_descriptor(slot, descriptor);
                    ring.write_avail_entry(dice.next() as u16, dice.pick(&[slot, slot, 0xffff]));
                }
                Ring::Packed(ring) => {
                    let used = dice.pick(&[AVAIL, USED, AVAIL | USED, 0]);
                    let Descriptor { addr, len, flags, next } = descriptor;
                    ring.write_slot(slot, addr, len, next, flags | used);
                }
            }
        }
        if let Ring::Split(ring) = ring {
            let more = match dice.below(50) {
                0 => dice.next() as u16,
                _ => dice.below(20) as u16,
            };
            ring.write_avail_index(ring.used_index().wrapping_add(more));
            ring.write_avail_flags(dice.next() as u16 & 1);
        }
        ring.kick_now();
    }
}

/// Frames that look like some, in the garbage.
fn plant(guest: &Guest, garbage: u64, dice: &mut Dice) {
    for _ in 0..8 {
        let mut bytes = dice.bytes(1500);
        bytes[..12].fill(0);
        if dice.percent(50) {
            bytes[..12].copy_from_slice(&dice.bytes(12));
        }
        let to = dice.between(1, GUESTS.load(Ordering::Relaxed).into()) as u8;
        bytes[12..18].copy_from_slice(&dice.pick(&[mac(to), [0xff; 6], [0x0e; 6]]));
        bytes[18] = 0x0e;
        bytes[24..26].copy_from_slice(&FOREIGN);
        // IPv4 and IPv6, more or less.
        match dice.below(3) {
            0 => bytes[24..36].copy_from_slice(&[8, 0, 0x45, 0, 5, 0xdc, 0, 0, 0, 0, 64, 6]),
            1 => bytes[24..33].copy_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 5, 0xa0, 17]),
            _ => {}
        }
        guest.memory().write(garbage + 2048 * dice.below(64), &bytes);
    }
}

fn descriptor(garbage: u64, receives: bool, size: u16, dice: &mut Dice) -> Descriptor {
    let start = if receives { garbage + GARBAGE } else { garbage };
    let addr = match dice.below(20) {
        0 => dice.next(),
        1 => garbage + GARBAGE + DRAIN - dice.below(100),
        2 => start + dice.below(GARBAGE),
        _ => start + 2048 * dice.below(64),
    };
    let len = match dice.below(20) {
        0 => dice.next() as u32,
        1 => 0,
        2 => dice.between(1, 30) as u32,
        3 => 16 * dice.between(1, 100) as u32,
        _ => dice.between(60, 1500) as u32,
    };
    let usual = if receives { WRITE } else { 0 };
    let flags = match dice.below(10) {
        0 => dice.next() as u16 & (NEXT | WRITE | INDIRECT),
        1 => usual | NEXT,
        2 => usual ^ INDIRECT,
        _ => usual,
    };
    Descriptor { addr, len, flags, next: dice.below(2 * u64::from(size)) as u16 }
}
