//! What the burst code needs of a ring, whichever its format is.
//!
//! Split and packed rings (virtio 1.2, sections 2.7 and 2.8) differ in where the driver says what
//! is available and in how the device answers; what a chain is, and what is done with it, is the
//! same. Bursts are written once over [`Format`], and are compiled once for each format: who holds
//! a ring of unknown format matches it once per burst (`vring::Live`).
//!
//! Both formats complete buffers in order, so a ring has one position. Chains that are taken but
//! not completed begin there, and are counted in *slots*: entries of the ring. A chain takes one
//! slot of a split ring's available ring, and as many of a packed ring as it has descriptors.

use std::marker::PhantomData;
use std::ptr::NonNull;

use crate::mem::{DirtyLog, RegionMap, Window};

/// The descriptor continues: in `next` (split), in the next slot (packed).
pub(super) const DESC_F_NEXT: u16 = 1;
/// The buffer is for the device to write.
pub(super) const DESC_F_WRITE: u16 = 2;
/// The buffer holds a table of descriptors.
pub(super) const DESC_F_INDIRECT: u16 = 4;
/// Bytes of a descriptor in both formats.
pub(super) const DESC_SIZE: usize = 16;

/// A descriptor, as it was read. Two words: fields that are stored one by one and moved as a whole
/// would stall at each move.
#[derive(Clone, Copy, Debug, Default)]
pub struct Desc {
    /// Guest physical address.
    pub addr: u64,
    /// The second half of a split ring's descriptor.
    rest: u64,
}

impl Desc {
    /// No descriptor: the flags are those of none that is valid.
    pub const NONE: Self = Self { addr: 0, rest: ((DESC_F_INDIRECT | DESC_F_NEXT) as u64) << 32 };

    /// A descriptor of which `rest` holds length, flags and next as in a split ring.
    #[inline]
    pub fn new(addr: u64, rest: u64) -> Self {
        Self { addr, rest }
    }

    /// Length, bytes.
    #[inline]
    pub fn len(self) -> u32 {
        self.rest as u32
    }

    /// DESC_F_*.
    #[inline]
    pub fn flags(self) -> u16 {
        (self.rest >> 32) as u16
    }

    /// Where the chain's next descriptor is, with DESC_F_NEXT: an index of the table or ring.
    #[inline]
    pub fn next(self) -> u16 {
        (self.rest >> 48) as u16
    }

    /// Whether it is a chain of one buffer for the device to write (`write` is [`DESC_F_WRITE`])
    /// or to read (0): the common case.
    #[inline]
    pub fn is_whole_chain(self, write: u16) -> bool {
        self.flags() & (DESC_F_NEXT | DESC_F_INDIRECT | DESC_F_WRITE) == write
    }
}

/// Reads the two words of a descriptor, once.
///
/// # Safety
///
/// `at` is readable for 16 bytes and 8-byte aligned.
#[inline]
pub(super) unsafe fn read_words(at: *const u8) -> (u64, u64) {
    // SAFETY: the caller's promise.
    unsafe {
        let words = at.cast::<u64>();
        (u64::from_le(words.read_volatile()), u64::from_le(words.add(1).read_volatile()))
    }
}

/// The table of an indirect descriptor (sections 2.7.5.3 and 2.8.8), in guest memory.
pub(super) struct Table<'m> {
    base: NonNull<u8>,
    count: usize,
    memory: PhantomData<&'m RegionMap>,
}

impl<'m> Table<'m> {
    /// Finds the table that `desc` points to: one descriptor or more, in one piece of memory.
    #[inline]
    pub fn locate(mem: &'m RegionMap, desc: Desc) -> Result<Self, BadChain> {
        let count = desc.len() as usize / DESC_SIZE;
        if count == 0 || !(desc.len() as usize).is_multiple_of(DESC_SIZE) {
            return Err(BadChain);
        }
        let (base, piece) =
            mem.translate(desc.addr, desc.len(), &mut Window::default()).ok_or(BadChain)?;
        if piece != desc.len() || !(base.as_ptr() as usize).is_multiple_of(8) {
            return Err(BadChain);
        }
        Ok(Self { base, count, memory: PhantomData })
    }

    /// How many descriptors it has.
    #[inline]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Reads the two words of descriptor `index`.
    #[inline]
    pub fn words(&self, index: usize) -> Result<(u64, u64), BadChain> {
        if index >= self.count {
            return Err(BadChain);
        }
        // SAFETY: `locate` found `count` descriptors of memory that is borrowed for 'm, and checked
        // their alignment.
        Ok(unsafe { read_words(self.base.as_ptr().add(DESC_SIZE * index)) })
    }
}

/// What completes a chain.
///
/// One word, as [`Desc`] is two.
#[derive(Clone, Copy, Debug)]
pub struct Head(u32);

impl Head {
    /// No chain.
    pub const NONE: Self = Self(0);

    /// A chain that takes `slots` entries of the ring.
    #[inline]
    pub fn new(id: u16, slots: u16) -> Self {
        Self(u32::from(id) | u32::from(slots) << 16)
    }

    /// Split: index of the first descriptor, which may be out of range. Packed: the buffer id.
    #[inline]
    pub fn id(self) -> u16 {
        self.0 as u16
    }

    /// Entries of the ring that it takes.
    #[inline]
    pub fn slots(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

/// A chain that breaks the rules of sections 2.7.5 and 2.8.6 to 2.8.8, or holds memory that the
/// guest doesn't have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadChain;

/// The ring says what can't be, so its content can't be trusted: an available index that jumped by
/// more than the ring's size (split), a chain that is longer than the ring (packed).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadRing;

/// A running ring of one format. Each word of guest memory is read once for each use, and nothing
/// that is read is trusted.
pub trait Format {
    /// Whether the driver has made a buffer available that isn't completed.
    ///
    /// # Errors
    ///
    /// `BadRing`.
    fn has_available(&self) -> Result<bool, BadRing>;

    /// How many entries are available, of which `known` were taken: as far as one read of memory that
    /// was just read tells. The rest of a packed ring's would have to be searched for.
    fn fill(&self, known: u16) -> u16;

    /// Looks at the available chains behind the first `ahead` slots: fills `heads` and `first`, as
    /// far as there are chains, and returns how many. `Desc::NONE`: it is out of range.
    ///
    /// # Errors
    ///
    /// `BadRing`.
    fn take(&self, ahead: u16, heads: &mut [Head], first: &mut [Desc]) -> Result<usize, BadRing>;

    /// Walks a chain that was just taken and gives each buffer to `buffer`, which says false to a
    /// buffer that it can't take. All must be for the device to write, or all to read: `write` is
    /// `DESC_F_WRITE` or 0.
    ///
    /// # Errors
    ///
    /// `BadChain`; some buffers may have been given before.
    fn walk(
        &self,
        mem: &RegionMap,
        head: Head,
        first: Desc,
        write: u16,
        buffer: impl FnMut(Desc) -> bool,
    ) -> Result<(), BadChain>;

    /// Completes the chain at the position, of which the device wrote `written` bytes, without
    /// showing it to the driver, and advances.
    fn complete(&mut self, head: Head, written: u32);

    /// Shows all completed buffers to the driver at once.
    fn publish(&mut self, log: Option<&DirtyLog>);

    /// How many published slots the driver may still want to be called for.
    fn undecided(&self) -> u16;

    /// Whether the driver wants to be called for what was published since the last call of this
    /// function. The caller has executed a full fence since `Self::publish`.
    fn needs_call(&mut self) -> bool;

    /// Whether the driver was asked to kick; None until one of both was said: the guest's memory
    /// may still hold what an earlier device wanted.
    fn kicks_wanted(&self) -> Option<bool>;

    /// Asks the driver not to kick: for a ring that is polled or needs no attention.
    fn suppress_kicks(&mut self, log: Option<&DirtyLog>);

    /// Asks the driver to kick for the next buffer. The caller looks at the ring once more after
    /// it: a buffer that came before this call brings no kick.
    fn request_kicks(&mut self, log: Option<&DirtyLog>);

    /// The position as GET_VRING_BASE tells it (vhost-user specification, "Vring base").
    fn base(&self) -> u32;

    /// Whether the ring is where a new one begins.
    fn is_at_start(&self) -> bool;
}
