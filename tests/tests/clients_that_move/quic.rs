//! Envoy, which names itself in its connection ids, and aioquic: its clients, and servers of which no
//! id says which they are.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use flowgate_tests::e2e::own_loopback;
use flowgate_tests::netns::Routed;
use flowgate_tests::process::Process;
use flowgate_tests::quic_peers::{
    Move, Naming, Outcome, PATIENCE, Peer, QuicPeers, hex, server_id,
};
use flowgate_tests::scratch::Scratch;
use nix::sys::signal::Signal;

use super::FLOWGATE;

const KEYS: [[u8; 16]; 2] = [[0x5A; 16], [0xC3; 16]];
const SERVERS: usize = 2;

/// One-pass AES, where server id and nonce fill a block.
const ENCRYPTED: Naming = Naming { rotation: 0, nonce: 8, key: Some(KEYS[0]) };

/// Where nobody else has a socket.
fn free() -> Vec<SocketAddr> {
    let ip = own_loopback().parse().expect("an address");
    (0..SERVERS as u16).map(|number| SocketAddr::new(ip, 9_001 + number)).collect()
}

fn envoys(peers: &QuicPeers, at: &[SocketAddr], naming: Naming) -> Vec<Peer> {
    peers.name(naming);
    at.iter().enumerate().map(|(number, at)| peers.envoy(*at, number, naming)).collect()
}

/// A configuration that reads ids as they are made by each of `namings`, with keys in files of `scratch`.
fn config(listen: &str, at: &[SocketAddr], namings: &[Naming], scratch: &Path) -> String {
    let mut backends = String::new();
    for (number, at) in at.iter().enumerate() {
        let id = hex(&server_id(number));
        let _ = write!(backends, "{{ address = \"{at}\", server_id = \"{id}\" }}, ");
    }
    let mut text = format!(
        "[[listener]]\naddress = {listen:?}\ncluster = \"web\"\n\
         [cluster.web]\naffinity = \"quic\"\nbackends = [{backends}]\n"
    );
    for Naming { rotation, nonce, key } in namings {
        let _ = write!(
            text,
            "[[cluster.web.quic_lb]]\nrotation = {rotation}\nserver_id_length = 8\n\
             nonce_length = {nonce}\n"
        );
        if let Some(key) = key {
            let file = scratch.join(format!("{rotation}.key"));
            fs::write(&file, hex(key)).expect("a file");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("our file");
            let _ = writeln!(text, "key_file = {file:?}");
        }
    }
    text
}

#[track_caller]
fn assert_whole(outcome: &Outcome, answers: u64) {
    assert_eq!((outcome.lost, outcome.strayed), (0, 0), "{outcome:?}");
    assert_eq!(outcome.servers.len(), SERVERS, "{outcome:?}");
    assert!(outcome.answers >= answers, "{outcome:?}");
}

/// Has every address below 10.70 be the clients', and its way back by the router.
fn give_clients_addresses(network: &Routed) {
    network.client.ip("route add local 10.70.0.0/16 dev lo");
    network.router.ip("route add 10.70.0.0/16 via 10.70.0.2");
}

/// Where servers are, in a namespace of their own.
fn behind(port: u16) -> SocketAddr {
    SocketAddr::new([10, 72, 0, 2].into(), port)
}

/// Forty clients that move and change their id: they, the balancer and the servers each have a namespace.
fn envoy_keeps_forty(naming: Naming) {
    let Some(peers) = QuicPeers::find() else { return };
    let Some(network) = Routed::new() else { return };
    give_clients_addresses(&network);
    let (at, scratch) = ([9_001, 9_002].map(behind), Scratch::new("moved"));
    let _envoys = network.backends.inside(|| envoys(&peers, &at, naming));
    let config = config("10.71.1.2:443", &at, &[naming], scratch.path());
    let mut flowgate = network.balancers[0].inside(|| Process::run(FLOWGATE, &config));
    let to = flowgate.address();
    let clients = network.client.inside(|| peers.clients(to, "10.70", 40, false));
    assert_whole(&clients.finish(Move::AddressAndId), 80);
}

#[test]
fn clients_of_envoy_that_move_are_all_kept_with_ids_that_anyone_can_read() {
    envoy_keeps_forty(Naming { key: None, ..ENCRYPTED });
}

#[test]
fn clients_of_envoy_that_move_are_all_kept_with_ids_encrypted_in_one_pass() {
    envoy_keeps_forty(ENCRYPTED);
}

#[test]
fn clients_of_envoy_that_move_are_all_kept_with_ids_encrypted_in_four_passes() {
    envoy_keeps_forty(Naming { nonce: 10, ..ENCRYPTED });
}

/// Servers and balancer go over to another key while clients ask all the time. Afterwards they move.
#[test]
fn keys_change_under_load_and_nobody_is_lost() {
    let Some(peers) = QuicPeers::find() else { return };
    let (at, scratch) = (free(), Scratch::new("rotated"));
    let next = Naming { rotation: 1, key: Some(KEYS[1]), ..ENCRYPTED };
    let _envoys = envoys(&peers, &at, ENCRYPTED);
    let with = |namings: &[Naming]| config("127.0.0.1:0", &at, namings, scratch.path());
    let mut flowgate = Process::run(FLOWGATE, &with(&[ENCRYPTED]));
    let to = flowgate.address();
    let old = peers.clients(to, "127.9", 20, true);
    // The balancer reads both before a server makes the new ones.
    flowgate.reload(&with(&[ENCRYPTED, next]));
    peers.name(next);
    (0..SERVERS).for_each(|number| peers.wait_for_key(number, 2));
    let new = peers.clients(to, "127.10", 20, true);
    assert_whole(&old.finish(Move::AddressAndId), 60);
    // Nobody has an old one any more.
    flowgate.reload(&with(&[next]));
    assert_whole(&new.finish(Move::AddressAndId), 60);
}

/// Servers as they come: what a server calls itself is learned.
fn nameless_servers_keep_twenty(how: Move, affinity: &str, patience: u32) -> Option<Outcome> {
    let peers = QuicPeers::find()?;
    let at = free();
    let _servers: Vec<_> =
        at.iter().enumerate().map(|(number, at)| peers.nameless_server(*at, number)).collect();
    let mut flowgate = Process::run(
        FLOWGATE,
        &format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"web\"\n\
             [cluster.web]\naffinity = {affinity:?}\nbackends = [\"{}\", \"{}\"]\n",
            at[0], at[1]
        ),
    );
    let clients = peers.clients_with(flowgate.address(), "127.9", 20, "calm", patience);
    Some(clients.finish(how))
}

#[test]
fn clients_whose_nat_gives_them_another_port_keep_servers_that_know_nothing_of_it() {
    let Some(outcome) = nameless_servers_keep_twenty(Move::Port, "quic", PATIENCE) else { return };
    assert_whole(&outcome, 40);
    // By the source alone, ports would make a difference.
    let moved = nameless_servers_keep_twenty(Move::Port, "source-ip-port", 5).expect("as before");
    assert!(moved.lost + moved.strayed > 0, "nobody would have been placed anew: {moved:?}");
}

#[test]
fn clients_whose_nat_gives_them_another_address_keep_servers_that_know_nothing_of_it() {
    let Some(outcome) = nameless_servers_keep_twenty(Move::Address, "quic", PATIENCE) else {
        return;
    };
    assert_whole(&outcome, 40);
}

/// A router with two next hops, of which one dies in the middle: the other balancer has never seen the
/// clients, and reads in their ids where they belong.
#[test]
fn of_two_balancers_behind_a_router_one_is_killed_and_no_connection_is_lost() {
    const SERVICE: &str = "192.0.2.53";
    let Some(peers) = QuicPeers::find() else { return };
    let Some(network) = Routed::new() else { return };
    let scratch = Scratch::new("ecmp");
    give_clients_addresses(&network);
    network.balancers.iter().for_each(|one| one.ip(&format!("address add {SERVICE}/32 dev lo")));
    let at = [9_001, 9_002].map(behind);
    let _envoys = network.backends.inside(|| envoys(&peers, &at, ENCRYPTED));
    let config = config(&format!("{SERVICE}:443"), &at, &[ENCRYPTED], scratch.path());
    let mut running = [0, 1].map(|number| {
        let mut flowgate = network.balancers[number].inside(|| Process::run(FLOWGATE, &config));
        flowgate.address();
        flowgate
    });
    // Flows of one next hop stay where they are when the other goes.
    network.router.ip("nexthop add id 1 via 10.71.1.2 dev to1");
    network.router.ip("nexthop add id 2 via 10.71.2.2 dev to2");
    network.router.ip("nexthop add id 10 group 1/2 type resilient buckets 32");
    network.router.ip(&format!("route add {SERVICE}/32 nhid 10"));

    let to = SocketAddr::new(SERVICE.parse().expect("an address"), 443);
    let clients = network.client.inside(|| peers.clients(to, "10.70", 40, true));
    let flows = |process: &Process| {
        let status = process.ask_json(&["status"]);
        status["listeners"][0]["flows_opened"].as_u64().expect("a number")
    };
    let before = [flows(&running[0]), flows(&running[1])];
    assert!(before.iter().all(|flows| *flows > 0), "one balancer has all: {before:?}");
    running[0].signal(Signal::SIGKILL);
    running[0].wait();
    network.router.ip("nexthop replace id 10 group 2 type resilient buckets 32");
    assert_whole(&clients.finish(Move::Stay), 120);
    assert_eq!(flows(&running[1]), before[0] + before[1], "it has the other's clients too");
}
