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
/// costs more than the bytes. Best up to 128.
///
/// # Safety
///
/// `src` must be readable and `dst` writable for `len` bytes, and they must not overlap.
#[inline(always)]
pub unsafe fn copy_short(src: *const u8, dst: *mut u8, len: usize) {
    /// Two words overlapping in the middle hold any length from one word to two.
    ///
    /// # Safety
    ///
    /// As above, with `size_of::<T>() <= len <= 2 * size_of::<T>()`.
    #[inline(always)]
    unsafe fn ends<T: Copy>(src: *const u8, dst: *mut u8, len: usize) {
        let last = len - size_of::<T>();
        // SAFETY: the caller's promise.
        unsafe {
            let (a, b) =
                (src.cast::<T>().read_unaligned(), src.add(last).cast::<T>().read_unaligned());
            dst.cast::<T>().write_unaligned(a);
            dst.add(last).cast::<T>().write_unaligned(b);
        }
    }
    // SAFETY: each access lies within the first `len` bytes.
    unsafe {
        match len {
            0 => {}
            1 => dst.write(src.read()),
            2..4 => ends::<u16>(src, dst, len),
            4..8 => ends::<u32>(src, dst, len),
            8..16 => ends::<u64>(src, dst, len),
            _ => {
                let last = len - 16;
                let end = src.add(last).cast::<[u64; 2]>().read_unaligned();
                let mut at = 0;
                while at < last {
                    let block = src.add(at).cast::<[u64; 2]>().read_unaligned();
                    dst.add(at).cast::<[u64; 2]>().write_unaligned(block);
                    at += 16;
                }
                dst.add(last).cast::<[u64; 2]>().write_unaligned(end);
            }
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
