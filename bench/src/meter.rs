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
            let read = |file| fs::read_to_string(thread.join(file));
            // A thread may end, and a child with it, while it is looked at.
            let (Ok(schedstat), Ok(children)) = (read("schedstat"), read("children")) else {
                continue;
            };
            let (cpu, waited) = scheduled(&schedstat);
            usage.cpu += cpu;
            usage.waited += waited;
            let children = children.split_whitespace().filter_map(|child| child.parse().ok());
            for child in children.filter_map(|child| Usage::of(child).ok()) {
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
pub(crate) fn scheduled(schedstat: &str) -> (Duration, Duration) {
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
    fn a_busy_process_uses_cpu_and_memory() {
        let mut busy =
            std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let mut usage = Usage::of(busy.id()).unwrap();
        while usage.cpu < Duration::from_millis(5) {
            usage = Usage::of(busy.id()).unwrap();
        }
        assert!(usage.resident > 0 && usage.peak >= usage.resident);
        busy.kill().unwrap();
        busy.wait().unwrap();
    }

    #[test]
    fn the_lines_of_proc_are_read() {
        let times = (Duration::from_nanos(504_334_414), Duration::from_nanos(164_963));
        assert_eq!(scheduled("504334414 164963 6\n"), times);
        assert_eq!(kilobytes("Name:\tnginx\nVmRSS:\t    1724 kB\n", "VmRSS:"), 1_724);
    }
}
