//! What a process under test has used, read from `/proc`.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// The resources of a process and of its children.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// CPU time of all threads.
    pub(crate) cpu: Duration,
    /// Time that threads were ready to run while something else had their core.
    pub(crate) waited: Duration,
    /// Resident memory, in bytes, of the largest process: the worker, where a master looks after one.
    pub(crate) resident: u64,
    /// The most that it ever was.
    pub(crate) peak: u64,
}

impl Usage {
    /// What the process `id` and its children have used until now.
    pub(crate) fn of(id: u32) -> io::Result<Self> {
        let process = Path::new("/proc").join(id.to_string());
        let status = fs::read_to_string(process.join("status"))?;
        let mut usage = Usage {
            cpu: Duration::ZERO,
            waited: Duration::ZERO,
            resident: kilobytes(&status, "VmRSS:") * 1_024,
            peak: kilobytes(&status, "VmHWM:") * 1_024,
        };
        for thread in fs::read_dir(process.join("task"))? {
            let thread = thread?.path();
            let (cpu, waited) = scheduled(&fs::read_to_string(thread.join("schedstat"))?);
            usage.cpu += cpu;
            usage.waited += waited;
            for child in fs::read_to_string(thread.join("children"))?.split_whitespace() {
                let child = Usage::of(child.parse().map_err(io::Error::other)?)?;
                usage.cpu += child.cpu;
                usage.waited += child.waited;
                usage.resident = usage.resident.max(child.resident);
                usage.peak = usage.peak.max(child.peak);
            }
        }
        Ok(usage)
    }
}

/// The first two numbers of `schedstat`: the time spent on a CPU, and the time spent waiting for one.
fn scheduled(schedstat: &str) -> (Duration, Duration) {
    let mut numbers = schedstat.split_whitespace().map(|number| number.parse().unwrap_or(0));
    let mut next = || Duration::from_nanos(numbers.next().unwrap_or(0));
    (next(), next())
}

/// The value of one line of `status`.
fn kilobytes(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|line| line.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_process_has_used_cpu_and_memory() {
        let before = Usage::of(std::process::id()).unwrap();
        let begin = std::time::Instant::now();
        while begin.elapsed() < Duration::from_millis(50) {
            std::hint::spin_loop();
        }
        let after = Usage::of(std::process::id()).unwrap();
        assert!(after.cpu > before.cpu);
        assert!(after.resident > 0 && after.peak >= after.resident);
    }

    #[test]
    fn the_lines_of_proc_are_read() {
        let times = (Duration::from_nanos(504_334_414), Duration::from_nanos(164_963));
        assert_eq!(scheduled("504334414 164963 6\n"), times);
        assert_eq!(kilobytes("Name:\tnginx\nVmRSS:\t    1724 kB\n", "VmRSS:"), 1_724);
    }
}
