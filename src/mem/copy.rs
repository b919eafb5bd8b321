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
