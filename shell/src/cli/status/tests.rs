use std::collections::BTreeMap;

use super::*;
use crate::admin::status::{BackendState, ByDirection, CountersDoc, TrafficDoc};

fn traffic(datagrams: u64) -> TrafficDoc {
    TrafficDoc { datagrams, bytes: datagrams * 100 }
}

/// A document with something of everything, and names that a terminal would obey.
pub(in crate::cli) fn document() -> StatusDocument {
    let dropped = BTreeMap::from([("max_flows".to_owned(), traffic(10))]);
    let dns = ListenerStatus {
        name: "dns".into(),
        address: "0.0.0.0:53".into(),
        cluster: "resolvers".into(),
        flows_active: 1_234,
        flows_max: 65_536,
        flows_opened: 40_000,
        retries: 0,
        flows_closed: BTreeMap::from([("idle".to_owned(), 38_766)]),
        socket_drops: 0,
        upstream_socket_drops: 0,
        upstreams_per_flow: 0,
        upstreams_shared: 0,
        client_sockets: 0,
        client_sockets_failed: 0,
        fast_path: None,
        to_backend: LedgerDoc {
            queued: TrafficDoc::default(),
            received: traffic(1_000_000),
            forwarded: traffic(999_990),
            dropped,
        },
        to_client: LedgerDoc {
            queued: TrafficDoc::default(),
            received: traffic(999_000),
            forwarded: traffic(999_000),
            dropped: BTreeMap::new(),
        },
        mirror: None,
        announce: None,
    };
    let odd = ListenerStatus {
        name: "o\x1b[2Jd\nd".into(),
        address: "[::]:5060".parse().unwrap(),
        cluster: "e\x1b]0;mpty\x07".into(),
        flows_active: 0,
        flows_opened: 0,
        flows_closed: BTreeMap::new(),
        socket_drops: 7,
        upstream_socket_drops: 0,
        upstreams_per_flow: 0,
        upstreams_shared: 0,
        client_sockets: 0,
        client_sockets_failed: 0,
        fast_path: None,
        to_backend: LedgerDoc::default(),
        to_client: LedgerDoc::default(),
        ..dns.clone()
    };
    let backend = |address: &str, state, part: u64| BackendStatus {
        address: address.parse().unwrap(),
        name: None,
        weight: 1,
        backup: false,
        state,
        reason: None,
        since_seconds: None,
        until_seconds: None,
        ejections: BTreeMap::new(),
        flows_active: part * 2,
        datagrams_to: part * 1_000,
        datagrams_from: part * 999,
        bytes_to: part * 100_000,
        bytes_from: part * 99_900,
        datagrams_dropped: 0,
        first_answers: None,
        configured_weight: None,
    };
    let mut backends = vec![
        backend("10.0.0.1:53", BackendState::Up, 600),
        backend("10.0.0.2:53", BackendState::Draining, 300),
        backend("[2001:db8::3]:53", BackendState::Down, 99),
    ];
    backends[1].name = Some("re\x1bsolver.internal".into());
    backends[2].backup = true;
    StatusDocument {
        version: "0.1.0".into(),
        pid: 4_711,
        uptime_seconds: 273_125.5,
        draining: false,
        listeners: vec![dns, odd],
        clusters: vec![
            ClusterStatus {
                name: "resolvers".into(),
                balance: "rendezvous".into(),
                mode: "session".into(),
                backends,
                ..ClusterStatus::default()
            },
            ClusterStatus {
                name: "e\x1b]0;mpty\x07".into(),
                balance: "maglev".into(),
                mode: "session".into(),
                backends: Vec::new(),
                ..ClusterStatus::default()
            },
        ],
        counters: CountersDoc {
            datagrams_received: ByDirection { to_backend: 1_000_000, to_client: 999_000 },
            datagrams_forwarded: ByDirection { to_backend: 999_990, to_client: 999_000 },
            datagrams_dropped: ByDirection { to_backend: 10, to_client: 0 },
            flows_opened: 40_000,
            flows_closed: 38_766,
            reloads_ok: 2,
            reloads_failed: 1,
            ..CountersDoc::default()
        },
        ..StatusDocument::default()
    }
}

#[test]
fn the_document_is_shown_in_columns_with_escaped_names() {
    let expected = r"
Flowgate 0.1.0, up 3d 3h; reloads: 2, refused: 1

LISTENER        ADDRESS     CLUSTER              FLOWS   LIMIT  OPENED
dns             0.0.0.0:53  resolvers            1,234  65,536  40,000
o\u{1b}[2Jd\nd  [::]:5060   e\u{1b}]0;mpty\u{7}      0  65,536       0

DATAGRAMS       DIRECTION            RECEIVED  FORWARDED  DROPPED    BYTES
dns             clients → backends  1,000,000    999,990       10   100 MB
dns             backends → clients    999,000    999,000        0  99.9 MB
o\u{1b}[2Jd\nd  clients → backends          0          0        0      0 B
o\u{1b}[2Jd\nd  backends → clients          0          0        0      0 B

BACKEND                                          BALANCE     STATE          WEIGHT   SHARE  FLOWS     SENT    BYTES  REPLIES    BYTES
resolvers/10.0.0.1:53                            rendezvous  up                  1  60.1 %  1,200  600,000  60.0 MB  599,400  59.9 MB
resolvers/10.0.0.2:53 (re\u{1b}solver.internal)  rendezvous  draining            1  30.0 %    600  300,000  30.0 MB  299,700  30.0 MB
resolvers/[2001:db8::3]:53                       rendezvous  down (backup)       1   9.9 %    198   99,000   9.9 MB   98,901   9.9 MB
e\u{1b}]0;mpty\u{7}/                             maglev      no backends

DROPPED BY      DIRECTION           REASON                                         DATAGRAMS   BYTES
dns             clients → backends  max_flows                                             10  1.0 kB
o\u{1b}[2Jd\nd  clients → backends  by the kernel: full buffer, or wrong checksum          7       -
";
    let text = text(&document(), false);
    assert_eq!(text, expected.trim_start(), "\n{text}");
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
}

#[test]
fn what_backends_missed_and_where_copies_went_is_shown() {
    let mut status = document();
    status.clusters[0].backends[2].datagrams_dropped = 1_234;
    let to_backend = LedgerDoc {
        queued: TrafficDoc::default(),
        received: traffic(500),
        forwarded: traffic(497),
        dropped: BTreeMap::from([("no_backend".to_owned(), traffic(3))]),
    };
    status.listeners[0].mirror =
        Some(crate::admin::status::MirrorStatus { cluster: "sha\x1bdow".into(), to_backend });
    let text = text(&status, false);
    let has = |expected: &str| {
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.lines().any(|line| words(line).contains(expected)), "{expected}\n{text}");
    };
    has("[2001:db8::3]:53 rendezvous down (backup), 1,234 not sent 1 ");
    has("dns copies → sha\\u{1b}dow 500 497 3 ");
    has("dns copies → sha\\u{1b}dow no_backend 3 300 B");
}

#[test]
fn a_document_without_drops_says_so() {
    let status = text(&StatusDocument::default(), false);
    assert!(status.ends_with("Nothing was dropped.\n"), "{status}");
}

#[test]
fn who_is_out_of_service_is_listed_with_why_and_since_when() {
    let mut status = document();
    let down = &mut status.clusters[0].backends[2];
    down.reason = Some("the last probe \x1btimed out".into());
    (down.since_seconds, down.state) = (Some(192.0), BackendState::Ejected);
    down.until_seconds = Some(15.2);
    status.names = vec![NameStatus {
        name: "gone.example".into(),
        reason: Some("it does not exist (NXDOMAIN)".into()),
        since_seconds: Some(60.0),
        ..NameStatus::default()
    }];
    status.process.config = "/etc/flowgate/flowgate.toml".into();
    status.process.host = "lb1".into();
    let text = text(&status, false);
    for expected in [
        r"resolvers/[2001:db8::3]:53  ejected  3m 12s        15s  the last probe \u{1b}timed out",
        "gone.example  1m 0s               0  it does not exist (NXDOMAIN)",
        "/etc/flowgate/flowgate.toml on lb1\n",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    let colours = super::text(&status, true);
    assert!(colours.contains("\x1b[32mup\x1b[0m"), "{colours:?}");
    // Of what colours do not change nothing moves.
    let plain: String = colours.replace("\x1b[32m", "").replace("\x1b[33m", "");
    let plain = plain.replace("\x1b[1m", "").replace("\x1b[31m", "").replace("\x1b[0m", "");
    assert_eq!(plain, text);
}
