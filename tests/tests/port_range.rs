//! Listeners with a range of ports: each port is served, and all of them are one listener.

use std::net::SocketAddr;
use std::time::Instant;

use flowgate_tests::e2e::{PATIENCE, Peer, own_loopback};
use flowgate_tests::echo_server::EchoServer;
use flowgate_tests::process::{ConfigFile, Process, output};
use flowgate_tests::skip::lacks;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

fn config(address: &str, ports: &str, listener: &str, cluster: &str) -> String {
    format!(
        "[[listener]]\nname = \"media\"\naddress = \"{address}:{ports}\"\ncluster = \"relays\"\n{listener}\n\
         [cluster.relays]\n{cluster}\n"
    )
}

#[test]
fn a_thousand_ports_are_one_listener_and_keep_flows_at_reload_and_upgrade() {
    if lacks("upgrades") {
        return;
    }
    let (address, backend) = (own_loopback(), Peer::v4());
    let cluster = format!("backends = [\"{}\"]", backend.address());
    let toml = config(&address, "20000-20999", "max_flows = 5000", &cluster);
    let start = Instant::now();
    let mut flowgate = Process::run(FLOWGATE, &toml);
    let line = flowgate.line("listening");
    assert!(line.contains(&format!("address={address}:20000-20999")), "{line}");
    flowgate.line("started");
    println!("1,000 ports are served after {:?}", start.elapsed());

    let at = |port: u16| SocketAddr::new(address.parse().unwrap(), port);
    let ports = [20_000, 20_001, 20_500, 20_999];
    let clients: Vec<Peer> = ports.iter().map(|_| Peer::v4()).collect();
    let ask_all = || -> Vec<SocketAddr> {
        let each = clients.iter().zip(ports);
        each.map(|(client, port)| client.is_served_by(at(port), &backend)).collect()
    };
    let before = ask_all();
    let status = flowgate.ask_json(&["status"]);
    let listeners = status["listeners"].as_array().expect("listeners");
    assert_eq!(listeners.len(), 1);
    assert_eq!(
        (&listeners[0]["name"], &listeners[0]["flows_active"]),
        (&"media".into(), &4.into())
    );
    assert_eq!(listeners[0]["flows_max"], 5000);
    assert_eq!(listeners[0]["address"], format!("{address}:20000-20999"));
    let table = flowgate.ask(&["status"]);
    let table = String::from_utf8_lossy(&table.stdout);
    assert!(table.contains(&format!(" {address}:20000-20999 ")), "{table}");
    assert_eq!(status["clusters"][0]["backends"][0]["datagrams_to"], 4);

    flowgate.reload(&toml.replace("max_flows = 5000", "max_flows = 4000"));
    assert_eq!(ask_all(), before);
    flowgate.upgrade(&[]);
    assert_eq!(ask_all(), before);
    let status = flowgate.ask_json(&["status"]);
    assert_eq!(status["listeners"][0]["flows_max"], 4000);
    assert_eq!(status["listeners"][0]["flows_active"], 4);
    assert_eq!(status["clusters"][0]["backends"][0]["datagrams_to"], 12);

    let explained = flowgate.ask(&["explain", "--live", "192.0.2.1:4000"]);
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(explained.contains(&format!(" on {address}:20000-20999\n")), "{explained}");

    // The range ends where it says: the next port is free.
    Peer::bind(&format!("{address}:21000"));
}

/// A hundred ports before a server that answers all, and how many flows they have, which is never more
/// than they may.
struct Hundred {
    flowgate: Process,
    address: String,
    max_flows: u64,
    _server: EchoServer,
}

impl Hundred {
    fn start(workers: u32, max_flows: u64) -> Self {
        let (address, server) = (own_loopback(), EchoServer::start("127.0.0.1:0", |_| true));
        let cluster = format!("backends = [\"{}\"]", server.address());
        let toml = config(&address, "22000-22099", &format!("max_flows = {max_flows}"), &cluster);
        let mut flowgate = Process::run(FLOWGATE, &format!("workers = {workers}\n{toml}"));
        flowgate.line("started");
        Self { flowgate, address, max_flows, _server: server }
    }

    fn at(&self, place: u16) -> SocketAddr {
        SocketAddr::new(self.address.parse().unwrap(), 22_000 + place)
    }

    fn flows(&self) -> u64 {
        let status = self.flowgate.ask_json(&["status"]);
        let flows = status["listeners"][0]["flows_active"].as_u64().expect("a number");
        assert!(flows <= self.max_flows, "{flows} flows");
        flows
    }

    fn refused(&self) -> u64 {
        let status = self.flowgate.ask_json(&["status"]);
        let dropped = &status["listeners"][0]["to_backend"]["dropped"]["max_flows"];
        dropped["datagrams"].as_u64().unwrap_or(0)
    }

    /// Whether a client is answered that asks once.
    fn answers(&self, client: &Peer, place: u16) -> bool {
        client.send_to(b"question", self.at(place));
        client.receive_soon().is_some()
    }
}

#[test]
fn one_port_may_have_all_the_flows_of_a_range_and_then_makes_room_for_the_others() {
    let mut range = Hundred::start(1, 200);
    let clients: Vec<Peer> = (0..200).map(|_| Peer::v4()).collect();
    for client in &clients {
        client.send_to(b"question", range.at(7));
        client.receive();
    }
    assert_eq!(range.flows(), 200);
    // As long as all are in use nobody goes for a newcomer, at that port or at another.
    clients.iter().for_each(|client| client.send_to(b"again", range.at(7)));
    let newcomers: Vec<Peer> = (0..20).map(|_| Peer::v4()).collect();
    newcomers[0].send_to(b"question", range.at(8));
    newcomers[1].send_to(b"question", range.at(7));
    let start = Instant::now();
    while range.refused() < 2 {
        assert!(start.elapsed() < PATIENCE, "{} were refused", range.refused());
    }
    assert_eq!(range.flows(), 200);
    if !lacks("upgrades") {
        range.flowgate.upgrade(&[]);
    }
    // Then each newcomer is served at a port of its own, by its second datagram or soon after.
    for (place, newcomer) in (20..).zip(&newcomers) {
        let start = Instant::now();
        while !range.answers(newcomer, place) {
            assert!(start.elapsed() < PATIENCE, "no room at port {place}");
            range.flows();
        }
    }
    assert!(range.flows() >= 180);
}

#[test]
fn two_workers_have_half_of_the_flows_of_a_range_each_at_whatever_port() {
    let range = Hundred::start(2, 50);
    let clients: Vec<Peer> = (0..200).map(|_| Peer::v4()).collect();
    clients.iter().for_each(|client| client.send_to(b"question", range.at(3)));
    let start = Instant::now();
    while range.flows() < 50 {
        assert!(start.elapsed() < PATIENCE, "{} flows", range.flows());
    }
}

#[test]
fn datagrams_go_to_the_port_that_they_came_to_if_that_is_wanted() {
    if lacks("upgrades") {
        return;
    }
    let (address, host) = (own_loopback(), own_loopback());
    let relays: Vec<Peer> =
        (30_000..30_003).map(|port| Peer::bind(&format!("{host}:{port}"))).collect();
    let cluster = format!("backends = [\"{host}:9\"]");
    let toml = config(&address, "30000-30002", "backend_port = \"same\"", &cluster);
    let mut flowgate = Process::run(FLOWGATE, &toml);
    flowgate.line("started");
    let clients: Vec<Peer> = relays.iter().map(|_| Peer::v4()).collect();
    let ask_all = || -> Vec<SocketAddr> {
        let each = clients.iter().zip(&relays);
        let to = |relay: &Peer| SocketAddr::new(address.parse().unwrap(), relay.address().port());
        each.map(|(client, relay)| client.is_served_by(to(relay), relay)).collect()
    };
    let before = ask_all();
    let status = flowgate.ask_json(&["status"]);
    let backend = &status["clusters"][0]["backends"][0];
    assert_eq!(backend["address"], format!("{host}:9"));
    assert_eq!((&backend["datagrams_to"], &backend["state"]), (&3.into(), &"up".into()));
    flowgate.upgrade(&[]);
    assert_eq!(ask_all(), before);
    // What is said of the backend is said of it at every port.
    assert!(flowgate.ask(&["drain", &format!("relays/{host}:9")]).status.success());
    let status = flowgate.ask_json(&["status"]);
    assert_eq!(status["clusters"][0]["backends"][0]["state"], "draining");
    assert_eq!(ask_all(), before);
}

#[test]
fn a_reload_changes_the_range_of_one_address() {
    let (address, host) = (own_loopback(), own_loopback());
    let (backend, relay) = (Peer::v4(), Peer::bind(&format!("{host}:31003")));
    let cluster = format!("backends = [\"{}\"]", backend.address());
    let mut flowgate = Process::run(FLOWGATE, &config(&address, "31000-31002", "", &cluster));
    flowgate.line("started");
    let at = |port| SocketAddr::new(address.parse().unwrap(), port);
    Peer::v4().is_served_by(at(31_001), &backend);
    // The same ports and more, then some of them and others.
    for (ports, port) in [("31000-31004", 31_000), ("31003-31008", 31_003)] {
        flowgate.reload(&config(&address, ports, "", &cluster));
        Peer::v4().is_served_by(at(port), &backend);
    }
    let cluster = format!("backends = [\"{host}:9\"]");
    flowgate.reload(&config(&address, "31003-31008", "backend_port = \"same\"", &cluster));
    Peer::v4().is_served_by(at(31_003), &relay);
}

#[test]
fn ranges_that_overlap_or_make_no_sense_are_refused() {
    let refused = |toml: &str| {
        let file = ConfigFile::new(toml);
        let output = output(FLOWGATE, &["check", file.path()]);
        assert_eq!(output.status.code(), Some(1), "{toml}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let cluster = "backends = [\"10.0.0.1:53\", \"10.0.0.1:54\"]";
    for ports in ["20000-19999", "20000-20000", "0-9", "20000-30000", "20000-"] {
        let said = refused(&config("127.0.0.1", ports, "", cluster));
        assert!(said.contains("listener[0].address: found"), "{ports}: {said}");
    }
    let two = format!(
        "[[listener]]\naddress = \"127.0.0.1:20005\"\ncluster = \"relays\"\n{}",
        config("127.0.0.1", "20000-20009", "", cluster)
    );
    assert!(refused(&two).contains("listener[1].address: found"));
    for (listener, cluster, key) in [
        ("accept = \"connected\"", cluster, "accept"),
        ("backend_port = \"same\"", cluster, "backend_port"),
        (
            "backend_port = \"same\"",
            "balance = \"maglev\"\nbackends = [\"10.0.0.1:53\"]",
            "backend_port",
        ),
    ] {
        let said = refused(&config("127.0.0.1", "20000-20009", listener, cluster));
        assert!(said.contains(&format!("listener[0].{key}: found")), "{said}");
    }
    let single = "backends = [\"10.0.0.1:53\"]";
    assert!(
        refused(&config("127.0.0.1", "20000", "backend_port = \"same\"", single)).contains("range")
    );
}
