//! The real shard, from what it receives to what it sends, on a kernel that does everything a
//! kernel may do.
//!
//! [`ShellWorld`](flowgate_tests::shell_world::ShellWorld) checks after every step that each
//! datagram went out once, waits once or is counted as dropped once; the tests here only say what
//! happens, and what must come of it beside that.

mod chance;
mod clients;
mod errors;
mod liveness;
mod send_queue;
mod trains;

use std::net::SocketAddr;

use flowgate_core::config::ManagerConfig;
use flowgate_core::counters::Ledger;
use flowgate_core::{Direction, DropReason};
use flowgate_tests::fake_kernel::{Faults, SocketId};
use flowgate_tests::shell_world::ShellWorld;

/// Two backends by turns, and room for many flows.
fn config() -> ManagerConfig {
    let toml = "[[listener]]\naddress = \"0.0.0.0:53\"\ncluster = \"test\"\n\
                [cluster.test]\nbalance = \"round-robin\"\n\
                backends = [\"10.1.0.1:53\", \"10.1.0.2:53\"]\n";
    let config = flowgate_config::parse(toml, "test.toml").expect("valid");
    let listener = &config.listeners[0];
    let backends = listener.cluster.policy.backends.clone();
    listener.manager_config(listener.address, 64, vec![], false, backends)
}

/// A world in which nothing fails unless it is scripted.
fn calm_world(clients: u32) -> ShellWorld {
    ShellWorld::new(config(), clients, 7, Faults::default())
}

fn ledger(world: &ShellWorld, direction: Direction) -> &Ledger {
    world.shard.manager().counters().ledger(direction)
}

/// How many datagrams were dropped for `reason`, and that no others were.
#[track_caller]
fn only_dropped(world: &ShellWorld, direction: Direction, reason: DropReason) -> u64 {
    let ledger = ledger(world, direction);
    let dropped = ledger.dropped_for(reason);
    assert_eq!(ledger.dropped_total(), dropped, "dropped for other reasons too: {ledger:?}");
    dropped.datagrams
}

/// How many datagrams went out in all.
fn sent(world: &ShellWorld, direction: Direction) -> u64 {
    ledger(world, direction).forwarded.datagrams
}

/// The socket and the backend of a client that has sent something.
fn upstream(world: &ShellWorld, client: u32) -> (SocketId, SocketAddr) {
    let socket = world.upstream_of(client).expect("the client has a flow");
    let open = world.kernel.upstreams();
    *open.iter().find(|(id, _)| *id == socket).expect("the flow is open")
}
