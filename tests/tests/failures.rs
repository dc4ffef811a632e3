//! What the system refuses costs what it must and nothing else, and is over when the system
//! relents.

use flowgate_core::{CloseReason, Direction, DropReason};
use flowgate_tests::e2e::{Balancer, Peer, eventually, simple_config};
use flowgate_tests::netns::Namespace;
use flowgate_tests::process::Process;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

#[test]
fn out_of_descriptors_new_flows_are_refused_old_ones_go_on_and_it_recovers_by_itself() {
    let backend = Peer::v4();
    let config = simple_config("127.0.0.1:0", &[&backend], "idle_timeout = \"2s\"");
    let config = config.replace("[[listener]]", "[[listener]]\nmax_flows = 1000");
    let mut flowgate = Process::run_with_descriptors(FLOWGATE, &config, 200);
    let warning = flowgate.line("RLIMIT_NOFILE");
    assert!(warning.contains("max_flows is 1000"), "{warning}");
    assert!(warning.contains("room for 100, which is what it gets"), "{warning}");
    // From now on the limit is less than what was counted on.
    let limit = |descriptors: usize| {
        let pid = flowgate.pid().to_string();
        let limit = format!("--nofile={descriptors}");
        let status = std::process::Command::new("prlimit").args(["--pid", &pid, &limit]).status();
        assert!(status.expect("prlimit(1), of util-linux").success());
    };
    let open =
        std::fs::read_dir(format!("/proc/{}/fd", flowgate.pid())).expect("a process").count();
    limit(open + 20);
    let address = flowgate.address();

    // Each flow until there are no more is told by its datagram at the backend. One of an old flow
    // comes after the one that was refused, since all pass through one socket in their order.
    let old = Peer::v4();
    let mut refused = None;
    for number in 0..60u8 {
        let client = Peer::v4();
        client.send_to(&[number], address);
        old.send_to(b"old", address);
        if backend.receive().bytes == b"old" {
            refused = Some(client);
            break;
        }
        assert_eq!(backend.answer(b"still here").bytes, b"old");
        assert_eq!(old.receive().bytes, b"still here");
    }
    let refused = refused.expect("twenty descriptors are not enough for sixty flows");
    // One is kept for operators.
    let status = flowgate.ask(&["status"]);
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    eventually("flows end, and the refused client gets one", || {
        refused.send_to(b"new", address);
        old.send_to(b"old", address);
        let first = backend.receive();
        if first.bytes == b"new" {
            assert_eq!(backend.receive().bytes, b"old");
        }
        (first.bytes == b"new").then_some(())
    });
}

/// Those in quarantine have descriptors too: before there are none left, newcomers are refused.
#[test]
fn a_flood_of_clients_that_nobody_answers_does_not_use_up_the_descriptors() {
    let backend = Peer::v4();
    let config = simple_config("127.0.0.1:0", &[&backend], "");
    let mut flowgate = Process::run_with_descriptors(FLOWGATE, &config, 200);
    let address = flowgate.address();
    let clients: Vec<Peer> = (0..600).map(|_| Peer::v4()).collect();
    for client in &clients {
        client.send_to(b"question", address);
    }
    let ledger = eventually("all are counted", || {
        let status = flowgate.ask_json(&["status"]);
        let ledger = status["listeners"][0]["to_backend"].clone();
        (ledger["received"]["datagrams"] == 600).then_some(ledger)
    });
    let dropped = ledger["dropped"].as_object().expect("a table");
    let reasons: Vec<&str> = dropped.keys().map(String::as_str).collect();
    assert!(reasons.iter().all(|reason| ["max_flows", "overload"].contains(reason)), "{reasons:?}");
    assert!(ledger["forwarded"]["datagrams"].as_u64() >= Some(100), "{ledger}");
}

/// The same where there are fewer ports than descriptors.
#[test]
fn a_flood_of_clients_that_nobody_answers_does_not_use_up_the_local_ports() {
    let Some(namespace) = Namespace::new() else { return };
    let (balancer, backend, flooder) = namespace.inside(|| {
        let range = "/proc/sys/net/ipv4/ip_local_port_range";
        std::fs::write(range, "40000 40159").expect("a setting");
        // They have ports beyond that range.
        let (backend, flooder) = (Peer::bind("127.0.0.1:7"), Peer::bind("127.0.0.1:8"));
        let config = simple_config("127.0.0.1:9", &[&backend], "");
        (Balancer::start(&config), backend, flooder)
    });
    flooder.send_to(b"known", balancer.address());
    assert_eq!(backend.answer(b"answer").bytes, b"known");
    for port in 10..610 {
        let client = namespace.inside(|| Peer::bind(&format!("127.0.0.1:{port}")));
        client.send_to(b"question", balancer.address());
    }
    balancer.eventually("all are counted", |figures| {
        figures.counters.to_backend.received.datagrams == 601
    });
    assert_eq!(balancer.dropped(Direction::ToBackend, DropReason::NoPorts), 0);
    assert!(balancer.dropped(Direction::ToBackend, DropReason::MaxFlows) > 0);
    assert_eq!(balancer.figures().counters.closed(CloseReason::UpstreamFailed), 0);
}

#[test]
fn flows_that_share_sockets_are_more_than_descriptors_and_leave_some_to_operators() {
    const FLOWS: usize = 400;
    let backends: [Peer; 5] = std::array::from_fn(|_| Peer::v4());
    let more = "upstream = \"shared\"\nbalance = \"round-robin\"";
    let config = simple_config("127.0.0.1:0", &backends.each_ref(), more);
    let config = config.replace("[[listener]]", "[[listener]]\nmax_flows = 500");
    let mut flowgate = Process::run_with_descriptors(FLOWGATE, &config, 200);
    let address = flowgate.address();
    let clients: Vec<Peer> = (0..FLOWS).map(|_| Peer::v4()).collect();
    for (client, backend) in clients.iter().zip(backends.iter().cycle()) {
        client.send_to(b"question", address);
        assert_eq!(backend.answer(b"answer").bytes, b"question");
        assert_eq!(client.receive().bytes, b"answer");
    }
    let status = flowgate.ask_json(&["status"]);
    assert_eq!(status["listeners"][0]["flows_max"], 500);
    assert_eq!(status["listeners"][0]["flows_active"], FLOWS);

    // Where all go to one backend there is a socket for each, and no descriptor for the last ones.
    let [first, others @ ..] = &backends;
    for backend in others {
        let drained = flowgate.ask(&["drain", &format!("test/{}", backend.address())]);
        assert!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
    }
    let more: Vec<Peer> = (0..FLOWS / 4).map(|_| Peer::v4()).collect();
    for client in &more {
        client.send_to(b"question", address);
    }
    eventually("each is forwarded or dropped, and the last ones are dropped", || {
        let status = flowgate.ask_json(&["status"]);
        let count = |name: &str| status["counters"][name]["to_backend"].as_u64().unwrap_or(0);
        let (forwarded, dropped) = (count("datagrams_forwarded"), count("datagrams_dropped"));
        (dropped > 0 && forwarded + dropped == (FLOWS + more.len()) as u64).then_some(())
    });
    assert_eq!(first.receive().bytes, b"question");
}

#[test]
fn clients_on_the_link_that_do_not_exist_hold_up_no_others() {
    const FORGED: u64 = 40;
    const QUESTIONS: u64 = 10;
    let Some([near, far]) = Namespace::pair() else { return };
    // Everybody knows the other's hardware address, and nobody answers who asks for one.
    near.ip("link set one address 02:00:00:00:00:01");
    far.ip("link set two address 02:00:00:00:00:02");
    near.ip("neigh replace 10.9.0.2 lladdr 02:00:00:00:00:02 dev one nud permanent");
    far.ip("neigh replace 10.9.0.1 lladdr 02:00:00:00:00:01 dev two nud permanent");
    let silence = "/proc/sys/net/ipv4/conf/two/arp_ignore";
    far.inside(|| std::fs::write(silence, "8").expect("a setting"));
    let backend = near.inside(Peer::v4);
    let balancer = near.inside(|| {
        Balancer::start(
            &simple_config("10.9.0.1:0", &[&backend], "")
                .replace("[cluster", "send_buffer = \"64KiB\"\n[cluster"),
        )
    });
    let client = far.inside(|| Peer::bind("10.9.0.2:0"));
    for host in 0..FORGED {
        far.ip(&format!("address add 10.9.0.{}/24 dev two", 100 + host));
        let forged = far.inside(|| Peer::bind(&format!("10.9.0.{}:0", 100 + host)));
        for _ in 0..QUESTIONS {
            forged.send_to(b"question", balancer.address());
            backend.answer(&[0; 1_000]);
        }
    }
    balancer.eventually("some answers are given up", |figures| {
        let ledger = &figures.counters.to_client;
        ledger.received.datagrams == FORGED * QUESTIONS
            && ledger.dropped_for(DropReason::Unreachable).datagrams > 0
            && ledger.queued.datagrams == 0
    });
    for _ in 0..100 {
        client.send_to(b"question", balancer.address());
        backend.answer(b"answer");
        assert_eq!(client.receive().bytes, b"answer");
    }
}

/// A client and a balancer in a namespace, in front of a backend that the test's routes lead to.
fn behind_routes(namespace: &Namespace, backend: &str) -> (Balancer, Peer) {
    namespace.inside(|| {
        let config = "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"test\"\n\
                      [cluster.test]\nbackends = [\"BACKEND\"]\n";
        (Balancer::start(&config.replace("BACKEND", backend)), Peer::v4())
    })
}

#[test]
fn a_backend_without_a_route_is_a_counted_drop_until_there_is_one() {
    let Some(namespace) = Namespace::new() else { return };
    let (balancer, client) = behind_routes(&namespace, "10.9.9.1:53");
    let routes = [
        ("unreachable", DropReason::Unreachable),
        ("prohibit", DropReason::NotPermitted),
        ("blackhole", DropReason::SendFailed),
    ];
    client.send_to(b"no route at all", balancer.address());
    wait_for_drops(&balancer, DropReason::Unreachable, 1);
    for (kind, reason) in routes {
        let before = balancer.dropped(Direction::ToBackend, reason);
        namespace.ip(&format!("route replace {kind} 10.9.9.1/32"));
        client.send_to(b"no way", balancer.address());
        wait_for_drops(&balancer, reason, before + 1);
        namespace.ip(&format!("route del {kind} 10.9.9.1/32"));
    }
    assert_eq!(balancer.figures().counters.closed(CloseReason::UpstreamFailed), 4);

    namespace.ip("address add 10.9.9.1/32 dev lo");
    let backend = namespace.inside(|| Peer::bind("10.9.9.1:53"));
    client.send_to(b"at last", balancer.address());
    assert_eq!(backend.answer(b"welcome").bytes, b"at last");
    assert_eq!(client.receive().bytes, b"welcome");
}

#[test]
fn a_route_that_goes_away_under_a_flow_costs_its_datagrams_and_not_the_flow() {
    let Some([near, far]) = Namespace::pair() else { return };
    let backend = far.inside(|| Peer::bind("10.9.0.2:53"));
    let (balancer, client) = behind_routes(&near, "10.9.0.2:53");
    client.send_to(b"before", balancer.address());
    let upstream = backend.receive().from;
    for (kind, reason) in
        [("prohibit", DropReason::NotPermitted), ("unreachable", DropReason::Unreachable)]
    {
        near.ip(&format!("route add {kind} 10.9.0.2/32"));
        client.send_to(b"meanwhile", balancer.address());
        client.send_to(b"meanwhile", balancer.address());
        wait_for_drops(&balancer, reason, 2);
        near.ip(&format!("route del {kind} 10.9.0.2/32"));

        client.send_to(b"after", balancer.address());
        let received = backend.receive();
        assert_eq!((received.from, &received.bytes[..]), (upstream, &b"after"[..]));
    }
}

#[test]
fn a_slow_way_to_one_backend_fills_its_queue_and_holds_up_no_other_flow() {
    const DATAGRAMS: u64 = 4_000;
    let Some([near, far]) = Namespace::pair() else { return };
    // A link of 16 Mbit/s that keeps what it cannot carry yet, charged to its sender.
    near.tc("qdisc add dev one root tbf rate 16mbit burst 32k limit 4m");
    let slow = far.inside(|| Peer::bind("10.9.0.2:0"));
    let (quick, [bulk, other]) = near.inside(|| (Peer::v4(), [(); 2].map(|()| Peer::v4())));
    let config = "balance = \"round-robin\"";
    let balancer = near.inside(|| Balancer::between("127.0.0.1:0", &[&slow, &quick], config));

    bulk.send_to(&[0; 1_000], balancer.address());
    slow.receive();
    other.send_to(b"hello", balancer.address());
    let other_upstream = quick.receive().from;
    for number in 1..DATAGRAMS {
        bulk.send_to(&[number as u8; 1_000], balancer.address());
        if number % 100 == 0 {
            other.send_to(b"quick", balancer.address());
            assert_eq!(quick.receive().bytes, b"quick");
            quick.send_to(b"back", other_upstream);
            assert_eq!(other.receive().bytes, b"back");
        }
    }
    let settled = balancer.eventually("all were received", |figures| {
        figures.counters.to_backend.received.datagrams >= DATAGRAMS + 1 + (DATAGRAMS - 1) / 100
    });
    let ledger = settled.counters.ledger(Direction::ToBackend);
    let lost = ledger.dropped_for(DropReason::QueueFull).datagrams;
    assert!(lost > 0, "the queue has an end");
    assert_eq!(ledger.dropped_total().datagrams, lost);

    // Whatever was not counted as lost arrives, in its order.
    let mut order = vec![];
    for _ in 1..DATAGRAMS - lost {
        order.push(slow.receive().bytes[0]);
    }
    let mut sent = (1..DATAGRAMS).map(|number| number as u8);
    assert!(order.iter().all(|number| sent.any(|sent| sent == *number)), "out of order");
}

fn wait_for_drops(balancer: &Balancer, reason: DropReason, datagrams: u64) {
    let dropped = || balancer.dropped(Direction::ToBackend, reason);
    eventually(reason.as_str(), || (dropped() >= datagrams).then_some(()));
}
