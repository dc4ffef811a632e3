//! Ids that the balancer under test has not given out.

use std::sync::OnceLock;

use flowgate_core::backend::Backends;
use flowgate_core::config::{BackendConfig, HealthPolicy, Limits};
use flowgate_core::{BackendId, Burst, FlowId, ManagerInput, UdpManager, UpstreamId};

use super::choice::SeededChoices;
use super::setting::{PARTIES, Party, Setting};

/// How many backends can be named.
const BACKENDS: usize = 256;

/// The name of a backend, whether a manager knows it or not.
pub(super) fn backend_id(index: u8) -> BackendId {
    static IDS: OnceLock<Vec<BackendId>> = OnceLock::new();
    let ids = IDS.get_or_init(|| {
        let any = BackendConfig::new(([10, 0, 0, 1], 53).into());
        let backends = Backends::new(&[any; BACKENDS], HealthPolicy::default());
        backends.iter().map(|(id, _)| id).collect()
    });
    ids[usize::from(index)]
}

/// Ids that another manager has given out: of slots and generations of all kinds.
pub(super) fn forged_ids() -> &'static [FlowId] {
    static IDS: OnceLock<Vec<FlowId>> = OnceLock::new();
    IDS.get_or_init(|| {
        let mut setting = Setting::choose(&mut SeededChoices::new(0));
        setting.config.max_flows = 200;
        setting.config.allow = vec![];
        setting.config.deny = vec![];
        setting.config.own_addresses = vec![];
        setting.config.cluster.limits = Limits::default();
        setting.config.cluster.backends = vec![BackendConfig::new(([10, 0, 0, 1], 53).into())];
        setting.config.cluster.requests = 1;
        let mut forger = UdpManager::from(&setting);
        let mut outputs = vec![];
        for n in 0..PARTIES {
            let input = ManagerInput::ClientBurst {
                source: Party::new(n).source(),
                local: Party::new(n).local(),
                tos: 0,
                ttl: 64,
                burst: Burst::single(b"").expect("an empty datagram is a burst"),
            };
            forger.handle_input(input, setting.start, &mut outputs);
        }
        forger.flows().map(|(id, _)| id).collect()
    })
}

/// Sockets that another manager has opened, or nobody.
pub(super) const FORGED_UPSTREAMS: [UpstreamId; 4] = [
    UpstreamId::new(0, u16::MAX),
    UpstreamId::new(3, 40_000),
    UpstreamId::new(100_000, 0),
    UpstreamId::new(u32::MAX, 1),
];
