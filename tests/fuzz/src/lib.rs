//! What hostile guests, frontends and senders may hand the switch.
//!
//! Each target turns any bytes into the steps of somebody hostile, does them to the switch's own
//! modules, and compares what comes of it with a reference that was written from the
//! specifications. A target panics when the switch is wrong; that is a finding.
//!
//! `targets/` are the programs that libFuzzer drives; `run` builds and runs them; `corpus/` is what
//! they found worth keeping, and every input that ever failed; `tests/corpus.rs` replays it.

pub mod frame;
pub mod input;
pub mod memory;
pub mod message;
pub mod model;
pub mod offload;
pub mod packet;
pub mod rings;

/// A target: its name and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 5] = [
    ("message", message::run),
    ("split", rings::run_split),
    ("packed", rings::run_packed),
    ("frame", frame::run),
    ("offload", offload::run),
];

/// Runs one target on an input.
///
/// # Panics
///
/// When the switch is wrong, and when there is no such target.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(own, _)| *own == name).expect("a target's name");
    target(data);
}
