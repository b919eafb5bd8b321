//! Integration tests: the real binary with guests that are real, borrowed or fake.
//!
//! One binary, so that the crates are linked once. They need root (namespaces, TAP devices) and
//! the programs that `tests/run` installs; a test that misses something fails and says what.
#![forbid(unsafe_code)]

#[expect(dead_code, reason = "the tests that use it come with the switch")]
mod support;
