//! Tasks that the process cannot do without: where one ends that nobody has asked to, the process
//! would go on without probes, names, signals or operators, and look healthy.
//!
//! Those that only wait share one thread, with one event loop (tokio's). Those that may block, for a
//! file, a pipe or a program, have a thread each.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Handle};

type Act = dyn Fn(&'static str) + Send + Sync;

/// What is done where a task has ended by itself.
static ON_END: Mutex<Option<Arc<Act>>> = Mutex::new(None);

/// The event loop that tasks share, once there is one.
static RUNTIME: Mutex<Option<Handle>> = Mutex::new(None);

/// Says what is to be done where a task ends by itself, with its name. The last one that was said is
/// done: a start that falls back to another way says it again.
pub fn on_end(act: impl Fn(&'static str) + Send + Sync + 'static) {
    *lock(&ON_END) = Some(Arc::new(act));
}

/// The event loop that tasks share. It runs until the process ends.
///
/// # Errors
///
/// When the system is out of threads or descriptors.
pub fn runtime() -> io::Result<Handle> {
    let mut shared = lock(&RUNTIME);
    if let Some(handle) = &*shared {
        return Ok(handle.clone());
    }
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let run = move || runtime.block_on(std::future::pending());
    ControlTask::spawn_blocking("control", run)?;
    *shared = Some(handle.clone());
    Ok(handle)
}

/// A task of the control plane. It is needed until it is [released](Self::release).
#[derive(Debug)]
pub struct ControlTask {
    is_needed: Arc<AtomicBool>,
    /// Is closed when the task has ended.
    ended: Mutex<Receiver<()>>,
}

impl ControlTask {
    /// Starts a task that never blocks, on the thread that all of these share.
    ///
    /// # Errors
    ///
    /// As for [`runtime`].
    pub fn spawn(
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<Self> {
        let (end, started) = Self::new(name);
        runtime()?.spawn(async move {
            let _end = end;
            task.await;
        });
        Ok(started)
    }

    /// Starts one that may block, on a thread of its own.
    ///
    /// # Errors
    ///
    /// When the system is out of threads.
    pub fn spawn_blocking(
        name: &'static str,
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let (end, started) = Self::new(name);
        std::thread::Builder::new().name(name.into()).spawn(move || {
            let _end = end;
            body();
        })?;
        Ok(started)
    }

    fn new(name: &'static str) -> (End, Self) {
        let (sender, ended) = channel();
        let is_needed = Arc::new(AtomicBool::new(true));
        let end = End { name, is_needed: Arc::clone(&is_needed), _sender: sender };
        (end, Self { is_needed, ended: Mutex::new(ended) })
    }

    /// From now on it may end. To be called before it is asked to.
    pub fn release(&self) {
        self.is_needed.store(false, Ordering::Release);
    }

    /// Waits until it has ended.
    pub fn join(&self) {
        self.release();
        // Nothing is sent: this is the end, be it by a panic, which has been printed.
        let _ = lock(&self.ended).recv();
    }

    /// Waits until it has ended, but no longer than `timeout`. Says whether it has.
    pub fn join_within(&self, timeout: Duration) -> bool {
        self.release();
        lock(&self.ended).recv_timeout(timeout) != Err(RecvTimeoutError::Timeout)
    }
}

/// Dropped when a task ends, be it by a panic.
struct End {
    name: &'static str,
    is_needed: Arc<AtomicBool>,
    _sender: Sender<()>,
}

impl Drop for End {
    fn drop(&mut self) {
        if self.is_needed.load(Ordering::Acquire) {
            let act = lock(&ON_END).clone();
            act.into_iter().for_each(|act| act(self.name));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_ends_by_itself_is_told_and_one_that_was_released_is_not() {
        let (sender, ended) = channel();
        on_end(|name| unreachable!("{name} is told to those who were said last"));
        on_end(move |name| sender.send(name).expect("it is waited for"));
        let (go, wait) = channel::<()>();
        let released = ControlTask::spawn_blocking("released", move || {
            let _ = wait.recv();
        });
        let released = released.unwrap();
        released.release();
        drop(go);
        released.join();
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let released = ControlTask::spawn("released too", async {
            let _ = wait.await;
        });
        let released = released.unwrap();
        released.release();
        drop(go);
        released.join();
        let ways: [fn() -> io::Result<ControlTask>; 4] = [
            || ControlTask::spawn_blocking("ends", || panic!("on purpose")),
            || ControlTask::spawn("ends", async { panic!("on purpose") }),
            || ControlTask::spawn_blocking("ends", || {}),
            || ControlTask::spawn("ends", async {}),
        ];
        for start in ways {
            let task = start().unwrap();
            assert_eq!(ended.recv(), Ok("ends"));
            task.join();
        }
    }

    #[test]
    fn a_task_that_goes_on_is_not_waited_for_longer_than_is_said() {
        let (go, wait) = channel::<()>();
        let task = ControlTask::spawn_blocking("goes on", move || {
            let _ = wait.recv();
        });
        assert!(!task.unwrap().join_within(Duration::from_millis(1)));
        drop(go);
    }
}
