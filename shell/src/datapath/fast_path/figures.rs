//! What is told of flows that the kernel forwards past the sockets.

use flowgate_core::counters::Traffic;
use flowgate_core::{BackendId, FlowId, Instant, ManagerInput};

/// What the kernel has forwarded of a flow since that was told last.
#[derive(Clone, Copy, Debug)]
pub struct Activity {
    /// With which backend.
    pub backend: BackendId,
    /// What went to it.
    pub to_backend: Traffic,
    /// What came from it.
    pub to_client: Traffic,
    /// When the last datagram was forwarded, at the latest.
    pub last: Option<Instant>,
}

impl Activity {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        // Octets may be read that belong to datagrams which had not been counted then.
        self.to_backend == Traffic::default() && self.to_client == Traffic::default()
    }

    /// As the flow's manager is told.
    pub const fn input(self, flow: FlowId) -> ManagerInput<'static> {
        let Self { backend, to_backend, to_client, last } = self;
        ManagerInput::FlowActivity { flow, backend, to_backend, to_client, last }
    }
}

/// What the kernel path does for a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FastPathFigures {
    /// The flows that the kernel forwards.
    pub flows: u64,
    /// Entries that came into force before their flow had paused, so that one datagram may have
    /// overtaken another.
    pub overtaken: u64,
}

impl FastPathFigures {
    /// Adds those of another shard.
    pub const fn add(&mut self, other: Self) {
        self.flows += other.flows;
        self.overtaken += other.overtaken;
    }
}
