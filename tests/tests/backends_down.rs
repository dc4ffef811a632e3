//! Backends that die, fall silent, drain and come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use flowgate_tests::e2e::{Balancer, Peer, eventually, own_ports, wait_until_closed};
use flowgate_tests::echo_server::EchoServer;
use flowgate_tests::process::Process;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

fn echo() -> EchoServer {
    EchoServer::start("127.0.0.1:0", |_| true)
}

/// One at an address where no other socket takes its port while it is away.
fn echo_that_comes_back() -> EchoServer {
    EchoServer::start("127.0.7.1:0", |_| true)
}

/// The server is gone, and its port refuses what comes.
fn kill(server: EchoServer) {
    let address = server.address();
    drop(server);
    wait_until_closed(address);
}

/// One listener in front of backends of which the first is everybody's first choice.
fn toml(backends: [&EchoServer; 2], more: &str) -> String {
    let [first, second] = backends.map(EchoServer::address);
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"test\"\n[cluster.test]\n\
         backends = [\"{first}\", {{ address = \"{second}\", backup = true }}]\n{more}\n"
    )
}

/// A backend of the cluster as operators call it.
fn name(backend: &EchoServer) -> String {
    format!("test/{}", backend.address())
}

fn state(flowgate: &Process, backend: usize) -> String {
    let status = flowgate.ask_json(&["status"]);
    let state = &status["clusters"][0]["backends"][backend]["state"];
    state.as_str().expect("a state").to_owned()
}

#[test]
fn when_a_backend_dies_a_client_that_sends_all_the_time_loses_two_datagrams_at_most() {
    let (first, second) = (echo(), echo());
    let balancer = Balancer::start(&toml([&first, &second], ""));
    let client = Peer::v4();
    // As a client does that sends every ten milliseconds: what became of a datagram is known
    // before the next one is sent.
    let send = |number: u64| {
        client.send_to(&number.to_be_bytes(), balancer.address());
        balancer.eventually("it is answered or refused", |figures| {
            figures.counters.to_client.forwarded.datagrams + figures.counters.upstream_errors
                == number
        });
    };
    (1..=5).for_each(send);
    assert_eq!((first.received(), second.received()), (5, 0));
    kill(first);
    (6..=25).for_each(send);
    let figures = balancer.figures();
    assert!(figures.counters.upstream_errors <= 2, "this many were lost");
    assert!(second.received() >= 18);
    assert_eq!(figures.backends[0].state.as_str(), "ejected");
    assert_eq!(figures.counters.flows_opened, 1, "to the client it is the same flow");
}

#[test]
fn a_dead_backend_comes_back_by_itself() {
    let (first, second) = (echo_that_comes_back(), echo());
    let at = first.address().to_string();
    let more = "[cluster.test.health]\ninterval = \"100ms\"";
    let mut flowgate = Process::run(FLOWGATE, &toml([&first, &second], more));
    let address = flowgate.address();
    kill(first);
    // Each datagram is an attempt, until two of them have been refused.
    eventually("the backend is found dead", || {
        Peer::v4().send_to(b"hello", address);
        (state(&flowgate, 0) == "ejected").then_some(())
    });
    let first = EchoServer::start(&at, |_| true);
    eventually("it serves again", || {
        Peer::v4().send_to(b"hello", address);
        (first.received() > 0).then_some(())
    });
}

#[test]
fn what_a_live_flow_does_when_its_backend_goes_down_is_as_configured() {
    for policy in ["pin", "rehash", "close"] {
        let (first, second) = (echo_that_comes_back(), echo());
        let at = first.address().to_string();
        let more = format!(
            "on_backend_down = {policy:?}\n[cluster.test.health]\nprobe = \"udp\"\n\
             send = \"text:probe\"\ninterval = \"20ms\"\nrise = 1\nfall = 2\npassive = false"
        );
        let mut flowgate = Process::run(FLOWGATE, &toml([&first, &second], &more));
        let address = flowgate.address();
        let client = Peer::v4();
        client.send_to(b"before", address);
        assert_eq!(client.receive().bytes, b"before");
        kill(first);
        eventually("its probes fail", || (state(&flowgate, 0) == "down").then_some(()));
        let (flows, reason) = match policy {
            "pin" => (1, None),
            "rehash" => (1, None),
            _ => (0, Some("backend_down")),
        };
        eventually("the flow does as it is told", || {
            let status = flowgate.ask_json(&["status"]);
            let listener = &status["listeners"][0];
            let is_so = listener["flows_active"] == flows
                && reason.is_none_or(|reason| listener["flows_closed"][reason] == 1);
            is_so.then_some(())
        });
        let first = EchoServer::start(&at, |datagram| datagram != b"probe");
        client.send_to(b"after", address);
        assert_eq!(client.receive().bytes, b"after");
        // One that is pinned hopes, and is right.
        let expected = if policy == "pin" { &first } else { &second };
        let flows = flowgate.ask_json(&["flows"]);
        assert_eq!(flows["flows"][0]["backend"], expected.address().to_string(), "with {policy}");
    }
}

#[test]
fn one_forged_or_stray_icmp_message_takes_no_backend_down_and_costs_no_datagram() {
    let backend = Peer::bind("127.0.7.2:0");
    let other = echo();
    let config = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"test\"\n[cluster.test]\n\
         backends = [\"{}\", {{ address = \"{}\", backup = true }}]\n",
        backend.address(),
        other.address()
    );
    let balancer = Balancer::start(&config);
    let client = Peer::v4();
    client.send_to(b"hello", balancer.address());
    let upstream = backend.receive().from;
    // For a moment nobody has the port: a datagram to it is refused, and the socket remembers.
    let at = backend.address().to_string();
    let closed = backend.address();
    drop(backend);
    wait_until_closed(closed);
    client.send_to(b"refused", balancer.address());
    balancer.eventually("the refusal is heard", |f| f.counters.upstream_errors == 1);
    let backend = eventually("its port is free", || Peer::try_bind(&at).ok());
    client.send_to(b"not lost", balancer.address());
    let next = backend.receive();
    assert_eq!((next.bytes.as_slice(), next.from), (&b"not lost"[..], upstream));
    assert_eq!(other.received(), 0);
    let figures = balancer.figures();
    assert!(figures.backends.iter().all(|backend| backend.is_up));
}

#[test]
fn a_silent_backend_is_out_after_as_many_probes_as_it_may_fail() {
    let is_mute = Arc::new(AtomicBool::new(false));
    let answers = {
        let is_mute = Arc::clone(&is_mute);
        move |_: &[u8]| !is_mute.load(Relaxed)
    };
    let (first, second) = (EchoServer::start("127.0.0.1:0", answers), echo());
    let more = "[cluster.test.health]\nprobe = \"udp\"\nsend = \"text:probe\"\n\
                interval = \"50ms\"\ntimeout = \"50ms\"\nfall = 3";
    let mut flowgate = Process::run(FLOWGATE, &toml([&first, &second], more));
    let address = flowgate.address();
    let client = Peer::v4();
    client.send_to(b"before", address);
    assert_eq!(client.receive().bytes, b"before");
    assert_eq!(state(&flowgate, 0), "up");
    // It keeps its port, and answers nothing: as if a filter dropped what comes and goes.
    is_mute.store(true, Relaxed);
    let before = first.received();
    eventually("it is out", || (state(&flowgate, 0) == "down").then_some(()));
    assert!(first.received() >= before + 2, "three probes fail, the first of them under way");
    client.send_to(b"after", address);
    assert_eq!(client.receive().bytes, b"after");
}

#[test]
fn all_down_means_as_if_all_were_up_or_dropped_as_configured() {
    for fail_open in [true, false] {
        let (first, second) = (echo(), echo());
        // Nobody listens where the probes go.
        let nobody = own_ports("0.0.0.0", 1);
        let more = format!(
            "[cluster.test.health]\nprobe = \"udp\"\nsend = \"text:probe\"\nport = {nobody}\n\
             interval = \"20ms\"\nfall = 1\nfail_open = {fail_open}"
        );
        let mut flowgate = Process::run(FLOWGATE, &toml([&first, &second], &more));
        let address = flowgate.address();
        eventually("both are down", || {
            (0..2).all(|backend| state(&flowgate, backend) == "down").then_some(())
        });
        let client = Peer::v4();
        client.send_to(b"hello", address);
        if fail_open {
            assert_eq!(client.receive().bytes, b"hello");
            assert_eq!((first.received(), second.received()), (1, 0), "the backup stays one");
        } else {
            eventually("it is dropped", || {
                let status = flowgate.ask_json(&["status"]);
                let drops = &status["listeners"][0]["to_backend"]["dropped"];
                (drops["no_backend"]["datagrams"] == 1).then_some(())
            });
        }
    }
}

#[test]
fn a_draining_backend_keeps_its_flows_until_its_deadline_and_gets_no_new_ones() {
    let (first, second) = (echo(), echo());
    let mut flowgate = Process::run(FLOWGATE, &toml([&first, &second], ""));
    let address = flowgate.address();
    let backend = format!("test/{}", first.address());
    let old = Peer::v4();
    old.send_to(b"old", address);
    assert_eq!(old.receive().bytes, b"old");

    assert!(flowgate.ask(&["drain", &backend]).status.success());
    assert_eq!(state(&flowgate, 0), "draining");
    old.send_to(b"old", address);
    assert_eq!(old.receive().bytes, b"old");
    let new = Peer::v4();
    new.send_to(b"new", address);
    assert_eq!(new.receive().bytes, b"new");
    assert_eq!((first.received(), second.received()), (2, 1));

    assert!(flowgate.ask(&["drain", &backend, "--deadline", "50ms"]).status.success());
    eventually("the old flow is closed", || {
        let status = flowgate.ask_json(&["status"]);
        (status["listeners"][0]["flows_closed"]["drained"] == 1).then_some(())
    });
    old.send_to(b"old", address);
    assert_eq!(old.receive().bytes, b"old");
    assert_eq!((first.received(), second.received()), (2, 2));

    assert!(flowgate.ask(&["undrain", &backend]).status.success());
    assert_eq!(state(&flowgate, 0), "up");
    let another = Peer::v4();
    another.send_to(b"again", address);
    assert_eq!(another.receive().bytes, b"again");
    assert_eq!(first.received(), 3);
}

#[test]
fn a_drain_survives_a_reload_and_a_backend_that_is_not_there_is_refused() {
    let (first, second) = (echo(), echo());
    let config = toml([&first, &second], "");
    let mut flowgate = Process::run(FLOWGATE, &config);
    flowgate.line("started");
    let backend = format!("test/{}", first.address());
    assert!(flowgate.ask(&["drain", &backend]).status.success());
    flowgate.reload(&config.replace("backends", "idle_timeout = \"5s\"\nbackends"));
    assert_eq!(state(&flowgate, 0), "draining");
    for (wrong, hint) in
        [("nest/127.0.0.1:1", "there is no cluster"), ("test/127.0.0.1:1", "has no backend")]
    {
        let output = flowgate.ask(&["drain", wrong]);
        let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{complaints}");
        assert!(complaints.contains(hint), "{hint:?} in {complaints}");
    }
}

#[test]
fn a_backend_that_never_answers_where_answers_are_expected_is_left_for_a_while() {
    let mute = EchoServer::start("127.0.0.1:0", |_| false);
    let second = echo();
    let more = "idle_timeout = \"50ms\"\nresponses = 1\n[cluster.test.health]\nfall = 3";
    let mut flowgate = Process::run(FLOWGATE, &toml([&mute, &second], more));
    let address = flowgate.address();
    for _ in 0..3 {
        Peer::v4().send_to(b"question", address);
    }
    // The log tells of it at once, without anybody asking.
    let line = flowgate.line("the backend is ejected for ");
    assert!(line.contains("cluster=\"test\"") && line.contains("without an answer"), "{line}");
    let status = flowgate.ask_json(&["status"]);
    let backend = &status["clusters"][0]["backends"][0];
    assert_eq!(
        (&backend["state"], &backend["ejections"]["unanswered"]),
        (&"ejected".into(), &1.into())
    );
    assert_eq!(backend["reason"], "it left clients without an answer");
    let seconds = |key: &str| backend[key].as_f64().unwrap_or_else(|| panic!("{key}: {backend}"));
    assert!(seconds("since_seconds") >= 0.0 && seconds("until_seconds") > 0.0);
    let event = &status["events"][0];
    assert_eq!((&event["kind"], &event["subject"]), (&"ejected".into(), &name(&mute).into()));
    // A machine that is slow answers after the flow has ended; then another one is answered.
    eventually("the other one answers", || {
        let client = Peer::v4();
        client.send_to(b"question", address);
        client.receive_soon().filter(|answer| answer.bytes == b"question")
    });

    // An operator who knows better takes it back.
    assert!(flowgate.ask(&["undrain", &name(&mute)]).status.success());
    let line = flowgate.line("the backend is ejected no more, after ");
    assert!(line.contains(&format!("backend={}", mute.address())), "{line}");
    assert_eq!(state(&flowgate, 0), "unchecked");
}
