//! One flow: a client and the backend that serves it.

use core::net::SocketAddr;
use core::time::Duration;

use crate::burst::Burst;
use crate::config::ClusterConfig;
use crate::counters::Traffic;
use crate::flow_table::{ClientKey, FlowKey};
use crate::id::BackendId;
use crate::input::LocalAddr;
use crate::time::Instant;

/// A flow as a small state machine of its own: it knows how many datagrams it may still carry,
/// and when it is complete. It decides nothing about others.
///
/// With many flows the cost of a datagram is the cost of fetching this from memory. So all that a
/// client's datagram touches lies in the first cache line, unless its local address counts, and
/// what a reply touches besides in the second.
#[derive(Clone, Debug)]
#[repr(C, align(128))]
pub struct UdpFlow {
    client: ClientKey,
    deadline: Instant,
    to_backend: Traffic,
    generation: u32,
    backend: BackendId,
    retired: bool,

    local: u128,
    to_client: Traffic,
    opened: Instant,
}

const _: () = assert!(core::mem::offset_of!(UdpFlow, local) == 64 && size_of::<UdpFlow>() == 128);

/// How many datagrams a flow may carry, from [`ClusterConfig`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlowLimits {
    idle_timeout: Duration,
    responses: u64,
    requests: u64,
}

impl FlowLimits {
    pub(crate) fn new(cluster: &ClusterConfig) -> Self {
        Self {
            idle_timeout: cluster.idle_timeout,
            responses: u64::from(cluster.responses),
            requests: u64::from(cluster.requests),
        }
    }
}

/// What of a burst a flow accepts.
pub(crate) struct Accepted<'p> {
    /// The datagrams that the flow carries.
    pub(crate) now: Option<Burst<'p>>,
    /// The datagrams that come after its last one.
    pub(crate) beyond: Option<Burst<'p>>,
}

impl UdpFlow {
    pub(crate) fn new(
        key: &FlowKey,
        generation: u32,
        backend: BackendId,
        limits: &FlowLimits,
        now: Instant,
    ) -> Self {
        Self {
            client: key.client,
            local: key.local,
            deadline: now + limits.idle_timeout,
            generation,
            backend,
            retired: false,
            to_backend: Traffic::default(),
            to_client: Traffic::default(),
            opened: now,
        }
    }

    /// The client's address.
    pub fn client(&self) -> SocketAddr {
        self.client.address()
    }

    /// The local address that the client sends to, where the listener is bound to a wildcard.
    pub fn local(&self) -> Option<LocalAddr> {
        self.client.local(self.local)
    }

    /// The backend that serves it.
    pub const fn backend(&self) -> BackendId {
        self.backend
    }

    /// When it opened.
    pub const fn opened(&self) -> Instant {
        self.opened
    }

    /// When it closes, unless a datagram comes before.
    pub const fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What the client sent and was forwarded.
    pub const fn to_backend(&self) -> Traffic {
        self.to_backend
    }

    /// What the backend answered and was forwarded.
    pub const fn to_client(&self) -> Traffic {
        self.to_client
    }

    /// Whether it has had its last request and only waits for replies. The client's next
    /// datagram belongs to another flow.
    pub const fn is_retired(&self) -> bool {
        self.retired
    }

    pub(crate) const fn key(&self) -> FlowKey {
        FlowKey { client: self.client, local: self.local }
    }

    #[inline]
    pub(crate) fn has_key(&self, key: &FlowKey) -> bool {
        // The second cache line is left alone where it tells nothing.
        self.client == key.client && (!key.client.has_local() || self.local == key.local)
    }

    pub(crate) const fn generation(&self) -> u32 {
        self.generation
    }

    /// Takes datagrams of the client, as many as `requests` leaves room for.
    pub(crate) fn accept_requests<'p>(
        &mut self,
        burst: Burst<'p>,
        limits: &FlowLimits,
        now: Instant,
    ) -> Accepted<'p> {
        self.deadline = now + limits.idle_timeout;
        let room = match limits.requests {
            0 => u64::MAX,
            limit => limit.saturating_sub(self.to_backend.datagrams),
        };
        let accepted = take_up_to(burst, room);
        if let Some(burst) = &accepted.now {
            self.to_backend.add(Traffic::of(burst));
        }
        self.retired = limits.requests > 0 && self.to_backend.datagrams >= limits.requests;
        accepted
    }

    /// Takes datagrams of the backend, as many as the flow still expects.
    pub(crate) fn accept_replies<'p>(
        &mut self,
        burst: Burst<'p>,
        limits: &FlowLimits,
        now: Instant,
    ) -> Accepted<'p> {
        self.deadline = now + limits.idle_timeout;
        let room = match self.last_reply(limits) {
            None => u64::MAX,
            Some(last) => last.saturating_sub(self.to_client.datagrams),
        };
        let accepted = take_up_to(burst, room);
        if let Some(burst) = &accepted.now {
            self.to_client.add(Traffic::of(burst));
        }
        accepted
    }

    /// Whether nothing more is to come. Asked after a reply: a request always waits for one.
    pub(crate) fn is_complete(&self, limits: &FlowLimits) -> bool {
        self.last_reply(limits).is_some_and(|last| self.to_client.datagrams >= last)
    }

    /// The number of the reply that completes the flow, if it has a last one.
    ///
    /// Every request gets a reply, even beyond `responses`: a resolver that asks two questions
    /// from one port (A and AAAA) must get both answers where `responses = 1`.
    fn last_reply(&self, limits: &FlowLimits) -> Option<u64> {
        let has_a_last_reply = limits.responses > 0 || self.retired;
        has_a_last_reply.then(|| limits.responses.max(self.to_backend.datagrams))
    }

    /// Takes back what was counted but not sent.
    pub(crate) const fn take_back_requests(&mut self, undelivered: Traffic) {
        self.to_backend.take_back(undelivered);
    }

    /// Takes back what was counted but not sent.
    pub(crate) const fn take_back_replies(&mut self, undelivered: Traffic) {
        self.to_client.take_back(undelivered);
    }
}

fn take_up_to(burst: Burst<'_>, room: u64) -> Accepted<'_> {
    let (now, beyond) = burst.split_at(u16::try_from(room).unwrap_or(u16::MAX));
    Accepted { now, beyond }
}
