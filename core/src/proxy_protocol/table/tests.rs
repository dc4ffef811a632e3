use super::*;
use crate::flow::key::FlowKey;
use std::collections::BTreeMap;
use std::vec::Vec;

use proptest::prelude::*;

fn proxy(number: u16) -> FlowKey {
    FlowKey::new(SocketAddr::from(([10, 0, 0, 1], 1 + number)), None)
}

fn proxied(client: u16) -> ProxiedClient {
    let destination = SocketAddr::from(([192, 0, 2, 53], 53));
    ProxiedClient { client: SocketAddr::from(([198, 51, 100, 1], client)), destination }
}

fn at(millis: u64) -> Instant {
    Instant::from_millis(millis)
}

fn with_room_for(flows: usize) -> Proxies {
    let mut proxies = Proxies::new();
    proxies.reserve(flows, flows, &mut Random::new(1));
    proxies
}

#[test]
fn a_proxy_without_flows_is_forgotten_in_time() {
    let mut proxies = with_room_for(1);
    let number = proxies.note(&proxy(1), proxied(7), at(10)).unwrap();
    assert_eq!(proxies.recall(&proxy(1), at(9), at(20)), Some((number, proxied(7))));
    assert_eq!(proxies.recall(&proxy(1), at(19), at(20)), Some((number, proxied(7))), "put off");
    assert_eq!(proxies.recall(&proxy(1), at(20), at(30)), None);
    assert_eq!(proxies.recall(&proxy(2), at(0), at(30)), None, "never heard of");
}

#[test]
fn a_proxy_with_flows_is_not_forgotten() {
    let mut proxies = with_room_for(1);
    let number = proxies.note(&proxy(1), proxied(7), at(10)).unwrap();
    proxies.opened(number);
    assert_eq!(proxies.recall(&proxy(1), at(1_000), at(20)), Some((number, proxied(7))));
    proxies.closed(number, at(1_010));
    assert!(proxies.recall(&proxy(1), at(1_009), at(1_010)).is_some());
    assert_eq!(proxies.recall(&proxy(1), at(1_010), at(1_011)), None);
}

#[test]
fn the_proxy_that_was_quiet_longest_makes_room_and_one_with_flows_never() {
    let mut proxies = with_room_for(1);
    let first = proxies.note(&proxy(0), proxied(0), at(10)).unwrap();
    proxies.opened(first);
    for number in 1..3_000 {
        proxies.note(&proxy(number), proxied(number), at(10)).unwrap();
        proxies.assert_invariants([first].into_iter());
    }
    assert!(proxies.recall(&proxy(0), at(0), at(10)).is_some());
    assert!(proxies.recall(&proxy(2_999), at(0), at(10)).is_some());
    assert_eq!(proxies.recall(&proxy(1), at(0), at(10)), None);
}

#[test]
fn no_room_is_said_and_not_taken() {
    let mut proxies = Proxies::new();
    assert_eq!(proxies.note(&proxy(1), proxied(1), at(10)), None);
    assert_eq!(proxies.recall(&proxy(1), at(0), at(10)), None);
}

proptest! {
    #[test]
    fn it_agrees_with_a_map(
        steps in prop::collection::vec((0u16..6, 0u16..4, 0u8..4), 1..200),
    ) {
        let mut proxies = with_room_for(10);
        // Whom each proxy named last, its flows, and when it is forgotten.
        let mut map: BTreeMap<u16, (u16, Vec<u32>, u64)> = BTreeMap::new();
        for (now, (number, client, step)) in steps.into_iter().enumerate() {
            let (now, until) = (now as u64, now as u64 + 5);
            let known = map.get_mut(&number).filter(|(_, flows, end)| !flows.is_empty() || *end > now);
            match (step, known) {
                (0, None) => {
                    let found = proxies.recall(&proxy(number), at(now), at(until));
                    prop_assert_eq!(found, None);
                }
                (0, Some((last, _, end))) => {
                    let found = proxies.recall(&proxy(number), at(now), at(until));
                    prop_assert_eq!(found.map(|(_, proxied)| proxied), Some(proxied(*last)));
                    *end = until;
                }
                (1, _) => {
                    proxies.note(&proxy(number), proxied(client), at(until)).unwrap();
                    let entry = map.entry(number).or_default();
                    (entry.0, entry.2) = (client, until);
                }
                (2, Some((_, flows, _))) => {
                    let found = proxies.recall(&proxy(number), at(now), at(until));
                    let (at, _) = found.unwrap();
                    proxies.opened(at);
                    flows.push(at);
                }
                (3, Some((_, flows, end))) => {
                    if let Some(at_number) = flows.pop() {
                        proxies.closed(at_number, at(until));
                        *end = until;
                    }
                }
                _ => {}
            }
            proxies.assert_invariants(map.values().flat_map(|(_, flows, _)| flows.iter().copied()));
        }
    }
}
