//! Someone who watches a balancer at work: `flowgate trace` or `flowgate record`, as long as it is measured.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often it is looked whether it runs yet.
const PERIOD: Duration = Duration::from_millis(50);

/// Watches until it is dropped.
pub(crate) struct Watcher {
    is_stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts a command of Flowgate's that watches. While the balancer is not ready yet, it is started
    /// again.
    pub(crate) fn start(program: PathBuf, arguments: Vec<String>) -> Self {
        let is_stopped = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&is_stopped);
        let thread = std::thread::spawn(move || {
            let mut child: Option<Child> = None;
            while !stop.load(Ordering::Relaxed) {
                let runs = child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)));
                if !runs {
                    let mut command = Command::new(&program);
                    command.args(&arguments);
                    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                    child = command.spawn().ok();
                }
                std::thread::sleep(PERIOD);
            }
            if let Some(mut child) = child {
                // It may have ended with the balancer.
                let _ = child.kill();
                let _ = child.wait();
            }
        });
        Self { is_stopped, thread: Some(thread) }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
