//! What the process uses of the system, as its host accounts for it.

use std::time::Duration;

use flowgate_core::Instant;

use crate::admin::status::UsageDoc;
use crate::sys::process;

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
        let used = process::usage();
        let (counted, open_files) = match self.open_files {
            Some((at, count)) if now.saturating_since(at) < FRESH => (at, count),
            _ => (now, process::open_files()),
        };
        self.open_files = Some((counted, open_files));
        UsageDoc {
            cpu_seconds: used.cpu_seconds,
            resident_bytes: used.resident_bytes,
            virtual_bytes: used.virtual_bytes,
            threads: used.threads,
            open_files,
            open_files_max: process::open_files_max(),
        }
    }
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
