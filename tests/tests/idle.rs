//! A balancer with nothing to do does nothing.

use std::collections::HashSet;
use std::time::Duration;

use flowgate_tests::e2e::{Peer, simple_config};
use flowgate_tests::process::Process;
use nix::sys::signal::Signal;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

/// How long it is watched. This wait is the measurement.
const WATCHED: Duration = Duration::from_secs(2);

#[test]
fn an_idle_balancer_with_live_flows_is_not_put_on_a_processor() {
    let backend = Peer::v4();
    let config = simple_config("127.0.0.1:0", &[&backend], "");
    let mut flowgate = Process::run(FLOWGATE, &format!("workers = 2\n{config}"));
    let address = flowgate.address();
    let clients: Vec<_> = (0..50).map(|_| Peer::v4()).collect();
    for client in &clients {
        client.send_to(b"hello", address);
        backend.answer(b"welcome");
        client.receive();
    }
    let before = flowgate.threads();
    std::thread::sleep(WATCHED);
    let after = flowgate.threads();
    assert_eq!(before.len(), after.len());
    let runs: u64 = before.iter().zip(&after).map(|((_, before), (_, after))| after - before).sum();
    // A worker may have been on its way to sleep when the first look was taken.
    assert!(runs <= 2, "{before:?} {after:?}");
}

/// The process stands still for longer than flows may be idle: those whose datagrams wait live on.
#[test]
fn after_a_stall_flows_go_on_whose_datagrams_have_waited() {
    const CLIENTS: usize = 300;
    let backend = Peer::v4();
    let config = simple_config("127.0.0.1:0", &[&backend], "idle_timeout = \"3s\"");
    let mut flowgate = Process::run(FLOWGATE, &config);
    let address = flowgate.address();
    let clients: Vec<_> = (0..CLIENTS).map(|_| Peer::v4()).collect();
    let call = |what: &[u8]| clients.iter().for_each(|client| client.send_to(what, address));
    call(b"before");
    let before: HashSet<_> = (0..CLIENTS).map(|_| backend.receive().from).collect();
    flowgate.signal(Signal::SIGSTOP);
    call(b"meanwhile");
    // This wait is the stall.
    std::thread::sleep(Duration::from_millis(3_500));
    flowgate.signal(Signal::SIGCONT);
    let after: HashSet<_> = (0..CLIENTS).map(|_| backend.receive().from).collect();
    assert!(before == after, "flows have ended, and new ones have begun");
    let status = flowgate.ask_json(&["status"]);
    assert_eq!(status["counters"]["flows_opened"], CLIENTS);
}
