//! Bugs in what is written down of a manager's state.

use flowgate_core::config::Balance;
use flowgate_core::snapshot::ManagerSnapshot;
use flowgate_core::{Instant, UdpManager};
use serde_json::Value;

use super::{Bug, Promise};

/// The snapshot as a bug makes it. What it holds is the core's own, so it is changed by name.
pub(super) fn forget(bug: Bug, snapshot: ManagerSnapshot) -> ManagerSnapshot {
    if bug.breaks() != Promise::Snapshot {
        return snapshot;
    }
    let mut document = to_value(&snapshot);
    match bug {
        Bug::LosesTheTurns if snapshot.config().cluster.balance == Balance::RoundRobin => {
            let mut fresh = UdpManager::new(snapshot.config().clone(), 0, Instant::ORIGIN);
            document["turns"] = to_value(&fresh.snapshot())["turns"].take();
        }
        Bug::LosesTheRandomness => document["random"] = 0.into(),
        Bug::LosesTheOrderOfTimers => {
            let slots = list(&mut document["timers"]["slots"]);
            slots.iter_mut().for_each(|slot| list(&mut slot["timers"]).reverse());
        }
        Bug::LosesTheOrderOfSlots => list(&mut document["flows"]["vacant"]).reverse(),
        Bug::LosesTheGeneration => document["flows"]["next_generation"] = 0.into(),
        Bug::LosesTheRate => change_each(&mut document["sources"]["rates"], |rate| {
            if !rate.is_null() {
                list(&mut rate["filled"]).clear();
            }
        }),
        Bug::LosesTheRest => change_each(&mut document["flows"]["quarantined"], |left| {
            let until = left["until"].as_u64().expect("an instant");
            left["until"] = until.saturating_sub(2_000_000).into();
        }),
        Bug::LosesTheSigns => change_each(&mut document["backends"]["figures"], |backend| {
            let passive = &mut backend["health"]["passive"];
            for sign in ["errors", "unanswered", "level"] {
                passive[sign] = 0.into();
            }
            for time in ["last_sign", "decides_at", "ejection"] {
                passive[time] = Value::Null;
            }
            passive["is_ejected"] = false.into();
        }),
        Bug::LosesTheDrains => {
            change_each(&mut document["backends"]["figures"], |b| {
                b["health"]["drain"] = "No".into()
            });
        }
        Bug::LosesTheDrain => document["drain"] = Value::Null,
        Bug::LosesTheOldest => list(&mut document["flows"]["unanswered"]).reverse(),
        Bug::LosesTheFirstAnswer => change_each(&mut document["flows"]["alive"], |flow| {
            if !flow["first_answer"].is_null() {
                flow["first_answer"] = flow["opened"].clone();
            }
        }),
        Bug::LosesTheIntroduction => {
            change_each(&mut document["flows"]["alive"], |flow| flow["introduced"] = false.into());
        }
        Bug::LosesTheSweep => document["sweep"] = Value::Null,
        Bug::LosesTheProxies => {
            change_each(&mut document["proxies"]["known"], |proxy| proxy["until"] = 0.into());
        }
        _ => {}
    }
    serde_json::from_value(document).expect("the same document")
}

fn to_value(snapshot: &ManagerSnapshot) -> Value {
    serde_json::to_value(snapshot).expect("plain data")
}

fn list(value: &mut Value) -> &mut Vec<Value> {
    value.as_array_mut().expect("a list")
}

fn change_each(value: &mut Value, change: impl FnMut(&mut Value)) {
    list(value).iter_mut().for_each(change);
}
