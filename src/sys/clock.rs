//! Reading the time. Owns no state but the process's start.
//!
//! A worker reads a clock once a burst and passes the time down: tables and stages never read it.

use std::sync::OnceLock;

/// Nanoseconds of `CLOCK_MONOTONIC`, since an arbitrary point before the process began. About
/// 20 ns a call (vDSO).
#[must_use]
pub fn now_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// Nanoseconds since 1970, which an operator may set.
#[must_use]
pub fn unix_ns() -> u64 {
    read(libc::CLOCK_REALTIME)
}

/// Nanoseconds of processor time that the calling thread has used. A system call.
#[must_use]
pub fn thread_cpu_ns() -> u64 {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Whole seconds since this was first called in the process, from the kernel's tick
/// (`CLOCK_MONOTONIC_COARSE`: about 5 ns a call, up to 10 ms late). Never goes backwards.
#[must_use]
pub fn coarse_seconds() -> u32 {
    static START: OnceLock<u64> = OnceLock::new();
    let now = read(libc::CLOCK_MONOTONIC_COARSE);
    let start = *START.get_or_init(|| now);
    u32::try_from(now.saturating_sub(start) / 1_000_000_000).unwrap_or(u32::MAX)
}

/// A cheap counter for measuring short spans on one thread: the time-stamp counter on x86-64
/// (cycles of a fixed rate), [`now_ns`] elsewhere.
#[inline]
#[must_use]
pub fn tsc() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: every x86-64 processor has RDTSC and Linux lets user space run it.
        unsafe { std::arch::x86_64::_rdtsc() }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        now_ns()
    }
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the call to fill in.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    debug_assert_eq!(result, 0, "both clocks exist on every Linux");
    // Both are never negative for a monotonic clock; 584 years of nanoseconds fit.
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_go_forward() {
        let (ns, seconds, cycles) = (now_ns(), coarse_seconds(), tsc());
        std::thread::sleep(std::time::Duration::from_millis(1100));
        assert!(now_ns() - ns >= 1_100_000_000);
        assert!((1..60).contains(&(coarse_seconds() - seconds)));
        assert!(tsc() > cycles);
    }
}
