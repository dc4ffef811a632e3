//! What every algorithm promises, and what the tests of each one share.

use alloc::vec::Vec;
use core::net::Ipv4Addr;
use std::vec;

use proptest::collection::vec as vec_of;
use proptest::prelude::*;

use super::*;
use crate::config::{BackendConfig, HealthPolicy};

pub(super) const ALL: [Balance; 6] = [
    Balance::RoundRobin,
    Balance::Random,
    Balance::LeastFlows,
    Balance::PowerOfTwo,
    Balance::Rendezvous,
    Balance::Maglev,
];

/// Backends and their balancer, with backends named by index and clients by number.
#[derive(Clone)]
pub(super) struct Cluster {
    pub(super) backends: Backends,
    balancer: Balancer,
    random: Random,
}

impl Cluster {
    pub(super) fn new(balance: Balance, configs: &[BackendConfig]) -> Self {
        let backends = Backends::new(configs, HealthPolicy::default());
        Self { balancer: Balancer::new(balance, &backends), backends, random: Random::new(1) }
    }

    pub(super) fn of_weights(balance: Balance, weights: &[u32]) -> Self {
        Self::new(balance, &of_weights(weights))
    }

    pub(super) fn pick(&mut self, client: u32) -> Option<usize> {
        let affinity = Affinity::SourceIp;
        self.balancer
            .pick(&self.backends, address_of(client), affinity, &mut self.random)
            .map(BackendId::index)
    }

    /// Picks, and counts the flow as one that stays.
    pub(super) fn open(&mut self, client: u32) -> Option<usize> {
        let index = self.pick(client)?;
        self.backend_mut(index).flows_active += 1;
        Some(index)
    }

    /// Makes a backend unable to take a flow, by filling it, or able again, by emptying it.
    pub(super) fn set_able(&mut self, index: usize, able: bool) {
        self.backend_mut(index).flows_active = if able { 0 } else { u32::MAX };
    }

    pub(super) fn backend_mut(&mut self, index: usize) -> &mut crate::backend::Backend {
        self.backends.get_mut(BackendId::new(index)).unwrap()
    }

    /// How many of a number of clients each backend gets.
    pub(super) fn counts(&self, clients: u32, flows_stay: bool) -> Vec<u32> {
        let mut cluster = self.clone();
        let mut counts = vec![0; cluster.backends.len()];
        for client in 0..clients {
            let index = if flows_stay { cluster.open(client) } else { cluster.pick(client) };
            counts[index.unwrap()] += 1;
        }
        counts
    }
}

/// One backend for each weight, at 10.0.0.0:53 and on, with a limit of flows for tests to reach.
pub(super) fn of_weights(weights: &[u32]) -> Vec<BackendConfig> {
    let config = |(index, &weight): (usize, &u32)| {
        let ip = Ipv4Addr::from_bits(0x0A00_0000 + index as u32);
        BackendConfig { weight, max_flows: u32::MAX, ..BackendConfig::new((ip, 53).into()) }
    };
    weights.iter().enumerate().map(config).collect()
}

/// The address of a client, from 100.64.0.0 on.
pub(super) fn address_of(client: u32) -> SocketAddr {
    (Ipv4Addr::from_bits(0x6440_0000 + client), 4711).into()
}

/// Whether counts are within 2 % of the weights, give or take five standard deviations of chance.
pub(super) fn shares_follow(weights: &[u32], counts: &[u32], chance: bool) -> bool {
    let total_weight: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
    let total: f64 = counts.iter().map(|&count| f64::from(count)).sum();
    weights.iter().zip(counts).all(|(&weight, &count)| {
        let fair = total * f64::from(weight) / total_weight;
        let noise = if chance { 5.0 * libm::sqrt(fair) } else { 0.0 };
        (f64::from(count) - fair).abs() <= 0.02 * fair + noise
    })
}

fn any_balance() -> impl Strategy<Value = Balance> {
    proptest::sample::select(&ALL[..])
}

fn any_backend() -> impl Strategy<Value = (u32, bool)> {
    (prop_oneof![Just(0), 1..20u32, Just(u32::MAX)], any::<bool>())
}

#[test]
fn shares_are_within_two_percent_of_the_weights() {
    let weights = [1, 2, 3, 4];
    for balance in ALL {
        for flows_stay in [false, true] {
            let counts = Cluster::of_weights(balance, &weights).counts(600_000, flows_stay);
            assert!(shares_follow(&weights, &counts, false), "{balance:?}: {counts:?}");
        }
    }
}

#[test]
fn a_weight_of_one_beside_the_greatest_gets_next_to_nothing() {
    for balance in ALL {
        let counts = Cluster::of_weights(balance, &[1, u32::MAX]).counts(10_000, false);
        assert!(counts[0] <= 1, "{balance:?}: {counts:?}");
    }
}

#[test]
fn a_weight_of_one_serves_all_while_the_greatest_cannot() {
    for balance in ALL {
        let mut cluster = Cluster::of_weights(balance, &[u32::MAX, 1]);
        cluster.set_able(0, false);
        let all_served = (0..1_000).all(|client| cluster.pick(client) == Some(1));
        assert!(all_served, "{balance:?}");
        cluster.set_able(0, true);
        let counts = cluster.counts(1_000, false);
        assert!(counts[1] <= 1, "{balance:?}: {counts:?}");
    }
}

#[test]
fn a_weightless_backend_gets_no_flow() {
    for balance in ALL {
        let mut cluster = Cluster::of_weights(balance, &[0, 1, 0]);
        assert_eq!(cluster.counts(1_000, true), [0, 1_000, 0], "{balance:?}");
        cluster.set_able(1, false);
        assert_eq!(cluster.pick(0), None, "{balance:?}");
    }
}

#[test]
fn a_backup_serves_only_while_no_primary_can() {
    for balance in ALL {
        let mut configs = of_weights(&[1, 1, 1]);
        configs[0].backup = true;
        let mut cluster = Cluster::new(balance, &configs);
        assert_eq!(cluster.counts(1_000, true)[0], 0, "{balance:?}");
        cluster.set_able(1, false);
        assert_eq!(cluster.counts(1_000, true), [0, 0, 1_000], "{balance:?}");
        cluster.set_able(2, false);
        assert_eq!(cluster.counts(1_000, true), [1_000, 0, 0], "{balance:?}");
        cluster.set_able(1, true);
        assert_eq!(cluster.counts(1_000, true), [0, 1_000, 0], "{balance:?}");
    }
}

#[test]
fn a_full_backend_gets_no_flow() {
    for balance in ALL {
        let mut configs = of_weights(&[5, 1]);
        configs[0].max_flows = 3;
        configs[1].max_flows = 4;
        let mut cluster = Cluster::new(balance, &configs);
        let opened = (0..100).filter_map(|client| cluster.open(client)).count();
        assert_eq!(opened, 7, "{balance:?}");
    }
}

#[test]
fn without_backends_there_is_nothing_to_pick() {
    for balance in ALL {
        assert_eq!(Cluster::of_weights(balance, &[]).pick(1), None);
        assert_eq!(Cluster::of_weights(balance, &[0]).pick(1), None);
    }
}

#[test]
fn ten_thousand_backends_of_all_weights_are_served() {
    let weights: Vec<u32> =
        (0..10_000).map(|index| [1, 7, 0, 1_000, u32::MAX][index % 5]).collect();
    for balance in ALL {
        let mut cluster = Cluster::of_weights(balance, &weights);
        let heaviest = (0..100).filter(|&client| cluster.open(client).unwrap() % 5 == 4);
        assert!(heaviest.count() >= 98, "{balance:?}");
        for index in 0..10_000 {
            cluster.set_able(index, index == 5);
        }
        assert_eq!(cluster.pick(1), Some(5), "{balance:?}");
        cluster.set_able(5, false);
        assert_eq!(cluster.pick(1), None, "{balance:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_the_weights_shares_follow_them(
        balance in any_balance(),
        weights in vec_of(1..=100u32, 1..12),
        flows_stay: bool,
    ) {
        let counts = Cluster::of_weights(balance, &weights).counts(20_000, flows_stay);
        prop_assert!(shares_follow(&weights, &counts, true), "{:?} {:?}", weights, counts);
    }

    /// The rule itself, written to be plainly right, against each algorithm while backends fill
    /// up and empty between the picks.
    #[test]
    fn only_a_backend_that_can_take_a_flow_is_picked(
        balance in any_balance(),
        backends in vec_of(any_backend(), 1..40),
        steps in vec_of((any::<prop::sample::Index>(), any::<bool>(), 0..1_000u32), 1..300),
    ) {
        let weights: Vec<u32> = backends.iter().map(|&(weight, _)| weight).collect();
        let mut configs = of_weights(&weights);
        for (config, &(_, backup)) in configs.iter_mut().zip(&backends) {
            config.backup = backup;
        }
        let mut cluster = Cluster::new(balance, &configs);
        for (changed, able, client) in steps {
            cluster.set_able(changed.index(backends.len()), able);
            let expected = able_tier(&cluster.backends);
            match cluster.pick(client) {
                Some(index) => prop_assert!(expected.contains(&index)),
                None => prop_assert_eq!(expected, []),
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_picks(
        balance in any_balance(),
        weights in vec_of(0..10u32, 1..20),
        clients in vec_of(0..1_000u32, 1..200),
    ) {
        let mut one = Cluster::of_weights(balance, &weights);
        let mut other = Cluster::of_weights(balance, &weights);
        for client in clients {
            prop_assert_eq!(one.open(client), other.open(client));
        }
    }
}

/// The indices of the primaries that can take a flow, or, where there are none, of such backups.
fn able_tier(backends: &Backends) -> Vec<usize> {
    let able = |backup| -> Vec<usize> {
        let in_tier = backends.iter().filter(|(_, backend)| backend.is_backup() == backup);
        let able = in_tier.filter(|(_, backend)| backend.can_take_a_flow());
        able.map(|(id, _)| id.index()).collect()
    };
    let primaries = able(false);
    if primaries.is_empty() { able(true) } else { primaries }
}
