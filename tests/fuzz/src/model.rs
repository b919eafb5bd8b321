//! A virtqueue as virtio 1.2, sections 2.7 and 2.8, has it, read from an image of memory: plainly,
//! one chain after the other, and with nothing of the switch's own code in it.
//!
//! What the specification leaves open and the switch has chosen stands in the constants.

use crate::memory::{Image, piece};

/// The chain goes on.
pub const NEXT: u16 = 1;
/// The buffer is for the device to write.
pub const WRITE: u16 = 2;
/// The buffer holds descriptors.
pub const INDIRECT: u16 = 4;
/// In a packed ring's descriptor: available, or used, in this lap.
pub const AVAIL: u16 = 1 << 7;
/// See [`AVAIL`].
pub const USED: u16 = 1 << 15;

/// What the device writes where an event's position would be, if it asks for none.
const SIGNATURE: [u8; 2] = [0x57, 0x52];
/// The longest chain.
const MAX_CHAIN: usize = 1024;
/// The most segments of one frame.
const MAX_SEGMENTS: usize = 1000;
/// The most segments of one burst.
const BURST_SEGMENTS: usize = 4096;
/// A burst ends behind so many bytes.
const BURST_BYTES: u64 = 256 * 1024;
/// What a descriptor counts of these, besides its length.
const DESC_BYTES: u64 = 64;
/// The lengths that a frame may have.
const FRAME: std::ops::RangeInclusive<u64> = 14..=65_557;
/// The most buffers of one frame.
const MAX_BUFFERS: usize = 256;
/// Those of a frame's buffers that may be as small as they like, and what each other one must hold.
const SMALL_BUFFERS: usize = 4;
const BUFFER_BYTES: usize = 256;

/// What the ring says can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadRing;

/// Where a ring lies, and what was negotiated.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Packed, not split.
    pub packed: bool,
    /// Entries.
    pub size: u16,
    /// Guest address of the descriptors.
    pub desc: u64,
    /// Guest address of the available ring, or of the driver's event suppression.
    pub avail: u64,
    /// Guest address of the used ring, or of the device's event suppression.
    pub used: u64,
    /// EVENT_IDX.
    pub event_idx: bool,
    /// INDIRECT_DESC.
    pub indirect: bool,
    /// Bytes of a virtio-net header.
    pub header: usize,
    /// MRG_RXBUF.
    pub mergeable: bool,
}

impl Layout {
    /// Bytes of the three areas.
    pub fn lengths(&self) -> [u64; 3] {
        let size = u64::from(self.size);
        if self.packed { [16 * size, 4, 4] } else { [16 * size, 6 + 2 * size, 6 + 8 * size] }
    }
}

/// A chain of descriptors.
#[derive(Clone, Debug)]
pub struct Chain {
    /// What names it when it is completed.
    pub id: u16,
    /// Entries of the ring that it takes.
    pub slots: u16,
    /// Its buffers, as far as it is well-formed.
    pub buffers: Vec<(u64, u32)>,
    /// Whether all of it is.
    pub whole: bool,
}

impl Chain {
    /// Where its bytes are, region by region; None for one that is bad.
    pub fn pieces(&self) -> Option<Vec<(u64, u32)>> {
        if !self.whole {
            return None;
        }
        let mut out = Vec::new();
        for (addr, len) in &self.buffers {
            if !push(&mut out, *addr, *len, usize::MAX) {
                return None;
            }
        }
        Some(out)
    }
}

/// Lists the parts of a range that lie in different regions, up to `limit` in all.
fn push(out: &mut Vec<(u64, u32)>, mut addr: u64, mut len: u32, limit: usize) -> bool {
    while len > 0 {
        let Some(part) = piece(addr, len) else { return false };
        if out.len() >= limit {
            return false;
        }
        out.push((addr, part));
        len -= part;
        match addr.checked_add(u64::from(part)) {
            Some(next) => addr = next,
            None => return len == 0,
        }
    }
    true
}

/// What a burst must be.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Burst {
    /// Virtio-net header and frame of the good ones.
    pub frames: Vec<(Vec<u8>, Vec<u8>)>,
    /// Buffers that were taken.
    pub taken: u16,
    /// Of these: chains that break the rules.
    pub bad_chains: u16,
    /// Of these: frames of impossible length.
    pub bad_lengths: u16,
}

/// The device's side of a ring.
#[derive(Clone, Debug)]
pub struct Model {
    /// Where it lies.
    pub layout: Layout,
    /// Index of the next buffer (split), or its slot.
    pub next: u16,
    /// The wrap counter.
    pub wrap: bool,
    /// Slots that were completed and aren't published.
    unpublished: Vec<(u16, [u8; 8])>,
    /// Slots that were published since it was last decided about a call; how many, and the last.
    pub undecided: u32,
    /// What the driver was asked for.
    pub kicks: Option<bool>,
}

impl Model {
    /// A ring that begins at a position: `next`, and for packed rings the wrap counter.
    pub fn new(layout: Layout, next: u16, wrap: bool) -> Self {
        Self { layout, next, wrap, unpublished: Vec::new(), undecided: 0, kicks: None }
    }

    /// The position as GET_VRING_BASE tells it.
    pub fn base(&self) -> u32 {
        if !self.layout.packed {
            return self.next.into();
        }
        let half = u32::from(self.next) | u32::from(self.wrap) << 15;
        half << 16 | half
    }

    /// The position `slots` further.
    fn plus(&self, slots: u16) -> (u16, bool) {
        if !self.layout.packed {
            return (self.next.wrapping_add(slots), self.wrap);
        }
        let at = u32::from(self.next) + u32::from(slots);
        let size = u32::from(self.layout.size);
        ((at % size) as u16, self.wrap ^ (at / size % 2 == 1))
    }

    /// An index, or a slot with its wrap counter, close to the position: an event to wait for.
    pub fn near(&self, by: i8) -> u16 {
        if !self.layout.packed {
            return self.next.wrapping_add_signed(by.into());
        }
        let size = i32::from(self.layout.size);
        let at = i32::from(self.next) + i32::from(by);
        let wrap = self.wrap ^ (at.div_euclid(size) % 2 != 0);
        at.rem_euclid(size) as u16 | u16::from(wrap) << 15
    }

    /// Address, length, flags, and next (split) or buffer id (packed).
    fn desc(&self, image: &Image, at: u64) -> (u64, u32, u16, u16) {
        let halves = (image.u16(at + 12), image.u16(at + 14));
        let (flags, next) = if self.layout.packed { (halves.1, halves.0) } else { halves };
        (image.u64(at), image.u32(at + 8), flags, next)
    }

    fn slot(&self, index: u16) -> u64 {
        self.layout.desc + 16 * u64::from(index)
    }

    /// The next chains behind `taken` slots, at most `most`. `write`: they are to be written.
    ///
    /// # Errors
    ///
    /// [`BadRing`].
    pub fn chains(
        &self,
        image: &Image,
        taken: u16,
        most: usize,
        write: bool,
    ) -> Result<Vec<Chain>, BadRing> {
        let mut out = Vec::new();
        if self.layout.packed {
            let mut ahead = taken;
            while out.len() < most && ahead < self.layout.size {
                match self.packed_chain(image, ahead, write) {
                    Ok(Some(chain)) => {
                        ahead += chain.slots;
                        out.push(chain);
                    }
                    Ok(None) => break,
                    Err(BadRing) if out.is_empty() => return Err(BadRing),
                    Err(BadRing) => break,
                }
            }
            return Ok(out);
        }
        let pending = image.u16(self.layout.avail + 2).wrapping_sub(self.next);
        if pending > self.layout.size {
            return Err(BadRing);
        }
        for ahead in (taken..pending).take(most) {
            let entry = u64::from(self.next.wrapping_add(ahead) % self.layout.size);
            let id = image.u16(self.layout.avail + 4 + 2 * entry);
            let mut chain = Chain { id, slots: 1, buffers: Vec::new(), whole: false };
            self.walk_split(image, &mut chain, write);
            out.push(chain);
        }
        Ok(out)
    }

    fn walk_split(&self, image: &Image, chain: &mut Chain, write: bool) {
        let mut index = chain.id;
        for _ in 0..usize::from(self.layout.size).min(MAX_CHAIN) {
            if index >= self.layout.size {
                return;
            }
            let (addr, len, flags, next) = self.desc(image, self.slot(index));
            if flags & INDIRECT != 0 {
                if self.layout.indirect && flags & NEXT == 0 {
                    self.walk_table(image, chain, addr, len, write);
                }
                return;
            }
            if (flags & WRITE != 0) != write {
                return;
            }
            chain.buffers.push((addr, len));
            if flags & NEXT == 0 {
                chain.whole = true;
                return;
            }
            index = next;
        }
    }

    /// The table of an indirect descriptor: linked (split), or all of it (packed).
    fn walk_table(&self, image: &Image, chain: &mut Chain, addr: u64, len: u32, write: bool) {
        let count = len as usize / 16;
        let readable = image.read(addr, len as usize).is_some();
        if count == 0 || !len.is_multiple_of(16) || !readable || !addr.is_multiple_of(8) {
            return;
        }
        let entry = |index: usize| self.desc(image, addr + 16 * index as u64);
        if self.layout.packed {
            for index in (0..count).take_while(|_| count <= MAX_CHAIN) {
                let (addr, len, flags, _) = entry(index);
                // A buffer to read may say that it is to be written: DPDK's driver does.
                if write && flags & WRITE == 0 {
                    return;
                }
                chain.buffers.push((addr, len));
            }
            chain.whole = count <= MAX_CHAIN;
            return;
        }
        let mut index = 0;
        for _ in 0..count.min(MAX_CHAIN) {
            if index >= count {
                return;
            }
            let (addr, len, flags, next) = entry(index);
            if flags & INDIRECT != 0 || (flags & WRITE != 0) != write {
                return;
            }
            chain.buffers.push((addr, len));
            if flags & NEXT == 0 {
                chain.whole = true;
                return;
            }
            index = next.into();
        }
    }

    fn packed_chain(
        &self,
        image: &Image,
        ahead: u16,
        write: bool,
    ) -> Result<Option<Chain>, BadRing> {
        let at = |slots: u16| self.desc(image, self.slot(self.plus(slots).0));
        let wrap = self.plus(ahead).1;
        let (_, _, flags, _) = at(ahead);
        if (flags & AVAIL != 0) != wrap || (flags & USED != 0) == wrap {
            return Ok(None);
        }
        let rest = self.layout.size - ahead;
        let end = (0..rest).find(|offset| at(ahead + offset).2 & NEXT == 0);
        let slots = end.ok_or(BadRing)? + 1;
        let id = at(ahead + slots - 1).3;
        let mut chain = Chain { id, slots, buffers: Vec::new(), whole: false };
        for offset in 0..slots {
            let (addr, len, flags, _) = at(ahead + offset);
            if flags & INDIRECT != 0 {
                if self.layout.indirect && offset + 1 == slots {
                    self.walk_table(image, &mut chain, addr, len, write);
                }
                return Ok(Some(chain));
            }
            if (flags & WRITE != 0) != write {
                return Ok(Some(chain));
            }
            chain.buffers.push((addr, len));
        }
        chain.whole = true;
        Ok(Some(chain))
    }

    /// Takes a burst of frames out of a transmit ring, and completes its buffers.
    ///
    /// # Errors
    ///
    /// [`BadRing`]: the ring is to stop.
    pub fn receive(&mut self, image: &mut Image, most: usize) -> Result<Burst, BadRing> {
        let chains = self.chains(image, 0, most.min(64), false)?;
        let mut burst = Burst::default();
        let (mut cost, mut segments) = (0, Vec::new());
        let mut done = Vec::new();
        for chain in chains {
            if cost >= BURST_BYTES || segments.len() + MAX_SEGMENTS > BURST_SEGMENTS {
                break;
            }
            burst.taken += 1;
            done.push((chain.id, chain.slots));
            let begin = segments.len();
            let mut good = chain.whole;
            for (addr, len) in &chain.buffers {
                cost += DESC_BYTES + u64::from(*len);
                let fits = segments.len() - begin < MAX_SEGMENTS;
                if !fits || !push(&mut segments, *addr, *len, BURST_SEGMENTS) {
                    good = false;
                    break;
                }
            }
            if !good {
                burst.bad_chains += 1;
                segments.truncate(begin);
                continue;
            }
            let mut bytes: Vec<u8> = Vec::new();
            for (addr, len) in &segments[begin..] {
                bytes.extend(image.read(*addr, *len as usize).expect("a piece"));
            }
            match bytes.len().checked_sub(self.layout.header) {
                Some(len) if FRAME.contains(&(len as u64)) => {
                    let frame = bytes.split_off(self.layout.header);
                    bytes.resize(12, 0);
                    burst.frames.push((bytes, frame));
                }
                _ => burst.bad_lengths += 1,
            }
        }
        for (id, slots) in done {
            self.complete(image, id, slots, 0);
        }
        Ok(burst)
    }

    /// Writes a used entry.
    pub fn complete(&mut self, image: &mut Image, id: u16, slots: u16, written: u32) {
        if self.layout.packed {
            let wrap = if self.wrap { AVAIL | USED } else { 0 };
            let flags = wrap | if written > 0 { WRITE } else { 0 };
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&written.to_le_bytes());
            bytes[4..6].copy_from_slice(&id.to_le_bytes());
            bytes[6..].copy_from_slice(&flags.to_le_bytes());
            self.unpublished.push((self.next, bytes));
            // The slots that the driver skips are marked, at once.
            for ahead in 1..slots {
                let (index, wrap) = self.plus(ahead);
                let flags = if wrap { AVAIL | USED } else { 0 };
                let halves = [id.to_le_bytes(), flags.to_le_bytes()].concat();
                image.write(self.slot(index) + 8, &u32::MAX.to_le_bytes());
                image.write(self.slot(index) + 12, &halves);
            }
        } else {
            let entry = u64::from(self.next % self.layout.size);
            image.write(self.layout.used + 4 + 8 * entry, &u32::from(id).to_le_bytes());
            image.write(self.layout.used + 8 + 8 * entry, &written.to_le_bytes());
        }
        self.undecided += u32::from(slots);
        (self.next, self.wrap) = self.plus(slots);
    }

    /// Shows what was completed.
    pub fn publish(&mut self, image: &mut Image) {
        for (slot, bytes) in std::mem::take(&mut self.unpublished) {
            image.write(self.slot(slot) + 8, &bytes);
        }
        if !self.layout.packed && self.undecided > 0 {
            image.write(self.layout.used + 2, &self.next.to_le_bytes());
        }
    }

    /// Whether the driver wants a call for what was published (2.7.10, 2.8.10). `got` is what it gets,
    /// which is right in any case if it asks for one at a slot that there isn't.
    pub fn wants_call(&mut self, image: &Image, got: bool) -> bool {
        let slots = std::mem::take(&mut self.undecided);
        if slots == 0 {
            return false;
        }
        let Layout { size, avail, event_idx, .. } = self.layout;
        if !self.layout.packed {
            if !event_idx {
                return image.u16(avail) & 1 == 0;
            }
            let event = image.u16(avail + 4 + 2 * u64::from(size));
            let used = (1..=slots.min(1 << 16)).map(|back| self.next.wrapping_sub(back as u16));
            return used.into_iter().any(|index| index == event);
        }
        let (event, flags) = (image.u16(avail), image.u16(avail + 2) & 3);
        match flags {
            1 => false,
            2 if event_idx && event & 0x7fff >= size => got,
            2 if event_idx => {
                let (mut at, mut wrap) = (self.next, self.wrap);
                let mut passed = slots >= u32::from(size);
                for _ in 0..slots.min(size.into()) {
                    if at == 0 {
                        (at, wrap) = (size, !wrap);
                    }
                    at -= 1;
                    passed |= event == at | u16::from(wrap) << 15;
                }
                passed
            }
            _ => true,
        }
    }

    /// An orderly stop takes the device's signature away.
    pub fn stop(&self, image: &mut Image) {
        let used = self.layout.used;
        let flags = image.u16(used + 2) & 3;
        if self.layout.packed && flags != 2 && image.u16(used) == u16::from_le_bytes(SIGNATURE) {
            image.write(used, &[0, 0, flags as u8, 0]);
        }
    }

    /// Asks for kicks, or not to have any. Whether the device must look at the ring again.
    pub fn want_kicks(&mut self, image: &mut Image, wanted: bool) -> bool {
        let Layout { packed, size, used, event_idx, .. } = self.layout;
        if wanted || self.kicks != Some(false) {
            let position = self.next | if packed { u16::from(self.wrap) << 15 } else { 0 };
            match (packed, wanted) {
                (true, true) if event_idx => {
                    image.write(used, &position.to_le_bytes());
                    image.write(used + 2, &2u16.to_le_bytes());
                }
                (true, _) => image.write(used, &[SIGNATURE[0], SIGNATURE[1], u8::from(!wanted), 0]),
                (false, true) if event_idx => {
                    image.write(used + 4 + 8 * u64::from(size), &position.to_le_bytes());
                }
                (false, false) if event_idx => {}
                (false, _) => image.write(used, &u16::from(!wanted).to_le_bytes()),
            }
            self.kicks = Some(wanted);
        }
        wanted && self.chains(image, 0, 1, false).map_or(true, |chains| !chains.is_empty())
    }

    /// Puts a frame, with the header `vnet` before it, into the next of `buffers`, and completes
    /// those that it takes and the bad ones before. None, with the reason, when it doesn't fit.
    ///
    /// # Errors
    ///
    /// `true` when the posted buffers are too small, `false` when there are too few.
    pub fn deliver(
        &mut self,
        image: &mut Image,
        buffers: &mut std::collections::VecDeque<Chain>,
        vnet: &[u8],
        frame: &[u8],
    ) -> Result<(), bool> {
        let need = self.layout.header + frame.len();
        let room = |chain: &Chain| -> usize {
            chain.pieces().map_or(0, |pieces| pieces.iter().map(|(_, len)| *len as usize).sum())
        };
        while let Some(first) = buffers.front().filter(|first| room(first) == 0).cloned() {
            buffers.pop_front();
            self.complete(image, first.id, first.slots, 0);
        }
        let (mut count, mut space) = (0, 0);
        while space < need {
            let most = MAX_BUFFERS.min(SMALL_BUFFERS + need / BUFFER_BYTES);
            if count == most || count == 1 && !self.layout.mergeable {
                return Err(true);
            }
            space += room(buffers.get(count).ok_or(false)?);
            count += 1;
        }
        let mut bytes = vnet[..self.layout.header].to_vec();
        if let Some(field) = bytes.get_mut(10..12) {
            field.copy_from_slice(&(count as u16).to_le_bytes());
        }
        bytes.extend_from_slice(frame);
        let mut rest = &bytes[..];
        for chain in buffers.drain(..count) {
            let before = rest.len();
            for (addr, len) in chain.pieces().unwrap_or_default() {
                let (now, later) = rest.split_at(rest.len().min(len as usize));
                image.write(addr, now);
                rest = later;
            }
            self.complete(image, chain.id, chain.slots, (before - rest.len()) as u32);
        }
        Ok(())
    }
}
