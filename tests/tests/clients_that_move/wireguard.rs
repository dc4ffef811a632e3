//! WireGuard as `wireguard-go` speaks it: a client that roams from address to address keeps the gateway
//! that knows its session. It needs root, `/dev/net/tun`, and Debian's wireguard-go and wireguard-tools.

use std::fs;
use std::io::Write;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flowgate_tests::e2e::eventually;
use flowgate_tests::echo_server::EchoServer;
use flowgate_tests::netns::{Namespace, Routed};
use flowgate_tests::process::Process;
use flowgate_tests::scratch::Scratch;
use flowgate_tests::skip::skip;

use super::FLOWGATE;

/// How many other addresses the client goes on from: by chance it would keep its gateway in one of 64
/// runs.
const ROAMS: u8 = 6;

/// Where the balancer listens.
const TO: &str = "10.71.1.2:51820";

/// What `wg` prints, given this.
fn wg(arguments: &[&str], input: &str) -> Result<String, String> {
    let mut command = Command::new("wg");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// A key of its own, in a file, and the public one.
struct Key {
    file: String,
    public: String,
}

impl Key {
    fn new(scratch: &Scratch, name: &str) -> Result<Self, String> {
        let private = wg(&["genkey"], "")?;
        let public = wg(&["pubkey"], &private)?;
        let file = scratch.path().join(name).to_str().expect("a plain path").to_owned();
        fs::write(&file, private).expect("a file");
        Ok(Self { file, public })
    }
}

/// An end of a tunnel, gone when dropped.
struct Tunnel<'n> {
    child: Child,
    name: String,
    namespace: &'n Namespace,
}

impl<'n> Tunnel<'n> {
    /// One whose address inside is `address`.
    fn start(
        namespace: &'n Namespace,
        number: u8,
        (key, options): (&Key, &[&str]),
        address: &str,
    ) -> Self {
        // Names of at most 15 bytes, which no other process has: its socket is where all can see it.
        let name = format!("fg{}n{number}", std::process::id() % 10_000_000);
        let mut command = Command::new("wireguard-go");
        command.args(["--foreground", &name]).env("LOG_LEVEL", "error").stderr(Stdio::null());
        let child = namespace.inside(|| command.spawn()).expect("wireguard-go");
        let tunnel = Self { child, name, namespace };
        eventually("the interface is there", || {
            let place = format!("/sys/class/net/{}", tunnel.name);
            let is_there = || Command::new("ip").args(["link", "show", &tunnel.name]).output();
            let there = namespace.inside(is_there).expect("ip").status.success();
            (there || Path::new(&place).exists()).then_some(())
        });
        let set = ["set", &tunnel.name, "private-key", &key.file];
        let arguments = [&set[..], options].concat();
        eventually("it is set up", || tunnel.wg(&arguments).ok());
        namespace.ip(&format!("address add {address} dev {}", tunnel.name));
        namespace.ip(&format!("link set {} up", tunnel.name));
        tunnel
    }

    fn wg(&self, arguments: &[&str]) -> Result<String, String> {
        self.namespace.inside(|| wg(arguments, ""))
    }

    /// When the last handshake was, in seconds since 1970.
    fn last_handshake(&self) -> String {
        self.wg(&["show", &self.name, "latest-handshakes"]).expect("an interface")
    }
}

impl Drop for Tunnel<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(format!("/var/run/wireguard/{}.sock", self.name));
    }
}

fn is_possible() -> Option<()> {
    if let Err(error) = fs::File::open("/dev/net/tun") {
        return skip(&format!("/dev/net/tun: {error}"));
    }
    for (program, package) in [("wireguard-go", "wireguard-go"), ("wg", "wireguard-tools")] {
        if let Err(error) = Command::new(program).arg("--version").output() {
            return skip(&format!("{program} (Debian: {package}): {error}"));
        }
    }
    Some(())
}

#[test]
fn a_wireguard_client_that_roams_keeps_its_gateway_and_its_session() {
    let Some(()) = is_possible() else { return };
    let Some(network) = Routed::new() else { return };
    let Some(more) = Namespace::new() else { return };
    // Two gateways with one key, as behind one name: one where backends are, one beside it.
    network.router.ip(&format!("link add spare type veth peer name eth netns {}", more.name()));
    network.router.ip("address add 10.73.0.1/24 dev spare");
    network.router.ip("link set spare up");
    more.ip("address add 10.73.0.2/24 dev eth");
    more.ip("link set eth up");
    more.ip("route add default via 10.73.0.1");
    let scratch = Scratch::new("wireguard");
    let [gateway, client] =
        ["gateway", "client"].map(|name| Key::new(&scratch, name).expect("a key"));
    let peer = ["peer", &client.public, "allowed-ips", "10.100.0.2/32"];
    let options = [&["listen-port", "51820"][..], &peer].concat();
    let [one, two] = [(&network.backends, 1), (&more, 2)].map(|(namespace, number)| {
        let tunnel = Tunnel::start(namespace, number, (&gateway, &options), "10.100.0.1/24");
        (tunnel, namespace.inside(|| EchoServer::start("10.100.0.1:7", |_| true)))
    });

    let [balancer, _] = &network.balancers;
    let config = "[[listener]]\naddress = \"10.71.1.2:51820\"\ncluster = \"gateways\"\n\
                  [cluster.gateways]\naffinity = \"wireguard\"\n\
                  backends = [\"10.72.0.2:51820\", \"10.73.0.2:51820\"]\n";
    let mut flowgate = balancer.inside(|| Process::run(FLOWGATE, config));
    flowgate.address();

    network.router.ip("route add 10.70.0.0/16 via 10.70.0.2");
    let move_to = |number: u8| {
        let way = "10.71.1.2/32 via 10.70.0.1";
        network.client.ip(&format!("address add 10.70.1.{number}/32 dev lo"));
        network.client.ip(&format!("route replace {way} src 10.70.1.{number}"));
    };
    move_to(1);
    let peer = ["peer", &gateway.public, "endpoint", TO];
    let options = [&peer[..], &["allowed-ips", "10.100.0.1/32"]].concat();
    let tunnel = Tunnel::start(&network.client, 3, (&client, &options), "10.100.0.2/24");
    let inside = network.client.inside(|| UdpSocket::bind("10.100.0.2:0")).expect("a socket");
    inside.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    let answered = |question: u8| {
        eventually("an answer by the tunnel", || {
            inside.send_to(&[question], "10.100.0.1:7").expect("a tunnel");
            let mut answer = [0];
            inside.recv(&mut answer).ok().filter(|_| answer == [question])
        })
    };
    answered(0);
    let gateways = [&one.1, &two.1];
    let its = gateways.iter().position(|gateway| gateway.received() > 0).expect("one of them");
    let (handshake, other) = (tunnel.last_handshake(), gateways[1 - its]);
    assert_eq!(other.received(), 0);
    for roam in 1..=ROAMS {
        move_to(1 + roam);
        // It goes on from the address that it has sent from, until it is told where to again.
        tunnel
            .wg(&["set", &tunnel.name, "peer", &gateway.public, "endpoint", TO])
            .expect("it runs");
        answered(roam);
    }
    let flows = flowgate.ask_json(&["status"])["listeners"][0]["flows_opened"].clone();
    assert!(flows.as_u64() > Some(u64::from(ROAMS)), "it has not moved: {flows} flows");
    assert_eq!(other.received(), 0, "the other gateway has been asked");
    assert_eq!(tunnel.last_handshake(), handshake, "the session is another one");
}
