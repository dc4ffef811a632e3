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
    assert!(picks(&mut cluster, 1_001).iter().all(|&index| index != 2));
    cluster.set_able(2, true);
    let shares = picks(&mut cluster, 8).iter().fold([0; 3], |mut shares, &index| {
        shares[index] += 1;
        shares
    });
    assert_eq!(shares, [2, 2, 4]);
}

#[test]
fn the_rhythm_outlives_a_time_when_nobody_can() {
    let mut cluster = cluster(&[1, 1, 1]);
    assert_eq!(picks(&mut cluster, 1), [0]);
    (0..3).for_each(|index| cluster.set_able(index, false));
    assert_eq!((cluster.pick(0), cluster.pick(0)), (None, None));
    (0..3).for_each(|index| cluster.set_able(index, true));
    assert_eq!(picks(&mut cluster, 4), [1, 2, 0, 1]);
}

#[test]
fn turns_are_taken_in_order_past_any_number_of_unable_backends() {
    for unable in [STALE_TIMEOUT - 1, STALE_TIMEOUT, STALE_TIMEOUT + 1, 1_000] {
        let mut cluster = cluster(&std::vec![1; unable + 2]);
        (1..=unable).for_each(|index| cluster.set_able(index, false));
        let last = unable + 1;
        assert_eq!(picks(&mut cluster, 5), [0, last, 0, last, 0]);
        (1..=unable).for_each(|index| cluster.set_able(index, true));
        assert_eq!(picks(&mut cluster, 3), [1, 2, 3]);
    }
}

/// Picks by turns alone, where every backend can.
fn turns(turns: &mut RoundRobin, backends: &Backends, count: usize) -> Vec<usize> {
    (0..count).map(|_| turns.pick(backends).unwrap().index()).collect()
}

fn members_of(backends: &Backends) -> Vec<Member> {
    super::super::members(backends, false, crate::config::Affinity::SourceIp)
}

fn backends(weights: &[u32]) -> Backends {
    let config = |(index, &weight): (usize, &u32)| crate::config::BackendConfig {
        weight,
        ..crate::config::BackendConfig::new(([10, 0, 0, index as u8], 53).into())
    };
    let configs: Vec<_> = weights.iter().enumerate().map(config).collect();
    Backends::new(&configs, crate::config::HealthPolicy::default())
}

#[test]
fn after_a_change_the_turns_go_on_and_a_newcomer_has_its_own_after_the_others() {
    let before = backends(&[1, 1, 1]);
    let mut former = RoundRobin::new(&members_of(&before));
    assert_eq!(turns(&mut former, &before, 4), [0, 1, 2, 0]);
    let after = backends(&[1, 1, 1, 1]);
    let mut next = RoundRobin::new(&members_of(&after));
    next.go_on_from(&former, &[]);
    assert_eq!(turns(&mut next, &after, 5), [1, 2, 0, 3, 1]);
    // Another backend in the place of the second one is a newcomer too.
    let mut next = RoundRobin::new(&members_of(&before));
    next.go_on_from(&former, &[BackendId::new(1)]);
    assert_eq!(turns(&mut next, &before, 4), [2, 0, 1, 2]);
}

#[test]
fn a_weight_that_changes_keeps_the_order_and_changes_the_shares() {
    let before = backends(&[1, 1]);
    let mut former = RoundRobin::new(&members_of(&before));
    assert_eq!(turns(&mut former, &before, 1), [0]);
    let after = backends(&[1, 3]);
    let mut next = RoundRobin::new(&members_of(&after));
    next.go_on_from(&former, &[]);
    let picks = turns(&mut next, &after, 40);
    assert_eq!(picks[0], 1);
    assert_eq!(picks.iter().filter(|index| **index == 1).count(), 30);
}

#[test]
fn balancers_side_by_side_begin_with_different_backends() {
    let all = backends(&[1, 1, 1]);
    let first = |number| {
        let mut next = RoundRobin::new(&members_of(&all));
        next.skip(number, &all);
        turns(&mut next, &all, 1)[0]
    };
    assert_eq!([0, 1, 2, 3].map(first), [0, 1, 2, 0]);
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
        for index in picks(&mut cluster, total * 2) {
            counts[index] += 1;
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
