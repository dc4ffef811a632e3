use crate::balance::tests::Cluster;
use crate::config::Balance;

fn cluster(weights: &[u32]) -> Cluster {
    Cluster::of_weights(Balance::PowerOfTwo, weights)
}

#[test]
fn of_two_backends_the_less_loaded_is_always_picked() {
    let mut cluster = cluster(&[1, 1_000]);
    cluster.backend_mut(1).flows_active = 1;
    assert!((0..1_000).all(|client| cluster.pick(client) == Some(0)));
    cluster.backend_mut(0).flows_active = 1;
    assert!((0..1_000).all(|client| cluster.pick(client) == Some(1)));
}

#[test]
fn the_most_loaded_backend_is_never_picked_while_two_can() {
    let mut cluster = cluster(&[1, 1, 1, 1]);
    cluster.backend_mut(2).flows_active = 1;
    assert!((0..1_000).all(|client| cluster.pick(client) != Some(2)));
    for index in [0, 1, 3] {
        cluster.set_able(index, false);
    }
    assert_eq!(cluster.pick(1), Some(2));
}

#[test]
fn a_hundred_backends_stay_within_a_few_flows_of_each_other() {
    let counts = cluster(&[1; 100]).counts(10_000, true);
    assert!(counts.iter().all(|count| (96..=104).contains(count)), "{counts:?}");
}
