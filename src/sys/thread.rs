//! Which processors a thread runs on.

use std::io;

use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};

/// A thread of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThreadId(Pid);

impl ThreadId {
    /// The calling thread.
    #[must_use]
    pub fn current() -> Self {
        Self(gettid())
    }

    /// Lets it run on processor `cpu` only (as numbered in `/proc/cpuinfo`).
    ///
    /// # Errors
    /// `InvalidInput` when the processor doesn't exist, is offline or is outside the process's cpuset.
    pub fn pin(self, cpu: usize) -> io::Result<()> {
        if cpu >= CpuSet::MAX_CPU {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut set = CpuSet::new();
        set.set(cpu);
        Ok(sched_setaffinity(Some(self.0), &set)?)
    }

    /// Lets it run where the calling thread may.
    ///
    /// # Errors
    /// None is expected.
    pub fn unpin(self) -> io::Result<()> {
        Ok(sched_setaffinity(Some(self.0), &sched_getaffinity(None)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(key: &str) -> String {
        let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_once(':').unwrap().1.trim().to_owned()
    }

    #[test]
    fn a_thread_is_pinned_and_let_go() {
        let all = status("Cpus_allowed_list");
        let (said, heard) = std::sync::mpsc::channel();
        let (go, gone) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            said.send(ThreadId::current()).unwrap();
            [(); 2].map(|()| {
                gone.recv().unwrap();
                let list = status("Cpus_allowed_list");
                said.send(ThreadId::current()).unwrap();
                list
            })
        });
        let id = heard.recv().unwrap();
        id.pin(0).unwrap();
        go.send(()).unwrap();
        heard.recv().unwrap();
        id.unpin().unwrap();
        go.send(()).unwrap();
        assert_eq!(thread.join().unwrap(), ["0".to_owned(), all]);
    }

    #[test]
    fn absent_processors_are_refused() {
        for cpu in [CpuSet::MAX_CPU - 1, CpuSet::MAX_CPU, usize::MAX] {
            let error = ThreadId::current().pin(cpu).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }
}
