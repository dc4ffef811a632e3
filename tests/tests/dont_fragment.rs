//! Whether what is too long for a link leaves in fragments, or not at all (DF).

use std::net::SocketAddr;

use flowgate_tests::e2e::{Peer, eventually, pattern};
use flowgate_tests::netns::Namespace;
use flowgate_tests::process::Process;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

/// Longer than the link of the test takes in one packet.
const LONG: usize = 2_000;

fn config(listener: &str, backend: SocketAddr, dont_fragment: bool, more: &str) -> String {
    format!(
        "[[listener]]\naddress = {listener:?}\ncluster = \"test\"\n\
         dont_fragment = {dont_fragment}\n\
         [cluster.test]\nbackends = [\"{backend}\"]\n{more}\n"
    )
}

/// How many datagrams were too long to be sent, of those to backends and those to clients.
fn too_long(flowgate: &Process) -> [u64; 2] {
    let status = flowgate.ask_json(&["status"]);
    ["to_backend", "to_client"].map(|direction| {
        let dropped = &status["listeners"][0][direction]["dropped"]["message_size"];
        dropped["datagrams"].as_u64().unwrap_or(0)
    })
}

/// Links of loopback that take 1,500 bytes at once, as Ethernet does.
fn ethernet() -> Option<Namespace> {
    let namespace = Namespace::new()?;
    namespace.ip("link set lo mtu 1500");
    Some(namespace)
}

#[test]
fn what_does_not_fit_is_lost_both_ways_and_counted_and_a_reload_allows_it_again() {
    let Some(namespace) = ethernet() else { return };
    for (listener, ip) in
        [("127.0.0.1:0", "127.0.0.1"), ("[::]:0", "127.0.0.1"), ("[::1]:0", "[::1]")]
    {
        for upstream in ["per-flow", "shared"] {
            namespace.inside(|| {
                let more = format!("upstream = {upstream:?}");
                let (client, backend) =
                    (Peer::bind(&format!("{ip}:0")), Peer::bind(&format!("{ip}:0")));
                let config = |never| config(listener, backend.address(), never, &more);
                let mut flowgate = Process::run(FLOWGATE, &config(true));
                let port = flowgate.address().port();
                let to = SocketAddr::new(client.address().ip(), port);

                let flow = client.is_served_by(to, &backend);
                client.send_to(&pattern(LONG, 1), to);
                client.send_to(b"short", to);
                assert_eq!(backend.receive().bytes, b"short", "{listener} {upstream}");
                backend.send_to(&pattern(LONG, 2), flow);
                backend.send_to(b"short", flow);
                assert_eq!(client.receive().bytes, b"short", "{listener} {upstream}");
                eventually("both are counted", || (too_long(&flowgate) == [1, 1]).then_some(()));

                flowgate.reload(&config(false));
                client.send_to(&pattern(LONG, 3), to);
                assert!(backend.receive().bytes == pattern(LONG, 3));
                backend.send_to(&pattern(LONG, 4), flow);
                assert!(client.receive().bytes == pattern(LONG, 4));
                flowgate.reload(&config(true));
                client.send_to(&pattern(LONG, 5), to);
                backend.send_to(&pattern(LONG, 6), flow);
                eventually("it holds again", || (too_long(&flowgate) == [2, 2]).then_some(()));
            });
        }
    }
}

#[test]
fn nobody_is_blamed_for_it_and_an_upgrade_knows_it() {
    let Some(namespace) = ethernet() else { return };
    namespace.inside(|| {
        let [client, backend] = [Peer::v4(), Peer::v4()];
        let more = "health = { passive = true }";
        let mut flowgate =
            Process::run(FLOWGATE, &config("127.0.0.1:0", backend.address(), true, more));
        let to = flowgate.address();
        let flow = client.is_served_by(to, &backend);
        (0..20).for_each(|salt| client.send_to(&pattern(LONG, salt), to));
        eventually("all are counted", || (too_long(&flowgate) == [20, 0]).then_some(()));
        flowgate.upgrade(&[]);
        client.send_to(&pattern(LONG, 0), to);
        backend.send_to(&pattern(LONG, 0), flow);
        eventually("it holds", || (too_long(&flowgate) == [21, 1]).then_some(()));
        // Of a new flow, too.
        let another = Peer::v4();
        another.is_served_by(to, &backend);
        another.send_to(&pattern(LONG, 0), to);
        eventually("it holds for all", || (too_long(&flowgate) == [22, 1]).then_some(()));
        let status = flowgate.ask_json(&["status"]);
        assert_eq!(status["clusters"][0]["backends"][0]["state"], "up", "{status}");
    });
}

#[test]
fn copies_and_what_nobody_answers_are_not_cut_either() {
    let Some(namespace) = ethernet() else { return };
    for mode in ["one-way", "fan-out"] {
        namespace.inside(|| {
            let [client, backend] = [Peer::v4(), Peer::v4()];
            let more = format!("mode = {mode:?}");
            let mut flowgate =
                Process::run(FLOWGATE, &config("127.0.0.1:0", backend.address(), true, &more));
            let to = flowgate.address();
            client.send_to(&pattern(LONG, 1), to);
            client.send_to(b"short", to);
            assert_eq!(backend.receive().bytes, b"short", "{mode}");
        });
    }
}
