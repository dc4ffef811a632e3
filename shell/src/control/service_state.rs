//! What the probes and the operator have said of one backend.

use std::net::SocketAddr;

use flowgate_core::snapshot::address;
use flowgate_core::{BackendEvent, Instant};
use serde::{Deserialize, Serialize};

/// What was said of one backend. Nothing was: nobody has looked, and it is not draining.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceState {
    /// What the probes say, if they have said anything: that it is in order.
    pub probe: Option<bool>,
    /// The operator wants it free of flows: at this time, or whenever they end.
    pub drain: Option<Option<Instant>>,
    /// How often the operator has taken that back, or has said it of one that was not draining: it
    /// clears what datagrams have said against a backend.
    pub undrained: u32,
    /// The weight that the operator has given it, which holds until the next reload.
    pub weight: Option<u32>,
}

impl ServiceState {
    /// What to tell someone who knows `known` so that they know this.
    pub fn events_since(self, known: Self) -> impl Iterator<Item = BackendEvent> {
        let health = match self.probe {
            Some(true) => BackendEvent::Up,
            Some(false) => BackendEvent::Down,
            None => BackendEvent::Unprobed,
        };
        let drain = match self.drain {
            Some(deadline) => BackendEvent::Drain { deadline },
            None => BackendEvent::Undrain,
        };
        let health = (self.probe != known.probe).then_some(health);
        let is_told = self.drain != known.drain || self.undrained != known.undrained;
        let drain = is_told.then_some(drain);
        health.into_iter().chain(drain)
    }
}

/// What was said of one backend of a cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceStateSnapshot {
    /// The cluster's name.
    pub cluster: String,
    /// The backend.
    #[serde(with = "address")]
    pub backend: SocketAddr,
    /// What was said.
    pub service_state: ServiceState,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_told() {
        let now = Instant::from_millis(5);
        let nothing = ServiceState::default();
        let both =
            ServiceState { probe: Some(false), drain: Some(Some(now)), ..ServiceState::default() };
        let event = |to: ServiceState, from| to.events_since(from).collect::<Vec<_>>();
        assert_eq!(event(nothing, nothing), []);
        assert_eq!(
            event(both, nothing),
            [BackendEvent::Down, BackendEvent::Drain { deadline: Some(now) }]
        );
        assert_eq!(event(nothing, both), [BackendEvent::Unprobed, BackendEvent::Undrain]);
        let up = ServiceState { probe: Some(true), ..ServiceState::default() };
        let undrained = ServiceState { undrained: 1, ..nothing };
        assert_eq!(event(undrained, nothing), [BackendEvent::Undrain]);
        assert_eq!(event(up, nothing), [BackendEvent::Up]);
        assert_eq!(event(both, both), []);
    }
}
