//! What changes between two configurations, for a process that goes on from one to the other.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::{Cluster, Config, Listener};

/// What is different in a new configuration, by name. The order of listeners and of clusters in the
/// file is no difference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// What becomes of the listeners.
    pub listeners: ListenerChanges,
    /// What becomes of the clusters, with those that no listener uses.
    pub clusters: ClusterChanges,
    /// The keys beside listeners and clusters that a running process can follow.
    pub settings: Vec<&'static str>,
    /// The keys that a running process cannot follow: their new values wait for a restart.
    pub needs_restart: Vec<&'static str>,
}

/// What becomes of the listeners: each of the old and of the new ones is in exactly one list. The
/// lists are in the order of the new file, that of the removed ones in the order of the old.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenerChanges {
    /// There was none of this name.
    pub added: Vec<String>,
    /// There is none of this name any more.
    pub removed: Vec<String>,
    /// It receives elsewhere, so that it needs another socket. Anything else may differ too.
    pub rebound: Vec<String>,
    /// Its socket stays; something else of it, or its cluster, differs.
    pub changed: Vec<String>,
    /// It is as before, and so is its cluster.
    pub unchanged: Vec<String>,
}

/// What becomes of the clusters: each of the old and of the new ones is in exactly one list. The
/// lists are in the order of the new file, that of the removed ones in the order of the old.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterChanges {
    /// There was none of this name.
    pub added: Vec<String>,
    /// There is none of this name any more.
    pub removed: Vec<String>,
    /// Something of it differs.
    pub changed: Vec<String>,
    /// It is as before.
    pub unchanged: Vec<String>,
}

impl Difference {
    /// Whether the two say the same.
    pub fn is_empty(&self) -> bool {
        let Self { listeners, clusters, settings, needs_restart } = self;
        let ListenerChanges { added, removed, rebound, changed, unchanged: _ } = listeners;
        let no_listener = [added, removed, rebound, changed].into_iter().all(Vec::is_empty);
        let ClusterChanges { added, removed, changed, unchanged: _ } = clusters;
        let no_cluster = [added, removed, changed].into_iter().all(Vec::is_empty);
        no_listener && no_cluster && settings.is_empty() && needs_restart.is_empty()
    }
}

impl Config {
    /// What is different in `new`, a line for each thing, for people. Names are quoted, with what a
    /// terminal would obey escaped.
    pub fn changes_to(&self, new: &Self) -> Vec<String> {
        let Difference { listeners, clusters, settings, needs_restart: _ } =
            self.difference_to(new);
        let mut lines = Vec::new();
        let mut say = |what: &str, names: &[String], became: &str| {
            lines.extend(names.iter().map(|name| format!("{what} {name:?} {became}")));
        };
        say("listener", &listeners.added, "added");
        say("listener", &listeners.removed, "removed");
        say("listener", &listeners.rebound, "moved to another address");
        // One that only has another cluster's settings is told of with the cluster.
        let has_changed = |name: &&String| {
            let find = |config: &Self| config.listeners.iter().find(|l| l.name == **name).cloned();
            let (Some(old), Some(new)) = (find(self), find(new)) else { return true };
            old.cluster.name != new.cluster.name
                || new != Listener { cluster: Arc::clone(&new.cluster), ..old }
        };
        let changed: Vec<_> = listeners.changed.iter().filter(has_changed).cloned().collect();
        say("listener", &changed, "changed");
        say("cluster", &clusters.added, "added");
        say("cluster", &clusters.removed, "removed");
        for name in &clusters.changed {
            let find = |config: &Self| config.clusters.iter().find(|c| c.name == *name).cloned();
            let (Some(old), Some(new)) = (find(self), find(new)) else { continue };
            lines.push(format!("cluster {name:?} changed{}", members_changed(&old, &new)));
        }
        lines.extend(settings.iter().map(|key| format!("{key} changed")));
        lines
    }

    /// What is different in `new`.
    pub fn difference_to(&self, new: &Self) -> Difference {
        let changed = |keys: &[(&'static str, bool)]| {
            keys.iter().filter(|(_, is_same)| !is_same).map(|(key, _)| *key).collect()
        };
        Difference {
            listeners: listener_changes(&self.listeners, &new.listeners),
            clusters: cluster_changes(self, new),
            settings: changed(&[
                ("lame_duck", self.lame_duck == new.lame_duck),
                ("announce", self.announce == new.announce),
                ("drain_timeout", self.drain_timeout == new.drain_timeout),
                ("log.level", self.log.level == new.log.level),
            ]),
            needs_restart: changed(&[
                ("workers", self.workers == new.workers),
                ("admin.socket", self.admin.socket == new.admin.socket),
                ("admin.http", self.admin.http == new.admin.http),
                ("log.format", self.log.format == new.log.format),
                ("log.flows", self.log.flows == new.log.flows),
                ("listener.accept", accept_alike(&self.listeners, &new.listeners)),
            ]),
        }
    }
}

/// Which backends a cluster has more and less, and whether anything else differs.
fn members_changed(old: &Cluster, new: &Cluster) -> String {
    let signed = |sign: &str, cluster: &Cluster, other: &Cluster| {
        let others: HashSet<_> = other.members.iter().map(|member| &member.target).collect();
        let targets = cluster.members.iter().map(|member| &member.target);
        let missing = targets.filter(|target| !others.contains(target));
        missing.map(|target| format!(" {sign}{target}")).collect::<String>()
    };
    let backends = signed("+", new, old) + &signed("-", old, new);
    if backends.is_empty() { String::new() } else { format!(": backends{backends}") }
}

/// Whether the listeners that keep their sockets serve clients by sockets as before.
fn accept_alike(old: &[Listener], new: &[Listener]) -> bool {
    new.iter().all(|new| old.iter().all(|old| !new.has_sockets_of(old) || old.accept == new.accept))
}

fn listener_changes(old: &[Listener], new: &[Listener]) -> ListenerChanges {
    let mut left: HashMap<_, _> = old.iter().map(|old| (&old.name, old)).collect();
    let mut changes = ListenerChanges::default();
    for new in new {
        let list = match left.remove(&new.name) {
            None => &mut changes.added,
            Some(old) if !new.has_sockets_of(old) => &mut changes.rebound,
            Some(old) if old == new => &mut changes.unchanged,
            Some(_) => &mut changes.changed,
        };
        list.push(new.name.clone());
    }
    let removed = old.iter().map(|old| &old.name).filter(|name| left.contains_key(name));
    changes.removed = removed.cloned().collect();
    changes
}

fn cluster_changes(old: &Config, new: &Config) -> ClusterChanges {
    let mut left: HashMap<_, _> = old.clusters.iter().map(|old| (&old.name, old)).collect();
    let mut changes = ClusterChanges::default();
    for new in &new.clusters {
        let list = match left.remove(&new.name) {
            None => &mut changes.added,
            Some(old) if old == new => &mut changes.unchanged,
            Some(_) => &mut changes.changed,
        };
        list.push(new.name.clone());
    }
    let removed = old.clusters.iter().map(|old| &old.name).filter(|name| left.contains_key(name));
    changes.removed = removed.cloned().collect();
    changes
}
