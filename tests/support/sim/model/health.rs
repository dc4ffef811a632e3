//! How backends stand, and what becomes of the flows of one that cannot serve.

use std::time::Duration;

use flowgate_core::backend::BackendState;
use flowgate_core::config::{OnBackendDown, Passive};
use flowgate_core::{BackendEvent, CloseReason, Instant};

use super::Model;

/// What is held against a backend.
#[derive(Clone, Debug, Default)]
pub(super) struct Health {
    fails_probes: bool,
    drain: Drain,
    /// Errors of the network since it answered last.
    errors: u32,
    /// Flows that ended in silence since it answered last.
    silent_flows: u32,
    /// How often it was left alone since it answered last.
    ejections: u32,
    ejected_until: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Drain {
    #[default]
    No,
    Until(Option<Instant>),
    Over,
}

/// What datagrams may say against a backend.
#[derive(Clone, Copy)]
pub(super) enum Sign {
    Error,
    Silence,
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Stays,
    Moves,
    Ends(CloseReason),
}

/// One error can be forged. Two in a row are enough.
const ENOUGH_ERRORS: u32 = 2;
const SHORTEST_PATIENCE: Duration = Duration::from_millis(1);
const LONGEST_PATIENCE: Duration = Duration::from_secs(300);

impl Health {
    fn is_up(&self) -> bool {
        !self.fails_probes && self.ejected_until.is_none()
    }

    pub(super) fn state(&self) -> BackendState {
        match (self.drain, self.is_up()) {
            (Drain::Until(_) | Drain::Over, _) => BackendState::Draining,
            (Drain::No, true) => BackendState::Up,
            (Drain::No, false) => BackendState::Down,
        }
    }

    pub(super) fn hear(&mut self, event: BackendEvent) {
        match event {
            BackendEvent::Up => self.fails_probes = false,
            BackendEvent::Down => self.fails_probes = true,
            BackendEvent::Drain { deadline } => self.drain = Drain::Until(deadline),
            BackendEvent::Undrain => self.drain = Drain::No,
        }
    }

    /// Each kind of sign is counted by itself. A backend that has been out and not answered since
    /// is out again at the first sign, for twice as long.
    fn note(&mut self, sign: Sign, passive: &Passive, now: Instant) {
        let is_enough = match sign {
            Sign::Error => {
                self.errors += 1;
                self.errors >= ENOUGH_ERRORS
            }
            Sign::Silence => {
                self.silent_flows += 1;
                self.silent_flows >= passive.silent_flows
            }
        };
        let is_on_probation = self.ejections > 0;
        if self.ejected_until.is_none() && (is_enough || is_on_probation) {
            let mut patience = passive.back_off;
            for _ in 0..self.ejections {
                patience = (patience * 2).min(LONGEST_PATIENCE);
            }
            self.ejected_until = Some(now + patience.clamp(SHORTEST_PATIENCE, LONGEST_PATIENCE));
            self.ejections += 1;
        }
    }

    /// It has answered: whatever datagrams said against it is forgotten.
    pub(super) fn answered(&mut self) {
        (self.errors, self.silent_flows, self.ejections) = (0, 0, 0);
        self.ejected_until = None;
    }

    /// What time does to it.
    pub(super) fn pass(&mut self, now: Instant) {
        if self.ejected_until.is_some_and(|until| until <= now) {
            self.ejected_until = None;
        }
        if let Drain::Until(Some(deadline)) = self.drain
            && deadline <= now
        {
            self.drain = Drain::Over;
        }
    }

    /// When time does something to it.
    pub(super) fn events(&self) -> impl Iterator<Item = Instant> {
        let drain_end = match self.drain {
            Drain::Until(deadline) => deadline,
            Drain::No | Drain::Over => None,
        };
        self.ejected_until.into_iter().chain(drain_end)
    }
}

impl Model {
    /// Whether a backend could serve if it were up.
    fn is_wanted(&self, place: usize) -> bool {
        let backend = &self.loads[place];
        !backend.config.removed && backend.config.weight > 0 && backend.health.drain == Drain::No
    }

    /// Whether backends count as up since all are down that could serve.
    fn fails_open(&self) -> bool {
        let can_serve = |place| self.is_wanted(place) && self.loads[place].health.is_up();
        self.config.cluster.health.fail_open && !(0..self.loads.len()).any(can_serve)
    }

    fn counts_as_up(&self, place: usize) -> bool {
        self.loads[place].health.is_up() || self.fails_open()
    }

    /// Which backends may be given a flow.
    pub(super) fn able(&self) -> Vec<bool> {
        let is_able = |place: usize| {
            self.is_wanted(place) && self.counts_as_up(place) && !self.loads[place].is_full()
        };
        (0..self.loads.len()).map(is_able).collect()
    }

    /// What becomes of the flows of a backend.
    pub(super) fn fate(&self, place: usize) -> Fate {
        let policy = self.config.cluster.health.on_backend_down;
        let backend = &self.loads[place];
        if backend.config.removed {
            return match policy {
                OnBackendDown::Close => Fate::Ends(CloseReason::BackendRemoved),
                OnBackendDown::Pin | OnBackendDown::Rehash => Fate::Moves,
            };
        }
        if backend.health.drain == Drain::Over {
            return Fate::Ends(CloseReason::Drained);
        }
        if self.counts_as_up(place) {
            return Fate::Stays;
        }
        match policy {
            OnBackendDown::Pin => Fate::Stays,
            OnBackendDown::Rehash => Fate::Moves,
            OnBackendDown::Close => Fate::Ends(CloseReason::BackendDown),
        }
    }

    pub(super) fn note(&mut self, place: usize, sign: Sign, now: Instant) {
        if let Some(passive) = self.config.cluster.health.passive {
            self.loads[place].health.note(sign, &passive, now);
        }
    }

    /// When time does something to a backend next.
    pub(super) fn next_backend_event(&self) -> Option<Instant> {
        self.loads.iter().flat_map(|load| load.health.events()).min()
    }

    /// Why a flow has to end whether anything comes on it or not, if it has to.
    pub(super) fn must_end(&self, place: usize) -> Option<CloseReason> {
        match self.fate(self.flows[place].backend) {
            Fate::Ends(reason) => Some(reason),
            Fate::Stays | Fate::Moves => None,
        }
    }
}
