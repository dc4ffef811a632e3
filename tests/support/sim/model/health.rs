//! How backends stand, and what becomes of the flows of one that cannot serve.

use std::time::Duration;

use flowgate_core::backend::BackendState;
use flowgate_core::config::{Failback, OnBackendDown, Passive};
use flowgate_core::{BackendEvent, CloseReason, Instant};

use super::{Flow, Model};
use crate::sim::setting::source;

/// What is held against a backend.
#[derive(Clone, Debug, Default)]
pub(super) struct Health {
    /// What the probes say, if they say anything: that it is in order.
    probe: Option<bool>,
    drain: Drain,
    last_answer: Option<Instant>,
    signs: Signs,
}

/// What datagrams say against a backend.
#[derive(Clone, Debug, Default)]
struct Signs {
    /// Errors of the network since it answered last.
    errors: u32,
    /// Flows that ended in silence since it answered last.
    silent_flows: u32,
    last: Option<Instant>,
    /// When errors count that have come, if it does not answer.
    decides_at: Option<Instant>,
    /// How often it was left alone, less what has been made good.
    level: u32,
    /// When it was left alone last, and until when.
    left: Option<(Instant, Instant)>,
    is_left: bool,
    /// Whether that was for errors of the network.
    left_for_errors: bool,
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
    /// An error about something that was sent then at the latest.
    Error { sent: Instant },
    /// A flow without an answer that was opened then.
    Silence { opened: Instant },
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Stays,
    Moves,
    /// It goes back to a primary, if one can take it.
    Returns,
    Ends(CloseReason),
}

/// One error can be forged. Two in a row are enough.
const ENOUGH_ERRORS: u32 = 2;
const SHORTEST_PATIENCE: Duration = Duration::from_millis(1);
const LONGEST_PATIENCE: Duration = Duration::from_secs(300);

/// Errors do not count against one that has answered someone more recently.
const ANSWERED_JUST_NOW: Duration = Duration::from_millis(10);

impl Health {
    fn is_up(&self) -> bool {
        self.probe != Some(false) && !self.signs.is_left
    }

    pub(super) fn state(&self) -> BackendState {
        match (self.drain, self.probe, self.signs.is_left) {
            (Drain::Until(_) | Drain::Over, ..) => BackendState::Draining,
            (Drain::No, Some(false), _) => BackendState::Down,
            (Drain::No, _, true) => BackendState::Ejected,
            (Drain::No, None, false) if self.last_answer.is_none() => BackendState::Unchecked,
            (Drain::No, ..) => BackendState::Up,
        }
    }

    pub(super) fn hear(&mut self, event: BackendEvent) {
        match event {
            BackendEvent::Up => {
                self.probe = Some(true);
                self.signs = Signs::default();
            }
            BackendEvent::Down => self.probe = Some(false),
            BackendEvent::Unprobed => self.probe = None,
            BackendEvent::Drain { deadline } => self.drain = Drain::Until(deadline),
            BackendEvent::Undrain => {
                self.drain = Drain::No;
                self.signs = Signs::default();
            }
        }
    }

    /// What the network has said against it holds no more.
    pub(super) fn network_changed(&mut self) {
        if self.signs.is_left && self.signs.left_for_errors {
            self.signs = Signs::default();
        } else {
            (self.signs.errors, self.signs.decides_at) = (0, None);
        }
    }

    /// A reload that names it clears what datagrams have said against it.
    pub(super) fn is_named(&mut self) {
        self.signs = Signs::default();
    }

    /// Each kind of sign is counted by itself. A backend that was left alone lately is left again at
    /// the first sign, for twice as long.
    fn note(&mut self, sign: Sign, passive: &Passive, now: Instant) {
        let (Sign::Error { sent: since } | Sign::Silence { opened: since }) = sign;
        if self.probe == Some(true) || self.last_answer.is_some_and(|answer| answer >= since) {
            return;
        }
        self.signs.fade(passive, now);
        self.signs.last = Some(now);
        let is_enough = match sign {
            Sign::Error { .. } => {
                self.signs.errors += 1;
                self.signs.errors >= ENOUGH_ERRORS
            }
            Sign::Silence { .. } => {
                self.signs.silent_flows += 1;
                self.signs.silent_flows >= passive.silent_flows
            }
        };
        if self.signs.is_left || !(is_enough || self.signs.level > 0) {
            return;
        }
        match (sign, self.last_answer) {
            (Sign::Error { .. }, Some(answer)) if answer + ANSWERED_JUST_NOW > now => {
                self.signs.decides_at = Some(answer + ANSWERED_JUST_NOW);
            }
            _ => self.signs.leave(passive, now, matches!(sign, Sign::Error { .. })),
        }
    }

    /// It has answered: whatever datagrams said against it is forgotten.
    pub(super) fn answered(&mut self, now: Instant) {
        self.last_answer = Some(now);
        self.signs = Signs::default();
    }

    /// What time does to it.
    pub(super) fn pass(&mut self, passive: Option<&Passive>, now: Instant) {
        if let Some((_, until)) = self.signs.left
            && until <= now
        {
            self.signs.is_left = false;
        }
        if self.signs.decides_at.is_some_and(|at| at <= now) {
            self.signs.decides_at = None;
            if let Some(passive) = passive {
                self.signs.leave(passive, now, true);
            }
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
        let returns = self.signs.left.filter(|_| self.signs.is_left).map(|(_, until)| until);
        returns.into_iter().chain(drain_end).chain(self.signs.decides_at)
    }
}

impl Signs {
    /// What is long ago counts less.
    fn fade(&mut self, passive: &Passive, now: Instant) {
        if self.last.is_some_and(|last| last + passive.back_off * 12 <= now) {
            (self.errors, self.silent_flows) = (0, 0);
        }
        if let (Some((from, until)), false) = (self.left, self.is_left) {
            let (mut step, mut time) = (until - from, now - until);
            while self.level > 0 && time >= step {
                (time, step, self.level) = (time - step, step / 2, self.level - 1);
            }
        }
    }

    fn leave(&mut self, passive: &Passive, now: Instant, left_for_errors: bool) {
        let mut patience = passive.back_off * 3 / 2;
        for _ in 0..self.level {
            patience = (patience * 2).min(LONGEST_PATIENCE);
        }
        let until = now + patience.clamp(SHORTEST_PATIENCE, LONGEST_PATIENCE);
        let level = (self.level + 1).min(31);
        let (last, left) = (Some(now), Some((now, until)));
        *self = Self { last, left, level, is_left: true, left_for_errors, ..Self::default() };
    }
}

impl Model {
    /// Whether a backend could serve if it were up.
    fn is_wanted(&self, index: usize) -> bool {
        let backend = &self.loads[index];
        !backend.config.removed && backend.config.weight > 0 && backend.health.drain == Drain::No
    }

    /// Whether backends count as up since all are down that could serve.
    fn fails_open(&self) -> bool {
        let can_serve = |index| self.is_wanted(index) && self.loads[index].health.is_up();
        self.config.cluster.health.fail_open && !(0..self.loads.len()).any(can_serve)
    }

    fn counts_as_up(&self, index: usize) -> bool {
        self.loads[index].health.is_up() || self.fails_open()
    }

    /// Which backends may be given a flow.
    pub(super) fn able(&self) -> Vec<bool> {
        let is_able = |index: usize| {
            self.is_wanted(index) && self.counts_as_up(index) && !self.loads[index].is_full()
        };
        (0..self.loads.len()).map(is_able).collect()
    }

    /// What becomes of the flows of a backend.
    pub(super) fn fate(&self, index: usize) -> Fate {
        let policy = self.config.cluster.health.on_backend_down;
        let backend = &self.loads[index];
        if backend.config.removed {
            return match policy {
                OnBackendDown::Close => Fate::Ends(CloseReason::BackendRemoved),
                OnBackendDown::Pin | OnBackendDown::Rehash => Fate::Moves,
            };
        }
        if backend.health.drain == Drain::Over {
            return Fate::Ends(CloseReason::Drained);
        }
        if self.counts_as_up(index) {
            let is_primary_up = |index: usize| {
                let is_backup = self.loads[index].config.backup;
                !is_backup && self.is_wanted(index) && self.loads[index].health.is_up()
            };
            let returns = self.config.cluster.health.failback == Failback::All
                && backend.config.backup
                && (0..self.loads.len()).any(is_primary_up);
            return if returns { Fate::Returns } else { Fate::Stays };
        }
        match policy {
            OnBackendDown::Pin => Fate::Stays,
            OnBackendDown::Rehash => Fate::Moves,
            OnBackendDown::Close => Fate::Ends(CloseReason::BackendDown),
        }
    }

    pub(super) fn network_changed(&mut self) {
        self.loads.iter_mut().for_each(|load| load.health.network_changed());
    }

    pub(super) fn note(&mut self, index: usize, sign: Sign, now: Instant) {
        if let Some(passive) = self.config.cluster.health.passive {
            self.loads[index].health.note(sign, &passive, now);
        }
    }

    /// A backend has answered someone.
    pub(super) fn has_answered(&mut self, index: usize, now: Instant) {
        self.loads[index].health.answered(now);
        self.answers.insert(index, now);
    }

    /// A flow ends without the answer that it should have had. That is a sign where its client was
    /// answered before or its backend never answered anybody; and where someone could serve
    /// instead, and those beside it have answered since.
    pub(super) fn miss_answer(&mut self, flow: &Flow, now: Instant) {
        let is_able = |index: usize| self.is_wanted(index) && self.loads[index].health.is_up();
        let is_backup = |index: usize| self.loads[index].config.backup;
        let others = (0..self.loads.len()).filter(|&index| index != flow.backend && is_able(index));
        let (beside, instead): (Vec<usize>, Vec<usize>) =
            others.partition(|&index| is_backup(index) == is_backup(flow.backend));
        let answers = self.answers.iter().filter(|(index, _)| **index != flow.backend);
        let are_answered = answers.into_iter().any(|(_, &at)| at >= flow.opened);
        let is_missed = if beside.is_empty() { !instead.is_empty() } else { are_answered };
        let is_known = self.answered_clients.contains(&source(flow.client));
        if is_missed && (is_known || self.loads[flow.backend].health.last_answer.is_none()) {
            self.note(flow.backend, Sign::Silence { opened: flow.opened }, now);
        }
    }

    /// When time does something to a backend next.
    pub(super) fn next_backend_event(&self) -> Option<Instant> {
        self.loads.iter().flat_map(|load| load.health.events()).min()
    }

    /// Why a flow has to end whether anything comes on it or not, if it has to.
    pub(super) fn must_end(&self, index: usize) -> Option<CloseReason> {
        match self.fate(self.flows[index].backend) {
            Fate::Ends(reason) => Some(reason),
            Fate::Stays | Fate::Moves | Fate::Returns => None,
        }
    }
}
