//! Counters that never go down.
//!
//! A datagram that waits for a full socket counts as sent on. Where the kernel refuses it later, it
//! counts as dropped instead, and what was sent on goes down by one. Prometheus takes that for a
//! restart, and adds all there is once more. So what was once reported as sent on is held up until
//! there is more, and `received` with it: the ledger adds up in each report.
//!
//! What a listener received, and what came from a backend, is never taken back. If it goes down,
//! it is another listener or backend of the same name, whose counters begin anew.

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::admin::status::{BackendStatus, LedgerDoc, ListenerStatus, StatusDocument};

/// More datagrams than wait anywhere: if a backend's count falls by more, it has begun anew.
const MOST_TAKEN_BACK: u64 = 100_000;

/// What was reported last.
#[derive(Debug, Default)]
pub(in super::super) struct Marks {
    listeners: HashMap<String, ListenerMarks>,
    backends: HashMap<(String, SocketAddr), BackendMarks>,
}

#[derive(Clone, Debug, Default)]
struct ListenerMarks {
    /// What it received and opened: if one of these goes down, it is another listener.
    life: [u64; 3],
    /// The ledgers as they were reported, to backends and to clients.
    reported: [LedgerDoc; 2],
}

#[derive(Clone, Copy, Debug, Default)]
struct BackendMarks {
    datagrams_to: u64,
    bytes_to: u64,
    datagrams_from: u64,
}

impl Marks {
    /// Raises what has gone down since the last report to what it was.
    pub(in super::super) fn hold_up(&mut self, document: &mut StatusDocument) {
        let mut listeners = HashMap::new();
        for listener in &mut document.listeners {
            let marks = self.listeners.remove(&listener.name).unwrap_or_default();
            listeners.insert(listener.name.clone(), marks.hold_up(listener));
        }
        let mut backends = HashMap::new();
        for cluster in &mut document.clusters {
            for backend in &mut cluster.backends {
                let key = (cluster.name.clone(), backend.address);
                let marks = self.backends.remove(&key).unwrap_or_default();
                backends.insert(key, marks.hold_up(backend));
            }
        }
        // What the document does not have is forgotten.
        *self = Self { listeners, backends };
    }
}

impl ListenerMarks {
    fn hold_up(self, listener: &mut ListenerStatus) -> Self {
        let received =
            [&listener.to_backend, &listener.to_client].map(|way| way.received.datagrams);
        let life = [received[0], received[1], listener.flows_opened];
        let is_another = life.iter().zip(self.life).any(|(now, before)| *now < before);
        let reported = [(&mut listener.to_backend, 0), (&mut listener.to_client, 1)];
        let reported = reported.map(|(ledger, way)| {
            if !is_another {
                raise(ledger, &self.reported[way]);
            }
            LedgerDoc { dropped: Default::default(), ..ledger.clone() }
        });
        Self { life, reported }
    }
}

/// Raises what was sent on to the mark, and what was received by as much.
fn raise(ledger: &mut LedgerDoc, mark: &LedgerDoc) {
    let forwarded = &mut ledger.forwarded;
    let datagrams = mark.forwarded.datagrams.saturating_sub(forwarded.datagrams);
    let bytes = mark.forwarded.bytes.saturating_sub(forwarded.bytes);
    for traffic in [forwarded, &mut ledger.received] {
        traffic.datagrams += datagrams;
        traffic.bytes += bytes;
    }
}

impl BackendMarks {
    fn hold_up(self, backend: &mut BackendStatus) -> Self {
        let is_another = backend.datagrams_from < self.datagrams_from
            || backend.datagrams_to.saturating_add(MOST_TAKEN_BACK) < self.datagrams_to;
        if !is_another {
            backend.datagrams_to = backend.datagrams_to.max(self.datagrams_to);
            backend.bytes_to = backend.bytes_to.max(self.bytes_to);
        }
        Self {
            datagrams_to: backend.datagrams_to,
            bytes_to: backend.bytes_to,
            datagrams_from: backend.datagrams_from,
        }
    }
}

#[cfg(test)]
mod tests;
