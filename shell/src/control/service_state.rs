//! What the probes and the operator have said of one backend.

use flowgate_core::{BackendEvent, Instant};
use serde::{Deserialize, Serialize};

/// What was said of one backend. Nothing was: it is up and not draining.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceState {
    /// The probes find it out of order.
    pub is_down: bool,
    /// The operator wants it free of flows: at this time, or whenever they end.
    pub drain: Option<Option<Instant>>,
}

impl ServiceState {
    /// What to tell somebody who knows `known` so that they know this.
    pub fn events_since(self, known: Self) -> impl Iterator<Item = BackendEvent> {
        let health = if self.is_down { BackendEvent::Down } else { BackendEvent::Up };
        let drain = match self.drain {
            Some(deadline) => BackendEvent::Drain { deadline },
            None => BackendEvent::Undrain,
        };
        let health = (self.is_down != known.is_down).then_some(health);
        let drain = (self.drain != known.drain).then_some(drain);
        health.into_iter().chain(drain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_told() {
        let now = Instant::from_millis(5);
        let nothing = ServiceState::default();
        let both = ServiceState { is_down: true, drain: Some(Some(now)) };
        let event = |to: ServiceState, from| to.events_since(from).collect::<Vec<_>>();
        assert_eq!(event(nothing, nothing), []);
        assert_eq!(
            event(both, nothing),
            [BackendEvent::Down, BackendEvent::Drain { deadline: Some(now) }]
        );
        assert_eq!(event(nothing, both), [BackendEvent::Up, BackendEvent::Undrain]);
        assert_eq!(event(both, both), []);
    }
}
