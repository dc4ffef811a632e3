//! The mirrors of listeners' clusters: what their managers are told, and what they count.

use std::sync::Arc;

use flowgate_config::Cluster;
use flowgate_core::config::BackendConfig;
use flowgate_core::{BackendEvent, BackendId, PreparedConfig};

use super::service_states::ServiceStates;
use super::{Server, backend_index, command_shards};
use crate::control::service_state::ServiceState;
use crate::datapath::worker::Command;
use crate::sys::process;

/// The mirror of a listener's cluster, and what the workers know of it.
pub(super) struct Mirror {
    pub(super) cluster: Arc<Cluster>,
    configuration: PreparedConfig,
    published: Vec<ServiceState>,
}

impl Server {
    /// Tells the workers what mirrors a listener, unless they know.
    pub(super) fn set_mirror(&mut self, number: usize) {
        let former = self.listeners[number].mirror.take();
        let name = self.listeners[number].settings.cluster.mirror.clone();
        let cluster = name.and_then(|name| self.clusters.iter().find(|c| c.name == name).cloned());
        let Some(cluster) = cluster else {
            if former.is_some() {
                let shards = &self.listeners[number].shards;
                let end = |_, shard| Command::SetMirror { shard, mirror: None };
                command_shards(&self.workers, shards, end);
            }
            return;
        };
        let same = former.filter(|former| former.cluster.name == cluster.name);
        let mirror = self.prepare_mirror(number, cluster, same.as_ref());
        let is_new = same.is_none_or(|s| s.configuration.config() != mirror.configuration.config());
        if is_new {
            let configuration = || Box::new(mirror.configuration.clone());
            command_shards(&self.workers, &self.listeners[number].shards, |_, shard| {
                Command::SetMirror { shard, mirror: Some((configuration(), seed(shard))) }
            });
        }
        self.listeners[number].mirror = Some(mirror);
    }

    fn prepare_mirror(
        &self,
        number: usize,
        cluster: Arc<Cluster>,
        former: Option<&Mirror>,
    ) -> Mirror {
        let present: &[BackendConfig] =
            former.map_or(&[], |former| &former.configuration.config().cluster.backends);
        let wanted = self.backends_of(&cluster);
        // No flow refers to an index.
        let backends = backend_index::assign(present, &wanted, |_| true);
        let mut published = former.map(|former| former.published.clone()).unwrap_or_default();
        super::apply::forget_news_of_strangers(&mut published, present, &backends);
        published.resize(backends.len(), ServiceState::default());

        let listener = &self.listeners[number];
        let own_addresses = self.own_addresses();
        let config =
            listener.settings.mirror_config(&cluster, listener.address, own_addresses, backends);
        let configuration = match former {
            Some(former) => former.configuration.updated(config),
            None => PreparedConfig::new(config),
        };
        Mirror { cluster, configuration, published }
    }
}

impl Mirror {
    /// A mirror whose managers know this of each backend.
    pub(super) const fn restore(
        cluster: Arc<Cluster>,
        configuration: PreparedConfig,
        published: Vec<ServiceState>,
    ) -> Self {
        Self { cluster, configuration, published }
    }

    /// The name of its cluster, and what has been published to its managers.
    pub(super) fn published(&self) -> (String, Vec<ServiceState>) {
        (self.cluster.name.clone(), self.published.clone())
    }

    /// What its managers are to hear of its backends. It counts as published from now on.
    pub(super) fn event(
        &mut self,
        service_states: &ServiceStates,
    ) -> Vec<(BackendId, BackendEvent)> {
        let backends = &self.configuration.config().cluster.backends;
        service_states.event(&self.cluster.name, backends, &mut self.published)
    }
}

/// Where the system has no randomness to give, the mirror's may be guessed: nobody can do harm with
/// it, since it has no table of flows.
fn seed(shard: u32) -> u64 {
    process::random_seed().unwrap_or(shard.into())
}
