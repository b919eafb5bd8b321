//! Builds the switch from its settings, runs it, and ends it.

pub mod api;
mod change;
mod crew;
mod desk;
mod open;
mod settings;
mod statistics;
mod switch;
mod upgrade;
mod watchdog;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use sd_notify::NotifyState;
use thiserror::Error;

use api::{ApiServer, DoorError, View};
use desk::Desk;
pub use desk::Reread;
pub use open::Opened;
pub use statistics::Statistics;
pub use switch::Switch;
pub use upgrade::UpgradeError;
use upgrade::{Predecessor, UpgradeServer};

use crate::config::{PortKind, SandboxMode, Settings, SocketRole};
use crate::logs;
use crate::sys::sandbox::{self, Plan, Sandbox, SandboxError, Thread};
use crate::sys::signal::{Event, Signals};
use crate::sys::socket::SocketError;
use crate::sys::stdio::Streams;
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
    /// The sandbox can't be entered.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
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
    /// Clients of the API can't come in.
    #[error(transparent)]
    Door(#[from] DoorError),
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
/// the statistics to the log; SIGHUP has it go over to what `reread` says, if it is there.
///
/// # Errors
///
/// [`enum@Error`] when it can't start; nothing is left behind then.
pub fn run(settings: Settings, reread: Option<Reread>, start: Start) -> Result<(), Error> {
    // Before threads are started: they inherit the handling.
    let mut signals = Signals::install(reread.is_some())
        .map_err(|source| Error::System { what: "install signal handlers", source })?;
    let file = reread.as_ref().map(|reread| reread.file.as_path());
    let started = match (start, settings.upgrade.as_deref()) {
        (Start::TakeOver, Some(socket)) => take_over(&settings, file, socket)?,
        (_, socket) => start_fresh(&settings, file, socket)?,
    };
    let Started { switch, server, api, sandbox } = started;
    let desk = Arc::new(Desk::new(signals.ringer(), reread));
    log::info!("ready: {} ports, {} workers", settings.ports.len(), settings.workers.count);
    tell_systemd();
    let ringer = signals.ringer();
    let heir = std::thread::scope(|scope| {
        let (sandbox, switch, ringer) = (&sandbox, &switch, &ringer);
        let api = api.as_ref();
        if let Some(api) = api {
            let view = View::new(switch, &desk);
            let serve = move || {
                sandbox.confine(Thread::Api);
                if let Err(error) = api.serve(view) {
                    log::error!("nobody is there to answer for the API: {error}");
                }
            };
            let thread = std::thread::Builder::new().name("api".into());
            if let Err(error) = thread.spawn_scoped(scope, serve) {
                log::error!("nobody is there to answer for the API: {error}");
            }
        }
        let serving = server.as_ref().and_then(|server| {
            let serve = move || {
                sandbox.confine(Thread::Upgrade);
                let heir = server.serve(switch, api);
                ringer.end();
                heir
            };
            let thread = std::thread::Builder::new().name("upgrade".into());
            let started = thread.spawn_scoped(scope, serve);
            started.map_err(|error| log::error!("no upgrade is possible: {error}")).ok()
        });
        sandbox.confine(Thread::Main);
        loop {
            match signals.wait() {
                Event::Terminate => break,
                Event::DumpStatistics => switch.statistics().log(),
                Event::Reload => desk.reload(switch, sandbox),
                Event::Bell => desk.work(switch, sandbox),
            }
        }
        server.iter().for_each(UpgradeServer::stop);
        api.iter().for_each(|api| api.stop());
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

/// What there is before the main thread is confined.
struct Started {
    switch: Switch,
    server: Option<UpgradeServer>,
    api: Option<ApiServer>,
    sandbox: Sandbox,
}

fn start_fresh(
    settings: &Settings,
    file: Option<&Path>,
    socket: Option<&Path>,
) -> Result<Started, Error> {
    let server = socket.map(|path| UpgradeServer::new(path, None)).transpose()?;
    let api = ApiServer::new(settings, Vec::new())?;
    let opened = Opened::new(settings)?;
    let sandbox = enter_sandbox(settings, file)?;
    let switch = Switch::start(settings, opened, &sandbox)?;
    Ok(Started { switch, server, api, sandbox })
}

fn take_over(settings: &Settings, file: Option<&Path>, socket: &Path) -> Result<Started, Error> {
    let (mut predecessor, mut inherited) = Predecessor::meet(socket, settings)?;
    let (log, listener) = (inherited.log.take(), inherited.listener.take());
    let server = UpgradeServer::new(socket, listener)?;
    let api = ApiServer::new(settings, std::mem::take(&mut inherited.doors))?;
    let opened = Opened::with(settings, &mut inherited)?;
    let streams =
        Streams::new(log).map_err(|source| Error::System { what: "open /dev/null", source })?;
    let sandbox = enter_sandbox(settings, file)?;
    let switch = Switch::take_over(settings, opened, &mut predecessor, &inherited, &sandbox)?;
    server.own();
    api.iter().for_each(ApiServer::own);
    match streams.hand_to(&format!("{}\n", predecessor.pid())) {
        Ok(()) => logs::set_to_journal(inherited.is_journal),
        Err(error) => log::warn!("cannot go on with the other process's standard error: {error}"),
    }
    Ok(Started { switch, server: Some(server), api, sandbox })
}

/// Gives up what isn't needed any more.
fn enter_sandbox(settings: &Settings, file: Option<&Path>) -> Result<Sandbox, SandboxError> {
    let wanted = &settings.sandbox;
    if wanted.mode == SandboxMode::Off {
        log::warn!("sandbox: off; the process keeps the rights that it was started with");
        return Ok(Sandbox::none());
    }
    let ours = settings.ports.iter().filter_map(|port| match &port.kind {
        PortKind::VhostUser(vhost) if vhost.role == SocketRole::Server => Some(&vhost.socket),
        PortKind::VhostUser(_) | PortKind::Tap(_) => None,
    });
    let directories: BTreeSet<_> = ours
        .chain(&settings.upgrade)
        .chain(&settings.api)
        .chain(&settings.read_only)
        .filter_map(|socket| socket.parent())
        .collect();
    sandbox::enter(&Plan {
        user: wanted.user.as_deref(),
        strict: wanted.mode == SandboxMode::Strict,
        log_only: wanted.mode == SandboxMode::Log,
        directories: directories.into_iter().collect(),
        taps: settings.has_taps(),
        file,
    })
}

/// An error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
