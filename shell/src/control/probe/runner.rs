//! The thread that probes: waits for all sockets at once, and carries out what the core decides.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flowgate_core::LocalSource;
use flowgate_core::config::Source;
use flowgate_core::probe::{HealthChecker, HealthOutput, Opinion, ProbeOutcome, TargetId};
use mio::{Events, Poll, Registry, Token};
use tracing::{info, warn};

use super::tcp::TcpProbe;
use super::udp::UdpProbe;
use super::{Command, Findings, HealthChange, ProbeMethod, ProbeSnapshot, ProbeTarget, TargetKey};
use crate::control::source;
use crate::sys::clock::Clock;
use crate::sys::{errno, udp};

/// There is a new set of targets, or the thread is to end. Every other token is the number of the
/// target whose socket it is about; no target gets this far.
pub(super) const WAKE: Token = Token(usize::MAX);

/// How many events one poll can return.
const EVENTS: usize = 256;

/// The largest datagram there is.
const MAX_REPLY_LEN: usize = 65_535;

/// All that the thread has.
pub(super) struct Runner<F> {
    poll: Poll,
    clock: Clock,
    commands: Receiver<Command>,
    /// What is known of the first targets from another process's probes.
    known: HashMap<TargetKey, Opinion>,
    /// What others read of what the probes find.
    findings: Arc<Mutex<Findings>>,
    on_change: F,
    checker: HealthChecker,
    /// What the checker has said and is not done yet.
    outputs: VecDeque<HealthOutput>,
    ids: HashMap<TargetKey, TargetId>,
    probed: HashMap<TargetId, Probed>,
    buffer: Vec<u8>,
    /// The clusters, and the family of their backends, whose probes could not be made when that was
    /// last tried.
    short: HashSet<(String, bool)>,
}

/// A target, and the probe of it that is running.
struct Probed {
    target: ProbeTarget,
    running: Option<Running>,
    /// Whether the latest probe that was given up had got wrong answers.
    got_wrong_answers: bool,
}

impl ProbeTarget {
    /// Its cluster, and whether it is of IPv6: what all probes have in common that leave from the
    /// same addresses.
    fn kind(&self) -> (String, bool) {
        (self.key.cluster.clone(), self.address.is_ipv6())
    }
}

struct Running {
    attempt: u64,
    socket: Socket,
}

enum Socket {
    Tcp(TcpProbe),
    Udp(UdpProbe),
}

impl<F: Fn(HealthChange)> Runner<F> {
    pub(super) fn new(
        poll: Poll,
        clock: Clock,
        seed: u64,
        commands: Receiver<Command>,
        (known, findings): (HashMap<TargetKey, Opinion>, Arc<Mutex<Findings>>),
        on_change: F,
    ) -> Self {
        Self {
            poll,
            clock,
            commands,
            known,
            findings,
            on_change,
            checker: HealthChecker::new(seed),
            outputs: VecDeque::new(),
            ids: HashMap::new(),
            probed: HashMap::new(),
            buffer: vec![0; MAX_REPLY_LEN],
            short: HashSet::new(),
        }
    }

    /// Runs until nobody can send targets any more.
    ///
    /// Sockets are read before timeouts fire, so that no target is blamed when this thread is late.
    pub(super) fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            let due = self.checker.poll_timeout();
            let timeout = due.map(|due| due.saturating_since(self.clock.now()));
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for token in events.iter().map(|event| event.token()).filter(|token| *token != WAKE) {
                self.progress(TargetId::from_number(token.0 as u64));
            }
            if !self.take_commands() {
                return Ok(());
            }
            let outputs = &mut self.outputs;
            self.checker.handle_timeout(self.clock.now(), &mut |output| outputs.push_back(output));
            self.carry_out();
        }
    }

    /// Does what it was told to; `false` when nothing more can come.
    fn take_commands(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Probe(targets)) => self.set_targets(targets),
                Ok(Command::Hasten(key)) => {
                    if let Some(id) = self.ids.get(&key) {
                        self.checker.hasten(*id, self.clock.now());
                    }
                }
                Ok(Command::Snapshot(reply)) => {
                    // The caller may have gone.
                    let _ = reply.send(self.snapshot());
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn set_targets(&mut self, targets: Vec<ProbeTarget>) {
        let kept: HashSet<_> = targets.iter().map(|target| &target.key).collect();
        let gone: Vec<_> = self.ids.keys().filter(|key| !kept.contains(key)).cloned().collect();
        for key in gone {
            self.remove(&key);
        }
        for target in targets {
            self.add(target);
        }
        // Those that come later are new.
        self.known.clear();
    }

    fn snapshot(&self) -> Vec<ProbeSnapshot> {
        let opinion = |(key, id): (&TargetKey, &TargetId)| {
            let Opinion { is_up, against } = self.checker.opinion(*id)?;
            Some(ProbeSnapshot { key: key.clone(), is_up, against })
        };
        self.ids.iter().filter_map(opinion).collect()
    }

    fn remove(&mut self, key: &TargetKey) {
        let Some(id) = self.ids.remove(key) else { return };
        self.findings().remove(key);
        if let Some(probed) = self.probed.remove(&id) {
            self.short.remove(&probed.target.kind());
        }
        let (was_up, was_checked) = (self.checker.is_up(id), self.checker.is_checked(id));
        self.checker.remove(id);
        if was_up == Some(false) {
            let TargetKey { cluster, backend } = key;
            info!(cluster = cluster.as_str(), %backend, "the backend is no longer probed, and taken to be up");
        }
        if was_checked {
            (self.on_change)(HealthChange { key: key.clone(), is_up: true, outcome: None });
        }
    }

    /// Adds a target, or changes what is known under its key.
    fn add(&mut self, target: ProbeTarget) {
        let now = self.clock.now();
        let entry = match self.ids.entry(target.key.clone()) {
            Entry::Occupied(entry) => entry,
            Entry::Vacant(entry) => {
                let opinion = self.known.remove(entry.key()).unwrap_or_default();
                let id = self.checker.add_known(target.policy, opinion, now);
                entry.insert(id);
                let probed = Probed { target, running: None, got_wrong_answers: false };
                self.probed.insert(id, probed);
                return;
            }
        };
        let id = *entry.get();
        let Some(probed) = self.probed.get_mut(&id) else { return };
        if probed.target.policy != target.policy {
            self.checker.set_policy(id, target.policy, now);
        }
        let what =
            |target: &ProbeTarget| (target.address, target.source.clone(), target.probe.clone());
        if what(&probed.target) != what(&target) {
            probed.running = None;
            self.checker.restart(id, now);
            self.short.remove(&target.kind());
            let findings = self.findings.lock();
            findings.unwrap_or_else(PoisonError::into_inner).remove(&target.key);
        }
        probed.target = target;
    }

    /// Looks at what has become of the probe of a target.
    fn progress(&mut self, id: TargetId) {
        // An event may be about the socket of a former probe; then there is nothing new.
        let Some(probed) = self.probed.get_mut(&id) else { return };
        let Some(running) = &mut probed.running else { return };
        let outcome = match (&mut running.socket, &probed.target.probe) {
            (Socket::Udp(udp), ProbeMethod::Udp { expect, .. }) => {
                udp.outcome(expect, &mut self.buffer)
            }
            (Socket::Tcp(tcp), _) => tcp.outcome(),
            (Socket::Udp(_), ProbeMethod::Tcp) => unreachable!("another probe has another socket"),
        };
        if let Some(outcome) = outcome {
            let attempt = running.attempt;
            probed.running = None;
            self.finish(id, attempt, outcome);
            self.carry_out();
        }
    }

    fn findings(&self) -> MutexGuard<'_, Findings> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets others know how a probe ended, unless nothing was learned of its target.
    fn publish(&self, id: TargetId, outcome: ProbeOutcome) {
        let probed = self.probed.get(&id).filter(|_| outcome.verdict().is_some());
        if let Some(probed) = probed {
            self.findings().insert(probed.target.key.clone(), outcome);
        }
    }

    fn finish(&mut self, id: TargetId, attempt: u64, outcome: ProbeOutcome) {
        self.publish(id, outcome);
        let (now, outputs) = (self.clock.now(), &mut self.outputs);
        self.checker.finished(id, attempt, outcome, now, &mut |output| outputs.push_back(output));
    }

    /// Does what the checker has said.
    fn carry_out(&mut self) {
        while let Some(output) = self.outputs.pop_front() {
            match output {
                HealthOutput::StartProbe { target, attempt } => self.start(target, attempt),
                HealthOutput::CancelProbe { target, .. } => {
                    let Some(probed) = self.probed.get_mut(&target) else { continue };
                    let socket = probed.running.take().map(|running| running.socket);
                    let wrong = matches!(socket, Some(Socket::Udp(udp)) if udp.got_wrong_answers());
                    probed.got_wrong_answers = wrong;
                    let outcome =
                        if wrong { ProbeOutcome::WrongAnswer } else { ProbeOutcome::TimedOut };
                    self.publish(target, outcome);
                }
                HealthOutput::Changed { target, is_up, outcome } => {
                    self.changed(target, is_up, outcome);
                }
            }
        }
    }

    fn start(&mut self, id: TargetId, attempt: u64) {
        let Some(probed) = self.probed.get_mut(&id) else { return };
        probed.got_wrong_answers = false;
        let token = Token(id.number() as usize);
        match open(&probed.target, self.poll.registry(), token) {
            Ok(socket) => {
                probed.running = Some(Running { attempt, socket });
                self.are_made(id);
            }
            Err(error) => {
                let outcome = errno::on_probe(&error);
                if outcome == ProbeOutcome::Inconclusive {
                    self.cannot_be_made(id, &error);
                }
                self.finish(id, attempt, outcome);
            }
        }
    }

    /// Says once of a cluster that its probes cannot be made, and what to do.
    fn cannot_be_made(&mut self, id: TargetId, error: &io::Error) {
        let Some(Probed { target, .. }) = self.probed.get(&id) else { return };
        if !self.short.insert(target.kind()) {
            return;
        }
        let from = match &target.source {
            Source::Local(_) => format!(" from {}", source::describe(&target.source)),
            Source::Any | Source::Client => String::new(),
        };
        warn!(
            cluster = target.key.cluster.as_str(),
            "health probes to {}{from} cannot be made, backends stay as they are: {error}; {}",
            target.address,
            source::advice_on_shortage(error)
        );
    }

    fn are_made(&mut self, id: TargetId) {
        let Some(Probed { target, .. }) = self.probed.get(&id) else { return };
        if !self.short.is_empty() && self.short.remove(&target.kind()) {
            let cluster = target.key.cluster.as_str();
            info!(cluster, "health probes to {} can be made again", target.address);
        }
    }

    fn changed(&self, id: TargetId, is_up: bool, outcome: ProbeOutcome) {
        let Some(probed) = self.probed.get(&id) else { return };
        let outcome = match outcome {
            ProbeOutcome::TimedOut if probed.got_wrong_answers => ProbeOutcome::WrongAnswer,
            outcome => outcome,
        };
        let TargetKey { cluster, backend } = &probed.target.key;
        if is_up {
            info!(cluster = cluster.as_str(), %backend, "the backend is up: the last probe {outcome}");
        } else {
            warn!(cluster = cluster.as_str(), %backend, "the backend is down: the last probe {outcome}");
        }
        let key = probed.target.key.clone();
        (self.on_change)(HealthChange { key, is_up, outcome: Some(outcome) });
    }
}

/// Opens the socket of a probe and sets it going.
fn open(target: &ProbeTarget, registry: &Registry, token: Token) -> io::Result<Socket> {
    let ProbeTarget { address, source, probe, .. } = target;
    let v6 = address.is_ipv6();
    let first = source.of_family(v6).next();
    let first = first.map_or(LocalSource::Any, |address| address.with_salt(0));
    udp::open_from(source, (first, v6), |from| match probe {
        ProbeMethod::Tcp => TcpProbe::start(*address, from, registry, token).map(Socket::Tcp),
        ProbeMethod::Udp { send, .. } => {
            UdpProbe::start(*address, from, send, registry, token).map(Socket::Udp)
        }
    })
}
