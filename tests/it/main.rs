//! Integration tests: the real binary with guests that are real, borrowed or fake.
//!
//! One binary, so that the crates are linked once. They need root (namespaces, TAP devices) and
//! the programs that `tests/run` installs; a test that misses something fails and says what.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod api;
mod books;
mod capture;
mod changes;
mod cli;
mod cloud_hypervisor;
mod dashboard;
mod dirty_log;
mod events;
mod extcap;
mod guests;
mod hostile;
mod house;
mod layouts;
mod leaks;
mod lifecycle;
mod logs;
mod migration;
mod offload;
mod queues;
mod restarts;
mod rewriting;
mod rings;
mod sandbox;
mod steering;
#[allow(dead_code, reason = "each test uses a part of it")]
mod support;
mod switching;
mod tap;
mod testpmd;
mod top;
mod trace;
mod upgrade;
mod watchdog;
