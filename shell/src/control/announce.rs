//! Telling routers whether to send traffic here.
//!
//! An [`Announcer`] does it on a thread of its own, since a program may take its time and a socket
//! may be away. What fails is tried again for as long as it is wanted.

#[cfg_attr(windows, path = "announce/bird/none.rs")]
mod bird;
mod hysteresis;

use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use crate::control::task::ControlTask;

use flowgate_config::AnnounceBy;

pub(crate) use hysteresis::Hysteresis;

/// The first wait after something failed. It doubles up to [`MAX_RETRY_DELAY`].
const MIN_RETRY_DELAY: Duration = Duration::from_millis(500);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(15);

/// How often bird is told again: one that has been started again knows nothing of it.
const REPEAT: Duration = Duration::from_secs(5);

/// How long a program may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// From one look at a program to the next.
const POLL: Duration = Duration::from_millis(10);

/// What became of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Whether to announce was the order, rather than to withdraw.
    pub(crate) announced: bool,
    /// Why it is not carried out yet, if it is not.
    pub(crate) failure: Option<String>,
}

/// Carries out orders to announce and to withdraw. Dropped, it gives up what it has not done.
#[derive(Debug)]
pub(crate) struct Announcer {
    task: ControlTask,
    orders: Option<Sender<bool>>,
}

impl Announcer {
    /// Starts without an order. `on_outcome` is called on its thread: when an order is carried out,
    /// and at each failure. Before the first order it has a `former` one withdraw, and waits for
    /// that: both may speak of the same route, and the last word is to be this one's.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started.
    pub(crate) fn start(
        by: AnnounceBy,
        former: Option<Self>,
        on_outcome: impl Fn(Outcome) + Send + 'static,
    ) -> io::Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let task = ControlTask::spawn_blocking("announce", move || {
            if let Some(former) = former {
                former.order(false);
                former.finish(COMMAND_TIMEOUT);
            }
            carry_out(&inbox, |announced| tell(&by, announced), is_repeated(&by), on_outcome);
        })?;
        Ok(Self { task, orders: Some(orders) })
    }

    /// Has it announced, or withdrawn.
    pub(crate) fn order(&self, announced: bool) {
        // The thread ends after this only.
        let _ = self.orders.as_ref().map(|orders| orders.send(announced));
    }

    /// Waits until the last order has been carried out or has failed, but no longer than `timeout`.
    pub(crate) fn finish(mut self, timeout: Duration) {
        self.task.release();
        self.orders = None;
        self.task.join_within(timeout);
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        self.task.release();
    }
}

/// Whether what was told may have been forgotten.
const fn is_repeated(by: &AnnounceBy) -> bool {
    matches!(by, AnnounceBy::Bird { .. })
}

fn carry_out(
    inbox: &Receiver<bool>,
    tell: impl Fn(bool) -> Result<(), String>,
    is_repeated: bool,
    on_outcome: impl Fn(Outcome),
) {
    let Ok(mut wanted) = inbox.recv() else { return };
    let (mut is_done, mut retry) = (false, MIN_RETRY_DELAY);
    loop {
        // Of several orders the last one counts.
        while let Ok(order) = inbox.try_recv() {
            is_done &= order == wanted;
            wanted = order;
        }
        match tell(wanted) {
            Ok(()) if is_done => {}
            Ok(()) => {
                (is_done, retry) = (true, MIN_RETRY_DELAY);
                on_outcome(Outcome { announced: wanted, failure: None });
            }
            Err(error) => {
                is_done = false;
                on_outcome(Outcome { announced: wanted, failure: Some(error) });
            }
        }
        let order = match (is_done, is_repeated) {
            (true, false) => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            (true, true) => inbox.recv_timeout(REPEAT),
            (false, _) => {
                let wait = retry;
                retry = MAX_RETRY_DELAY.min(retry * 2);
                inbox.recv_timeout(wait)
            }
        };
        match order {
            Ok(order) => {
                is_done &= order == wanted;
                wanted = order;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn tell(by: &AnnounceBy, announced: bool) -> Result<(), String> {
    let verb = if announced { "announce" } else { "withdraw" };
    match by {
        AnnounceBy::Command(words) => run(words, verb),
        AnnounceBy::Bird { socket, protocol } => bird::tell(socket, protocol, announced),
        AnnounceBy::ExaBgp { routes, next_hop } => {
            let lines =
                routes.iter().map(|route| format!("{verb} route {route} next-hop {next_hop}\n"));
            let mut stdout = io::stdout().lock();
            let written = stdout.write_all(lines.collect::<String>().as_bytes());
            written
                .and_then(|()| stdout.flush())
                .map_err(|error| format!("standard output: {error}"))
        }
    }
}

/// Runs a program to its end.
fn run(words: &[String], verb: &str) -> Result<(), String> {
    let (program, arguments) = words.split_first().ok_or("no program")?;
    let mut command = Command::new(program);
    command.args(arguments).arg(verb).stdin(Stdio::null()).stdout(Stdio::null());
    // It is not this process, which the service manager wants to hear of.
    for variable in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "FDSTORE"] {
        command.env_remove(variable);
    }
    let mut child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
    let mut waited = Duration::ZERO;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("{program} {verb}: {status}")),
            Ok(None) if waited < COMMAND_TIMEOUT => {
                std::thread::sleep(POLL);
                waited += POLL;
            }
            outcome => {
                let _ = child.kill();
                let _ = child.wait();
                let why = outcome.err().map(|error| error.to_string());
                let why = why.unwrap_or_else(|| format!("it takes more than {COMMAND_TIMEOUT:?}"));
                return Err(format!("{program} {verb}: {why}"));
            }
        }
    }
}

#[cfg(test)]
mod tests;
