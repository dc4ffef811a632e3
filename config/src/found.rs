//! Backends that are found rather than listed: where they come from, and the format that files and
//! HTTP servers have them in.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flowgate_core::config::{ClusterConfig, Mode, ReplyFrom, ServerId};
use serde::Deserialize;

use crate::cluster::backends;
use crate::{Cluster, Config, Member, Target, hex};

/// Where the backends of a cluster are found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackendsFrom {
    /// Whom to ask.
    pub place: Place,
    /// Whether a set without backends replaces one that has some.
    pub allow_empty: bool,
}

/// Who knows the backends of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A file, as [`parse_found`] reads it.
    File(PathBuf),
    /// A server, which answers as [`parse_found`] reads it.
    Http {
        /// Begins with `http://`.
        url: String,
        /// How often it is asked, where its answer does not say how long it is good for.
        interval: Duration,
    },
    /// The SRV records of this name.
    Srv(String),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Http { url, .. } => f.write_str(url),
            Self::Srv(name) => write!(f, "SRV records of {name}"),
        }
    }
}

/// What was found, by cluster.
pub type FoundBackends = BTreeMap<String, Vec<Member>>;

impl Config {
    /// The same with the backends that were found, after those that each cluster lists.
    ///
    /// A target that is listed is as it is listed, and one that nothing can be sent to from the
    /// cluster's source is left out.
    pub fn with_found(&self, found: &FoundBackends) -> Self {
        let mut clusters = HashMap::new();
        let renew = |cluster: &Arc<Cluster>| match found.get(&cluster.name) {
            Some(found) if cluster.from.is_some() => Arc::new(cluster.with_found(found)),
            _ => Arc::clone(cluster),
        };
        let mut config = self.clone();
        for cluster in &mut config.clusters {
            *cluster = renew(cluster);
            clusters.insert(cluster.name.clone(), Arc::clone(cluster));
        }
        for listener in &mut config.listeners {
            if let Some(cluster) = clusters.get(&listener.cluster.name) {
                listener.cluster = Arc::clone(cluster);
            }
        }
        config
    }
}

impl Cluster {
    fn with_found(&self, found: &[Member]) -> Self {
        // Of a race's or a fan-out's backends the listed one answers that was chosen.
        let answers = self.policy.mode != Mode::FanOut { reply_from: ReplyFrom::Chosen };
        let is_reached = |member: &&Member| member.is_reached_from(&self.policy.source);
        let listed: HashSet<&Target> = self.members.iter().map(|member| &member.target).collect();
        let new = found.iter().filter(|member| !listed.contains(&member.target));
        let new = new.filter(is_reached).map(|member| Member { answers, ..member.clone() });
        let members: Vec<_> = self.members.iter().cloned().chain(new).collect();
        let backends = backends(&members, |_| Vec::new());
        let policy = ClusterConfig { backends, ..self.policy.clone() };
        Self { members, policy, ..self.clone() }
    }
}

/// One group of the format: targets that share labels.
#[derive(Deserialize)]
struct Group {
    targets: Vec<String>,
    #[serde(default)]
    labels: HashMap<String, String>,
}

/// Reads a set of backends in the format of Prometheus' service discovery by files and by HTTP: a
/// list of groups, each with `targets` and `labels`.
///
/// Of the labels, `weight` and `max_flows` are whole numbers, `backup` and `drain` are `true` or
/// `false`, and `server_id` is in hexadecimal digits; others are another reader's. A backend that
/// drains has the weight 0. A target that comes
/// twice is as it is said first.
///
/// # Errors
///
/// Why it is none. Of a set with a fault in it nothing is taken.
pub fn parse_found(text: &[u8]) -> Result<Vec<Member>, String> {
    let groups: Vec<Group> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let (mut taken, mut ids) = (HashSet::new(), HashSet::new());
    let mut members = Vec::new();
    for group in groups {
        let label = |name: &str| group.labels.get(name).map(String::as_str);
        let number = |name: &str, default| match label(name) {
            None | Some("") => Ok(default),
            Some(text) => text.parse::<u32>().map_err(|_| {
                format!("label {name}: found {text:?}; allowed: a whole number up to {}", u32::MAX)
            }),
        };
        let truth = |name: &str| match label(name) {
            None | Some("" | "false") => Ok(false),
            Some("true") => Ok(true),
            Some(text) => Err(format!("label {name}: found {text:?}; allowed: true or false")),
        };
        let weight = if truth("drain")? { 0 } else { number("weight", 1)? };
        let (backup, max_flows) = (truth("backup")?, number("max_flows", 0)?);
        let server_id = match label("server_id") {
            None | Some("") => None,
            Some(text) => {
                let id = hex::decode(text).and_then(|bytes| ServerId::new(&bytes).ok());
                Some(id.ok_or_else(|| {
                    format!(
                        "label server_id: found {text:?}; allowed: 1 to 15 bytes in hexadecimal"
                    )
                })?)
            }
        };
        for target in group.targets {
            let target = Target::parse(&target)
                .map_err(|allowed| format!("target {target:?}; allowed: {allowed}"))?;
            if taken.insert(target.clone()) {
                if let Some(id) = server_id
                    && !ids.insert(id)
                {
                    return Err(format!("label server_id: {id} names two backends"));
                }
                members.push(Member {
                    target,
                    weight,
                    backup,
                    max_flows,
                    answers: true,
                    server_id,
                });
            }
        }
    }
    Ok(members)
}

/// Writes a set as [`parse_found`] reads it.
pub fn write_found(members: &[Member]) -> String {
    let labels =
        |member: &Member| (member.weight, member.backup, member.max_flows, member.server_id);
    let group = |group: &[Member]| {
        let (weight, backup, max_flows, server_id) = labels(&group[0]);
        let mut labels = serde_json::json!({
            "weight": weight.to_string(),
            "backup": backup.to_string(),
            "max_flows": max_flows.to_string(),
        });
        if let Some(id) = server_id {
            labels["server_id"] = id.to_string().into();
        }
        let targets: Vec<_> = group.iter().map(|member| member.target.to_string()).collect();
        serde_json::json!({ "targets": targets, "labels": labels })
    };
    // Of thousands, most have the same labels.
    let groups = members.chunk_by(|one, next| labels(one) == labels(next));
    serde_json::Value::Array(groups.map(group).collect()).to_string()
}

#[cfg(test)]
mod tests;
