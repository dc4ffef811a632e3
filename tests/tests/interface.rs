//! Listeners that take the datagrams of one interface only, and groups that are joined there. They
//! need root and network namespaces.

use std::net::SocketAddr;

use flowgate_tests::e2e::Peer;
use flowgate_tests::netns::Namespace;
use flowgate_tests::process::{ConfigFile, Process, output};

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

fn listener(name: &str, address: &str, more: &str) -> String {
    format!("[[listener]]\nname = {name:?}\naddress = {address:?}\ncluster = {name:?}\n{more}\n")
}

fn cluster(name: &str, backend: &Peer) -> String {
    format!("[cluster.{name}]\nbackends = [\"{}\"]\n", backend.address())
}

/// Asks from a client, and has the answer come from where it asked.
#[track_caller]
fn is_served(client: &Peer, to: SocketAddr, backend: &Peer) {
    client.send_to(b"question", to);
    assert_eq!(backend.answer(b"answer").bytes, b"question");
    let answer = client.receive();
    assert_eq!((&answer.bytes[..], answer.from), (&b"answer"[..], to));
}

#[test]
fn a_listener_takes_what_comes_by_its_interface_and_another_what_comes_by_its_own() {
    let Some([far, near]) = Namespace::pair() else { return };
    let (one, two) = near.inside(|| (Peer::v4(), Peer::v4()));
    let toml = |cable: &str, loopback: &str| {
        listener("cable", "0.0.0.0:5300", &format!("interface = {cable:?}"))
            + &listener("loopback", "0.0.0.0:5300", &format!("interface = {loopback:?}"))
            + &cluster("cable", &one)
            + &cluster("loopback", &two)
    };
    let mut flowgate = near.inside(|| Process::run(FLOWGATE, &toml("two", "lo")));
    flowgate.line("started");
    let outside = far.inside(|| Peer::bind("0.0.0.0:0"));
    let inside = near.inside(|| Peer::bind("0.0.0.0:0"));
    let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 5_300);
    let all_are_served = |by_cable: &Peer, by_loopback: &Peer| {
        is_served(&outside, at("10.9.0.2"), by_cable);
        is_served(&inside, at("127.0.0.1"), by_loopback);
    };
    all_are_served(&one, &two);
    flowgate.upgrade(&[]);
    all_are_served(&one, &two);
    // Where the interfaces change places, so do the clients.
    flowgate.reload(&toml("lo", "two"));
    all_are_served(&two, &one);
}

#[test]
fn an_interface_that_is_not_there_is_refused_with_its_name() {
    let file = ConfigFile::new(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ninterface = \"nowhere0\"\ncluster = \"c\"\n\
         [cluster.c]\nbackends = [\"127.0.0.1:9\"]\n",
    );
    let refused = output(FLOWGATE, &["run", file.path()]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("there is no interface \"nowhere0\"; see `ip link`"), "{said}");
}

#[test]
fn a_group_is_joined_at_the_interface_and_each_datagram_comes_once() {
    let Some([far, near]) = Namespace::pair() else { return };
    far.ip("route add 239.0.0.0/8 dev one");
    for (group, backend, client, own) in [
        ("239.9.9.9:5300", "127.0.0.1:0", "10.9.0.1:0", "10.9.0.2:5300"),
        ("[ff05::99]:5300", "[::1]:0", "[fd09::1]:0", "[fd09::2]:5300"),
    ] {
        let backend = near.inside(|| Peer::bind(backend));
        let toml = "workers = 2\n".to_owned()
            + &listener("group", group, "interface = \"two\"")
            + &cluster("group", &backend);
        let mut flowgate = near.inside(|| Process::run(FLOWGATE, &toml));
        flowgate.line("started");
        let client = far.inside(|| Peer::bind(client));
        let (group, own): (SocketAddr, SocketAddr) = (group.parse().unwrap(), own.parse().unwrap());
        let ask = |number: u8| {
            client.send_to(&[number], group);
            // The next one would be a copy of the last, if there were any.
            assert_eq!(backend.answer(b"answer").bytes, [number]);
            let answer = client.receive();
            assert_eq!((&answer.bytes[..], answer.from), (&b"answer"[..], own));
        };
        (0..4).for_each(ask);
        flowgate.upgrade(&[]);
        (4..8).for_each(ask);
    }
}
