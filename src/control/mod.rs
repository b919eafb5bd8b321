//! Builds the switch from its settings, runs it, and ends it.

mod open;
mod statistics;
mod switch;
mod upgrade;

use sd_notify::NotifyState;
use thiserror::Error;

pub use open::Opened;
pub use statistics::Statistics;
pub use switch::Switch;
pub use upgrade::UpgradeError;
use upgrade::{Predecessor, UpgradeServer};

use std::path::Path;

use crate::config::Settings;
use crate::sys::signal::{Event, Signals};
use crate::sys::socket::SocketError;
use crate::sys::stdio;
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
    /// The upgrade socket can't be listened on.
    #[error("upgrade socket")]
    UpgradeSocket(#[from] SocketError),
    /// The place of the running switch can't be taken.
    #[error("not upgraded; the switch that runs goes on")]
    Upgrade(#[from] UpgradeError),
}

/// How a switch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With nothing.
    Fresh,
    /// In the place of the switch behind the settings' upgrade socket, without a pause. Once that
    /// is done, standard error is the other's, and one line is written to standard output, which
    /// is closed then.
    TakeOver,
}

/// Runs a switch until SIGTERM or SIGINT, or until another process took its place. SIGUSR1 writes
/// the statistics to the log.
///
/// # Errors
///
/// [`enum@Error`] when it can't start; nothing is left behind then.
pub fn run(settings: Settings, start: Start) -> Result<(), Error> {
    // Before threads are started: they inherit the handling.
    let mut signals = Signals::install()
        .map_err(|source| Error::System { what: "install signal handlers", source })?;
    let (switch, server) = match (start, settings.upgrade.as_deref()) {
        (Start::TakeOver, Some(socket)) => take_over(&settings, socket)?,
        (_, socket) => {
            let server = socket.map(|path| UpgradeServer::new(path, None)).transpose()?;
            (Switch::start(&settings, Opened::new(&settings)?)?, server)
        }
    };
    log::info!("ready: {} ports, {} workers", settings.ports.len(), settings.workers.count);
    tell_systemd();
    let ender = signals.ender();
    let heir = std::thread::scope(|scope| {
        let ender = &ender;
        let serving = server.as_ref().map(|server| {
            scope.spawn(|| {
                let heir = server.serve(&switch);
                ender.end();
                heir
            })
        });
        while signals.wait() == Event::DumpStatistics {
            switch.statistics().log();
        }
        server.iter().for_each(UpgradeServer::stop);
        serving.and_then(|thread| thread.join().ok().flatten())
    });
    switch.stop().log();
    match heir {
        Some(pid) => log::info!("ended; process {pid} goes on"),
        None => log::info!("ended"),
    }
    Ok(())
}

/// Tells systemd, if it started us or the process before us (sd_notify(3)), who is the switch now.
fn tell_systemd() {
    let state = [NotifyState::Ready, NotifyState::MainPid(std::process::id())];
    if let Err(error) = sd_notify::notify(&state) {
        log::warn!("cannot tell systemd that the switch is ready: {error}");
    }
}

fn take_over(settings: &Settings, socket: &Path) -> Result<(Switch, Option<UpgradeServer>), Error> {
    let (mut predecessor, mut inherited) = Predecessor::meet(socket, settings)?;
    let (log, listener) = (inherited.log.take(), inherited.listener.take());
    let server = UpgradeServer::new(socket, listener)?;
    let opened = Opened::with(settings, &mut inherited)?;
    let switch = Switch::take_over(settings, opened, &mut predecessor, &inherited)?;
    server.own();
    let done = stdio::hand_to(&format!("{}\n", predecessor.pid()), log);
    if let Err(error) = done {
        log::warn!("cannot go on with the other process's standard error: {error}");
    }
    Ok((switch, Some(server)))
}
