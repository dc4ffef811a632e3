//! What another configuration changes: which settings, what a reload does to flows, and with a recording
//! which clients go elsewhere.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use flowgate_config::{Cluster, Config, Listener};
use flowgate_core::config::OnBackendDown;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::recording::player::{BackendShare, Destinations, PlayReport};

/// What another configuration changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConfigDiff {
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
    /// How many flows are closed that would not be.
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

/// Why flows end that a change of the configuration ends.
const LOST: [&str; 3] = ["backend_removed", "mode_changed", "drained"];

impl ConfigDiff {
    /// What is different in `new`.
    pub fn between(old: &Config, new: &Config) -> Self {
        let mut diff = Self {
            settings: settings(old, new),
            reload: Vec::new(),
            refused: Vec::new(),
            needs_restart: old
                .difference_to(new)
                .needs_restart
                .iter()
                .map(ToString::to_string)
                .collect(),
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
        let traffic = TrafficDiff::between(old, new);
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
        for (place, report) in [old.0, new.0].into_iter().enumerate() {
            for (backend, share) in &report.backends {
                backends.entry(*backend).or_default()[place] = *share;
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
    for (place, counts) in [old, new].into_iter().enumerate() {
        for (reason, count) in counts {
            both.entry(reason.clone()).or_default()[place] = *count;
        }
    }
    both
}

/// Whether a listener's socket stays.
fn is_same_socket(old: &Listener, new: &Listener) -> bool {
    let is_same_port_0 = new.address.port() != 0 || old.name == new.name;
    (old.address, old.v6_only) == (new.address, new.v6_only) && is_same_port_0
}

fn effects(old: &Config, new: &Config) -> Vec<ReloadEffect> {
    let mut effects = Vec::new();
    for listener in &old.listeners {
        let successor = new.listeners.iter().find(|new| is_same_socket(listener, new));
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
        if !old.listeners.iter().any(|old| is_same_socket(old, listener)) {
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

fn settings(old: &Config, new: &Config) -> Vec<SettingChange> {
    let (old, new) = (flat(old), flat(new));
    let mut changes = Vec::new();
    for (key, before) in &old {
        if new.get(key) != Some(before) {
            let new = new.get(key).cloned();
            changes.push(SettingChange { key: key.clone(), old: Some(before.clone()), new });
        }
    }
    for (key, after) in new.iter().filter(|(key, _)| !old.contains_key(*key)) {
        changes.push(SettingChange { key: key.clone(), old: None, new: Some(after.clone()) });
    }
    changes.sort_by(|a, b| a.key.cmp(&b.key));
    changes
}

/// Every setting by its key.
fn flat(config: &Config) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut note = |key: String, value: String| drop(all.insert(key, value));
    let span = |time: Duration| humantime::format_duration(time).to_string();
    note("workers".into(), format!("{:?}", config.workers));
    note("drain_timeout".into(), span(config.drain_timeout));
    note("admin".into(), format!("{:?}", config.admin));
    note("log".into(), format!("{:?}", config.log));
    for listener in &config.listeners {
        let key = |name: &str| format!("listener.{}.{name}", listener.name);
        note(key("address"), listener.address.to_string());
        note(key("v6_only"), listener.v6_only.to_string());
        note(key("cluster"), listener.cluster.name.clone());
        note(key("max_flows"), listener.max_flows.map_or(0, |flows| flows.get()).to_string());
        note(key("max_datagram_size"), listener.max_datagram_size.to_string());
        note(key("receive_buffer"), listener.receive_buffer.to_string());
        note(key("send_buffer"), listener.send_buffer.to_string());
        note(key("accept_proxy_protocol"), networks(&listener.accept_proxy_protocol));
        note(key("accept"), format!("{:?}", listener.accept));
        note(key("allow"), networks(&listener.allow));
        note(key("deny"), networks(&listener.deny));
    }
    for cluster in &config.clusters {
        let key = |name: &str| format!("cluster.{}.{name}", cluster.name);
        for member in &cluster.members {
            let mut value = format!("weight {}", member.weight);
            if member.backup {
                value += ", backup";
            }
            if member.max_flows > 0 {
                value += &format!(", max_flows {}", member.max_flows);
            }
            if let Some(id) = &member.server_id {
                value += &format!(", server_id {id:?}");
            }
            note(key(&format!("backends.{}", member.target)), value);
        }
        note(key("backends_from"), format!("{:?}", cluster.from));
        note(key("health.probe"), format!("{:?}", cluster.health));
        note(key("mirror"), cluster.mirror.clone().unwrap_or_default());
        if let Ok(Value::Object(policy)) = serde_json::to_value(&cluster.policy) {
            flatten(&key(""), &policy, &mut note);
        }
    }
    all
}

fn networks(networks: &[ipnet::IpNet]) -> String {
    networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Notes what an object holds, each by its path.
fn flatten(prefix: &str, object: &Map<String, Value>, note: &mut impl FnMut(String, String)) {
    for (name, value) in object {
        match value {
            // Backends are told of by their names.
            _ if name == "backends" => {}
            Value::Object(inner) => match duration(inner) {
                Some(time) => {
                    note(format!("{prefix}{name}"), humantime::format_duration(time).to_string());
                }
                None => flatten(&format!("{prefix}{name}."), inner, note),
            },
            Value::String(text) => note(format!("{prefix}{name}"), text.clone()),
            other => note(format!("{prefix}{name}"), other.to_string()),
        }
    }
}

/// A stretch of time as serde writes it.
fn duration(object: &Map<String, Value>) -> Option<Duration> {
    let number = |name| object.get(name)?.as_u64();
    let nanos = u32::try_from(number("nanos")?).ok()?;
    (object.len() == 2).then_some(Duration::new(number("secs")?, nanos))
}

#[cfg(test)]
mod tests;
