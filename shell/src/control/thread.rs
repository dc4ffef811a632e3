//! Threads that the process cannot do without: where one ends that nobody has asked to, the process
//! would go on without probes, names, signals or operators, and look healthy.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

type Act = dyn Fn(&'static str) + Send + Sync;

/// What is done where a thread has ended by itself.
static ON_END: Mutex<Option<Arc<Act>>> = Mutex::new(None);

/// Says what is to be done where a thread ends by itself, with its name. The last one that was said is
/// done: a start that falls back to another way says it again.
pub fn on_end(act: impl Fn(&'static str) + Send + Sync + 'static) {
    *ON_END.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(act));
}

/// A thread of the control plane. It is needed until it is [released](Self::release).
#[derive(Debug)]
pub struct ControlThread {
    handle: JoinHandle<()>,
    is_needed: Arc<AtomicBool>,
}

impl ControlThread {
    /// Starts one.
    ///
    /// # Errors
    ///
    /// When the system is out of threads.
    pub fn spawn(name: &'static str, body: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let is_needed = Arc::new(AtomicBool::new(true));
        let end = End { name, is_needed: Arc::clone(&is_needed) };
        let handle = std::thread::Builder::new().name(name.into()).spawn(move || {
            let _end = end;
            body();
        })?;
        Ok(Self { handle, is_needed })
    }

    /// From now on it may end. To be called before it is asked to.
    pub fn release(&self) {
        self.is_needed.store(false, Ordering::Release);
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// Waits until it has ended.
    pub fn join(self) {
        self.release();
        // A panic has been printed.
        let _ = self.handle.join();
    }
}

/// Dropped when a thread ends, be it by a panic.
struct End {
    name: &'static str,
    is_needed: Arc<AtomicBool>,
}

impl Drop for End {
    fn drop(&mut self) {
        if self.is_needed.load(Ordering::Acquire) {
            let act = ON_END.lock().unwrap_or_else(PoisonError::into_inner).clone();
            act.into_iter().for_each(|act| act(self.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_thread_that_ends_by_itself_is_told_and_one_that_was_released_is_not() {
        let (sender, ended) = mpsc::channel();
        on_end(|name| unreachable!("{name} is told to those who were said last"));
        on_end(move |name| sender.send(name).expect("it is waited for"));
        let (go, wait) = mpsc::channel::<()>();
        let released = ControlThread::spawn("released", move || {
            let _ = wait.recv();
        });
        let released = released.unwrap();
        released.release();
        drop(go);
        released.join();
        let panics = ControlThread::spawn("panics", || panic!("on purpose")).unwrap();
        assert_eq!(ended.recv(), Ok("panics"));
        let returns = ControlThread::spawn("returns", || {}).unwrap();
        assert_eq!(ended.recv(), Ok("returns"));
        panics.join();
        returns.join();
    }
}
