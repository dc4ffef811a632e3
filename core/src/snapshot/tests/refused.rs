//! Snapshots that contradict themselves.

use super::parts::*;
use super::*;
use crate::Instant;
use crate::backend::Drain;
use crate::counters::Traffic;
use crate::flow::Stage;

type Change = fn(&mut ManagerSnapshot);

fn snapshot() -> ManagerSnapshot {
    manager_with_everything().snapshot()
}

/// What is wrong with a snapshot after a change.
fn refused(change: impl FnOnce(&mut ManagerSnapshot)) -> RestoreError {
    let mut snapshot = snapshot();
    change(&mut snapshot);
    match UdpManager::restore(snapshot, None) {
        Ok(_) => panic!("restored from a snapshot that is not that of a manager"),
        Err(error) => error,
    }
}

fn assert_refused<const N: usize>(changes: [(&'static str, Change); N]) {
    for (broken, change) in changes {
        std::println!("{broken}?");
        assert_eq!(refused(change), RestoreError::Broken(broken));
    }
}

const OVER: Traffic = Traffic { datagrams: 1, bytes: 1 << 63 };

fn any_of_stage(snapshot: &mut ManagerSnapshot, stage: Stage) -> &mut FlowSnapshot {
    snapshot.flows.alive.iter_mut().find(|flow| flow.stage == stage).expect("such a flow")
}

#[test]
fn there_is_something_of_everything() {
    let snapshot = snapshot();
    let flows = &snapshot.flows;
    for stage in [Stage::Active, Stage::Follower, Stage::Retired] {
        assert!(flows.alive.iter().any(|flow| flow.stage == stage), "{stage:?}");
    }
    let flags: [fn(&FlowSnapshot) -> bool; 7] = [
        |flow| flow.confirmed,
        |flow| flow.heard,
        |flow| flow.mirrored,
        |flow| flow.is_winner,
        |flow| flow.is_prompt,
        |flow| flow.first_answer.is_some(),
        |flow| flow.next_branch.is_some(),
    ];
    for (number, flag) in flags.iter().enumerate() {
        let (with, without) = flows.alive.iter().partition::<Vec<_>, _>(|flow| flag(flow));
        assert!(!with.is_empty() && !without.is_empty(), "flag {number}");
    }
    let paths: [fn(&PathSnapshot) -> bool; 4] = [
        |path| matches!(path, PathSnapshot::Direct { .. }),
        |path| matches!(path, PathSnapshot::ToLocal { scope: 0, .. }),
        |path| matches!(path, PathSnapshot::ToLocal { scope: 1.., .. }),
        |path| matches!(path, PathSnapshot::Proxied { .. }),
    ];
    assert!(paths.iter().all(|is_way| flows.alive.iter().any(|flow| is_way(&flow.key.path))));
    let (free, late) = (&flows.vacant, &flows.unanswered);
    assert!(free.len() > 1 && late.len() > 1 && flows.unconfirmed.len() > 1);
    assert!(!free.is_sorted() && !free.is_sorted_by(|a, b| a > b), "an order of its own: {free:?}");
    assert!(!flows.quarantined.is_empty() && snapshot.timers.slots.len() > 1);
    assert!(snapshot.timers.slots.iter().any(|slot| slot.timers.len() > 1));
    assert!(snapshot.sweep.is_some() && snapshot.drain.is_some());
    let proxies = &snapshot.proxies;
    assert!(!proxies.idle.is_empty() && proxies.known.len() > proxies.idle.len());
    let SourcesSnapshot { source_keys, subnet_keys, rates } = &snapshot.sources;
    assert!(source_keys.is_some() && subnet_keys.is_some());
    assert!(rates.iter().all(|rate| rate.as_ref().is_some_and(|rate| !rate.filled.is_empty())));
    assert!(!snapshot.backends.beyond.is_empty() && !snapshot.turns[1].is_empty());
    let drains = snapshot.backends.figures.iter().filter(|b| b.health.drain != Drain::No);
    assert_eq!(drains.count(), 1);
    assert!(snapshot.backends.figures.iter().any(|b| b.ejections != [0, 0]));
}

#[test]
fn flows_that_contradict_each_other_are_refused() {
    assert_refused([
        ("a slot of the flow table is named twice, or never", |snapshot| {
            snapshot.flows.alive[1].slot = snapshot.flows.alive[0].slot;
        }),
        ("a slot of the flow table is named twice, or never", |snapshot| {
            snapshot.flows.vacant.pop();
        }),
        ("a slot of the flow table is named twice, or never", |snapshot| {
            snapshot.flows.quarantined[0].slot = u32::MAX;
        }),
        ("a flow is confirmed before it is answered", |snapshot| {
            let confirmed = snapshot.flows.alive.iter_mut().find(|flow| flow.confirmed);
            confirmed.expect("such a flow").first_answer = None;
        }),
        ("a flow that has ended is alive", |snapshot| {
            snapshot.flows.alive[0].stage = Stage::Quarantined;
        }),
        ("a flow's figures ran over", |snapshot| snapshot.flows.alive[3].to_backend = OVER),
        ("a flow's figures ran over", |snapshot| snapshot.flows.alive[3].to_client = OVER),
        ("a client has two flows", |snapshot| {
            let key = any_of_stage(snapshot, Stage::Active).key;
            snapshot.flows.alive.last_mut().expect("a flow").key = key;
        }),
        ("a ring that leads nowhere", |snapshot| {
            let vacant = snapshot.flows.vacant[0];
            any_of_stage(snapshot, Stage::Follower).next_branch = Some(vacant);
        }),
        ("a ring of two clients", |snapshot| {
            let other = snapshot.flows.alive.iter().find(|flow| flow.next_branch.is_none());
            let other = other.expect("such a flow").slot;
            any_of_stage(snapshot, Stage::Follower).next_branch = Some(other);
        }),
        ("a ring that does not close", |snapshot| {
            any_of_stage(snapshot, Stage::Follower).next_branch = None;
        }),
        ("a flow without its backend", |snapshot| snapshot.flows.alive[0].backend = 6),
        ("a quarantine for nobody", |snapshot| snapshot.flows.quarantined[0].backend = 6),
        ("a flow on a socket that is not open", |snapshot| {
            let upstream = snapshot.flows.alive[0].upstream;
            snapshot.flows.alive[0].upstream =
                crate::UpstreamId::new(upstream.index() as u32, upstream.generation() ^ 1);
        }),
        ("a socket of another flow", |snapshot| {
            snapshot.flows.alive[0].upstream = snapshot.flows.alive[1].upstream;
        }),
        ("a slot of upstreams is named twice, or never", |snapshot| {
            snapshot.upstreams.vacant.pop();
        }),
    ]);
}

#[test]
fn queues_and_timers_that_do_not_fit_the_flows_are_refused() {
    assert_refused([
        ("a flow in the wrong queue, or twice", |snapshot| {
            let first = snapshot.flows.unanswered[0];
            snapshot.flows.unanswered.push(first);
        }),
        ("a flow in the wrong queue, or twice", |snapshot| {
            let FlowsSnapshot { unanswered, unconfirmed, .. } = &mut snapshot.flows;
            core::mem::swap(unanswered, unconfirmed);
        }),
        ("a flow is in no queue", |snapshot| {
            snapshot.flows.unconfirmed.pop();
        }),
        ("the timers are beyond the end of time", |snapshot| snapshot.timers.elapsed = 1 << 45),
        ("a timer beyond the wheel", |snapshot| snapshot.timers.slots[0].level = 8),
        ("a timer beyond the wheel", |snapshot| snapshot.timers.slots[0].slot = 64),
        ("a slot of timers is named in vain", |snapshot| {
            let first = snapshot.timers.slots[0].clone();
            snapshot.timers.slots.push(first);
        }),
        ("a timer that is scheduled twice", |snapshot| {
            let timers = &mut snapshot.timers.slots[0].timers;
            timers.push(timers[0]);
        }),
        ("a timer of no flow", |snapshot| {
            snapshot.timers.slots[0].timers[0] = u32::MAX;
        }),
        ("a flow without a timer, or a late one", |snapshot| {
            snapshot.timers.slots.pop();
        }),
        ("a flow without a timer, or a late one", |snapshot| snapshot.timers.slots[0].level = 7),
        ("a timer of no flow", |snapshot| {
            let vacant = snapshot.flows.vacant[0];
            snapshot.timers.slots[0].timers.push(vacant);
        }),
        ("a search beyond all flows", |snapshot| {
            snapshot.sweep.as_mut().expect("a sweep").next_slot = 1_000;
        }),
        ("a search beyond all flows", |snapshot| {
            snapshot.sweep.as_mut().expect("a sweep").left = 1_000;
        }),
    ]);
}

#[test]
fn backends_and_turns_that_do_not_fit_the_configuration_are_refused() {
    assert_refused([
        ("a backend without figures", |snapshot| {
            snapshot.backends.figures.pop();
        }),
        ("a backend is not listed", |snapshot| snapshot.backends.beyond[0].removed = false),
        ("a backend's figures ran over", |snapshot| snapshot.backends.figures[0].to = OVER),
        ("a backend's figures ran over", |snapshot| snapshot.backends.figures[0].dropped = OVER),
        ("a backend's figures ran over", |snapshot| snapshot.backends.figures[0].from = OVER),
        ("turns of no backends, or backends without turns", |snapshot| {
            snapshot.turns[0].pop();
        }),
        ("turns of no backends, or backends without turns", |snapshot| {
            snapshot.turns[1].push((1, 1))
        }),
        ("turns of no backends, or backends without turns", |snapshot| {
            snapshot.turns[0][0] = (1 << 63, 0);
        }),
        ("turns of no backends, or backends without turns", |snapshot| {
            snapshot.config.cluster.balance = Balance::LeastFlows;
        }),
    ]);
}

#[test]
fn sources_and_proxies_that_do_not_fit_are_refused() {
    assert_refused([
        ("sources are counted for no limit, or not for one", |snapshot| {
            snapshot.sources.subnet_keys = None;
        }),
        ("sources are counted for no limit, or not for one", |snapshot| {
            snapshot.config.cluster.limits.flows_per_source = 0;
        }),
        ("a rate is measured for no limit, or not for one", |snapshot| {
            snapshot.sources.rates[2] = None
        }),
        ("an impossible number of buckets", |snapshot| {
            snapshot.sources.rates[0].as_mut().expect("a rate").buckets = 10;
        }),
        ("an impossible number of buckets", |snapshot| {
            snapshot.sources.rates[0].as_mut().expect("a rate").buckets = 26;
        }),
        ("a bucket beyond the last", |snapshot| {
            snapshot.sources.rates[0].as_mut().expect("a rate").filled[0] =
                (2_048, 0, Instant::ORIGIN);
        }),
        ("an impossible number of proxies", |snapshot| snapshot.proxies.capacity = 3),
        ("an impossible number of proxies", |snapshot| snapshot.proxies.capacity = u32::MAX),
        ("the number of a proxy is named twice, or never", |snapshot| {
            snapshot.proxies.known[1].number = 0;
        }),
        ("a proxy behind a proxy", |snapshot| {
            snapshot.proxies.known[0].key.path = PathSnapshot::Proxied { proxy: 1 };
        }),
        ("a proxy has two numbers", |snapshot| {
            snapshot.proxies.known[1].key = snapshot.proxies.known[0].key;
        }),
        ("a flow without its proxy", |snapshot| {
            let proxied =
                |flow: &&mut FlowSnapshot| matches!(flow.key.path, PathSnapshot::Proxied { .. });
            let flow = snapshot.flows.alive.iter_mut().find(proxied).expect("such a flow");
            flow.key.path = PathSnapshot::Proxied { proxy: 9 };
        }),
        ("a proxy without flows that has some, or is there twice", |snapshot| {
            let first = snapshot.proxies.idle[0];
            snapshot.proxies.idle.push(first);
        }),
        ("a proxy without flows that has some, or is there twice", |snapshot| {
            snapshot.proxies.idle = (0..snapshot.proxies.known.len() as u32).collect();
        }),
        ("a proxy without flows is forgotten", |snapshot| {
            snapshot.proxies.idle.pop();
        }),
    ]);
}

#[test]
fn counts_that_are_off_are_refused() {
    assert_refused([
        ("a flow was lost count of", |snapshot| snapshot.counters.flows_opened += 1),
        ("datagrams were lost count of", |snapshot| {
            snapshot.counters.to_client.forwarded.bytes += 1
        }),
        ("datagrams were lost count of", |snapshot| {
            snapshot.counters.to_backend.forwarded.datagrams = u64::MAX;
        }),
        ("a counter ran over", |snapshot| snapshot.counters.to_backend.received = OVER),
        ("a counter ran over", |snapshot| snapshot.counters.flows_moved = u64::MAX),
        ("a counter ran over", |snapshot| snapshot.counters.upstream_errors = u64::MAX),
        ("a reason is named twice", |snapshot| {
            let dropped = &mut snapshot.counters.to_backend.dropped;
            dropped.push(dropped[0].clone());
        }),
    ]);
    let unknown = refused(|snapshot| {
        snapshot.counters.to_backend.dropped.push(("bad_weather".into(), Traffic::default()));
    });
    assert_eq!(unknown, RestoreError::UnknownReason("bad_weather".to_string()));
    let says = "the snapshot counts what this version does not know: \"bad_weather\"";
    assert_eq!(unknown.to_string(), says);
}

#[test]
fn a_flow_table_that_no_configuration_may_ask_for_is_refused() {
    let (max_flows, most) = (MAX_FLOWS + 1, MAX_FLOWS);
    let refused = refused(|snapshot| snapshot.config.max_flows = max_flows);
    assert_eq!(refused, RestoreError::TooManyFlows { max_flows, most });
}

#[test]
fn a_configuration_that_is_prepared_serves_where_it_has_the_same_turns() {
    let change = |balance| {
        let mut snapshot = snapshot();
        snapshot.config.cluster.balance = balance;
        snapshot.turns = Default::default();
        snapshot.drain = None;
        snapshot
    };
    let maglev = change(Balance::Maglev);
    let prepared = crate::PreparedConfig::new(maglev.config.clone());
    let others = crate::PreparedConfig::new(snapshot().config);
    let [shared, built] = [&prepared, &others].map(|prepared| {
        let mut manager = UdpManager::restore(maglev.clone(), Some(prepared)).expect("a manager");
        for port in 100..110 {
            let source = everything::client(port);
            everything::ask(&mut manager, source, None, b"x", everything::after(50));
        }
        manager.snapshot()
    });
    assert_eq!(shared, built);
    // Turns are those of the snapshot, not those of what was prepared.
    let mut turns = UdpManager::restore(snapshot(), Some(&others)).expect("a manager");
    assert_eq!(turns.snapshot(), snapshot());
}
