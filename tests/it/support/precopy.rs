//! What a VMM does with a guest's memory while it migrates: a copy of all of it, and again of the
//! pages that were marked since.

use std::ops::Range;
use std::sync::Arc;

use fakeguest::Guest;
use fakeguest::memory::{DirtyBits, Memory, Region};

/// A page of the dirty log, bytes.
pub const PAGE: u64 = 4096;

/// The destination's memory.
#[derive(Debug)]
pub struct Precopy {
    memory: Arc<Memory>,
    copies: Vec<(Region, Vec<u8>)>,
}

impl Precopy {
    /// Copies everything. Logging is on already, or what changes meanwhile is lost.
    pub fn begin(guest: &Guest) -> Precopy {
        let memory = Arc::clone(guest.memory());
        let copy = |region: &Region| (*region, memory.snapshot(region));
        let copies = memory.regions().iter().map(copy).collect();
        Precopy { memory, copies }
    }

    /// Copies the pages that this log has, and clears them there; tells how many.
    pub fn copy_marked(&mut self, log: &DirtyBits) -> usize {
        let pages = log.take();
        for page in &pages {
            let addr = page * PAGE;
            let (at, copy) = self.place(addr);
            let mut bytes = [0; PAGE as usize];
            // The page is read after its mark was cleared: what comes later is marked again.
            self.memory.read(addr, &mut bytes);
            self.copies[copy].1[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        pages.len()
    }

    /// Asserts that the destination has these bytes as they are at the source.
    #[track_caller]
    pub fn assert_arrived(&self, what: &str, range: Range<u64>) {
        let (at, copy) = self.place(range.start);
        let mut source = vec![0; (range.end - range.start) as usize];
        self.memory.read(range.start, &mut source);
        let copied = &self.copies[copy].1[at..at + source.len()];
        let wrong = source.iter().zip(copied).position(|(source, copied)| source != copied);
        let wrong = wrong.map(|offset| range.start + offset as u64);
        assert_eq!(wrong, None, "{what}: the page was written and not marked");
    }

    /// Asserts that all arrived which only the device writes: the receive buffers of pair 0, and
    /// the used rings if there are some. (The device writes to the descriptors of a packed ring, and
    /// so does the driver.)
    #[track_caller]
    pub fn assert_device_writes_arrived(&self, guest: &mut Guest, split: bool) {
        self.assert_arrived("receive buffers", guest.queue(0).rx.buffers());
        for ring in [0, 1].into_iter().filter(|_| split) {
            let (used, size) = (guest.ring(ring).addresses().used, guest.ring(ring).size());
            self.assert_arrived("a used ring", used..used + 6 + 8 * u64::from(size));
        }
    }

    /// Where an address is: its offset, and in which of the copies.
    fn place(&self, addr: u64) -> (usize, usize) {
        let within = |(region, _): &(Region, _)| addr.wrapping_sub(region.guest_addr) < region.size;
        let copy = self.copies.iter().position(within).expect("an address in a region");
        ((addr - self.copies[copy].0.guest_addr) as usize, copy)
    }
}
