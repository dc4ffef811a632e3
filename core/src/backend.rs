//! The backends of a cluster: what they may take, what they have, and how they stand.

pub(crate) mod event;
mod health;
#[cfg(feature = "snapshot")]
mod snapshot;

use alloc::vec::Vec;
use core::cmp::Ordering;
use core::net::SocketAddr;
use core::time::Duration;

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

use crate::backend::event::BackendEvent;
use crate::config::{BackendConfig, Failback, HealthPolicy, OnBackendDown, Passive};
use crate::counters::{AnswerTimes, Traffic};
use crate::id::BackendId;
use crate::reason::CloseReason;
use crate::time::Instant;

pub(crate) use health::{BackendHealth, Drain};
pub use health::{Ejection, EjectionCause};

/// Errors of the network that come within so long of others are no further reason to probe.
const TIME_TO_PROBE: Duration = Duration::from_millis(500);

/// One backend and its live figures.
#[derive(Clone, Debug)]
pub struct Backend {
    config: BackendConfig,
    health: BackendHealth,
    flow_action: FlowAction,
    /// Whether new flows may go to it, as far as that does not depend on how many it has.
    is_in_service: bool,
    /// Whether it takes none at the moment, whatever else is said.
    is_hidden: bool,
    /// Whether it is up, and wanted.
    is_able: bool,
    state: BackendState,
    /// Since when it has been in this state.
    state_since: Instant,
    /// When time alone changes how it stands next.
    event: Option<Instant>,
    /// How often datagrams have put it out of service, by cause.
    ejections: [u64; 2],
    /// How often the network's errors have spoken against it while its probes passed.
    doubts: u64,
    /// When they did last.
    doubted_at: Option<Instant>,
    /// Live flows on it.
    pub flows_active: u32,
    /// What was sent to it.
    pub to: Traffic,
    /// What was to be sent to it and could not be.
    pub dropped: Traffic,
    /// What came from it and was passed on to clients.
    pub from: Traffic,
    /// How long its first answers took.
    pub answer_times: AnswerTimes,
}

/// Whether a backend takes new flows, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum BackendState {
    /// It does: its probes pass, or it has answered.
    Up,
    /// It does not, since its probes fail.
    Down,
    /// It does not, since an operator wants it empty.
    Draining,
    /// It does not for a while, since traffic has shown that it does not answer.
    Ejected,
    /// It does, but nothing has shown yet that it answers: no probe has, and no client was
    /// answered.
    Unchecked,
}

impl BackendState {
    /// The name in reports and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Draining => "draining",
            Self::Ejected => "ejected",
            Self::Unchecked => "unchecked",
        }
    }

    /// Whether something is wrong with it: it is not what the configuration and the operator want.
    pub const fn is_trouble(self) -> bool {
        matches!(self, Self::Down | Self::Ejected)
    }
}

/// What is to become of the flows of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlowAction {
    /// They stay.
    Stay,
    /// Each goes on with another backend from its client's next datagram on.
    Move,
    /// Each goes back to a primary with its client's next datagram, if one can take it.
    Return,
    /// They end.
    Close(CloseReason),
}

impl Backend {
    fn new(config: BackendConfig, now: Instant) -> Self {
        Self {
            config,
            health: BackendHealth::default(),
            flow_action: FlowAction::Stay,
            is_in_service: false,
            is_hidden: false,
            is_able: false,
            state: BackendState::Unchecked,
            state_since: now,
            event: None,
            ejections: [0; 2],
            doubts: 0,
            doubted_at: None,
            flows_active: 0,
            to: Traffic::default(),
            dropped: Traffic::default(),
            from: Traffic::default(),
            answer_times: AnswerTimes::default(),
        }
    }

    /// Where its datagrams go.
    pub const fn address(&self) -> SocketAddr {
        self.config.address
    }

    /// Its share of new flows, relative to the others.
    pub const fn weight(&self) -> u32 {
        self.config.weight
    }

    /// Whether it serves only while no other can.
    pub const fn is_backup(&self) -> bool {
        self.config.backup
    }

    /// Whether it can be the one backend of a flow.
    pub const fn answers(&self) -> bool {
        self.config.answers
    }

    /// Whether it has been removed from the configuration, and is known for its last flows only.
    pub const fn is_removed(&self) -> bool {
        self.config.removed
    }

    /// Whether its probes and the datagrams have nothing against it.
    pub fn is_up(&self) -> bool {
        self.health.is_up()
    }

    /// How it stands.
    pub const fn state(&self) -> BackendState {
        self.state
    }

    /// Since when it has been in this state.
    pub const fn state_since(&self) -> Instant {
        self.state_since
    }

    /// Until when it stays in this state at most: the end of an ejection, or of a drain.
    pub fn state_until(&self) -> Option<Instant> {
        match (self.state, self.health.drain) {
            (BackendState::Ejected, _) => self.ejection().map(|ejection| ejection.until),
            (BackendState::Draining, Drain::Until(deadline)) => deadline,
            _ => None,
        }
    }

    /// Why it is in this state, where that is not that all is well.
    pub fn state_reason(&self) -> Option<&'static str> {
        match self.state {
            BackendState::Up => None,
            BackendState::Down => Some("its probes fail"),
            BackendState::Draining => Some("drained"),
            BackendState::Unchecked => Some("not probed, and no reply seen yet"),
            BackendState::Ejected => self.ejection().map(|ejection| match ejection.cause {
                EjectionCause::NetworkErrors => "the network reports that it cannot be reached",
                EjectionCause::Unanswered => "it leaves clients without an answer",
            }),
        }
    }

    /// The time out of service that datagrams have brought about, while it lasts.
    pub fn ejection(&self) -> Option<Ejection> {
        self.health.ejection()
    }

    /// How often datagrams have put it out of service for this cause.
    pub const fn ejections(&self, cause: EjectionCause) -> u64 {
        self.ejections[cause as usize]
    }

    /// How often the network's errors have spoken against it while its probes passed: errors can be
    /// forged, so they decide nothing then, but are a reason to probe it now. Many at once count as
    /// one.
    pub const fn doubts(&self) -> u64 {
        self.doubts
    }

    /// Whether it may be given one more flow now.
    pub const fn can_take_a_flow(&self) -> bool {
        let below_limit = self.config.max_flows == 0 || self.flows_active < self.config.max_flows;
        self.is_in_service && below_limit && !self.is_hidden
    }

    /// Which of the two has more flows for its weight. Exact: nothing is rounded.
    pub(crate) fn cmp_load(&self, other: &Self) -> Ordering {
        let cross = |a: &Self, b: &Self| u64::from(a.flows_active) * u64::from(b.weight());
        cross(self, other).cmp(&cross(other, self))
    }

    fn current_state(&self) -> BackendState {
        if !matches!(self.health.drain, Drain::No) {
            BackendState::Draining
        } else if self.health.is_failing() {
            BackendState::Down
        } else if self.ejection().is_some() {
            BackendState::Ejected
        } else if self.health.is_checked() {
            BackendState::Up
        } else {
            BackendState::Unchecked
        }
    }

    /// Whether it could serve if it were up.
    const fn is_wanted(&self) -> bool {
        !self.config.removed && self.config.weight > 0 && matches!(self.health.drain, Drain::No)
    }
}

/// All backends of a cluster, in configured order.
#[derive(Clone, Debug)]
pub struct Backends {
    list: Vec<Backend>,
    /// All of them, removed ones too, sorted by address.
    by_address: Vec<(SocketAddr, BackendId)>,
    /// Those that get copies of what is copied to all: the ones in service, backups only while no
    /// other is.
    targets: Vec<BackendId>,
    /// How many of the entries of `targets`, of which there is one for each backend, are in use: so
    /// it never has to grow, also where it has been cloned.
    target_count: usize,
    policy: HealthPolicy,
    /// When time alone changes how one of them stands next.
    next_event: Option<Instant>,
    /// How many of them are up and wanted: of those that are no backups, and of backups.
    able: [usize; 2],
    /// Whether all count as up since none is.
    is_open: bool,
    /// Whether backups are to give their flows back.
    primaries_are_back: bool,
    /// Which of them answered last, and when.
    latest_answer: Option<(BackendId, Instant)>,
    /// When any but that one answered last.
    latest_other: Option<Instant>,
    /// How often one of them has gone over to another state.
    state_changes: u64,
}

impl Backends {
    /// Backends without flows, one for each entry, in the same order, all of them up.
    pub fn new(configs: &[BackendConfig], policy: HealthPolicy) -> Self {
        let now = Instant::ORIGIN;
        let list = configs.iter().map(|&config| Backend::new(config, now)).collect();
        let targets = alloc::vec![BackendId::new(0); configs.len()];
        let mut backends = Self {
            list,
            by_address: Vec::new(),
            targets,
            target_count: 0,
            policy,
            next_event: None,
            able: [0; 2],
            is_open: false,
            primaries_are_back: false,
            latest_answer: None,
            latest_other: None,
            state_changes: 0,
        };
        backends.list_addresses();
        backends.recompute(now);
        backends
    }

    /// The same, with states that began at `now`.
    pub(crate) fn starting_at(mut self, now: Instant) -> Self {
        self.list.iter_mut().for_each(|backend| backend.state_since = now);
        self
    }

    /// How many there are, able to serve or not, with those that have been removed and not been
    /// replaced.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The backend called `id`, if there is one.
    pub fn get(&self, id: BackendId) -> Option<&Backend> {
        self.list.get(id.index())
    }

    pub(crate) fn get_mut(&mut self, id: BackendId) -> Option<&mut Backend> {
        self.list.get_mut(id.index())
    }

    /// All of them with their ids, in configured order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (BackendId, &Backend)> {
        self.list.iter().enumerate().map(|(index, backend)| (BackendId::new(index), backend))
    }

    /// Those that get copies of what is copied to all, in configured order.
    pub fn targets(&self) -> &[BackendId] {
        &self.targets[..self.target_count]
    }

    /// Whether one gets copies of what is copied to all.
    pub(crate) fn is_target(&self, id: BackendId) -> bool {
        let is_backup = |id: BackendId| self.get(id).is_some_and(Backend::is_backup);
        let tier = self.targets().first().map(|&first| is_backup(first));
        self.get(id).is_some_and(|b| b.is_in_service) && tier == Some(is_backup(id))
    }

    /// Whether one of them that has not been removed has this address.
    pub fn has_address(&self, address: SocketAddr) -> bool {
        self.at(address).any(|id| self.get(id).is_some_and(|backend| !backend.is_removed()))
    }

    /// Whether the backend called `id` exists and may be given one more flow now.
    pub(crate) fn can_take_a_flow(&self, id: BackendId) -> bool {
        self.get(id).is_some_and(Backend::can_take_a_flow)
    }

    /// Whether a backend that was named can take one more flow: of something new as any other, and
    /// of what it knows already as long as its flows may stay.
    pub(crate) fn can_take(&self, id: BackendId, is_opening: bool) -> bool {
        if is_opening {
            return self.can_take_a_flow(id);
        }
        self.get(id).is_some_and(|backend| backend.answers())
            && matches!(self.flow_action(id), FlowAction::Stay | FlowAction::Return)
    }

    /// What `choose` chooses as if some of them took no flow.
    pub(crate) fn without<R>(
        &mut self,
        some: impl Iterator<Item = BackendId> + Clone,
        choose: impl FnOnce(&Self) -> R,
    ) -> R {
        let hide = |backends: &mut Self, is_hidden| {
            for id in some.clone() {
                if let Some(backend) = backends.get_mut(id) {
                    backend.is_hidden = is_hidden;
                }
            }
        };
        hide(self, true);
        let chosen = choose(self);
        hide(self, false);
        chosen
    }

    /// What is to become of the flows of a backend.
    #[inline]
    pub(crate) fn flow_action(&self, id: BackendId) -> FlowAction {
        self.get(id).map_or(FlowAction::Move, |backend| backend.flow_action)
    }

    /// How often one of them has gone over to another state, or was [doubted](Backend::doubts): who
    /// wants to know of that compares this with what it was.
    pub const fn state_changes(&self) -> u64 {
        self.state_changes
    }

    /// Takes in what the probes or the operator say.
    pub(crate) fn hear(&mut self, id: BackendId, event: BackendEvent, now: Instant) {
        if let Some(backend) = self.get_mut(id) {
            backend.health.hear(event);
            self.update(id, now);
        }
    }

    /// Counts an answer, which clears what datagrams have said against the backend. Says whether
    /// there was anything: then others may not be needed any more while all were down.
    #[inline]
    pub(crate) fn answered(&mut self, id: BackendId, answer: Traffic, now: Instant) -> bool {
        let Some(backend) = self.list.get_mut(id.index()) else { return false };
        backend.from.add(answer);
        let had_evidence = backend.health.has_evidence();
        backend.health.last_answer = Some(now);
        match &mut self.latest_answer {
            Some((latest, at)) if *latest == id => *at = now,
            latest => {
                self.latest_other = latest.map(|(_, at)| at).max(self.latest_other);
                *latest = Some((id, now));
            }
        }
        if had_evidence {
            self.list[id.index()].health.forgive();
            self.update(id, now);
        }
        had_evidence
    }

    /// The network has reported an error about a datagram to a backend that was sent at `sent` or
    /// before. Says whether that puts it out of service.
    pub(crate) fn network_failed(&mut self, id: BackendId, sent: Instant, now: Instant) -> bool {
        if let Some(backend) = self.get_mut(id)
            && backend.health.is_in_doubt(sent)
            && backend.doubted_at.is_none_or(|at| at + TIME_TO_PROBE <= now)
        {
            (backend.doubts, backend.doubted_at) = (backend.doubts + 1, Some(now));
            self.state_changes += 1;
        }
        self.note(id, EjectionCause::NetworkErrors, now, |health, passive| {
            health.network_failed(passive, sent, now)
        })
    }

    /// Forgets what the network has said against all of them, since it has changed on our side. Says
    /// whether that was anything.
    pub(crate) fn network_changed(&mut self, now: Instant) -> bool {
        let mut is_any = false;
        for backend in &mut self.list {
            is_any |= backend.health.network_changed();
        }
        if is_any {
            self.recompute(now);
        }
        is_any
    }

    /// A flow that opened at `opened` has ended without the answer that it expected. Says whether
    /// that puts its backend out of service.
    ///
    /// What clients ask may have no answer, so it counts only if another could serve instead, and
    /// those that serve beside it have answered meanwhile; and if the client has been answered
    /// before, unless the backend has never answered anybody.
    pub(crate) fn record_unanswered(
        &mut self,
        id: BackendId,
        opened: Instant,
        client_was_answered: bool,
        now: Instant,
    ) -> bool {
        let Some(backend) = self.get(id) else { return false };
        let tier = usize::from(backend.is_backup());
        let beside = self.able[tier] - usize::from(backend.is_able);
        let by_another = match self.latest_answer {
            Some((latest, at)) if latest != id => Some(at),
            _ => self.latest_other,
        };
        let is_believed = client_was_answered || backend.health.last_answer.is_none();
        let is_alone = beside == 0;
        let is_missed = is_alone || by_another.is_some_and(|at| at >= opened);
        if !is_believed || !is_missed || (is_alone && self.able[1 - tier] == 0) {
            return false;
        }
        self.note(id, EjectionCause::Unanswered, now, |health, passive| {
            health.record_unanswered(passive, opened, now)
        })
    }

    fn note(
        &mut self,
        id: BackendId,
        cause: EjectionCause,
        now: Instant,
        sign: impl FnOnce(&mut BackendHealth, &Passive) -> bool,
    ) -> bool {
        let Some(passive) = self.policy.passive else { return false };
        let Some(backend) = self.get_mut(id) else { return false };
        let leaves = sign(&mut backend.health, &passive);
        backend.ejections[cause as usize] += u64::from(leaves);
        self.update(id, now);
        leaves
    }

    /// When time alone changes how one of them stands next.
    pub(crate) const fn next_event(&self) -> Option<Instant> {
        self.next_event
    }

    /// Lets time change what it does up to `now`, and says whether that is anything.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> bool {
        let is_due = self.next_event.is_some_and(|at| at <= now);
        if is_due {
            let passive = self.policy.passive.as_ref();
            for backend in &mut self.list {
                let leaves = backend.health.handle_timeout(passive, now);
                backend.ejections[EjectionCause::NetworkErrors as usize] += u64::from(leaves);
            }
            self.recompute(now);
        }
        is_due
    }

    /// Whether some of them are to lose their flows at once.
    pub(crate) fn has_flows_to_close(&self) -> bool {
        let is_to_lose =
            |b: &Backend| matches!(b.flow_action, FlowAction::Close(_)) && b.flows_active > 0;
        self.list.iter().any(is_to_lose)
    }

    /// Takes over a new configuration. A backend that is there already, at the same index, keeps
    /// its flows, figures and standing; one that the list does not reach counts as removed.
    pub(crate) fn configure(
        &mut self,
        configs: &[BackendConfig],
        policy: HealthPolicy,
        now: Instant,
    ) {
        for (index, backend) in self.list.iter_mut().enumerate() {
            let Some(&config) = configs.get(index) else {
                backend.config.removed = true;
                continue;
            };
            if backend.address() != config.address {
                let flows_active = backend.flows_active;
                *backend = Backend { flows_active, ..Backend::new(config, now) };
            } else if backend.is_removed() && !config.removed {
                backend.health = BackendHealth::default();
            } else if !config.removed {
                backend.health.forgive();
            }
            backend.config = config;
        }
        let known = self.list.len().min(configs.len());
        self.list.extend(configs[known..].iter().map(|&config| Backend::new(config, now)));
        self.policy = policy;
        self.targets.resize(self.list.len(), BackendId::new(0));
        self.list_addresses();
        self.recompute(now);
    }

    fn list_addresses(&mut self) {
        let all = self.list.iter().enumerate();
        self.by_address =
            all.map(|(index, backend)| (backend.address(), BackendId::new(index))).collect();
        self.by_address.sort_unstable();
    }

    /// Those at an address: one, unless the same server is listed twice.
    pub(crate) fn at(&self, address: SocketAddr) -> impl Iterator<Item = BackendId> {
        let first = self.by_address.partition_point(|(other, _)| *other < address);
        let from_there = self.by_address[first..].iter();
        from_there.take_while(move |(other, _)| *other == address).map(|(_, id)| *id)
    }

    /// Those whose indices others will have.
    pub(crate) fn replaced_by(&self, configs: &[BackendConfig]) -> Vec<BackendId> {
        let pairs = self.list.iter().zip(configs).enumerate();
        let replaced = pairs.filter(|(_, (backend, config))| backend.address() != config.address);
        replaced.map(|(index, _)| BackendId::new(index)).collect()
    }

    /// Draws the conclusions from how all of them stand.
    fn recompute(&mut self, now: Instant) {
        for backend in &mut self.list {
            backend.is_able = backend.is_wanted() && backend.is_up();
        }
        let able = |backup| {
            self.list.iter().filter(move |backend| backend.is_able && backend.is_backup() == backup)
        };
        self.able = [able(false).count(), able(true).count()];
        self.is_open = self.policy.fail_open && self.able == [0; 2];
        self.primaries_are_back = self.are_primaries_back();
        for index in 0..self.list.len() {
            self.conclude(index, now);
        }
        self.next_event = self.list.iter().filter_map(|backend| backend.event).min();
        self.find_targets();
    }

    /// Draws the conclusions from how one of them stands now: those for all others too, where it
    /// was the last that is up, or the first.
    fn update(&mut self, id: BackendId, now: Instant) {
        let backend = &mut self.list[id.index()];
        let (was_able, was_in_service) = (backend.is_able, backend.is_in_service);
        let former_event = backend.event;
        backend.is_able = backend.is_wanted() && backend.is_up();
        let able = &mut self.able[usize::from(backend.is_backup())];
        *able = *able + usize::from(backend.is_able) - usize::from(was_able);
        let are_others_concerned = self.is_open != (self.policy.fail_open && self.able == [0; 2])
            || self.primaries_are_back != self.are_primaries_back();
        if are_others_concerned {
            self.recompute(now);
            return;
        }
        self.conclude(id.index(), now);
        let backend = &self.list[id.index()];
        if backend.is_in_service != was_in_service {
            self.find_targets();
        }
        let event = self.list[id.index()].event;
        if event == former_event {
            return;
        }
        self.next_event = if former_event.is_some() && former_event == self.next_event {
            self.list.iter().filter_map(|backend| backend.event).min()
        } else {
            self.next_event.into_iter().chain(event).min()
        };
    }

    fn are_primaries_back(&self) -> bool {
        self.policy.failback == Failback::All && self.able[0] > 0
    }

    /// What becomes of one of them, and of its flows.
    fn conclude(&mut self, index: usize, now: Instant) {
        let backend = &mut self.list[index];
        let serves = backend.is_up() || self.is_open;
        backend.is_in_service = backend.is_wanted() && serves;
        backend.flow_action = match (self.policy.on_backend_down, backend.health.drain) {
            (OnBackendDown::Close, _) if backend.is_removed() => {
                FlowAction::Close(CloseReason::BackendRemoved)
            }
            _ if backend.is_removed() => FlowAction::Move,
            // It gets only copies from now on: its answers are nobody's.
            _ if !backend.answers() => FlowAction::Move,
            (_, Drain::Over) => FlowAction::Close(CloseReason::Drained),
            _ if serves && backend.is_backup() && self.primaries_are_back => FlowAction::Return,
            _ if serves => FlowAction::Stay,
            (OnBackendDown::Pin, _) => FlowAction::Stay,
            (OnBackendDown::Rehash, _) => FlowAction::Move,
            (OnBackendDown::Close, _) => FlowAction::Close(CloseReason::BackendDown),
        };
        backend.event = backend.health.next_event();
        let state = backend.current_state();
        if state != backend.state {
            (backend.state, backend.state_since) = (state, now);
            self.state_changes += 1;
        }
    }

    fn find_targets(&mut self) {
        let Self { list, targets, target_count, .. } = self;
        *target_count = 0;
        for backup in [false, true] {
            let are_in_service =
                |(_, b): &(usize, &Backend)| b.is_in_service && b.is_backup() == backup;
            let found = list.iter().enumerate().filter(are_in_service);
            for (target, (index, _)) in targets.iter_mut().zip(found) {
                *target = BackendId::new(index);
                *target_count += 1;
            }
            if *target_count > 0 {
                return;
            }
        }
    }
}
