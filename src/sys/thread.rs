//! What a thread can set on itself.

use std::io;

/// Lets the calling thread run on processor `cpu` only (as numbered in `/proc/cpuinfo`).
///
/// # Errors
/// `InvalidInput` when the processor doesn't exist, is offline or is outside the process's cpuset.
pub fn pin_current(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: a cpu_set_t is a plain bit map, all zeroes is its empty value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `cpu` is below CPU_SETSIZE, so the bit lies inside `set`.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: `set` is valid for its size; 0 means the calling thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
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
    fn a_thread_is_pinned() {
        std::thread::spawn(|| {
            pin_current(0).unwrap();
            assert_eq!(status("Cpus_allowed_list"), "0");
        })
        .join()
        .unwrap();
    }

    #[test]
    fn absent_processors_are_refused() {
        for cpu in [libc::CPU_SETSIZE as usize - 1, libc::CPU_SETSIZE as usize, usize::MAX] {
            assert_eq!(pin_current(cpu).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }
}
