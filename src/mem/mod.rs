//! Guest memory: regions, translation, segments, the copy, the dirty log.
//!
//! A frontend shares its guest's memory as files. [`RegionMap`] maps them and turns guest
//! addresses into host pointers; [`Segments`] is a list of such ranges that can't outlive the
//! map. All access goes through raw pointers: guest memory changes at any time, so it is never
//! behind a Rust reference, and bytes that decide something are copied first and judged on the
//! copy.
//!
//! Nothing here knows about rings or frames.

mod copy;
mod dirty;
mod region;
mod segment;

pub use copy::{copy, copy_short};
pub use dirty::DirtyLog;
pub(crate) use region::Window;
pub use region::{MAX_REGIONS, MapError, RegionMap, RegionSpec};
pub use segment::{MAX_FRAME_SEGMENTS, Segment, SegmentPool, Segments, Tail, write_frame};
