//! Clients that come by a proxy: PROXY v2 headers from those that `accept_proxy_protocol` names.
//!
//! dnsdist, which sends and takes such headers over UDP, is the peer that we did not write.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use flowgate_core::proxy_protocol::{Endpoints, ProxyHeader, ReceivedHeader};
use flowgate_core::{Direction, DropReason};
use flowgate_tests::e2e::{Balancer, Datagram, Peer, own_address, simple_config};
use flowgate_tests::echo_server::EchoServer;
use flowgate_tests::listening::listens;
use flowgate_tests::process::{ConfigFile, Process};
use flowgate_tests::skip::skip;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

/// Everybody on this host is a trusted proxy.
const TRUSTING: &str = "accept_proxy_protocol = [\"127.0.0.0/8\"]";

/// A configuration whose listener has `listener` lines, and whose cluster `cluster` lines.
fn toml(listener: &str, cluster: &str, backend: SocketAddr) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"test\"\n{listener}\n\
         [cluster.test]\nbackends = [\"{backend}\"]\n{cluster}\n"
    )
}

fn trusting(backend: &Peer, cluster: &str) -> Balancer {
    Balancer::start(&toml(TRUSTING, cluster, backend.address()))
}

/// A datagram as a proxy sends it on behalf of a client that called `CALLED`.
fn told(client: &str, payload: &[u8]) -> Vec<u8> {
    let header = ProxyHeader::new(client.parse().unwrap(), CALLED.parse().unwrap());
    [header.as_bytes(), payload].concat()
}

const CALLED: &str = "203.0.113.1:443";

/// What the header of a datagram says, and what is behind it.
fn parse(datagram: &Datagram) -> (Endpoints, Vec<u8>, &[u8]) {
    let header = ReceivedHeader::parse(&datagram.bytes).expect("a header").expect("a header");
    (header.endpoints.expect("a client"), header.tlvs.parts().concat(), header.payload)
}

#[test]
fn a_chain_of_balancers_knows_the_client_to_the_end() {
    for sends in ["first", "every"] {
        let backend = Peer::v4();
        let inner_toml = toml(TRUSTING, "send_proxy_protocol = \"every\"", backend.address());
        let mut inner = Process::run(FLOWGATE, &inner_toml);
        let inner_address = inner.address();
        let sending = format!("send_proxy_protocol = {sends:?}");
        let mut outer = Process::run(FLOWGATE, &toml("", &sending, inner_address));
        let outer_address = outer.address();
        let clients = [Peer::v4(), Peer::bind("127.0.0.2:0"), Peer::v4()];
        for round in ["one", "two", ""] {
            for client in &clients {
                client.send_to(round.as_bytes(), outer_address);
                let request = backend.answer(b"answer");
                let (endpoints, _, payload) = parse(&request);
                assert_eq!(endpoints.client, client.address());
                assert_eq!(endpoints.destination, outer_address);
                assert_eq!(payload, round.as_bytes());
                let answer = client.receive();
                assert_eq!((answer.from, &answer.bytes[..]), (outer_address, &b"answer"[..]));
            }
        }
        let flows = String::from_utf8(inner.ask(&["flows"]).stdout).expect("text");
        for client in &clients {
            assert!(flows.contains(&client.address().to_string()), "{flows}");
        }
    }
}

#[test]
fn the_log_of_flows_names_the_client_and_not_the_proxy() {
    let backend = EchoServer::start("127.0.0.1:0", |_| true);
    let listener = toml(TRUSTING, "responses = 1", backend.address());
    let mut flowgate = Process::run(FLOWGATE, &format!("[log]\nflows = \"stderr\"\n{listener}"));
    let address = flowgate.address();
    let proxy = Peer::v4();
    proxy.send_to(&told("198.51.100.7:4711", b"question"), address);
    assert_eq!(proxy.receive().bytes, b"question");
    let line = flowgate.line("\"client\"");
    assert!(line.contains("\"client\":\"198.51.100.7:4711\""), "{line}");
}

#[test]
fn from_elsewhere_a_header_is_payload() {
    let backend = Peer::v4();
    let listener = "accept_proxy_protocol = [\"127.0.0.2\"]";
    let balancer = Balancer::start(&toml(listener, "", backend.address()));
    let datagram = told("198.51.100.7:4711", b"question");
    Peer::v4().send_to(&datagram, balancer.address());
    assert_eq!(backend.receive().bytes, datagram);
    Peer::bind("127.0.0.2:0").send_to(&datagram, balancer.address());
    assert_eq!(backend.receive().bytes, b"question");
}

#[test]
fn without_a_header_a_proxys_datagrams_are_dropped_and_counted() {
    let (backend, proxy) = (Peer::v4(), Peer::v4());
    let balancer = trusting(&backend, "");
    proxy.send_to(b"who sent this?", balancer.address());
    let mut wrong = told("198.51.100.7:4711", b"");
    wrong[13] = 0x4F;
    proxy.send_to(&wrong, balancer.address());
    proxy.send_to(&told("198.51.100.7:4711", b"question"), balancer.address());
    assert_eq!(backend.receive().bytes, b"question");
    for reason in [DropReason::ProxyHeaderMissing, DropReason::ProxyHeader] {
        assert_eq!(balancer.dropped(Direction::ToBackend, reason), 1);
    }
}

#[test]
fn a_train_of_datagrams_with_headers_is_taken_apart_in_order() {
    let (backend, proxy) = (Peer::v4(), Peer::v4());
    let balancer = trusting(&backend, "");
    let clients = ["198.51.100.7:4711", "198.51.100.8:4711"];
    let datagram = |number: u8| told(clients[usize::from(number) % 2], &[number; 100]);
    let train: Vec<u8> = (0..40).flat_map(datagram).collect();
    proxy.send_train(&train, 128, balancer.address());
    let mut numbers = [vec![], vec![]];
    let mut sockets = vec![];
    for _ in 0..40 {
        let received = backend.receive();
        assert_eq!(received.bytes, [received.bytes[0]; 100]);
        numbers[usize::from(received.bytes[0]) % 2].push(received.bytes[0]);
        sockets.push(received.from);
    }
    assert!(numbers.iter().all(|numbers| numbers.is_sorted()), "{numbers:?}");
    sockets.sort();
    sockets.dedup();
    assert_eq!(sockets.len(), 2, "each client has its own");
    for socket in sockets {
        backend.send_to(b"answer", socket);
        assert_eq!(proxy.receive().bytes, b"answer");
    }
    balancer.assert_lossless(40, 2);
}

#[test]
fn a_train_of_which_only_the_first_has_a_header_goes_to_one_client() {
    let (backend, proxy) = (Peer::v4(), Peer::v4());
    let balancer = trusting(&backend, "");
    let train = [&told("198.51.100.7:4711", &[0; 100])[..], &[1; 128], &[2; 128], &[3; 5]].concat();
    proxy.send_train(&train, 128, balancer.address());
    let first = backend.receive();
    assert_eq!(first.bytes, [0; 100]);
    for expected in [&[1; 128][..], &[2; 128], &[3; 5]] {
        let next = backend.receive();
        assert_eq!((&next.bytes[..], next.from), (expected, first.from));
    }
}

#[test]
fn tlvs_pass_through_and_long_trains_with_them_too() {
    let (backend, proxy) = (Peer::v4(), Peer::v4());
    let balancer = trusting(&backend, "send_proxy_protocol = \"every\"");
    let tlvs = b"\x02\0\x0bexample.org\xE0\0\x02hi";
    let mut header = told("198.51.100.7:4711", b"");
    header[15] += tlvs.len() as u8;
    let front = [&header[..], tlvs].concat();
    let stride = front.len() + 200;
    let datagram = |number: u8| [&front[..], &[number; 200]].concat();
    let train: Vec<u8> = (0..50).flat_map(datagram).collect();
    proxy.send_train(&train, stride as u16, balancer.address());
    for number in 0..50 {
        assert_eq!(backend.receive().bytes, datagram(number), "what came goes on");
    }
}

#[test]
fn a_proxy_is_answered_from_the_address_that_it_called() {
    let backend = Peer::v4();
    let config = simple_config("0.0.0.0:0", &[&backend], "");
    let config = config.replace("cluster = ", &format!("{TRUSTING}\ncluster = "));
    let balancer = Balancer::start(&config);
    for ip in ["127.0.0.1", "127.0.0.2"] {
        let proxy = Peer::connected(balancer.at(ip));
        proxy.send(&told("[2001:db8::1]:4711", b"question"));
        backend.answer(b"answer");
        assert_eq!(proxy.receive().from, balancer.at(ip));
    }
}

#[test]
fn limits_and_deny_are_for_the_client_that_is_named() {
    let (backend, proxy) = (Peer::v4(), Peer::v4());
    let listener = format!("{TRUSTING}\ndeny = [\"127.0.0.0/8\", \"198.51.100.66\"]");
    let limits = "[cluster.test.limits]\nflows_per_source = 1";
    let balancer = Balancer::start(&toml(&listener, limits, backend.address()));
    let send = |client| proxy.send_to(&told(client, client.as_bytes()), balancer.address());
    send("198.51.100.66:1");
    send("198.51.100.1:1");
    send("198.51.100.1:2");
    send("198.51.100.2:1");
    for served in ["198.51.100.1:1", "198.51.100.2:1"] {
        assert_eq!(backend.receive().bytes, served.as_bytes());
    }
    for reason in [DropReason::Denied, DropReason::SourceFlows] {
        assert_eq!(balancer.dropped(Direction::ToBackend, reason), 1);
    }
}

#[test]
fn a_reload_can_begin_to_trust_proxies() {
    let (backend, proxy) = (Peer::v4(), Peer::v4());
    let before = toml("", "", backend.address());
    let mut flowgate = Process::run(FLOWGATE, &before);
    let address = flowgate.address();
    let datagram = told("198.51.100.7:4711", b"question");
    proxy.send_to(&datagram, address);
    assert_eq!(backend.receive().bytes, datagram);
    let after = before.replace("cluster = ", &format!("{TRUSTING}\ncluster = "));
    flowgate.reload(&after);
    proxy.send_to(&datagram, address);
    assert_eq!(backend.answer(b"answer").bytes, b"question");
    assert_eq!(proxy.receive().bytes, b"answer");
}

/// A running dnsdist, killed when dropped.
struct Dnsdist {
    child: Child,
    address: SocketAddr,
    _config: ConfigFile,
}

impl Dnsdist {
    /// Starts one in front of `backend`, that takes PROXY headers if `accepts`, and sends them.
    /// `None`, and a word about it, where there is no dnsdist.
    fn start(backend: SocketAddr, accepts: bool) -> Option<Self> {
        if Command::new("dnsdist").arg("--version").stdout(Stdio::null()).status().is_err() {
            return skip("dnsdist (Debian: dnsdist) is not installed");
        }
        let address = own_address();
        let acl = if accepts { "setProxyProtocolACL({'127.0.0.0/8'})" } else { "" };
        let config = ConfigFile::new(&format!(
            "setLocal('{address}')\nsetACL({{'127.0.0.0/8'}})\nsetSecurityPollSuffix('')\n{acl}\n\
             newServer{{address='{backend}', useProxyProtocol=true}}:setUp()\n\
             addAction(AllRule(), SetProxyProtocolValuesAction({{[224]='flowgate'}}))\n"
        ));
        let child = Command::new("dnsdist")
            .args(["--supervised", "--disable-syslog", "-C", config.path()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it can be run");
        let mut dnsdist = Self { child, address, _config: config };
        assert!(listens(&mut dnsdist.child, address), "dnsdist has ended");
        Some(dnsdist)
    }
}

impl Drop for Dnsdist {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A question for the addresses of `example.org`, and an answer that says that there are none.
fn question(id: u16) -> (Vec<u8>, Vec<u8>) {
    let rest = b"\x07example\x03org\0\0\x01\0\x01";
    let message =
        |flags: &[u8]| [&id.to_be_bytes()[..], flags, b"\0\x01\0\0\0\0\0\0", rest].concat();
    (message(b"\x01\0"), message(b"\x81\x80"))
}

/// What dnsdist adds to each header that it sends.
const ADDED: &[u8] = b"\xE0\0\x08flowgate";

#[test]
fn dnsdist_takes_the_headers_that_we_send() {
    let backend = Peer::v4();
    let Some(dnsdist) = Dnsdist::start(backend.address(), true) else { return };
    for sends in ["every", "first"] {
        let sending = format!("send_proxy_protocol = {sends:?}");
        let balancer = Balancer::start(&toml("", &sending, dnsdist.address));
        let client = Peer::bind("127.0.0.3:0");
        let (asked, answer) = question(4711);
        client.send_to(&asked, balancer.address());
        let request = backend.receive();
        let (endpoints, tlvs, payload) = parse(&request);
        assert_eq!(endpoints.client, client.address(), "dnsdist believes us");
        assert_eq!(tlvs, ADDED);
        backend.send_to(&[&payload[..2], &answer[2..]].concat(), request.from);
        assert_eq!(client.receive().bytes, answer);
    }
}

#[test]
fn we_take_the_headers_that_dnsdist_sends() {
    let backend = Peer::v4();
    let balancer = trusting(&backend, "send_proxy_protocol = \"every\"");
    let Some(dnsdist) = Dnsdist::start(balancer.address(), false) else { return };
    for (ip, id) in [("127.0.0.3:0", 4711), ("127.0.0.4:0", 4712), ("127.0.0.5:0", 4713)] {
        let client = Peer::bind(ip);
        let (asked, answer) = question(id);
        client.send_to(&asked, dnsdist.address);
        let request = backend.receive();
        let (endpoints, tlvs, payload) = parse(&request);
        assert_eq!(endpoints.client, client.address(), "we believe dnsdist");
        assert_eq!(endpoints.destination, dnsdist.address);
        assert_eq!(tlvs, ADDED, "and say what it says");
        backend.send_to(&[&payload[..2], &answer[2..]].concat(), request.from);
        assert_eq!(client.receive().bytes, answer);
    }
    assert_eq!(balancer.dropped(Direction::ToBackend, DropReason::ProxyHeader), 0);
}

#[test]
fn in_every_mode_backends_and_mirrors_are_told_what_the_proxy_said() {
    let copied = |reply_from: &str| format!("mode = \"fan-out\"\nreply_from = \"{reply_from}\"");
    let modes = [
        "mode = \"one-way\"".to_owned(),
        copied("none"),
        copied("first"),
        "mirror = { cluster = \"shadow\" }".to_owned(),
    ];
    // A TLV of the authority that the client asked for.
    let mut datagram = told("198.51.100.7:4711", b"\x02\0\x03abcquestion");
    datagram[15] += 6;
    for mode in modes {
        let (backend, shadow, proxy) = (Peer::v4(), Peer::v4(), Peer::v4());
        let sending = "send_proxy_protocol = \"every\"";
        let main = toml(TRUSTING, &format!("{mode}\n{sending}"), backend.address());
        let mirror =
            format!("[cluster.shadow]\nbackends = [\"{}\"]\n{sending}\n", shadow.address());
        let is_mirrored = mode.starts_with("mirror");
        let config = if is_mirrored { main + &mirror } else { main };
        let balancer = Balancer::start(&config);
        proxy.send_to(&datagram, balancer.address());
        assert_eq!(backend.answer(b"answer").bytes, datagram, "{mode}");
        if is_mirrored {
            assert_eq!(shadow.receive().bytes, datagram);
        }
        if is_mirrored || mode.ends_with("\"first\"") {
            assert_eq!(proxy.receive().bytes, b"answer", "{mode}");
        }
    }
}
