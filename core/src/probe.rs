//! When to probe which target, and what its results add up to.
//!
//! A [`HealthChecker`] holds the schedule and the hysteresis of active probes and nothing else. It
//! opens no sockets: it says which probe to start and which to give up, is told how each ended, and
//! says when a target has gone down or come up.
//!
//! ```
//! use flowgate_core::Instant;
//! use flowgate_core::probe::{HealthChecker, HealthOutput, ProbeOutcome, ProbePolicy};
//! use std::time::Duration;
//!
//! let policy = ProbePolicy {
//!     interval: Duration::from_secs(5),
//!     timeout: Duration::from_secs(2),
//!     rise: 2,
//!     fall: 1,
//! };
//! let mut checker = HealthChecker::new(42);
//! let target = checker.add(policy, Instant::ORIGIN);
//!
//! let now = checker.poll_timeout().unwrap();
//! let mut outputs = vec![];
//! checker.handle_timeout(now, &mut |output| outputs.push(output));
//! assert_eq!(outputs, [HealthOutput::StartProbe { target, attempt: 1 }]);
//!
//! outputs.clear();
//! checker.finished(target, 1, ProbeOutcome::Refused, now, &mut |output| outputs.push(output));
//! let outcome = ProbeOutcome::Refused;
//! assert_eq!(outputs, [HealthOutput::Changed { target, is_up: false, outcome }]);
//! ```
//!
//! # The schedule
//!
//! A target's first probe comes within a second, or within its interval if that is shorter; each
//! further one an interval after the one before was *started*, give or take a tenth; sooner where
//! something else [speaks against](HealthChecker::hasten) the target. Both are drawn
//! at random, so that targets are not probed in step, and do not fall into step later.
//!
//! A target has at most one probe at a time. If it outlasts the interval, or the caller was held up
//! for longer than that, the target has missed its turn: it gets one somewhere in the interval that
//! follows. Nothing is made up for, however far the clock jumps.

use alloc::collections::{BTreeMap, BTreeSet};
use core::time::Duration;

use crate::random::Random;
use crate::time::Instant;

/// The longest that a new target waits for its first probe.
const FIRST_WITHIN: Duration = Duration::from_secs(1);

/// How soon a probe follows another one while something else speaks against its target.
const HASTENED_INTERVAL: Duration = Duration::from_millis(500);

/// An interval or timeout is taken to be at least this long.
const MIN_TIME: Duration = Duration::from_millis(1);

/// A target of a [`HealthChecker`]. It is never given again, even after the target has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId(u64);

impl TargetId {
    /// The id of that number. One that was never given is harmless: nobody has it.
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// Its number: 0 for the first target, then 1, and so on.
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// How often a target is probed, and how much it takes to change the opinion of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbePolicy {
    /// From the start of one probe to the start of the next, give or take a tenth; at least 1 ms.
    pub interval: Duration,
    /// How long a probe may take; at least 1 ms.
    pub timeout: Duration,
    /// How many probes in a row must succeed to bring a target up; 0 means 1.
    pub rise: u32,
    /// How many probes in a row must fail to take a target down; 0 means 1.
    pub fall: u32,
}

/// What the probes of a target say so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opinion {
    /// Whether it is up.
    pub is_up: bool,
    /// How many results in a row have spoken against that.
    pub against: u32,
}

/// Nothing is known against it.
impl Default for Opinion {
    fn default() -> Self {
        Self { is_up: true, against: 0 }
    }
}

/// How a probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProbeOutcome {
    /// As it should: connected, or answered as expected.
    Answered,
    /// Something else was answered.
    WrongAnswer,
    /// Nobody serves the port.
    Refused,
    /// There is no way to the host.
    Unreachable,
    /// Nothing was heard in time.
    TimedOut,
    /// Nothing was learned, for want of something here, such as descriptors. It counts neither for
    /// the target nor against it.
    Inconclusive,
}

impl ProbeOutcome {
    /// Whether it speaks for the target; `None` if it says nothing about it.
    pub const fn verdict(self) -> Option<bool> {
        match self {
            Self::Answered => Some(true),
            Self::WrongAnswer | Self::Refused | Self::Unreachable | Self::TimedOut => Some(false),
            Self::Inconclusive => None,
        }
    }
}

/// Completes the sentence "the last probe ...".
impl core::fmt::Display for ProbeOutcome {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Answered => "was answered",
            Self::WrongAnswer => "got a wrong answer",
            Self::Refused => "was refused",
            Self::Unreachable => "could not reach it",
            Self::TimedOut => "timed out",
            Self::Inconclusive => "could not be made",
        })
    }
}

/// What is to be done, or has become of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthOutput {
    /// Start a probe, and tell [`HealthChecker::finished`] how it ended.
    StartProbe {
        /// Whom to probe.
        target: TargetId,
        /// The number of the probe among those of its target.
        attempt: u64,
    },
    /// Give up a probe: its time is over. What it still hears is ignored.
    CancelProbe {
        /// Whose probe.
        target: TargetId,
        /// Its number.
        attempt: u64,
    },
    /// A target has gone down or come up, or is known to be up from its first probe.
    Changed {
        /// Which one.
        target: TargetId,
        /// Whether it is up now.
        is_up: bool,
        /// How the probe ended that decided it.
        outcome: ProbeOutcome,
    },
}

/// The schedule and the hysteresis of the probes of any number of targets.
///
/// Each call takes time logarithmic in the number of targets; a timeout does for each that is due.
#[derive(Clone, Debug)]
pub struct HealthChecker {
    targets: BTreeMap<TargetId, Target>,
    /// Each target once, at its [`Target::due`].
    schedule: BTreeSet<(Instant, TargetId)>,
    random: Random,
    next_number: u64,
}

#[derive(Clone, Debug)]
struct Target {
    policy: ProbePolicy,
    is_up: bool,
    /// Whether a probe has said so.
    is_checked: bool,
    /// How many results in a row have spoken against `is_up`.
    against: u32,
    /// The number of the latest probe.
    attempt: u64,
    /// Whether something else speaks against it: then probes follow each other quickly until they
    /// have decided.
    is_hastened: bool,
    stage: Stage,
    /// When the stage ends: the next probe starts, or the running one is given up.
    /// [`Instant::FAR_FUTURE`] means never.
    due: Instant,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Until its next probe.
    Waiting {
        /// Whether it has missed its turn already; then it gets the next one, however late.
        is_postponed: bool,
    },
    Running {
        started: Instant,
    },
}

impl HealthChecker {
    /// A checker without targets; all its randomness grows from `seed`.
    pub const fn new(seed: u64) -> Self {
        Self {
            targets: BTreeMap::new(),
            schedule: BTreeSet::new(),
            random: Random::new(seed),
            next_number: 0,
        }
    }

    /// Adds a target, which is up until probes say otherwise.
    pub fn add(&mut self, policy: ProbePolicy, now: Instant) -> TargetId {
        self.add_known(policy, Opinion::default(), now)
    }

    /// Adds a target of which something is known from another checker's probes.
    pub fn add_known(&mut self, policy: ProbePolicy, opinion: Opinion, now: Instant) -> TargetId {
        let id = TargetId(self.next_number);
        self.next_number += 1;
        let due = self.first_due(policy, now);
        let stage = Stage::Waiting { is_postponed: false };
        let Opinion { is_up, against } = opinion;
        // That one is down nobody takes for granted.
        let is_checked = !is_up;
        let target = Target {
            policy,
            is_up,
            is_checked,
            against,
            attempt: 0,
            is_hastened: false,
            stage,
            due,
        };
        self.targets.insert(id, target);
        self.schedule.insert((due, id));
        id
    }

    /// Forgets a target. A probe of it that is running may be given up.
    pub fn remove(&mut self, id: TargetId) {
        if let Some(target) = self.targets.remove(&id) {
            self.schedule.remove(&(target.due, id));
        }
    }

    /// Follows another policy from now on, with the state, the counts and the running probe that the
    /// target has. What is due stays due, unless the new policy would have it sooner.
    pub fn set_policy(&mut self, id: TargetId, policy: ProbePolicy, now: Instant) {
        let Some(target) = self.targets.get_mut(&id) else { return };
        target.policy = policy;
        let wait = match target.stage {
            Stage::Waiting { .. } => jittered(policy.interval, &mut self.random),
            Stage::Running { .. } => policy.timeout.max(MIN_TIME),
        };
        let due = target.due.min(now + wait);
        target.move_to(due, id, &mut self.schedule);
    }

    /// Probes a target that is up soon, since something else speaks against it; and where such a probe
    /// fails, again soon, until as many have failed as it takes, or one has not.
    pub fn hasten(&mut self, id: TargetId, now: Instant) {
        let Some(target) = self.targets.get_mut(&id) else { return };
        if !target.is_up || target.is_hastened {
            return;
        }
        target.is_hastened = true;
        if matches!(target.stage, Stage::Waiting { .. }) && target.due > now {
            target.stage = Stage::Waiting { is_postponed: false };
            target.move_to(now, id, &mut self.schedule);
        }
    }

    /// Begins again with a target that is to be probed in another way: what the former probes had
    /// counted up to is forgotten, the running one is ignored, a first one comes soon. Only whether
    /// the target is up stays as it is, until the new probes say otherwise.
    pub fn restart(&mut self, id: TargetId, now: Instant) {
        let Some(policy) = self.targets.get(&id).map(|target| target.policy) else { return };
        let due = self.first_due(policy, now);
        if let Some(target) = self.targets.get_mut(&id) {
            target.against = 0;
            target.stage = Stage::Waiting { is_postponed: false };
            target.move_to(due, id, &mut self.schedule);
        }
    }

    /// What the probes of a target say so far; `None` if there is no such target.
    pub fn opinion(&self, id: TargetId) -> Option<Opinion> {
        self.targets.get(&id).map(|target| Opinion { is_up: target.is_up, against: target.against })
    }

    /// Whether a probe has said whether a target is up.
    pub fn is_checked(&self, id: TargetId) -> bool {
        self.targets.get(&id).is_some_and(|target| target.is_checked)
    }

    /// Whether a target is up; `None` if there is no such target.
    pub fn is_up(&self, id: TargetId) -> Option<bool> {
        self.targets.get(&id).map(|target| target.is_up)
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let (due, _) = self.schedule.first()?;
        (*due < Instant::FAR_FUTURE).then_some(*due)
    }

    /// Takes in how a probe ended. The result of one that was given up is ignored.
    ///
    /// One that comes after the deadline but before the timeout that would give the probe up
    /// counts: a caller that looks at its sockets first never blames a target for being late itself.
    pub fn finished(
        &mut self,
        id: TargetId,
        attempt: u64,
        outcome: ProbeOutcome,
        now: Instant,
        emit: &mut impl FnMut(HealthOutput),
    ) {
        let Some(target) = self.targets.get_mut(&id) else { return };
        let Stage::Running { started } = target.stage else { return };
        if attempt == target.attempt {
            target.stage = Stage::Waiting { is_postponed: false };
            target.record(id, outcome, emit);
            let due = target.next_due(started, now, &mut self.random);
            target.move_to(due, id, &mut self.schedule);
        }
    }

    /// Starts the probes that are due, and gives up those whose time is over. Afterwards the next
    /// deadline is later than `now`. Calling it too early or twice is harmless.
    pub fn handle_timeout(&mut self, now: Instant, emit: &mut impl FnMut(HealthOutput)) {
        while let Some(&(due, id)) = self.schedule.first() {
            if due > now || due == Instant::FAR_FUTURE {
                return;
            }
            let Some(target) = self.targets.get_mut(&id) else {
                unreachable!("a target leaves the schedule when it is removed");
            };
            let next_due = target.take_turn(id, now, &mut self.random, emit);
            target.move_to(next_due, id, &mut self.schedule);
        }
    }

    fn first_due(&mut self, policy: ProbePolicy, now: Instant) -> Instant {
        somewhere_within(policy.interval.min(FIRST_WITHIN), now, &mut self.random)
    }
}

impl Target {
    /// Does what is due; returns what is due next, later than `now`.
    fn take_turn(
        &mut self,
        id: TargetId,
        now: Instant,
        random: &mut Random,
        emit: &mut impl FnMut(HealthOutput),
    ) -> Instant {
        match self.stage {
            Stage::Waiting { is_postponed: false }
                if now - self.due > self.policy.interval.max(MIN_TIME) =>
            {
                self.stage = Stage::Waiting { is_postponed: true };
                somewhere_within(self.policy.interval, now, random)
            }
            Stage::Waiting { .. } => {
                self.attempt += 1;
                self.stage = Stage::Running { started: now };
                emit(HealthOutput::StartProbe { target: id, attempt: self.attempt });
                now + self.policy.timeout.max(MIN_TIME)
            }
            Stage::Running { started } => {
                self.stage = Stage::Waiting { is_postponed: false };
                emit(HealthOutput::CancelProbe { target: id, attempt: self.attempt });
                self.record(id, ProbeOutcome::TimedOut, emit);
                self.next_due(started, now, random)
            }
        }
    }

    /// When to start the probe after the one that was started then and has ended now.
    fn next_due(&self, started: Instant, now: Instant, random: &mut Random) -> Instant {
        let interval = if self.is_hastened {
            self.policy.interval.min(HASTENED_INTERVAL)
        } else {
            self.policy.interval
        };
        let due = started + jittered(interval, random);
        if due > now { due } else { somewhere_within(interval, now, random) }
    }

    /// Counts a result, and tells if it tips the scales.
    fn record(&mut self, id: TargetId, outcome: ProbeOutcome, emit: &mut impl FnMut(HealthOutput)) {
        let Some(is_success) = outcome.verdict() else { return };
        self.is_hastened &= self.is_up && !is_success;
        if is_success == self.is_up {
            self.against = 0;
            if !core::mem::replace(&mut self.is_checked, true) {
                emit(HealthOutput::Changed { target: id, is_up: is_success, outcome });
            }
            return;
        }
        self.against = self.against.saturating_add(1);
        let enough = if self.is_up { self.policy.fall } else { self.policy.rise };
        if self.against >= enough {
            (self.against, self.is_hastened) = (0, false);
            (self.is_up, self.is_checked) = (is_success, true);
            emit(HealthOutput::Changed { target: id, is_up: is_success, outcome });
        }
    }

    fn move_to(
        &mut self,
        due: Instant,
        id: TargetId,
        schedule: &mut BTreeSet<(Instant, TargetId)>,
    ) {
        schedule.remove(&(self.due, id));
        schedule.insert((due, id));
        self.due = due;
    }
}

/// An interval, give or take a tenth.
fn jittered(interval: Duration, random: &mut Random) -> Duration {
    let nanos = nanos(interval);
    let shortest = nanos - nanos / 10;
    Duration::from_nanos(shortest.saturating_add(random.below(nanos / 5 + 1)))
}

/// A moment later than `now`, by at most `duration`.
fn somewhere_within(duration: Duration, now: Instant, random: &mut Random) -> Instant {
    now + Duration::from_nanos(random.below(nanos(duration)).saturating_add(1))
}

/// In nanoseconds, no less than a millisecond's.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.max(MIN_TIME).as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
