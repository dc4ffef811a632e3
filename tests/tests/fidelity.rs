//! What comes out is what went in: bytes, lengths, boundaries, order and marks.

use std::net::SocketAddr;

use flowgate_core::{Direction, DropReason};
use flowgate_tests::e2e::{Balancer, Peer, passing_tos, pattern, simple_config};
use flowgate_tests::netns::Namespace;

/// A client, the balancer in front of one backend, and that backend.
struct Path {
    client: Peer,
    balancer: Balancer,
    /// The address that the client calls.
    to: SocketAddr,
    backend: Peer,
}

impl Path {
    fn new(client: Peer, listener: &str, backend: Peer) -> Self {
        let balancer = Balancer::between(listener, &[&backend], "");
        let to = SocketAddr::new(client.address().ip(), balancer.address().port());
        Self { client, balancer, to, backend }
    }

    fn v4() -> Self {
        Self::new(Peer::v4(), "127.0.0.1:0", Peer::v4())
    }

    fn v6() -> Self {
        Self::new(Peer::v6(), "[::1]:0", Peer::v6())
    }

    /// A client of IPv4 on a listener of both families, with all the control messages that takes.
    fn mapped() -> Self {
        Self::new(Peer::v4(), "[::]:0", Peer::v6())
    }

    /// Sends datagrams to the backend and the same ones back, and checks that they arrive as they
    /// were sent.
    #[track_caller]
    fn carries(&self, datagrams: &[Vec<u8>]) {
        let mut upstream = None;
        for sent in datagrams {
            self.client.send_to(sent, self.to);
        }
        for sent in datagrams {
            let received = self.backend.receive();
            assert_eq!(received.bytes.len(), sent.len());
            assert!(received.bytes == *sent, "{} bytes were changed", sent.len());
            upstream = Some(received.from);
        }
        for sent in datagrams {
            self.backend.send_to(sent, upstream.expect("a datagram"));
        }
        for sent in datagrams {
            let received = self.client.receive();
            assert_eq!(received.bytes.len(), sent.len());
            assert!(received.bytes == *sent, "{} bytes were changed", sent.len());
        }
    }
}

#[test]
fn an_empty_datagram_passes_both_ways_and_ends_no_batch() {
    for path in [Path::v4(), Path::v6(), Path::mapped()] {
        path.carries(&[vec![], b"a".to_vec(), vec![], vec![], b"b".to_vec(), vec![]]);
        path.balancer.assert_lossless(6, 6);
    }
}

#[test]
fn every_size_passes_both_ways() {
    const SIZES: [usize; 12] =
        [0, 1, 2, 511, 1_472, 1_473, 8_972, 16_384, 40_000, 65_486, 65_487, 65_507];
    for (path, longest) in [(Path::v4(), 65_507), (Path::v6(), 65_487)] {
        let sizes = SIZES.into_iter().filter(|len| *len <= longest);
        let datagrams: Vec<_> = sizes.map(|len| pattern(len, 1)).collect();
        for datagram in &datagrams {
            path.carries(std::slice::from_ref(datagram));
        }
        path.balancer.assert_lossless(datagrams.len() as u64, datagrams.len() as u64);
    }
}

#[test]
fn datagrams_longer_than_a_packet_are_cut_into_fragments_and_put_together_again() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.ip("link set lo mtu 1500");
    namespace.inside(|| {
        for (path, longest) in [(Path::v4(), 65_507), (Path::v6(), 65_487)] {
            for len in [1_452, 1_453, 1_472, 1_473, 3_000, 20_000, longest] {
                path.carries(&[pattern(len, 2)]);
            }
            // Neighbours of equal length, which together would make a train that no path takes.
            path.carries(&[pattern(3_000, 3), pattern(3_000, 4), pattern(3_000, 5)]);
            path.balancer.assert_lossless(10, 10);
        }
    });
}

#[test]
fn a_datagram_longer_than_max_datagram_size_is_a_counted_drop_and_its_neighbours_pass() {
    let (client, backend) = (Peer::v4(), Peer::v4());
    let config = simple_config("127.0.0.1:0", &[&backend], "");
    let limit = "[[listener]]\nmax_datagram_size = 1000";
    let balancer = Balancer::start(&config.replace("[[listener]]", limit));
    let datagrams = [999, 1_001, 1_000, 65_507, 1].map(|len| pattern(len, 6));
    let fits = || datagrams.iter().filter(|datagram| datagram.len() <= 1_000);

    datagrams.iter().for_each(|datagram| client.send_to(datagram, balancer.address()));
    let mut upstream = None;
    for expected in fits() {
        let received = backend.receive();
        assert!(received.bytes == *expected);
        upstream = Some(received.from);
    }
    let upstream = upstream.expect("a flow");
    datagrams.iter().for_each(|datagram| backend.send_to(datagram, upstream));
    for expected in fits() {
        assert!(client.receive().bytes == *expected);
    }
    for direction in Direction::ALL {
        assert_eq!(balancer.dropped(direction, DropReason::TooLarge), 2);
    }
}

/// Equal datagrams, the last perhaps shorter, sent with one system call.
#[derive(Clone, Copy)]
struct Train {
    len: u16,
    count: u16,
    last: usize,
    tos: u8,
}

const fn train(len: u16, count: u16, last: usize, tos: u8) -> Train {
    Train { len, count, last, tos }
}

/// Sends trains and returns the datagrams that must arrive, each with its TOS byte.
fn send_trains(peer: &Peer, to: SocketAddr, trains: &[Train]) -> Vec<(Vec<u8>, u8)> {
    let mut expected = Vec::new();
    for (salt, train) in trains.iter().enumerate() {
        let len = usize::from(train.len) * usize::from(train.count - 1) + train.last;
        let bytes = pattern(len, salt as u8);
        peer.set_tos(train.tos);
        peer.send_train(&bytes, train.len, to);
        let datagrams = bytes.chunks(usize::from(train.len));
        expected.extend(datagrams.map(|bytes| (bytes.to_vec(), passing_tos(train.tos))));
    }
    expected
}

/// Receives what is expected, and returns who sent it.
#[track_caller]
fn receive_all(peer: &Peer, expected: &[(Vec<u8>, u8)]) -> SocketAddr {
    let mut from = None;
    for (bytes, tos) in expected {
        let received = peer.receive();
        assert_eq!((received.bytes.len(), received.tos), (bytes.len(), *tos));
        assert!(received.bytes == *bytes, "{} bytes were changed", bytes.len());
        assert_eq!(*from.get_or_insert(received.from), received.from);
    }
    from.expect("at least one datagram")
}

#[test]
fn trains_with_short_tails_keep_their_boundaries_order_and_marks() {
    // Few enough bytes at once that they fit into any socket's buffer while nobody reads.
    let rounds = [
        &[train(300, 64, 300, 0), train(300, 64, 1, 0)][..],
        &[train(900, 3, 899, 0), train(900, 3, 900, 0xB8), train(900, 3, 900, 0x02)],
        &[train(900, 3, 900, 0x02), train(901, 10, 17, 0x02), train(17, 2, 17, 0x02)],
        &[train(1, 64, 1, 0), train(1_400, 20, 1_000, 0x2E)],
    ];
    for path in [Path::v4(), Path::v6(), Path::mapped()] {
        let mut total = 0;
        for trains in rounds {
            let expected = send_trains(&path.client, path.to, trains);
            let upstream = receive_all(&path.backend, &expected);
            let expected = send_trains(&path.backend, upstream, trains);
            receive_all(&path.client, &expected);
            total += expected.len() as u64;
        }
        path.balancer.assert_lossless(total, total);
    }
}

#[test]
fn ecn_and_dscp_pass_both_ways_between_all_families() {
    const ALL: [fn() -> Peer; 2] = [Peer::v4, Peer::v6];
    for (client, backend) in ALL.iter().flat_map(|client| ALL.map(|backend| (client, backend))) {
        let path = Path::new(client(), "[::]:0", backend());
        for tos in (0..=255u8).step_by(3).chain([0x01, 0x02, 0x03, 0xB8, 0xBB]) {
            path.client.set_tos(tos);
            path.backend.set_tos(!tos);
            path.client.send_to(b"there", path.to);
            let tos_there = path.backend.answer(b"back").tos;
            assert_eq!(tos_there, passing_tos(tos), "{} to a backend", path.to);
            let tos_back = path.client.receive().tos;
            assert_eq!(tos_back, passing_tos(!tos), "from a backend to {}", path.to);
        }
    }
}

#[test]
fn ecn_and_dscp_pass_through_listeners_of_one_family() {
    for path in [Path::v4(), Path::v6()] {
        for tos in [0x01, 0x00, 0xB9, 0xFF] {
            path.client.set_tos(tos);
            path.backend.set_tos(tos ^ 0x2C);
            path.client.send_to(b"there", path.to);
            assert_eq!(path.backend.answer(b"back").tos, passing_tos(tos));
            assert_eq!(path.client.receive().tos, passing_tos(tos ^ 0x2C));
        }
    }
}
