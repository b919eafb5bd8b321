//! Stages: functions over a burst that decide about its frames, without I/O.
//!
//! A stage sees each frame's head, length and virtio-net header, may edit them, and sets the
//! verdict. A frame whose verdict is a drop is passed over by the stages behind.

mod forward;
mod sanitise;

pub use forward::{Outlook, foresee, forward};
pub use sanitise::sanitise;
