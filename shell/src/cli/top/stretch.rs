//! What happened between two documents.

use std::collections::BTreeMap;
use std::time::Duration;

use flowgate_core::DropReason;

use crate::admin::status::{
    BackendStatus, ByDirection, ClusterStatus, ListenerStatus, StatusDocument,
};
use crate::cli::human;

/// Two documents of the same process, and the time between them.
#[derive(Clone, Copy)]
pub(super) struct Stretch<'a> {
    pub(super) before: &'a StatusDocument,
    pub(super) now: &'a StatusDocument,
    pub(super) elapsed: Duration,
}

impl Stretch<'_> {
    /// Datagrams forwarded: to backends, and to clients.
    pub(super) fn forwarded(&self) -> [u64; 2] {
        self.total(|status| status.counters.datagrams_forwarded)
    }

    /// Datagrams dropped, those that the kernel dropped included.
    pub(super) fn dropped(&self) -> u64 {
        let socket_drops = |status: &StatusDocument| sum(status.listeners.iter().map(by_kernel));
        let dropped = self.total(|status| status.counters.datagrams_dropped);
        let by_kernel = socket_drops(self.now).saturating_sub(socket_drops(self.before));
        sum(dropped.into_iter().chain([by_kernel]))
    }

    fn total(&self, figure: impl Fn(&StatusDocument) -> ByDirection) -> [u64; 2] {
        let (now, before) = (figure(self.now), figure(self.before));
        [
            now.to_backend.saturating_sub(before.to_backend),
            now.to_client.saturating_sub(before.to_client),
        ]
    }

    /// By how much a figure of a listener grew. One that is new has grown from nothing.
    pub(super) fn of_listener(
        &self,
        listener: &ListenerStatus,
        figure: impl Fn(&ListenerStatus) -> u64,
    ) -> u64 {
        let before = self.before.listeners.iter().find(|before| before.name == listener.name);
        figure(listener).saturating_sub(before.map_or(0, figure))
    }

    /// What a listener dropped, by reason, both directions together, the most frequent first.
    pub(super) fn drops_of<'a>(&self, listener: &'a ListenerStatus) -> Vec<(&'a str, u64)> {
        let mut drops = BTreeMap::new();
        let to_backend = |listener: &ListenerStatus, reason: &str| {
            listener.to_backend.dropped.get(reason).map_or(0, |dropped| dropped.datagrams)
        };
        let to_client = |listener: &ListenerStatus, reason: &str| {
            listener.to_client.dropped.get(reason).map_or(0, |dropped| dropped.datagrams)
        };
        let reasons = listener.to_backend.dropped.keys().chain(listener.to_client.dropped.keys());
        for reason in reasons {
            let both = [
                self.of_listener(listener, |listener| to_backend(listener, reason)),
                self.of_listener(listener, |listener| to_client(listener, reason)),
            ];
            drops.insert(reason.as_str(), sum(both));
        }
        let by_kernel = self.of_listener(listener, by_kernel);
        drops.insert("by the kernel", by_kernel);
        let mut drops: Vec<_> = drops.into_iter().filter(|(_, dropped)| *dropped > 0).collect();
        drops.sort_by_key(|&(reason, dropped)| (u64::MAX - dropped, reason));
        drops
    }

    /// What was dropped for other reasons than those for which clients are refused on purpose.
    pub(super) fn trouble(&self) -> u64 {
        let drops = self.now.listeners.iter().flat_map(|listener| self.drops_of(listener));
        sum(drops.filter(|(reason, _)| !is_on_purpose(reason)).map(|(_, dropped)| dropped))
    }

    /// By how much a figure of a backend grew. One that is new has grown from nothing.
    pub(super) fn of_backend(
        &self,
        cluster: &ClusterStatus,
        backend: &BackendStatus,
        figure: impl Fn(&BackendStatus) -> u64,
    ) -> u64 {
        let same = |before: &&ClusterStatus| before.name == cluster.name;
        let before = self.before.clusters.iter().find(same).and_then(|before| {
            before.backends.iter().find(|before| before.address == backend.address)
        });
        figure(backend).saturating_sub(before.map_or(0, figure))
    }

    /// This many events as a rate, for people.
    pub(super) fn rate(&self, events: u64) -> String {
        if self.elapsed.is_zero() { "-".to_owned() } else { human::rate(events, self.elapsed) }
    }

    /// This many events as a rate.
    pub(super) fn per_second(&self, events: u64) -> u64 {
        if self.elapsed.is_zero() {
            0
        } else {
            (events as f64 / self.elapsed.as_secs_f64()).round() as u64
        }
    }
}

/// A sum that stays at the largest number there is, since figures may be of anybody.
pub(super) fn sum(numbers: impl IntoIterator<Item = u64>) -> u64 {
    numbers.into_iter().fold(0, u64::saturating_add)
}

/// Whether clients are refused on purpose for this reason.
pub(super) fn is_on_purpose(reason: &str) -> bool {
    DropReason::ALL.iter().any(|known| known.as_str() == reason && known.is_on_purpose())
}

/// What the kernel dropped of a listener's datagrams, either way.
const fn by_kernel(listener: &ListenerStatus) -> u64 {
    listener.socket_drops.saturating_add(listener.upstream_socket_drops)
}
