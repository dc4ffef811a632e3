use alloc::vec::Vec;

use proptest::collection::vec as vec_of;
use proptest::prelude::*;

use super::*;
use crate::balance::members;
use crate::balance::tests::{Cluster, of_weights, shares_follow};
use crate::config::{Affinity, BackendConfig, Balance, HealthPolicy};

fn cluster(weights: &[u32]) -> Cluster {
    Cluster::of_weights(Balance::Maglev, weights)
}

fn maglev(configs: &[BackendConfig]) -> Maglev {
    Maglev::new(&members(
        &Backends::new(configs, HealthPolicy::default()),
        false,
        Affinity::SourceIp,
    ))
}

impl Maglev {
    /// The place in the configuration of the backend that has each entry.
    fn owners(&self) -> impl Iterator<Item = usize> {
        (0..self.table.len()).map(|entry| self.ids[self.table.get(entry).unwrap()].index())
    }

    fn entries_of_each(&self) -> Vec<u32> {
        let mut entries = std::vec![0; self.ids.len()];
        self.owners().for_each(|owner| entries[owner] += 1);
        entries
    }
}

/// The part of all entries that change hands, besides its own, when a backend goes.
fn disturbance(weights: &[u32], gone: usize) -> f64 {
    let all = of_weights(weights);
    let mut remaining = all.clone();
    remaining.remove(gone);
    let before = maglev(&all);
    let after = maglev(&remaining);
    let disturbed = before.owners().zip(after.owners()).filter(|&(before, after)| {
        before != gone && all[before].address != remaining[after].address
    });
    disturbed.count() as f64 / before.table.len() as f64
}

/// Frozen. When one of these fails the code is wrong, not the number: changing them moves every
/// client of every installation. Computed by an implementation in another language.
#[test]
fn placements_never_change() {
    let placements = |weights: &[u32], unable: &[usize]| -> Vec<usize> {
        let mut cluster = cluster(weights);
        unable.iter().for_each(|&index| cluster.set_able(index, false));
        (0..32).map(|client| cluster.pick(client).unwrap()).collect()
    };
    assert_eq!(
        placements(&[1; 10], &[]),
        [
            1, 5, 3, 3, 5, 8, 5, 9, 2, 9, 0, 0, 0, 0, 5, 9, 8, 4, 0, 9, 1, 5, 7, 4, 9, 6, 8, 3, 0,
            0, 8, 5
        ]
    );
    assert_eq!(
        placements(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], &[]),
        [
            9, 5, 8, 8, 5, 8, 5, 9, 2, 9, 7, 8, 4, 3, 9, 9, 8, 4, 6, 9, 1, 5, 7, 4, 9, 6, 8, 3, 4,
            6, 8, 5
        ]
    );
    assert_eq!(
        placements(&[1; 10], &[0, 1, 2, 3, 4]),
        [
            9, 5, 7, 6, 5, 8, 5, 9, 7, 9, 7, 5, 9, 7, 5, 9, 8, 6, 5, 9, 5, 5, 7, 5, 9, 6, 8, 8, 9,
            5, 8, 5
        ]
    );
}

/// The same table, made as it is described: at each turn the member that has it takes what it likes
/// best of what is free.
fn described(members: &[Member]) -> Vec<usize> {
    let size = table_size(members.len());
    let mut owners = std::vec![usize::MAX; size];
    let first = |(index, member): (usize, &Member)| Reverse(Turn::first(index, member.weight));
    let mut queue: BinaryHeap<_> = members.iter().enumerate().map(first).collect();
    let mut preferences: Vec<_> = members.iter().map(|m| Preference::new(m.hash, size)).collect();
    for _ in 0..size {
        let mut soonest = queue.peek_mut().unwrap();
        let preference = &mut preferences[soonest.0.member()];
        let entry = loop {
            let entry = preference.next as usize;
            preference.next = ((entry + preference.step as usize) % size) as u32;
            if owners[entry] == usize::MAX {
                break entry;
            }
        };
        owners[entry] = soonest.0.member();
        soonest.0 = soonest.0.next();
    }
    owners
}

#[test]
fn a_step_is_undone() {
    for prime in [2, 3, 1_048_573, 16_777_213] {
        for step in [1, 2, 3, 65_537, prime - 1].into_iter().filter(|&step| step < prime) {
            assert_eq!(u64::from(step) * inverse(step, prime) % u64::from(prime), 1, "{step}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn a_table_is_as_described(
        weights in vec_of(prop_oneof![1_u32..4, Just(1_000), Just(u32::MAX), any::<u32>()], 2..40)
    ) {
        let configs = of_weights(&weights);
        let backends = Backends::new(&configs, HealthPolicy::default());
        let mut members = members(&backends, false, Affinity::SourceIp);
        members.sort_by_key(|member| member.hash);
        let table = build_table(&members);
        let owners: Vec<_> = (0..table.len()).map(|entry| table.get(entry).unwrap()).collect();
        prop_assert!(owners == described(&members));
    }
}

#[test]
fn the_size_is_prime_and_the_same_from_2_to_10_000_backends() {
    for members in [2, 10_000, 10_001, 1_000_000] {
        let size = table_size(members);
        let mut divisors = (2..).take_while(|divisor| divisor * divisor <= size);
        assert!(!divisors.any(|divisor| size.is_multiple_of(divisor)), "{size}");
    }
    assert_eq!(table_size(2), table_size(10_000));
}

#[test]
fn a_table_holds_the_shares_but_for_an_entry_of_each_member() {
    let weights = [1, 2, 3, 50, 10_000];
    let entries = maglev(&of_weights(&weights)).entries_of_each();
    for (&weight, &entries) in weights.iter().zip(&entries) {
        let fair = f64::from(weight) * 1_048_573.0 / 10_056.0;
        assert!((f64::from(entries) - fair).abs() <= 5.0, "{weight}: {entries}");
    }
}

#[test]
fn ten_thousand_backends_have_equal_shares() {
    let entries = maglev(&of_weights(&[1; 10_000])).entries_of_each();
    assert!(shares_follow(&[1; 10_000], &entries, false));
}

#[test]
fn of_a_thousand_backends_the_heaviest_goes_without_disturbing_more_than_one_percent() {
    let mut weights = [1; 1_000];
    weights[500] = 1_000;
    let disturbance = disturbance(&weights, 500);
    assert!(disturbance <= 0.01, "{disturbance}");
}

/// In theory one that takes the place of another of `n` moves two shares of `1 / n`: what the former
/// had, and what is its own.
#[test]
fn of_two_to_ten_thousand_one_is_replaced_within_one_percent_of_the_theory() {
    for count in [2, 10, 100, 1_000, 10_000] {
        let before = of_weights(&vec![1; count]);
        let mut after = before.clone();
        after[count / 2].address = ([192, 0, 2, 1], 53).into();
        let tables = [maglev(&before), maglev(&after)];
        let [one, other] = [(&tables[0], &before), (&tables[1], &after)]
            .map(|(table, configs)| table.owners().map(|owner| configs[owner].address));
        let moved = one.zip(other).filter(|(before, after)| before != after).count();
        let share = moved as f64 / tables[0].table.len() as f64;
        // Who had a place of the former may have one of the new: the least is one share.
        let [least, most] = [1.0, 2.0].map(|shares| shares / count as f64);
        assert!((least - 0.01..=most + 0.01).contains(&share), "{count}: {share}");
    }
}

#[test]
fn the_displaced_spread_by_weight_and_nobody_else_moves() {
    let weights = [1, 2, 3, 4];
    let mut cluster = cluster(&weights);
    let before: Vec<_> = (0..60_000).map(|client| cluster.pick(client).unwrap()).collect();
    cluster.set_able(3, false);
    let mut displaced = [0; 4];
    for (client, before) in (0..).zip(before) {
        let after = cluster.pick(client).unwrap();
        if before == 3 {
            displaced[after] += 1;
        } else {
            assert_eq!(after, before);
        }
    }
    assert!(shares_follow(&[1, 2, 3, 0], &displaced, true), "{displaced:?}");
}

#[test]
fn clients_stay_put_when_hardly_any_backend_can_serve() {
    let mut cluster = cluster(&[1; 200]);
    (0..197).for_each(|index| cluster.set_able(index, false));
    let before: Vec<_> = (0..10_000).map(|client| cluster.pick(client).unwrap()).collect();
    cluster.set_able(198, false);
    let mut displaced = [0; 2];
    for (client, before) in (0..).zip(before) {
        let after = cluster.pick(client).unwrap();
        match before {
            198 => displaced[usize::from(after == 199)] += 1,
            _ => assert_eq!(after, before),
        }
    }
    assert!(shares_follow(&[1, 1], &displaced, true), "{displaced:?}");
}

#[test]
fn more_members_than_a_narrow_entry_counts_get_wide_entries() {
    let index = (1 << 16) + 7;
    assert!(matches!(Table::new(1, 1 << 16), Table::Narrow(_)));
    let mut table = Table::new(3, index + 1);
    table.set(2, index);
    assert_eq!((table.get(1), table.get(2), table.get(3)), (Some(0), Some(index), None));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn a_backend_that_goes_disturbs_at_most_one_percent_of_the_others(
        weights in vec_of(prop_oneof![4 => 1..=10u32, 1 => Just(100)], 2..100),
        gone: prop::sample::Index,
    ) {
        let disturbance = disturbance(&weights, gone.index(weights.len()));
        prop_assert!(disturbance <= 0.01, "{}", disturbance);
    }

    #[test]
    fn the_order_of_the_configuration_does_not_count(
        weights in vec_of(1..4u32, 2..30),
        turn: prop::sample::Index,
    ) {
        let configs = of_weights(&weights);
        let mut turned = configs.clone();
        turned.rotate_left(turn.index(weights.len()));
        let addresses = |configs: &[BackendConfig]| -> Vec<_> {
            maglev(configs).owners().map(|owner| configs[owner].address).collect()
        };
        prop_assert!(addresses(&configs) == addresses(&turned));
    }
}

#[test]
fn no_backends_need_no_table() {
    assert_eq!(table_size(0), 0);
}
