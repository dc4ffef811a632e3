//! What has been read of a flow's two accounts, and what is new since.

use std::sync::atomic::Ordering;
use std::time::Duration;

use flowgate_core::Instant;
use flowgate_core::counters::Traffic;
use flowgate_fastpath::{EntryAccount, Progress, Table};
use serde::{Deserialize, Serialize};

/// By how much the kernel's coarse clock may be behind: its longest tick.
const COARSE_TICK: Duration = Duration::from_millis(10);

/// What of both accounts has been told: to the backend, and to the client.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Told([Traffic; 2]);

/// What is new.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct News {
    pub(super) to_backend: Traffic,
    pub(super) to_client: Traffic,
    /// When the last datagram was forwarded, on the system's monotonic clock; before there was one,
    /// when the entries were made.
    last: Duration,
}

impl Told {
    /// What the kernel has counted since this was called last.
    pub(super) fn update(&mut self, accounts: [&EntryAccount; 2]) -> News {
        let mut new = [Traffic::default(); 2];
        let mut last = 0;
        for (direction, account) in accounts.into_iter().enumerate() {
            let all = Traffic {
                datagrams: account.datagrams.load(Ordering::Relaxed),
                bytes: account.bytes.load(Ordering::Relaxed),
            };
            let told = std::mem::replace(&mut self.0[direction], all);
            new[direction] = Traffic {
                datagrams: all.datagrams.saturating_sub(told.datagrams),
                bytes: all.bytes.saturating_sub(told.bytes),
            };
            last = last.max(account.last_ns.load(Ordering::Relaxed));
        }
        let [to_backend, to_client] = new;
        News { to_backend, to_client, last: Duration::from_nanos(last) }
    }
}

impl News {
    /// When the last datagram was forwarded, by the clock of this process, which began at `origin`:
    /// never too early.
    pub(super) fn last(&self, origin: Duration) -> Instant {
        Instant::ORIGIN + self.last.saturating_sub(origin) + COARSE_TICK
    }
}

/// The two accounts of a flow.
pub(super) fn pair(table: &Table, first: u32) -> [&EntryAccount; 2] {
    [table.account(first), table.account(first + 1)]
}

/// Whether the next datagram of an entry that is still pending would bring it into force, as far as the
/// worker has got: what went to the sockets at `passed` has been sent on.
pub(super) fn is_settled(account: &EntryAccount, done_ns: u64) -> bool {
    /// What `fastpath/bpf` allows a packet on its way to its socket.
    const TO_SOCKET_NS: u64 = 50_000;
    match account.progress() {
        Progress::Pending(passed) => passed + TO_SOCKET_NS < done_ns,
        Progress::Open | Progress::Forced => true,
    }
}
