//! Active health checks: probes of backends with sockets of their own, on a thread of their own.
//!
//! The core's [`HealthChecker`](flowgate_core::probe::HealthChecker) says when to probe whom and
//! what the results add up to. This module has the sockets: [`tcp`] connects, [`udp`] asks a
//! question and judges the answer ([`question`], [`preset`]); [`runner`] is the thread that waits
//! for all of them at once. Nothing here blocks, and no worker ever waits for it.
//!
//! Each probe has a socket, hence a port, of its own, so that nothing that is sent to one probe
//! reaches another: not the late answer to the one before, nor an answer over another protocol.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flowgate_core::config::Source;
use flowgate_core::probe::{Opinion, ProbeOutcome, ProbePolicy};
use flowgate_core::snapshot::address;
use mio::Waker;
use serde::{Deserialize, Serialize};
use tracing::error;

use crate::control::task::ControlTask;
use crate::sys::clock::Clock;

pub mod preset;
pub mod question;
mod runner;
mod tcp;
mod udp;

pub use question::{ExpectedReply, ProbePayload};

/// Whose health a probe is about: a backend, as a member of one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TargetKey {
    /// The name of the cluster.
    pub cluster: String,
    /// The address that the backend serves.
    #[serde(with = "address")]
    pub backend: SocketAddr,
}

/// What is to be probed, how, and how often.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeTarget {
    /// Whose health it tells.
    pub key: TargetKey,
    /// Where the probes go: the backend's host, often at a port of its own.
    pub address: SocketAddr,
    /// The addresses of ours of which they come from the first that can be had.
    pub source: Source,
    /// What is done there.
    pub probe: ProbeMethod,
    /// How often, and how much it takes to change the opinion of the backend.
    pub policy: ProbePolicy,
}

/// What a probe does. It succeeds or fails; every way to fail counts alike.
#[derive(Clone, Debug, PartialEq)]
pub enum ProbeMethod {
    /// Connects, and is content with that: the connection is reset at once.
    Tcp,
    /// Sends one datagram and waits for the right answer.
    ///
    /// A wrong answer does not end the wait, since a stray or forged one may come before the right
    /// one; if that does not follow in time, the probe has failed.
    Udp {
        /// What is sent.
        send: ProbePayload,
        /// What the answer must be, besides what a preset asks of it.
        expect: ExpectedReply,
    },
}

/// A backend has gone down or come up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthChange {
    /// Which one.
    pub key: TargetKey,
    /// Whether it is up now.
    pub is_up: bool,
    /// How the probe ended that decided it; `None` if the backend is no longer probed, so that
    /// nothing is known against it any more.
    pub outcome: Option<ProbeOutcome>,
}

/// What the probes of one target say so far, for another process to go on with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeSnapshot {
    /// Whose health it is about.
    pub key: TargetKey,
    /// Whether it is up.
    pub is_up: bool,
    /// How many results in a row have spoken against that.
    pub against: u32,
}

/// How the latest probe of each target ended that has been probed, the way it is probed now.
pub type Findings = HashMap<TargetKey, ProbeOutcome>;

/// What the thread is asked to do.
enum Command {
    /// Probe these and no others.
    Probe(Vec<ProbeTarget>),
    /// Probe this one soon.
    Hasten(TargetKey),
    /// Say what the probes say.
    Snapshot(Sender<Vec<ProbeSnapshot>>),
}

/// The thread that probes. Dropping it ends the thread, and waits for that.
pub struct Prober {
    commands: Option<Sender<Command>>,
    waker: Waker,
    task: ControlTask,
    findings: Arc<Mutex<Findings>>,
}

impl Prober {
    /// Starts the thread, with nothing to probe yet. The schedule's randomness grows from `seed`.
    ///
    /// `on_change` is called from that thread, and must not block. Every target is taken to be up
    /// until it is said to be down, unless it is among the first that are to be probed and `known`
    /// says otherwise; one that leaves while it is down is said to be up. So the latest change of a
    /// key always tells how it stands.
    ///
    /// # Errors
    ///
    /// When the system is out of descriptors or threads.
    pub fn start(
        clock: Clock,
        seed: u64,
        known: Vec<ProbeSnapshot>,
        on_change: impl Fn(HealthChange) + Send + 'static,
    ) -> io::Result<Self> {
        let poll = mio::Poll::new()?;
        let waker = Waker::new(poll.registry(), runner::WAKE)?;
        let (commands, inbox) = mpsc::channel();
        let known: HashMap<TargetKey, Opinion> =
            known.into_iter().map(ProbeSnapshot::open).collect();
        let findings = Arc::<Mutex<Findings>>::default();
        let shared = Arc::clone(&findings);
        let mut runner = runner::Runner::new(poll, clock, seed, inbox, (known, shared), on_change);
        let run = move || {
            if let Err(error) = runner.run() {
                error!("health probes have ended: {error}");
            }
        };
        let task = ControlTask::spawn_blocking("probes", run)?;
        Ok(Self { commands: Some(commands), waker, task, findings })
    }

    /// Probes these targets and no others, from now on.
    ///
    /// A target that was there before, by its key, keeps its state. If its address and probe are the
    /// same, it keeps its schedule and the results counted so far too, even under another policy. If
    /// they are not, probes of the new kind begin with a clean slate: results of different kinds
    /// are never added up. Of several targets with one key the last one counts.
    pub fn set_targets(&self, targets: Vec<ProbeTarget>) {
        self.command(Command::Probe(targets));
    }

    /// Probes a target soon that traffic speaks against, and again until that is decided.
    pub fn hasten(&self, key: TargetKey) {
        self.command(Command::Hasten(key));
    }

    /// What the probes say so far.
    pub fn snapshot(&self) -> Vec<ProbeSnapshot> {
        let (sender, snapshot) = mpsc::channel();
        self.command(Command::Snapshot(sender));
        snapshot.recv().unwrap_or_default()
    }

    /// How the latest probe of each target ended. Probes wait while this is held.
    pub fn findings(&self) -> MutexGuard<'_, Findings> {
        // Each change of the map is one call, which leaves it whole.
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn command(&self, command: Command) {
        if let Some(commands) = &self.commands {
            // A thread that has ended has said so in the log.
            let _ = commands.send(command);
            let _ = self.waker.wake();
        }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.task.release();
        self.commands = None;
        let _ = self.waker.wake();
        self.task.join();
    }
}

impl ProbeSnapshot {
    fn open(self) -> (TargetKey, Opinion) {
        (self.key, Opinion { is_up: self.is_up, against: self.against })
    }
}

impl fmt::Debug for Prober {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prober").finish_non_exhaustive()
    }
}
