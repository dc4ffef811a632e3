//! What one client, or one neighbourhood of clients, may take, with real sockets.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use flowgate_core::{Direction, DropReason};
use flowgate_tests::e2e::{Balancer, Peer, eventually, simple_config};

/// A balancer in front of `backend`, with `responses = 1` so that an answer ends a flow.
fn limited(backend: &Peer, limits: &str) -> Balancer {
    let limits = format!("responses = 1\n[cluster.test.limits]\n{limits}");
    Balancer::between("127.0.0.1:0", &[backend], &limits)
}

/// Clients at addresses of loopback, each with one datagram sent.
fn callers(addresses: &[&str], balancer: &Balancer) -> Vec<Peer> {
    let call = |address: &&str| {
        let client = Peer::bind(&format!("{address}:0"));
        client.send_to(b"hello", balancer.address());
        client
    };
    addresses.iter().map(call).collect()
}

/// The next datagrams at the backend: the upstream sockets they come from.
#[track_caller]
fn arrivals(backend: &Peer, count: usize) -> Vec<SocketAddr> {
    (0..count).map(|_| backend.receive().from).collect()
}

/// Once a limit has held back the last two of five, two that end make room for them.
#[track_caller]
fn room_comes_with_the_end_of_flows(
    backend: &Peer,
    balancer: &Balancer,
    clients: &[Peer],
    reason: DropReason,
) {
    let upstreams = arrivals(backend, 3);
    eventually("two are held back", || {
        (balancer.dropped(Direction::ToBackend, reason) == 2).then_some(())
    });
    for (client, upstream) in clients.iter().zip(&upstreams[..2]) {
        backend.send_to(b"that is all", *upstream);
        assert_eq!(client.receive().bytes, b"that is all");
    }
    balancer.eventually("two flows end", |figures| figures.flows_active == 1);
    for client in &clients[3..] {
        client.send_to(b"once more", balancer.address());
        assert_eq!(backend.receive().bytes, b"once more");
    }
    let figures = balancer.figures();
    assert_eq!((figures.flows_active, figures.counters.flows_opened), (3, 5));
    assert_eq!(figures.counters.to_backend.dropped_total().datagrams, 2);
}

#[test]
fn a_source_has_its_share_of_flows_and_others_have_theirs() {
    let backend = Peer::v4();
    let balancer = limited(&backend, "flows_per_source = 3");
    let clients = callers(&["127.0.3.1"; 5], &balancer);
    room_comes_with_the_end_of_flows(&backend, &balancer, &clients, DropReason::SourceFlows);

    let _neighbour = callers(&["127.0.3.2"; 3], &balancer);
    arrivals(&backend, 3);
    assert_eq!(balancer.figures().flows_active, 6);
}

#[test]
fn a_subnet_has_its_share_of_flows_and_others_have_theirs() {
    let backend = Peer::v4();
    let balancer = limited(&backend, "flows_per_subnet = 3");
    let subnet = ["127.0.3.1", "127.0.3.2", "127.0.3.77", "127.0.3.200", "127.0.3.254"];
    let clients = callers(&subnet, &balancer);
    room_comes_with_the_end_of_flows(&backend, &balancer, &clients, DropReason::SubnetFlows);

    let _neighbours = callers(&["127.0.4.1", "127.0.2.255", "127.0.4.2"], &balancer);
    arrivals(&backend, 3);
    assert_eq!(balancer.figures().flows_active, 6);
}

#[test]
fn a_source_opens_flows_no_faster_than_it_may_and_others_are_not_slowed() {
    const RATE: u64 = 10;
    const CALLS: u64 = 100;
    let backend = Peer::v4();
    let balancer = limited(&backend, &format!("new_flows_per_second_per_source = {RATE}"));
    let start = Instant::now();
    let clients = callers(&["127.0.3.1"; CALLS as usize], &balancer);
    let figures = balancer.eventually("all were received", |figures| {
        figures.counters.to_backend.received.datagrams == CALLS
    });
    let opened = figures.counters.flows_opened;
    // One second's worth at once, and what has accrued since.
    let most = RATE + start.elapsed().mul_f64(RATE as f64).as_secs() + 1;
    assert!((RATE..=most).contains(&opened), "{opened} is not between {RATE} and {most}");
    let refused = balancer.dropped(Direction::ToBackend, DropReason::SourceRate);
    assert_eq!(refused, CALLS - opened);

    let _other = callers(&["127.0.3.2"; RATE as usize], &balancer);
    arrivals(&backend, (opened + RATE) as usize);
    assert_eq!(balancer.figures().counters.flows_opened, opened + RATE);

    // Anyone who was refused is served before long.
    let late = clients.last().expect("a client");
    eventually("a new flow of the first source", || {
        late.send_to(b"again", balancer.address());
        std::thread::sleep(Duration::from_millis(20));
        (balancer.figures().counters.flows_opened > opened + RATE).then_some(())
    });
    assert_eq!(backend.receive().bytes, b"again");
}

#[test]
fn a_source_sends_no_faster_than_it_may_and_others_are_not_slowed() {
    for (limit, reason) in [
        ("datagrams_per_second_per_source = 5", DropReason::SourceDatagrams),
        ("bytes_per_second_per_source = \"25\"", DropReason::SourceBytes),
    ] {
        let backend = Peer::v4();
        let balancer = limited(&backend, limit);
        let start = Instant::now();
        let client = Peer::bind("127.0.3.1:0");
        for _ in 0..50 {
            client.send_to(b"hello", balancer.address());
        }
        let figures = balancer.eventually("all were received", |figures| {
            figures.counters.to_backend.received.datagrams == 50
        });
        let forwarded = 50 - figures.counters.to_backend.dropped_total().datagrams;
        // One second's worth at once, and what has accrued since.
        let most = 5 + start.elapsed().mul_f64(5.0).as_secs() + 1;
        assert!((5..=most).contains(&forwarded), "{forwarded} is not between 5 and {most}");
        assert_eq!(balancer.dropped(Direction::ToBackend, reason), 50 - forwarded);
        let _other = callers(&["127.0.3.2"; 5], &balancer);
        arrivals(&backend, forwarded as usize + 5);
    }
}

#[test]
fn only_clients_that_are_allowed_and_not_denied_have_flows() {
    let backend = Peer::v4();
    let config = simple_config("127.0.0.1:0", &[&backend], "").replace(
        "[[listener]]",
        "[[listener]]\nallow = [\"127.0.3.0/24\", \"127.0.4.4/32\"]\ndeny = [\"127.0.3.128/25\"]",
    );
    let balancer = Balancer::start(&config);
    let refused = ["127.0.3.128", "127.0.3.255", "127.0.4.3", "127.0.0.1", "127.0.2.255"];
    let served = ["127.0.3.1", "127.0.3.127", "127.0.4.4"];
    let _refused = callers(&refused, &balancer);
    let clients = callers(&served, &balancer);
    for client in &clients {
        backend.answer(b"welcome");
        assert_eq!(client.receive().bytes, b"welcome");
    }
    // They came first, by the same socket, so they have been decided on.
    let denied = balancer.dropped(Direction::ToBackend, DropReason::Denied);
    assert_eq!(denied, refused.len() as u64);
    assert_eq!(balancer.figures().counters.flows_opened, served.len() as u64);
}

#[test]
fn a_client_that_may_not_exist_gets_no_more_than_its_budget() {
    let backend = Peer::v4();
    let limits = "[cluster.test.limits]\namplification = 3";
    let balancer = Balancer::between("127.0.0.1:0", &[&backend], limits);
    let client = Peer::v4();
    client.send_to(&[0; 100], balancer.address());
    let upstream = backend.receive().from;
    for _ in 0..10 {
        backend.send_to(&[1; 100], upstream);
    }
    let refused = || balancer.dropped(Direction::ToClient, DropReason::Amplification);
    eventually("seven of ten are too many", || (refused() == 7).then_some(()));
    for _ in 0..3 {
        assert_eq!(client.receive().bytes, [1; 100]);
    }

    // To send again proves nothing, and earns what any datagram does.
    client.send_to(&[0; 100], balancer.address());
    backend.receive();
    for _ in 0..10 {
        backend.send_to(&[2; 100], upstream);
    }
    eventually("seven more are too many", || (refused() == 14).then_some(()));
    for _ in 0..3 {
        assert_eq!(client.receive().bytes, [2; 100]);
    }
}
