//! What the HTTP listener says to those who scrape it, and to those who misuse it.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flowgate::admin::http::{HttpServer, MAX_CONNECTIONS};
use flowgate::admin::request::{Handler, Request, Response};
use flowgate::admin::status::{
    AnnounceStatus, BackendState, BackendStatus, ByDirection, ClusterStatus, CountersDoc,
    FastPathStatus, LedgerDoc, ListenerStatus, MirrorStatus, StatusDocument, TrafficDoc,
};
use flowgate_tests::e2e::{PATIENCE, eventually};

/// A server that says what stands in the place that is returned too.
fn server(document: StatusDocument) -> (HttpServer, Arc<Mutex<StatusDocument>>) {
    let document = Arc::new(Mutex::new(document));
    let says = Arc::clone(&document);
    let handler: Handler = Arc::new(move |request| {
        assert_eq!(request, Request::Status);
        Response::Status(says.lock().unwrap().clone())
    });
    (start(handler), document)
}

fn start(handler: Handler) -> HttpServer {
    HttpServer::start("127.0.0.1:0".parse().unwrap(), handler).unwrap()
}

/// An answer: the status, the headers in lower case, the body.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines();
        lines.filter_map(|line| line.split_once(": ")).find(|(n, _)| *n == name).map(|(_, v)| v)
    }
}

/// Sends some bytes and reads until the server closes.
fn exchange(server: SocketAddr, request: &[u8]) -> Option<Answer> {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // The server may have answered and closed before all of it has been sent.
    let _ = stream.write_all(request);
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("no end of the answer"),
        _ => {}
    }
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head: head.to_lowercase(), body: body.to_owned() })
}

#[track_caller]
fn ask(server: &HttpServer, line: &str, headers: &str) -> Answer {
    let request =
        format!("{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n");
    exchange(server.address(), request.as_bytes()).expect("an answer")
}

#[track_caller]
fn get(server: &HttpServer, path: &str) -> Answer {
    ask(server, &format!("GET {path}"), "")
}

/// The samples of a scrape, by name and labels.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').expect("a value");
        (name.to_owned(), value.parse().expect("a number"))
    };
    let samples: Vec<_> = lines.map(sample).collect();
    let by_name: BTreeMap<_, _> = samples.iter().cloned().collect();
    assert_eq!(by_name.len(), samples.len(), "a series is there twice");
    by_name
}

fn traffic(datagrams: u64) -> TrafficDoc {
    TrafficDoc { datagrams, bytes: 100 * datagrams }
}

fn ledger(forwarded: u64, dropped: &[(&str, u64)]) -> LedgerDoc {
    let dropped = dropped.iter().map(|&(reason, count)| (reason.to_owned(), traffic(count)));
    let mut ledger = LedgerDoc {
        forwarded: traffic(forwarded),
        dropped: dropped.collect(),
        ..LedgerDoc::default()
    };
    ledger.queued = traffic(3);
    ledger.received = ledger.forwarded.plus(ledger.queued).plus(ledger.dropped_total());
    ledger
}

fn listener(name: &str, to_backend: LedgerDoc, to_client: LedgerDoc) -> ListenerStatus {
    ListenerStatus {
        name: name.into(),
        address: "127.0.0.1:53".parse().unwrap(),
        cluster: "resolvers".into(),
        flows_active: 7,
        flows_max: 1_000,
        flows_opened: 50,
        retries: 0,
        flows_closed: [("idle".to_owned(), 40), ("complete".to_owned(), 3)].into(),
        socket_drops: 9,
        upstream_socket_drops: 3,
        upstreams_per_flow: 5,
        upstreams_shared: 1,
        client_sockets: 6,
        client_sockets_failed: 2,
        fast_path: Some(FastPathStatus {
            mode: "auto".into(),
            reason: None,
            flows: 5,
            datagrams: ByDirection { to_backend: 90, to_client: 70 },
            overtaken: 1,
        }),
        to_backend,
        to_client,
        mirror: None,
        announce: None,
    }
}

fn backend(address: &str, state: BackendState) -> BackendStatus {
    BackendStatus {
        address: address.parse().unwrap(),
        name: None,
        weight: 1,
        backup: false,
        state,
        reason: None,
        since_seconds: None,
        until_seconds: None,
        ejections: BTreeMap::new(),
        flows_active: 4,
        datagrams_to: 60,
        datagrams_from: 50,
        bytes_to: 6_000,
        bytes_from: 5_000,
        datagrams_dropped: 6,
        first_answers: None,
        configured_weight: None,
    }
}

fn document() -> StatusDocument {
    let to_backend = ledger(100, &[("max_flows", 5), ("denied", 2)]);
    let copies = ledger(30, &[("unreachable", 4)]);
    let mirror = MirrorStatus { cluster: "shadow".into(), to_backend: copies };
    let dns = listener("dns", to_backend, ledger(80, &[]));
    let announce = |announced| Some(AnnounceStatus { announced, ..AnnounceStatus::default() });
    let dns = ListenerStatus { mirror: Some(mirror), announce: announce(Some(true)), ..dns };
    StatusDocument {
        version: "0.1.0".into(),
        pid: 4_711,
        uptime_seconds: 12.0,
        draining: false,
        announce: announce(None),
        listeners: vec![dns],
        clusters: vec![ClusterStatus {
            name: "resolvers".into(),
            balance: "rendezvous".into(),
            mode: "session".into(),
            backends: vec![
                backend("10.0.0.1:53", BackendState::Up),
                backend("10.0.0.2:53", BackendState::Down),
                backend("[2001:db8::1]:53", BackendState::Draining),
            ],
            ..ClusterStatus::default()
        }],
        counters: CountersDoc { reloads_ok: 3, reloads_failed: 1, ..CountersDoc::default() },
        ..StatusDocument::default()
    }
}

#[test]
fn every_metric_has_its_name_labels_and_value() {
    let (server, _) = server(document());
    let answer = get(&server, "/metrics");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let samples = samples(&answer.body);
    let dropped = "flowgate_datagrams_dropped_total{listener=\"dns\",direction";
    let backend = "cluster=\"resolvers\",backend=\"10.0.0.1:53\",direction";
    for (series, value) in [
        ("flowgate_build_info{version=\"0.1.0\"}", 1),
        ("flowgate_uptime_seconds", 12),
        ("flowgate_reloads_total{result=\"ok\"}", 3),
        ("flowgate_reloads_total{result=\"failed\"}", 1),
        ("flowgate_announced", 0),
        ("flowgate_announced{listener=\"dns\"}", 1),
        ("flowgate_datagrams_received_total{listener=\"dns\",direction=\"to_backend\"}", 110),
        ("flowgate_datagrams_queued{listener=\"dns\",direction=\"to_backend\"}", 3),
        ("flowgate_datagrams_total{listener=\"dns\",direction=\"to_backend\"}", 100),
        ("flowgate_datagrams_total{listener=\"dns\",direction=\"to_client\"}", 80),
        ("flowgate_bytes_total{listener=\"dns\",direction=\"to_backend\"}", 10_000),
        (&format!("{dropped}=\"to_backend\",reason=\"max_flows\"}}"), 5),
        (&format!("{dropped}=\"to_client\",reason=\"max_flows\"}}"), 0),
        ("flowgate_socket_drops_total{listener=\"dns\",direction=\"to_backend\"}", 9),
        ("flowgate_socket_drops_total{listener=\"dns\",direction=\"to_client\"}", 3),
        ("flowgate_upstreams{listener=\"dns\",kind=\"per_flow\"}", 5),
        ("flowgate_upstreams{listener=\"dns\",kind=\"shared\"}", 1),
        ("flowgate_client_sockets{listener=\"dns\"}", 6),
        ("flowgate_client_sockets_failed_total{listener=\"dns\"}", 2),
        ("flowgate_fast_path_flows{listener=\"dns\"}", 5),
        ("flowgate_fast_path_datagrams_total{listener=\"dns\",direction=\"to_backend\"}", 90),
        ("flowgate_fast_path_datagrams_total{listener=\"dns\",direction=\"to_client\"}", 70),
        ("flowgate_fast_path_overtaken_total{listener=\"dns\"}", 1),
        ("flowgate_flows_active{listener=\"dns\"}", 7),
        ("flowgate_flows_max{listener=\"dns\"}", 1_000),
        ("flowgate_flows_opened_total{listener=\"dns\"}", 50),
        ("flowgate_flows_closed_total{listener=\"dns\",reason=\"idle\"}", 40),
        ("flowgate_flows_closed_total{listener=\"dns\",reason=\"evicted\"}", 0),
        ("flowgate_backend_up{cluster=\"resolvers\",backend=\"10.0.0.1:53\"}", 1),
        ("flowgate_backend_up{cluster=\"resolvers\",backend=\"10.0.0.2:53\"}", 0),
        ("flowgate_backend_up{cluster=\"resolvers\",backend=\"[2001:db8::1]:53\"}", 1),
        ("flowgate_backend_draining{cluster=\"resolvers\",backend=\"[2001:db8::1]:53\"}", 1),
        ("flowgate_backend_flows_active{cluster=\"resolvers\",backend=\"10.0.0.1:53\"}", 4),
        (&format!("flowgate_backend_datagrams_total{{{backend}=\"to_backend\"}}"), 60),
        (&format!("flowgate_backend_datagrams_total{{{backend}=\"to_client\"}}"), 50),
        (
            "flowgate_backend_datagrams_dropped_total{cluster=\"resolvers\",backend=\"10.0.0.1:53\"}",
            6,
        ),
        ("flowgate_mirror_datagrams_total{listener=\"dns\",cluster=\"shadow\"}", 30),
        (
            "flowgate_mirror_datagrams_dropped_total\
             {listener=\"dns\",cluster=\"shadow\",reason=\"unreachable\"}",
            4,
        ),
    ] {
        assert_eq!(samples.get(series), Some(&f64::from(value)), "{series} in {}", answer.body);
    }
}

#[test]
fn the_ledger_adds_up_in_every_scrape() {
    let (server, _) = server(document());
    let samples = samples(&get(&server, "/metrics").body);
    for direction in ["to_backend", "to_client"] {
        let sum = |name: &str| -> f64 {
            let of = samples.iter().filter(|(series, _)| {
                series.starts_with(&format!("{name}{{")) && series.contains(direction)
            });
            of.map(|(_, value)| value).sum()
        };
        assert_eq!(
            sum("flowgate_datagrams_received_total"),
            sum("flowgate_datagrams_total")
                + sum("flowgate_datagrams_dropped_total")
                + sum("flowgate_datagrams_queued"),
        );
    }
}

#[test]
fn whoever_asks_for_open_metrics_gets_it() {
    let (server, _) = server(document());
    let accept = "Accept: application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.3\r\n";
    let answer = ask(&server, "GET /metrics", accept);
    let kind = answer.header("content-type").unwrap();
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    assert!(answer.body.ends_with("# EOF\n"));
    assert!(answer.body.contains("# TYPE flowgate_datagrams counter\n"), "{}", answer.body);
    assert!(answer.body.contains("\nflowgate_datagrams_total{"), "{}", answer.body);
    assert_eq!(samples(&answer.body), samples(&get(&server, "/metrics").body));
}

#[test]
fn names_of_any_characters_stay_on_their_line() {
    let mut document = document();
    document.listeners[0].name = "a\"b\\c\nd\u{1b}[31m\0".into();
    let (server, _) = server(document);
    let answer = get(&server, "/metrics");
    let label = r#"listener="a\"b\\c\nd\\u{1b}[31m\\u{0}""#;
    assert!(answer.body.contains(label), "{}", answer.body);
    assert!(!answer.body.contains(['\u{1b}', '\0']));
}

#[test]
fn the_status_is_the_document() {
    let (server, _) = server(document());
    let answer = get(&server, "/status");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert!(answer.body.starts_with("{\"version\":\"0.1.0\""), "{}", answer.body);
    assert!(answer.body.contains("\"state\":\"draining\""));
}

#[test]
fn head_has_no_body_and_other_methods_and_paths_are_refused() {
    let (server, _) = server(document());
    for path in ["/", "/status", "/metrics"] {
        let head = ask(&server, &format!("HEAD {path}"), "");
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
        let post = ask(&server, &format!("POST {path}"), "Content-Length: 0\r\n");
        assert_eq!((post.status, post.header("allow")), (405, Some("get, head")), "{path}");
    }
    for path in ["/etc/passwd", "/status/", "/../status", "//"] {
        assert_eq!(get(&server, path).status, 404, "{path}");
    }
}

#[test]
fn ready_says_whether_new_flows_are_served_and_live_that_somebody_answers() {
    let (server, shown) = server(document());
    assert_eq!((get(&server, "/live").status, get(&server, "/ready").status), (200, 200));
    shown.lock().unwrap().clusters.iter_mut().flat_map(|c| &mut c.backends).for_each(|backend| {
        backend.state = BackendState::Down;
    });
    let is_unready = || (get(&server, "/ready").status == 503).then(|| get(&server, "/ready").body);
    let reason = eventually("the cached report is old", is_unready);
    assert!(reason.contains("no backend is up"), "{reason}");
    assert_eq!(get(&server, "/live").status, 200);
}

#[test]
fn what_changes_something_is_refused_here() {
    let (server, _) = server(document());
    for path in ["/reload", "/drain", "/stop", "/upgrade", "/snapshot"] {
        let answer = ask(&server, &format!("POST {path}"), "Content-Length: 0\r\n");
        assert_eq!(answer.status, 403, "{path}");
        assert!(answer.body.contains("control socket"), "{path}: {}", answer.body);
    }
}

#[test]
fn every_answer_forbids_what_it_does_not_need() {
    let (server, _) = server(document());
    for path in ["/", "/status", "/metrics", "/nothing"] {
        let answer = get(&server, path);
        let policy = answer.header("content-security-policy").expect(path);
        assert!(policy.starts_with("default-src 'none'"), "{path}: {policy}");
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{path}: {policy}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
    }
}

#[test]
fn on_any_address_a_foreign_host_name_is_refused() {
    let (server, _) = server(document());
    let ask = |host: &str| {
        let request = format!("GET /status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        exchange(server.address(), request.as_bytes()).unwrap().status
    };
    assert_eq!(ask("rebinding.example"), 403);
    assert_eq!(ask(&server.address().to_string()), 200);
    let wildcard = HttpServer::start("0.0.0.0:0".parse().unwrap(), Arc::new(|_| Response::done()));
    let port = wildcard.as_ref().unwrap().address().port();
    let request = "GET / HTTP/1.1\r\nHost: rebinding.example\r\nConnection: close\r\n\r\n";
    let answer = exchange(SocketAddr::from(([127, 0, 0, 1], port)), request.as_bytes());
    assert_eq!(answer.unwrap().status, 403);
}

#[test]
fn a_request_with_two_host_headers_is_refused() {
    let (server, _) = server(document());
    for (first, second) in [("localhost", "rebinding.example"), ("localhost", "localhost")] {
        let request = format!(
            "GET /status HTTP/1.1\r\nHost: {first}\r\nHost: {second}\r\nConnection: close\r\n\r\n"
        );
        let answer = exchange(server.address(), request.as_bytes()).unwrap();
        assert_eq!(answer.status, 400, "{first}, {second}: {}", answer.body);
    }
}

#[test]
fn idle_connections_push_out_none_that_has_begun_to_ask() {
    let (server, _) = server(document());
    for _ in 0..20 {
        let mut honest = TcpStream::connect(server.address()).unwrap();
        honest.set_read_timeout(Some(PATIENCE)).unwrap();
        honest.write_all(b"GET /metrics HT").unwrap();
        let idle: Vec<_> =
            (0..MAX_CONNECTIONS).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
        honest.write_all(b"TP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        honest.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
        drop(idle);
    }
}

#[test]
fn many_scrapes_at_once_ask_once() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let server = start(Arc::new(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        Response::Status(document())
    }));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for path in ["/metrics", "/status", "/metrics", "/status"] {
                    assert_eq!(get(&server, path).status, 200);
                }
            });
        }
    });
    let most = 1 + begun.elapsed().as_millis() as usize / 50;
    let calls = calls.load(Ordering::Relaxed);
    assert!((1..=most).contains(&calls), "{calls} reports for 64 scrapes, not {most}");
}

#[test]
fn a_refusal_is_told_with_its_reasons() {
    let server = start(Arc::new(|_| Response::refused("still starting\u{1b}")));
    for path in ["/status", "/metrics"] {
        let answer = get(&server, path);
        assert_eq!((answer.status, answer.body.as_str()), (503, "still starting\\u{1b}\n"));
    }
    assert_eq!(get(&server, "/").status, 200, "the page itself needs no report");
}

#[test]
fn a_handler_that_panics_ends_nothing() {
    let server = start(Arc::new(|_| panic!("on purpose")));
    assert_eq!(get(&server, "/metrics").status, 503);
    assert_eq!(get(&server, "/").status, 200);
}

#[test]
fn clients_that_say_nothing_keep_nobody_out() {
    let (server, _) = server(document());
    let silent: Vec<_> = (0..4 * MAX_CONNECTIONS)
        .map(|_| TcpStream::connect(server.address()).expect("a connection"))
        .collect();
    let begun = Instant::now();
    assert_eq!(get(&server, "/status").status, 200);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    // The first ones had to go.
    let mut first = &silent[0];
    first.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(
        !matches!(first.read(&mut [0; 8]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    );
}

#[test]
fn a_head_that_never_ends_is_cut_off() {
    let (server, _) = server(document());
    // In size,
    let endless = format!("GET /{} HTTP/1.1\r\n", "x".repeat(1 << 20));
    let answer = exchange(server.address(), endless.as_bytes());
    assert!(answer.is_none_or(|answer| matches!(answer.status, 400..500)));
    let headers: String = (0..1_000).map(|number| format!("x-{number}: y\r\n")).collect();
    let many = format!("GET /status HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
    let answer = exchange(server.address(), many.as_bytes());
    assert!(answer.is_none_or(|answer| matches!(answer.status, 400..500)));
    // and in time.
    let mut slow = TcpStream::connect(server.address()).unwrap();
    slow.set_read_timeout(Some(PATIENCE)).unwrap();
    slow.write_all(b"GET /status HTTP/1.1\r\nHost: loc").unwrap();
    let mut rest = Vec::new();
    assert!(
        !matches!(slow.read_to_end(&mut rest), Err(error) if error.kind() == ErrorKind::WouldBlock),
        "it is closed",
    );
}

#[test]
fn a_body_is_not_read() {
    let (server, _) = server(document());
    let answer = ask(&server, "GET /status", "Content-Length: 1000000000000\r\n");
    assert_eq!(answer.status, 200);
}

#[test]
fn it_stops_while_it_waits_for_an_answer() {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (called, calls) = std::sync::mpsc::channel();
    let released = Mutex::new(released);
    let server = start(Arc::new(move |_| {
        let _ = called.send(());
        let _ = released.lock().unwrap().recv();
        Response::done()
    }));
    let mut client = TcpStream::connect(server.address()).unwrap();
    client.write_all(b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    calls.recv_timeout(PATIENCE).expect("a call");
    let address = server.address();
    drop(server);
    drop(release);
    assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
}

#[test]
fn an_address_that_is_taken_is_an_error() {
    let (server, _) = server(document());
    let again = HttpServer::start(server.address(), Arc::new(|_| Response::done()));
    assert_eq!(again.map(|_| ()).unwrap_err().kind(), ErrorKind::AddrInUse);
}
