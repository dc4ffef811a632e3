//! The status page, in a real browser. Without Chromium (Debian: chromium) the tests are skipped,
//! with the reason printed.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flowgate::admin::http::HttpServer;
use flowgate::admin::request::{Handler, Request, Response};
use flowgate::admin::status::{
    AnswerTimesDoc, BackendState, BackendStatus, ByDirection, ClusterStatus, CountersDoc, EventDoc,
    LedgerDoc, ListenerStatus, ProcessStatus, ReloadStatus, StatusDocument, TrafficDoc,
};
use flowgate_tests::scratch::Scratch;
use flowgate_tests::skip::skip;

/// A name as bad as names get.
const LISTENER: &str = "dns\u{1b}[31m\n<script>document.title='taken over'</script>";

/// Another.
const CLUSTER: &str = "\"><img src=x onerror=\"document.title='taken over'\">\u{202e}";

/// Shows a page for this many seconds of the browser's own time, which passes as fast as the server
/// answers; returns what the browser prints, or `None` without one.
fn browse(profile: &Scratch, url: &str, seconds: u32, options: &[&str]) -> Option<String> {
    let output = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"])
        .args(["--no-first-run", "--disable-background-networking", "--disable-component-update"])
        .args(["--disable-sync", "--disable-extensions", "--disable-dev-shm-usage"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("--virtual-time-budget={}", seconds * 1_000))
        .args(options)
        .arg(url)
        .stderr(Stdio::null())
        .output();
    match output {
        Ok(output) => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        Err(error) => skip(&format!("chromium (Debian: chromium): {error}")),
    }
}

/// A server on which a second passes with every report.
struct World {
    _server: HttpServer,
    /// Where the browser finds it.
    address: SocketAddr,
}

impl World {
    fn start() -> Self {
        let seconds = AtomicU64::new(600);
        Self::with(Arc::new(move |request| {
            assert_eq!(request, Request::Status);
            Response::Status(document(seconds.fetch_add(1, Ordering::Relaxed)))
        }))
    }

    fn with(handler: Handler) -> Self {
        let server = HttpServer::start("127.0.0.1:0".parse().unwrap(), handler).unwrap();
        let address = slow_link(server.address());
        Self { _server: server, address }
    }

    fn browse(&self, seconds: u32, options: &[&str]) -> Option<String> {
        let profile = Scratch::new("browser");
        browse(&profile, &format!("http://{}/", self.address), seconds, options)
    }
}

/// A link to a server on which what clients send takes a while. So, in the browser's time, which
/// stands still while it waits, reports are not so close to each other that two are one.
fn slow_link(server: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(upstream) = TcpStream::connect(server) else { break };
            let (Ok(to), Ok(from)) = (client.try_clone(), upstream.try_clone()) else { break };
            std::thread::spawn(move || carry(client, upstream, Duration::from_millis(55)));
            std::thread::spawn(move || carry(from, to, Duration::ZERO));
        }
    });
    address
}

/// Carries bytes until either side ends.
fn carry(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let mut bytes = [0; 16 << 10];
    while let Ok(len @ 1..) = from.read(&mut bytes) {
        std::thread::sleep(delay);
        if to.write_all(&bytes[..len]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// What a busy balancer says after this many seconds: much traffic that goes up and down, and drops
/// now and then.
fn document(seconds: u64) -> StatusDocument {
    let sum = |rate: &dyn Fn(f64) -> f64| (0..seconds).map(|s| rate(s as f64) as u64).sum::<u64>();
    let to = sum(&|s| 12_000.0 + 2_500.0 * (s / 37.0).sin() + 900.0 * (s / 5.0).sin());
    let from = sum(&|s| 10_500.0 + 2_300.0 * (s / 37.0).sin() + 700.0 * (s / 7.0).cos());
    let full = sum(&|s| if (s / 40.0).sin() > 0.6 { 60.0 + 25.0 * (s / 3.0).sin() } else { 0.0 });
    let denied = sum(&|s| 18.0 + 6.0 * (s / 11.0).sin());
    let unreachable = sum(&|s| if s % 97.0 < 12.0 { 45.0 } else { 0.0 });
    let listener = ListenerStatus {
        name: LISTENER.into(),
        address: "0.0.0.0:53".parse().unwrap(),
        cluster: CLUSTER.into(),
        flows_active: 8_400 + seconds % 97,
        flows_max: 500_000,
        flows_opened: 30 * seconds,
        retries: 0,
        flows_closed: [("idle".to_owned(), 20 * seconds)].into(),
        socket_drops: 2 * seconds,
        upstream_socket_drops: 0,
        upstreams_per_flow: 0,
        upstreams_shared: 0,
        client_sockets: 0,
        client_sockets_failed: 0,
        fast_path: None,
        to_backend: ledger(to, 80, &[("max_flows", full), ("denied", denied)]),
        to_client: ledger(from, 120, &[("unreachable", unreachable)]),
        mirror: None,
        announce: None,
    };
    let syslog = ListenerStatus {
        name: "0.0.0.0:514".into(),
        address: "0.0.0.0:514".parse().unwrap(),
        cluster: "collectors".into(),
        flows_active: 0,
        flows_max: 0,
        to_backend: ledger(310 * seconds, 200, &[]),
        to_client: LedgerDoc::default(),
        ..listener.clone()
    };
    let dns = ClusterStatus {
        name: CLUSTER.into(),
        balance: "rendezvous".into(),
        mode: "session".into(),
        backends: vec![
            BackendStatus {
                first_answers: Some(AnswerTimesDoc {
                    count: 100,
                    sum_seconds: 0.3,
                    buckets: vec![(0.001, 0), (0.0025, 50), (0.005, 90), (0.01, 100)],
                }),
                configured_weight: Some(1),
                ..backend("10.0.0.1:53", 2, BackendState::Up, 4_200, to / 2, from / 2)
            },
            backend("10.0.0.2:53", 1, BackendState::Up, 2_100, to / 3, from / 3),
            backend("10.0.0.3:53", 1, BackendState::Draining, 310, to / 6, from / 6),
            BackendStatus {
                name: Some("resolver.internal".into()),
                reason: Some("the last probe timed out".into()),
                since_seconds: Some(192.0),
                ..backend("[2001:db8::35]:53", 1, BackendState::Down, 0, 4_000, 3_900)
            },
            BackendStatus {
                reason: Some("3 clients in a row got no answer".into()),
                since_seconds: Some(7.0),
                until_seconds: Some(9.0),
                ..backend("10.0.0.5:53", 1, BackendState::Ejected, 0, 4_000, 3_900)
            },
        ],
        ..ClusterStatus::default()
    };
    let copies = ClusterStatus {
        name: "copies".into(),
        balance: "rendezvous".into(),
        mode: "fan-out".into(),
        backends: vec![backend("192.0.2.20:514", 1, BackendState::Unchecked, 0, seconds, 0)],
        ..ClusterStatus::default()
    };
    let collectors = ClusterStatus {
        name: "collectors".into(),
        balance: "round-robin".into(),
        mode: "one-way".into(),
        backends: vec![
            backend("192.0.2.10:514", 1, BackendState::Up, 960, 310 * seconds, 0),
            BackendStatus {
                backup: true,
                ..backend("192.0.2.11:514", 1, BackendState::Up, 0, 0, 0)
            },
        ],
        ..ClusterStatus::default()
    };
    StatusDocument {
        version: "0.1.0".into(),
        pid: 4_711,
        uptime_seconds: (3 * 86_400 + 4 * 3_600 + seconds) as f64,
        draining: false,
        counters: counters(&[&listener, &syslog]),
        listeners: vec![listener, syslog],
        clusters: vec![dns, collectors, copies],
        process: process(),
        events: vec![event()],
        ..StatusDocument::default()
    }
}

fn process() -> ProcessStatus {
    ProcessStatus {
        host: "lb1.example".into(),
        config: "/etc/flowgate/flowgate.toml".into(),
        now: 1_800_000_060.0,
        last_reload: Some(ReloadStatus {
            at: 1_800_000_000.0,
            ok: false,
            notes: vec!["workers: cannot change".into()],
        }),
        ..ProcessStatus::default()
    }
}

fn event() -> EventDoc {
    EventDoc {
        at: 1_800_000_053.0,
        kind: "ejected".into(),
        subject: "dns/10.0.0.5:53".into(),
        text: "3 clients in a row got no answer; for 16s".into(),
    }
}

fn ledger(forwarded: u64, size: u64, dropped: &[(&str, u64)]) -> LedgerDoc {
    let traffic = |datagrams| TrafficDoc { datagrams, bytes: size * datagrams };
    let dropped =
        dropped.iter().map(|&(reason, datagrams)| (reason.to_owned(), traffic(datagrams)));
    let mut ledger = LedgerDoc {
        forwarded: traffic(forwarded),
        dropped: dropped.collect(),
        ..LedgerDoc::default()
    };
    ledger.received = ledger.forwarded.plus(ledger.dropped_total());
    ledger
}

fn backend(
    address: &str,
    weight: u32,
    state: BackendState,
    flows_active: u64,
    datagrams_to: u64,
    datagrams_from: u64,
) -> BackendStatus {
    BackendStatus {
        address: address.parse().unwrap(),
        name: None,
        weight,
        backup: false,
        state,
        reason: None,
        since_seconds: None,
        until_seconds: None,
        ejections: std::collections::BTreeMap::new(),
        flows_active,
        datagrams_to,
        datagrams_from,
        bytes_to: 80 * datagrams_to,
        bytes_from: 120 * datagrams_from,
        datagrams_dropped: 0,
        first_answers: None,
        configured_weight: None,
    }
}

fn counters(listeners: &[&ListenerStatus]) -> CountersDoc {
    let sum = |read: fn(&LedgerDoc) -> TrafficDoc, unit: fn(TrafficDoc) -> u64| ByDirection {
        to_backend: listeners.iter().map(|listener| unit(read(&listener.to_backend))).sum(),
        to_client: listeners.iter().map(|listener| unit(read(&listener.to_client))).sum(),
    };
    let datagrams: fn(TrafficDoc) -> u64 = |traffic| traffic.datagrams;
    let bytes: fn(TrafficDoc) -> u64 = |traffic| traffic.bytes;
    CountersDoc {
        datagrams_received: sum(|ledger| ledger.received, datagrams),
        datagrams_forwarded: sum(|ledger| ledger.forwarded, datagrams),
        datagrams_dropped: sum(LedgerDoc::dropped_total, datagrams),
        bytes_received: sum(|ledger| ledger.received, bytes),
        bytes_forwarded: sum(|ledger| ledger.forwarded, bytes),
        bytes_dropped: sum(LedgerDoc::dropped_total, bytes),
        ..CountersDoc::default()
    }
}

/// The text of an element with this id in a page as Chromium dumps it.
#[track_caller]
fn text_of<'p>(page: &'p str, id: &str) -> &'p str {
    let (_, rest) = page.split_once(&format!("id=\"{id}\"")).expect(id);
    let (_, rest) = rest.split_once('>').expect(id);
    rest.split_once('<').expect(id).0
}

#[test]
fn the_page_shows_listeners_clusters_backends_and_rates() {
    let Some(page) = World::start().browse(10, &["--dump-dom"]) else { return };
    assert_eq!(text_of(&page, "connection"), "live", "{page}");
    assert_eq!(text_of(&page, "version"), "0.1.0");
    assert_eq!(text_of(&page, "now-backends"), "5");
    assert_eq!(text_of(&page, "bad-backends"), "1 down, 1 ejected");
    assert_eq!(text_of(&page, "sub-backends"), "1 draining, 1 unchecked");
    assert_eq!(text_of(&page, "trouble-about"), "3 in trouble, 1 draining");
    assert_eq!(text_of(&page, "host"), "lb1.example");
    assert_eq!(text_of(&page, "config"), "/etc/flowgate/flowgate.toml");
    assert_eq!(text_of(&page, "reload"), "reload refused 1 min 0 s ago");
    for shown in [
        "0.0.0.0:53",
        "0.0.0.0:514",
        " / 500,000</span>",
        "round-robin",
        "10.0.0.1:53",
        "[2001:db8::35]:53",
        "resolver.internal",
        "backup",
        "data-state=\"draining\"",
        "max_flows",
        "denied",
        "kernel (full buffer, bad checksum)",
        "up 3 d 4 h",
        "the last probe timed out, for 3 min 12 s",
        "3 clients in a row got no answer, for 7 s, 9 s left",
        "workers: cannot change",
        "denied (by configuration)",
        "one-way, no answers",
        "fan-out, a copy to each",
        "ejected</span><span>",
        "title=\"95 % within 7.5 ms\">2.5 ms</td>",
        "title=\"set by an operator; the configuration says 1\">2 (1)</td>",
        // What goes one way makes no flows; of copies each backend gets all, which is no share.
        "<i aria-hidden=\"true\" hidden=\"\" style=\"--part: 0%;\"></i><span>–</span>",
        "<i aria-hidden=\"true\" hidden=\"\" style=\"--part: 0%;\"></i><span>each</span>",
    ] {
        assert!(page.contains(shown), "{shown} is not in {page}");
    }
    let rate = |id| text_of(&page, id).replace(',', "").parse::<f64>().expect(id);
    assert!((9_000.0..20_000.0).contains(&rate("now-to-backend")), "{}", rate("now-to-backend"));
    assert!((7_000.0..15_000.0).contains(&rate("now-to-client")), "{}", rate("now-to-client"));
    assert!(rate("now-dropped") > 0.0);
}

#[test]
fn of_many_backends_those_in_trouble_are_seen_at_once() {
    let start = std::time::Instant::now();
    let many: Handler = Arc::new(move |_| {
        let mut document = document(1_000 + start.elapsed().as_secs());
        let address = |n: u32| format!("10.1.{}.{}:53", n / 250, n % 250);
        let up = |n| backend(&address(n), 1, BackendState::Up, 1, 10, 10);
        let mut backends: Vec<_> = (0..700).map(up).collect();
        backends[650].state = BackendState::Down;
        document.clusters[0].backends = backends;
        Response::Status(document)
    });
    let Some(page) = World::with(many).browse(5, &["--dump-dom"]) else { return };
    // The backend in trouble is listed on top, and is the first of its cluster.
    assert!(page.contains("10.1.2.150:53"), "{page}");
    assert!(page.contains("688 more."), "{page}");
    // What is an equal share of so many can be seen.
    assert!(page.contains("--part: 49.9"), "{page}");
    assert!(!page.contains("10.1.2.149:53"), "{page}");
}

#[test]
fn names_are_shown_and_never_run() {
    let Some(page) = World::start().browse(5, &["--dump-dom"]) else { return };
    assert!(page.contains("dns\\u{1b}[31m\\n&lt;script&gt;document.title="), "{page}");
    assert!(page.contains("\"&gt;&lt;img src=x onerror="), "{page}");
    assert!(page.contains("\\u{202e}"), "{page}");
    assert!(!page.contains('\u{1b}') && !page.contains('\u{202e}'));
    assert!(!page.contains("<img") && !page.contains("<title>taken over"));
    assert!(page.contains("<title>Flowgate · "), "{page}");
}

#[test]
fn nothing_is_loaded_from_elsewhere() {
    let world = World::start();
    let profile = Scratch::new("browser");
    let log = profile.path().join("requests.json");
    let option = format!("--log-net-log={}", log.display());
    let Some(page) = world.browse(5, &["--dump-dom", &option]) else { return };
    assert_eq!(text_of(&page, "connection"), "live");
    let log = std::fs::read_to_string(&log).expect("the log of requests");
    // What the browser asks for by itself has no page as its initiator.
    let origin = format!("http://{}", world.address);
    let initiated = format!("\"initiator\":\"{origin}\"");
    let requests: Vec<_> = log.lines().filter(|line| line.contains(&initiated)).collect();
    assert!(requests.len() >= 2, "the page asks for /status: {requests:?}");
    for request in requests {
        let is_ours = |path: &str| request.contains(&format!("\"url\":\"{origin}{path}\""));
        assert!(is_ours("/status") || is_ours("/history"), "{request}");
    }
}

#[test]
fn a_lost_connection_is_shown() {
    let refusing: Handler = Arc::new(|_| Response::refused("busy"));
    let Some(page) = World::with(refusing).browse(5, &["--dump-dom"]) else { return };
    assert_eq!(text_of(&page, "connection"), "no answer");
    assert!(page.contains("<title>✕ Flowgate</title>"), "{page}");
}

/// A document whose first cluster has so many backends: one is down, one ejected, one unchecked.
fn with_backends(count: u32, seconds: u64) -> StatusDocument {
    let mut document = document(seconds);
    let address = |n: u32| format!("10.1.{}.{}:53", n / 250, n % 250);
    let cluster = &mut document.clusters[0];
    cluster.name = "resolvers".into();
    let mut backends = std::mem::take(&mut cluster.backends);
    let (down, ejected) = (backends.remove(3), backends.remove(3));
    let [named, .., last] = [0, count / 3, count - 1];
    cluster.backends = (0..count)
        .map(|n| {
            let sent = 12 * seconds * u64::from(1 + n % 7);
            match n {
                n if n == named => down.clone(),
                n if n == count / 3 => ejected.clone(),
                n if n == last => backend(&address(n), 1, BackendState::Unchecked, 3, sent, sent),
                n => backend(&address(n), 1, BackendState::Up, 7 + u64::from(n % 9), sent, sent),
            }
        })
        .collect();
    for listener in &mut document.listeners {
        if listener.name == LISTENER {
            (listener.name, listener.cluster) = ("dns".into(), "resolvers".into());
        }
    }
    document
}

/// Takes pictures to look at: `FLOWGATE_SCREENSHOTS=folder cargo test ... -- --ignored`.
#[test]
#[ignore = "writes pictures for people to look at"]
fn pictures() {
    let folder = std::env::var("FLOWGATE_SCREENSHOTS").unwrap_or_else(|_| "/tmp".into());
    for (backends, place, (width, height), is_dark) in [
        (None, "light", (1_280, 1_150), false),
        (None, "phone", (500, 2_400), false),
        (Some(3), "desk", (1_280, 1_500), false),
        (Some(30), "desk", (1_280, 1_700), true),
        (Some(700), "desk", (1_280, 1_700), false),
        (Some(700), "dark", (1_280, 1_700), true),
        (Some(3), "phone", (500, 2_400), true),
        (Some(700), "phone", (500, 3_000), false),
    ] {
        let world = match backends {
            None => World::start(),
            Some(count) => {
                let seconds = AtomicU64::new(600);
                World::with(Arc::new(move |_| {
                    let seconds = seconds.fetch_add(1, Ordering::Relaxed);
                    Response::Status(with_backends(count, seconds))
                }))
            }
        };
        let count = backends.map_or("names".to_owned(), |count| count.to_string());
        let path = Path::new(&folder).join(format!("page-{count}-{place}.png"));
        let size = format!("--window-size={width},{height}");
        let file = format!("--screenshot={}", path.display());
        let scheme = format!("--blink-settings=preferredColorScheme={}", u8::from(!is_dark));
        world.browse(60, &[&size, &file, &scheme]);
        assert!(path.exists(), "no picture");
        eprintln!("wrote {}", path.display());
    }
}
