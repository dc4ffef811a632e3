//! How one backend stands: with the probes, with the operator, and by what datagrams say of it.

#[cfg(feature = "snapshot")]
mod snapshot;

use core::time::Duration;

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

use crate::backend::event::BackendEvent;
use crate::config::{MAX_EJECTION, MIN_EJECTION, NETWORK_ERRORS, Passive};
use crate::time::Instant;

/// Network errors put a backend out of service that has been silent for this long: one that answers
/// someone is there, and the errors are forged or of another flow's making.
pub(crate) const MIN_SILENCE: Duration = Duration::from_millis(10);

/// Signs against a backend are forgotten when no other follows within this many back-offs.
const CALM_BACK_OFFS: u32 = 12;

/// Beyond this a time out of service is as long as it may be.
const MAX_LEVEL: u32 = 31;

/// Everything that is held for or against a backend. The kinds never mix their counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub(crate) struct BackendHealth {
    /// What the probes say, if they have said anything.
    pub(super) probe: Option<ProbeState>,
    pub(crate) drain: Drain,
    /// When it answered last, if it ever has.
    pub(super) last_answer: Option<Instant>,
    passive: PassiveHealth,
}

/// What probes say of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub(crate) enum ProbeState {
    Passing,
    Failing,
}

/// Whether the operator wants it free of flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub(crate) enum Drain {
    #[default]
    No,
    /// No new flows; those that live may go on until then, or to their ends.
    Until(Option<Instant>),
    /// No flows at all.
    Over,
}

/// Why datagrams have put a backend out of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub enum EjectionCause {
    /// The network said that it is not there: port, host or network unreachable, no route.
    NetworkErrors,
    /// Clients that had been answered before got no answer from it, while others answered.
    Unanswered,
}

impl EjectionCause {
    /// Both.
    pub const ALL: [Self; 2] = [Self::NetworkErrors, Self::Unanswered];

    /// The name in reports and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NetworkErrors => "network_errors",
            Self::Unanswered => "unanswered",
        }
    }
}

/// A time out of service that datagrams have brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct Ejection {
    /// Why.
    pub cause: EjectionCause,
    /// Since when.
    pub since: Instant,
    /// Until when, unless it answers before.
    pub until: Instant,
}

/// What datagrams say of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub(crate) struct PassiveHealth {
    /// Errors of the network since its last answer.
    errors: u32,
    /// Flows that ended without an answer since its last one.
    unanswered: u32,
    /// When the last of them came.
    last_sign: Option<Instant>,
    /// When errors put it out of service if it has not answered until then.
    decides_at: Option<Instant>,
    /// How many times it was out of service, less what time in service has made good.
    level: u32,
    /// Since when and until when it is out of service, or was last.
    ejection: Option<Ejection>,
    is_ejected: bool,
}

impl BackendHealth {
    pub(super) fn is_up(&self) -> bool {
        self.probe != Some(ProbeState::Failing) && !self.passive.is_ejected
    }

    pub(super) fn is_failing(&self) -> bool {
        self.probe == Some(ProbeState::Failing)
    }

    /// Whether anything has shown that it is there.
    pub(super) const fn is_checked(&self) -> bool {
        self.probe.is_some() || self.last_answer.is_some()
    }

    /// The time out of service that it is in.
    pub(super) fn ejection(&self) -> Option<Ejection> {
        self.passive.ejection.filter(|_| self.passive.is_ejected)
    }

    pub(super) fn hear(&mut self, event: BackendEvent) {
        match event {
            BackendEvent::Up => {
                self.probe = Some(ProbeState::Passing);
                self.forgive();
            }
            BackendEvent::Down => self.probe = Some(ProbeState::Failing),
            BackendEvent::Unprobed => self.probe = None,
            BackendEvent::Drain { deadline } => self.drain = Drain::Until(deadline),
            BackendEvent::Undrain => {
                self.drain = Drain::No;
                self.forgive();
            }
        }
    }

    /// Whether an answer would change anything.
    #[inline]
    pub(super) fn has_evidence(&self) -> bool {
        self.last_answer.is_none() || self.passive.last_sign.is_some()
    }

    /// Forgets all that datagrams said against it.
    pub(super) fn forgive(&mut self) {
        self.passive = PassiveHealth::default();
    }

    /// The network has reported an error about a datagram that was sent at `sent` or before. Says
    /// whether that puts it out of service.
    ///
    /// It counts only if it has answered nobody since: nobody can forge that. And it never overrules
    /// a probe.
    pub(super) fn network_failed(
        &mut self,
        passive: &Passive,
        sent: Instant,
        now: Instant,
    ) -> bool {
        if self.has_answered_since(sent) || self.probe == Some(ProbeState::Passing) {
            return false;
        }
        self.passive.age(passive, now);
        self.passive.errors = self.passive.errors.saturating_add(1);
        self.passive.last_sign = Some(now);
        if self.passive.is_ejected
            || !self.passive.has_enough(self.passive.errors >= NETWORK_ERRORS)
        {
            return false;
        }
        let decides_at = self.last_answer.map_or(now, |answer| answer + MIN_SILENCE);
        if decides_at > now {
            self.passive.decides_at = Some(decides_at);
            return false;
        }
        self.passive.eject(EjectionCause::NetworkErrors, passive, now);
        true
    }

    /// Forgets what the network has said against it, and says whether that was anything.
    pub(super) fn network_changed(&mut self) -> bool {
        let passive = &self.passive;
        let is_ejected_for_that =
            self.ejection().is_some_and(|ejection| ejection.cause == EjectionCause::NetworkErrors);
        let is_any = is_ejected_for_that || passive.errors > 0 || passive.decides_at.is_some();
        if is_ejected_for_that {
            self.forgive();
        } else if is_any {
            (self.passive.errors, self.passive.decides_at) = (0, None);
        }
        is_any
    }

    /// Whether an error about a datagram that was sent at `sent` or before is a reason to look.
    pub(super) fn is_in_doubt(&self, sent: Instant) -> bool {
        self.probe == Some(ProbeState::Passing) && !self.has_answered_since(sent)
    }

    fn has_answered_since(&self, then: Instant) -> bool {
        self.last_answer.is_some_and(|answer| answer >= then)
    }

    /// A flow that opened at `opened` has ended without the answer that it expected. Says whether
    /// that puts the backend out of service.
    pub(super) fn record_unanswered(
        &mut self,
        passive: &Passive,
        opened: Instant,
        now: Instant,
    ) -> bool {
        if self.has_answered_since(opened) || self.probe == Some(ProbeState::Passing) {
            return false;
        }
        self.passive.age(passive, now);
        self.passive.unanswered = self.passive.unanswered.saturating_add(1);
        self.passive.last_sign = Some(now);
        let is_enough = self.passive.unanswered >= passive.silent_flows;
        if self.passive.is_ejected || !self.passive.has_enough(is_enough) {
            return false;
        }
        self.passive.eject(EjectionCause::Unanswered, passive, now);
        true
    }

    /// When time alone changes something next.
    pub(super) fn next_event(&self) -> Option<Instant> {
        let drain_end = match self.drain {
            Drain::Until(deadline) => deadline,
            Drain::No | Drain::Over => None,
        };
        let returns_at = self.ejection().map(|ejection| ejection.until);
        [drain_end, returns_at, self.passive.decides_at].into_iter().flatten().min()
    }

    /// Lets time change what it does up to `now`, and says whether that puts it out of service.
    pub(super) fn handle_timeout(&mut self, passive: Option<&Passive>, now: Instant) -> bool {
        if matches!(self.drain, Drain::Until(Some(deadline)) if deadline <= now) {
            self.drain = Drain::Over;
        }
        if self.ejection().is_some_and(|ejection| ejection.until <= now) {
            self.passive.is_ejected = false;
        }
        if self.passive.decides_at.is_none_or(|at| at > now) {
            return false;
        }
        self.passive.decides_at = None;
        let Some(passive) = passive else { return false };
        self.passive.eject(EjectionCause::NetworkErrors, passive, now);
        true
    }
}

impl PassiveHealth {
    /// A backend that was out of service lately is out again at one sign.
    const fn has_enough(&self, is_enough: bool) -> bool {
        is_enough || self.level > 0
    }

    /// Forgets what is long ago: signs after some calm, and a time out of service after as much time
    /// in service, the one before that after half as much, and so on.
    fn age(&mut self, passive: &Passive, now: Instant) {
        let calm = passive.back_off.saturating_mul(CALM_BACK_OFFS);
        if self.last_sign.is_some_and(|sign| sign + calm <= now) {
            (self.errors, self.unanswered) = (0, 0);
        }
        let Some(ejection) = self.ejection.filter(|_| !self.is_ejected) else { return };
        let mut was_out = ejection.until - ejection.since;
        let mut in_service = now.saturating_since(ejection.until);
        while self.level > 0 && in_service >= was_out {
            in_service -= was_out;
            was_out /= 2;
            self.level -= 1;
        }
    }

    /// The first time is half as long again as the back-off, so that a client that asks again after
    /// that meets another backend; each further one is twice as long.
    fn eject(&mut self, cause: EjectionCause, passive: &Passive, now: Instant) {
        let first = passive.back_off.saturating_mul(3) / 2;
        let doubled = first.saturating_mul(1 << self.level);
        let until = now + doubled.clamp(MIN_EJECTION, MAX_EJECTION);
        self.level = (self.level + 1).min(MAX_LEVEL);
        (self.errors, self.unanswered, self.decides_at) = (0, 0, None);
        self.last_sign = Some(now);
        self.ejection = Some(Ejection { cause, since: now, until });
        self.is_ejected = true;
    }
}

#[cfg(test)]
mod tests;
