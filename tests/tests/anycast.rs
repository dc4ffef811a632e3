//! Balancers behind a router: two with one address, announced by bird (BIRD 2), and those whose
//! backends answer clients straight. It needs root, network namespaces, and bird or nft.

use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use std::io::{BufRead, BufReader, Write};

use flowgate_quic_lb::{FirstOctet, QuicLbConfig, ServerId};
use flowgate_tests::e2e::{PATIENCE, Peer, eventually, pattern};
use flowgate_tests::echo_server::EchoServer;
use flowgate_tests::netns::{Namespace, Routed};
use flowgate_tests::process::{ConfigFile, Process, output};
use flowgate_tests::scratch::Scratch;
use flowgate_tests::skip::{skip, skip_test};
use nix::sys::signal::Signal;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

/// How many balancers are stopped and started again, one after the other. For a proof, set it to 100.
const STOPS: &str = "FLOWGATE_STOPS";

/// How many clients send through direct return, each from an address and port of its own. For a proof, set it to 1000000.
const CLIENTS: &str = "FLOWGATE_CLIENTS";

const ANYCAST: &str = "192.0.2.53";
const ANYCAST_V6: &str = "2001:db8::53";

/// A daemon of bird's, killed when dropped.
struct Bird {
    child: Child,
    scratch: Scratch,
}

impl Bird {
    fn start(namespace: &Namespace, config: &str) -> Option<Self> {
        let scratch = Scratch::new("bird");
        let at = |name: &str| scratch.path().join(name);
        std::fs::write(at("bird.conf"), config).expect("a file");
        let mut bird = Command::new("bird");
        bird.arg("-f").arg("-c").arg(at("bird.conf")).arg("-s").arg(at("bird.ctl"));
        bird.arg("-P").arg(at("bird.pid")).stdin(Stdio::null()).stderr(Stdio::null());
        match namespace.inside(|| bird.spawn()) {
            Err(error) => skip(&format!("bird (Debian: bird2): {error}")),
            Ok(child) => {
                eventually("bird listens", || UnixStream::connect(at("bird.ctl")).ok());
                Some(Self { child, scratch })
            }
        }
    }

    fn socket(&self) -> String {
        self.scratch.path().join("bird.ctl").to_str().expect("a plain path").to_owned()
    }
}

impl Drop for Bird {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Namespaces around a router, and birds in them.
struct Network {
    routed: Routed,
    /// Of the router, and of the balancers.
    birds: Vec<Bird>,
}

impl std::ops::Deref for Network {
    type Target = Routed;

    fn deref(&self) -> &Routed {
        &self.routed
    }
}

impl Network {
    /// With birds, of which the router is told who has the address.
    fn new() -> Option<Self> {
        let network = Self::without_birds()?;
        let neighbour = |number: usize| {
            format!(
                "protocol bgp b{number} {{ local 10.71.{number}.1 as 65000; neighbor 10.71.{number}.2 \
                 as 65001; connect delay time 1; ipv4 {{ import all; export none; }}; }}\n"
            )
        };
        let config = format!(
            "router id 10.70.0.1;\nprotocol device {{ scan time 1; }}\n\
             protocol kernel {{ merge paths on; ipv4 {{ import none; export all; }}; }}\n{}{}",
            neighbour(1),
            neighbour(2)
        );
        let mut birds = vec![Bird::start(&network.router, &config)?];
        for (number, balancer) in (1..).zip(&network.balancers) {
            birds.push(Self::announcer(number, balancer)?);
        }
        Some(Self { birds, ..network })
    }

    /// Without: nobody has the address yet.
    fn without_birds() -> Option<Self> {
        let routed = Routed::new()?;
        for balancer in &routed.balancers {
            balancer.ip(&format!("address add {ANYCAST}/32 dev lo"));
            balancer.ip(&format!("address add {ANYCAST_V6}/128 dev lo nodad"));
        }
        Some(Self { routed, birds: Vec::new() })
    }

    /// A bird that announces the address once it is told to.
    fn announcer(number: usize, balancer: &Namespace) -> Option<Bird> {
        let config = format!(
            "router id 10.71.{number}.2;\nprotocol device {{ scan time 1; }}\n\
             protocol static anycast {{ disabled; ipv4; route {ANYCAST}/32 blackhole; }}\n\
             protocol bgp uplink {{ local 10.71.{number}.2 as 65001; \
             neighbor 10.71.{number}.1 as 65000; connect delay time 1; connect retry time 1; \
             ipv4 {{ import none; export where source = RTS_STATIC; next hop self; }}; }}\n"
        );
        Bird::start(balancer, &config)
    }

    /// Starts a balancer that the router is to send clients to.
    fn balance(&self, number: usize, backends: &[SocketAddr]) -> Process {
        self.balance_with(number, &listed(backends), "responses = 1")
    }

    /// The same with backends as a configuration has them, and lines of the cluster.
    fn balance_with(&self, number: usize, backends: &[String], more: &str) -> Process {
        let config = format!(
            "lame_duck = \"2s\"\ndrain_timeout = \"2s\"\n\
             [announce]\nrise = 1\ninterval = \"100ms\"\n\
             bird = {{ socket = {:?}, protocol = \"anycast\" }}\n\
             [[listener]]\naddress = \"{ANYCAST}:5300\"\ncluster = \"web\"\n\
             [cluster.web]\n{more}\nbackends = [{}]\n",
            self.birds[number].socket(),
            backends.join(", ")
        );
        self.balancers[number - 1].inside(|| Process::run(FLOWGATE, &config))
    }

    /// Waits until the router sends clients to this many balancers.
    #[track_caller]
    fn wait_for_routes(&self, count: usize) {
        eventually(&format!("{count} routes"), || {
            let routes = self.router.inside(|| {
                Command::new("ip").args(["route", "show", ANYCAST]).output().expect("ip runs")
            });
            let routes = String::from_utf8_lossy(&routes.stdout).matches("via").count();
            (routes == count).then_some(())
        });
    }
}

impl Network {
    /// Kills the first balancer, and has its route withdrawn as the unit's `ExecStopPost=` would.
    fn kill_first(&self, balancer: &mut Process) {
        balancer.signal(Signal::SIGKILL);
        balancer.wait();
        let mut bird = UnixStream::connect(self.birds[1].socket()).expect("bird");
        bird.write_all(b"disable \"anycast\"\n").expect("written");
        let answers = BufReader::new(&bird).lines().map_while(Result::ok);
        assert!(answers.into_iter().any(|line| line.contains("disabled")));
        self.wait_for_routes(1);
    }
}

/// Backends as a configuration has them that says no more of them.
fn listed(backends: &[SocketAddr]) -> Vec<String> {
    backends.iter().map(|address| format!("\"{address}\"")).collect()
}

/// Servers that send back whatever they get, and where they are.
fn echo_servers(namespace: &Namespace) -> (Vec<EchoServer>, Vec<SocketAddr>) {
    let start = || (0..3).map(|_| EchoServer::start("10.72.0.2:0", |_| true)).collect();
    let servers: Vec<EchoServer> = namespace.inside(start);
    let addresses = servers.iter().map(EchoServer::address).collect();
    (servers, addresses)
}

/// Clients that ask and ask, each from a port for a while and then from another.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<(), String>>>,
}

impl Load {
    fn start(client: &Namespace) -> Self {
        const THREADS: u64 = 4;
        const OF_ONE_PORT: u64 = 8;
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let ask = |thread: u64| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            move || {
                let mut number = thread;
                loop {
                    let socket = UdpSocket::bind("10.70.0.2:0").map_err(|e| e.to_string())?;
                    socket.set_read_timeout(Some(PATIENCE / 4)).expect("a timeout");
                    socket.connect((ANYCAST, 5300)).map_err(|e| e.to_string())?;
                    for _ in 0..OF_ONE_PORT {
                        if stop.load(Ordering::Relaxed) {
                            return Ok(());
                        }
                        number += THREADS;
                        let question = number.to_be_bytes();
                        let lost = |e: std::io::Error| format!("question {number} is lost: {e}");
                        socket.send(&question).map_err(lost)?;
                        let mut answer = [0; 64];
                        let length = socket.recv(&mut answer).map_err(lost)?;
                        if answer[..length] != question {
                            return Err(format!("another answer than to question {number}"));
                        }
                        answered.fetch_add(1, Ordering::Relaxed);
                        // A pace that leaves the machine time for the others.
                        std::thread::sleep(Duration::from_micros(500));
                    }
                }
            }
        };
        let threads = client.inside(|| (0..THREADS).map(|n| std::thread::spawn(ask(n))).collect());
        Self { stop, answered, threads }
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits for answers that are new.
    #[track_caller]
    fn wait_for_more(&self) {
        let before = self.answered();
        eventually("more answers", || (self.answered() > before + 20).then_some(()));
    }

    /// Ends it, and returns what was lost.
    fn finish(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let outcomes = self.threads.into_iter().map(|thread| thread.join().expect("no panic"));
        outcomes.filter_map(Result::err).collect()
    }
}

#[test]
fn balancers_stop_and_start_in_turn_and_nothing_is_lost() {
    let Some(network) = Network::new() else { return };
    let stops = std::env::var(STOPS).ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    let (_servers, backends) = echo_servers(&network.backends);
    let mut running = [1, 2].map(|number| network.balance(number, &backends));
    network.wait_for_routes(2);
    let load = Load::start(&network.client);
    for stop in 0..stops {
        load.wait_for_more();
        let number = stop % 2;
        running[number].signal(Signal::SIGTERM);
        assert_eq!(running[number].wait().code(), Some(0));
        network.wait_for_routes(1);
        load.wait_for_more();
        running[number] = network.balance(number + 1, &backends);
        network.wait_for_routes(2);
    }
    let answered = load.answered();
    assert_eq!(load.finish(), [""; 0], "after {answered} answers");
    println!("{stops} stops, {answered} questions, all of them answered");
}

#[test]
fn a_bird_that_is_started_anew_is_told_again() {
    let Some(mut network) = Network::new() else { return };
    let (_servers, backends) = echo_servers(&network.backends);
    let scratch = Scratch::new("bird-again");
    // At a place of its own, where another one can listen.
    let place = scratch.path().join("bird.ctl");
    std::os::unix::fs::symlink(network.birds[1].socket(), &place).expect("a link");
    let mut flowgate = {
        let config = format!(
            "[announce]\nrise = 1\ninterval = \"100ms\"\n\
             bird = {{ socket = {place:?}, protocol = \"anycast\" }}\n\
             [[listener]]\naddress = \"{ANYCAST}:5300\"\ncluster = \"web\"\n\
             [cluster.web]\nbackends = [\"{}\"]\n",
            backends[0]
        );
        network.balancers[0].inside(|| Process::run(FLOWGATE, &config))
    };
    flowgate.address();
    network.wait_for_routes(1);
    drop(network.birds.remove(1));
    flowgate.line("cannot be announced yet");
    network.wait_for_routes(0);
    let Some(bird) = Network::announcer(1, &network.balancers[0]) else {
        return skip_test("no second bird");
    };
    std::fs::remove_file(&place).expect("the link");
    std::os::unix::fs::symlink(bird.socket(), &place).expect("a link");
    network.wait_for_routes(1);
}

/// Sets up a backend as `flowgate explain --backend-setup` says. None: there is no nft.
fn set_up(backends: &Namespace, balancer: &Namespace, config: &str) -> Option<()> {
    let file = ConfigFile::new(config);
    let rules = balancer.inside(|| output(FLOWGATE, &["explain", "--backend-setup", file.path()]));
    assert!(rules.status.success(), "{}", String::from_utf8_lossy(&rules.stderr));
    let mut nft = Command::new("nft");
    nft.args(["-f", "-"]).stdin(Stdio::piped());
    let mut nft = match backends.inside(|| nft.spawn()) {
        Err(error) => return skip(&format!("nft (Debian: nftables): {error}")),
        Ok(nft) => nft,
    };
    nft.stdin.take().expect("a pipe").write_all(&rules.stdout).expect("written");
    assert!(nft.wait().expect("it ends").success(), "{}", String::from_utf8_lossy(&rules.stdout));
    Some(())
}

fn answers_straight(network: &Network, listen: &str, backend: &str, client: &str) {
    let config = format!(
        "[[listener]]\naddress = \"{listen}\"\ncluster = \"web\"\n\
         [cluster.web]\nreturn = \"direct\"\nbackends = [\"{backend}\"]\n"
    );
    let [balancer, _] = &network.balancers;
    let Some(()) = set_up(&network.backends, balancer, &config) else { return };
    let backend = network.backends.inside(|| Peer::bind(backend));
    let mut flowgate = balancer.inside(|| Process::run(FLOWGATE, &config));
    let listen = flowgate.address();
    let sockets = flowgate.sockets();
    let clients: Vec<Peer> = network.client.inside(|| (0..9).map(|_| Peer::bind(client)).collect());
    // The last ones take several packets.
    for (number, length) in [0, 1, 2, 99, 1_400, 1_473, 3_001, 65_000].into_iter().enumerate() {
        for client in &clients {
            client.set_tos(number as u8 * 4);
            let question = pattern(length, number as u8);
            client.send_to(&question, listen);
            let request = backend.answer(&[number as u8]);
            assert_eq!((request.bytes, request.from), (question, client.address()));
            assert_eq!(request.tos, number as u8 * 4);
            let answer = client.receive();
            assert_eq!((answer.bytes, answer.from), (vec![number as u8], listen));
        }
    }
    let status = flowgate.ask_json(&["status"]);
    assert_eq!(status["clusters"][0]["return"], "direct");
    assert_eq!(status["clusters"][0]["mode"], "session");
    assert_eq!(status["clusters"][0]["backends"][0]["datagrams_to"], 72);
    assert_eq!(status["listeners"][0]["flows_active"], 0);
    assert!(flowgate.sockets() <= sockets + 1, "a socket for each client");
}

#[test]
fn a_backend_answers_clients_straight_from_the_address_that_they_called() {
    let Some(network) = Network::without_birds() else { return };
    network.router.ip(&format!("route add {ANYCAST} via 10.71.1.2"));
    network.router.ip(&format!("route add {ANYCAST_V6} via fd01::2"));
    answers_straight(&network, &format!("{ANYCAST}:5300"), "10.72.0.2:9000", "10.70.0.2:0");
    answers_straight(&network, &format!("[{ANYCAST_V6}]:5300"), "[fd03::2]:9000", "[fd00::2]:0");
}

#[test]
fn direct_return_remembers_nothing_of_its_clients() {
    const OF_ONE_ADDRESS: u32 = 50_000;
    const FIRST_PORT: u32 = 10_000;
    // What may be on its way. It fits into any socket's buffer.
    const WINDOW: u64 = 64;
    // A flow takes 200 bytes: those of the fewest clients would take nine times as much.
    const NOISE: u64 = 1 << 20;
    let clients = std::env::var(CLIENTS).ok().map_or(50_000, |text| text.parse().expect("clients"));
    let Some(network) = Network::without_birds() else { return };
    network.router.ip(&format!("route add {ANYCAST} via 10.71.1.2"));
    // All of these addresses are the clients' host's.
    network.router.ip("route add 10.70.16.0/24 via 10.70.0.2");
    network.client.ip("route add local 10.70.16.0/24 dev lo");
    let config = format!(
        "[[listener]]\naddress = \"{ANYCAST}:5300\"\ncluster = \"web\"\n\
         [cluster.web]\nreturn = \"direct\"\nbackends = [\"10.72.0.2:9000\"]\n"
    );
    let backend = network.backends.inside(|| UdpSocket::bind("10.72.0.2:9000")).expect("a port");
    backend.set_read_timeout(Some(PATIENCE / 4)).expect("a timeout");
    let mut flowgate = network.balancers[0].inside(|| Process::run(FLOWGATE, &config));
    let listen = flowgate.address();
    let sockets = flowgate.sockets();
    let seen = Arc::<AtomicU64>::default();
    let counted = Arc::clone(&seen);
    // Each of them once, and nobody else.
    let counting = std::thread::spawn(move || {
        let mut senders = std::collections::HashSet::with_capacity(clients as usize);
        while senders.len() < clients as usize {
            let (_, from) = backend.recv_from(&mut [0; 8]).map_err(|e| e.to_string())?;
            if !senders.insert(from) {
                return Err(format!("{from} is seen twice"));
            }
            counted.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    });
    let send_from = |all: std::ops::Range<u32>| {
        network.client.inside(|| {
            for number in all {
                let address = [10, 70, 16, 1 + (number / OF_ONE_ADDRESS) as u8];
                let port = (FIRST_PORT + number % OF_ONE_ADDRESS) as u16;
                let client = UdpSocket::bind(SocketAddr::from((address, port))).expect("a client");
                client.send_to(b"question", listen).expect("sent");
                if u64::from(number) >= seen.load(Ordering::Relaxed) + WINDOW {
                    eventually("a backend has them", || {
                        (seen.load(Ordering::Relaxed) > u64::from(number) - WINDOW).then_some(())
                    });
                }
            }
        });
    };
    send_from(0..clients / 10);
    let few = flowgate.resident_memory();
    send_from(clients / 10..clients);
    assert_eq!(counting.join().expect("no panic"), Ok(()));
    let many = flowgate.resident_memory();
    println!("{clients} clients, none lost: {few} bytes after a tenth of them, {many} after all");
    assert!(many < few + NOISE, "memory grows by clients: {few}, {many}");
    assert_eq!(flowgate.sockets(), sockets, "sockets of clients");
    let status = flowgate.ask_json(&["status"]);
    assert_eq!(status["listeners"][0]["flows_active"], 0);
    assert_eq!(status["clusters"][0]["backends"][0]["datagrams_to"], clients);
}

#[test]
fn collectors_see_who_sent_what_nobody_answers() {
    let Some(network) = Network::without_birds() else { return };
    network.router.ip(&format!("route add {ANYCAST} via 10.71.1.2"));
    let collectors = ["10.72.0.2:2055", "10.72.0.2:2056"];
    let collectors = collectors.map(|address| network.backends.inside(|| Peer::bind(address)));
    for (mode, copies) in [("one-way", 1), ("fan-out", 2)] {
        let config = format!(
            "[[listener]]\naddress = \"{ANYCAST}:2055\"\ncluster = \"flows\"\n\
             [cluster.flows]\nmode = {mode:?}\nsource = \"client\"\nbackends = [{}]\n",
            if copies == 1 {
                "\"10.72.0.2:2055\""
            } else {
                "\"10.72.0.2:2055\", \"10.72.0.2:2056\""
            }
        );
        let mut flowgate = network.balancers[0].inside(|| Process::run(FLOWGATE, &config));
        let listen = flowgate.address();
        let exporter = network.client.inside(|| Peer::bind("10.70.0.2:0"));
        for number in 0..5 {
            exporter.send_to(&[number], listen);
            for collector in &collectors[..copies] {
                let record = collector.receive();
                assert_eq!((record.bytes, record.from), (vec![number], exporter.address()));
            }
        }
        flowgate.signal(Signal::SIGTERM);
        assert_eq!(flowgate.wait().code(), Some(0));
    }
}

#[test]
fn with_direct_return_all_flows_go_on_when_a_balancer_is_killed() {
    let Some(network) = Network::new() else { return };
    let backends: Vec<Peer> = (9001..9004)
        .map(|port| network.backends.inside(|| Peer::bind(&format!("10.72.0.2:{port}"))))
        .collect();
    let addresses: Vec<SocketAddr> = backends.iter().map(Peer::address).collect();
    let all = listed(&addresses);
    let config = format!(
        "[[listener]]\naddress = \"{ANYCAST}:5300\"\ncluster = \"web\"\n[cluster.web]\n\
         return = \"direct\"\nbackends = [{}]\n",
        all.join(", ")
    );
    let Some(()) = set_up(&network.backends, &network.balancers[0], &config) else { return };
    let lines = "return = \"direct\"\naffinity = \"source-ip-port\"";
    let mut running = [1, 2].map(|number| network.balance_with(number, &all, lines));
    network.wait_for_routes(2);
    let to: SocketAddr = format!("{ANYCAST}:5300").parse().expect("an address");
    let clients: Vec<Peer> =
        network.client.inside(|| (0..16).map(|_| Peer::bind("10.70.0.2:0")).collect());
    // Which backend each has, by place.
    let ask_all = || -> Vec<usize> {
        let ask = |client: &Peer| {
            client.send_to(b"question", to);
            let served = eventually("a backend is asked", || {
                backends.iter().position(|backend| {
                    let asked = backend.receive_soon();
                    asked.is_some_and(|question| {
                        assert_eq!(question.from, client.address());
                        backend.send_to(b"answer", question.from);
                        true
                    })
                })
            });
            let answer = client.receive();
            assert_eq!((&answer.bytes[..], answer.from), (&b"answer"[..], to));
            served
        };
        clients.iter().map(ask).collect()
    };
    let before = ask_all();
    let carried = |process: &Process| {
        let status = process.ask_json(&["status"]);
        status["listeners"][0]["to_backend"]["forwarded"]["datagrams"].as_u64().expect("a number")
    };
    let shares = [carried(&running[0]), carried(&running[1])];
    assert_eq!(shares.iter().sum::<u64>(), 16);
    assert!(shares.iter().all(|share| *share > 0), "one balancer has all flows: {shares:?}");

    network.kill_first(&mut running[0]);
    assert_eq!(ask_all(), before);
    assert_eq!(carried(&running[1]), shares[1] + 16);
}

/// Asks for each client with a question of its own, and says which backend answered, by place, and whom
/// it saw.
fn ask_all(
    clients: &[Peer],
    backends: &[Peer],
    question: impl Fn(usize) -> Vec<u8>,
) -> Vec<(usize, SocketAddr)> {
    let to: SocketAddr = format!("{ANYCAST}:5300").parse().expect("an address");
    let ask = |(number, client): (usize, &Peer)| {
        client.send_to(&question(number), to);
        let seen = eventually("a backend is asked", || {
            backends.iter().enumerate().find_map(|(place, backend)| {
                let asked = backend.receive_soon()?;
                assert_eq!(asked.bytes, question(number));
                backend.send_to(b"answer", asked.from);
                Some((place, asked.from))
            })
        });
        let answer = client.receive();
        assert_eq!((&answer.bytes[..], answer.from), (&b"answer"[..], to));
        seen
    };
    clients.iter().enumerate().map(ask).collect()
}

/// Flows go on by the balancer that is left when the other one is killed: with the same backends, which
/// see some of them from another address.
#[track_caller]
fn flows_keep_their_backends(
    backend: impl Fn(usize, SocketAddr) -> String,
    lines: &str,
    question: impl Fn(usize) -> Vec<u8>,
) -> Option<Vec<usize>> {
    let network = Network::new()?;
    let bind = |port| network.backends.inside(|| Peer::bind(&format!("10.72.0.2:{port}")));
    let backends: Vec<Peer> = (9001..9004).map(bind).collect();
    let listed: Vec<String> =
        backends.iter().enumerate().map(|(place, peer)| backend(place, peer.address())).collect();
    let mut running = [1, 2].map(|number| network.balance_with(number, &listed, lines));
    network.wait_for_routes(2);
    let clients: Vec<Peer> =
        network.client.inside(|| (0..16).map(|_| Peer::bind("10.70.0.2:0")).collect());
    let before = ask_all(&clients, &backends, &question);
    network.kill_first(&mut running[0]);
    let after = ask_all(&clients, &backends, &question);
    let places = |seen: &[(usize, SocketAddr)]| -> Vec<usize> {
        seen.iter().map(|(place, _)| *place).collect()
    };
    assert_eq!(places(&after), places(&before));
    // Those that the other had are as they were.
    let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    assert!((1..16).contains(&moved), "{moved} of 16 flows come from elsewhere");
    Some(places(&after))
}

#[test]
fn with_rendezvous_flows_keep_their_backends_when_a_balancer_is_killed() {
    let lines = "balance = \"rendezvous\"\naffinity = \"source-ip-port\"";
    flows_keep_their_backends(|_, address| format!("\"{address}\""), lines, |_| b"?".to_vec());
}

#[test]
fn with_quic_lb_connections_keep_their_servers_when_a_balancer_is_killed() {
    let ids = QuicLbConfig::new(0, 2, 4).expect("lengths that may be");
    let server = |place: usize| ServerId::new(&[7, place as u8]).expect("short enough");
    let backend = |place: usize, address: SocketAddr| {
        format!("{{ address = \"{address}\", server_id = \"07{place:02x}\" }}")
    };
    let lines = "affinity = \"quic\"\n\
                 quic_lb = [{ rotation = 0, server_id_length = 2, nonce_length = 4 }]";
    // A short header, the id that a client's server has given it, and what is encrypted.
    let question = |number: usize| {
        let nonce = [3, 1, 4, number as u8];
        let id = ids.encode(&server(number % 3), &nonce, FirstOctet::Length).expect("an id");
        [&[0x40][..], id.as_ref(), &pattern(40, 9)].concat()
    };
    if let Some(places) = flows_keep_their_backends(backend, lines, question) {
        let named: Vec<usize> = (0..16).map(|number| number % 3).collect();
        assert_eq!(places, named, "each server has what names it");
    }
}
