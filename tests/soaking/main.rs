//! A soak: guests by the dozen attach, send, leave, die and misbehave at random while undisturbed
//! ones exchange numbered frames; the switch itself is ended and killed, and started again. At the
//! end of each epoch every frame is accounted for, and the switch holds what it held before.
//!
//! `tests/soak --secs 7200 --seed 42` runs it. All that happens comes from the seed: the same seed
//! gives each port the same acts in the same order. How they fall together with each other and with
//! the switch's threads is the scheduler's business, and differs from run to run.
//!
//! | module | job |
//! |---|---|
//! | `dice` | chance from the seed |
//! | `words` | frames that say what must be in them |
//! | `guests` | one fake guest: how it is made, how its rings are read |
//! | `acts` | what guests and frontends do; `wild`: one that writes over its own rings |
//! | `actor` | one port: guests and strangers, one after the other |
//! | `stream` | two undisturbed guests |
//! | `machine` | real guests in QEMU |
//! | `books` | what was sent and received against the switch's counters |
//! | `scene` | all of it on one switch; epochs, restarts, what must hold between them |
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod actor;
mod acts;
mod books;
mod dice;
mod guests;
mod machine;
mod scene;
mod stream;
#[allow(dead_code, unused_imports, unused_macros, reason = "only a part of it is of use here")]
#[path = "../it/support/mod.rs"]
mod support;
mod wild;
mod words;

use clap::Parser;

/// Soaks a switch for a time.
#[derive(Clone, Debug, Parser)]
#[command(name = "tests/soak", disable_version_flag = true)]
pub struct Options {
    /// How long, at least: it ends with an epoch
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    secs: u64,
    /// How many epochs, at least
    #[arg(long, default_value_t = 0)]
    epochs: u64,
    /// What all chance comes from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Ports with fake guests that come and go
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u8).range(2..=128))]
    guests: u8,
    /// Real guests in QEMU
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=8))]
    machines: u8,
    /// Say of each act what it is
    #[arg(long)]
    show: bool,
    /// Acts of each port in an epoch
    #[arg(long, default_value_t = 40)]
    acts: u64,
}

fn main() {
    // `cargo test` runs every test there is; this one takes its time and is asked for.
    if std::env::var_os("RINGSWITCH_SOAK").is_none() {
        return println!("not asked for: tests/soak runs it");
    }
    let options = Options::parse();
    println!("soak: {options:?}");
    scene::play(&options);
    println!("soak: ok");
}
