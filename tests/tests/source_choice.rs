//! `source`: which address and port of ours the backends see.

use flowgate::control::server::{Server, ServerOptions};
use flowgate::sys::clock::Clock;
use flowgate_tests::e2e::{Balancer, Peer, eventually, simple_config};
use flowgate_tests::netns::Namespace;
use flowgate_tests::process::{ConfigFile, Process, output};

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

fn balancer(backend: &Peer, source: &str) -> Balancer {
    let more = format!("source = {source:?}");
    let listen = if backend.address().is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" };
    Balancer::between(listen, &[backend], &more)
}

#[test]
fn datagrams_leave_from_the_address_that_is_configured() {
    let backend = Peer::v4();
    let balancer = balancer(&backend, "127.0.0.7");
    for _ in 0..3 {
        let client = Peer::v4();
        client.send_to(b"question", balancer.address());
        let question = backend.answer(b"answer");
        assert_eq!(question.from.ip().to_string(), "127.0.0.7");
        assert_eq!(client.receive().bytes, b"answer");
    }
    balancer.assert_lossless(3, 3);
}

#[test]
fn an_address_that_is_not_this_hosts_is_an_error_at_start() {
    let toml = "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"web\"\n\
                [cluster.web]\nsource = \"192.0.2.77\"\nbackends = [\"10.0.0.1:53\"]\n";
    let config = flowgate_config::parse(toml, "test.toml").expect("valid anywhere");
    let started = Server::start(&config, Clock::start(), ServerOptions::default(), |_| {});
    let error = started.err().expect("refused").to_string();
    assert_eq!(
        error,
        "cluster \"web\": cannot send from source \"192.0.2.77\": Cannot assign requested address \
         (os error 99); the address is not one of this host: see `ip address`, or change \
         cluster.NAME.source"
    );
}

#[test]
fn every_leg_and_every_copy_leaves_from_the_source() {
    for reply_from in ["first", "BACKEND"] {
        let (backends, client) = ([Peer::v4(), Peer::v4()], Peer::v4());
        let reply_from = reply_from.replace("BACKEND", &backends[0].address().to_string());
        let more =
            format!("mode = \"fan-out\"\nreply_from = {reply_from:?}\nsource = \"127.0.0.13\"\n");
        let peers: Vec<_> = backends.iter().collect();
        let balancer = Balancer::between("127.0.0.1:0", &peers, &more);
        client.send_to(b"question", balancer.address());
        for backend in &backends {
            assert_eq!(backend.receive().from.ip().to_string(), "127.0.0.13", "{reply_from}");
        }
    }
}

#[test]
fn a_mirror_has_a_source_of_its_own() {
    let (backend, mirror, client) = (Peer::v4(), Peer::v4(), Peer::v4());
    let balancer = Balancer::start(&format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"main\"\n\
         [cluster.main]\nbackends = [\"{}\"]\nsource = \"127.0.0.14\"\n\
         mirror = {{ cluster = \"shadow\" }}\n\
         [cluster.shadow]\nbackends = [\"{}\"]\nsource = \"127.0.0.15\"\n",
        backend.address(),
        mirror.address()
    ));
    client.send_to(b"question", balancer.address());
    assert_eq!(backend.receive().from.ip().to_string(), "127.0.0.14");
    assert_eq!(mirror.receive().from.ip().to_string(), "127.0.0.15");
}

#[test]
fn a_reload_that_changes_the_source_has_effect_on_whatever_opens_from_then_on() {
    for mode in ["mode = \"session\"\nresponses = 1\nupstream = \"shared\"", "mode = \"one-way\""] {
        let (backend, known) = (Peer::v4(), Peer::v4());
        let toml = |address: &str, source: &str| {
            simple_config(address, &[&backend], &format!("{mode}\nsource = {source:?}"))
        };
        let mut running = Process::run(FLOWGATE, &toml("127.0.0.1:0", "127.0.0.16"));
        let address = running.address();
        let source_of_next = || {
            let client = Peer::v4();
            client.send_to(b"question", address);
            backend.answer(b"answer").from.ip().to_string()
        };
        assert_eq!(source_of_next(), "127.0.0.16");
        let is_session = mode.contains("session");
        if is_session {
            // Two answers are due, so that it lives on.
            known.send_to(b"one", address);
            known.send_to(b"two", address);
            assert_eq!(backend.answer(b"answer").from.ip().to_string(), "127.0.0.16");
            let _ = backend.receive();
        }
        running.reload(&toml("127.0.0.1:0", "127.0.0.17"));
        assert_eq!(source_of_next(), "127.0.0.17", "{mode}");
        if is_session {
            known.send_to(b"three", address);
            assert_eq!(backend.receive().from.ip().to_string(), "127.0.0.16");
        }
    }
}

#[test]
fn a_reload_to_a_source_that_cannot_be_had_changes_nothing() {
    let backend = Peer::v4();
    let toml =
        |source: &str| simple_config("127.0.0.1:0", &[&backend], &format!("source = {source:?}"));
    let mut running = Process::run(FLOWGATE, &toml("127.0.0.18"));
    let address = running.address();
    running.rewrite_config(&toml("192.0.2.77"));
    let refused = running.ask(&["reload"]);
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && complaint.contains("192.0.2.77"), "{complaint}");
    Peer::v4().send_to(b"question", address);
    assert_eq!(backend.receive().from.ip().to_string(), "127.0.0.18");
}

#[test]
fn probes_leave_from_the_source() {
    let backend = Peer::v4();
    let udp = format!(
        "source = \"127.0.0.19\"\nhealth = {{ probe = \"udp\", send = \"text:PING\", port = {}, \
         interval = \"50ms\", timeout = \"40ms\" }}",
        backend.address().port()
    );
    let _balancer = Process::run(FLOWGATE, &simple_config("127.0.0.1:0", &[&backend], &udp));
    let probe = backend.receive();
    assert_eq!(
        (probe.bytes.as_slice(), probe.from.ip().to_string().as_str()),
        (&b"PING"[..], "127.0.0.19")
    );

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let tcp = format!(
        "source = \"127.0.0.20\"\nhealth = {{ probe = \"tcp\", port = {port}, interval = \"50ms\", \
         timeout = \"40ms\" }}"
    );
    let _balancer = Process::run(FLOWGATE, &simple_config("127.0.0.1:0", &[&backend], &tcp));
    let (_connection, from) = listener.accept().unwrap();
    assert_eq!(from.ip().to_string(), "127.0.0.20");
}

#[test]
fn an_address_of_several_that_is_not_this_hosts_is_warned_of_and_the_others_serve() {
    let backend = Peer::v4();
    let toml = |sources: &[&str]| {
        simple_config("127.0.0.1:0", &[&backend], &format!("source = {sources:?}"))
    };
    let mut running = Process::run(FLOWGATE, &toml(&["192.0.2.77", "127.0.0.30", "2001:db8::77"]));
    running.line("cannot send from source \"192.0.2.77\"");
    running.line("cannot send from source \"2001:db8::77\"");
    let address = running.address();
    let served_from = |running: &Process, expected: &str| {
        for _ in 0..8 {
            Peer::v4().send_to(b"question", address);
            assert_eq!(backend.receive().from.ip().to_string(), expected);
        }
        assert!(running.ask(&["ready"]).status.success());
    };
    served_from(&running, "127.0.0.30");

    let reloaded = {
        running.rewrite_config(
            &toml(&["127.0.0.31", "192.0.2.78"])
                .replace("address = \"127.0.0.1:0\"", &format!("address = \"{address}\"")),
        );
        running.ask(&["reload"])
    };
    let said = String::from_utf8_lossy(&reloaded.stdout).into_owned()
        + &String::from_utf8_lossy(&reloaded.stderr);
    assert!(reloaded.status.success(), "{said}");
    let warning = "cannot send from source \"192.0.2.78\"";
    assert!(said.contains(warning) && said.contains("`ip address`"), "{said}");
    let status = running.ask_json(&["status"]);
    assert!(status["process"]["last_reload"].to_string().contains("192.0.2.78"), "{status}");
    served_from(&running, "127.0.0.31");
}

#[test]
fn of_several_addresses_one_that_serves_each_backend_must_be_this_hosts() {
    let backends = [Peer::v4(), Peer::v6()];
    for (sources, named) in [
        ("[\"192.0.2.77\", \"192.0.2.78\", \"::1\"]", "\"192.0.2.77 or 192.0.2.78\""),
        ("[\"127.0.0.1\", \"2001:db8::77\"]", "\"2001:db8::77\""),
    ] {
        let more = format!("source = {sources}");
        let toml = simple_config("127.0.0.1:0", &backends.each_ref(), &more);
        let config = ConfigFile::new(&toml);
        let refused = output(FLOWGATE, &["run", config.path()]);
        let complaint = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success(), "{complaint}");
        assert!(complaint.contains(&format!("cannot send from source {named}")), "{complaint}");
        // What a host has is not what makes a configuration valid.
        assert!(output(FLOWGATE, &["check", config.path()]).status.success());
    }
}

#[test]
fn probes_go_from_another_address_where_the_first_is_not_this_hosts() {
    let backend = Peer::v4();
    let udp = format!(
        "source = [\"192.0.2.77\", \"127.0.0.32\"]\nhealth = {{ probe = \"udp\", \
         send = \"text:PING\", port = {}, interval = \"50ms\", timeout = \"40ms\" }}",
        backend.address().port()
    );
    let _balancer = Process::run(FLOWGATE, &simple_config("127.0.0.1:0", &[&backend], &udp));
    let probe = backend.receive();
    assert_eq!((&probe.bytes[..], &*probe.from.ip().to_string()), (&b"PING"[..], "127.0.0.32"));

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let tcp = format!(
        "source = [\"192.0.2.77\", \"127.0.0.33\"]\nhealth = {{ probe = \"tcp\", port = {port}, \
         interval = \"50ms\", timeout = \"40ms\" }}"
    );
    let _balancer = Process::run(FLOWGATE, &simple_config("127.0.0.1:0", &[&backend], &tcp));
    let (_connection, from) = listener.accept().unwrap();
    assert_eq!(from.ip().to_string(), "127.0.0.33");
}

#[test]
fn probes_outlive_an_address_and_say_which_ones_are_missing_when_none_is_left() {
    let Some([near, far]) = Namespace::pair() else { return };
    near.ip("address add 10.9.0.7/24 dev one");
    let backend = far.inside(|| Peer::bind("10.9.0.2:5000"));
    let more = "source = [\"10.9.0.7\", \"10.9.0.1\"]\nhealth = { probe = \"udp\", \
                send = \"text:PING\", interval = \"50ms\", timeout = \"40ms\" }";
    let toml = simple_config("127.0.0.1:0", &[&backend], more);
    let mut running = near.inside(|| Process::run(FLOWGATE, &toml));
    let probed_from = |wanted: &str| {
        eventually("a probe from that address", || {
            (backend.answer(b"PONG").from.ip().to_string() == wanted).then_some(())
        });
    };
    probed_from("10.9.0.7");
    near.ip("address del 10.9.0.7/24 dev one");
    probed_from("10.9.0.1");
    near.ip("address del 10.9.0.1/24 dev one");
    let line = running.line("health probes");
    for part in ["10.9.0.2:5000 from 10.9.0.7 or 10.9.0.1", "`ip address`", "cluster=\"test\""] {
        assert!(line.contains(part), "{line}");
    }
    near.ip("address add 10.9.0.1/24 dev one");
    running.line("can be made again");
    probed_from("10.9.0.1");
}

#[test]
fn a_cluster_of_both_families_has_an_address_of_each() {
    let backends = [Peer::v4(), Peer::v6()];
    let more = "balance = \"round-robin\"\nsource = [\"127.0.0.29\", \"::1\"]";
    let balancer = Balancer::between("127.0.0.1:0", &backends.each_ref(), more);
    for backend in &backends {
        Peer::v4().send_to(b"question", balancer.address());
        let from = backend.receive().from.ip().to_string();
        let expected = if backend.address().is_ipv4() { "127.0.0.29" } else { "::1" };
        assert_eq!(from, expected);
    }
}

#[test]
fn explain_says_where_datagrams_leave_from() {
    let explained = |source: &str, more: &str| {
        let backend = Peer::v4();
        let toml = simple_config("127.0.0.1:0", &[&backend], &format!("source = {source:?}"));
        let toml = toml.replace("cluster = \"test\"\n", &format!("cluster = \"test\"\n{more}\n"));
        let config = ConfigFile::new(&toml);
        let explained = output(FLOWGATE, &["explain", config.path(), "192.0.2.7:99"]);
        String::from_utf8(explained.stdout).unwrap()
    };
    for (source, line) in [
        ("127.0.0.5", "  sent from 127.0.0.5\n"),
        ("127.0.0.5:20000-29999", "  sent from 127.0.0.5:20000-29999\n"),
        ("[::]:20000-29999", "  sent from 0.0.0.0:20000-29999\n"),
        ("client", "  sent from its own address: 192.0.2.7:99\n"),
    ] {
        let printed = explained(source, "");
        assert!(printed.ends_with(line), "{printed}");
    }
    let printed = explained("client", "accept_proxy_protocol = [\"10.0.0.0/8\"]");
    assert!(printed.contains("or those that its proxy names"), "{printed}");
}

#[test]
fn explain_names_no_source_of_a_family_that_the_backends_are_not_of() {
    let backends = [Peer::v4(), Peer::v6()];
    let sources = "source = [\"192.0.2.1:20000-29999\", \"2001:db8::1\", \"192.0.2.2\"]";
    for (backends, expected) in [
        (vec![&backends[0]], "sent from 192.0.2.1:20000-29999 or 192.0.2.2\n"),
        (vec![&backends[1]], "sent from 2001:db8::1\n"),
        (
            backends.each_ref().to_vec(),
            "sent from 192.0.2.1:20000-29999 or 2001:db8::1 or 192.0.2.2\n",
        ),
    ] {
        // By turns: of several, any may be next.
        let more = format!("balance = \"round-robin\"\n{sources}");
        let config = ConfigFile::new(&simple_config("127.0.0.1:0", &backends, &more));
        let explained = output(FLOWGATE, &["explain", config.path(), "192.0.2.7:99"]);
        let printed = String::from_utf8(explained.stdout).unwrap();
        assert!(printed.ends_with(expected), "{printed}");
    }
}
