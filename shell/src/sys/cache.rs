//! The processor's cache.

/// Has the beginning of something brought near, while something else is done.
#[inline]
pub fn prefetch<T>(what: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: it reads nothing that anybody could see, and faults at no address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(what).cast()) };
    }
    // Elsewhere it is waited for when it is read.
    #[cfg(not(target_arch = "x86_64"))]
    let _ = what;
}
