//! Builds the switch from its settings, runs it, and ends it.

mod open;
mod statistics;
mod switch;

use thiserror::Error;

pub use open::Opened;
pub use statistics::Statistics;
pub use switch::Switch;

use crate::config::Settings;
use crate::sys::signal::{Event, Signals};
use crate::sys::tap::TapError;
use crate::vhost_user::EndpointError;

/// Why the switch can't run.
#[derive(Debug, Error)]
pub enum Error {
    /// A system call that needs nothing but resources failed.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A vhost-user port can't be opened.
    #[error("port {port}")]
    Endpoint {
        /// Name of the port.
        port: String,
        /// Why.
        source: EndpointError,
    },
    /// A TAP port can't be opened.
    #[error("port {port}")]
    Tap {
        /// Name of the port.
        port: String,
        /// Why.
        source: TapError,
    },
}

/// Runs a switch until SIGTERM or SIGINT. SIGUSR1 writes the statistics to the log.
///
/// # Errors
///
/// [`enum@Error`] when it can't start; nothing is left behind then.
pub fn run(settings: Settings) -> Result<(), Error> {
    // Before threads are started: they inherit the handling.
    let mut signals = Signals::install()
        .map_err(|source| Error::System { what: "install signal handlers", source })?;
    let switch = Switch::start(&settings, Opened::new(&settings)?)?;
    log::info!("ready: {} ports, {} workers", settings.ports.len(), settings.workers.count);
    while signals.wait() == Event::DumpStatistics {
        switch.statistics().log();
    }
    switch.statistics().log();
    switch.stop();
    log::info!("ended");
    Ok(())
}
