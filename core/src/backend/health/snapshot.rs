//! What is held for and against a backend, as plain data.

use super::{BackendHealth, Drain};
use crate::snapshot::parts::{BackendDrainSnapshot, HealthSnapshot};

impl BackendHealth {
    pub(in crate::backend) const fn snapshot(&self) -> HealthSnapshot {
        HealthSnapshot {
            probe: self.probe,
            drain: match self.drain {
                Drain::No => BackendDrainSnapshot::No,
                Drain::Until(deadline) => BackendDrainSnapshot::Until(deadline),
                Drain::Over => BackendDrainSnapshot::Over,
            },
            last_answer: self.last_answer,
            passive: self.passive,
        }
    }

    pub(in crate::backend) fn restored(snapshot: &HealthSnapshot) -> Self {
        let mut passive = snapshot.passive;
        passive.is_ejected &= passive.ejection.is_some();
        passive.level = passive.level.min(super::MAX_LEVEL);
        Self {
            probe: snapshot.probe,
            drain: match snapshot.drain {
                BackendDrainSnapshot::No => Drain::No,
                BackendDrainSnapshot::Until(deadline) => Drain::Until(deadline),
                BackendDrainSnapshot::Over => Drain::Over,
            },
            last_answer: snapshot.last_answer,
            passive,
        }
    }
}
