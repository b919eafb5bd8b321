//! A guest without a machine: a vhost-user frontend with real rings in a memfd.
//!
//! Tests and benches attach it to a switch in the place of a virtual machine. It does what a real
//! guest can do, and what a real guest never would: chosen descriptor layouts, missing features,
//! malformed messages, hostile ring contents, sudden death. It shares no code with the switch, so
//! that one mistake can't hide on both sides.
//!
//! | module | job |
//! |---|---|
//! | [`features`] | the bits of virtio 1.2 and vhost-user, and the sets that known guests accept |
//! | [`protocol`] | vhost-user messages over a socket, well formed or raw |
//! | [`memory`] | guest-physical memory in a memfd: regions, allocation, access |
//! | [`layout`] | how the bytes of a frame are cut into descriptors |
//! | [`split`], [`packed`] | the driver's side of a virtqueue, split or packed |
//! | [`ring`] | one of both, with its eventfds |
//! | [`setup`] | the order of messages in which a known VMM brings a device up, and its settings |
//! | [`cloud_hypervisor`] | the same for Cloud Hypervisor, message by message |
//! | [`guest`] | a guest: sends and receives frames over its queues |
//! | [`migrate`] | dirty logging as a migrating VMM does it |
//! | [`frames`] | frames to send, checks of frames received |
//! | [`host`] | sockets in network namespaces, for what is on the other side of a TAP |
//!
//! A fault of the *device* (a used entry for a buffer it does not own, a ring index that jumps) is
//! a panic: in a test, that is the verdict. A fault of the *connection* is an `io::Error`.
//!
//! ```no_run
//! use fakeguest::{Guest, Layout, frames::Flow};
//! use std::time::Duration;
//!
//! let mut a = Guest::builder("/run/vm1.sock").attach()?;
//! let mut b = Guest::builder("/run/vm2.sock").attach()?;
//! let frame = Flow::v4(1, 2).udp(b"hello");
//! a.send(0, &frame, &Layout::whole());
//! let got = b.recv(0, Duration::from_secs(1)).expect("one frame");
//! assert_eq!(got.bytes, frame.bytes);
//! # Ok::<(), std::io::Error>(())
//! ```

pub mod cloud_hypervisor;
pub mod features;
pub mod frames;
pub mod guest;
pub mod host;
pub mod layout;
pub mod memory;
pub mod migrate;
pub mod packed;
pub mod protocol;
pub mod ring;
pub mod setup;
pub mod split;

mod queue;
mod wait;

pub use frames::Frame;
pub use guest::{Guest, Received};
pub use layout::Layout;
pub use memory::Memory;
pub use setup::{Builder, Role, SetupOrder};
