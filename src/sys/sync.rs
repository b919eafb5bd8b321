//! What threads share besides bytes: atomics and the lock, under one name.
//!
//! Modules whose order of accesses matters import these from here, so that `tests/loom` can put
//! loom's in their place and try all orders; see there.

pub use std::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

pub use parking_lot::Mutex;
