//! Flows that do not pause while they are handed over: what one datagram may have overtaken is counted.

use std::time::Duration;

use flowgate_tests::e2e::{Peer, eventually};
use flowgate_tests::process::Process;
use nix::sys::signal::Signal;

use super::{Exchange, Network, config, listener, number};

/// How long the kernel waits for a flow to pause.
const PENDING: Duration = Duration::from_millis(100);

fn overtaken(process: &Process) -> u64 {
    number(&listener(process)["fast_path"]["overtaken"])
}

/// Stops a process while a flow is handed over, so that nothing says that it has paused, and goes on
/// sending. It may not have come so far yet when it is stopped.
fn stop_between(process: &mut Process, client: &Peer, listen: &str) {
    let listen = listen.parse().expect("an address");
    (0..200).for_each(|_| client.send_to(b"without a pause", listen));
    process.signal(Signal::SIGSTOP);
    // No state tells that so much time is over: it is what is waited for.
    std::thread::sleep(PENDING + PENDING / 2);
    client.send_to(b"past those that wait", listen);
    process.signal(Signal::SIGCONT);
}

#[test]
fn what_may_have_been_overtaken_is_not_forgotten_at_an_upgrade() {
    let Some(network) = Network::new() else { return };
    let server = network.backend("10.9.0.2:9000");
    let listen = "10.8.0.1:7000";
    let toml = config(listen, &["10.9.0.2:9000"], "");
    let mut process = network.run(&toml);
    let client = network.client("10.8.0.2:0");
    Exchange { client: &client, listen, round_trips: 0 }.until_offloaded(&server, &process);
    let mut seconds = 60;
    let counted = eventually("a flow is handed over without a pause", || {
        seconds += 1;
        // It comes back to the sockets, and is offered anew.
        process.reload(&config(
            listen,
            &["10.9.0.2:9000"],
            &format!("idle_timeout = \"{seconds}s\""),
        ));
        stop_between(&mut process, &client, listen);
        Some(overtaken(&process)).filter(|count| *count > 0)
    });
    process.upgrade(&[]);
    assert!(overtaken(&process) >= counted, "no counter ever goes down");
    process.upgrade(&[]);
    assert!(overtaken(&process) >= counted, "no counter ever goes down");
}
