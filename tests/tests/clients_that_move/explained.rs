//! `flowgate explain --payload` says where a datagram leads, for every kind of id and key, and `flowgate
//! flows` what each flow was placed by.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;

use flowgate_quic_lb::{FirstOctet, QuicLbConfig};
use flowgate_tests::e2e::{Peer, eventually};
use flowgate_tests::process::{ConfigFile, Process, output};
use flowgate_tests::quic_peers::hex;
use flowgate_tests::scratch::Scratch;
use serde_json::Value;

use super::FLOWGATE;

/// A client that is nowhere: what is explained is told by the payload.
const NOBODY: &str = "192.0.2.7:4433";

const SERVERS: usize = 3;

fn server_id(number: usize) -> [u8; 2] {
    [0xA0, number as u8]
}

fn config(backends: &[Peer; SERVERS], cluster: &str, more: &str) -> String {
    let backends: Vec<_> = (backends.iter().enumerate())
        .map(|(number, backend)| {
            let id = hex(&server_id(number));
            format!("{{ address = \"{}\", server_id = \"{id}\" }}", backend.address())
        })
        .collect();
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"one\"\n\
         [cluster.one]\n{cluster}\nbackends = [{}]\n{more}",
        backends.join(", ")
    )
}

/// The first listener of a document, and all that is said of it.
fn first(document: &Value) -> (Option<SocketAddr>, String) {
    let listener = &document["listeners"][0];
    let backend = listener["backend"].as_str().map(|text| text.parse().expect("an address"));
    (backend, listener["because"].to_string())
}

/// What the file alone says.
fn explained(toml: &str, payload: &[u8]) -> (Option<SocketAddr>, String) {
    let file = ConfigFile::new(toml);
    let arguments = ["explain", "--json", file.path(), NOBODY, "--payload", &hex(payload)];
    let said = output(FLOWGATE, &arguments);
    let complaints = String::from_utf8_lossy(&said.stderr);
    first(&serde_json::from_slice(&said.stdout).unwrap_or_else(|_| panic!("{complaints}")))
}

/// What the running process says.
fn explained_live(
    flowgate: &Process,
    client: &str,
    payload: &[u8],
) -> (Option<SocketAddr>, String) {
    first(&flowgate.ask_json(&["explain", "--live", client, "--payload", &hex(payload)]))
}

/// Sends a datagram, and says which backend gets it, from where, and what its flow was placed by.
fn sent(
    (flowgate, address): (&Process, SocketAddr),
    backends: &[Peer; SERVERS],
    client: &Peer,
    datagram: &[u8],
) -> (usize, SocketAddr, String, String) {
    client.send_to(datagram, address);
    let (number, from) = eventually("a backend gets it", || {
        let got = |peer: &Peer| peer.receive_soon().filter(|got| got.bytes == datagram);
        backends.iter().enumerate().find_map(|(number, peer)| Some((number, got(peer)?.from)))
    });
    let flows = flowgate.ask_json(&["flows"]);
    let mut flows = flows["flows"].as_array().expect("flows").iter();
    let is_its = |flow: &&Value| flow["client"] == client.address().to_string();
    let flow = flows.find(is_its).expect("its flow");
    let text = |key: &str| flow[key].as_str().unwrap_or_default().to_owned();
    (number, from, text("placed_by"), text("placed_by_id"))
}

fn short_header(ids: &QuicLbConfig, server: usize) -> Vec<u8> {
    let id = ids.encode(&server_id(server), &[0x5C; 6], FirstOctet::Length).expect("its lengths");
    [&[0x41][..], &id, &[7; 30]].concat()
}

#[test]
fn explain_reads_ids_that_name_servers_and_flows_shows_them() {
    let key = [0x42; 16];
    let scratch = Scratch::new("explained");
    let file = scratch.path().join("quic-lb.key");
    fs::write(&file, key).expect("a file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("our file");
    let plain = QuicLbConfig::new(2, 2, 6).expect("lengths that may be");
    for (ids, line) in
        [(plain.clone(), String::new()), (plain.with_key(&key), format!("key_file = {file:?}\n"))]
    {
        let backends = [Peer::v4(), Peer::v4(), Peer::v4()];
        let table =
            "[[cluster.one.quic_lb]]\nrotation = 2\nserver_id_length = 2\nnonce_length = 6\n";
        let toml = config(&backends, "affinity = \"quic\"", &format!("{table}{line}"));
        let mut flowgate = Process::run(FLOWGATE, &toml);
        let address = flowgate.address();
        for number in 0..SERVERS {
            let datagram = short_header(&ids, number);
            let id = hex(&datagram[1..10]);
            let client = Peer::v4();
            for (backend, because) in
                [explained(&toml, &datagram), explained_live(&flowgate, NOBODY, &datagram)]
            {
                assert_eq!(backend, Some(backends[number].address()), "{because}");
                assert!(because.contains(&format!("connection id {id}")), "{because}");
            }
            let (to, _, by, shown) = sent((&flowgate, address), &backends, &client, &datagram);
            assert_eq!((to, by.as_str(), shown), (number, "server-id", id));
            // A flow that there is goes over to the backend of another id.
            let other = (number + 1) % SERVERS;
            let its = client.address().to_string();
            let (backend, because) = explained_live(&flowgate, &its, &short_header(&ids, other));
            assert_eq!(backend, Some(backends[other].address()), "{because}");
            assert!(because.contains("goes over"), "{because}");
        }
        let first_flight = [&[0xC0, 0, 0, 0, 1, 8][..], b"bychance", &[0; 40]].concat();
        let (_, because) = explained(&toml, &first_flight);
        assert!(because.contains("chosen by the client"), "{because}");
        let (_, because) = explained(&toml, b"");
        assert!(because.contains("no key in the payload"), "{because}");
        let said = flowgate.ask(&["status", "--json"]).stdout;
        let said = [said, flowgate.ask(&["flows", "--json"]).stdout].concat();
        assert!(!String::from_utf8_lossy(&said).contains(&hex(&key)), "a key is shown");
    }
}

#[test]
fn explain_hashes_keys_and_flows_shows_them() {
    let call = b"INVITE sip:a SIP/2.0\r\nCall-ID: a84b@host\r\n\r\n";
    for (affinity, datagram, key) in [
        ("\"sip-call-id\"", &call[..], &b"a84b@host"[..]),
        ("{ offset = 2, length = 4 }", b"..tenant one", b"tena"),
    ] {
        let backends = [Peer::v4(), Peer::v4(), Peer::v4()];
        let toml = config(&backends, &format!("affinity = {affinity}"), "");
        let mut flowgate = Process::run(FLOWGATE, &toml);
        let address = flowgate.address();
        let (backend, because) = explained(&toml, datagram);
        assert!(because.contains(&format!("key {}", hex(key))), "{because}");
        assert_eq!(explained_live(&flowgate, NOBODY, datagram).0, backend);
        let (to, _, by, shown) = sent((&flowgate, address), &backends, &Peer::v4(), datagram);
        assert_eq!(Some(backends[to].address()), backend);
        assert_eq!((by.as_str(), shown), ("key", hex(key)));
    }
}

/// A Hello of DTLS 1.2; a server's says which id it has chosen.
fn dtls_hello(kind: u8, id: &[u8]) -> Vec<u8> {
    let number = |value: usize, bytes: usize| value.to_be_bytes()[8 - bytes..].to_vec();
    let extension = [&[0, 54, 0, id.len() as u8 + 1, id.len() as u8][..], id].concat();
    let head = [&[0xFE, 0xFD][..], &[7; 32], &[0, 0xC0, 0xA8, 0]].concat();
    let body = [head, number(extension.len(), 2), extension].concat();
    let length = number(body.len(), 3);
    let message = [&[kind][..], &length, &[0, 0, 0, 0, 0], &length, &body].concat();
    let record = [22, 0xFE, 0xFD, 0, 0, 0, 0, 0, 0, 0, 0];
    [&record[..], &number(message.len(), 2), &message].concat()
}

/// Four bytes of head, four of an id, and what else it takes to be as long as its kind is.
fn wireguard(kind: u8, id: &[u8], length: usize) -> Vec<u8> {
    let mut message = [&[kind, 0, 0, 0], id].concat();
    message.resize(length, 0);
    message
}

/// An affinity; what a client opens with, what its server announces by, and what the client goes on with;
/// and the id.
type Case = (&'static str, [Vec<u8>; 3], &'static [u8]);

#[test]
fn explain_asks_the_running_process_for_ids_that_were_announced() {
    let quic_id = b"id-of-it";
    let quic = |first: u8, to: &[u8], from: &[u8]| {
        let (to_length, from_length) = (to.len() as u8, from.len() as u8);
        [&[first, 0, 0, 0, 1, to_length], to, &[from_length], from, &[0; 30]].concat()
    };
    let cases: [Case; 3] = [
        (
            "\"quic\"",
            [
                quic(0xC0, b"made up", b"client"),
                quic(0xE0, b"client", quic_id),
                [&[0x41][..], quic_id, &[7; 30]].concat(),
            ],
            quic_id,
        ),
        (
            "\"wireguard\"",
            [wireguard(1, b"ours", 148), wireguard(2, b"gate", 92), wireguard(4, b"gate", 64)],
            b"gate",
        ),
        (
            "{ dtls-cid = 4 }",
            [
                dtls_hello(1, b""),
                dtls_hello(2, b"cid4"),
                [&[25, 0xFE, 0xFD, 0, 1, 0, 0, 0, 0, 0, 9][..], b"cid4", &[0, 2, 7, 7]].concat(),
            ],
            b"cid4",
        ),
    ];
    for (affinity, [opening, announcement, data], id) in cases {
        let backends = [Peer::v4(), Peer::v4(), Peer::v4()];
        let toml = config(&backends, &format!("affinity = {affinity}"), "");
        let mut flowgate = Process::run(FLOWGATE, &toml);
        let address = flowgate.address();
        let (_, because) = explained(&toml, &data);
        assert!(because.contains("may have learned"), "{because}");
        let client = Peer::v4();
        let (its, from, by, _) = sent((&flowgate, address), &backends, &client, &opening);
        assert_eq!(by, "source");
        backends[its].send_to(&announcement, from);
        assert_eq!(client.receive().bytes, announcement);
        let (backend, because) = explained_live(&flowgate, NOBODY, &data);
        assert_eq!(backend, Some(backends[its].address()), "{because}");
        assert!(because.contains("has announced this id"), "{because}");
        let moved = Peer::bind("127.9.7.1:0");
        let (to, _, by, shown) = sent((&flowgate, address), &backends, &moved, &data);
        assert_eq!((to, by.as_str(), shown), (its, "learned-id", hex(id)));
    }
}
