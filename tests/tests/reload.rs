//! The configuration changes while traffic flows.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use flowgate_tests::e2e::{Peer, eventually, own_address, simple_config};
use flowgate_tests::echo_server::EchoServer;
use flowgate_tests::process::Process;
use flowgate_tests::scratch::Scratch;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

/// How many datagrams a client has under way at a time.
const WINDOW: u64 = 32;

/// How many clients send all the time.
const CLIENTS: usize = 8;

fn toml(address: SocketAddr, backends: &[SocketAddr], more: &str) -> String {
    let backends: Vec<_> = backends.iter().map(ToString::to_string).collect();
    format!(
        "[[listener]]\nname = \"main\"\naddress = \"{address}\"\ncluster = \"test\"\n\
         [cluster.test]\nbalance = \"round-robin\"\nbackends = {backends:?}\n{more}\n"
    )
}

/// A client that never pauses: it sends as soon as something comes back, and checks that
/// everything does, in order, once.
struct Sender {
    is_stopped: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Sender {
    fn start(to: SocketAddr) -> Self {
        let is_stopped = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&is_stopped);
        let thread = std::thread::spawn(move || {
            let client = Peer::v4();
            let (mut sent, mut received) = (0u64, 0u64);
            while received < sent || !stop.load(Ordering::Relaxed) {
                while sent < received + WINDOW && !stop.load(Ordering::Relaxed) {
                    client.send_to(&sent.to_be_bytes(), to);
                    sent += 1;
                }
                if received < sent {
                    assert_eq!(client.receive().bytes, received.to_be_bytes(), "lost or reordered");
                    received += 1;
                }
            }
            received
        });
        Self { is_stopped, thread }
    }

    /// Stops it where something may be lost: it ends by itself then, or with the test.
    fn abandon(self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }

    /// Stops it, and says how many datagrams went there and back.
    fn stop(self) -> u64 {
        self.is_stopped.store(true, Ordering::Relaxed);
        self.thread.join().expect("nothing is lost")
    }
}

fn echo() -> EchoServer {
    EchoServer::start("127.0.0.1:0", |_| true)
}

#[test]
fn a_thousand_reloads_under_load_lose_and_reorder_nothing() {
    let [first, second, third] = [(); 3].map(|()| echo());
    let any = "127.0.0.1:0".parse().unwrap();
    let all = [first.address(), second.address(), third.address()];
    let mut flowgate = Process::run(FLOWGATE, &toml(any, &all[..2], ""));
    let address = flowgate.address();
    let stays = |backends: &[SocketAddr], more: &str| toml(any, backends, more);
    let senders: Vec<_> = (0..CLIENTS).map(|_| Sender::start(address)).collect();
    // All flows are open before the third backend comes, which is to go again: with a backend go the
    // answers that it has under way.
    eventually("all flows are open", || {
        let opened = flowgate.ask_json(&["status"])["counters"]["flows_opened"].as_u64();
        (opened == Some(CLIENTS as u64)).then_some(())
    });
    let start = std::time::Instant::now();
    let mut slowest = std::time::Duration::ZERO;
    for number in 0..1_000 {
        let config = match number % 4 {
            0 => stays(&all, ""),
            1 => stays(&all, ""),
            2 => stays(&all, "idle_timeout = \"61s\""),
            // It has no flows but those that began since it came.
            _ => stays(&all[..2], ""),
        };
        flowgate.rewrite_config(&config);
        let before = std::time::Instant::now();
        let answer = flowgate::admin::client::request(
            flowgate.control_socket().as_ref(),
            &flowgate::admin::request::Request::Reload,
            flowgate_tests::e2e::PATIENCE,
        );
        slowest = slowest.max(before.elapsed());
        let is_done = matches!(answer, Ok(flowgate::admin::request::Response::Done { .. }));
        assert!(is_done, "{answer:?}");
    }
    let seconds = start.elapsed().as_secs_f64();
    let round_trips: u64 = senders.into_iter().map(Sender::stop).sum();
    println!(
        "1,000 reloads in {seconds:.1} s, the slowest in {slowest:?}; {:.0} datagrams/s there and \
         as many back",
        round_trips as f64 / seconds
    );
    let status = flowgate.ask_json(&["status"]);
    let counters = &status["counters"];
    assert_eq!(counters["datagrams_received"], counters["datagrams_forwarded"]);
    assert_eq!(counters["datagrams_received"]["to_backend"], round_trips);
    assert_eq!(counters["datagrams_received"]["to_client"], round_trips);
    assert_eq!(counters["reloads_ok"], 1_000);
    assert_eq!(counters["flows_opened"], CLIENTS as u64, "no flow was opened a second time");
}

#[test]
fn after_the_acknowledgement_a_removed_backend_gets_nothing_even_from_who_never_pauses() {
    let [stays, goes] = [(); 2].map(|()| echo());
    let any = "127.0.0.1:0".parse().unwrap();
    let both = [stays.address(), goes.address()];
    for policy in ["pin", "rehash", "close"] {
        let more = format!("on_backend_down = {policy:?}");
        let mut flowgate = Process::run(FLOWGATE, &toml(any, &both, &more));
        let address = flowgate.address();
        let senders: Vec<_> = (0..4).map(|_| Sender::start(address)).collect();
        eventually("both serve", || (goes.received() > 0).then_some(()));
        let served = || flowgate.ask_json(&["status"])["clusters"][0]["backends"].clone();
        assert_eq!(served().as_array().map(Vec::len), Some(2));

        flowgate.reload(&toml(any, &both[..1], &more));
        // What was sent before the acknowledgement is in the backend's buffer by now, which is on
        // this host; it may not have been read yet.
        let probe = Peer::v4();
        probe.send_to(b"last", goes.address());
        probe.receive();
        let before = goes.received();
        let reached = stays.received();
        eventually("traffic goes on", || (stays.received() > reached + 1_000).then_some(()));
        assert_eq!(goes.received(), before, "with {policy}");
        assert_eq!(served().as_array().map(Vec::len), Some(1));
        // Answers that were under way on the sockets of moved flows are lost with them.
        senders.into_iter().for_each(Sender::abandon);
    }
}

#[test]
fn the_last_backend_can_go_and_come_back_and_the_same_senders_go_on_by_themselves() {
    let backend = echo();
    let any = "127.0.0.1:0".parse().unwrap();
    let mut flowgate = Process::run(FLOWGATE, &toml(any, &[backend.address()], ""));
    let address = flowgate.address();
    let client = Peer::v4();
    client.send_to(b"before", address);
    assert_eq!(client.receive().bytes, b"before");
    flowgate.reload(&toml(any, &[], ""));
    client.send_to(b"lost", address);
    eventually("it is dropped for want of a backend", || {
        let status = flowgate.ask_json(&["status"]);
        let dropped = &status["listeners"][0]["to_backend"]["dropped"]["no_backend"]["datagrams"];
        (*dropped == 1).then_some(())
    });
    flowgate.reload(&toml(any, &[backend.address()], ""));
    client.send_to(b"after", address);
    assert_eq!(client.receive().bytes, b"after");
}

#[test]
fn listeners_come_go_and_move_and_the_others_do_not_notice() {
    let [first, second] = [(); 2].map(|()| echo());
    let (stays, goes, comes) = (own_address(), own_address(), own_address());
    let config = |listeners: &[(&str, SocketAddr, &str)]| {
        let listeners: String = listeners
            .iter()
            .map(|(name, address, cluster)| {
                format!(
                    "[[listener]]\nname = {name:?}\naddress = \"{address}\"\ncluster = {cluster:?}\n"
                )
            })
            .collect();
        let (one, two) = (first.address(), second.address());
        format!(
            "{listeners}[cluster.one]\nbackends = [\"{one}\"]\n[cluster.two]\nbackends = [\"{two}\"]\n"
        )
    };
    let before = config(&[("stays", stays, "one"), ("goes", goes, "one")]);
    let mut flowgate = Process::run(FLOWGATE, &before);
    flowgate.line("started");
    let sender = Sender::start(stays);
    let client = Peer::connected(goes);
    client.send(b"hello");
    assert_eq!(client.receive().bytes, b"hello");

    flowgate.reload(&config(&[("stays", stays, "one"), ("goes", comes, "one")]));
    client.send(b"anybody?");
    assert!(client.try_receive().is_err(), "the kernel says that nobody listens any more");
    let moved = Peer::connected(comes);
    moved.send(b"here");
    assert_eq!(moved.receive().bytes, b"here");

    let served = second.received();
    flowgate.reload(&config(&[("stays", stays, "one"), ("goes", comes, "two")]));
    moved.send(b"and now");
    assert_eq!(moved.receive().bytes, b"and now");
    assert_eq!(second.received(), served + 1, "the other cluster serves it");

    // Another name is the same listener.
    flowgate.reload(&config(&[("stays", stays, "one"), ("renamed", comes, "two")]));
    moved.send(b"once more");
    assert_eq!(moved.receive().bytes, b"once more");
    let status = flowgate.ask_json(&["status"]);
    let names: Vec<_> =
        status["listeners"].as_array().unwrap().iter().map(|l| &l["name"]).collect();
    assert_eq!(names, ["stays", "renamed"]);
    assert_eq!(status["listeners"][1]["flows_active"], 1, "with its flow");
    sender.stop();
}

#[test]
fn a_configuration_that_cannot_be_had_changes_nothing_and_every_reason_is_told() {
    let backend = echo();
    let any = "127.0.0.1:0".parse().unwrap();
    let valid = toml(any, &[backend.address()], "");
    let mut flowgate = Process::run(FLOWGATE, &valid);
    let address = flowgate.address();
    let taken = Peer::v4();
    let second_listener = |address: &str| {
        format!("{valid}[[listener]]\naddress = \"{address}\"\ncluster = \"test\"\n")
    };
    let sender = Sender::start(address);
    for (config, reasons) in [
        ("[[listener".to_owned(), vec!["1:"]),
        (valid.replace("balance", "balence"), vec!["balence", "did you mean"]),
        (valid.replace("cluster = \"test\"", "cluster = \"nest\""), vec!["nest", "\"test\""]),
        (format!("{valid}\nrequests = -1\nresponses = \"x\""), vec!["requests", "responses"]),
        (
            second_listener("127.0.0.1:0").replace("127.0.0.1:0", "127.0.0.1:9"),
            vec!["no other listener"],
        ),
        (
            second_listener(&taken.address().to_string()),
            vec!["cannot listen on", "another process"],
        ),
        (format!("workers = 2\n{valid}"), vec!["workers", "restart"]),
    ] {
        flowgate.rewrite_config(&config);
        let output = flowgate.ask(&["reload"]);
        let complaints = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{config}");
        for reason in reasons {
            assert!(complaints.contains(reason), "{reason:?} in {complaints}");
        }
    }
    // The same by signal: nobody waits for an answer, so the log has it.
    flowgate.rewrite_config("workers = 0");
    flowgate.signal(Signal::SIGHUP);
    flowgate.line("stays as it was");
    assert!(sender.stop() > 0);
    let status = flowgate.ask_json(&["status"]);
    assert_eq!(status["listeners"].as_array().map(Vec::len), Some(1));
    assert_eq!(status["counters"]["flows_opened"], 1);
}

#[test]
fn sighup_reloads() {
    let [first, second] = [(); 2].map(|()| echo());
    let any = "127.0.0.1:0".parse().unwrap();
    let mut flowgate = Process::run(FLOWGATE, &toml(any, &[first.address()], ""));
    let address = flowgate.address();
    flowgate.rewrite_config(&toml(any, &[second.address()], ""));
    flowgate.signal(Signal::SIGHUP);
    flowgate.line("reloaded");
    let client = Peer::v4();
    client.send_to(b"hello", address);
    client.receive();
    assert_eq!((first.received(), second.received()), (0, 1));
}

#[test]
fn sighup_while_it_reads_its_first_configuration_reloads_once_it_has_started() {
    let [first, second] = [(); 2].map(|()| echo());
    let place = Scratch::new("early");
    let at = |name: &str| place.path().join(name);
    let config = |backend: &EchoServer| {
        let more = format!("[admin]\nsocket = {:?}", at("control.sock"));
        toml("127.0.0.1:0".parse().unwrap(), &[backend.address()], &more)
    };
    mkfifo(&at("flowgate.toml"), Mode::S_IRWXU).unwrap();
    let log = File::create(at("log")).unwrap();
    let mut command = Command::new(FLOWGATE);
    command.arg("run").arg(at("flowgate.toml")).stdin(Stdio::null()).stderr(log);
    let flowgate = Killed(command.spawn().unwrap());
    let mut fifo = eventually("it reads its configuration", || {
        let mut options = File::options();
        options.write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(at("flowgate.toml")).ok()
    });
    for early in [Signal::SIGUSR1, Signal::SIGHUP] {
        kill(Pid::from_raw(flowgate.0.id() as i32), early).unwrap();
    }
    std::fs::write(at("new"), config(&second)).unwrap();
    std::fs::rename(at("new"), at("flowgate.toml")).unwrap();
    fifo.write_all(config(&first).as_bytes()).unwrap();
    drop(fifo);
    let log = eventually("it has started, then reloaded", || {
        let log = std::fs::read_to_string(at("log")).unwrap();
        log.split_once("started").is_some_and(|(_, then)| then.contains("reloaded")).then_some(log)
    });
    assert!(log.contains(&second.address().to_string()), "{log}");
}

/// A process that is killed when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn with_several_workers_a_reload_reaches_all_of_them() {
    let [first, second] = [(); 2].map(|()| echo());
    let any = "127.0.0.1:0".parse().unwrap();
    let with_workers =
        |backend: &EchoServer| format!("workers = 2\n{}", toml(any, &[backend.address()], ""));
    let mut flowgate = Process::run(FLOWGATE, &with_workers(&first));
    let address = flowgate.address();
    flowgate.reload(&with_workers(&second));
    for _ in 0..32 {
        let client = Peer::v4();
        client.send_to(b"hello", address);
        client.receive();
    }
    assert_eq!((first.received(), second.received()), (0, 32));
}

#[test]
fn simple_configurations_need_no_name() {
    // Listeners without a name are known by their address, also where the port is the kernel's.
    let backend = Peer::v4();
    let config = simple_config("127.0.0.1:0", &[&backend], "");
    let mut flowgate = Process::run(FLOWGATE, &config);
    let address = flowgate.address();
    flowgate.reload(&config.replace("backends", "idle_timeout = \"1s\"\nbackends"));
    let client = Peer::v4();
    client.send_to(b"hello", address);
    assert_eq!(backend.receive().bytes, b"hello");
}
