//! How things stand, gathered from all workers when somebody asks.

use std::net::SocketAddr;

use flowgate_core::counters::{Counters, Traffic};

use crate::kernel::Kernel;
use crate::shard::Shard;

/// How things stand on one listener, all workers together.
#[derive(Clone, Debug)]
pub struct ListenerReport {
    /// Its name in the configuration.
    pub name: String,
    /// The address it is bound to.
    pub address: SocketAddr,
    /// The name of its cluster.
    pub cluster: String,
    /// The most flows it can have.
    pub flows_max: u64,
    /// The figures.
    pub figures: ShardReport,
}

/// The figures of one shard, or of several together.
#[derive(Clone, Debug, Default)]
pub struct ShardReport {
    /// Flows alive.
    pub flows_active: u64,
    /// What was counted since the start.
    pub counters: Counters,
    /// Each backend, in the order of the configuration.
    pub backends: Vec<BackendReport>,
}

/// The figures of one backend.
#[derive(Clone, Copy, Debug)]
pub struct BackendReport {
    /// Its address.
    pub address: SocketAddr,
    /// Its weight.
    pub weight: u32,
    /// Flows alive on it.
    pub flows_active: u64,
    /// What was sent to it.
    pub to: Traffic,
    /// What came from it.
    pub from: Traffic,
}

impl ShardReport {
    /// How things stand on one shard.
    pub fn of<K: Kernel>(shard: &Shard<K>) -> Self {
        let manager = shard.manager();
        let backends = manager.backends().iter().map(|(_, backend)| BackendReport {
            address: backend.address(),
            weight: backend.weight(),
            flows_active: u64::from(backend.flows_active),
            to: backend.to,
            from: backend.from,
        });
        Self {
            flows_active: manager.flow_count() as u64,
            counters: manager.counters().clone(),
            backends: backends.collect(),
        }
    }

    /// Adds the figures of another shard of the same listener.
    pub fn add(&mut self, other: &Self) {
        self.flows_active += other.flows_active;
        self.counters.merge(&other.counters);
        if self.backends.is_empty() {
            self.backends.clone_from(&other.backends);
            return;
        }
        for (sum, other) in self.backends.iter_mut().zip(&other.backends) {
            sum.flows_active += other.flows_active;
            sum.to = sum.to.plus(other.to);
            sum.from = sum.from.plus(other.from);
        }
    }
}
