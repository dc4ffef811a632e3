use super::*;
use crate::config::{BackendConfig, ClusterConfig};
use crate::flow::FlowLimits;
use crate::id::BackendId;
use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;

/// A table finds the place of a key by as many low bits of its hash as it has places.
const PLACES: usize = 1_024;

fn table(seed: u64) -> FlowTable {
    FlowTable::new(PLACES, &mut Random::new(seed))
}

fn place(key: &FlowKey, table: &FlowTable) -> usize {
    key.hash(table.flows.secret()) as usize % PLACES
}

/// Keys that all fall on one place in a table, as someone who knows its seed would choose them.
fn colliding_keys(table: &FlowTable, count: usize) -> Vec<FlowKey> {
    let key = |n: u32| FlowKey::new(SocketAddr::from((n.to_be_bytes(), 4_000)), None);
    (0..).map(key).filter(|key| place(key, table) == 0).take(count).collect()
}

fn limits() -> FlowLimits {
    FlowLimits::new(&ClusterConfig::new::<BackendConfig>([]))
}

#[test]
fn keys_that_collide_are_all_found_and_none_is_taken_for_another() {
    let mut table = table(1);
    let keys = colliding_keys(&table, 100);
    let (limits, now) = (limits(), Instant::ORIGIN);
    let build = |key| move |id| UdpFlow::new(key, id, BackendId::new(0), upstream(), &limits, now);
    let ids: Vec<_> = keys.iter().map(|key| table.insert(false, build(key))).collect();
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

const fn upstream() -> UpstreamId {
    UpstreamId::new(0, 0)
}

#[test]
fn only_a_flow_in_quarantine_stays_there_for_longer() {
    let mut table = table(1);
    let (limits, now) = (limits(), Instant::ORIGIN);
    let key = FlowKey::new(SocketAddr::from(([10, 0, 0, 1], 7)), None);
    let build = |id| UdpFlow::new(&key, id, BackendId::new(0), upstream(), &limits, now);
    let first = table.insert(false, build);
    let until = Instant::from_millis(5);
    table.prolong_quarantine(first.index(), until);
    assert!(!table.at(first.index()).1.has_ended(), "it is alive");
    table.quarantine(first, now);
    table.prolong_quarantine(first.index(), until);
    assert_eq!(table.at(first.index()).1.deadline(), until);
    table.prolong_quarantine(first.index(), now);
    assert_eq!(table.at(first.index()).1.deadline(), until, "never for less long");
}

#[test]
fn answers_find_their_flow_by_their_upstream_and_backend_until_it_is_taken_out() {
    let mut table = table(1);
    let (limits, now) = (limits(), Instant::ORIGIN);
    let places = [(0, 0), (0, 1), (1, 0)];
    let mut slots = vec![];
    for (number, &(socket, backend)) in places.iter().enumerate() {
        let key = FlowKey::new(SocketAddr::from(([10, 0, 0, 1], number as u16)), None);
        let (upstream, backend) = (UpstreamId::new(socket, 7), BackendId::new(backend));
        let build = |id| UdpFlow::new(&key, id, backend, upstream, &limits, now);
        let slot = table.insert(false, build).index();
        table.add_route(slot);
        slots.push((slot, upstream, backend));
    }
    table.assert_invariants();
    for &(slot, upstream, backend) in &slots {
        assert_eq!(table.find_route(upstream, backend, 0), Some(slot));
    }
    let (slot, upstream, backend) = slots[0];
    assert_eq!(table.find_route(UpstreamId::new(0, 8), backend, 0), None, "another socket");
    table.remove_route(slot);
    assert_eq!(table.find_route(upstream, backend, 0), None);
}
