//! The two queues of a pair, with the buffers that go round in them.
//!
//! [`RxQueue`] owns receive buffers: posts them, puts the frame in them together, posts them
//! again. [`TxQueue`] owns slots of memory that frames are written to. Neither knows of messages.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use crate::frames::{Frame, HEADER_LEN};
use crate::layout::{GAP, Layout, Piece};
use crate::memory::{Cells, Memory};
use crate::ring::{Ring, Used};

/// Byte that receive buffers and the gaps around them are filled with before they are posted.
const POISON: u8 = 0xa5;
/// Buffers that a generator takes back at a time: Linux's NAPI weight.
const BATCH: usize = 64;

/// A frame that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The virtio-net header as the device wrote it; of a legacy device 10 bytes and two zeros.
    pub header: [u8; HEADER_LEN],
    /// The frame.
    pub bytes: Vec<u8>,
    /// Receive buffers that it took.
    pub buffers_used: usize,
}

/// What a burst held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Burst {
    /// Frames.
    pub frames: u64,
    /// Their bytes, virtio-net headers not counted.
    pub bytes: u64,
}

/// Where equally long slots of memory lie.
#[derive(Debug)]
struct Slots {
    first: u64,
    stride: u64,
}

impl Slots {
    /// `count` slots of `size` bytes and a gap. The stride is an odd number of cache lines, or
    /// all slots would compete for the same few sets of the cache.
    fn new(memory: &Memory, count: u16, size: u64) -> Slots {
        let stride = Slots::stride(size);
        let first = memory.alloc(u64::from(count) * stride, 64);
        memory.fill(first, u64::from(count) * stride, POISON);
        Slots { first, stride }
    }

    fn stride(size: u64) -> u64 {
        ((size + GAP).div_ceil(64) | 1) * 64
    }

    fn addr(&self, slot: u16) -> u64 {
        self.first + u64::from(slot) * self.stride
    }

    /// The memory that `count` slots take.
    fn bytes(&self, count: u16) -> usize {
        usize::from(count) * self.stride as usize
    }
}

/// Guest memory that the slots of one queue take.
pub(crate) fn slots_footprint(count: u16, size: u64) -> u64 {
    u64::from(count) * Slots::stride(size) + 4096
}

/// A receive queue: the guest receives what the device writes here.
#[derive(Debug)]
pub struct RxQueue {
    /// The ring, for raw writes.
    pub ring: Ring,
    slots: Slots,
    /// The slots' memory, to look at headers without a look-up of their address.
    words: Cells<AtomicU16>,
    size: usize,
    layout: Layout,
    /// By head: the chain's pieces; empty where there is no chain.
    chains: Vec<Vec<Piece>>,
    /// By head: where a chain of the queue's own buffers begins in `words`.
    headers: Vec<usize>,
    /// Built chains that are not posted.
    idle: Vec<u16>,
    /// Used chains of one burst.
    used: Vec<Used>,
    automatic: bool,
    /// Buffers that came back without a frame, if they may.
    empty: Option<u64>,
    mergeable: bool,
    header_len: usize,
}

impl RxQueue {
    /// As many buffers of `size` bytes as the ring holds in this layout, none posted.
    pub(crate) fn new(mut ring: Ring, size: usize, layout: Layout, automatic: bool) -> RxQueue {
        let slots = Slots::new(ring.memory(), ring.size(), layout.footprint(size));
        let words = ring.memory().cells(slots.first, slots.bytes(ring.size()) / 2);
        let mut chains = vec![Vec::new(); usize::from(ring.size())];
        let mut headers = vec![0; usize::from(ring.size())];
        let mut idle = Vec::with_capacity(usize::from(ring.size()));
        for slot in 0..ring.size() {
            let pieces = layout.pieces(slots.addr(slot), size);
            let Some(head) = ring.build(&[], &pieces, layout.indirect) else {
                break;
            };
            headers[usize::from(head)] = (pieces[0].addr - slots.first) as usize / 2;
            chains[usize::from(head)] = pieces;
            idle.push(head);
        }
        idle.reverse();
        let used = Vec::with_capacity(2 * BATCH);
        let (mergeable, header_len) = (false, HEADER_LEN);
        RxQueue {
            ring,
            slots,
            words,
            size,
            layout,
            chains,
            headers,
            idle,
            used,
            automatic,
            empty: None,
            mergeable,
            header_len,
        }
    }

    /// Counts buffers that come back without a frame from now on, as Linux does. Otherwise they are
    /// a panic.
    pub fn accept_empty(&mut self) {
        self.empty.get_or_insert(0);
    }

    /// How many buffers came back without a frame.
    pub fn empty(&self) -> u64 {
        self.empty.unwrap_or(0)
    }

    pub(crate) fn set_format(&mut self, mergeable: bool, header_len: usize) {
        (self.mergeable, self.header_len) = (mergeable, header_len);
    }

    /// The guest memory that the queue's own buffers lie in. Only the device writes there.
    pub fn buffers(&self) -> Range<u64> {
        self.slots.first..self.slots.first + self.slots.bytes(self.ring.size()) as u64
    }

    /// Posts up to `count` idle buffers and publishes them; tells how many.
    pub fn post(&mut self, count: usize) -> usize {
        let count = count.min(self.idle.len());
        for head in self.idle.drain(self.idle.len() - count..) {
            self.ring.post(head);
        }
        self.ring.publish();
        count
    }

    /// Posts one more buffer, of these pieces of the caller's own memory. Needs free descriptors:
    /// take a layout that leaves some, or an indirect one.
    pub fn post_pieces(&mut self, pieces: &[Piece], indirect: bool) -> bool {
        let Some(head) = self.ring.build(&[], pieces, indirect) else {
            return false;
        };
        self.chains[usize::from(head)] = pieces.to_vec();
        self.ring.post(head);
        self.ring.publish();
        true
    }

    /// Gives all idle buffers' descriptors back to the ring, for [`RxQueue::post_pieces`].
    pub fn drop_idle(&mut self) {
        for head in self.idle.drain(..) {
            self.ring.free(head);
        }
    }

    /// The next frame, if one is there. Panics if the device's header and used entries disagree.
    pub fn recv(&mut self) -> Option<Received> {
        let mut first = self.ring.pop()?;
        while let (0, Some(empty)) = (first.len, &mut self.empty) {
            *empty += 1;
            self.idle.push(first.head);
            if self.automatic {
                self.post(1);
            }
            first = self.ring.pop()?;
        }
        let mut bytes = self.take(first.head, first.len);
        let buffers_used = self.buffers_of(&bytes);
        for buffer in 1..buffers_used {
            let next = self.ring.pop().unwrap_or_else(|| {
                panic!("num_buffers is {buffers_used}, but only {buffer} are in the used ring")
            });
            assert!(next.len > 0, "an empty merged buffer");
            let more = self.take(next.head, next.len);
            bytes.extend_from_slice(&more);
        }
        if self.automatic {
            self.post(buffers_used);
        }
        let mut header = [0; HEADER_LEN];
        header[..self.header_len].copy_from_slice(&bytes[..self.header_len]);
        bytes.drain(..self.header_len);
        Some(Received { header, bytes, buffers_used })
    }

    fn buffers_of(&self, bytes: &[u8]) -> usize {
        assert!(bytes.len() >= self.header_len, "{} bytes in a receive buffer", bytes.len());
        if !self.mergeable {
            return 1; // virtio 1.2, section 5.1.6.4.1: the field says nothing then
        }
        let count = usize::from(u16::from_le_bytes([bytes[10], bytes[11]]));
        assert!(count >= 1, "num_buffers is 0 with MRG_RXBUF");
        count
    }

    /// Copies `len` bytes out of a used chain and makes it idle.
    fn take(&mut self, head: u16, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        let mut at = 0;
        for piece in &self.chains[usize::from(head)] {
            let part = (bytes.len() - at).min(piece.len as usize);
            self.ring.memory().read(piece.addr, &mut bytes[at..at + part]);
            at += part;
        }
        assert_eq!(at, bytes.len(), "the device says it wrote more than the buffer holds");
        self.idle.push(head);
        bytes
    }

    /// Takes up to `max` frames, and no more than a batch of buffers and the rest of the last frame,
    /// without looking at their bytes, and posts the buffers again: for generators, with buffers of
    /// the queue's own. One publication for the burst. Allocates nothing.
    pub fn recv_burst(&mut self, max: u64) -> Burst {
        let mut burst = Burst::default();
        let mut used = std::mem::take(&mut self.used);
        self.ring.pop_into(max.min(BATCH as u64) as usize, &mut used);
        if self.mergeable {
            // The device wrote the headers: their lines come from its core, all at once.
            for chain in &used {
                self.words.prefetch(self.num_buffers_at(chain.head));
            }
        }
        let mut at = 0;
        while let Some(first) = used.get(at) {
            let buffers = if self.mergeable {
                let buffers = self.words.at(self.num_buffers_at(first.head));
                usize::from(u16::from_le(buffers.load(Ordering::Relaxed)))
            } else {
                1
            };
            let missing = (at + buffers).saturating_sub(used.len());
            if missing > 0 {
                self.ring.pop_into(missing, &mut used);
                assert!(used.len() >= at + buffers, "all buffers of a frame are used at once");
            }
            let frame = &used[at..at + buffers];
            burst.bytes += frame.iter().map(|chain| u64::from(chain.len)).sum::<u64>();
            at += buffers;
            burst.frames += 1;
        }
        burst.bytes -= burst.frames * self.header_len as u64;
        used.drain(..).for_each(|chain| self.ring.post(chain.head));
        self.ring.publish();
        self.used = used;
        burst
    }

    /// Where in `words` the number of buffers of a frame is that begins in this chain.
    #[inline]
    fn num_buffers_at(&self, head: u16) -> usize {
        self.headers[usize::from(head)] + 5
    }

    /// Whether the bytes between the buffers are as they were: nobody wrote past an end.
    pub fn gaps_intact(&self) -> bool {
        (0..self.ring.size()).all(|slot| {
            let start = self.slots.addr(slot);
            let mut bytes = vec![0; self.slots.stride as usize];
            self.ring.memory().read(start, &mut bytes);
            for piece in self.layout.pieces(start, self.size) {
                let from = (piece.addr - start) as usize;
                bytes[from..from + piece.len as usize].fill(POISON);
            }
            bytes.iter().all(|&byte| byte == POISON)
        })
    }
}

/// Whose a chain in a transmit ring is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// It was made for one frame in this slot.
    Slot(u16),
    /// It was made for one frame, of memory that the caller looks after.
    Caller,
    /// It stays, and is sent again and again.
    Loaded,
}

/// A transmit queue: the guest sends what the device reads here.
#[derive(Debug)]
pub struct TxQueue {
    /// The ring, for raw writes.
    pub ring: Ring,
    slots: Slots,
    /// The slots' memory, to write headers without a look-up of their address.
    words: Cells<AtomicU64>,
    slot_size: u64,
    free: Vec<u16>,
    /// By head.
    owners: Vec<Owner>,
    /// Loaded chains that the device does not have, oldest first.
    loaded: VecDeque<u16>,
    /// Used chains of one burst.
    used: Vec<Used>,
    /// By head of a loaded chain: where its header is in `words`, and the header's first 8 bytes.
    headers: Vec<(usize, u64)>,
    /// Words 1 and 2 of the frames to send, in turn, and which is next: see `rotate_stations`.
    stations: (Vec<[u64; 2]>, usize),
    header_len: usize,
}

impl TxQueue {
    pub(crate) fn new(ring: Ring, slot_size: u64) -> TxQueue {
        let slots = Slots::new(ring.memory(), ring.size(), slot_size);
        let count = usize::from(ring.size());
        TxQueue {
            words: ring.memory().cells(slots.first, slots.bytes(ring.size()) / 8),
            slots,
            slot_size,
            free: (0..ring.size()).rev().collect(),
            owners: vec![Owner::Caller; count],
            loaded: VecDeque::with_capacity(count),
            used: Vec::with_capacity(count),
            headers: vec![(0, 0); count],
            stations: (Vec::new(), 0),
            header_len: HEADER_LEN,
            ring,
        }
    }

    pub(crate) fn set_format(&mut self, header_len: usize) {
        self.header_len = header_len;
    }

    /// Takes back what the device has used; tells how many chains. Panics if the device says that
    /// it wrote to a buffer that is only there to be read.
    pub fn reclaim(&mut self) -> usize {
        self.reclaim_up_to(usize::MAX)
    }

    fn reclaim_up_to(&mut self, max: usize) -> usize {
        let mut used = std::mem::take(&mut self.used);
        self.ring.pop_into(max, &mut used);
        let count = used.len();
        for chain in used.drain(..) {
            assert_eq!(chain.len, 0, "the device wrote to a transmit buffer");
            match self.owners[usize::from(chain.head)] {
                Owner::Loaded => {
                    // Written soon, and the device's core has read it.
                    self.words.prefetch_for_write(self.headers[usize::from(chain.head)].0);
                    self.loaded.push_back(chain.head);
                }
                Owner::Caller => self.ring.free(chain.head),
                Owner::Slot(slot) => {
                    self.ring.free(chain.head);
                    self.free.push(slot);
                }
            }
        }
        self.used = used;
        count
    }

    /// Posts a frame without publishing it. False when there is no room.
    pub fn post(&mut self, frame: &Frame, layout: &Layout) -> bool {
        let Some(&slot) = self.free.last() else {
            return false;
        };
        let total = self.header_len + frame.bytes.len();
        assert!(layout.footprint(total) <= self.slot_size, "a frame of {total} bytes: no slot");
        let pieces = layout.pieces(self.slots.addr(slot), total);
        let Some(head) = self.ring.build(&pieces, &[], layout.indirect) else {
            return false;
        };
        self.free.pop();
        self.write(frame, &pieces);
        self.owners[usize::from(head)] = Owner::Slot(slot);
        self.ring.post(head);
        true
    }

    /// Posts a frame in memory of the caller's choice, from `addr` on, and publishes it.
    pub fn post_at(&mut self, addr: u64, frame: &Frame, layout: &Layout) -> bool {
        let pieces = layout.pieces(addr, self.header_len + frame.bytes.len());
        self.write(frame, &pieces);
        self.post_pieces(&pieces, layout.indirect)
    }

    /// Posts a chain of these pieces with whatever bytes they hold, and publishes it.
    pub fn post_pieces(&mut self, pieces: &[Piece], indirect: bool) -> bool {
        let Some(head) = self.ring.build(pieces, &[], indirect) else {
            return false;
        };
        self.owners[usize::from(head)] = Owner::Caller;
        self.ring.post(head);
        self.ring.publish();
        true
    }

    fn write(&self, frame: &Frame, pieces: &[Piece]) {
        let memory: &Arc<Memory> = self.ring.memory();
        let (mut header, mut bytes) = (&frame.header[..self.header_len], frame.bytes.as_slice());
        for piece in pieces {
            let (first, rest) = header.split_at(header.len().min(piece.len as usize));
            memory.write(piece.addr, first);
            let (second, more) = bytes.split_at(piece.len as usize - first.len());
            memory.write(piece.addr + first.len() as u64, second);
            (header, bytes) = (rest, more);
        }
    }

    /// Prepares every slot for [`TxQueue::send_burst`], the frames taking turns. The queue sends
    /// nothing else from then on.
    pub fn load(&mut self, frames: &[Frame], layout: &Layout) -> io::Result<()> {
        self.load_up_to(usize::MAX, frames, layout)
    }

    /// The same with `count` slots, so that the frames take no more of the caches than wanted.
    /// What was loaded before is gone.
    pub fn load_up_to(
        &mut self,
        count: usize,
        frames: &[Frame],
        layout: &Layout,
    ) -> io::Result<()> {
        self.reclaim();
        if self.ring.in_flight() != 0 {
            return Err(io::Error::other("frames are loaded into an idle queue"));
        }
        for head in self.loaded.drain(..) {
            self.ring.free(head);
        }
        self.free = (0..self.ring.size()).rev().collect();
        for frame in frames.iter().cycle().take(count) {
            if !self.post(frame, layout) {
                break;
            }
        }
        // Only built so far: nothing was published, so the ring can still be taken back.
        for head in self.ring.unpost() {
            if let Owner::Slot(slot) = self.owners[usize::from(head)] {
                let at = slot as usize * self.slots.stride as usize / 8;
                self.headers[usize::from(head)] = (at, self.words.at(at).load(Ordering::Relaxed));
            }
            self.owners[usize::from(head)] = Owner::Loaded;
            self.loaded.push_back(head);
        }
        Ok(())
    }

    /// From now on every frame that [`TxQueue::send_burst`] sends has the next of these destination
    /// and source addresses, for ever in turn. For loaded frames whose header and addresses are in
    /// one piece.
    pub fn rotate_stations(&mut self, stations: &[[[u8; 6]; 2]]) {
        assert_eq!(self.header_len, HEADER_LEN, "addresses begin in the middle of a word");
        let words = |[destination, source]: &[[u8; 6]; 2]| {
            // The end of the header is that of a frame without offloads.
            let mut bytes = [0; 16];
            bytes[4..10].copy_from_slice(destination);
            bytes[10..].copy_from_slice(source);
            let word = u128::from_ne_bytes(bytes);
            [word as u64, (word >> 64) as u64]
        };
        self.stations = (stations.iter().map(words).collect(), 0);
    }

    /// Sends up to `count` of the loaded frames in one publication; tells how many. Each header is
    /// written anew, as drivers do, so that its cache line comes from this core. Allocates nothing.
    pub fn send_burst(&mut self, count: usize) -> usize {
        // No more than needed: the device is writing where used chains are told.
        if self.loaded.len() < count.max(BATCH) {
            self.reclaim_up_to(2 * BATCH);
        }
        let count = count.min(self.loaded.len());
        for head in self.loaded.drain(..count) {
            let (at, header) = self.headers[usize::from(head)];
            self.words.at(at).store(header, Ordering::Relaxed);
            if let Some(&[first, second]) = self.stations.0.get(self.stations.1) {
                self.words.at(at + 1).store(first, Ordering::Relaxed);
                self.words.at(at + 2).store(second, Ordering::Relaxed);
                let next = self.stations.1 + 1;
                self.stations.1 = if next < self.stations.0.len() { next } else { 0 };
            }
            self.ring.post(head);
        }
        self.ring.publish();
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::{Flow, mac};

    #[test]
    fn stations_take_turns_and_the_rest_of_a_frame_stays() {
        let memory = Memory::new(&[(0, 4 << 20)]).expect("memory");
        let mut queue = TxQueue::new(Ring::new(&memory, 4, 0).expect("a ring"), 256);
        let frame = Flow::v4(1, 2).udp(b"payload");
        queue.load_up_to(3, std::slice::from_ref(&frame), &Layout::whole()).expect("an idle queue");
        queue.rotate_stations(&[[mac(7), mac(8)], [mac(9), mac(10)]]);
        assert_eq!(queue.send_burst(3), 3);
        for (slot, to, from) in [(0, 7, 8), (1, 9, 10), (2, 7, 8)] {
            let mut sent = vec![0; HEADER_LEN + frame.bytes.len()];
            memory.read(queue.slots.addr(slot), &mut sent);
            let expected = [&frame.header[..], &mac(to), &mac(from), &frame.bytes[12..]].concat();
            assert_eq!(sent, expected, "slot {slot}");
        }
    }
}
