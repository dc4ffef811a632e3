//! Arrays in the kernel that are memory of this process too.

use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// An array map's values, shared with the kernel.
#[derive(Debug)]
pub(crate) struct Memory<T> {
    at: NonNull<T>,
    count: usize,
}

/// What may lie in memory that the kernel writes at any time: atomics without padding, of which any
/// pattern of bits is a value.
///
/// # Safety
///
/// The implementor vouches for that.
pub(crate) unsafe trait Shared: Sync {}

// SAFETY: four and two atomic numbers; an atomic number and one that nobody writes.
unsafe impl Shared for crate::EntryAccount {}
// SAFETY: as above.
unsafe impl Shared for crate::Turn {}
// SAFETY: as above.
unsafe impl Shared for crate::Gate {}

impl<T: Shared> Memory<T> {
    /// Maps the values of an array map of `count`, which must have values of this type.
    pub(crate) fn map(map: BorrowedFd<'_>, count: usize) -> std::io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8), "values lie eight octets apart") };
        let length = NonZeroUsize::new(count * size_of::<T>()).ok_or(nix::Error::EINVAL)?;
        let (rights, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory of ours. The
        // kernel refuses one that is longer than the map.
        let at = unsafe { mmap(None, length, rights, flags, map, 0) }?;
        Ok(Self { at: at.cast(), count })
    }
}

impl<T> Deref for Memory<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping is aligned to a page, holds `count` values, zeroed at first, whose
        // every pattern of bits is valid, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.count) }
    }
}

impl<T> Drop for Memory<T> {
    fn drop(&mut self) {
        // SAFETY: a mapping of ours, to which no reference is left.
        let _ = unsafe { munmap(self.at.cast(), self.count * size_of::<T>()) };
    }
}

// SAFETY: it owns the mapping, and gives out only shared references to atomics.
unsafe impl<T: Shared> Send for Memory<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for Memory<T> {}
