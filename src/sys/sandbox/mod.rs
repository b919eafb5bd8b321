//! The sandbox: what the process can still do once it has opened what it needs.
//!
//! Whoever takes the process over, by a fault in how it reads a guest's bytes, has every guest's
//! memory. The sandbox keeps it from having the host as well.
//!
//! # Theory of operation
//!
//! [`enter`] is called between opening and starting, while there is one thread. It becomes another
//! user, gives up capabilities and with no_new_privs the way back ([`super::privilege`]), and gives
//! up the file system and the network (`paths`: Landlock). All of that is inherited by the threads
//! that are started afterwards.
//!
//! Each thread then gives up what its kind doesn't need, by [`Sandbox::confine`]: the capability
//! that is left, and all system calls but those in its kind's list (`filter`: seccomp). The main
//! thread does so last, so that no thread has the filter of another besides its own.
//!
//! A filter stops at the thread: one that writes into another's memory can make that one call. So
//! the lists of all kinds together are what an attacker has, and none of them has a way to start a
//! program or to make memory executable.
//!
//! What a refused call does is in `violation`.

mod filter;
mod names;
mod paths;
#[cfg(test)]
mod tests;
mod violation;

use std::io;
use std::path::Path;
use std::sync::Arc;

use thiserror::Error;

use super::account::Account;
use super::{fault, privilege, signal};
use filter::Program;
use paths::Enforced;

/// Whom to run as when started as root without a wish: the first that there is. The last one is
/// `nobody` by its numbers, which need no account.
const DEFAULT_USERS: [&str; 3] = ["ringswitch", "nobody", "65534:65534"];

/// A kind of thread, each with a filter of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thread {
    /// The main thread: signals, opening and closing.
    Main,
    /// Moves frames.
    Worker,
    /// Serves a port whose socket is ours.
    Server,
    /// Serves a port whose socket is the VMM's.
    Client,
    /// Looks after the others: nothing leaves the process but a word to systemd's open socket.
    Sweeper,
    /// Hands over to another process.
    Upgrade,
    /// Answers those who want to see.
    Api,
}

impl Thread {
    const ALL: [Self; 7] = [
        Self::Main,
        Self::Worker,
        Self::Server,
        Self::Client,
        Self::Sweeper,
        Self::Upgrade,
        Self::Api,
    ];
}

/// What to give up.
#[derive(Debug, Clone, Default)]
pub struct Plan<'a> {
    /// The user to run as, `user` or `user:group`. `None`: the default when started as root.
    pub user: Option<&'a str>,
    /// Whether to fail when the kernel can't enforce all of it.
    pub strict: bool,
    /// Whether to refuse nothing, but have the kernel log what would be refused.
    pub log_only: bool,
    /// Directories in which sockets are made and removed.
    pub directories: Vec<&'a Path>,
    /// Whether there are TAP devices: the main thread may open more of them.
    pub taps: bool,
    /// A file that the main thread reads again. It may be replaced, so its directory can be read.
    pub file: Option<&'a Path>,
}

/// Why the sandbox can't be entered.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// There is no such account.
    #[error(
        "there is no user or group {0:?} to run as: make it (`useradd --system NAME`), name another \
         one as \"user\" or \"user:group\", or leave `user` out"
    )]
    NoAccount(String),
    /// Only root can become somebody else.
    #[error(
        "cannot run as {wanted:?}: started as user {uid}, who can't become another; start it as \
         root or as that user, or leave `user` out"
    )]
    NotRoot {
        /// The user that was asked for.
        wanted: String,
        /// The user that we are.
        uid: u32,
    },
    /// A right can't be given up.
    #[error(
        "cannot give up the rights of root: if this is a container without that user, name one that \
         it has, or \"root\", which keeps the id and gives up the capabilities"
    )]
    Rights(#[source] io::Error),
    /// The kernel lacks a part, and none may be missing.
    #[error(
        "the kernel can't enforce {0}, and the sandbox is \"strict\": use Linux 6.12 or later with \
         it enabled, or the sandbox \"on\", which goes without"
    )]
    Unsupported(&'static str),
    /// Landlock failed.
    #[error("cannot restrict access to files")]
    Landlock(#[from] landlock::RulesetError),
    /// A filter can't be made.
    #[error("cannot make a filter of system calls")]
    Filter(#[from] seccompiler::BackendError),
    /// A system call failed.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// What each thread applies to itself.
#[derive(Debug, Clone, Default)]
pub struct Sandbox {
    /// None: the process is not in a sandbox.
    filters: Option<Arc<Filters>>,
}

/// A filter for each kind, if the kernel has filters.
#[derive(Debug)]
struct Filters {
    programs: Option<Vec<(Thread, Program)>>,
}

impl Sandbox {
    /// No sandbox: threads do what the process may.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Confines the calling thread to what its kind needs, for good.
    ///
    /// A thread that can't be confined ends the process: it must not serve a guest.
    pub fn confine(&self, kind: Thread) {
        let Some(filters) = &self.filters else { return };
        if let Err(error) = filters.apply(kind) {
            log::error!("cannot confine a thread ({kind:?}): {error}; ending");
            std::process::exit(1);
        }
    }
}

impl Filters {
    fn new(plan: &Plan<'_>) -> Result<Self, SandboxError> {
        if !filter::is_supported() {
            lacking(plan, "seccomp filters (CONFIG_SECCOMP_FILTER)")?;
            return Ok(Self { programs: None });
        }
        let program = |kind| Ok((kind, Program::new(kind, plan)?));
        let programs: Result<_, SandboxError> = Thread::ALL.into_iter().map(program).collect();
        Ok(Self { programs: Some(programs?) })
    }

    fn apply(&self, kind: Thread) -> io::Result<()> {
        if kind != Thread::Main {
            signal::leave_to_others()?;
            privilege::drop_all()?;
        }
        let program = self.programs.iter().flatten().find(|(of, _)| *of == kind);
        program.map_or(Ok(()), |(_, program)| program.apply())
    }
}

/// Enters the sandbox, for good. There must be no other thread.
///
/// # Errors
///
/// [`SandboxError`]. The process may have given up some of its rights then, and should end.
pub fn enter(plan: &Plan<'_>) -> Result<Sandbox, SandboxError> {
    let account = account(plan.user)?;
    let filters = Filters::new(plan)?;
    let system = |what| move |source: io::Error| SandboxError::System { what, source };
    // Before: no thread may install handlers.
    fault::install();
    violation::install().map_err(system("handle SIGSYS"))?;
    one_heap();
    let rules = paths::rules(plan)?;
    privilege::drop_root(account.as_ref(), plan.taps)
        .map_err(|error| SandboxError::Rights(error.into()))?;
    let enforced = if plan.log_only { None } else { Some(paths::enforce(rules)?) };
    match enforced {
        None | Some(Enforced::All) => {}
        Some(Enforced::Some) => lacking(plan, "all of Landlock (Linux 6.12)")?,
        Some(Enforced::Nothing) => lacking(plan, "Landlock (CONFIG_SECURITY_LANDLOCK)")?,
    }
    let account = account.map_or_else(|| privilege::user_id().to_string(), |account| account.name);
    let mode = if plan.log_only { "only logs what it would refuse" } else { "on" };
    log::info!("sandbox: {mode}, running as {account}");
    Ok(Sandbox { filters: Some(Arc::new(filters)) })
}

/// Has all threads allocate from one heap. The C library opens /proc/sys/vm/overcommit_memory before
/// it gives memory of another one back, which the filters refuse, and report. Frames need no memory.
///
/// Large buffers (captures', workers') go back to the kernel when they are freed: by itself the C
/// library would keep the next ones in the heap, after the first was freed.
fn one_heap() {
    const LARGE: libc::c_int = 128 << 10;
    #[cfg(target_env = "gnu")]
    for (option, value) in
        [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, LARGE)]
    {
        // SAFETY: sets a number of the allocator. An error means that it has no such number.
        unsafe { libc::mallopt(option, value) };
    }
}

/// The kernel lacks `what`: an error, or a line in the log.
fn lacking(plan: &Plan<'_>, what: &'static str) -> Result<(), SandboxError> {
    if plan.strict {
        return Err(SandboxError::Unsupported(what));
    }
    log::warn!("sandbox: this kernel can't enforce {what}; the switch runs without that");
    Ok(())
}

/// The account to become, if it isn't that of the process already.
fn account(wanted: Option<&str>) -> Result<Option<Account>, SandboxError> {
    match wanted {
        Some(name) => {
            let account =
                Account::find(name).ok_or_else(|| SandboxError::NoAccount(name.to_owned()))?;
            let uid = privilege::user_id();
            if privilege::is_root() {
                Ok(Some(account))
            } else if account.uid == uid {
                Ok(None)
            } else {
                Err(SandboxError::NotRoot { wanted: name.to_owned(), uid })
            }
        }
        None if privilege::is_root() => {
            Ok(DEFAULT_USERS.iter().find_map(|name| Account::find(name)))
        }
        None => Ok(None),
    }
}
