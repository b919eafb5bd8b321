//! Signals as events for the main thread.
//!
//! The first SIGTERM or SIGINT asks for an orderly end. From then on the same signals end the
//! process at once, from inside the handler, with the status a shell would show (143, 130): the
//! way out when the orderly end hangs. SIGPIPE stays ignored (the Rust runtime does that).

use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// SIGTERM, SIGINT or [`Ender::end`]: end in order.
    Terminate,
    /// SIGUSR1: log the statistics.
    DumpStatistics,
}

/// The process's signal handlers. Install them once, before other threads start.
#[derive(Debug)]
pub struct Signals {
    signals: signal_hook::iterator::Signals,
}

impl Signals {
    /// Installs the handlers; they stay for the life of the process.
    ///
    /// # Errors
    /// The error of `sigaction(2)` or `socketpair(2)`: out of descriptors.
    pub fn install() -> io::Result<Self> {
        let terminating = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            // The order matters: a signal first checks the flag, then sets it.
            let status = 128 + signal;
            flag::register_conditional_shutdown(signal, status, Arc::clone(&terminating))?;
            flag::register(signal, Arc::clone(&terminating))?;
        }
        let signals = signal_hook::iterator::Signals::new(SIGNALS)?;
        Ok(Self { signals })
    }

    /// What ends the waiting from another thread.
    pub fn ender(&self) -> Ender {
        Ender(self.signals.handle())
    }

    /// Sleeps until a signal asks for something. Signals that came since the last call count;
    /// several of one kind may be one event.
    pub fn wait(&mut self) -> Event {
        match self.signals.forever().next() {
            Some(SIGUSR1) => Event::DumpStatistics,
            // The iterator ends when an `Ender` closed it.
            _ => Event::Terminate,
        }
    }
}

/// The signals that are handled.
const SIGNALS: [libc::c_int; 3] = [SIGTERM, SIGINT, SIGUSR1];

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
#[derive(Debug)]
pub struct Ender(signal_hook::iterator::Handle);

impl Ender {
    /// From now on [`Signals::wait`] says [`Event::Terminate`].
    pub fn end(&self) {
        self.0.close();
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
        let mut signals = Signals::install().unwrap();
        let raise = |signal| signal_hook::low_level::raise(signal).unwrap();
        raise(SIGUSR1);
        assert_eq!(signals.wait(), Event::DumpStatistics);
        raise(SIGUSR1);
        assert_eq!(signals.wait(), Event::DumpStatistics);
        raise(SIGTERM);
        assert_eq!(signals.wait(), Event::Terminate);
        match second.as_str() {
            "SIGTERM" => raise(SIGTERM),
            "SIGINT" => raise(SIGINT),
            "SIGUSR1" => {
                raise(SIGUSR1);
                assert_eq!(signals.wait(), Event::DumpStatistics, "not deadly while ending");
            }
            _ => {}
        }
        std::process::exit(3);
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
        assert_eq!(run_child("SIGUSR1"), Some(3));
        assert_eq!(run_child("SIGTERM"), Some(143));
        assert_eq!(run_child("SIGINT"), Some(130));
    }
}
