//! DTLS with connection ids, by records that the test makes (RFC 9146, RFC 9147): no library that is to
//! be had offers a client that moves.

use std::net::SocketAddr;

use flowgate_tests::e2e::{Balancer, Peer, eventually, simple_config};

const CLIENTS: u8 = 24;

/// How many bytes an id has.
const LENGTH: u8 = 8;

/// A number of two, three or so many bytes.
fn number(value: usize, bytes: usize) -> Vec<u8> {
    value.to_be_bytes()[8 - bytes..].to_vec()
}

/// A record of DTLS 1.2 in the clear that holds one whole message of a handshake.
fn handshake(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = number(body.len(), 3);
    let message = [&[kind][..], &length, &[0, 0, 0, 0, 0], &length, body].concat();
    let head = [22, 0xFE, 0xFD, 0, 0, 0, 0, 0, 0, 0, 0];
    [&head[..], &number(message.len(), 2), &message].concat()
}

/// The version and random number with which both Hellos begin.
fn hello(more: &[u8]) -> Vec<u8> {
    [&[0xFE, 0xFD][..], &[7; 32], more].concat()
}

/// What a client opens with: it would like the server to choose an id.
fn client_hello() -> Vec<u8> {
    // No session and no cookie, one cipher suite, no compression; an id of its own that is empty.
    let extensions = [0, 54, 0, 1, 0];
    let more = [&[0, 0, 0, 2, 0xC0, 0xA8, 1, 0, 0, 5][..], &extensions].concat();
    handshake(1, &hello(&more))
}

/// What a server answers: clients are to write this id into their records.
fn server_hello(id: &[u8]) -> Vec<u8> {
    let extensions = [&[0, 54, 0, id.len() as u8 + 1, id.len() as u8][..], id].concat();
    let more = [&[0, 0xC0, 0xA8, 0][..], &number(extensions.len(), 2), &extensions].concat();
    handshake(2, &hello(&more))
}

/// Encrypted data with an id: of DTLS 1.2, or of 1.3 with its unified header.
fn data(id: &[u8], is_newer: bool) -> Vec<u8> {
    if is_newer {
        return [&[0x3C][..], id, &[0, 1, 0, 24], &[0xA5; 24]].concat();
    }
    [&[25, 0xFE, 0xFD, 0, 1, 0, 0, 0, 0, 0, 9][..], id, &[0, 24], &[0xA5; 24]].concat()
}

/// Which backend gets what a client sends, and from where.
#[track_caller]
fn asked(backends: &[Peer], datagram: &[u8]) -> (usize, SocketAddr) {
    eventually("a backend gets it", || {
        backends.iter().enumerate().find_map(|(number, backend)| {
            let got = backend.receive_soon()?;
            assert_eq!(got.bytes, datagram);
            Some((number, got.from))
        })
    })
}

#[test]
fn a_client_of_dtls_that_moves_is_known_by_the_id_that_its_server_has_announced() {
    let backends = [Peer::v4(), Peer::v4(), Peer::v4()];
    let more = format!("affinity = {{ dtls-cid = {LENGTH} }}");
    let config = simple_config("127.0.0.1:0", &backends.each_ref(), &more);
    // What is announced is known to all, also where several workers could serve.
    let balancer = Balancer::start(&format!("workers = 3\n{config}"));
    let mut served = [0; 3];
    for number in 0..CLIENTS {
        let client = Peer::bind(&format!("127.9.3.{}:0", number + 1));
        client.send_to(&client_hello(), balancer.address());
        let (its, from) = asked(&backends, &client_hello());
        served[its] += 1;
        let id = [0xC0, 0xFF, 0xEE, number, its as u8, 1, 2, 3];
        backends[its].send_to(&server_hello(&id), from);
        assert_eq!(client.receive().bytes, server_hello(&id));

        // From another address it is another flow, to the same server.
        for (network, is_newer) in [(4, false), (5, true)] {
            let moved = Peer::bind(&format!("127.9.{network}.{}:0", number + 1));
            moved.send_to(&data(&id, is_newer), balancer.address());
            let (reached, new) = asked(&backends, &data(&id, is_newer));
            assert_eq!(reached, its, "client {number}");
            assert_ne!(new, from, "the server sees a new path");
            backends[its].send_to(b"on the new path", new);
            assert_eq!(moved.receive().bytes, b"on the new path");
        }
    }
    assert!(served.iter().all(|clients| *clients > 0), "clients are not spread: {served:?}");
    assert_eq!(balancer.figures().counters.flows_opened, 3 * u64::from(CLIENTS));
}
