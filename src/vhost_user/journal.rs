//! What a port's protocol side logs.

use std::fmt::Arguments;

/// Logs for one port.
#[derive(Debug)]
pub(super) struct Journal {
    port: String,
}

impl Journal {
    pub fn new(port: &str) -> Self {
        Self { port: port.to_owned() }
    }

    /// Logs something that went as it should.
    pub fn info(&self, text: Arguments<'_>) {
        log::info!(port = self.port.as_str(); "{text}");
    }

    /// Logs something that somebody should look after.
    pub fn warn(&self, text: Arguments<'_>) {
        log::warn!(port = self.port.as_str(); "{text}");
    }
}
