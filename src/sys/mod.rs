//! System calls as safe types. Nothing here knows of frames, rings or ports.
//!
//! One of the three modules that may hold `unsafe` (with `mem` and `ring`): every block is one
//! system call or instruction whose arguments this module checked itself.

pub mod account;
pub mod allowance;
pub mod call;
pub mod channel;
pub mod clock;
pub mod counter;
pub mod fault;
pub mod limits;
mod netdev;
pub mod poller;
pub mod prefetch;
pub mod privilege;
pub mod sandbox;
pub mod signal;
mod slot;
pub mod socket;
pub mod stdio;
pub mod sync;
pub mod tap;
pub mod thread;
