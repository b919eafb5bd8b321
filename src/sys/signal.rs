//! Signals as events for the main thread.
//!
//! The first SIGTERM or SIGINT asks for an orderly end, and so does SIGHUP of a process that has no
//! file to read again. From then on the same signals end the
//! process at once, from inside the handler, with the status a shell would show (143, 130): the
//! way out when the orderly end hangs. SIGPIPE stays ignored (the Rust runtime does that).

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::{flag, low_level::pipe};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// SIGTERM, SIGINT or [`Ringer::end`]: end in order. So does SIGHUP, unless it is to reload.
    Terminate,
    /// SIGUSR1: log the statistics.
    DumpStatistics,
    /// SIGHUP: read the configuration again.
    Reload,
    /// [`Ringer::ring`]: another thread wants something.
    Bell,
}

/// The process's signal handlers. Install them once, before other threads start.
#[derive(Debug)]
pub struct Signals {
    /// Has a byte for each signal and ring that came.
    bell: UnixStream,
    pending: Arc<Pending>,
    ringer: Ringer,
}

/// What was asked for and not yet told.
#[derive(Debug, Default)]
struct Pending {
    terminate: Arc<AtomicBool>,
    statistics: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
}

impl Signals {
    /// Installs the handlers; they stay for the life of the process. Without `reloads`, SIGHUP ends
    /// it.
    ///
    /// # Errors
    /// The error of `sigaction(2)` or `socketpair(2)`: out of descriptors.
    pub fn install(reloads: bool) -> io::Result<Self> {
        let (bell, rope) = UnixStream::pair()?;
        // A bell that nobody answers is not waited for.
        rope.set_nonblocking(true)?;
        let pending = Arc::new(Pending::default());
        let deadly: &[libc::c_int] =
            if reloads { &[SIGTERM, SIGINT] } else { &[SIGTERM, SIGINT, SIGHUP] };
        for signal in deadly {
            // The order matters: a signal first checks the flag, then sets it.
            let status = 128 + signal;
            flag::register_conditional_shutdown(*signal, status, Arc::clone(&pending.terminate))?;
            flag::register(*signal, Arc::clone(&pending.terminate))?;
        }
        flag::register(SIGUSR1, Arc::clone(&pending.statistics))?;
        if reloads {
            flag::register(SIGHUP, Arc::clone(&pending.reload))?;
        }
        for signal in SIGNALS {
            pipe::register(signal, rope.try_clone()?)?;
        }
        let ringer = Ringer { pending: Arc::clone(&pending), rope: Arc::new(rope) };
        Ok(Self { bell, pending, ringer })
    }

    /// What ends the waiting from another thread.
    pub fn ringer(&self) -> Ringer {
        self.ringer.clone()
    }

    /// Sleeps until something is asked for. What came since the last call counts; several of one
    /// kind may be one event.
    pub fn wait(&mut self) -> Event {
        let mut rings = [0; 64];
        loop {
            match self.bell.read(&mut rings) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It can't fail in another way, nor end: there is a rope.
                Ok(0) | Err(_) => return Event::Terminate,
                Ok(_) => return self.next(),
            }
        }
    }

    /// The most urgent of what is pending. The others have their bell rung again.
    fn next(&self) -> Event {
        if self.pending.terminate.load(Ordering::SeqCst) {
            return Event::Terminate;
        }
        for (flag, event) in [
            (&self.pending.statistics, Event::DumpStatistics),
            (&self.pending.reload, Event::Reload),
        ] {
            if flag.swap(false, Ordering::SeqCst) {
                self.ringer.ring();
                return event;
            }
        }
        Event::Bell
    }
}

/// The signals that are handled.
const SIGNALS: [libc::c_int; 4] = [SIGTERM, SIGINT, SIGUSR1, SIGHUP];

/// Leaves the signals to other threads: the handlers make a system call that the sandbox allows to
/// the main thread only.
///
/// # Errors
///
/// The error of `pthread_sigmask(3)`; none is expected.
pub fn leave_to_others() -> io::Result<()> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset writes the whole set, which the other calls then read and change.
    let result = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in SIGNALS {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

/// Ends [`Signals::wait`].
#[derive(Debug, Clone)]
pub struct Ringer {
    pending: Arc<Pending>,
    rope: Arc<UnixStream>,
}

impl Ringer {
    /// [`Signals::wait`] says [`Event::Bell`], or what is more urgent.
    pub fn ring(&self) {
        // Full of rings that nobody has heard yet: it will wake up.
        let _ = (&*self.rope).write(&[0]);
    }

    /// From now on [`Signals::wait`] says [`Event::Terminate`].
    pub fn end(&self) {
        self.pending.terminate.store(true, Ordering::SeqCst);
        self.ring();
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Set in the child process that plays the daemon: the handlers are the whole process's, so
    /// they aren't installed in the process that runs the other tests.
    const CHILD: &str = "RINGSWITCH_TEST_SIGNAL_CHILD";

    /// Runs in a child only; elsewhere it passes at once.
    #[test]
    fn child() {
        let Ok(second) = std::env::var(CHILD) else {
            return;
        };
        let mut signals = Signals::install(second != "SIGHUP").unwrap();
        let raise = |signal| signal_hook::low_level::raise(signal).unwrap();
        raise(SIGUSR1);
        assert_eq!(wait(&mut signals), Event::DumpStatistics);
        raise(SIGUSR1);
        assert_eq!(wait(&mut signals), Event::DumpStatistics);
        signals.ringer().ring();
        assert_eq!(signals.wait(), Event::Bell);
        if second != "SIGHUP" {
            raise(SIGHUP);
            assert_eq!(wait(&mut signals), Event::Reload);
        }
        raise(SIGTERM);
        assert_eq!(wait(&mut signals), Event::Terminate);
        match second.as_str() {
            "SIGTERM" => raise(SIGTERM),
            "SIGINT" => raise(SIGINT),
            "SIGHUP" => raise(SIGHUP),
            "SIGUSR1" => raise(SIGUSR1),
            _ => {}
        }
        std::process::exit(3);
    }

    /// The next event that is no bell: those that were told may leave one.
    fn wait(signals: &mut Signals) -> Event {
        loop {
            match signals.wait() {
                Event::Bell => {}
                event => return event,
            }
        }
    }

    fn run_child(second: &str) -> Option<i32> {
        let this = std::env::current_exe().unwrap();
        let output = Command::new(this)
            .args(["--exact", "sys::signal::tests::child"])
            .env(CHILD, second)
            .output()
            .unwrap();
        output.status.code()
    }

    #[test]
    fn first_asks_second_kills() {
        assert_eq!(run_child("none"), Some(3));
        assert_eq!(run_child("SIGUSR1"), Some(3), "not deadly while ending");
        assert_eq!(run_child("SIGHUP"), Some(129), "without a file to read again");
        assert_eq!(run_child("SIGTERM"), Some(143));
        assert_eq!(run_child("SIGINT"), Some(130));
    }
}
