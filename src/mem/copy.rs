//! The one copy.

/// Copies `len` bytes between two guests' memories, or between one and our own.
///
/// `memmove` of the C library chooses the widest vector unit at run time. The bytes may change
/// under the copy; whatever comes out is then the writing guest's own fault, and nobody decides
/// anything on it.
///
/// # Safety
///
/// `src` must be readable and `dst` writable for `len` bytes.
#[inline(always)]
pub unsafe fn copy(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy(src, dst, len) }
}

/// Copies `len` bytes like [`copy`], without a call: for the few bytes of headers, where a call
/// costs more than the bytes. Up to 128; longer ones make the call.
///
/// # Safety
///
/// `src` must be readable and `dst` writable for `len` bytes, and they must not overlap.
#[inline(always)]
pub unsafe fn copy_short(src: *const u8, dst: *mut u8, len: usize) {
    /// Two words, overlapping in the middle, hold any length from one word to two.
    ///
    /// # Safety
    ///
    /// As above, with `size_of::<T>() <= len <= 2 * size_of::<T>()`.
    #[inline(always)]
    unsafe fn ends<T: Copy>(src: *const u8, dst: *mut u8, len: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            block::<T>(src, dst, 0);
            block::<T>(src, dst, len - size_of::<T>());
        }
    }

    /// # Safety
    ///
    /// As above, with `at + size_of::<T>() <= len`.
    #[inline(always)]
    unsafe fn block<T: Copy>(src: *const u8, dst: *mut u8, at: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let word = src.add(at).cast::<T>().read_unaligned();
            dst.add(at).cast::<T>().write_unaligned(word);
        }
    }

    /// The vector register that each CPU has.
    type Wide = [u64; 2];

    // SAFETY: each access lies within the first `len` bytes.
    unsafe {
        match len {
            // Most frames, and their heads.
            64..=128 => {
                (0..64).step_by(16).for_each(|at| block::<Wide>(src, dst, at));
                if len > 64 {
                    (0..64).step_by(16).for_each(|at| block::<Wide>(src, dst, len - 64 + at));
                }
            }
            32..64 => {
                ends::<Wide>(src, dst, 32);
                ends::<Wide>(src.add(len - 32), dst.add(len - 32), 32);
            }
            16..32 => ends::<Wide>(src, dst, len),
            8..16 => ends::<u64>(src, dst, len),
            4..8 => ends::<u32>(src, dst, len),
            2..4 => ends::<u16>(src, dst, len),
            1 => dst.write(src.read()),
            0 => {}
            _ => copy(src, dst, len),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_copies_move_each_byte_and_no_other() {
        let from: Vec<u8> = (1..=200).collect();
        for len in 0..=160 {
            let mut to = [0u8; 200];
            // SAFETY: both have 200 bytes.
            unsafe { copy_short(from.as_ptr(), to.as_mut_ptr().add(3), len) };
            assert_eq!(to[3..3 + len], from[..len], "{len}");
            assert!(to[..3].iter().chain(&to[3 + len..]).all(|byte| *byte == 0), "{len}");
        }
    }
}
