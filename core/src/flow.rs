//! One flow: a client and the backend that serves it.

pub(crate) mod first_answers;
pub(crate) mod key;
#[cfg(feature = "snapshot")]
mod snapshot;
pub(crate) mod table;

use core::net::SocketAddr;
use core::time::Duration;

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

use crate::burst::Burst;
use crate::config::{ClusterConfig, Mode, ReplyFrom};
use crate::counters::Traffic;
use crate::flow::key::{ClientKey, FlowKey};
use crate::id::{BackendId, FlowId, UpstreamId};
use crate::local_addr::LocalAddr;
use crate::output::FlowRecord;
use crate::reason::CloseReason;
use crate::time::Instant;

/// A flow as a small state machine of its own: it knows how many datagrams it may still carry,
/// and when it is complete. It decides nothing about others.
///
/// With many flows the cost of a datagram is the cost of fetching this from memory. So all that a
/// client's datagram touches lies in the first cache line, but for its upstream and, where that
/// counts, its local address; and what a reply touches besides in the second.
#[derive(Clone, Debug)]
#[repr(C, align(128))]
pub struct UdpFlow {
    client: ClientKey,
    deadline: Instant,
    to_backend: Traffic,
    generation: u32,
    backend: BackendId,
    stage: Stage,
    answered: bool,
    confirmed: bool,
    /// Whether it has sent anything to the backend that it has now.
    introduced: bool,
    /// Whether anything has come from a backend, if only to be dropped.
    heard: bool,
    /// Whether its client's datagrams are copied to the mirror.
    mirrored: bool,
    /// Whether the kernel may forward its datagrams.
    offload: Offload,
    /// How many datagrams of its client have come by the sockets since it was last offered to the
    /// kernel, up to what makes it worth to offer it.
    by_sockets: u8,

    local: u128,
    to_client: Traffic,
    opened: Instant,
    first_answer: Instant,
    /// What names the client's question, where each is a flow of its own. Of others the id of the next
    /// branch in the ring of those that carry the same client's datagrams.
    link: u64,
    /// The slot and the generation of its upstream.
    upstream_index: u32,
    upstream_generation: u16,
    /// Of a branch: whether it is the one whose answers its client gets.
    is_winner: bool,
    /// Of a branch: whether it has had an answer since its client's last datagram.
    is_prompt: bool,
}

const _: () = assert!(core::mem::offset_of!(UdpFlow, local) == 64 && size_of::<UdpFlow>() == 128);

/// Where a flow is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub(crate) enum Stage {
    /// It carries its client's datagrams.
    Active,
    /// It carries its client's datagrams to one of several backends, and another flow, its ring's
    /// head, is found by them.
    Follower,
    /// It has had its last request and waits for replies.
    Retired,
    /// It has ended, and what it was answered by is in quarantine: its socket, or its place on one.
    Quarantined,
}

/// Whether the kernel may forward a flow's datagrams past the sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub(crate) enum Offload {
    /// It may not.
    No,
    /// It was asked to. Whether it does is not known.
    Offered,
    /// It was, and when the last datagram came by it has been asked.
    Asked,
}

/// This many datagrams by the sockets make a flow worth to be offered to the kernel, whether it is
/// answered or not; and again, where the kernel has not taken it.
pub(crate) const WORTH_OFFLOADING: u8 = 16;

/// How many datagrams a flow may carry, from [`ClusterConfig`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlowLimits {
    idle_timeout: Duration,
    unanswered_timeout: Duration,
    responses: u64,
    requests: u64,
    amplification: u64,
}

impl FlowLimits {
    pub(crate) fn new(cluster: &ClusterConfig) -> Self {
        Self {
            idle_timeout: cluster.idle_timeout,
            unanswered_timeout: match cluster.limits.unanswered_timeout {
                Duration::ZERO => cluster.idle_timeout,
                timeout => timeout.min(cluster.idle_timeout),
            },
            responses: u64::from(cluster.responses),
            // No branch of several ends before the others.
            requests: match cluster.mode {
                Mode::FanOut { reply_from: ReplyFrom::First } => 0,
                _ => u64::from(cluster.requests),
            },
            amplification: u64::from(cluster.limits.amplification),
        }
    }

    /// How long a flow lives without a datagram.
    const fn timeout(&self, is_answered: bool) -> Duration {
        if is_answered { self.idle_timeout } else { self.unanswered_timeout }
    }

    /// Whether some flow is to live for less long than by `other`.
    pub(crate) fn has_shorter_timeouts_than(&self, other: &Self) -> bool {
        [false, true].into_iter().any(|answered| self.timeout(answered) < other.timeout(answered))
    }
}

/// What of a client's burst a flow accepts.
pub(crate) struct AcceptedRequests<'p> {
    /// The datagrams that the flow carries.
    pub(crate) now: Option<Burst<'p>>,
    /// The datagrams that belong to the client's next flow.
    pub(crate) beyond: Option<Burst<'p>>,
    /// Whether these are the first since the flow was answered.
    pub(crate) confirms: bool,
}

/// What of a backend's burst a flow accepts.
pub(crate) struct AcceptedReplies<'p> {
    /// The datagrams that the flow carries.
    pub(crate) now: Option<Burst<'p>>,
    /// The datagrams that would amplify what the client sent by too much.
    pub(crate) over_budget: Option<Burst<'p>>,
    /// The datagrams that come after the last reply.
    pub(crate) beyond: Option<Burst<'p>>,
    /// Whether these are the first that the flow ever carries.
    pub(crate) is_first_answer: bool,
}

/// What it means to a flow that the kernel has forwarded some of its datagrams.
pub(crate) struct NotedActivity {
    /// Whether they hold the first answer that the flow ever carries.
    pub(crate) is_first_answer: bool,
    /// Whether they hold the client's first since the flow was answered.
    pub(crate) confirms: bool,
}

impl UdpFlow {
    pub(crate) fn new(
        key: &FlowKey,
        id: FlowId,
        backend: BackendId,
        upstream: UpstreamId,
        limits: &FlowLimits,
        now: Instant,
    ) -> Self {
        let deadline = now + limits.unanswered_timeout;
        Self { deadline, ..Self::blank(key, id, backend, upstream, now) }
    }

    /// What a flow leaves behind on the upstream that it had, when it goes on by another.
    pub(crate) const fn left_behind(&self, id: FlowId, until: Instant) -> Self {
        let blank = Self::blank(&self.key(), id, self.backend, self.upstream(), until);
        Self { stage: Stage::Quarantined, ..blank }
    }

    /// A flow to which nothing has happened, and whose time is over.
    const fn blank(
        key: &FlowKey,
        id: FlowId,
        backend: BackendId,
        upstream: UpstreamId,
        now: Instant,
    ) -> Self {
        Self {
            client: key.client,
            local: key.local,
            deadline: now,
            generation: id.generation(),
            backend,
            stage: Stage::Active,
            answered: false,
            confirmed: false,
            introduced: false,
            heard: false,
            mirrored: false,
            upstream_index: upstream.index() as u32,
            upstream_generation: upstream.generation(),
            offload: Offload::No,
            by_sockets: 0,
            is_winner: false,
            is_prompt: false,
            to_backend: Traffic { datagrams: 0, bytes: 0 },
            to_client: Traffic { datagrams: 0, bytes: 0 },
            opened: now,
            first_answer: now,
            link: if key.client.asks() { key.transaction } else { link_to(id) },
        }
    }

    /// The same flow, copied to the mirror or not.
    pub(crate) const fn mirrored(self, mirrored: bool) -> Self {
        Self { mirrored, ..self }
    }

    /// The client's address. Where a proxy speaks for the client, that is the one it says.
    pub fn client(&self) -> SocketAddr {
        self.client.address()
    }

    /// The local address that the client sends to, where the listener is bound to a wildcard.
    pub fn local(&self) -> Option<LocalAddr> {
        self.client.local(self.local)
    }

    /// The number of the proxy that speaks for the client, if one does.
    #[inline]
    pub(crate) const fn proxy(&self) -> Option<u32> {
        self.client.proxy()
    }

    /// The backend that serves it.
    pub const fn backend(&self) -> BackendId {
        self.backend
    }

    /// The upstream that it uses.
    #[inline]
    pub const fn upstream(&self) -> UpstreamId {
        UpstreamId::new(self.upstream_index, self.upstream_generation)
    }

    /// Goes on with another backend, which has not heard of it, by another upstream.
    pub(crate) const fn move_to(&mut self, backend: BackendId, upstream: UpstreamId) {
        self.backend = backend;
        self.upstream_index = upstream.index() as u32;
        self.upstream_generation = upstream.generation();
        self.introduced = false;
    }

    /// Whether its backend has had nothing of it yet.
    #[inline]
    pub(crate) const fn is_new_to_its_backend(&self) -> bool {
        !self.introduced || self.to_backend.datagrams == 0
    }

    /// Its backend has had what it began with.
    pub(crate) const fn introduce(&mut self) {
        self.introduced = true;
    }

    /// Whether anything has come from a backend, if only to be dropped.
    #[inline]
    pub(crate) const fn is_heard(&self) -> bool {
        self.heard
    }

    /// Whether its client's datagrams are copied to the mirror.
    #[inline]
    pub const fn is_mirrored(&self) -> bool {
        self.mirrored
    }

    /// Of a branch, whose id is told: the next in its ring; itself if it is alone.
    pub(crate) const fn next_branch(&self, id: FlowId) -> FlowId {
        if self.client.asks() {
            return id;
        }
        FlowId::new(self.link as u32, (self.link >> 32) as u32)
    }

    pub(crate) const fn set_next_branch(&mut self, next: FlowId) {
        self.link = link_to(next);
    }

    /// What names its question, where each is a flow of its own.
    pub(crate) const fn transaction(&self) -> u64 {
        if self.client.asks() { self.link } else { 0 }
    }

    /// Makes it a follower in its ring, or its head.
    pub(crate) const fn follow(&mut self, follows: bool) {
        self.stage = if follows { Stage::Follower } else { Stage::Active };
    }

    /// Of a branch: whether its answers go to the client.
    pub(crate) const fn is_winner(&self) -> bool {
        self.is_winner
    }

    /// Makes its answers the ones that the client gets, or no longer.
    pub(crate) const fn set_winner(&mut self, is_winner: bool) {
        self.is_winner = is_winner;
    }

    /// Of a branch: notes another datagram of the client, and says whether its backend has answered
    /// since the one before.
    pub(crate) const fn take_promptness(&mut self) -> bool {
        core::mem::replace(&mut self.is_prompt, false)
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
        matches!(self.stage, Stage::Retired)
    }

    /// Whether it has ended, and only waits for its quarantine to pass.
    #[inline]
    pub(crate) const fn has_ended(&self) -> bool {
        matches!(self.stage, Stage::Quarantined)
    }

    /// Ends the flow. What it was answered by is for nobody else until `until`, which becomes its
    /// deadline.
    pub(crate) const fn quarantine(&mut self, until: Instant) {
        self.stage = Stage::Quarantined;
        self.deadline = until;
    }

    /// Whether it has had an answer.
    pub const fn is_answered(&self) -> bool {
        self.answered
    }

    /// Whether the client has sent anything since the flow was answered. It proves nothing: anyone who
    /// forges an address can send twice and hear no answer.
    pub const fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// For how long nothing has come on it in either direction.
    pub(crate) fn silence(&self, limits: &FlowLimits, now: Instant) -> Duration {
        (now + limits.timeout(self.answered)).saturating_since(self.deadline)
    }

    /// When something came on it last, in either direction.
    pub(crate) fn last_used(&self, limits: &FlowLimits) -> Instant {
        let timeout = u64::try_from(limits.timeout(self.answered).as_nanos()).unwrap_or(u64::MAX);
        Instant::from_nanos(self.deadline.as_nanos().saturating_sub(timeout))
    }

    /// When it had its first answer. It means nothing where there was none.
    pub(crate) const fn first_answer(&self) -> Instant {
        self.first_answer
    }

    /// How long after it opened it had its first answer, if it has had one.
    pub fn first_answer_after(&self) -> Option<Duration> {
        self.answered.then(|| self.first_answer - self.opened)
    }

    /// What it was, when it ends at `now` for `reason`, and its backend has that address.
    pub(crate) fn record(
        &self,
        reason: CloseReason,
        backend_address: SocketAddr,
        now: Instant,
    ) -> FlowRecord {
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        FlowRecord {
            client: self.client(),
            backend: self.backend,
            backend_address,
            reason,
            to_backend: self.to_backend,
            to_client: self.to_client,
            lasted_ns: nanos(now - self.opened),
            first_answer_ns: self.first_answer_after().map(nanos),
        }
    }

    /// Notes that its backend is there, whatever becomes of what it says.
    pub(crate) const fn hear(&mut self) {
        self.heard = true;
        self.is_prompt = true;
    }

    /// Notes an answer that its client does not get, and says whether it is the first.
    pub(crate) fn is_answered_in_vain(&mut self, limits: &FlowLimits, now: Instant) -> bool {
        self.hear();
        let is_first = !core::mem::replace(&mut self.answered, true);
        if is_first {
            self.first_answer = now;
            self.postpone(limits, now);
        }
        is_first
    }

    /// Whether it has sent more to its backends than has come back.
    pub(crate) const fn awaits_replies(&self) -> bool {
        self.to_backend.datagrams > self.to_client.datagrams
    }

    /// Whether nothing has come from its backend where there should have been an answer.
    pub(crate) const fn is_owed_an_answer(&self, limits: &FlowLimits) -> bool {
        !self.heard && limits.responses > 0 && self.to_backend.datagrams > 0
    }

    pub(crate) const fn key(&self) -> FlowKey {
        FlowKey { client: self.client, local: self.local, transaction: self.transaction() }
    }

    #[inline]
    pub(crate) fn has_key(&self, key: &FlowKey) -> bool {
        // The second cache line is left alone where it tells nothing.
        self.client == key.client
            && (!key.client.has_local() || self.local == key.local)
            && (!key.client.asks() || self.link == key.transaction)
    }

    /// Whether the client's next datagram belongs to it.
    #[inline]
    pub(crate) const fn is_findable(&self) -> bool {
        matches!(self.stage, Stage::Active)
    }

    /// Whether it is the flow of this generation, and has not ended.
    #[inline]
    pub(crate) const fn is_alive_as(&self, generation: u32) -> bool {
        self.generation == generation && !self.has_ended()
    }

    /// Whether its answers come by an upstream from a backend, and name the same question.
    #[inline]
    pub(crate) fn is_on(&self, upstream: UpstreamId, backend: BackendId, transaction: u64) -> bool {
        self.upstream() == upstream && self.backend == backend && self.transaction() == transaction
    }

    /// What it is found by where its answers come by a shared upstream.
    pub(crate) const fn route_hash(&self) -> u64 {
        table::route_hash(self.upstream(), self.backend, self.transaction())
    }

    pub(crate) const fn generation(&self) -> u32 {
        self.generation
    }

    /// Takes datagrams of the client, as many as `requests` leaves room for.
    #[inline]
    pub(crate) fn accept_requests<'p>(
        &mut self,
        burst: Burst<'p>,
        limits: &FlowLimits,
        now: Instant,
    ) -> AcceptedRequests<'p> {
        let confirms = self.answered && !self.confirmed;
        self.confirmed = self.answered;
        self.postpone(limits, now);
        let room = match limits.requests {
            0 => u64::MAX,
            limit => limit.saturating_sub(self.to_backend.datagrams),
        };
        let (accepted, beyond) = split_at(burst, room);
        if let Some(burst) = &accepted {
            self.to_backend.add(Traffic::of(burst));
            self.introduced = true;
        }
        if limits.requests > 0 && self.to_backend.datagrams >= limits.requests {
            self.stage = Stage::Retired;
        }
        AcceptedRequests { now: accepted, beyond, confirms }
    }

    /// Takes datagrams of the backend, as many as the flow still expects, and as many bytes as
    /// `amplification` allows for what the client has sent.
    #[inline]
    pub(crate) fn accept_replies<'p>(
        &mut self,
        burst: Burst<'p>,
        limits: &FlowLimits,
        now: Instant,
    ) -> AcceptedReplies<'p> {
        let room = match self.last_reply(limits) {
            None => u64::MAX,
            Some(last) => last.saturating_sub(self.to_client.datagrams),
        };
        let (expected, beyond) = split_at(burst, room);
        let (accepted, over_budget) = match expected {
            Some(burst) => split_at(burst, self.affordable(&burst, limits)),
            None => (None, None),
        };
        self.hear();
        let mut is_first_answer = false;
        if let Some(burst) = &accepted {
            self.to_client.add(Traffic::of(burst));
            is_first_answer = !core::mem::replace(&mut self.answered, true);
        }
        if is_first_answer {
            self.first_answer = now;
        }
        self.postpone(limits, now);
        AcceptedReplies { now: accepted, over_budget, beyond, is_first_answer }
    }

    /// How many datagrams of a burst may go to the client for what it has sent: as long as it
    /// lives. Nothing that a client sends shows that it hears the answers, so that its address may
    /// be forged however often it repeats itself.
    fn affordable(&self, burst: &Burst<'_>, limits: &FlowLimits) -> u64 {
        if limits.amplification == 0 {
            return u64::MAX;
        }
        let earned = self.to_backend.bytes.saturating_mul(limits.amplification);
        let budget = earned.saturating_sub(self.to_client.bytes);
        if burst.bytes().len() as u64 <= budget {
            return u64::MAX;
        }
        budget / u64::from(burst.stride()).max(1)
    }

    /// Whether the kernel may forward its datagrams.
    pub(crate) const fn offload(&self) -> Offload {
        self.offload
    }

    /// Notes whether the kernel may.
    pub(crate) const fn set_offload(&mut self, offload: Offload) {
        self.offload = offload;
    }

    /// Notes datagrams of the client that came by the sockets, and says whether it is worth to offer
    /// the flow to the kernel now: it goes on after an answer, or it goes on anyhow.
    pub(crate) fn is_worth_offloading(&mut self, datagrams: u16) -> bool {
        let more = u8::try_from(datagrams).unwrap_or(u8::MAX);
        self.by_sockets = self.by_sockets.saturating_add(more);
        let is_first = self.offload == Offload::No && self.confirmed;
        let is_worth_it = is_first || self.by_sockets >= WORTH_OFFLOADING;
        if is_worth_it {
            self.by_sockets = 0;
        }
        is_worth_it
    }

    /// Takes in what the kernel has forwarded.
    pub(crate) fn note_activity(
        &mut self,
        to_backend: Traffic,
        to_client: Traffic,
        last: Option<Instant>,
        limits: &FlowLimits,
    ) -> NotedActivity {
        self.to_backend.add(to_backend);
        self.to_client.add(to_client);
        // What is told together with the first answer may have come before it.
        let confirms = to_backend.datagrams > 0 && self.answered && !self.confirmed;
        self.confirmed |= confirms;
        let mut is_first_answer = false;
        if to_client.datagrams > 0 {
            self.hear();
            is_first_answer = !core::mem::replace(&mut self.answered, true);
        }
        if let Some(last) = last {
            if is_first_answer {
                self.first_answer = last.max(self.opened);
            }
            self.deadline = self.deadline.max(last + limits.timeout(self.answered));
        }
        NotedActivity { is_first_answer, confirms }
    }

    /// How long it lives without a datagram.
    pub(crate) const fn timeout(&self, limits: &FlowLimits) -> Duration {
        limits.timeout(self.answered)
    }

    fn postpone(&mut self, limits: &FlowLimits, now: Instant) {
        self.deadline = now + limits.timeout(self.answered);
    }

    /// Makes it end no later than as if it had had its last datagram now, and returns when that is.
    pub(crate) fn hasten(&mut self, limits: &FlowLimits, now: Instant) -> Instant {
        self.deadline = self.deadline.min(now + limits.timeout(self.answered));
        self.deadline
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
        let has_a_last_reply = limits.responses > 0 || self.is_retired();
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

const fn link_to(id: FlowId) -> u64 {
    (id.generation() as u64) << 32 | id.index() as u64
}

/// The first `datagrams` datagrams of a burst, and the rest.
fn split_at(burst: Burst<'_>, datagrams: u64) -> (Option<Burst<'_>>, Option<Burst<'_>>) {
    burst.split_at(u16::try_from(datagrams).unwrap_or(u16::MAX))
}
