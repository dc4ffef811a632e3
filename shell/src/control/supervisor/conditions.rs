//! In what state each backend is, why and since when, and what happened last.
//!
//! The states of backends follow from what probes, operators and traffic say. That is known in three
//! places; here it comes together, and a change leaves an event, and a line in the log where no one
//! else has written one.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use flowgate_core::Instant;
use tracing::{info, warn};

use crate::admin::status::{BackendState, ClusterStatus, EventDoc, ReloadStatus};
use crate::control::probe::TargetKey;
use crate::sys::clock::Clock;

/// How many events are remembered.
const MAX_EVENTS: usize = 100;

/// The states of backends, and what happened last.
#[derive(Debug, Default)]
pub(super) struct Conditions {
    backends: HashMap<TargetKey, Condition>,
    /// How often traffic has been a reason to probe each of them.
    doubts: HashMap<TargetKey, u64>,
    /// The latest first.
    events: VecDeque<EventDoc>,
    last_reload: Option<ReloadStatus>,
}

/// In what state one backend is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) state: BackendState,
    /// Why, in words.
    pub(super) reason: Option<String>,
    /// Since when it is in that state.
    pub(super) since: Instant,
    /// When that ends at the latest, where that is known.
    pub(super) until: Option<Instant>,
}

/// What is found of a backend now.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    pub(super) state: BackendState,
    pub(super) reason: Option<String>,
    /// Since when, where that is known better than by looking now.
    pub(super) since: Option<Instant>,
    pub(super) until: Option<Instant>,
}

impl Conditions {
    /// Takes in what is found of a backend, and returns what is known of it now.
    pub(super) fn observe(
        &mut self,
        cluster: &str,
        backend: SocketAddr,
        found: Finding,
        clock: &Clock,
    ) -> Condition {
        let now = clock.now();
        let key = TargetKey { cluster: cluster.to_owned(), backend };
        let Finding { state, reason, since, until } = found;
        let former = self.backends.get(&key);
        let since = match former {
            Some(former) if former.state == state => since.unwrap_or(former.since),
            _ => since.unwrap_or(now),
        };
        let condition = Condition { state, reason, since, until };
        // One that is seen for the first time has changed if it is in trouble.
        if former.map_or(state.is_trouble(), |former| former.state != state) {
            let text = change(&key, former, &condition, now);
            self.note(clock, state.as_str(), &format!("{cluster}/{backend}"), text);
        }
        self.backends.insert(key, condition.clone());
        condition
    }

    /// Takes in how often traffic has been a reason to probe a backend, and says whether there is
    /// another one now.
    pub(super) fn is_doubted_anew(&mut self, key: &TargetKey, doubts: u64) -> bool {
        if doubts == 0 {
            return false;
        }
        let before = self.doubts.insert(key.clone(), doubts).unwrap_or(0);
        doubts > before
    }

    /// Forgets the backends that are no more. All others have been observed.
    pub(super) fn retain(&mut self, clusters: &[ClusterStatus]) {
        let all =
            clusters.iter().flat_map(|c| c.backends.iter().map(move |b| (&c.name, b.address)));
        if self.backends.len() > all.clone().count() {
            let all: HashSet<_> = all.collect();
            self.backends.retain(|key, _| all.contains(&(&key.cluster, key.backend)));
            self.doubts.retain(|key, _| all.contains(&(&key.cluster, key.backend)));
        }
    }

    /// Takes in how a reload has ended.
    pub(super) fn reloaded(&mut self, ok: bool, notes: &[String], clock: &Clock) {
        let kind = if ok { "reloaded" } else { "refused" };
        self.note(clock, kind, "", notes.join("; "));
        let at = clock.unix_time().as_secs_f64();
        self.last_reload = Some(ReloadStatus { at, ok, notes: notes.to_vec() });
    }

    /// Takes in that this instance, or a listener, is announced, or is no more.
    pub(super) fn announced(&mut self, what: &str, announced: bool, why: String, clock: &Clock) {
        let kind = if announced { "announced" } else { "withdrawn" };
        self.note(clock, kind, what, why);
    }

    /// How the last reload ended, if there was any.
    pub(super) const fn last_reload(&self) -> Option<&ReloadStatus> {
        self.last_reload.as_ref()
    }

    /// What happened last, the latest first.
    pub(super) fn events(&self) -> Vec<EventDoc> {
        self.events.iter().cloned().collect()
    }

    fn note(&mut self, clock: &Clock, kind: &str, subject: &str, text: String) {
        let at = clock.unix_time().as_secs_f64();
        let (kind, subject) = (kind.to_owned(), subject.to_owned());
        self.events.push_front(EventDoc { at, kind, subject, text });
        self.events.truncate(MAX_EVENTS);
    }
}

/// What there is to say of a change. What traffic has decided, nobody else has logged.
fn change(key: &TargetKey, former: Option<&Condition>, now_is: &Condition, now: Instant) -> String {
    let TargetKey { cluster, backend } = key;
    let cluster = cluster.as_str();
    let reason = now_is.reason.as_deref().unwrap_or_default();
    if now_is.state == BackendState::Ejected {
        let ends = now_is.until.map(|until| span(until.saturating_since(now)));
        let lasts = ends.clone().unwrap_or_else(|| "unknown".to_owned());
        warn!(cluster, %backend, reason, "the backend is ejected for {lasts}");
        return ends.map_or_else(|| reason.to_owned(), |ends| format!("{reason}; for {ends}"));
    }
    let Some(former) = former else { return reason.to_owned() };
    let lasted = span(now.saturating_since(former.since));
    if former.state == BackendState::Ejected {
        let state = now_is.state.as_str();
        info!(cluster, %backend, state, "the backend is ejected no more, after {lasted}");
    }
    let before = format!("{} for {lasted}", former.state.as_str());
    if reason.is_empty() { format!("was {before}") } else { format!("{reason}; was {before}") }
}

/// A stretch of time for people: in seconds, if it is that long.
fn span(duration: Duration) -> String {
    let whole = if duration < Duration::from_secs(1) {
        Duration::from_millis(duration.as_millis() as u64)
    } else {
        Duration::from_secs(duration.as_secs_f64().round() as u64)
    };
    humantime::format_duration(whole).to_string()
}

/// How long ago something was, and how long it is until something, in seconds.
pub(super) fn seconds(duration: Duration) -> f64 {
    // Milliseconds are enough for people, and make short documents.
    (duration.as_secs_f64() * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests;
