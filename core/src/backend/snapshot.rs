//! The backends as plain data.

use alloc::vec::Vec;

use super::{Backend, Backends};
use crate::config::ClusterConfig;
use crate::id::BackendId;
use crate::snapshot::ImageError;
use crate::snapshot::error::require;
use crate::snapshot::parts::{BackendImage, BackendsImage};

impl Backends {
    /// All of them, of which the configuration lists so many.
    pub(crate) fn image(&self, listed: usize) -> BackendsImage {
        BackendsImage {
            figures: self.list.iter().map(Backend::image).collect(),
            beyond: self.list.iter().skip(listed).map(|backend| backend.config).collect(),
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
            backend.health = super::BackendHealth::restored(image);
        }
        restored.recompute();
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
        BackendImage { to: self.to, dropped: self.dropped, from: self.from, ..self.health.image() }
    }
}
