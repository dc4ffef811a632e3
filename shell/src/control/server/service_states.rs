//! What the probes and the operator have said of each backend of each cluster.

use std::collections::HashMap;
use std::net::SocketAddr;

use flowgate_core::config::BackendConfig;
use flowgate_core::{BackendEvent, BackendId};

use crate::control::service_state::{ServiceState, ServiceStateSnapshot};

/// All backends of which anything was said.
#[derive(Debug, Default)]
pub(super) struct ServiceStates {
    by_cluster: HashMap<String, HashMap<SocketAddr, ServiceState>>,
}

impl ServiceStates {
    pub(super) fn get(&self, cluster: &str, backend: SocketAddr) -> ServiceState {
        self.of(cluster)(backend)
    }

    /// What was said of each backend of a cluster.
    pub(super) fn of(&self, cluster: &str) -> impl Fn(SocketAddr) -> ServiceState {
        let its = self.by_cluster.get(cluster);
        move |backend| its.and_then(|its| its.get(&backend)).copied().unwrap_or_default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_cluster.is_empty()
    }

    /// What has been said of the backends of a cluster that managers, which know what `published` says
    /// of each index, are to hear. It counts as published from now on.
    pub(super) fn event(
        &self,
        cluster: &str,
        backends: &[BackendConfig],
        published: &mut [ServiceState],
    ) -> Vec<(BackendId, BackendEvent)> {
        let (mut all, of_cluster) = (Vec::new(), self.of(cluster));
        for (index, (backend, published)) in backends.iter().zip(published).enumerate() {
            let now = of_cluster(backend.address);
            let event = now.events_since(std::mem::replace(published, now));
            all.extend(event.map(|event| (BackendId::new(index), event)));
        }
        all
    }

    pub(super) fn change(
        &mut self,
        cluster: &str,
        backend: SocketAddr,
        change: impl FnOnce(&mut ServiceState),
    ) {
        let cluster = self.by_cluster.entry(cluster.to_owned()).or_default();
        change(cluster.entry(backend).or_default());
    }

    /// All of it as plain data.
    pub(super) fn snapshot(&self) -> Vec<ServiceStateSnapshot> {
        let of_cluster = |(cluster, backends): (&String, &HashMap<SocketAddr, ServiceState>)| {
            let cluster = cluster.clone();
            let all = backends.clone().into_iter();
            all.map(move |(backend, service_state)| ServiceStateSnapshot {
                cluster: cluster.clone(),
                backend,
                service_state,
            })
        };
        self.by_cluster.iter().flat_map(of_cluster).collect()
    }

    /// What plain data says.
    pub(super) fn restore(snapshots: Vec<ServiceStateSnapshot>) -> Self {
        let mut service_states = Self::default();
        for ServiceStateSnapshot { cluster, backend, service_state } in snapshots {
            service_states.change(&cluster, backend, |there| *there = service_state);
        }
        service_states
    }

    /// Every backend has the weight that is configured.
    pub(super) fn forget_weights(&mut self) {
        self.by_cluster.values_mut().flat_map(HashMap::values_mut).for_each(|s| s.weight = None);
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
        let mut service_states = ServiceStates::default();
        service_states.change("dns", backend, |service_state| service_state.probe = Some(false));
        assert!(service_states.get("dns", backend).probe == Some(false));
        assert_ne!(service_states.get("web", backend).probe, Some(false));
        service_states.retain(|_, _| false);
        assert_ne!(service_states.get("dns", backend).probe, Some(false));
    }
}
