//! The backends as plain data.

use alloc::vec::Vec;

use super::{Backend, Backends};
use crate::config::ClusterConfig;
use crate::id::BackendId;
use crate::snapshot::ImageError;
use crate::snapshot::error::require;
use crate::snapshot::parts::{BackendImage, BackendsImage};
use crate::time::Instant;

impl Backends {
    /// All of them, of which the configuration lists so many.
    pub(crate) fn image(&self, listed: usize) -> BackendsImage {
        BackendsImage {
            figures: self.list.iter().map(Backend::image).collect(),
            beyond: self.list.iter().skip(listed).map(|backend| backend.config).collect(),
            latest_answer: self.latest_answer.map(|(id, at)| (id.index() as u32, at)),
            latest_other: self.latest_other,
        }
    }

    /// The backends, without flows.
    pub(crate) fn restored(
        image: &BackendsImage,
        cluster: &ClusterConfig,
    ) -> Result<Self, ImageError> {
        let configs: Vec<_> = cluster.backends.iter().chain(&image.beyond).copied().collect();
        require!(configs.len() == image.figures.len(), "a backend without figures");
        require!(image.beyond.iter().all(|backend| backend.removed), "a backend is not listed");
        let mut restored = Self::new(&configs, cluster.health);
        for (backend, image) in restored.list.iter_mut().zip(&image.figures) {
            let traffic = [image.to, image.dropped, image.from];
            require!(traffic.iter().all(|sum| sum.has_room()), "a backend's figures ran over");
            [backend.to, backend.dropped, backend.from] = traffic;
            backend.health = super::BackendHealth::restored(&image.health);
            backend.ejections = image.ejections;
        }
        restored.recompute(Instant::ORIGIN);
        for (backend, image) in restored.list.iter_mut().zip(&image.figures) {
            backend.state_since = image.state_since;
        }
        restored.latest_answer =
            image.latest_answer.map(|(place, at)| (BackendId::new(place as usize), at));
        restored.latest_other = image.latest_other;
        Ok(restored)
    }

    /// Counts a flow. There must be such a backend.
    pub(crate) fn restore_flow(&mut self, backend: BackendId) -> Result<(), ImageError> {
        match self.get_mut(backend) {
            Some(backend) => backend.flows_active += 1,
            None => return Err(ImageError::Broken("a flow without its backend")),
        }
        Ok(())
    }
}

impl Backend {
    fn image(&self) -> BackendImage {
        BackendImage {
            health: self.health.image(),
            state_since: self.state_since,
            ejections: self.ejections,
            to: self.to,
            dropped: self.dropped,
            from: self.from,
        }
    }
}
