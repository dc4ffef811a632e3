//! Upstream sockets that flows share.

use super::*;
use crate::config::UpstreamMode;

/// In milliseconds, a while after the flows of [`with_idle_sockets`] have ended: their sockets are
/// to close.
const SOCKETS_ARE_DUE: u64 = 60_100;

/// A manager with this many shared sockets whose flows have ended.
fn with_idle_sockets(sockets: u16) -> Harness {
    let mut harness = Harness::new(|config| {
        config.max_flows = 64;
        config.cluster.upstream = UpstreamMode::Shared;
        config.cluster.idle_timeout = Duration::from_millis(10);
        config.cluster.upstream_quarantine = Duration::ZERO;
        config.cluster.backends.truncate(1);
    });
    for number in 0..sockets {
        harness.open(client(number), at(0));
    }
    harness.run_until(at(50));
    assert_eq!(harness.manager.flow_count(), 0);
    assert_eq!(harness.manager.upstream_counts().0, usize::from(sockets));
    harness
}

#[test]
fn timeouts_that_come_too_often_put_off_no_close_of_idle_sockets() {
    let mut harness = with_idle_sockets(40);
    // Ten within each millisecond: one that had nothing to do but to leave what it may not close yet
    // counted as one that left work, and all of them put off what was left for ever.
    for step in 0..30 {
        let now = at(SOCKETS_ARE_DUE) + Duration::from_micros(100 * step);
        harness.input(ManagerInput::Timeout, now);
        if let Some(deadline) = harness.manager.poll_timeout() {
            assert!(deadline.at > now && deadline.at <= now + Duration::from_millis(1));
        }
    }
    assert_eq!(harness.manager.upstream_counts().0, 0);
}

#[test]
fn a_socket_that_is_used_again_puts_off_no_timer_of_its_new_flow() {
    let mut harness = with_idle_sockets(17);
    let now = at(SOCKETS_ARE_DUE);
    // One socket is left for the next tick, and a client takes it.
    harness.input(ManagerInput::Timeout, now);
    assert_eq!(harness.manager.upstream_counts().0, 1);
    harness.open(client(99), now);
    harness.input(ManagerInput::Timeout, now);
    let deadline = harness.manager.poll_timeout().map(|deadline| deadline.at);
    assert_eq!(deadline, Some(at(SOCKETS_ARE_DUE + 10)));
}
