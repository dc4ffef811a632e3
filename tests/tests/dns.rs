//! The first thing a user does: five lines of TOML, two real DNS servers, and `dig`.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};

use flowgate_tests::e2e::eventually;
use flowgate_tests::process::Process;
use flowgate_tests::skip::skip;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

/// A `dnsmasq` that gives one answer to every question; stopped when dropped.
struct Resolver {
    child: Child,
    address: SocketAddr,
}

impl Resolver {
    /// `None`, with the reason printed, where it is not installed.
    fn start(answer: Ipv4Addr) -> Option<Self> {
        // It takes no port 0, so one that was free a moment ago must do.
        let address = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).ok()?;
        let child = Command::new("dnsmasq")
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--pid-file",
                "--bind-interfaces",
            ])
            .args(["--no-resolv", "--no-hosts", "--listen-address=127.0.0.1", "--user="])
            .arg(format!("--port={}", address.port()))
            .arg(format!("--address=/flowgate.test/{answer}"))
            .stderr(Stdio::null())
            .spawn();
        match child {
            Ok(child) => Some(Self { child, address }),
            Err(error) => skip(&format!("dnsmasq (Debian: dnsmasq-base): {error}")),
        }
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `dig` prints; `None`, with the reason printed, where it is not installed.
fn dig(server: SocketAddr, arguments: &[&str]) -> Option<String> {
    let (ip, port) = (format!("@{}", server.ip()), server.port().to_string());
    let output = Command::new("dig")
        .args([&ip, "-p", &port, "+short", "+time=5", "+tries=3"])
        .args(arguments)
        .output();
    match output {
        Ok(output) => Some(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        Err(error) => skip(&format!("dig (Debian: bind9-dnsutils): {error}")),
    }
}

#[test]
fn two_resolvers_answer_dig_through_five_lines_of_configuration() {
    let answers = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
    let [Some(one), Some(two)] = answers.map(Resolver::start) else { return };
    for (resolver, answer) in [(&one, answers[0]), (&two, answers[1])] {
        let ready = eventually("a resolver answers", || {
            match dig(resolver.address, &["a.flowgate.test"]) {
                Some(text) => (text == answer.to_string()).then_some(true),
                None => Some(false),
            }
        });
        if !ready {
            return;
        }
    }

    let config = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"resolvers\"\n\
         [cluster.resolvers]\nbackends = [\"{}\", \"{}\"]\n",
        one.address, two.address
    );
    assert_eq!(config.lines().count(), 5);
    let mut flowgate = Process::run(FLOWGATE, &config);
    let address = flowgate.address();

    // Rendezvous hashing sends each client address to one resolver, always the same.
    let mut seen = HashSet::new();
    for host in 1..=32 {
        let client = format!("127.0.2.{host}");
        let ask = || dig(address, &["-b", &client, "a.flowgate.test", "A"]).expect("dig");
        let answer = ask();
        assert!(answers.iter().any(|known| known.to_string() == answer), "{answer:?}");
        if host <= 3 {
            assert_eq!(ask(), answer, "{client} was moved");
        }
        seen.insert(answer);
        if seen.len() == 2 && host >= 3 {
            break;
        }
    }
    assert_eq!(seen.len(), 2, "one resolver got all clients");
}
