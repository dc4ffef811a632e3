//! What the process asks of the system for itself.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Raises the soft limit on open files to the hard one and returns it (`RLIMIT_NOFILE`).
///
/// # Errors
///
/// Those of `getrlimit(2)` and `setrlimit(2)`.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place to write to.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is a valid place to read from.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}

/// Makes the kernel's table of the process's descriptors large enough for `count` of them, at once.
///
/// Otherwise it doubles when it is full, and in a process of several threads each doubling waits
/// for every processor to pass a quiescent state (RCU): some milliseconds, in which whoever opens
/// a socket stands still.
///
/// # Errors
///
/// Those of `open(2)` and `fcntl(2)`; the table then grows as it must.
pub fn reserve_descriptors(count: u64) -> io::Result<()> {
    let any = std::fs::File::open("/dev/null")?;
    let last = libc::c_int::try_from(count.saturating_sub(1)).unwrap_or(libc::c_int::MAX);
    // SAFETY: no pointers; the descriptor is open.
    let highest = unsafe { libc::fcntl(any.as_raw_fd(), libc::F_DUPFD_CLOEXEC, last) };
    if highest < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was opened just now, and nobody else has it.
    drop(unsafe { OwnedFd::from_raw_fd(highest) });
    Ok(())
}

/// Whether a process has ended, with all of its threads and descriptors. Its first thread may be gone
/// before the others are, and descriptors close with the last. Nobody need have waited for it.
pub fn has_ended(process: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).map_or(0, Iterator::count);
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name before it may hold anything.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    threads <= 1 && matches!(state, None | Some('Z' | 'X'))
}

/// A random number from the operating system (`getrandom(2)`).
///
/// # Errors
///
/// Those of `getrandom(2)`.
pub fn random_seed() -> io::Result<u64> {
    let mut bytes = [0; 8];
    // SAFETY: the buffer is writable for its length.
    let filled = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if usize::try_from(filled) == Ok(bytes.len()) {
        Ok(u64::from_ne_bytes(bytes))
    } else {
        Err(io::Error::last_os_error())
    }
}
