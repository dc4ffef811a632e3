use crate::balance::tests::{Cluster, shares_follow};
use crate::config::Balance;

fn cluster(weights: &[u32]) -> Cluster {
    Cluster::of_weights(Balance::Random, weights)
}

#[test]
fn the_able_share_by_weight_where_hardly_any_are() {
    let mut cluster = cluster(&[1, 1_000_000, 2, 3]);
    cluster.set_able(1, false);
    let counts = cluster.counts(60_000, false);
    assert!(shares_follow(&[1, 0, 2, 3], &counts, true), "{counts:?}");
}

#[test]
fn a_pick_does_not_depend_on_the_picks_before() {
    let mut cluster = cluster(&[1, 1]);
    let mut followed_by = [[0_u32; 2]; 2];
    let mut last = cluster.pick(0).unwrap();
    for client in 0..40_000 {
        let next = cluster.pick(client).unwrap();
        followed_by[last][next] += 1;
        last = next;
    }
    assert!(shares_follow(&[1, 1, 1, 1], followed_by.as_flattened(), true));
}
