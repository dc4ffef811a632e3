//! How one backend stands: with the probes, with the operator, and by what datagrams say of it.

mod snapshot;

use crate::backend::event::BackendEvent;
use crate::config::{MAX_EJECTION, MIN_EJECTION, NETWORK_ERRORS, Passive};
use crate::time::Instant;

/// Everything that is held for or against a backend. The kinds never mix their counts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BackendHealth {
    /// The probes find it out of order.
    pub(super) fails_probes: bool,
    pub(super) drain: Drain,
    signs: PassiveHealth,
}

/// Whether the operator wants it free of flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Drain {
    #[default]
    No,
    /// No new flows; those that live may go on until then, or to their ends.
    Until(Option<Instant>),
    /// No flows at all.
    Over,
}

/// What datagrams say of a backend.
#[derive(Clone, Copy, Debug, Default)]
struct PassiveHealth {
    /// Errors of the network since its last answer.
    errors: u32,
    /// Flows that ended without an answer since its last one.
    silent_flows: u32,
    /// How many times it was out of service since its last answer.
    ejections: u32,
    /// Out of service until then.
    ejected_until: Option<Instant>,
}

impl BackendHealth {
    pub(super) const fn is_up(&self) -> bool {
        !self.fails_probes && self.signs.ejected_until.is_none()
    }

    pub(super) const fn hear(&mut self, event: BackendEvent) {
        match event {
            BackendEvent::Up => self.fails_probes = false,
            BackendEvent::Down => self.fails_probes = true,
            BackendEvent::Drain { deadline } => self.drain = Drain::Until(deadline),
            BackendEvent::Undrain => self.drain = Drain::No,
        }
    }

    /// Whether anything is held against it that an answer would clear.
    #[inline]
    pub(super) const fn has_evidence(&self) -> bool {
        self.signs.errors > 0 || self.signs.silent_flows > 0 || self.signs.ejections > 0
    }

    /// It has answered: nothing that datagrams said of it counts any more.
    pub(super) const fn answered(&mut self) {
        self.signs =
            PassiveHealth { errors: 0, silent_flows: 0, ejections: 0, ejected_until: None };
    }

    /// The network has reported an error. Says whether that puts it out of service.
    pub(super) fn network_failed(&mut self, passive: &Passive, now: Instant) -> bool {
        self.signs.errors = self.signs.errors.saturating_add(1);
        self.leave_if(self.signs.errors >= NETWORK_ERRORS, passive, now)
    }

    /// A flow has ended without the answer that it expected. Says whether that puts the backend
    /// out of service.
    pub(super) fn record_unanswered(&mut self, passive: &Passive, now: Instant) -> bool {
        self.signs.silent_flows = self.signs.silent_flows.saturating_add(1);
        self.leave_if(self.signs.silent_flows >= passive.silent_flows, passive, now)
    }

    /// A backend that has been out and not answered since is on probation: one sign is enough.
    fn leave_if(&mut self, has_enough: bool, passive: &Passive, now: Instant) -> bool {
        let is_enough = has_enough || self.signs.ejections > 0;
        if self.signs.ejected_until.is_some() || !is_enough {
            return false;
        }
        let doubled = passive.back_off.saturating_mul(1 << self.signs.ejections.min(31));
        self.signs.ejected_until = Some(now + doubled.clamp(MIN_EJECTION, MAX_EJECTION));
        self.signs.ejections = self.signs.ejections.saturating_add(1);
        true
    }

    /// When time alone changes something next.
    pub(super) fn next_event(&self) -> Option<Instant> {
        let drain_end = match self.drain {
            Drain::Until(deadline) => deadline,
            Drain::No | Drain::Over => None,
        };
        [drain_end, self.signs.ejected_until].into_iter().flatten().min()
    }

    /// Lets time change what it does up to `now`.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.signs.ejected_until.is_some_and(|until| until <= now) {
            self.signs.ejected_until = None;
        }
        if matches!(self.drain, Drain::Until(Some(deadline)) if deadline <= now) {
            self.drain = Drain::Over;
        }
    }
}

#[cfg(test)]
mod tests;
