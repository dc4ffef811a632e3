//! Standings as plain data.

use super::{BackendHealth, Drain, PassiveHealth};
use crate::counters::Traffic;
use crate::snapshot::parts::{BackendDrainImage, BackendImage};

impl BackendHealth {
    /// How a backend stands that has no figures.
    pub(in crate::backend) fn image(&self) -> BackendImage {
        let PassiveHealth { errors, silent_flows, ejections, ejected_until } = self.signs;
        BackendImage {
            fails_probes: self.fails_probes,
            drain: match self.drain {
                Drain::No => BackendDrainImage::No,
                Drain::Until(deadline) => BackendDrainImage::Until(deadline),
                Drain::Over => BackendDrainImage::Over,
            },
            errors,
            silent_flows,
            ejections,
            ejected_until,
            to: Traffic::default(),
            dropped: Traffic::default(),
            from: Traffic::default(),
        }
    }

    pub(in crate::backend) const fn restored(image: &BackendImage) -> Self {
        let &BackendImage { errors, silent_flows, ejections, ejected_until, .. } = image;
        Self {
            fails_probes: image.fails_probes,
            drain: match image.drain {
                BackendDrainImage::No => Drain::No,
                BackendDrainImage::Until(deadline) => Drain::Until(deadline),
                BackendDrainImage::Over => Drain::Over,
            },
            signs: PassiveHealth { errors, silent_flows, ejections, ejected_until },
        }
    }
}
