//! Getting what was planned into the kernel: resuming where it took a part, sending singly what
//! it refuses as a GSO batch, keeping what it has no room for, and giving up the rest, counted.
//!
//! Each datagram ends in exactly one of three ways: the kernel took it, the send queue holds it,
//! or it was reported undelivered. None is sent twice.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;

use flowgate_core::proxy_protocol::ReceivedHeader;
use flowgate_core::{
    BackendId, Direction, DropReason, LocalSource, ManagerInput, NetworkError, SendId,
    Transactions, UpstreamId,
};

use super::gso::{Plan, Segments};
use super::outbox::{Chain, Outbox, Outgoing, Position};
use super::queue::SendQueue;
use crate::datapath::kernel::Kernel;
use crate::datapath::role::Role;
use crate::sys::errno::{self, SendError};
use crate::sys::message::{Batch, QueuedError};

/// How often one message is tried again after an error that is not its own: a signal, or what
/// the network said of an earlier datagram (`ECONNREFUSED` on a connected socket).
const MAX_RETRIES: usize = 4;

/// What became of things, to be told to the manager and to the sockets' owner.
#[derive(Clone, Copy, Debug)]
pub enum SendOutcome {
    /// To be told to the manager that decides on that way.
    Input(Role, ManagerInput<'static>),
    /// There is a way that does not take GSO batches (`EIO`).
    GsoRefused {
        /// On whose behalf they went.
        role: Role,
        /// What they belonged to.
        send_id: SendId,
        /// The direction.
        direction: Direction,
    },
}

/// Whose datagrams are, and where they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendAccount {
    /// On whose behalf they go.
    pub role: Role,
    /// What they belong to.
    pub send_id: SendId,
    /// The backend that they go to; `None` where they go to a client.
    pub backend: Option<BackendId>,
    /// Which way they go.
    pub direction: Direction,
}

impl SendAccount {
    /// Whose a burst is.
    pub const fn of(outgoing: &Outgoing<'_>) -> Self {
        let &Outgoing { role, send_id, backend, direction, .. } = outgoing;
        Self { role, send_id, backend, direction }
    }

    /// Datagrams that were ordered and not sent.
    pub const fn undelivered(
        self,
        reason: DropReason,
        datagrams: usize,
        bytes: usize,
    ) -> SendOutcome {
        let Self { role, send_id, backend, direction } = self;
        let (datagrams, bytes) = (datagrams as u32, bytes as u64);
        let input =
            ManagerInput::Undelivered { send_id, backend, direction, reason, datagrams, bytes };
        SendOutcome::Input(role, input)
    }

    const fn delivered(self, datagrams: usize, bytes: usize) -> SendOutcome {
        let Self { role, send_id, backend, direction } = self;
        let (datagrams, bytes) = (datagrams as u32, bytes as u64);
        let input = ManagerInput::Delivered { send_id, backend, direction, datagrams, bytes };
        SendOutcome::Input(role, input)
    }

    /// Whether what is delivered of both can be told at once. It does not matter to which clients
    /// replies have gone.
    fn counts_with(&self, other: &Self) -> bool {
        let is_reply = self.direction == Direction::ToClient && other.direction == self.direction;
        self.role == other.role && (is_reply || self == other)
    }
}

/// A socket to send from, what waits for it already, and where to say what went wrong.
pub struct Transmitter<'a, K: Kernel> {
    /// The kernel.
    pub kernel: &'a mut K,
    /// The socket.
    pub socket: &'a K::Socket,
    /// Whom it is connected to, and whose errors it hears.
    pub peer: Peer,
    /// What waits for it.
    pub send_queue: &'a mut SendQueue,
    /// How many bytes may still wait, for all sockets together.
    pub send_queue_budget: &'a mut usize,
    /// What went wrong.
    pub outcomes: &'a mut Vec<SendOutcome>,
}

/// Whom a socket is connected to, and whose errors it hears.
#[derive(Clone, Copy, Debug)]
pub enum Peer {
    /// To nobody, and the network tells it nothing.
    Nobody,
    /// To a backend, whose errors it hears.
    Backend {
        /// The backend.
        backend: SocketAddr,
        /// What the socket was bound to before.
        source: LocalSource,
    },
    /// To nobody. It hears the errors of all backends that it sends to, and what they quote may name a
    /// question.
    Backends(UpstreamId, Option<Transactions>),
}

/// Why the kernel did not take a message.
enum Refusal {
    /// It would have blocked.
    Full,
    /// It cannot cut the message apart, if that is a GSO batch; if not, it is lost for `reason`.
    /// `for_good` if no other GSO batch fares better.
    NoGso { for_good: bool, reason: DropReason },
    /// It is this message's fault, or nobody's.
    Lost(DropReason),
}

impl<K: Kernel> Transmitter<'_, K> {
    /// Sends all bursts of a chain, in order.
    ///
    /// `plan` is memory to plan in; it comes back empty.
    pub fn deliver<'q>(
        &mut self,
        outbox: &'q Outbox<'_>,
        chain: Chain,
        mut plan: Plan<'q>,
    ) -> Plan<'q> {
        let mut start = Some(chain.start()).filter(|_| !chain.is_empty());
        while let Some(position) = start {
            if !self.send_queue.is_empty() {
                // What came before still waits, so this waits behind it.
                self.keep(outbox, position, usize::MAX);
                break;
            }
            plan = plan.recycle();
            start = plan.batches(outbox, position);
            if let Some(unsent) = self.send_plan(outbox, &plan) {
                self.keep(outbox, unsent, usize::MAX);
                break;
            }
        }
        plan
    }

    /// Sends datagrams that wait, oldest first, until the kernel would block again. Says whether
    /// none is left.
    pub fn resume(&mut self, direction: Direction) -> bool {
        loop {
            let (kernel, outcomes) = (&mut *self.kernel, &mut *self.outcomes);
            let socket = (self.socket, self.peer);
            let Some(account) = self.send_queue.first_account(direction) else {
                return true;
            };
            let send_id = account.send_id;
            let before = outcomes.len();
            let mut send = |batch: Batch<'_>| try_send(kernel, socket, batch, send_id, outcomes);
            let refusal = match self.send_queue.with_first(&mut send) {
                None | Some(Ok(_)) => None,
                Some(Err(Refusal::Full)) => return false,
                Some(Err(Refusal::Lost(reason) | Refusal::NoGso { reason, .. })) => Some(reason),
            };
            let bytes = self.send_queue.pop(self.send_queue_budget).map_or(0, |sent| sent.bytes);
            match refusal {
                None => self.report_sent(account, 1, bytes),
                Some(reason) => self.report_lost(before, account, (reason, 1, bytes)),
            }
        }
    }

    /// Sends the messages of a plan; where the kernel would block, returns the first datagram
    /// that it did not take.
    fn send_plan(&mut self, outbox: &Outbox<'_>, plan: &Plan<'_>) -> Option<Position> {
        let mut next = 0;
        while let Some(segments) = plan.segments(next) {
            let Some((_, outgoing)) = outbox.bursts(segments.start).next() else {
                break;
            };
            let account = SendAccount::of(outgoing);
            let SendAccount { role, send_id, direction, .. } = account;
            let socket = (self.socket, self.peer);
            let before = self.outcomes.len();
            match try_send(self.kernel, socket, plan.batch(next), send_id, self.outcomes) {
                Ok(sent) => {
                    self.report_all_sent(outbox, plan, next..next + sent);
                    next += sent;
                }
                Err(Refusal::Full) => return Some(segments.start),
                Err(Refusal::NoGso { for_good, .. }) if plan.is_gso_batch(next) => {
                    if for_good {
                        self.outcomes.push(SendOutcome::GsoRefused { role, send_id, direction });
                    }
                    if let Some(unsent) = self.send_singly(outbox, segments) {
                        return Some(unsent);
                    }
                    next += 1;
                }
                Err(Refusal::Lost(reason) | Refusal::NoGso { reason, .. }) => {
                    let lost = (reason, segments.datagrams, segments.bytes);
                    self.report_lost(before, account, lost);
                    next += 1;
                }
            }
        }
        None
    }

    /// Sends the datagrams of a GSO batch one by one: the rare way, so it may allocate.
    fn send_singly(&mut self, outbox: &Outbox<'_>, batch: &Segments) -> Option<Position> {
        let mut plan = Plan::default();
        plan.singles(outbox, batch.start, batch.datagrams);
        self.send_plan(outbox, &plan)
    }

    /// Copies datagrams to the send queue, as many as it has room for.
    fn keep(&mut self, outbox: &Outbox<'_>, from: Position, datagrams: usize) {
        for (_, outgoing, bytes) in outbox.datagrams(from).take(datagrams) {
            if !self.send_queue.push(outgoing, bytes, self.send_queue_budget) {
                let (now, lost) = (self.outcomes.len(), (DropReason::QueueFull, 1, bytes.len()));
                self.report_lost(now, SendAccount::of(outgoing), lost);
            }
        }
    }

    /// Tells that datagrams were lost, before what the network has said of them: what a flow begins
    /// with may go to another backend, and is not to be taken for something that one has refused.
    fn report_lost(
        &mut self,
        before: usize,
        account: SendAccount,
        (reason, datagrams, bytes): (DropReason, usize, usize),
    ) {
        self.outcomes.insert(before, account.undelivered(reason, datagrams, bytes));
    }

    fn report_all_sent(&mut self, outbox: &Outbox<'_>, plan: &Plan<'_>, messages: Range<usize>) {
        for segments in messages.filter_map(|message| plan.segments(message)) {
            if let Some((_, outgoing)) = outbox.bursts(segments.start).next() {
                self.report_sent(SendAccount::of(outgoing), segments.datagrams, segments.bytes);
            }
        }
    }

    /// Tells that datagrams were sent, together with those before them where that is the same.
    fn report_sent(&mut self, account: SendAccount, datagrams: usize, bytes: usize) {
        if let Some(SendOutcome::Input(role, last)) = self.outcomes.last_mut()
            && let ManagerInput::Delivered {
                send_id,
                backend,
                direction,
                datagrams: sum,
                bytes: sum_of_bytes,
            } = last
        {
            let last = SendAccount {
                role: *role,
                send_id: *send_id,
                backend: *backend,
                direction: *direction,
            };
            if account.counts_with(&last) {
                *sum += datagrams as u32;
                *sum_of_bytes += bytes as u64;
                return;
            }
        }
        self.outcomes.push(account.delivered(datagrams, bytes));
    }
}

/// Sends a batch and says how many messages the kernel took, at least one, or why it did not
/// take the first. An error that an earlier datagram caused is reported and the send repeated:
/// the datagram that happened to meet it is not lost. What ICMP said is told once; what the
/// routing table or a firewall says of this datagram, they say again. Where the address is gone that
/// a connected socket has sent from, it gets another one, and nobody is blamed.
fn try_send<K: Kernel>(
    kernel: &mut K,
    (socket, peer): (&K::Socket, Peer),
    batch: Batch<'_>,
    send_id: SendId,
    outcomes: &mut Vec<SendOutcome>,
) -> Result<usize, Refusal> {
    let is_batch = batch.messages.first().is_some_and(|message| message.segment > 0);
    let (mut last, mut has_looked): (Option<io::Error>, bool) = (None, false);
    for _ in 0..=MAX_RETRIES {
        let error = match kernel.send(socket, batch) {
            Ok(0) => return Err(Refusal::Full),
            Ok(sent) => return Ok(sent),
            Err(error) => error,
        };
        let reason = errno::drop_reason(&error);
        if let Peer::Backend { backend, source } = peer
            && errno::may_lack_its_source(&error)
            && !std::mem::replace(&mut has_looked, true)
        {
            match kernel.renew_source(socket, backend, source) {
                Ok(true) => continue,
                // Without a source or a peer it is sent nowhere.
                Err(why)
                    if errno::drop_reason(&why) == DropReason::NoSource
                        || errno::lacks_its_peer(&error) =>
                {
                    let failure = errno::connect_failure(&why);
                    outcomes.extend(failure.and_then(|failure| failed(send_id, backend, failure)));
                    return Err(Refusal::Lost(errno::drop_reason(&why)));
                }
                Ok(false) | Err(_) => {}
            }
        }
        let is_repeated = last.is_some_and(|last| errno::is_same(&last, &error));
        match errno::on_send(&error, is_batch) {
            SendError::Interrupted => {}
            SendError::Full => return Err(Refusal::Full),
            SendError::NoGso { for_good } => return Err(Refusal::NoGso { for_good, reason }),
            SendError::Stale(failure) => {
                let queued = kernel.take_errors(socket);
                tell_failure(send_id, peer, Some(failure), &queued, outcomes);
            }
            SendError::MayBeStale(failure) if hears_errors(peer) && !is_repeated => {
                let queued = kernel.take_errors(socket);
                tell_failure(send_id, peer, failure, &queued, outcomes);
            }
            SendError::MayBeStale(_) | SendError::Lost => return Err(Refusal::Lost(reason)),
        }
        last = Some(error);
    }
    Err(Refusal::Lost(last.as_ref().map_or(DropReason::SendFailed, errno::drop_reason)))
}

const fn hears_errors(peer: Peer) -> bool {
    matches!(peer, Peer::Backend { .. } | Peer::Backends(..))
}

/// Tells what an error says that a send has met, and what waited in the socket's error queue. By a
/// socket that sends to many only the queue says whom an error is about.
fn tell_failure(
    send_id: SendId,
    peer: Peer,
    failure: Option<NetworkError>,
    queued: &[QueuedError],
    outcomes: &mut Vec<SendOutcome>,
) {
    match peer {
        Peer::Nobody => {}
        Peer::Backend { backend, .. } => {
            outcomes.extend(failure.and_then(|failure| failed(send_id, backend, failure)));
        }
        Peer::Backends(upstream, questions) => {
            let all = queued.iter().filter_map(|queued| of_queue(upstream, queued, questions));
            outcomes.extend(all.map(|input| SendOutcome::Input(Role::Primary, input)));
        }
    }
}

/// What an entry of the error queue says of a backend.
pub fn of_queue(
    upstream: UpstreamId,
    queued: &QueuedError,
    questions: Option<Transactions>,
) -> Option<ManagerInput<'static>> {
    let (remote, error) = (Some(queued.remote?), errno::upstream_failure(&queued.error)?);
    let question = questions.and_then(|named| {
        let quoted = match ReceivedHeader::parse(&queued.quoted) {
            Ok(Some(header)) => header.payload,
            Ok(None) | Err(_) => &queued.quoted,
        };
        named.request_id(quoted)
    });
    Some(ManagerInput::UpstreamError { upstream, remote, question, error })
}

/// What an error says of a flow's socket. Others are told nothing by the network.
const fn failed(send_id: SendId, backend: SocketAddr, error: NetworkError) -> Option<SendOutcome> {
    match send_id {
        SendId::Flow { upstream, .. } => {
            let (remote, question) = (Some(backend), None);
            let input = ManagerInput::UpstreamError { upstream, remote, question, error };
            Some(SendOutcome::Input(Role::Primary, input))
        }
        SendId::OneWay(_) | SendId::Copy(_) => None,
    }
}
