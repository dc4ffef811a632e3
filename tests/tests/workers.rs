//! Several workers share the clients of a listener, and each client stays with one.

use std::collections::{BTreeMap, HashSet};

use flowgate::control::server::{Server, ServerOptions};
use flowgate::sys::clock::Clock;
use flowgate_tests::e2e::{Balancer, Peer, eventually, simple_config};
use flowgate_tests::process::Process;
use flowgate_tests::skip::{lacks, skip_test};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

fn config(workers: u32, backends: &[&Peer]) -> String {
    format!("workers = {workers}\n{}", simple_config("127.0.0.1:0", backends, ""))
}

/// The same cluster at a second listener.
fn two_listeners(toml: &str) -> String {
    toml.replacen(
        "[cluster.test]",
        "[[listener]]\nname = \"second\"\naddress = \"127.0.0.1:0\"\ncluster = \"test\"\n[cluster.test]",
        1,
    )
}

#[test]
fn each_client_keeps_its_flow_whichever_worker_it_is_with() {
    let backend = Peer::v4();
    let balancer = Balancer::start(&config(2, &[&backend]));
    let clients: Vec<_> = (0..64u8).map(|number| (number, Peer::v4())).collect();
    let mut upstreams: BTreeMap<u8, HashSet<_>> = BTreeMap::new();
    for round in 0..5 {
        for (number, client) in &clients {
            client.send_to(&[*number, round], balancer.address());
        }
        for _ in &clients {
            let request = backend.receive();
            assert_eq!(request.bytes[1], round);
            upstreams.entry(request.bytes[0]).or_default().insert(request.from);
            backend.send_to(&request.bytes, request.from);
        }
        for (number, client) in &clients {
            assert_eq!(client.receive().bytes, [*number, round]);
        }
    }
    assert_eq!(upstreams.len(), clients.len());
    assert!(upstreams.values().all(|ports| ports.len() == 1), "{upstreams:?}");
    let figures = balancer.figures();
    assert_eq!((figures.flows_active, figures.counters.flows_opened), (64, 64));
    balancer.assert_lossless(5 * 64, 5 * 64);
}

#[test]
fn the_clients_are_spread_over_all_workers() {
    let backend = Peer::v4();
    let mut flowgate = Process::run(FLOWGATE, &config(2, &[&backend]));
    let address = flowgate.address();
    let workers = || {
        let threads = flowgate.threads().into_iter();
        threads.filter(|(name, _)| name.starts_with("worker-")).collect::<BTreeMap<_, _>>()
    };
    // A thread takes its name once it runs.
    let before = eventually("two workers", || Some(workers()).filter(|found| found.len() == 2));
    for _ in 0..64 {
        Peer::v4().send_to(b"hello", address);
        backend.receive();
    }
    // Each client wakes one of them. That one gets fewer than eight of 64 does not happen.
    eventually("both workers had something to do", || {
        let after = workers();
        before.iter().all(|(name, runs)| after[name] >= runs + 8).then_some(())
    });
}

#[test]
fn a_group_of_workers_stops_as_one() {
    let backend = Peer::v4();
    let mut flowgate = Process::run(FLOWGATE, &config(4, &[&backend]));
    flowgate.address();
    flowgate.signal(Signal::SIGINT);
    assert_eq!(flowgate.wait().code(), Some(0));
}

/// After an upgrade that comes to nothing each worker has its own shards again: what it is told of
/// them reaches them.
#[test]
fn three_workers_get_back_the_shards_that_they_let_go_of() {
    if lacks("upgrades") {
        return;
    }
    const CLIENTS: usize = 48;
    let backends = [Peer::v4(), Peer::v4()];
    let parse = |toml: &str| flowgate_config::parse(toml, "test.toml").expect("valid");
    let [before, after] =
        backends.each_ref().map(|backend| parse(&two_listeners(&config(3, &[backend]))));
    let options = ServerOptions::default();
    let mut server = Server::start(&before, Clock::start(), options, |_| {}).expect("it starts");
    let addresses: Vec<_> = server.addresses().collect();
    let clients: Vec<_> = (0..CLIENTS).map(|_| Peer::v4()).collect();
    for client in &clients {
        for address in &addresses {
            client.send_to(b"before", *address);
            backends[0].receive();
        }
    }
    for _ in 0..2 {
        let (_, released) = server.release(false);
        server.take_back(released);
        let report = server.report();
        let flows: u64 = report.iter().map(|listener| listener.figures.flows_active).sum();
        assert_eq!(flows, 2 * CLIENTS as u64);
    }
    server.apply(&after).expect("it is valid");
    // The former backend is gone: all flows move, whichever worker they are with.
    for client in &clients {
        for address in &addresses {
            client.send_to(b"after", *address);
            assert_eq!(backends[1].receive().bytes, b"after");
        }
    }
}

#[test]
fn a_second_sigterm_ends_a_process_whose_worker_hangs() {
    let backend = Peer::v4();
    let mut flowgate = Process::run(FLOWGATE, &config(1, &[&backend]));
    flowgate.address();
    let tasks = std::fs::read_dir(format!("/proc/{}/task", flowgate.pid())).expect("it runs");
    let is_worker = |task: &std::path::PathBuf| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("worker-"))
    };
    let worker = tasks.flatten().map(|task| task.path()).find(is_worker).expect("a worker");
    let worker = worker.file_name().and_then(|name| name.to_str()?.parse().ok());
    let worker = Pid::from_raw(worker.expect("a number"));
    // A debugger stops one thread of a process where signals stop all.
    if let Err(error) = ptrace::seize(worker, ptrace::Options::empty()) {
        return skip_test(&format!("ptrace(2) is not allowed here: {error}"));
    }
    ptrace::interrupt(worker).expect("we trace it");
    waitpid(worker, Some(WaitPidFlag::__WALL)).expect("it stops");

    flowgate.signal(Signal::SIGTERM);
    flowgate.line("draining");
    flowgate.signal(Signal::SIGTERM);
    eventually("the worker ends with its process", || {
        let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
        let status = waitpid(worker, Some(flags)).expect("we trace it");
        matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..)).then_some(())
    });
    assert_eq!(flowgate.wait().code(), Some(1));
}
