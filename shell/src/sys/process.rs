//! What the process asks of the system for itself.

use std::io;
use std::os::fd::RawFd;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// How many descriptors are kept back from flows at most.
const MAX_KEPT_BACK: u64 = 32;

/// Raises the soft limit on open files to the hard one and returns it (`RLIMIT_NOFILE`).
///
/// # Errors
///
/// Those of `getrlimit(2)` and `setrlimit(2)`.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// How many of the process's descriptors flows may have: all but a few, in which operators come in
/// and files are opened.
pub fn descriptors_for_flows() -> RawFd {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((0, 0));
    let kept_back = MAX_KEPT_BACK.min(soft / 16);
    // Without a limit, or one that is not known, the kernel alone says when there are none left.
    RawFd::try_from(soft - kept_back).ok().filter(|&most| most > 0).unwrap_or(RawFd::MAX)
}

/// Makes the kernel's table of the process's descriptors large enough for `count` of them, at once.
///
/// Otherwise it doubles when it is full, and in a process of several threads each doubling waits
/// for every processor to pass a quiescent state (RCU): some milliseconds, in which a thread that opens
/// a socket stands still.
///
/// # Errors
///
/// Those of `open(2)` and `fcntl(2)`; the table then grows as it must.
pub fn reserve_descriptors(count: u64) -> io::Result<()> {
    let any = std::fs::File::open("/dev/null")?;
    let last = i32::try_from(count.saturating_sub(1)).unwrap_or(i32::MAX);
    rustix::io::fcntl_dupfd_cloexec(&any, last)?;
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
    Ok(getrandom::u64()?)
}
