use alloc::vec::Vec;

use proptest::collection::vec as vec_of;
use proptest::prelude::*;

use super::*;
use crate::balance::members;
use crate::balance::tests::{Cluster, address_of, of_weights};
use crate::config::{Affinity, BackendConfig, Balance, HealthPolicy};

fn cluster(weights: &[u32]) -> Cluster {
    Cluster::of_weights(Balance::Rendezvous, weights)
}

/// Where a number of clients land, by the addresses of the backends.
fn indices(configs: &[BackendConfig], clients: u32) -> Vec<core::net::SocketAddr> {
    let mut cluster = Cluster::new(Balance::Rendezvous, configs);
    (0..clients).map(|client| configs[cluster.pick(client).unwrap()].address).collect()
}

/// Frozen. When one of these fails the code is wrong, not the number: changing them moves every
/// client of every installation. Computed by an implementation in another language.
#[test]
fn placements_never_change() {
    let placements = |weights: &[u32]| -> Vec<usize> {
        let mut cluster = cluster(weights);
        (0..32).map(|client| cluster.pick(client).unwrap()).collect()
    };
    assert_eq!(
        placements(&[1; 10]),
        [
            0, 8, 9, 0, 8, 5, 6, 6, 4, 9, 6, 8, 9, 4, 6, 1, 3, 6, 9, 5, 4, 0, 8, 1, 2, 3, 8, 1, 9,
            4, 4, 7
        ]
    );
    assert_eq!(
        placements(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        [
            7, 8, 9, 9, 8, 5, 6, 6, 4, 9, 6, 8, 9, 4, 6, 8, 3, 6, 9, 5, 4, 9, 8, 8, 9, 3, 8, 1, 9,
            9, 4, 7
        ]
    );
}

#[test]
fn a_client_comes_back_with_its_backend() {
    let mut cluster = cluster(&[1, 2, 3, 4]);
    let before: Vec<_> = (0..1_000).map(|client| cluster.pick(client)).collect();
    cluster.set_able(2, false);
    (0..1_000).for_each(|client| assert_ne!(cluster.pick(client), Some(2)));
    cluster.set_able(2, true);
    let after: Vec<_> = (0..1_000).map(|client| cluster.pick(client)).collect();
    assert_eq!(after, before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_backend_that_goes_moves_its_own_clients_only(
        weights in vec_of(prop_oneof![Just(3), 1..10u32, Just(u32::MAX)], 2..30),
        gone: prop::sample::Index,
    ) {
        let gone = gone.index(weights.len());
        let all = of_weights(&weights);
        let mut remaining = all.clone();
        remaining.remove(gone);
        let before = indices(&all, 500);
        let after = indices(&remaining, 500);
        for (before, after) in before.into_iter().zip(after) {
            prop_assert!(before == after || before == all[gone].address);
        }
    }

    #[test]
    fn a_backend_that_cannot_is_as_good_as_gone(
        weights in vec_of(1..10u32, 2..30),
        gone: prop::sample::Index,
    ) {
        let gone = gone.index(weights.len());
        let all = of_weights(&weights);
        let mut remaining = all.clone();
        remaining.remove(gone);
        let mut cluster = cluster(&weights);
        cluster.set_able(gone, false);
        for (client, address) in (0..).zip(indices(&remaining, 500)) {
            prop_assert_eq!(all[cluster.pick(client).unwrap()].address, address);
        }
    }

    #[test]
    fn a_backend_that_gains_weight_only_gains_clients(
        weights in vec_of(1..10u32, 2..30),
        grown: prop::sample::Index,
        gain in 1..100u32,
    ) {
        let grown = grown.index(weights.len());
        let all = of_weights(&weights);
        let mut with_more = all.clone();
        with_more[grown].weight += gain;
        let before = indices(&all, 500);
        let after = indices(&with_more, 500);
        for (before, after) in before.into_iter().zip(after) {
            prop_assert!(before == after || after == all[grown].address);
        }
    }

    #[test]
    fn the_order_of_the_configuration_does_not_count(
        weights in vec_of(1..4u32, 2..30),
        turn: prop::sample::Index,
    ) {
        let configs = of_weights(&weights);
        let mut turned = configs.clone();
        turned.rotate_left(turn.index(weights.len()));
        prop_assert_eq!(indices(&configs, 500), indices(&turned, 500));
    }

    #[test]
    fn equal_weights_need_no_logarithm(weight in 1..=u32::MAX, count in 1..50usize) {
        let backends = Backends::new(&of_weights(&std::vec![weight; count]), HealthPolicy::default());
        let rendezvous = Rendezvous::new(&members(&backends, false, Affinity::SourceIp));
        for client in 0..200 {
            let client = ClientHash::new(address_of(client), Affinity::SourceIp);
            prop_assert_eq!(
                rendezvous.highest_draw(&backends, client),
                rendezvous.shortest_wait(&backends, client)
            );
        }
    }

    /// Neighbouring draws, where rounding would show first.
    #[test]
    fn a_higher_draw_beats_a_lower_one_at_equal_weight(draw in 0..u64::MAX, weight in 1..=u32::MAX) {
        let weight = f64::from(weight);
        for lower in [draw, draw >> 20, !(draw >> 20), u64::MAX - 1] {
            let (lower_bid, higher_bid) = (Bid::new(lower, weight), Bid::new(lower + 1, weight));
            prop_assert!(higher_bid.beats(&lower_bid) && !lower_bid.beats(&higher_bid));
            prop_assert!(!lower_bid.clearly_beats(lower + 1, weight));
            prop_assert!(lower_bid.wait > 0.0 && lower_bid.wait.is_finite());
        }
    }
}
