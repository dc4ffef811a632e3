//! Images that contradict themselves.

use super::parts::*;
use super::*;
use crate::Instant;
use crate::counters::Traffic;

type Change = fn(&mut ManagerImage);

fn image() -> ManagerImage {
    manager_with_everything().image()
}

/// What is wrong with an image after a change.
fn refused(change: impl FnOnce(&mut ManagerImage)) -> ImageError {
    let mut image = image();
    change(&mut image);
    match UdpManager::restore(image, None) {
        Ok(_) => panic!("restored from an image that is not that of a manager"),
        Err(error) => error,
    }
}

fn assert_refused<const N: usize>(changes: [(&'static str, Change); N]) {
    for (broken, change) in changes {
        std::println!("{broken}?");
        assert_eq!(refused(change), ImageError::Broken(broken));
    }
}

const OVER: Traffic = Traffic { datagrams: 1, bytes: 1 << 63 };

fn any_of_stage(image: &mut ManagerImage, stage: StageImage) -> &mut FlowImage {
    image.flows.alive.iter_mut().find(|flow| flow.stage == stage).expect("such a flow")
}

#[test]
fn there_is_something_of_everything() {
    let image = image();
    let flows = &image.flows;
    for stage in [StageImage::Active, StageImage::Follower, StageImage::Retired] {
        assert!(flows.alive.iter().any(|flow| flow.stage == stage), "{stage:?}");
    }
    let flags: [fn(&FlowImage) -> bool; 7] = [
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
    let ways: [fn(&WayImage) -> bool; 4] = [
        |way| matches!(way, WayImage::Direct { .. }),
        |way| matches!(way, WayImage::ToLocal { scope: 0, .. }),
        |way| matches!(way, WayImage::ToLocal { scope: 1.., .. }),
        |way| matches!(way, WayImage::Relayed { .. }),
    ];
    assert!(ways.iter().all(|is_way| flows.alive.iter().any(|flow| is_way(&flow.key.way))));
    let (free, late) = (&flows.vacant, &flows.unanswered);
    assert!(free.len() > 1 && late.len() > 1 && flows.unconfirmed.len() > 1);
    assert!(!free.is_sorted() && !free.is_sorted_by(|a, b| a > b), "an order of its own: {free:?}");
    assert!(!flows.resting.is_empty() && image.timers.places.len() > 1);
    assert!(image.timers.places.iter().any(|place| place.timers.len() > 1));
    assert!(image.sweep.is_some() && image.drain.is_some());
    let proxies = &image.proxies;
    assert!(!proxies.idle.is_empty() && proxies.known.len() > proxies.idle.len());
    let SourcesImage { source_keys, subnet_keys, rate } = &image.sources;
    assert!(source_keys.is_some() && subnet_keys.is_some());
    assert!(rate.as_ref().is_some_and(|rate| !rate.filled.is_empty()));
    assert!(!image.backends.beyond.is_empty() && !image.turns[1].0.is_empty());
    let drains = image.backends.figures.iter().filter(|b| b.health.drain != BackendDrainImage::No);
    assert_eq!(drains.count(), 1);
    assert!(image.backends.figures.iter().any(|b| b.ejections != [0, 0]));
}

#[test]
fn flows_that_contradict_each_other_are_refused() {
    assert_refused([
        ("a slot of the flow table is named twice, or never", |image| {
            image.flows.alive[1].slot = image.flows.alive[0].slot;
        }),
        ("a slot of the flow table is named twice, or never", |image| {
            image.flows.vacant.pop();
        }),
        ("a slot of the flow table is named twice, or never", |image| {
            image.flows.resting[0].slot = u32::MAX;
        }),
        ("a flow is confirmed before it is answered", |image| {
            let confirmed = image.flows.alive.iter_mut().find(|flow| flow.confirmed);
            confirmed.expect("such a flow").first_answer = None;
        }),
        ("a flow's figures ran over", |image| image.flows.alive[3].to_backend = OVER),
        ("a flow's figures ran over", |image| image.flows.alive[3].to_client = OVER),
        ("a client has two flows", |image| {
            let key = any_of_stage(image, StageImage::Active).key;
            image.flows.alive.last_mut().expect("a flow").key = key;
        }),
        ("a ring that leads nowhere", |image| {
            let vacant = image.flows.vacant[0];
            any_of_stage(image, StageImage::Follower).next_branch = Some(vacant);
        }),
        ("a ring of two clients", |image| {
            let other = image.flows.alive.iter().find(|flow| flow.next_branch.is_none());
            let other = other.expect("such a flow").slot;
            any_of_stage(image, StageImage::Follower).next_branch = Some(other);
        }),
        ("a ring that does not close", |image| {
            any_of_stage(image, StageImage::Follower).next_branch = None;
        }),
        ("a flow without its backend", |image| image.flows.alive[0].backend = 6),
        ("a socket rests for nobody", |image| image.flows.resting[0].backend = 6),
    ]);
}

#[test]
fn queues_and_timers_that_do_not_fit_the_flows_are_refused() {
    assert_refused([
        ("a flow in the wrong queue, or twice", |image| {
            let first = image.flows.unanswered[0];
            image.flows.unanswered.push(first);
        }),
        ("a flow in the wrong queue, or twice", |image| {
            let FlowsImage { unanswered, unconfirmed, .. } = &mut image.flows;
            core::mem::swap(unanswered, unconfirmed);
        }),
        ("a flow is in no queue", |image| {
            image.flows.unconfirmed.pop();
        }),
        ("the timers are beyond the end of time", |image| image.timers.elapsed = 1 << 45),
        ("a timer beyond the wheel", |image| image.timers.places[0].level = 8),
        ("a timer beyond the wheel", |image| image.timers.places[0].slot = 64),
        ("a place of timers is named in vain", |image| {
            let first = image.timers.places[0].clone();
            image.timers.places.push(first);
        }),
        ("a timer of nothing, or one that is scheduled twice", |image| {
            let timers = &mut image.timers.places[0].timers;
            timers.push(timers[0]);
        }),
        ("a timer of nothing, or one that is scheduled twice", |image| {
            image.timers.places[0].timers[0] = u32::MAX;
        }),
        ("a flow without a timer, or a late one", |image| {
            image.timers.places.pop();
        }),
        ("a flow without a timer, or a late one", |image| image.timers.places[0].level = 7),
        ("a timer of no flow", |image| {
            let vacant = image.flows.vacant[0];
            image.timers.places[0].timers.push(vacant);
        }),
        ("a search beyond all flows", |image| {
            image.sweep.as_mut().expect("a sweep").next_slot = 1_000;
        }),
        ("a search beyond all flows", |image| {
            image.sweep.as_mut().expect("a sweep").left = 1_000;
        }),
    ]);
}

#[test]
fn backends_and_turns_that_do_not_fit_the_configuration_are_refused() {
    assert_refused([
        ("a backend without figures", |image| {
            image.backends.figures.pop();
        }),
        ("a backend is not listed", |image| image.backends.beyond[0].removed = false),
        ("a backend's figures ran over", |image| image.backends.figures[0].to = OVER),
        ("a backend's figures ran over", |image| image.backends.figures[0].dropped = OVER),
        ("a backend's figures ran over", |image| image.backends.figures[0].from = OVER),
        ("turns of no backends, or backends without turns", |image| {
            image.turns[0].0.pop();
        }),
        ("turns of no backends, or backends without turns", |image| image.turns[1].0.push((1, 1))),
        ("turns of no backends, or backends without turns", |image| {
            image.turns[0].0[0] = (1 << 63, 0);
        }),
        ("turns of no backends, or backends without turns", |image| {
            image.config.cluster.balance = Balance::LeastFlows;
        }),
    ]);
}

#[test]
fn sources_and_proxies_that_do_not_fit_are_refused() {
    assert_refused([
        ("sources are counted for no limit, or not for one", |image| {
            image.sources.subnet_keys = None;
        }),
        ("sources are counted for no limit, or not for one", |image| {
            image.config.cluster.limits.flows_per_source = 0;
        }),
        ("a rate is measured for no limit, or not for one", |image| image.sources.rate = None),
        ("an impossible number of buckets", |image| {
            image.sources.rate.as_mut().expect("a rate").buckets = 10;
        }),
        ("an impossible number of buckets", |image| {
            image.sources.rate.as_mut().expect("a rate").buckets = 26;
        }),
        ("a bucket beyond the last", |image| {
            image.sources.rate.as_mut().expect("a rate").filled[0] = (2_048, 0, Instant::ORIGIN);
        }),
        ("an impossible number of proxies", |image| image.proxies.capacity = 3),
        ("an impossible number of proxies", |image| image.proxies.capacity = u32::MAX),
        ("the number of a proxy is named twice, or never", |image| {
            image.proxies.known[1].number = 0;
        }),
        ("a proxy behind a proxy", |image| {
            image.proxies.known[0].key.way = WayImage::Relayed { proxy: 1 };
        }),
        ("a proxy has two numbers", |image| {
            image.proxies.known[1].key = image.proxies.known[0].key;
        }),
        ("a flow without its proxy", |image| {
            let relayed = |flow: &&mut FlowImage| matches!(flow.key.way, WayImage::Relayed { .. });
            let flow = image.flows.alive.iter_mut().find(relayed).expect("such a flow");
            flow.key.way = WayImage::Relayed { proxy: 9 };
        }),
        ("a proxy without flows that has some, or is there twice", |image| {
            let first = image.proxies.idle[0];
            image.proxies.idle.push(first);
        }),
        ("a proxy without flows that has some, or is there twice", |image| {
            image.proxies.idle = (0..image.proxies.known.len() as u32).collect();
        }),
        ("a proxy without flows is forgotten", |image| {
            image.proxies.idle.pop();
        }),
    ]);
}

#[test]
fn counts_that_are_off_are_refused() {
    assert_refused([
        ("a flow was lost count of", |image| image.counters.flows_opened += 1),
        ("datagrams were lost count of", |image| image.counters.to_client.forwarded.bytes += 1),
        ("datagrams were lost count of", |image| {
            image.counters.to_backend.forwarded.datagrams = u64::MAX;
        }),
        ("a counter ran over", |image| image.counters.to_backend.received = OVER),
        ("a counter ran over", |image| image.counters.flows_moved = u64::MAX),
        ("a counter ran over", |image| image.counters.upstream_errors = u64::MAX),
        ("a reason is named twice", |image| {
            let dropped = &mut image.counters.to_backend.dropped;
            dropped.push(dropped[0].clone());
        }),
    ]);
    let unknown = refused(|image| {
        image.counters.to_backend.dropped.push(("bad_weather".into(), Traffic::default()));
    });
    assert_eq!(unknown, ImageError::UnknownReason("bad_weather".to_string()));
    let says = "the snapshot counts what this version does not know: \"bad_weather\"";
    assert_eq!(unknown.to_string(), says);
}

#[test]
fn a_flow_table_that_no_configuration_may_ask_for_is_refused() {
    let (max_flows, most) = (MAX_FLOWS + 1, MAX_FLOWS);
    let refused = refused(|image| image.config.max_flows = max_flows);
    assert_eq!(refused, ImageError::TooManyFlows { max_flows, most });
}

#[test]
fn a_configuration_that_is_prepared_serves_where_it_has_the_same_turns() {
    let change = |balance| {
        let mut image = image();
        image.config.cluster.balance = balance;
        image.turns = Default::default();
        image.drain = None;
        image
    };
    let maglev = change(Balance::Maglev);
    let prepared = crate::PreparedConfig::new(maglev.config.clone());
    let others = crate::PreparedConfig::new(image().config);
    let [shared, built] = [&prepared, &others].map(|prepared| {
        let mut manager = UdpManager::restore(maglev.clone(), Some(prepared)).expect("a manager");
        for port in 100..110 {
            let source = everything::client(port);
            everything::ask(&mut manager, source, None, b"x", everything::after(50));
        }
        manager.image()
    });
    assert_eq!(shared, built);
    // Turns are those of the image, not those of what was prepared.
    let turns = UdpManager::restore(image(), Some(&others)).expect("a manager");
    assert_eq!(turns.image(), image());
}
