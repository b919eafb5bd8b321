//! Limits of the process. A port costs about 10 descriptors a queue pair (kick, call and error of
//! two rings, memory, log, socket), more than the usual soft limit of 1024 holds on a busy host.

use std::io;

/// Raises the soft limit of open descriptors to the hard one. Returns the limit that holds now.
///
/// # Errors
/// The error of `getrlimit(2)` or `setrlimit(2)`; a sandbox may forbid them.
pub fn raise_nofile() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit for the call to fill in.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: `limit` is a valid rlimit that the call only reads.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    #[test]
    fn soft_limit_reaches_the_hard_one() {
        let limit = super::raise_nofile().unwrap();
        let text = std::fs::read_to_string("/proc/self/limits").unwrap();
        let line = text.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let mut columns = line.split_whitespace().skip(3);
        assert_eq!(columns.next(), Some(limit.to_string().as_str()));
        assert_eq!(columns.next(), Some(limit.to_string().as_str()));
    }
}
