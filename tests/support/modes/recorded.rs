//! Recordings of clusters without flows of one backend each: what the
//! [first simulator](crate::sim::Scenario) has no model of is played here.

use std::time::Duration;

use flowgate_core::burst::MAX_BURST_BYTES;
use flowgate_core::config::{Accept, HealthPolicy, Limits, ManagerConfig, OnBackendDown, Source};
use flowgate_core::{BackendEvent, BackendId, Burst, ManagerInput};

use super::{Balancer, Flow, LONGEST_DELAY, World, client};
use crate::sim::{
    Action, BackendPick, Change, News, Pause, SeededChoices, Setting, SocketFailure, Train,
    Violation, shrink,
};

/// What to print where a scenario finds something: the shortest list of its actions that still does.
/// Nothing, if it finds nothing.
pub fn report_of<B: Balancer>(
    setting: &Setting,
    actions: &[Action],
    make: impl Fn(ManagerConfig, u64) -> B,
) -> Option<String> {
    let violation = |actions: &[Action]| World::of(setting, &make).play_actions(actions).err();
    violation(actions)?;
    let shortest = shrink(actions.to_vec(), |part| violation(part).is_some());
    let found = violation(&shortest)?;
    let lines: String = shortest.iter().map(|action| format!("  {action:?}\n")).collect();
    let (played, all, config) = (shortest.len(), actions.len(), configured(setting));
    Some(format!("after {played} of {all} actions:\n{config:#?}\n{lines}VIOLATION: {found}\n"))
}

/// Whether something that has happened can happen here.
pub fn can_play(action: &Action) -> bool {
    match action {
        Action::Send { .. }
        | Action::Answer { .. }
        | Action::Fail { .. }
        | Action::NetworkChanges
        | Action::Wait(Pause::Nanos(_) | Pause::Millis(_))
        | Action::Timeout(_) => true,
        Action::News { backend: BackendPick::Known(_), event } => {
            matches!(event, News::Up | News::Down | News::Unprobed)
        }
        Action::Reconfigure {
            change: Change::Remove(_) | Change::Return(_) | Change::Weight(..),
            ..
        } => true,
        _ => false,
    }
}

impl<B: Balancer> World<B> {
    /// A world in which nothing of a scenario has happened.
    fn of(setting: &Setting, make: impl FnOnce(ManagerConfig, u64) -> B) -> Self {
        let config = configured(setting);
        let balancer = make(config.clone(), setting.manager_seed);
        Self::with(config, SeededChoices::new(setting.manager_seed), balancer)
    }

    fn play_actions(&mut self, actions: &[Action]) -> Result<(), Violation> {
        for (index, action) in actions.iter().enumerate() {
            let outcome = self.act(action);
            outcome.map_err(|found| Violation(format!("action {index}: {found}")))?;
        }
        self.settle().map_err(|violation| Violation(format!("at rest: {violation}")))
    }

    fn act(&mut self, action: &Action) -> Result<(), Violation> {
        match *action {
            Action::Send { party, tos, train, .. } => self.send_train(party, tos, train),
            Action::Answer { .. } => self.answer_now(),
            Action::Fail { failure, .. } => self.fail_as(failure),
            Action::NetworkChanges => self.tell(ManagerInput::NetworkChanged),
            Action::Timeout(_) => self.tell(ManagerInput::Timeout),
            Action::Wait(pause) => {
                self.now += match pause {
                    Pause::Nanos(nanos) => Duration::from_nanos(nanos.into()),
                    Pause::Millis(millis) => Duration::from_millis(millis.into()),
                    _ => Duration::ZERO,
                };
                Ok(())
            }
            Action::News { backend: BackendPick::Known(index), event } => {
                self.hear_of(index.into(), event)
            }
            Action::Reconfigure { change, .. } => self.change(change),
            _ => Ok(()),
        }
    }

    fn send_train(&mut self, party: u8, tos: u8, train: Train) -> Result<(), Violation> {
        let source = client(party.into());
        let Train { len, count, short_by } = train;
        let (len, count) = (usize::from(len).max(1), usize::from(count).max(1));
        let whole = (len * count).saturating_sub(usize::from(short_by).min(len - 1));
        let bytes: Vec<u8> = (0..whole.min(MAX_BURST_BYTES)).map(|at| (at / len) as u8).collect();
        self.heard.remove(&source);
        let burst = Burst::segmented(&bytes, len as u16);
        let burst = burst.ok_or_else(|| Violation(format!("{train:?} is no burst")))?;
        self.tell(ManagerInput::ClientBurst { source, local: None, tos, ttl: 64, burst })
    }

    /// The reply arrives that has been under way for longest, unless the network has lost it.
    fn answer_now(&mut self) -> Result<(), Violation> {
        while let Some(((at, _), (flow, route))) = self.replies.pop_first() {
            if at + LONGEST_DELAY >= self.now {
                return self.reply(Some(flow), route);
            }
        }
        Ok(())
    }

    fn fail_as(&mut self, failure: SocketFailure) -> Result<(), Violation> {
        let Some(&Flow { route, .. }) = self.flows.values().next() else { return Ok(()) };
        let (upstream, question) = (route.upstream, None);
        match failure {
            SocketFailure::Network(error) => {
                let is_connected = self.sockets.get(&upstream).copied().unwrap_or(true);
                let remote = (!is_connected).then_some(route.address);
                self.tell(ManagerInput::UpstreamError { upstream, remote, question, error })
            }
            _ => self.tell(ManagerInput::UpstreamOpenFailed { upstream }),
        }
    }

    fn hear_of(&mut self, index: usize, news: News) -> Result<(), Violation> {
        if index >= self.config.cluster.backends.len() {
            return Ok(());
        }
        let event = match news {
            News::Down => BackendEvent::Down,
            News::Unprobed => BackendEvent::Unprobed,
            _ => BackendEvent::Up,
        };
        self.up[index] = event != BackendEvent::Down;
        self.tell(ManagerInput::BackendChanged { backend: BackendId::new(index), event })
    }

    fn change(&mut self, change: Change) -> Result<(), Violation> {
        let (Change::Remove(index) | Change::Return(index) | Change::Weight(index, _)) = change
        else {
            return Ok(());
        };
        let index = usize::from(index);
        if index >= self.config.cluster.backends.len() {
            return Ok(());
        }
        if matches!(change, Change::Return(_)) && self.config.cluster.backends[index].removed {
            // One that comes back is not held to what the probes have said of the former.
            self.up[index] = true;
        }
        self.reload(|config| {
            let backend = &mut config.cluster.backends[index];
            match change {
                Change::Weight(_, weight) => backend.weight = weight,
                _ => backend.removed = matches!(change, Change::Remove(_)),
            }
        })
    }
}

/// The configuration of a scenario, without what the rules know nothing of.
fn configured(setting: &Setting) -> ManagerConfig {
    let mut config = setting.config.clone();
    (config.max_slots, config.shares_max_flows) = (u32::MAX, false);
    config.max_datagram_size = u16::MAX;
    (config.record_flows, config.accept) = (false, Accept::Shared);
    let cluster = &mut config.cluster;
    cluster.requests = 0;
    cluster.transactions = None;
    cluster.upstream_quarantine = Duration::from_secs(1);
    cluster.source = Source::Any;
    cluster.limits = Limits::default();
    let (on_backend_down, fail_open) = (OnBackendDown::Rehash, cluster.health.fail_open);
    cluster.health = HealthPolicy { on_backend_down, fail_open, ..HealthPolicy::default() };
    config
}
