use super::*;
use crate::config::{
    Affinity, Balance, ClusterConfig, HealthPolicy, Limits, Mode, QuicLb, SendProxyProtocol,
};
use crate::flow::FlowLimits;
use crate::id::BackendId;
use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

/// A table finds the place of a key by as many low bits of its hash as it has places.
const PLACES: usize = 1_024;

fn table(seed: u64) -> FlowTable {
    FlowTable::new(PLACES, &mut Random::new(seed))
}

fn place(key: &FlowKey, table: &FlowTable) -> usize {
    key.hash(table.hash_keys) as usize % PLACES
}

/// Keys that all fall on one place in a table, as somebody who knows its seed would choose them.
fn colliding_keys(table: &FlowTable, count: usize) -> Vec<FlowKey> {
    let key = |n: u32| FlowKey::new(SocketAddr::from((n.to_be_bytes(), 4_000)), None);
    (0..).map(key).filter(|key| place(key, table) == 0).take(count).collect()
}

fn limits() -> FlowLimits {
    FlowLimits::new(&ClusterConfig {
        quic_lb: QuicLb::default(),
        mode: Mode::SESSION,
        balance: Balance::RoundRobin,
        affinity: Affinity::SourceIp,
        idle_timeout: Duration::from_secs(60),
        responses: 0,
        requests: 0,
        send_proxy_protocol: SendProxyProtocol::Off,
        upstream_reuse: None,
        upstream_quarantine: Duration::ZERO,
        source: crate::config::Source::Any,
        health: HealthPolicy::default(),
        limits: Limits::default(),
        backends: vec![],
    })
}

#[test]
fn keys_that_collide_are_all_found_and_none_is_taken_for_another() {
    let mut table = table(1);
    let keys = colliding_keys(&table, 100);
    let (limits, now) = (limits(), Instant::ORIGIN);
    let build =
        |key| move |generation| UdpFlow::new(key, generation, BackendId::new(0), &limits, now);
    let ids: Vec<_> = keys.iter().map(|key| table.insert(key, false, None, build(key))).collect();
    table.assert_invariants();
    for (removed, id) in ids.iter().enumerate() {
        table.remove(*id);
        assert!(keys[..=removed].iter().all(|key| table.find(key).is_none()));
        assert_eq!(table.find(&keys[keys.len() - 1]).is_some(), removed + 1 < keys.len());
    }
}

#[test]
fn keys_that_collide_in_one_table_spread_in_every_other() {
    /// Of 100 keys at random on 1,024 places, this many share one once in a million tables.
    const MOST_ON_ONE_PLACE: usize = 6;
    let keys = colliding_keys(&table(1), 100);
    for seed in 2..50 {
        let table = table(seed);
        let mut load = vec![0; PLACES];
        keys.iter().for_each(|key| load[place(key, &table)] += 1);
        assert!(load.iter().all(|&keys| keys <= MOST_ON_ONE_PLACE), "seed {seed}");
    }
}

#[test]
fn only_a_resting_flow_of_the_same_generation_rests_longer() {
    let mut table = table(1);
    let (limits, now) = (limits(), Instant::ORIGIN);
    let key = FlowKey::new(SocketAddr::from(([10, 0, 0, 1], 7)), None);
    let build = |generation| UdpFlow::new(&key, generation, BackendId::new(0), &limits, now);
    let first = table.insert(&key, false, None, build);
    let until = Instant::from_millis(5);
    assert!(!table.rest_longer(first, until), "it does not rest");
    table.rest(first, until);
    assert!(table.rest_longer(first, until));
    let second = table.insert(&key, false, Some(first), build);
    table.rest(second, until);
    assert!(!table.rest_longer(first, until), "another has its slot");
    assert!(table.rest_longer(second, until));
}
