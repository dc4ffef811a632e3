//! Backends by name: what becomes of a name whose answers change, fail or vanish.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flowgate::control::resolve::{Answer, Resolver};
use flowgate_tests::e2e::{PATIENCE, eventually};
use flowgate_tests::echo_server::EchoServer;
use flowgate_tests::netns::Namespace;
use flowgate_tests::process::Process;

/// How long a server that is silent is waited for. Where it answers, it may take as long as it likes.
const TIMEOUT: Duration = Duration::from_millis(500);

/// What the server says about every name.
#[derive(Clone, Debug)]
enum Reply {
    /// The addresses, each good for this many seconds.
    Addresses(Vec<IpAddr>, u32),
    /// That there are none.
    Nothing,
    /// That there is no such name.
    NoName,
    /// That it cannot find out.
    ServerFailure,
    /// That it does not answer us.
    Refused,
    /// Nothing at all.
    Silence,
}

/// A question that the server was asked.
struct Question {
    name: String,
    is_v6: bool,
    at: Instant,
}

/// A DNS server. It ends with the test.
struct Dns {
    address: SocketAddr,
    reply: Arc<Mutex<Reply>>,
    questions: Receiver<Question>,
}

impl Dns {
    fn start(reply: Reply) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let reply = Arc::new(Mutex::new(reply));
        let (asked, questions) = mpsc::channel();
        let says = Arc::clone(&reply);
        std::thread::spawn(move || {
            let mut packet = [0; 512];
            while let Ok((len, client)) = socket.recv_from(&mut packet) {
                let Some((question, end)) = read_question(&packet[..len]) else { continue };
                let answer = answer(&packet[..end], question.is_v6, &says.lock().unwrap());
                // The answer leaves first, so that anyone who sees the question has its answer.
                answer.map(|answer| socket.send_to(&answer, client));
                if asked.send(question).is_err() {
                    break;
                }
            }
        });
        Self { address, reply, questions }
    }

    fn says(&self, reply: Reply) {
        *self.reply.lock().unwrap() = reply;
    }

    /// The next question for IPv4 addresses.
    #[track_caller]
    fn next_question(&self) -> Question {
        loop {
            let question = self.questions.recv_timeout(PATIENCE).expect("a question");
            if !question.is_v6 {
                return question;
            }
        }
    }

    /// Forgets the questions so far.
    fn forget(&self) {
        while self.questions.try_recv().is_ok() {}
    }
}

/// What a query asks, and where its question ends.
fn read_question(packet: &[u8]) -> Option<(Question, usize)> {
    let mut at = 12;
    let mut labels = Vec::new();
    loop {
        let len = usize::from(*packet.get(at)?);
        let label = packet.get(at + 1..at + 1 + len)?;
        at += 1 + len;
        if len == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(label).to_lowercase());
    }
    let is_v6 = match packet.get(at..at + 4)? {
        [0, 1, 0, 1] => false,
        [0, 28, 0, 1] => true,
        _ => return None,
    };
    Some((Question { name: labels.join("."), is_v6, at: Instant::now() }, at + 4))
}

/// The answer to a query that ends with its question.
fn answer(query: &[u8], is_v6: bool, reply: &Reply) -> Option<Vec<u8>> {
    let (code, addresses, ttl) = match reply {
        Reply::Addresses(addresses, ttl) => (0, addresses.as_slice(), *ttl),
        Reply::Nothing => (0, &[][..], 0),
        Reply::ServerFailure => (2, &[][..], 0),
        Reply::NoName => (3, &[][..], 0),
        Reply::Refused => (5, &[][..], 0),
        Reply::Silence => return None,
    };
    let fitting: Vec<_> = addresses.iter().filter(|ip| ip.is_ipv6() == is_v6).collect();
    let mut packet = query[..2].to_vec();
    packet.extend([0x81, 0x80 | code, 0, 1, 0, fitting.len() as u8, 0, 0, 0, 0]);
    packet.extend(&query[12..]);
    for ip in fitting {
        let (kind, bytes) = match ip {
            IpAddr::V4(ip) => (1, ip.octets().to_vec()),
            IpAddr::V6(ip) => (28, ip.octets().to_vec()),
        };
        packet.extend([0xc0, 12, 0, kind, 0, 1]);
        packet.extend(ttl.to_be_bytes());
        packet.extend([0, bytes.len() as u8]);
        packet.extend(bytes);
    }
    Some(packet)
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn says(texts: &[&str], ttl: u32) -> Reply {
    Reply::Addresses(ips(texts), ttl)
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn resolver(dns: &Dns) -> (Resolver, Receiver<Answer>) {
    resolver_with(dns, PATIENCE)
}

fn resolver_with(dns: &Dns, timeout: Duration) -> (Resolver, Receiver<Answer>) {
    let (sender, answers) = mpsc::channel();
    let on_answer = move |answer| drop(sender.send(answer));
    (Resolver::start_with(&[dns.address], timeout, on_answer).unwrap(), answers)
}

#[track_caller]
fn next(answers: &Receiver<Answer>) -> (String, Vec<IpAddr>) {
    let Answer { name, addresses } = answers.recv_timeout(PATIENCE).expect("an answer");
    (name, addresses)
}

#[test]
fn a_name_gives_its_addresses_of_both_families_sorted_and_once_each() {
    let dns = Dns::start(says(&["10.0.0.2", "2001:db8::1", "10.0.0.1", "10.0.0.2"], 60));
    let (resolver, answers) = resolver(&dns);
    resolver.set_names(names(&["backend.test"]));
    let expected = ips(&["10.0.0.1", "10.0.0.2", "2001:db8::1"]);
    assert_eq!(next(&answers), ("backend.test".into(), expected));
}

#[test]
fn addresses_that_no_backend_can_have_are_left_out() {
    let odd = ["0.0.0.0", "255.255.255.255", "224.0.0.1", "::", "ff02::1", "::ffff:10.0.0.9"];
    let dns = Dns::start(says(&odd, 60));
    let (resolver, answers) = resolver(&dns);
    resolver.set_names(names(&["backend.test"]));
    assert_eq!(next(&answers), ("backend.test".into(), ips(&["10.0.0.9"])));
}

#[test]
fn a_change_is_seen_when_the_answer_has_lived_its_time() {
    let dns = Dns::start(says(&["10.0.0.1"], 2));
    let (resolver, answers) = resolver(&dns);
    resolver.set_names(names(&["backend.test"]));
    assert_eq!(next(&answers).1, ips(&["10.0.0.1"]));
    let first = dns.next_question().at;

    dns.says(says(&["10.0.0.2"], 2));
    assert_eq!(next(&answers).1, ips(&["10.0.0.2"]));
    let lived = dns.next_question().at - first;
    assert!(lived >= Duration::from_millis(1_990), "asked again after {lived:?}");
}

#[test]
fn a_time_to_live_of_zero_does_not_make_it_ask_all_the_time() {
    let dns = Dns::start(says(&["10.0.0.1"], 0));
    let (resolver, _answers) = resolver(&dns);
    resolver.set_names(names(&["backend.test"]));
    let first = dns.next_question().at;
    let pause = dns.next_question().at - first;
    assert!(pause >= Duration::from_millis(990), "asked again after {pause:?}");
}

/// While the server says `failure`, the last good answer stands; then the next good one is told.
#[track_caller]
fn assert_survives(failure: Reply) {
    let dns = Dns::start(says(&["10.0.0.1"], 1));
    let (resolver, answers) = resolver_with(&dns, TIMEOUT);
    resolver.set_names(names(&["backend.test"]));
    assert_eq!(next(&answers).1, ips(&["10.0.0.1"]));

    dns.says(failure);
    dns.forget();
    // A question is asked twice at most before it has failed. So by the third one the failure has
    // been seen, and the name is being looked up again.
    (0..3).for_each(|_| drop(dns.next_question()));
    assert_eq!(answers.try_recv().ok(), None);
    assert_eq!(resolver.known()["backend.test"], ips(&["10.0.0.1"]));

    dns.says(says(&["10.0.0.2"], 1));
    assert_eq!(next(&answers).1, ips(&["10.0.0.2"]));
}

#[test]
fn a_name_that_loses_all_its_addresses_keeps_the_last_ones() {
    assert_survives(Reply::Nothing);
}

#[test]
fn a_name_that_stops_existing_keeps_its_last_addresses() {
    assert_survives(Reply::NoName);
}

#[test]
fn a_server_that_fails_leaves_the_last_good_answer() {
    assert_survives(Reply::ServerFailure);
}

#[test]
fn a_server_that_refuses_leaves_the_last_good_answer() {
    assert_survives(Reply::Refused);
}

#[test]
fn a_server_that_falls_silent_leaves_the_last_good_answer() {
    assert_survives(Reply::Silence);
}

#[test]
fn a_name_that_appears_late_is_found() {
    let dns = Dns::start(Reply::NoName);
    let (resolver, answers) = resolver(&dns);
    assert!(resolver.resolve_now(names(&["backend.test"]), PATIENCE).is_empty());
    dns.says(says(&["10.0.0.1"], 60));
    assert_eq!(next(&answers).1, ips(&["10.0.0.1"]));
}

#[test]
fn a_start_waits_for_all_names_and_no_longer() {
    let dns = Dns::start(says(&["10.0.0.1"], 60));
    let (resolver, answers) = resolver(&dns);
    let many: Vec<_> = (0..100).map(|number| format!("backend-{number}.test")).collect();
    let known = resolver.resolve_now(many.iter().cloned().collect(), PATIENCE);
    assert_eq!(known.keys().cloned().collect::<BTreeSet<_>>(), many.iter().cloned().collect());
    let told: BTreeSet<_> = many.iter().map(|_| next(&answers).0).collect();
    assert_eq!(told, many.into_iter().collect());
}

#[test]
fn a_start_goes_on_without_a_server_that_does_not_answer() {
    let dns = Dns::start(Reply::Silence);
    let patience = Duration::from_millis(100);
    let started = Instant::now();
    let resolver = Resolver::start_with(&[dns.address], 3 * PATIENCE, |_| ()).unwrap();
    let known = resolver.resolve_now(names(&["backend.test"]), patience);
    assert!(known.is_empty());
    assert!(started.elapsed() >= patience, "it gave up after {:?}", started.elapsed());
    // Neither that nor stopping waits until the server has been given up.
    drop(resolver);
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
}

#[test]
fn a_name_that_is_not_wanted_any_more_is_forgotten() {
    let dns = Dns::start(says(&["10.0.0.1"], 1));
    let (resolver, answers) = resolver(&dns);
    resolver.resolve_now(names(&["old.test", "kept.test"]), PATIENCE);
    assert_eq!(
        BTreeSet::from([next(&answers).0, next(&answers).0]),
        names(&["old.test", "kept.test"])
    );

    resolver.resolve_now(names(&["new.test", "kept.test"]), PATIENCE);
    assert_eq!(next(&answers).0, "new.test", "what is kept is not told again");
    assert_eq!(
        resolver.known().into_keys().collect::<BTreeSet<_>>(),
        names(&["new.test", "kept.test"])
    );
    dns.forget();
    let asked: BTreeSet<_> = (0..4).map(|_| dns.next_question().name).collect();
    assert_eq!(asked, names(&["new.test", "kept.test"]));
}

#[test]
fn what_is_no_name_is_no_trouble_for_others() {
    let dns = Dns::start(says(&["10.0.0.1"], 60));
    let (resolver, answers) = resolver(&dns);
    let long = format!("{}.test", "x".repeat(64));
    let known =
        resolver.resolve_now(names(&["..", &long, "a b\n\u{1b}.test", "backend.test"]), PATIENCE);
    assert_eq!(known["backend.test"], ips(&["10.0.0.1"]));
    assert!(!known.contains_key("..") && !known.contains_key(&long));
    assert!(!next(&answers).1.is_empty());
}

#[test]
fn the_system_knows_localhost() {
    let (sender, answers) = mpsc::channel();
    let on_answer = move |answer: Answer| drop(sender.send(answer));
    let resolver = Resolver::start(on_answer).unwrap();
    resolver.set_names(names(&["localhost"]));
    match answers.recv_timeout(PATIENCE) {
        Ok(answer) => assert!(answer.addresses.iter().all(IpAddr::is_loopback), "{answer:?}"),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            // Without /etc/hosts and without name servers nobody knows it.
            eprintln!("SKIPPED: this system does not know localhost");
        }
    }
}

#[test]
fn a_backend_by_name_serves_and_a_name_that_cannot_be_resolved_holds_up_nobody() {
    // There nobody outside this machine is asked.
    let Some(namespace) = Namespace::new() else { return };
    namespace.inside(|| {
        let backend = EchoServer::start("127.0.0.1:0", |_| true);
        let port = backend.address().port();
        let mut flowgate = Process::run(
            env!("CARGO_BIN_EXE_flowgate-under-test"),
            &format!(
                "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"test\"\n[cluster.test]\n\
                 backends = [\"localhost:{port}\", \"no-such-host.invalid:53\"]\n"
            ),
        );
        let address = flowgate.address();
        let status = flowgate.ask_json(&["status"]);
        let backends = status["clusters"][0]["backends"].as_array().expect("backends");
        let is_named = |b: &&serde_json::Value| b["address"] == format!("127.0.0.1:{port}");
        assert_eq!(backends.iter().find(is_named).expect("localhost")["name"], "localhost");
        // It may have an IPv6 address too, where nobody answers.
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        eventually("the backend serves", || {
            client.send_to(b"hello", address).unwrap();
            client.recv(&mut [0; 16]).ok()
        });
    });
}
