//! `fast_path`: established flows that the kernel forwards past the sockets, between network
//! namespaces joined by cables. It needs root.

mod churn;
mod load;
mod overtaken;

use flowgate_fastpath::FastPath;
use flowgate_tests::e2e::{Peer, eventually};
use flowgate_tests::netns::Namespace;
use flowgate_tests::process::{ConfigFile, Process, output};
use flowgate_tests::skip::skip;
use serde_json::Value;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");
const SABOTEUR: &str = env!("CARGO_BIN_EXE_flowgate-saboteur");

/// A client at 10.8.0.2 and fd08::2, a balancer between at 10.8.0.1 and 10.9.0.1, and backends at
/// 10.9.0.2 and fd09::2.
struct Network {
    client: Namespace,
    balancer: Namespace,
    backend: Namespace,
}

impl Network {
    fn new() -> Option<Self> {
        if let Err(error) = FastPath::load() {
            return skip(&format!("the kernel path: {error}"));
        }
        let [client, balancer, backend] = Namespace::between()?;
        Some(Self { client, balancer, backend })
    }

    fn backend(&self, address: &str) -> Peer {
        self.backend.inside(|| Peer::bind(address))
    }

    fn client(&self, address: &str) -> Peer {
        self.client.inside(|| Peer::bind(address))
    }

    fn run(&self, toml: &str) -> Process {
        self.run_with(toml, &[])
    }

    fn run_with(&self, toml: &str, environment: &[(&str, &str)]) -> Process {
        self.balancer.inside(|| {
            let mut process = Process::run_with(FLOWGATE, toml, environment);
            process.line("started");
            process
        })
    }
}

fn config(listen: &str, backends: &[&str], more: &str) -> String {
    format!(
        "[[listener]]\nname = \"it\"\naddress = {listen:?}\ncluster = \"test\"\nfast_path = \"tc\"\n\
         [cluster.test]\nbackends = {backends:?}\n{more}\n"
    )
}

/// What the status says of the one listener.
fn listener(process: &Process) -> Value {
    process.ask_json(&["status"])["listeners"][0].clone()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// How many datagrams the kernel has forwarded: to the backend, and to the client.
fn by_kernel(listener: &Value) -> (u64, u64) {
    let datagrams = &listener["fast_path"]["datagrams"];
    (number(&datagrams["to_backend"]), number(&datagrams["to_client"]))
}

/// Asserts that all that came was sent on, so many datagrams each way.
#[track_caller]
fn assert_ledger(listener: &Value, round_trips: u64) {
    for direction in ["to_backend", "to_client"] {
        let ledger = &listener[direction];
        let figures = ["received", "forwarded"].map(|part| number(&ledger[part]["datagrams"]));
        assert_eq!(figures, [round_trips; 2], "{direction}: {listener:#}");
    }
}

/// A client, and whoever may answer it.
struct Exchange<'a> {
    client: &'a Peer,
    listen: &'a str,
    round_trips: u64,
}

impl Exchange<'_> {
    /// One question and its answer, by this backend.
    #[track_caller]
    fn once(&mut self, backend: &Peer) {
        let question = format!("question {}", self.round_trips).into_bytes();
        let answer = format!("the answer to {}", self.round_trips).into_bytes();
        self.client.send_to(&question, self.listen.parse().unwrap());
        assert_eq!(backend.answer(&answer).bytes, question);
        let received = self.client.receive();
        assert_eq!((received.bytes, received.from), (answer, self.listen.parse().unwrap()));
        self.round_trips += 1;
    }

    /// Goes on until the kernel has forwarded some more, both ways.
    #[track_caller]
    fn until_offloaded(&mut self, backend: &Peer, process: &Process) {
        let before = by_kernel(&listener(process));
        eventually("the kernel forwards the flow", || {
            for _ in 0..20 {
                self.once(backend);
            }
            let now = by_kernel(&listener(process));
            (now.0 >= before.0 + 10 && now.1 >= before.1 + 10).then_some(())
        });
    }
}

fn goes_on_past_the_sockets(listen: &str, client: &str, backend: &str) {
    let Some(network) = Network::new() else { return };
    let server = network.backend(backend);
    let process = network.run(&config(listen, &[backend], ""));
    let client = network.client(client);
    let mut exchange = Exchange { client: &client, listen, round_trips: 0 };
    exchange.until_offloaded(&server, &process);
    // Every scrape tells of every datagram.
    for _ in 0..5 {
        for _ in 0..10 {
            exchange.once(&server);
        }
        let listener = listener(&process);
        assert_ledger(&listener, exchange.round_trips);
        assert_eq!(number(&listener["fast_path"]["flows"]), 1);
        assert_eq!(number(&listener["flows_opened"]), 1);
    }
    let flows = process.ask_json(&["flows"]);
    let flow = &flows["flows"][0];
    assert_eq!(flow["fast_path"], true, "{flows:#}");
    assert_eq!(number(&flow["to_backend"]["datagrams"]), exchange.round_trips);
    assert_eq!(number(&flow["to_client"]["datagrams"]), exchange.round_trips);
    let status = process.ask_json(&["status"]);
    let of_backend = &status["clusters"][0]["backends"][0];
    assert_eq!(number(&of_backend["datagrams_to"]), exchange.round_trips);
    assert_eq!(number(&of_backend["datagrams_from"]), exchange.round_trips);
}

#[test]
fn an_established_flow_goes_on_past_the_sockets_and_every_datagram_is_counted() {
    goes_on_past_the_sockets("10.8.0.1:7000", "10.8.0.2:0", "10.9.0.2:9000");
}

#[test]
fn so_does_one_of_ipv6() {
    goes_on_past_the_sockets("[fd08::1]:7000", "[fd08::2]:0", "[fd09::2]:9000");
}

#[test]
fn one_at_a_wildcard_does_too() {
    let Some(network) = Network::new() else { return };
    let server = network.backend("10.9.0.2:9000");
    let process = network.run(&config("[::]:7000", &["10.9.0.2:9000"], ""));
    let client = network.client("10.8.0.2:0");
    let mut exchange = Exchange { client: &client, listen: "10.8.0.1:7000", round_trips: 0 };
    exchange.until_offloaded(&server, &process);
    assert_ledger(&listener(&process), exchange.round_trips);
}

#[test]
fn a_backend_that_is_removed_gets_nothing_once_the_reload_is_acknowledged() {
    let Some(network) = Network::new() else { return };
    let (one, two) = ("10.9.0.2:9001", "10.9.0.2:9002");
    let servers = [one, two].map(|address| network.backend(address));
    let listen = "10.8.0.1:7000";
    let process = network.run(&config(listen, &[one], ""));
    let client = network.client("10.8.0.2:0");
    let mut exchange = Exchange { client: &client, listen, round_trips: 0 };
    for round in 0..6 {
        let (now, next) = (round % 2, (round + 1) % 2);
        exchange.until_offloaded(&servers[now], &process);
        process.reload(&config(listen, &[[one, two][next]], ""));
        for _ in 0..50 {
            exchange.once(&servers[next]);
        }
        assert_eq!(servers[now].receive_soon(), None, "after the acknowledgement");
        assert_ledger(&listener(&process), exchange.round_trips);
    }
    assert_eq!(number(&listener(&process)["flows_opened"]), 1, "the flow has moved");
}

#[test]
fn a_flow_comes_back_to_the_kernel_after_a_reload() {
    let Some(network) = Network::new() else { return };
    let server = network.backend("10.9.0.2:9000");
    let listen = "10.8.0.1:7000";
    let process = network.run(&config(listen, &["10.9.0.2:9000"], ""));
    let client = network.client("10.8.0.2:0");
    let mut exchange = Exchange { client: &client, listen, round_trips: 0 };
    exchange.until_offloaded(&server, &process);
    process.reload(&config(listen, &["10.9.0.2:9000"], "idle_timeout = \"50s\""));
    exchange.until_offloaded(&server, &process);
    // What the configuration forbids is recalled.
    let without = config(listen, &["10.9.0.2:9000"], "").replace("\"tc\"", "\"off\"");
    process.reload(&without);
    for _ in 0..50 {
        exchange.once(&server);
    }
    let listener = listener(&process);
    assert_ledger(&listener, exchange.round_trips);
    assert_eq!(listener["fast_path"], Value::Null);
    assert_eq!(process.ask_json(&["flows"])["flows"][0]["fast_path"], false);
}

#[test]
fn a_reload_that_allows_only_shorter_datagrams_reaches_the_kernel_path() {
    let Some(network) = Network::new() else { return };
    let server = network.backend("10.9.0.2:9000");
    let listen = "10.8.0.1:7000";
    let toml = config(listen, &["10.9.0.2:9000"], "");
    let process = network.run(&toml);
    let client = network.client("10.8.0.2:0");
    let mut exchange = Exchange { client: &client, listen, round_trips: 0 };
    exchange.until_offloaded(&server, &process);
    process.reload(&toml.replace("[cluster", "max_datagram_size = 100\n[cluster"));
    exchange.until_offloaded(&server, &process);
    client.send_to(&[0; 101], listen.parse().unwrap());
    eventually("the longer one is dropped", || {
        let dropped = &listener(&process)["to_backend"]["dropped"]["too_large"]["datagrams"];
        (*dropped == 1).then_some(())
    });
    exchange.once(&server);
}

#[test]
fn a_backend_that_goes_down_loses_its_flows_at_once() {
    let Some(network) = Network::new() else { return };
    let (one, two) = ("10.9.0.2:9001", "10.9.0.2:9002");
    let servers = [one, two].map(|address| network.backend(address));
    let listen = "10.8.0.1:7000";
    // A TCP port tells whether the backend is up.
    let up = |port: u16| {
        let address = format!("10.9.0.2:{port}");
        network.backend.inside(|| std::net::TcpListener::bind(&address).expect("a TCP port"))
    };
    let mut probes = [Some(up(9001)), Some(up(9002))];
    let health = "[cluster.test.health]\nprobe = \"tcp\"\ninterval = \"2s\"\n\
                  timeout = \"2s\"\nfall = 1\nrise = 1\n";
    let process = network.run(&config(listen, &[one, two], health));
    let client = network.client("10.8.0.2:0");
    client.send_to(b"whose?", listen.parse().unwrap());
    let its = eventually("a backend has the flow", || {
        servers.iter().position(|server| server.receive_soon().is_some())
    });
    let mut exchange = Exchange { client: &client, listen, round_trips: 0 };
    exchange.until_offloaded(&servers[its], &process);
    drop(probes[its].take());
    eventually("the backend is down", || {
        let status = process.ask_json(&["status"]);
        (status["clusters"][0]["backends"][its]["state"] == "down").then_some(())
    });
    for _ in 0..50 {
        exchange.once(&servers[1 - its]);
    }
    assert_eq!(servers[its].receive_soon(), None);
    assert_eq!(number(&listener(&process)["flows_opened"]), 1);
}

#[test]
fn a_flow_that_goes_on_in_the_kernel_is_not_idle_and_one_that_does_not_is() {
    let Some(network) = Network::new() else { return };
    let server = network.backend("10.9.0.2:9000");
    let listen = "10.8.0.1:7000";
    let more = "idle_timeout = \"3s\"";
    let process = network.run(&config(listen, &["10.9.0.2:9000"], more));
    let client = network.client("10.8.0.2:0");
    let mut exchange = Exchange { client: &client, listen, round_trips: 0 };
    exchange.until_offloaded(&server, &process);
    let began = std::time::Instant::now();
    while began.elapsed() < std::time::Duration::from_secs(7) {
        exchange.once(&server);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(number(&listener(&process)["flows_opened"]), 1, "it was never closed");
    let closed = eventually("the flow is closed as idle", || {
        let listener = listener(&process);
        (listener["flows_closed"]["idle"] == 1).then_some(listener)
    });
    assert_eq!(number(&closed["fast_path"]["flows"]), 0);
    assert_ledger(&closed, exchange.round_trips);
    // The next datagram is another flow's, by the sockets.
    exchange.once(&server);
    assert_eq!(number(&listener(&process)["flows_opened"]), 2);
}

#[test]
fn the_log_of_flows_tells_of_every_datagram() {
    let Some(network) = Network::new() else { return };
    let server = network.backend("10.9.0.2:9000");
    let listen = "10.8.0.1:7000";
    let log = "drain_timeout = \"0s\"\n[log]\nflows = \"stderr\"\n";
    let toml = log.to_owned() + &config(listen, &["10.9.0.2:9000"], "");
    let mut process = network.run(&toml);
    let client = network.client("10.8.0.2:0");
    let mut exchange = Exchange { client: &client, listen, round_trips: 0 };
    exchange.until_offloaded(&server, &process);
    // It ends with datagrams that nobody has asked for.
    for _ in 0..100 {
        exchange.once(&server);
    }
    process.signal(nix::sys::signal::Signal::SIGTERM);
    let line = process.line("\"backend\"");
    let start = line.find('{').expect("JSON");
    let record: Value = serde_json::from_str(&line[start..]).expect("JSON");
    assert_eq!(number(&record["datagrams_to_backend"]), exchange.round_trips, "{record:#}");
    assert_eq!(number(&record["datagrams_to_client"]), exchange.round_trips, "{record:#}");
}

#[test]
fn an_upgrade_loses_nothing_and_the_flow_comes_back_to_the_kernel() {
    let Some(network) = Network::new() else { return };
    let server = network.backend("10.9.0.2:9000");
    let listen = "10.8.0.1:7000";
    let mut process = network.run(&config(listen, &["10.9.0.2:9000"], ""));
    let client = network.client("10.8.0.2:0");
    let mut exchange = Exchange { client: &client, listen, round_trips: 0 };
    for _ in 0..3 {
        exchange.until_offloaded(&server, &process);
        std::thread::scope(|scope| {
            let upgrade = scope.spawn(|| process.upgrade(&[]));
            while !upgrade.is_finished() {
                exchange.once(&server);
            }
        });
        assert_ledger(&listener(&process), exchange.round_trips);
    }
    exchange.until_offloaded(&server, &process);
    let listener = listener(&process);
    assert_ledger(&listener, exchange.round_trips);
    assert_eq!(number(&listener["flows_opened"]), 1);
}

#[test]
fn the_kernel_goes_on_while_nobody_serves_and_a_new_process_hangs() {
    let Some(network) = Network::new() else { return };
    let server = network.backend("10.9.0.2:9000");
    let listen = "10.8.0.1:7000";
    let toml = config(listen, &["10.9.0.2:9000"], "");
    let environment = [("SABOTAGE", "hang@holding"), ("SABOTAGE_PROGRAM", FLOWGATE)];
    let mut process = network.run_with(&toml, &environment);
    let client = network.client("10.8.0.2:0");
    let mut exchange = Exchange { client: &client, listen, round_trips: 0 };
    exchange.until_offloaded(&server, &process);
    let by_sockets = |listener: &Value| {
        let received =
            ["to_backend", "to_client"].map(|direction| &listener[direction]["received"]);
        let received: u64 = received.iter().map(|traffic| number(&traffic["datagrams"])).sum();
        let (to_backend, to_client) = by_kernel(listener);
        received - to_backend - to_client
    };
    let before = by_sockets(&listener(&process));
    std::thread::scope(|scope| {
        let socket = process.control_socket();
        let upgrade = scope.spawn(move || {
            output(FLOWGATE, &["upgrade", "--binary", SABOTEUR, "--socket", &socket])
        });
        while !upgrade.is_finished() {
            exchange.once(&server);
        }
        let output = upgrade.join().expect("an answer");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("did not answer in time"), "{said}");
    });
    let after = listener(&process);
    assert_ledger(&after, exchange.round_trips);
    assert_eq!(by_sockets(&after), before, "some waited in the sockets");
    // The old process goes on, and a good one takes over from it.
    process.upgrade(&["--binary", FLOWGATE]);
    exchange.until_offloaded(&server, &process);
    assert_ledger(&listener(&process), exchange.round_trips);
}

#[test]
fn a_process_that_is_killed_leaves_nothing_behind() {
    let Some(network) = Network::new() else { return };
    let server = network.backend("10.9.0.2:9000");
    let listen = "10.8.0.1:7000";
    let toml = config(listen, &["10.9.0.2:9000"], "");
    let mut process = network.run(&toml);
    let client = network.client("10.8.0.2:0");
    let mut exchange = Exchange { client: &client, listen, round_trips: 0 };
    exchange.until_offloaded(&server, &process);
    process.signal(nix::sys::signal::Signal::SIGKILL);
    process.wait();
    client.send_to(b"nobody forwards this", listen.parse().unwrap());
    assert_eq!(server.receive_soon(), None);
    // The next one begins as if nothing had been.
    let process = network.run(&toml);
    let mut exchange = Exchange { client: &client, listen, round_trips: 0 };
    exchange.until_offloaded(&server, &process);
    assert_ledger(&listener(&process), exchange.round_trips);
}

#[test]
fn packets_follow_a_route_that_changes() {
    let Some(network) = Network::new() else { return };
    // The backend has a second address, by another way: a second cable.
    let (balancer, backend) = (&network.balancer, &network.backend);
    balancer.ip(&format!("link add spare type veth peer name other netns {}", backend.name()));
    for (namespace, end, number) in [(balancer, "spare", 1), (backend, "other", 2)] {
        namespace.ip(&format!("link set {end} addrgenmode none"));
        namespace.ip(&format!("link set {end} up"));
        namespace.ip(&format!("address add 10.7.0.{number}/24 dev {end}"));
    }
    backend.ip("address add 10.6.0.1/32 dev lo");
    balancer.ip("route add 10.6.0.1/32 via 10.9.0.2");
    let server = network.backend("10.6.0.1:9000");
    let listen = "10.8.0.1:7000";
    let process = network.run(&config(listen, &["10.6.0.1:9000"], ""));
    let client = network.client("10.8.0.2:0");
    let mut exchange = Exchange { client: &client, listen, round_trips: 0 };
    exchange.until_offloaded(&server, &process);
    balancer.ip("route replace 10.6.0.1/32 via 10.7.0.2 src 10.9.0.1");
    // The way of before is a dead end.
    balancer.ip("link set one down");
    backend.ip("route replace 10.9.0.1/32 via 10.7.0.1");
    eventually("the flow goes on by the other way", || {
        client.send_to(b"by which way?", listen.parse().unwrap());
        server.receive_soon().filter(|question| question.bytes == b"by which way?")
    });
    // Those that waited for the way may come late.
    while server.receive_soon().is_some() {}
    exchange.until_offloaded(&server, &process);
}

#[test]
fn what_cannot_be_is_refused_by_name_and_told_where_it_is_automatic() {
    let toml = config("127.0.0.1:0", &["127.0.0.1:9"], "");
    for (value, says) in [("\"tc\"", "loopback"), ("\"xdp\"", "no program for XDP")] {
        let file = ConfigFile::new(&toml.replace("\"tc\"", value));
        let refused = output(FLOWGATE, &["check", file.path()]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains(says), "{said}");
    }
    let counts = config("192.0.2.1:7000", &["192.0.2.9:9"], "requests = 3");
    let file = ConfigFile::new(&counts);
    let refused = output(FLOWGATE, &["check", file.path()]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("counts requests"), "{said}");

    let mut process = Process::run(FLOWGATE, &toml.replace("\"tc\"", "\"auto\""));
    process.line("no kernel path");
    process.line("started");
    let path = listener(&process)["fast_path"].clone();
    assert_eq!(path["mode"], "auto");
    assert!(path["reason"].as_str().is_some_and(|why| why.contains("loopback")), "{path:#}");
}
