//! Configurations to begin with. What they say is what a file says that names nothing but backends.

use core::net::SocketAddr;
use core::time::Duration;

use alloc::vec::Vec;

use super::{
    Accept, Affinity, BackendConfig, Balance, ClusterConfig, HealthPolicy, Limits, ManagerConfig,
    Mode, QuicLb, SendProxyProtocol, Source, UpstreamMode,
};

impl ManagerConfig {
    /// A listener at `address` before `backends`: 65,536 flows, datagrams of any length, all clients,
    /// and a cluster as [`ClusterConfig::new`] has it.
    ///
    /// Fields come to be over time. Name those that are to differ, and take the others from here:
    ///
    /// ```
    /// use flowgate_core::config::{ClusterConfig, ManagerConfig};
    /// # use std::net::SocketAddr;
    ///
    /// let backends = ["10.0.0.1:53", "10.0.0.2:53"].map(|text| text.parse::<SocketAddr>().unwrap());
    /// let config = ManagerConfig {
    ///     max_flows: 1_000,
    ///     cluster: ClusterConfig { responses: 1, ..ClusterConfig::new(backends) },
    ///     ..ManagerConfig::new("192.0.2.1:53".parse().unwrap(), backends)
    /// };
    /// # assert_eq!((config.max_flows, config.cluster.backends.len()), (1_000, 2));
    /// ```
    pub fn new<B: Into<BackendConfig>>(
        address: SocketAddr,
        backends: impl IntoIterator<Item = B>,
    ) -> Self {
        Self {
            address,
            max_flows: 1 << 16,
            max_slots: u32::MAX,
            shares_max_flows: false,
            max_datagram_size: 65_507,
            accept_proxy_protocol: Vec::new(),
            allow: Vec::new(),
            deny: Vec::new(),
            own_addresses: Vec::new(),
            record_flows: false,
            offload: false,
            accept: Accept::default(),
            cluster: ClusterConfig::new(backends),
        }
    }
}

impl ClusterConfig {
    /// Sessions of a minute, placed by their clients' addresses with [`Balance::Rendezvous`], without
    /// limits and without health checks.
    pub fn new<B: Into<BackendConfig>>(backends: impl IntoIterator<Item = B>) -> Self {
        Self {
            mode: Mode::SESSION,
            balance: Balance::Rendezvous,
            affinity: Affinity::SourceIp,
            idle_timeout: Duration::from_secs(60),
            responses: 0,
            requests: 0,
            send_proxy_protocol: SendProxyProtocol::Off,
            upstream: UpstreamMode::PerFlow,
            transactions: None,
            retry: None,
            upstream_quarantine: Duration::from_secs(1),
            source: Source::Any,
            health: HealthPolicy::default(),
            limits: Limits::default(),
            quic_lb: QuicLb::default(),
            backends: backends.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<SocketAddr> for BackendConfig {
    fn from(address: SocketAddr) -> Self {
        Self::new(address)
    }
}
