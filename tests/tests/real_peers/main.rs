//! Programs that others wrote, for protocols that others designed, talk through `flowgate run`.

mod moved;
mod quic;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flowgate_tests::e2e::{Peer, eventually, simple_config};
use flowgate_tests::process::{ConfigFile, Process};
use flowgate_tests::resolver::{Resolver, dig};
use flowgate_tests::skip::skip;
use moved::Naming;
use quic::QuicServer;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

/// `flowgate run` in front of `backends`. `more` holds further lines of the cluster's table.
fn run(listener: &str, backends: &[SocketAddr], more: &str) -> (Process, SocketAddr) {
    let backends: Vec<_> = backends.iter().map(SocketAddr::to_string).collect();
    let mut flowgate = Process::run(
        FLOWGATE,
        &format!(
            "[[listener]]\naddress = {listener:?}\ncluster = \"peers\"\n\
             [cluster.peers]\nbackends = {backends:?}\n{more}\n"
        ),
    );
    let address = flowgate.address();
    (flowgate, address)
}

/// Names, each with an address of its own, so that a wrong answer shows.
fn names() -> Vec<(String, Ipv4Addr)> {
    let host = |n| (format!("host{n}.flowgate.test"), Ipv4Addr::new(192, 0, 2, n));
    (1..=100).map(host).collect()
}

/// Has `dnsperf` ask for all names many times, many at once. `None`, with the reason printed,
/// where it is not installed.
fn dnsperf(server: SocketAddr, names: &[(String, Ipv4Addr)], rounds: usize) -> Option<String> {
    let questions: String = names.iter().map(|(name, _)| format!("{name} A\n")).collect();
    let questions = ConfigFile::new(&questions);
    let output = Command::new("dnsperf")
        .args(["-s", &server.ip().to_string(), "-p", &server.port().to_string()])
        .args(["-d", questions.path(), "-n", &rounds.to_string()])
        // Twenty clients with forty questions under way among them; five seconds for an answer.
        .args(["-c", "20", "-q", "40", "-t", "5"])
        .output();
    match output {
        Ok(output) => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        Err(error) => skip(&format!("dnsperf (Debian: dnsperf): {error}")),
    }
}

/// The first number behind `label` in what `dnsperf` prints.
#[track_caller]
fn figure(report: &str, label: &str) -> usize {
    let line = report.lines().find_map(|line| line.trim().strip_prefix(label));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or_else(|| panic!("no {label:?} in {report}"))
}

/// Asks two real resolvers through a cluster with `more` lines, with `dig` and with `dnsperf`.
#[track_caller]
fn resolvers_answer_everything(more: &str) {
    const ROUNDS: usize = 100;
    let names = names();
    let [Some(one), Some(two)] = [(); 2].map(|()| Resolver::start(&names)) else { return };
    let (_flowgate, address) = run("127.0.0.1:0", &[one.address(), two.address()], more);

    let questions: Vec<_> = names.iter().map(|(name, _)| name).collect();
    let answers: Vec<_> = names.iter().map(|(_, ip)| ip.to_string()).collect();
    assert_eq!(dig(address, &questions).expect("dig"), answers);

    let Some(report) = dnsperf(address, &names, ROUNDS) else { return };
    let asked = ROUNDS * names.len();
    assert_eq!(figure(&report, "Queries sent:"), asked, "{report}");
    assert_eq!(figure(&report, "Queries completed:"), asked, "{report}");
    assert_eq!(figure(&report, "Queries lost:"), 0, "{report}");
    assert_eq!(figure(&report, "Response codes:       NOERROR"), asked, "{report}");

    // Also after this many flows came and went.
    assert_eq!(dig(address, &questions).expect("dig"), answers);
}

#[test]
fn no_question_to_a_resolver_is_lost_where_flows_end_with_their_answer() {
    resolvers_answer_everything("balance = \"round-robin\"\nresponses = 1");
}

#[test]
fn no_question_to_a_resolver_is_lost_where_sockets_are_used_again() {
    resolvers_answer_everything("balance = \"round-robin\"\nresponses = 1\nupstream = \"shared\"");
}

/// How long a QUIC transfer may take, on the slowest machine.
const TRANSFER: Duration = Duration::from_secs(300);

/// Sends `len` bytes each way by QUIC, by each of the listener's addresses, and checks that nothing
/// lost its ECN mark on the way.
#[track_caller]
fn quic_transfers(listener: &str, destination: &[&str], len: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let server = QuicServer::start("127.0.0.1");
        let (_flowgate, address) = run(listener, &[server.address()], "");
        for ip in destination {
            let destination = SocketAddr::new(ip.parse().unwrap(), address.port());
            let transfer = server.transfer(destination, |sent| sent < len);
            let marks = tokio::time::timeout(TRANSFER, transfer).await.expect("in time");
            for end in marks {
                assert!(end.marked > 0 && end.unmarked == 0, "{marks:?}");
            }
        }
    });
}

#[test]
fn quic_carries_fifty_megabytes_each_way_and_keeps_its_ecn_marks() {
    quic_transfers("127.0.0.1:0", &["127.0.0.1"], 50_000_000);
}

#[test]
fn quic_reaches_a_wildcard_listener_at_each_address_of_the_host() {
    quic_transfers("[::]:0", &["127.0.0.1", "127.0.0.7", "::1"], 2_000_000);
}

#[test]
fn syslog_messages_of_logger_arrive_whole_and_none_is_missing() {
    const MESSAGES: usize = 50;
    let sink = Peer::v4();
    let config = simple_config("127.0.0.1:0", &[&sink], "");
    let mut flowgate = Process::run(FLOWGATE, &config);
    let port = flowgate.address().port().to_string();
    let child = Command::new("logger")
        .args(["--udp", "--server", "127.0.0.1", "--port", &port, "--tag", "flowgate-test"])
        .args(["--priority", "local3.notice", "--rfc5424"])
        .stdin(Stdio::piped())
        .spawn();
    let mut logger = match child {
        Ok(child) => child,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return skip("logger (Debian: bsdutils) is not installed").unwrap_or_default();
        }
        Err(error) => panic!("logger: {error}"),
    };
    let message = |number: usize| format!("message {number}: {}", "abc ".repeat(number));
    let lines: String = (1..=MESSAGES).map(|number| message(number) + "\n").collect();
    logger.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("a reader");
    assert!(logger.wait().expect("its end").success());

    let mut senders = BTreeSet::new();
    for number in 1..=MESSAGES {
        let datagram = sink.receive();
        let text = String::from_utf8(datagram.bytes).expect("text");
        // 19 * 8 + 5: local3, notice.
        assert!(text.starts_with("<157>1 ") && text.contains(" flowgate-test "), "{text:?}");
        assert!(text.trim_end().ends_with(message(number).trim_end()), "{number}: {text:?}");
        senders.insert(datagram.from);
    }
    assert_eq!(senders.len(), 1, "one sender, one flow");
}

/// How much of a transfer passes before each upgrade, in datagrams.
const BETWEEN_UPGRADES: u64 = 2_000;

#[test]
fn a_quic_transfer_goes_on_over_three_upgrades_without_a_new_handshake() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let server = QuicServer::start("127.0.0.1");
        let (mut flowgate, address) = run("127.0.0.1:0", &[server.address()], "");
        let forwarded = |flowgate: &Process| {
            let counters = flowgate.ask_json(&["status"])["counters"].clone();
            counters["datagrams_forwarded"]["to_backend"].as_u64().expect("a number")
        };
        let upgrades = tokio::task::spawn_blocking(move || {
            for _ in 0..3 {
                let before = forwarded(&flowgate);
                eventually("the transfer goes on", || {
                    (forwarded(&flowgate) > before + BETWEEN_UPGRADES).then_some(())
                });
                flowgate.upgrade(&[]);
            }
            flowgate
        });
        // Every byte is checked at the other end, and the server accepts one connection.
        // The client goes on until after the third upgrade.
        let is_over = AtomicBool::new(false);
        let transfer =
            server.transfer(address, |sent| sent < 1 << 20 || !is_over.load(Ordering::Relaxed));
        let upgrades = async {
            let flowgate = upgrades.await.expect("three upgrades");
            is_over.store(true, Ordering::Relaxed);
            flowgate
        };
        let both = async { tokio::join!(transfer, upgrades) };
        let (_, flowgate) = tokio::time::timeout(TRANSFER, both).await.expect("in time");
        let status = flowgate.ask_json(&["status"]);
        assert_eq!(status["counters"]["flows_opened"], 1, "the client's path was the same");
    });
}

/// Forty for each kind of id; without ids that are read, most of those that move are lost, which shows
/// that there is something to be kept.
#[test]
fn quic_clients_that_move_keep_their_servers_where_ids_name_them() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for (nonce, is_encrypted) in [(8, false), (8, true), (10, true)] {
            let lost = moved::lost(Naming { nonce, is_encrypted, is_read: true }, 40).await;
            assert_eq!(lost, 0, "nonces of {nonce}, encrypted: {is_encrypted}");
        }
        let lost = moved::lost(Naming { nonce: 8, is_encrypted: false, is_read: false }, 12).await;
        assert!(lost > 0, "no client that moves is placed anew");
    });
}
