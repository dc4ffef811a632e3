//! A new process takes over from a running one.

mod crowd;
mod faults;
mod kept;
mod state;

use flowgate_tests::e2e::{Peer, simple_config};
use flowgate_tests::process::Process;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

/// A process between clients and backends, and the address of its listener.
fn start(toml: &str) -> (Process, std::net::SocketAddr) {
    let mut flowgate = Process::run(FLOWGATE, toml);
    let address = flowgate.address();
    (flowgate, address)
}

#[test]
fn a_flow_keeps_its_backend_and_its_upstream_port_and_the_metrics_go_on() {
    let backends = [Peer::v4(), Peer::v4()];
    let toml =
        simple_config("127.0.0.1:0", &[&backends[0], &backends[1]], "balance = \"round-robin\"\n");
    let (mut flowgate, address) = start(&toml);
    let clients: Vec<_> = (0..4).map(|_| Peer::v4()).collect();
    let ask = |number: usize, client: &Peer| {
        client.send_to(b"question", address);
        let from = backends[number % 2].answer(b"answer").from;
        assert_eq!(client.receive().bytes, b"answer");
        from
    };
    let ask_all = || clients.iter().enumerate().map(|(n, c)| ask(n, c)).collect::<Vec<_>>();
    let before = ask_all();

    let first = flowgate.pid();
    let said = flowgate.upgrade(&[]);
    assert!(said.contains("has taken over 5 sockets"), "{said}");
    assert_ne!(flowgate.pid(), first);
    assert_eq!(ask_all(), before);

    // What a backend sends on its own finds its client too.
    backends[0].send_to(b"event", before[2]);
    assert_eq!(clients[2].receive().bytes, b"event");

    flowgate.upgrade(&[]);
    assert_eq!(ask_all(), before);
    // The next new flow goes to the backend whose turn it is.
    let fifth = Peer::v4();
    ask(0, &fifth);

    let status = flowgate.ask_json(&["status"]);
    assert_eq!(status["counters"]["flows_opened"], 5);
    assert_eq!(status["counters"]["datagrams_forwarded"]["to_backend"], 13);
    assert_eq!(status["counters"]["datagrams_forwarded"]["to_client"], 14);
    assert_eq!(status["listeners"][0]["flows_active"], 5);
}
