//! What the process uses of the system, as its host accounts for it.

use std::time::Duration;

use flowgate_core::Instant;
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeVal;

use crate::admin::status::UsageDoc;

/// How long a count of open files is good: where the kernel does not keep it, each is looked at.
const FRESH: Duration = Duration::from_secs(5);

/// Looks at what the process uses.
#[derive(Debug, Default)]
pub struct Usage {
    open_files: Option<(Instant, u64)>,
}

impl Usage {
    /// What it uses now. What cannot be found out is 0.
    pub fn look(&mut self, now: Instant) -> UsageDoc {
        let cpu_seconds = getrusage(UsageWho::RUSAGE_SELF)
            .map_or(0.0, |usage| seconds(usage.user_time()) + seconds(usage.system_time()));
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let (counted, open_files) = match self.open_files {
            Some((at, count)) if now.saturating_since(at) < FRESH => (at, count),
            _ => (now, open_files()),
        };
        self.open_files = Some((counted, open_files));
        UsageDoc {
            cpu_seconds,
            resident_bytes: kibibytes(&status, "VmRSS:"),
            virtual_bytes: kibibytes(&status, "VmSize:"),
            threads: number(&status, "Threads:"),
            open_files,
            open_files_max: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft),
        }
    }
}

fn seconds(time: TimeVal) -> f64 {
    time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6
}

/// Linux 6.2 and later say it as the size of the directory.
fn open_files() -> u64 {
    let directory = "/proc/self/fd";
    match std::fs::metadata(directory).map(|metadata| metadata.len()) {
        Ok(0) | Err(_) => std::fs::read_dir(directory).map_or(0, |all| all.count() as u64),
        Ok(count) => count,
    }
}

fn kibibytes(status: &str, key: &str) -> u64 {
    number(status, key) << 10
}

fn number(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_threads_and_files() {
        let mut usage = Usage::default();
        let now = Instant::from_millis(1);
        let first = usage.look(now);
        assert!(first.resident_bytes > 1 << 20 && first.virtual_bytes >= first.resident_bytes);
        assert!(first.threads > 0 && first.cpu_seconds > 0.0);
        assert!(first.open_files > 2 && first.open_files_max >= first.open_files);

        // Files are not counted again at once, and are after a while. Other tests open files too.
        let files: Vec<_> =
            (0..50).map(|_| std::fs::File::open("/dev/null").expect("a file")).collect();
        assert_eq!(usage.look(now + FRESH / 2).open_files, first.open_files);
        assert!(usage.look(now + FRESH).open_files >= files.len() as u64);
    }
}
