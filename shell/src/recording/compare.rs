//! What another configuration changes: which settings, what a reload does to flows, and with a recording
//! which clients go elsewhere.

mod settings;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use flowgate_config::{Cluster, Config, Listener};
use flowgate_core::config::OnBackendDown;
use serde::Serialize;

use self::settings::settings;
use crate::recording::player::{BackendShare, Destinations, PlayReport};

/// What another configuration changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConfigDiff {
    /// Whether the two say the same.
    pub is_same: bool,
    /// Settings that differ.
    pub settings: Vec<SettingChange>,
    /// What a reload does, a line for each listener and backend that does not stay as it is.
    pub reload: Vec<ReloadEffect>,
    /// Why a reload is refused; empty: it is not.
    pub refused: Vec<String>,
    /// Settings that wait for a restart.
    pub needs_restart: Vec<String>,
    /// Whether flows end by the reload that would go on without it.
    pub flows_lost: bool,
    /// What it would have made of recorded traffic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic: Option<TrafficDiff>,
}

/// A setting that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SettingChange {
    /// Which, such as `cluster.dns.idle_timeout`.
    pub key: String,
    /// What it was; none: there was none.
    pub old: Option<String>,
    /// What it becomes; none: there is none any more.
    pub new: Option<String>,
}

/// What a reload does to something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReloadEffect {
    /// The listener.
    pub listener: String,
    /// The backend, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// What becomes of it.
    pub becomes: Becomes,
    /// What becomes of its flows.
    pub flows: FlowsBecome,
}

/// What becomes of a listener or a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Becomes {
    /// It is new.
    Added,
    /// It goes.
    Removed,
    /// It stays, and its flows do not all.
    Changed,
    /// It stays as it is.
    Kept,
}

/// What becomes of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowsBecome {
    /// There are none.
    None,
    /// They stay.
    Kept,
    /// They go on with another backend.
    Moved,
    /// They end.
    Closed,
}

/// What another configuration makes of recorded traffic.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrafficDiff {
    /// How many clients there are.
    pub clients: u64,
    /// Those whose datagrams go elsewhere in the end.
    pub moved: Vec<MovedClient>,
    /// Each backend, before and after.
    pub backends: BTreeMap<SocketAddr, [BackendShare; 2]>,
    /// Datagrams dropped by reason, before and after.
    pub dropped: BTreeMap<String, [u64; 2]>,
    /// Flows closed by reason, before and after.
    pub flows_closed: BTreeMap<String, [u64; 2]>,
    /// How many flows are closed that would not be, and clients left whose listener is gone.
    pub flows_lost: u64,
}

/// A client whose datagrams go elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MovedClient {
    /// The listener.
    pub listener: String,
    /// The client.
    pub client: SocketAddr,
    /// Where they went; none: nowhere.
    pub from: Option<SocketAddr>,
    /// Where they go.
    pub to: Option<SocketAddr>,
}

/// What a reload makes of a configuration's listeners: each that stays, by the name that it had; of the new
/// ones none, which nobody sent to.
pub fn as_reloaded(old: &Config, new: &Config) -> Config {
    let stays = |former: &Listener| {
        let successor = new.listeners.iter().find(|new| new.has_sockets_of(former))?;
        Some(Listener { name: former.name.clone(), ..successor.clone() })
    };
    Config { listeners: old.listeners.iter().filter_map(stays).collect(), ..new.clone() }
}

/// Why flows end that a change of the configuration ends.
const LOST: [&str; 3] = ["backend_removed", "mode_changed", "drained"];

impl ConfigDiff {
    /// What is different in `new`.
    pub fn between(old: &Config, new: &Config) -> Self {
        let difference = old.difference_to(new);
        let mut diff = Self {
            is_same: difference.is_empty(),
            settings: settings(old, new),
            reload: Vec::new(),
            refused: Vec::new(),
            needs_restart: difference.needs_restart.iter().map(ToString::to_string).collect(),
            flows_lost: false,
            traffic: None,
        };
        if old.workers != new.workers {
            diff.refused.push("workers: cannot change while flowgate runs".to_owned());
        }
        diff.reload = effects(old, new);
        diff.flows_lost = diff.reload.iter().any(|effect| effect.flows == FlowsBecome::Closed);
        diff
    }

    /// The same with what two configurations made of a recording.
    #[must_use]
    pub fn with_traffic(
        mut self,
        old: (&PlayReport, &Destinations),
        new: (&PlayReport, &Destinations),
    ) -> Self {
        let mut traffic = TrafficDiff::between(old, new);
        // Nobody counts what a listener that goes closes: its clients are served no more.
        let goes = |listener: &str| {
            self.reload.iter().any(|effect| {
                (effect.becomes, effect.flows) == (Becomes::Removed, FlowsBecome::Closed)
                    && effect.listener == listener
            })
        };
        let left = traffic.moved.iter().filter(|client| goes(&client.listener)).count();
        traffic.flows_lost += left as u64;
        self.flows_lost |= traffic.flows_lost > 0;
        self.traffic = Some(traffic);
        self
    }
}

impl TrafficDiff {
    fn between(old: (&PlayReport, &Destinations), new: (&PlayReport, &Destinations)) -> Self {
        let nowhere = None;
        let mut moved = Vec::new();
        for (key @ (listener, client), from) in old.1 {
            let to = new.1.get(key).unwrap_or(&nowhere);
            if from != to {
                let listener = listener.clone();
                moved.push(MovedClient { listener, client: *client, from: *from, to: *to });
            }
        }
        let flows_closed = both(&old.0.flows_closed, &new.0.flows_closed);
        let more = |reason: &&str| {
            flows_closed.get(*reason).map_or(0, |[old, new]| new.saturating_sub(*old))
        };
        let flows_lost = LOST.iter().map(more).sum();
        let mut backends = BTreeMap::<_, [BackendShare; 2]>::new();
        for (index, report) in [old.0, new.0].into_iter().enumerate() {
            for (backend, share) in &report.backends {
                backends.entry(*backend).or_default()[index] = *share;
            }
        }
        Self {
            clients: old.1.len() as u64,
            moved,
            backends,
            dropped: both(&old.0.dropped, &new.0.dropped),
            flows_closed,
            flows_lost,
        }
    }
}

fn both(old: &BTreeMap<String, u64>, new: &BTreeMap<String, u64>) -> BTreeMap<String, [u64; 2]> {
    let mut both = BTreeMap::<String, [u64; 2]>::new();
    for (index, counts) in [old, new].into_iter().enumerate() {
        for (reason, count) in counts {
            both.entry(reason.clone()).or_default()[index] = *count;
        }
    }
    both
}

fn effects(old: &Config, new: &Config) -> Vec<ReloadEffect> {
    let mut effects = Vec::new();
    for listener in &old.listeners {
        let successor = new.listeners.iter().find(|new| new.has_sockets_of(listener));
        let effect = |becomes, flows| ReloadEffect {
            listener: listener.name.clone(),
            backend: None,
            becomes,
            flows,
        };
        let has_flows = listener.cluster.policy.mode.has_flows();
        let Some(successor) = successor else {
            let flows = if has_flows { FlowsBecome::Closed } else { FlowsBecome::None };
            effects.push(effect(Becomes::Removed, flows));
            continue;
        };
        let (before, after) = (&listener.cluster, &successor.cluster);
        let is_other_kind = before.policy.mode.kind() != after.policy.mode.kind();
        if is_other_kind && has_flows {
            effects.push(effect(Becomes::Changed, FlowsBecome::Closed));
            continue;
        }
        effects.push(effect(Becomes::Kept, FlowsBecome::Kept));
        effects.extend(backend_effects(&listener.name, before, after));
    }
    for listener in &new.listeners {
        if !old.listeners.iter().any(|old| listener.has_sockets_of(old)) {
            effects.push(ReloadEffect {
                listener: listener.name.clone(),
                backend: None,
                becomes: Becomes::Added,
                flows: FlowsBecome::None,
            });
        }
    }
    effects
}

fn backend_effects(listener: &str, old: &Cluster, new: &Cluster) -> Vec<ReloadEffect> {
    let has = |cluster: &Cluster, target: &str| {
        cluster.members.iter().any(|member| member.target.to_string() == target)
    };
    let effect = |target: &str, becomes, flows| ReloadEffect {
        listener: listener.to_owned(),
        backend: Some(target.to_owned()),
        becomes,
        flows,
    };
    let of_removed = match new.policy.health.on_backend_down {
        _ if !new.policy.mode.has_flows() => FlowsBecome::None,
        OnBackendDown::Close => FlowsBecome::Closed,
        OnBackendDown::Pin | OnBackendDown::Rehash => FlowsBecome::Moved,
    };
    let mut effects = Vec::new();
    for member in &old.members {
        let target = member.target.to_string();
        if !has(new, &target) {
            effects.push(effect(&target, Becomes::Removed, of_removed));
        }
    }
    for member in &new.members {
        let target = member.target.to_string();
        if !has(old, &target) {
            effects.push(effect(&target, Becomes::Added, FlowsBecome::None));
        }
    }
    effects
}

#[cfg(test)]
mod tests;
