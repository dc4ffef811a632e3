//! What the probes and the operator have said of each backend of each cluster.

use std::collections::HashMap;
use std::net::SocketAddr;

use flowgate_core::config::BackendConfig;
use flowgate_core::{BackendId, BackendNews};

use crate::control::service_state::Standing;
use crate::handover::snapshot::StandingImage;

/// All backends of which anything was said.
#[derive(Debug, Default)]
pub(super) struct Standings {
    by_cluster: HashMap<String, HashMap<SocketAddr, Standing>>,
}

impl Standings {
    fn get(&self, cluster: &str, backend: SocketAddr) -> Standing {
        let found = self.by_cluster.get(cluster).and_then(|cluster| cluster.get(&backend));
        found.copied().unwrap_or_default()
    }

    /// What has been said of the backends of a cluster that managers, which know what `told` says
    /// of each place, are to hear. They count as told from now on.
    pub(super) fn news(
        &self,
        cluster: &str,
        backends: &[BackendConfig],
        told: &mut [Standing],
    ) -> Vec<(BackendId, BackendNews)> {
        let mut all = Vec::new();
        for (place, (backend, told)) in backends.iter().zip(told).enumerate() {
            let now = self.get(cluster, backend.address);
            let news = now.news_since(std::mem::replace(told, now));
            all.extend(news.map(|news| (BackendId::new(place), news)));
        }
        all
    }

    pub(super) fn change(
        &mut self,
        cluster: &str,
        backend: SocketAddr,
        change: impl FnOnce(&mut Standing),
    ) {
        let cluster = self.by_cluster.entry(cluster.to_owned()).or_default();
        change(cluster.entry(backend).or_default());
    }

    /// All of it as plain data.
    pub(super) fn image(&self) -> Vec<StandingImage> {
        let of_cluster = |(cluster, backends): (&String, &HashMap<SocketAddr, Standing>)| {
            let cluster = cluster.clone();
            let all = backends.clone().into_iter();
            all.map(move |(backend, standing)| StandingImage {
                cluster: cluster.clone(),
                backend,
                standing,
            })
        };
        self.by_cluster.iter().flat_map(of_cluster).collect()
    }

    /// What plain data says.
    pub(super) fn restore(images: Vec<StandingImage>) -> Self {
        let mut standings = Self::default();
        for StandingImage { cluster, backend, standing } in images {
            standings.change(&cluster, backend, |there| *there = standing);
        }
        standings
    }

    /// Forgets the backends that are no more: if one comes back, nothing is held against it.
    pub(super) fn retain(&mut self, exists: impl Fn(&str, SocketAddr) -> bool) {
        for (name, cluster) in &mut self.by_cluster {
            cluster.retain(|&backend, _| exists(name, backend));
        }
        self.by_cluster.retain(|_, cluster| !cluster.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_that_is_gone_is_forgotten() {
        let backend = "10.0.0.1:53".parse().unwrap();
        let mut standings = Standings::default();
        standings.change("dns", backend, |standing| standing.is_down = true);
        assert!(standings.get("dns", backend).is_down);
        assert!(!standings.get("web", backend).is_down);
        standings.retain(|_, _| false);
        assert!(!standings.get("dns", backend).is_down);
    }
}
