use super::*;

const ONE: Traffic = Traffic { datagrams: 1, bytes: 10 };

fn counters() -> Counters {
    let mut counters = Counters { flows_opened: 3, ..Counters::default() };
    counters.flows_closed[CloseReason::Idle as usize] = 2;
    counters.to_backend.received = ONE.plus(ONE);
    counters.to_backend.forwarded = ONE;
    counters.to_backend.dropped[DropReason::MaxFlows as usize] = ONE;
    counters.to_client.received = ONE;
    counters.to_client.forwarded = ONE;
    counters
}

#[test]
fn a_ledger_names_only_the_reasons_that_were_met() {
    let ledger = LedgerDoc::from(&counters().to_backend);
    assert_eq!(
        serde_json::to_string(&ledger).unwrap(),
        r#"{"received":{"datagrams":2,"bytes":20},"forwarded":{"datagrams":1,"bytes":10},"queued":{"datagrams":0,"bytes":0},"dropped":{"max_flows":{"datagrams":1,"bytes":10}}}"#,
    );
    assert_eq!(ledger.dropped_total(), ONE.into());
    assert_eq!(flows_closed(&counters()), BTreeMap::from([("idle".to_owned(), 2)]));
}

#[test]
fn sums_over_listeners_add_up_in_each_direction() {
    let mut sums = CountersDoc::default();
    sums.add(&counters());
    sums.add(&counters());
    assert_eq!(sums.datagrams_received, ByDirection { to_backend: 4, to_client: 2 });
    assert_eq!(sums.datagrams_forwarded, ByDirection { to_backend: 2, to_client: 2 });
    assert_eq!(sums.datagrams_dropped, ByDirection { to_backend: 2, to_client: 0 });
    assert_eq!(sums.bytes_received, ByDirection { to_backend: 40, to_client: 20 });
    assert_eq!(sums.bytes_dropped, ByDirection { to_backend: 20, to_client: 0 });
    assert_eq!((sums.flows_opened, sums.flows_closed), (6, 4));
}

#[test]
fn a_document_of_another_version_is_understood() {
    let json = r#"{
        "version": "9.9.9", "uptime_seconds": 12, "mood": "fine",
        "listeners": [{"name": "dns", "address": "0.0.0.0:53", "cluster": "dns",
                       "flows_active": 1, "flows_max": 2, "colour": "blue"}],
        "clusters": [{"name": "dns", "balance": "maglev", "backends": [
            {"address": "[2001:db8::1]:53", "weight": 1, "state": "draining",
             "flows_active": 1, "datagrams_to": 5, "datagrams_from": 4}]}],
        "counters": {}
    }"#;
    let status: StatusDocument = serde_json::from_str(json).unwrap();
    assert_eq!(status.uptime_seconds, 12.0);
    assert_eq!(status.listeners[0].flows_max, 2);
    assert_eq!(status.clusters[0].backends[0].state, BackendState::Draining);

    let again = serde_json::to_string(&status).unwrap();
    assert_eq!(serde_json::from_str::<StatusDocument>(&again).unwrap(), status);
}

#[test]
fn states_are_written_as_they_are_named() {
    for state in [
        BackendState::Up,
        BackendState::Down,
        BackendState::Draining,
        BackendState::Ejected,
        BackendState::Unchecked,
    ] {
        let json = serde_json::to_string(&state).unwrap();
        assert_eq!(json, format!("{:?}", state.as_str()));
    }
}
