use crate::balance::tests::{Cluster, shares_follow};
use crate::config::Balance;

fn cluster(weights: &[u32]) -> Cluster {
    Cluster::of_weights(Balance::LeastFlows, weights)
}

#[test]
fn the_one_with_the_fewest_flows_for_its_weight_is_picked() {
    let mut cluster = cluster(&[1, 2, 3]);
    for (index, flows) in [10, 19, 31].into_iter().enumerate() {
        cluster.backend_mut(index).flows_active = flows;
    }
    assert_eq!(cluster.pick(1), Some(1));
}

#[test]
fn loads_are_compared_exactly() {
    let mut cluster = cluster(&[u32::MAX, u32::MAX - 1]);
    cluster.backend_mut(0).flows_active = u32::MAX - 1;
    cluster.backend_mut(1).flows_active = u32::MAX - 3;
    let exactly_lighter = (0..100).all(|client| cluster.pick(client) == Some(1));
    assert!(exactly_lighter);
}

#[test]
fn flows_that_stay_are_level_at_every_moment() {
    let mut cluster = cluster(&[1, 1, 1, 1]);
    for client in 0..400 {
        cluster.open(client);
        let flows = || cluster.backends.iter().map(|(_, backend)| backend.flows_active);
        assert!(flows().max().unwrap() - flows().min().unwrap() <= 1);
    }
}

#[test]
fn idle_backends_share_by_weight_and_not_by_place() {
    let weights = [1, 4, 1];
    let counts = cluster(&weights).counts(60_000, false);
    assert!(shares_follow(&weights, &counts, true), "{counts:?}");
}
