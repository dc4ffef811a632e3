//! A change of the configuration.

use flowgate_core::config::{ClusterConfig, ManagerConfig};
use flowgate_core::{CloseReason, Instant};

use super::admission::Rates;
use super::balance::Load;
use super::effect::Effect;
use super::health::Health;
use super::room::STALE_TIMEOUT;
use super::{Model, timeout_of};

impl Model {
    /// What is to be done when the configuration becomes `new`.
    ///
    /// A backend that has another address than the one before in its place is another backend: the
    /// flows of the former one end, and its sockets close. The order is that of `observed`.
    pub(super) fn configure<'p>(
        &mut self,
        new: &ManagerConfig,
        now: Instant,
        observed: &[Effect<'_>],
    ) -> Vec<Effect<'p>> {
        let is_other = |index: usize| {
            let backend = new.cluster.backends.get(index);
            backend.is_some_and(|new| new.address != self.loads[index].config.address)
        };
        let replaced: Vec<usize> = (0..self.loads.len()).filter(|&index| is_other(index)).collect();
        let mut effects = self.end_all_of(&replaced, observed, now);
        // What is open is bound to the former source.
        if new.cluster.upstream != self.config.cluster.upstream
            || new.cluster.source != self.config.cluster.source
        {
            effects.extend(self.retire_sockets(observed));
        }

        if turns(&new.cluster) == turns(&self.config.cluster) {
            self.balance.affinity = new.cluster.affinity;
        } else {
            self.balance = self.balance.followed_by(&new.cluster, &self.loads);
        }
        if new.cluster.limits != self.config.cluster.limits
            || new.max_flows != self.config.max_flows
        {
            self.rates = Rates::default();
        }
        self.take_over_backends(&new.cluster);
        let is_kept_on =
            new.cluster.backends.len() > 1 || (self.asks() && new.cluster.retry.is_some());
        if new.cluster.retry != self.config.cluster.retry || !is_kept_on {
            self.flows.iter_mut().for_each(|flow| flow.kept = None);
            self.quarantined.iter_mut().for_each(|left| left.asker = None);
        }
        if new.cluster.idle_timeout != self.config.cluster.idle_timeout {
            self.silences_known_from = now + STALE_TIMEOUT;
        }
        self.config = new.clone();
        self.largest_table = self.largest_table.max(new.max_flows as usize);
        for flow in &mut self.flows {
            let timeout = timeout_of(&new.cluster, flow.answered);
            flow.deadline = flow.deadline.min(now + timeout);
        }
        effects
    }

    fn end_all_of<'p>(
        &mut self,
        replaced: &[usize],
        observed: &[Effect<'_>],
        now: Instant,
    ) -> Vec<Effect<'p>> {
        let mut effects = vec![];
        let is_affected = |index: usize| replaced.contains(&index);
        for id in self.in_order_of(observed) {
            if let Some(index) = self.index_of(id)
                && is_affected(self.flows[index].backend)
            {
                effects.extend(self.close(index, CloseReason::BackendRemoved, now));
            }
        }
        effects
    }

    fn take_over_backends(&mut self, cluster: &ClusterConfig) {
        for (index, &new) in cluster.backends.iter().enumerate() {
            match self.loads.get_mut(index) {
                Some(load) if load.config.address == new.address => {
                    if load.config.removed && !new.removed {
                        load.health = Health::default();
                    } else if !new.removed {
                        load.health.is_named();
                    }
                    load.config = new;
                }
                Some(load) => *load = Load::none(new),
                None => self.loads.push(Load::none(new)),
            }
        }
        for load in self.loads.iter_mut().skip(cluster.backends.len()) {
            load.config.removed = true;
        }
    }
}

/// What the order of turns depends on.
fn turns(cluster: &ClusterConfig) -> impl PartialEq + use<> {
    let backends = cluster.backends.iter().map(|b| (b.address, b.weight, b.backup, b.removed));
    (cluster.balance, backends.collect::<Vec<_>>())
}
