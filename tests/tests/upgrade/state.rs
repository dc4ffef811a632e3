//! What a new process knows, and what its own configuration changes.

use std::sync::atomic::{AtomicBool, Ordering};

use flowgate::handover::snapshot::ProcessSnapshot;
use flowgate_tests::e2e::{Peer, eventually, own_address, simple_config};
use flowgate_tests::skip::skip;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::start;

/// Which backend is in which state.
fn states(status: &Value) -> Vec<(String, String)> {
    let backends = status["clusters"][0]["backends"].as_array().expect("backends");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    backends.iter().map(|backend| (text(&backend["address"]), text(&backend["state"]))).collect()
}

#[test]
fn a_backend_stays_down_and_another_stays_drained() {
    let backends = [(); 3].map(|()| Peer::v4());
    let all = backends.each_ref();
    // Nobody answers the probes: with `rise` and `fall` it takes some of them to be sure.
    let toml = simple_config(
        "127.0.0.1:0",
        &all,
        "[cluster.test.health]\nprobe = \"udp\"\nsend = \"text:PING\"\ninterval = \"500ms\"\n\
         timeout = \"500ms\"\nfall = 3\nfail_open = false\n",
    );
    let (mut flowgate, _) = start(&toml);
    // The first one answers, the others do not.
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                if let Some(ping) = backends[0].receive_soon() {
                    backends[0].send_to(b"PONG", ping.from);
                }
            }
        });
        let drained = backends[0].address().to_string();
        eventually("two are down", || {
            let states = states(&flowgate.ask_json(&["status"]));
            states[1..].iter().all(|(_, state)| state == "down").then_some(())
        });
        flowgate.ask(&["drain", &format!("test/{drained}")]);
        let before = states(&flowgate.ask_json(&["status"]));
        assert_eq!(before[0], (drained, "draining".into()));

        flowgate.upgrade(&[]);
        let after = states(&flowgate.ask_json(&["status"]));
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(after, before);
    });
}

/// The deadline of a drain goes along: a flow that outlives the upgrade ends with it.
#[test]
fn a_drain_ends_when_it_was_to_end() {
    let (client, backend) = (Peer::v4(), Peer::v4());
    let (mut flowgate, address) = start(&simple_config("127.0.0.1:0", &[&backend], ""));
    client.send_to(b"question", address);
    backend.receive();
    let drained = format!("test/{}", backend.address());
    flowgate.ask(&["drain", &drained, "--deadline", "3s"]);
    flowgate.upgrade(&[]);
    let status = flowgate.ask_json(&["status"]);
    assert_eq!(status["clusters"][0]["backends"][0]["state"], "draining");
    // It would live for a minute otherwise.
    eventually("its flow ends at the deadline", || {
        let status = flowgate.ask_json(&["status"]);
        (status["listeners"][0]["flows_closed"]["drained"] == 1).then_some(())
    });
}

#[test]
fn a_flow_has_told_its_client_already_and_tells_it_only_once() {
    let backend = Peer::v4();
    let more = "send_proxy_protocol = \"first\"\n";
    let (mut flowgate, address) = start(&simple_config("127.0.0.1:0", &[&backend], more));
    let client = Peer::v4();
    client.send_to(b"one", address);
    assert!(backend.receive().bytes.starts_with(b"\r\n\r\n\0\r\nQUIT\n"));
    flowgate.upgrade(&[]);
    client.send_to(b"two", address);
    assert_eq!(backend.receive().bytes, b"two");
}

#[test]
fn limits_and_shared_sockets_go_along() {
    let backend = Peer::v4();
    let more = "responses = 1\nupstream = \"shared\"\nupstream_quarantine = \"1h\"\n[cluster.test.limits]\n\
                flows_per_source = 2\nunanswered_timeout = \"1h\"\n";
    let (mut flowgate, address) = start(&simple_config("127.0.0.1:0", &[&backend], more));
    let clients = [(); 4].map(|()| Peer::v4());
    // One flow has ended, and its place on a shared socket rests; two are open.
    clients[0].send_to(b"question", address);
    let resting = backend.answer(b"answer").from;
    clients[0].receive();
    for client in &clients[1..3] {
        client.send_to(b"question", address);
        backend.receive();
    }
    flowgate.upgrade(&[]);
    clients[3].send_to(b"one too many", address);
    let dropped = |status: &Value| {
        let reasons = &status["listeners"][0]["to_backend"]["dropped"];
        reasons["source_flows"]["datagrams"].as_u64()
    };
    eventually("it is dropped", || dropped(&flowgate.ask_json(&["status"])));
    // What comes late reaches nobody.
    backend.send_to(b"late", resting);
    eventually("it is dropped", || {
        let status = flowgate.ask_json(&["status"]);
        status["listeners"][0]["to_client"]["dropped"]["unknown_flow"]["datagrams"].as_u64()
    });
    assert!(clients.iter().all(|client| client.receive_soon().is_none()));
}

#[test]
fn datagrams_without_flows_go_on_from_the_same_ports() {
    for mode in ["one-way", "fan-out"] {
        let backends = [Peer::v4(), Peer::v4()];
        let more = format!("mode = \"{mode}\"\nbalance = \"round-robin\"\n");
        let toml = simple_config("127.0.0.1:0", &[&backends[0], &backends[1]], &more);
        let (mut flowgate, address) = start(&toml);
        let client = Peer::v4();
        let send_two = || {
            client.send_to(b"a", address);
            client.send_to(b"b", address);
            [&backends[0], &backends[1]].map(|backend| backend.receive().from)
        };
        let before = send_two();
        flowgate.upgrade(&[]);
        if mode == "fan-out" {
            backends.iter().for_each(|backend| drop(backend.receive()));
        }
        assert_eq!(send_two(), before, "{mode}");
    }
}

#[test]
fn clients_keep_their_own_sockets_and_what_waits_in_them() {
    if let Err(reason) = flowgate::control::accept::try_it() {
        return skip(&reason.to_string()).unwrap_or_default();
    }
    let backend = Peer::v4();
    let toml = simple_config("127.0.0.1:0", &[&backend], "");
    let toml = toml.replace("[[listener]]", "[[listener]]\naccept = \"connected\"");
    let (mut flowgate, address) = start(&toml);
    let clients: Vec<_> = (0..8).map(|_| Peer::v4()).collect();
    let ask_all = |round: u8| {
        for (number, client) in (0..).zip(&clients) {
            // Several, so that their order shows.
            let questions = [0, 1, 2].map(|index| [round, number, index]);
            questions.iter().for_each(|question| client.send_to(question, address));
            for question in questions {
                assert_eq!(backend.answer(&question).bytes, question);
                assert_eq!(client.receive().bytes, question);
            }
        }
    };
    let sockets =
        |status: &Value| status["listeners"][0]["client_sockets"].as_u64().expect("a number");
    ask_all(0);
    assert_eq!(sockets(&flowgate.ask_json(&["status"])), 8);
    for round in 1..4 {
        flowgate.upgrade(&[]);
        ask_all(round);
        let status = flowgate.ask_json(&["status"]);
        assert_eq!(sockets(&status), 8);
        assert_eq!(status["counters"]["flows_opened"], 8);
    }
}

#[test]
fn the_new_process_goes_over_to_the_file_as_it_is_now() {
    let backends = [Peer::v4(), Peer::v4()];
    let before = |workers: usize| {
        let one = simple_config("127.0.0.1:0", &[&backends[0]], "");
        format!("workers = {workers}\n{one}")
    };
    let (mut flowgate, address) = start(&before(2));
    let clients: Vec<_> = (0..16).map(|_| Peer::v4()).collect();
    let ask = || {
        let ask = |client: &Peer| {
            client.send_to(b"question", address);
            let from = backends[0].answer(b"answer").from;
            client.receive();
            from
        };
        clients.iter().map(ask).collect::<Vec<_>>()
    };
    let paths = ask();

    // The sockets of a listener stay as many as they were, and are shared out again.
    for workers in [1, 3, 2] {
        flowgate.rewrite_config(&before(workers));
        flowgate.upgrade(&[]);
        assert_eq!(ask(), paths, "{workers} workers");
        let threads = flowgate.threads().into_iter();
        assert_eq!(threads.filter(|(name, _)| name.starts_with("worker-")).count(), workers);
    }

    // A file that is not valid is a reason to go on as it was.
    flowgate.rewrite_config("[[listener]]\naddress = 7\n");
    let refusal = flowgate.ask(&["upgrade"]);
    let complaint = String::from_utf8_lossy(&refusal.stderr).into_owned();
    assert_eq!(refusal.status.code(), Some(1));
    assert!(complaint.contains("address: found 7"), "{complaint}");
    assert_eq!(ask(), paths);

    // A new listener, another cluster for the old one, and another place for operators.
    let second = format!(
        "{}[[listener]]\nname = \"second\"\naddress = \"127.0.0.1:0\"\ncluster = \"other\"\n\
         [cluster.other]\nbackends = [\"{}\"]\n",
        before(2),
        backends[1].address()
    );
    flowgate.rewrite_config(&second);
    flowgate.upgrade(&[]);
    assert_eq!(ask(), paths);
    let status = flowgate.ask_json(&["status"]);
    let address = status["listeners"][1]["address"].as_str().unwrap().parse().unwrap();
    clients[0].send_to(b"hello", address);
    assert_eq!(backends[1].receive().bytes, b"hello");
}

#[test]
fn a_backend_that_gets_a_name_goes_on_without_a_gap() {
    if std::net::ToSocketAddrs::to_socket_addrs("localhost:0").is_err() {
        return skip("this system does not know localhost").unwrap_or_default();
    }
    let backend = Peer::v4();
    let port = backend.address().port();
    let toml = simple_config("127.0.0.1:0", &[&backend], "idle_timeout = \"1h\"\n");
    let (mut flowgate, address) = start(&toml);
    let client = Peer::v4();
    client.send_to(b"before", address);
    let before = backend.receive().from;
    let by_name = format!("localhost:{port}");
    flowgate.rewrite_config(&toml.replace(&backend.address().to_string(), &by_name));
    // All the while, also when the new process goes over to its configuration.
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            flowgate.upgrade(&[]);
            is_over.store(true, Ordering::Relaxed);
        });
        while !is_over.load(Ordering::Relaxed) {
            client.send_to(b"during", address);
            assert_eq!(backend.receive().from, before);
        }
    });
    let status = flowgate.ask_json(&["status"]);
    let backends = status["clusters"][0]["backends"].as_array().expect("backends").clone();
    let is_ours = |backend: &&Value| backend["address"] == format!("127.0.0.1:{port}");
    assert_eq!(backends.iter().find(is_ours).expect("it stays")["name"], "localhost");
    assert_eq!(status["listeners"][0]["to_backend"]["dropped"], serde_json::json!({}));
}

#[test]
fn sigusr2_upgrades_too_and_the_metrics_stay_where_they_are() {
    let backend = Peer::v4();
    let http = own_address();
    let socket = flowgate_tests::scratch::unused_path("usr2.sock");
    let toml = format!(
        "[admin]\nsocket = {socket:?}\nhttp = \"{http}\"\n{}",
        simple_config("127.0.0.1:0", &[&backend], "")
    );
    let (flowgate, _) = start(&toml);
    let ask = || {
        let arguments = ["status", "--json", "--socket", socket.to_str().unwrap()];
        let answer = flowgate_tests::process::output(super::FLOWGATE, &arguments);
        let status: Value = serde_json::from_slice(&answer.stdout).ok()?;
        status["pid"].as_i64()
    };
    let first = ask().expect("an answer");
    flowgate.signal(Signal::SIGUSR2);
    let second = eventually("another process serves", || ask().filter(|pid| *pid != first));
    eventually("it answers", || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(http).ok()?;
        stream.write_all(b"GET /status HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.contains(&format!("\"pid\":{second}")).then_some(())
    });
    let stop = ["stop", "--now", "--socket", socket.to_str().unwrap()];
    assert!(flowgate_tests::process::output(super::FLOWGATE, &stop).status.success());
    eventually("its socket is removed", || (!socket.exists()).then_some(()));
}

/// Someone has tidied up: the new process opens another control socket, where it should be.
#[test]
fn a_control_socket_whose_file_is_gone_is_opened_anew() {
    let backend = Peer::v4();
    let (mut flowgate, _) = start(&simple_config("127.0.0.1:0", &[&backend], ""));
    std::fs::remove_file(flowgate.control_socket()).expect("it is there");
    let old = flowgate.pid();
    flowgate.signal(Signal::SIGUSR2);
    // The old one cannot be asked any more.
    flowgate.follow();
    assert_ne!(flowgate.pid(), old);
}

#[test]
fn a_snapshot_says_what_the_process_is() {
    let backend = Peer::v4();
    let toml = simple_config("127.0.0.1:0", &[&backend], "");
    let (flowgate, address) = start(&toml);
    let client = Peer::v4();
    client.send_to(b"hello", address);
    backend.receive();
    let snapshot = flowgate.ask(&["snapshot"]);
    assert!(snapshot.status.success());
    let snapshot: ProcessSnapshot =
        flowgate_core::snapshot::decode(&snapshot.stdout).expect("a snapshot");
    assert!(snapshot.config.contains(&backend.address().to_string()));
    assert_eq!(snapshot.server.listeners[0].address, address);
    assert_eq!(snapshot.server.listeners[0].shards[0].manager().upstream_ids().count(), 1);
}
