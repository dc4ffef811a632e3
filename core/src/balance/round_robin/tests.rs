use alloc::vec::Vec;

use proptest::collection::vec as vec_of;
use proptest::prelude::*;

use super::*;
use crate::balance::tests::Cluster;
use crate::config::Balance;

fn cluster(weights: &[u32]) -> Cluster {
    Cluster::of_weights(Balance::RoundRobin, weights)
}

fn picks(cluster: &mut Cluster, count: u32) -> Vec<usize> {
    (0..count).map(|client| cluster.pick(client).unwrap()).collect()
}

#[test]
fn equal_backends_take_turns_in_configured_order() {
    let mut cluster = cluster(&[7, 7, 7]);
    assert_eq!(picks(&mut cluster, 7), [0, 1, 2, 0, 1, 2, 0]);
}

#[test]
fn the_turns_of_a_heavy_backend_are_spread() {
    let mut cluster = cluster(&[5, 1, 1]);
    assert_eq!(picks(&mut cluster, 14), [0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 1, 0, 0, 2]);
}

#[test]
fn a_backend_that_was_away_has_nothing_to_make_up() {
    let mut cluster = cluster(&[1, 1, 2]);
    cluster.set_able(2, false);
    assert!(picks(&mut cluster, 1_001).iter().all(|&place| place != 2));
    cluster.set_able(2, true);
    let shares = picks(&mut cluster, 8).iter().fold([0; 3], |mut shares, &place| {
        shares[place] += 1;
        shares
    });
    assert_eq!(shares, [2, 2, 4]);
}

#[test]
fn the_rhythm_outlives_a_time_when_nobody_can() {
    let mut cluster = cluster(&[1, 1, 1]);
    assert_eq!(picks(&mut cluster, 1), [0]);
    (0..3).for_each(|place| cluster.set_able(place, false));
    assert_eq!((cluster.pick(0), cluster.pick(0)), (None, None));
    (0..3).for_each(|place| cluster.set_able(place, true));
    assert_eq!(picks(&mut cluster, 4), [1, 2, 0, 1]);
}

#[test]
fn turns_are_taken_in_order_past_any_number_of_unable_backends() {
    for unable in [STALE_TIMEOUT - 1, STALE_TIMEOUT, STALE_TIMEOUT + 1, 1_000] {
        let mut cluster = cluster(&std::vec![1; unable + 2]);
        (1..=unable).for_each(|place| cluster.set_able(place, false));
        let last = unable + 1;
        assert_eq!(picks(&mut cluster, 5), [0, last, 0, last, 0]);
        (1..=unable).for_each(|place| cluster.set_able(place, true));
        assert_eq!(picks(&mut cluster, 3), [1, 2, 3]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// With turns `1/w` apart and the first within `1/w` of the start, a backend that has had `n`
    /// turns says that the clock stands between `(n - 1)/w` and `(n + 1)/w`. All must agree.
    #[test]
    fn nobody_gets_ahead_or_falls_behind(weights in vec_of(1..50u32, 1..20)) {
        let mut cluster = cluster(&weights);
        let total: u32 = weights.iter().sum();
        let mut counts = std::vec![0_u32; weights.len()];
        for place in picks(&mut cluster, total * 2) {
            counts[place] += 1;
            let progress = counts.iter().zip(&weights).map(|(&count, &weight)| {
                let weight = f64::from(weight);
                ((f64::from(count) - 1.0) / weight, (f64::from(count) + 1.0) / weight)
            });
            let (latest, earliest) = progress.fold((f64::MIN, f64::MAX), |(from, to), (a, b)| {
                (from.max(a), to.min(b))
            });
            prop_assert!(latest <= earliest + 1e-9, "{:?} {:?}", weights, counts);
        }
        let after_two_rounds: Vec<u32> = weights.iter().map(|weight| weight * 2).collect();
        prop_assert_eq!(counts, after_two_rounds);
    }
}
