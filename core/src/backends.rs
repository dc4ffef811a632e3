//! The backends of a cluster, as the balancer sees them: what they may take and what they have.

use alloc::vec::Vec;
use core::cmp::Ordering;
use core::net::SocketAddr;

use crate::config::BackendConfig;
use crate::counters::Traffic;
use crate::id::BackendId;

/// One backend and its live figures.
#[derive(Clone, Debug)]
pub struct Backend {
    config: BackendConfig,
    /// Live flows on it.
    pub flows_active: u32,
    /// What was sent to it.
    pub to: Traffic,
    /// What came from it and was passed on to clients.
    pub from: Traffic,
}

impl Backend {
    /// Where its datagrams go.
    pub const fn address(&self) -> SocketAddr {
        self.config.address
    }

    /// Its share of new flows, relative to the others.
    pub const fn weight(&self) -> u32 {
        self.config.weight
    }

    /// Whether it serves only while no other can.
    pub const fn is_backup(&self) -> bool {
        self.config.backup
    }

    /// Whether it may be given one more flow now.
    pub const fn can_take_a_flow(&self) -> bool {
        let below_limit = self.config.max_flows == 0 || self.flows_active < self.config.max_flows;
        self.config.weight > 0 && below_limit
    }

    /// Which of the two has more flows for its weight. Exact: nothing is rounded.
    pub(crate) fn cmp_load(&self, other: &Self) -> Ordering {
        let cross = |a: &Self, b: &Self| u64::from(a.flows_active) * u64::from(b.weight());
        cross(self, other).cmp(&cross(other, self))
    }
}

/// All backends of a cluster, in configured order.
#[derive(Clone, Debug, Default)]
pub struct Backends {
    list: Vec<Backend>,
    /// All addresses, sorted.
    addresses: Vec<SocketAddr>,
}

impl Backends {
    /// Backends without flows, one for each entry, in the same order.
    pub fn new(configs: &[BackendConfig]) -> Self {
        let fresh = |&config: &BackendConfig| Backend {
            config,
            flows_active: 0,
            to: Traffic::default(),
            from: Traffic::default(),
        };
        let mut addresses: Vec<_> = configs.iter().map(|config| config.address).collect();
        addresses.sort_unstable();
        Self { list: configs.iter().map(fresh).collect(), addresses }
    }

    /// How many there are, able to serve or not.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The backend called `id`, if there is one.
    pub fn get(&self, id: BackendId) -> Option<&Backend> {
        self.list.get(id.index())
    }

    pub(crate) fn get_mut(&mut self, id: BackendId) -> Option<&mut Backend> {
        self.list.get_mut(id.index())
    }

    /// All of them with their ids, in configured order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (BackendId, &Backend)> {
        self.list.iter().enumerate().map(|(index, backend)| (BackendId::new(index), backend))
    }

    /// Whether one of them has this address.
    pub(crate) fn has_address(&self, address: SocketAddr) -> bool {
        self.addresses.binary_search(&address).is_ok()
    }

    /// Whether the backend called `id` exists and may be given one more flow now.
    pub(crate) fn can_take_a_flow(&self, id: BackendId) -> bool {
        self.get(id).is_some_and(Backend::can_take_a_flow)
    }
}
