//! One address range that a signal handler finds while other threads put ranges in and take them
//! out.
//!
//! A handler may neither lock nor allocate, so a slot is a few atomic words, and reading them is
//! optimistic: a range is there while its `start` isn't 0; `start` is written last and taken back
//! first, and looked at again behind the other words. The fences make that hold on every processor:
//! who reads a word of the next range sees that `start` has been taken back.

use super::sync::Ordering::{Acquire, Relaxed, Release};
use super::sync::{AtomicPtr, AtomicUsize, fence};

/// A range, and what belongs to it. Changed by one thread at a time.
#[derive(Debug)]
pub struct Slot<T> {
    pub start: AtomicUsize,
    pub end: AtomicUsize,
    /// Bytes of a page of the mapping.
    pub page: AtomicUsize,
    pub owner: AtomicPtr<T>,
}

/// A range that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<T> {
    pub end: usize,
    pub page: usize,
    pub owner: *mut T,
}

impl<T> Slot<T> {
    /// Puts the range `start..end` into an empty slot.
    pub fn put(&self, start: usize, found: Found<T>) {
        self.end.store(found.end, Relaxed);
        self.page.store(found.page, Relaxed);
        self.owner.store(found.owner, Relaxed);
        self.start.store(start, Release);
    }

    /// Takes the range out.
    pub fn clear(&self) {
        self.start.store(0, Relaxed);
        // Before any word of the next range.
        fence(Release);
    }

    /// The range, if `address` lies in it.
    pub fn find(&self, address: usize) -> Option<Found<T>> {
        let start = self.start.load(Acquire);
        let (end, page) = (self.end.load(Relaxed), self.page.load(Relaxed));
        let owner = self.owner.load(Relaxed);
        // Behind these words.
        fence(Acquire);
        let is_whole = start != 0 && self.start.load(Relaxed) == start;
        (is_whole && (start..end).contains(&address)).then_some(Found { end, page, owner })
    }
}
