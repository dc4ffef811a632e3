//! What a process asks of Unix.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeVal;

use super::ProcessUsage;
use crate::sys::errno;

/// How many descriptors are kept back from flows at most.
const MAX_KEPT_BACK: u64 = 32;

/// Raises the soft limit on open files to the hard one and returns it (`RLIMIT_NOFILE`).
///
/// # Errors
///
/// Those of `getrlimit(2)` and `setrlimit(2)`.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => Ok(count(hard)),
        // macOS has a hard limit that it does not give.
        Err(_) if !cfg!(target_os = "linux") => Ok(count(soft)),
        Err(error) => Err(error.into()),
    }
}

/// Sockets of flows have lower descriptors than this: those above are for whatever else the process
/// opens, so that operators come in and files are opened however many flows there are.
#[derive(Clone, Copy, Debug)]
pub struct DescriptorLimit(RawFd);

impl DescriptorLimit {
    /// All but a few of those that the process may have.
    pub fn of_this_process() -> Self {
        let soft = open_files_max();
        let kept_back = MAX_KEPT_BACK.min(soft / 16);
        // Without a limit, or one that is not known, the kernel alone says when there are none left.
        let most = RawFd::try_from(soft - kept_back).ok().filter(|&most| most > 0);
        Self(most.unwrap_or(RawFd::MAX))
    }

    /// Leaves the last descriptors to others: the kernel always gives the lowest one that is free.
    ///
    /// # Errors
    ///
    /// `EMFILE` if the socket has one of the last.
    pub fn check(self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let is_one_of_the_last = socket.as_raw_fd() >= self.0;
        if is_one_of_the_last { Err(errno::out_of_descriptors()) } else { Ok(()) }
    }
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
#[cfg(target_os = "linux")]
pub fn reserve_descriptors(count: u64) -> io::Result<()> {
    let any = std::fs::File::open("/dev/null")?;
    let last = i32::try_from(count.saturating_sub(1)).unwrap_or(i32::MAX);
    rustix::io::fcntl_dupfd_cloexec(&any, last)?;
    Ok(())
}

/// Elsewhere tables of descriptors grow as they must.
///
/// # Errors
///
/// None.
#[cfg(not(target_os = "linux"))]
pub const fn reserve_descriptors(_count: u64) -> io::Result<()> {
    Ok(())
}

/// Whether a process has ended, with all of its threads and descriptors. Its first thread may be gone
/// before the others are, and descriptors close with the last. Nobody need have waited for it.
#[cfg(target_os = "linux")]
pub fn has_ended(process: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).map_or(0, Iterator::count);
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name before it may hold anything.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    threads <= 1 && matches!(state, None | Some('Z' | 'X'))
}

/// Whether a process has ended.
#[cfg(not(target_os = "linux"))]
pub fn has_ended(process: u32) -> bool {
    use nix::errno::Errno;
    let pid = nix::unistd::Pid::from_raw(process.cast_signed());
    nix::sys::signal::kill(pid, None) == Err(Errno::ESRCH)
}

/// The name of this machine.
pub fn host_name() -> Option<String> {
    nix::unistd::gethostname().ok()?.into_string().ok()
}

/// What the process uses. What cannot be found out is 0, as where there is no `/proc`.
pub fn usage() -> ProcessUsage {
    let cpu_seconds = getrusage(UsageWho::RUSAGE_SELF)
        .map_or(0.0, |usage| seconds(usage.user_time()) + seconds(usage.system_time()));
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ProcessUsage {
        cpu_seconds,
        resident_bytes: kibibytes(&status, "VmRSS:"),
        virtual_bytes: kibibytes(&status, "VmSize:"),
        threads: number(&status, "Threads:"),
    }
}

/// How many files are open. Linux 6.2 and later say it as the size of the directory; before, each is
/// looked at.
pub fn open_files() -> u64 {
    let directory = "/proc/self/fd";
    match std::fs::metadata(directory).map(|metadata| metadata.len()) {
        Ok(0) | Err(_) => std::fs::read_dir(directory).map_or(0, |all| all.count() as u64),
        Ok(count) => count,
    }
}

/// How many files may be open.
pub fn open_files_max() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| count(soft))
}

/// Ends the process at once, whatever its other threads do and hold (`_exit(2)`).
pub fn exit_now(code: i32) -> ! {
    // SAFETY: it does not return, and takes no pointer.
    unsafe { libc::_exit(code) }
}

/// A limit as a number. Some systems have them signed, and none that is negative.
const fn count(limit: libc::rlim_t) -> u64 {
    u64::from_ne_bytes(limit.to_ne_bytes())
}

fn seconds(time: TimeVal) -> f64 {
    time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6
}

fn kibibytes(status: &str, key: &str) -> u64 {
    number(status, key) << 10
}

fn number(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or_default()
}
