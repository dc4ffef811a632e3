//! What is held for and against a backend, as plain data.

use super::{BackendHealth, Drain};
use crate::snapshot::parts::{BackendDrainImage, HealthImage};

impl BackendHealth {
    pub(in crate::backend) const fn image(&self) -> HealthImage {
        HealthImage {
            probe: self.probe,
            drain: match self.drain {
                Drain::No => BackendDrainImage::No,
                Drain::Until(deadline) => BackendDrainImage::Until(deadline),
                Drain::Over => BackendDrainImage::Over,
            },
            last_answer: self.last_answer,
            passive: self.passive,
        }
    }

    pub(in crate::backend) fn restored(image: &HealthImage) -> Self {
        let mut passive = image.passive;
        passive.is_ejected &= passive.ejection.is_some();
        passive.level = passive.level.min(super::MAX_LEVEL);
        Self {
            probe: image.probe,
            drain: match image.drain {
                BackendDrainImage::No => Drain::No,
                BackendDrainImage::Until(deadline) => Drain::Until(deadline),
                BackendDrainImage::Over => Drain::Over,
            },
            last_answer: image.last_answer,
            passive,
        }
    }
}
