//! Asking for cache lines before they are needed. A prefetch is a hint: it reads nothing, and never
//! faults, whatever the address.

/// Starts to bring the cache line at `address` in for reading.
#[inline(always)]
pub fn read<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch dereferences nothing and has no architectural effect.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Bytes of a cache line.
pub const LINE: usize = 64;

/// [`write()`] of all lines of `len` bytes from `address` on.
#[inline(always)]
pub fn write_all(address: *const u8, len: usize) {
    for offset in (0..len).step_by(LINE) {
        write(address.wrapping_add(offset));
    }
}

/// Starts to bring the cache line at `address` in for writing: takes it away from the core that
/// wrote it last.
#[inline(always)]
pub fn write<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above; CPUs without PREFETCHW treat it as a no-op.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) address, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
