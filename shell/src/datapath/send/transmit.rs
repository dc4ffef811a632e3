//! Getting what was planned into the kernel: resuming where it took a part, sending singly what
//! it refuses as a GSO batch, keeping what it has no room for, and giving up the rest, counted.
//!
//! Each datagram ends in exactly one of three ways: the kernel took it, the spill queue holds it,
//! or it was reported undelivered. None is sent twice.

use std::io;

use flowgate_core::{Carrier, Direction, DropReason, ManagerInput, UpstreamFailure};

use super::gso::{Plan, Segments};
use super::outbox::{Chain, Outbox, Position};
use super::queue::SendQueue;
use crate::datapath::kernel::Kernel;
use crate::datapath::role::Role;
use crate::sys::mmsg::Batch;
use crate::sys::udp::NoSource;

/// How often one message is tried again after an error that is not its own: a signal, or what
/// the network said of an earlier datagram (`ECONNREFUSED` on a connected socket).
const MAX_RETRIES: usize = 4;

/// What became of things, to be told to the manager and to the sockets' owner.
#[derive(Clone, Copy, Debug)]
pub enum Report {
    /// To be told to the manager that decides on that way.
    Input(Role, ManagerInput<'static>),
    /// There is a way that does not take GSO batches (`EIO`).
    GsoRefused {
        /// On whose behalf they went.
        role: Role,
        /// What they belonged to.
        carrier: Carrier,
        /// The direction.
        direction: Direction,
    },
}

impl Report {
    /// Datagrams that were ordered and not sent.
    pub const fn undelivered(
        role: Role,
        carrier: Carrier,
        direction: Direction,
        reason: DropReason,
        datagrams: usize,
        bytes: usize,
    ) -> Self {
        let (datagrams, bytes) = (datagrams as u32, bytes as u64);
        Self::Input(
            role,
            ManagerInput::Undelivered { carrier, direction, reason, datagrams, bytes },
        )
    }
}

/// A socket to send from, what waits for it already, and where to say what went wrong.
pub struct Transmitter<'a, K: Kernel> {
    /// The kernel.
    pub kernel: &'a mut K,
    /// The socket.
    pub socket: &'a K::Socket,
    /// What waits for it.
    pub send_queue: &'a mut SendQueue,
    /// How many bytes may still wait, for all sockets together.
    pub send_queue_budget: &'a mut usize,
    /// What went wrong.
    pub reports: &'a mut Vec<Report>,
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
            let (kernel, socket, reports) = (&mut *self.kernel, self.socket, &mut *self.reports);
            let Some((_, carrier)) = self.send_queue.first_carrier() else {
                return true;
            };
            let mut send = |batch: Batch<'_>| try_send(kernel, socket, batch, carrier, reports);
            let refusal = match self.send_queue.with_first(&mut send) {
                None | Some(Ok(_)) => None,
                Some(Err(Refusal::Full)) => return false,
                Some(Err(Refusal::Lost(reason) | Refusal::NoGso { reason, .. })) => Some(reason),
            };
            let sent = self.send_queue.pop(self.send_queue_budget);
            if let (Some(lost), Some(reason)) = (sent, refusal) {
                self.report_lost((lost.role, lost.carrier), direction, reason, 1, lost.bytes);
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
            let (role, carrier, direction) = (outgoing.role, outgoing.carrier, outgoing.direction);
            match try_send(self.kernel, self.socket, plan.batch(next), carrier, self.reports) {
                Ok(sent) => next += sent,
                Err(Refusal::Full) => return Some(segments.start),
                Err(Refusal::NoGso { for_good, .. }) if plan.is_gso_batch(next) => {
                    if for_good {
                        self.reports.push(Report::GsoRefused { role, carrier, direction });
                    }
                    if let Some(unsent) = self.send_singly(outbox, segments) {
                        return Some(unsent);
                    }
                    next += 1;
                }
                Err(Refusal::Lost(reason) | Refusal::NoGso { reason, .. }) => {
                    let (datagrams, bytes) = (segments.datagrams, segments.bytes);
                    self.report_lost((role, carrier), direction, reason, datagrams, bytes);
                    next += 1;
                }
            }
        }
        None
    }

    /// Sends the datagrams of a GSO batch one by one: the rare way, so it may allocate.
    fn send_singly(&mut self, outbox: &Outbox<'_>, train: &Segments) -> Option<Position> {
        let mut plan = Plan::default();
        plan.singles(outbox, train.start, train.datagrams);
        self.send_plan(outbox, &plan)
    }

    /// Copies datagrams to the spill queue, as many as it has room for.
    fn keep(&mut self, outbox: &Outbox<'_>, from: Position, datagrams: usize) {
        for (_, outgoing, bytes) in outbox.datagrams(from).take(datagrams) {
            if !self.send_queue.push(outgoing, bytes, self.send_queue_budget) {
                let (whose, direction) = ((outgoing.role, outgoing.carrier), outgoing.direction);
                self.report_lost(whose, direction, DropReason::QueueFull, 1, bytes.len());
            }
        }
    }

    fn report_lost(
        &mut self,
        (role, carrier): (Role, Carrier),
        direction: Direction,
        reason: DropReason,
        datagrams: usize,
        bytes: usize,
    ) {
        self.reports.push(Report::undelivered(role, carrier, direction, reason, datagrams, bytes));
    }
}

/// Sends a batch and says how many messages the kernel took, at least one, or why it did not
/// take the first. An error that an earlier datagram caused is reported and the send repeated:
/// the datagram that happened to meet it is not lost. What ICMP said is told once; what the
/// routing table or a firewall says of this datagram, they say again.
fn try_send<K: Kernel>(
    kernel: &mut K,
    socket: &K::Socket,
    batch: Batch<'_>,
    carrier: Carrier,
    reports: &mut Vec<Report>,
) -> Result<usize, Refusal> {
    let first = batch.messages.first();
    let is_connected = first.is_some_and(|message| message.destination.is_none());
    let is_gso_batch = first.is_some_and(|message| message.segment > 0);
    let mut last: Option<io::Error> = None;
    for _ in 0..=MAX_RETRIES {
        let error = match kernel.send(socket, batch) {
            Ok(0) => return Err(Refusal::Full),
            Ok(sent) => return Ok(sent),
            Err(error) => error,
        };
        let (reason, code) = (drop_reason(&error), error.raw_os_error());
        let is_repeated = last.is_some_and(|last| last.raw_os_error() == code);
        match code {
            Some(libc::EINTR) => {}
            Some(libc::ECONNREFUSED) => {
                reports.extend(failed(carrier, UpstreamFailure::Refused));
            }
            Some(libc::EIO) => {
                return Err(Refusal::NoGso { for_good: true, reason });
            }
            Some(libc::EINVAL | libc::EMSGSIZE) if is_gso_batch => {
                return Err(Refusal::NoGso { for_good: false, reason });
            }
            _ if is_connected && !is_repeated && may_be_stale(&error) => {
                let failure = upstream_failure(&error);
                reports.extend(failure.and_then(|failure| failed(carrier, failure)));
            }
            _ if error.kind() == io::ErrorKind::WouldBlock => return Err(Refusal::Full),
            _ => return Err(Refusal::Lost(reason)),
        }
        last = Some(error);
    }
    Err(Refusal::Lost(last.as_ref().map_or(DropReason::SendFailed, drop_reason)))
}

/// What an error says of a flow's socket. Others are told nothing by the network.
const fn failed(carrier: Carrier, failure: UpstreamFailure) -> Option<Report> {
    match carrier {
        Carrier::Flow(flow) => {
            Some(Report::Input(Role::Primary, ManagerInput::UpstreamFailed { flow, failure }))
        }
        Carrier::OneWay(_) | Carrier::Copy(_) => None,
    }
}

/// What the network said of an earlier datagram (ICMP), if an error may tell that.
pub fn upstream_failure(error: &io::Error) -> Option<UpstreamFailure> {
    match error.raw_os_error()? {
        libc::ECONNREFUSED => Some(UpstreamFailure::Refused),
        libc::EHOSTUNREACH
        | libc::ENETUNREACH
        | libc::EHOSTDOWN
        | libc::ENONET
        | libc::ENOPROTOOPT
        | libc::EPROTO
        | libc::EACCES => Some(UpstreamFailure::Unreachable),
        _ => None,
    }
}

/// Whether a connected socket may tell this of an earlier datagram: that it was unreachable, or
/// too long for the path.
fn may_be_stale(error: &io::Error) -> bool {
    upstream_failure(error).is_some() || error.raw_os_error() == Some(libc::EMSGSIZE)
}

/// The name under which datagrams that met an error are counted.
pub fn drop_reason(error: &io::Error) -> DropReason {
    match error.raw_os_error() {
        None if error.get_ref().is_some_and(|inner| inner.is::<NoSource>()) => DropReason::NoSource,
        Some(libc::EMFILE | libc::ENFILE) => DropReason::NoDescriptors,
        Some(libc::EADDRNOTAVAIL | libc::EAGAIN | libc::EADDRINUSE) => DropReason::NoPorts,
        Some(libc::ENOBUFS | libc::ENOMEM) => DropReason::NoBuffers,
        Some(libc::EPERM | libc::EACCES) => DropReason::NotPermitted,
        Some(
            libc::ENETUNREACH
            | libc::EHOSTUNREACH
            | libc::ENETDOWN
            | libc::EHOSTDOWN
            | libc::ENONET,
        ) => DropReason::Unreachable,
        Some(libc::ECONNREFUSED) => DropReason::Refused,
        Some(libc::EMSGSIZE) => DropReason::MessageSize,
        _ => DropReason::SendFailed,
    }
}
