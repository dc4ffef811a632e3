use super::*;
use crate::admin::status::{BackendState, ClusterStatus, TrafficDoc};

/// A listener that received so many datagrams and sent on so many of them, of 10 bytes each.
fn listener(received: u64, forwarded: u64) -> StatusDocument {
    let traffic = |datagrams| TrafficDoc { datagrams, bytes: 10 * datagrams };
    let dropped = [("refused".to_owned(), traffic(received - forwarded))].into();
    let to_backend =
        LedgerDoc { received: traffic(received), forwarded: traffic(forwarded), dropped };
    let listener = ListenerStatus {
        name: "dns".into(),
        address: "127.0.0.1:53".parse().unwrap(),
        cluster: "resolvers".into(),
        flows_active: 0,
        flows_max: 0,
        flows_opened: received,
        flows_closed: Default::default(),
        socket_drops: 0,
        upstream_socket_drops: 0,
        client_sockets: 0,
        client_sockets_failed: 0,
        to_backend,
        to_client: LedgerDoc::default(),
        mirror: None,
    };
    StatusDocument { listeners: vec![listener], ..StatusDocument::default() }
}

fn backend(datagrams_to: u64, datagrams_from: u64) -> StatusDocument {
    let backend = BackendStatus {
        address: "10.0.0.1:53".parse().unwrap(),
        name: None,
        weight: 1,
        backup: false,
        state: BackendState::Up,
        reason: None,
        since_seconds: None,
        until_seconds: None,
        ejections: std::collections::BTreeMap::new(),
        flows_active: 0,
        datagrams_to,
        datagrams_from,
        bytes_to: 10 * datagrams_to,
        bytes_from: 0,
        datagrams_dropped: 0,
    };
    let cluster = ClusterStatus { backends: vec![backend], ..ClusterStatus::default() };
    StatusDocument { clusters: vec![cluster], ..StatusDocument::default() }
}

/// What is reported of documents that follow each other: received and sent on.
fn reported(documents: impl IntoIterator<Item = StatusDocument>) -> Vec<(u64, u64)> {
    let mut marks = Marks::default();
    let report = |mut document: StatusDocument| {
        marks.hold_up(&mut document);
        let Some(listener) = document.listeners.first() else { return (0, 0) };
        let ledger = &listener.to_backend;
        let dropped = ledger.dropped_total();
        assert_eq!(ledger.received, ledger.forwarded.plus(dropped), "the ledger adds up");
        (ledger.received.datagrams, ledger.forwarded.datagrams)
    };
    documents.into_iter().map(report).collect()
}

#[test]
fn what_is_taken_back_stays_reported_until_there_is_more() {
    let documents = [(10, 10), (10, 7), (12, 9), (14, 11)].map(|(r, f)| listener(r, f));
    assert_eq!(reported(documents), [(10, 10), (13, 10), (13, 10), (14, 11)]);
}

#[test]
fn a_new_listener_of_an_old_name_begins_anew() {
    let documents = [(1_000, 1_000), (3, 2), (3, 1)].map(|(r, f)| listener(r, f));
    assert_eq!(reported(documents), [(1_000, 1_000), (3, 2), (4, 2)]);
}

#[test]
fn a_listener_that_was_away_begins_anew() {
    let documents = [listener(10, 10), StatusDocument::default(), listener(10, 2)];
    assert_eq!(reported(documents), [(10, 10), (0, 0), (10, 2)]);
}

#[test]
fn a_backend_is_held_up_too() {
    let mut marks = Marks::default();
    let mut report = |to, from| {
        let mut document = backend(to, from);
        marks.hold_up(&mut document);
        document.clusters[0].backends[0].datagrams_to
    };
    assert_eq!(report(10, 0), 10);
    assert_eq!(report(7, 0), 10);
    assert_eq!(report(11, 5), 11);
    assert_eq!(report(2, 3), 2, "another backend, since less came from it");
    assert_eq!(report(1_000_000, 3), 1_000_000);
    assert_eq!(report(5, 3), 5, "another backend, since so much never waits");
}
