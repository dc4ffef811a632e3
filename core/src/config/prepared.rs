//! A configuration that is ready to be worked by.

use crate::backend::Backends;
use crate::balance::Balancer;
use crate::config::{Affinity, BackendConfig, ClusterConfig, ManagerConfig};

/// What a manager is told to do from now on, with what takes time to make made beforehand.
#[derive(Clone, Debug)]
pub struct PreparedConfig {
    config: ManagerConfig,
    balancer: Balancer,
}

impl PreparedConfig {
    /// Prepares a configuration, which takes as long as [`Balancer::new`] says.
    pub fn new(config: ManagerConfig) -> Self {
        let backends = Backends::new(&config.cluster.backends, config.cluster.health);
        Self {
            balancer: Balancer::by_affinity(
                config.cluster.balance,
                config.cluster.affinity,
                &backends,
            ),
            config,
        }
    }

    /// Prepares a configuration that may have much in common with this one. Takes hardly any time
    /// where the backends and their weights are the same.
    pub fn updated(&self, config: ManagerConfig) -> Self {
        if self.has_the_turns_of(&config.cluster) {
            Self { config, balancer: self.balancer.clone() }
        } else {
            Self::new(config)
        }
    }

    /// What the manager is told to do.
    pub const fn config(&self) -> &ManagerConfig {
        &self.config
    }

    pub(crate) const fn balancer(&self) -> &Balancer {
        &self.balancer
    }

    /// Whether a balancer that was made for `cluster` serves this one too.
    pub(crate) fn has_the_turns_of(&self, cluster: &ClusterConfig) -> bool {
        let turn = |b: &BackendConfig| (b.address, b.weight, b.backup, b.answers, b.removed);
        let ours = &self.config.cluster;
        let is_by_host = |affinity| affinity == Affinity::Host;
        ours.balance == cluster.balance
            && is_by_host(ours.affinity) == is_by_host(cluster.affinity)
            && ours.backends.iter().map(turn).eq(cluster.backends.iter().map(turn))
    }
}
