//! Reading from the listener and from upstream sockets: each burst becomes an input of the manager.

mod clients;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use flowgate_core::route::Routes;
use flowgate_core::{
    Burst, Direction, DropReason, Instant, ManagerInput, Transactions, UdpManager, UpstreamId,
};
use tracing::error;

use crate::datapath::dispatch::Dispatch;
use crate::datapath::kernel::Kernel;
use crate::datapath::send::transmit::of_queue;
use crate::sys::arena::{Received, ReceivedBatch, Tick};
use crate::sys::errno;
use crate::sys::message::QueuedError;

/// The most bursts that one receive takes from a listener.
pub(super) const LISTENER_BATCH: usize = 64;

/// The most bursts that one receive takes from an upstream socket.
pub(super) const UPSTREAM_BATCH: usize = 16;

/// A tick takes in no more once it holds this many bytes: what is sent should still be in the
/// processor's cache from when it was received.
const TICK_BYTES: usize = 512 << 10;

/// How often a receive is tried that meets one error after another. What the network says is told
/// once, and datagrams wait behind it, of which no poll tells again; what is said so often is said
/// for ever.
const MAX_RECEIVE_ERRORS: usize = 16;

/// What came of a receive.
pub(super) struct Receipt<'t> {
    /// The errors that were told before.
    pub(super) errors: Vec<io::Error>,
    /// The datagrams. `None`: nothing is left.
    pub(super) received: Option<ReceivedBatch<'t>>,
}

/// What a tick reads with.
pub(super) struct Reading<'a, 't> {
    pub(super) manager: &'a mut UdpManager,
    pub(super) tick: &'a mut Tick<'t>,
    /// How much it has read.
    pub(super) bytes: usize,
    /// The shards that serve some of the listener's clients.
    pub(super) routes: Option<&'a Routes<u32>>,
    /// What is for them.
    pub(super) routed: &'a mut Vec<(u32, ManagerInput<'t>)>,
    pub(super) now: Instant,
}

impl<'t> Reading<'_, 't> {
    /// Whether the tick may take in more.
    pub(super) const fn has_room(&self) -> bool {
        self.tick.free() > 0 && self.bytes < TICK_BYTES
    }

    /// Takes one batch of at most `max` bursts from a socket, past errors. One that lasts is logged,
    /// and the socket is taken to be drained.
    pub(super) fn receive<K: Kernel>(
        &mut self,
        kernel: &mut K,
        socket: &K::Socket,
        max: usize,
    ) -> Receipt<'t> {
        let mut errors = Vec::new();
        loop {
            match self.tick.receive(max, |slots| kernel.receive(socket, slots)) {
                Ok(received) => return Receipt { errors, received: Some(received) },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => errors.push(error),
            }
            if errors.len() == MAX_RECEIVE_ERRORS {
                complain(errors.last());
                break;
            }
        }
        Receipt { errors, received: None }
    }

    /// Takes one batch from the listener; says whether nothing is left. Calls `release` with the
    /// slot of each client's own socket that had to wait for this.
    pub(super) fn read_listener<K: Kernel>(
        &mut self,
        dispatch: &mut Dispatch<'_, 't, K>,
        release: impl FnMut(u32),
    ) -> bool {
        let (kernel, sockets) = dispatch.parts();
        let max = LISTENER_BATCH.min(self.tick.free());
        let Receipt { received, .. } = self.receive(kernel, &sockets.listener, max);
        let bursts = received.as_ref().map_or(0, ReceivedBatch::len);
        let is_drained = bursts < max;
        let unused = sockets.clients.listener_was_read(bursts, is_drained, release);
        unused.into_iter().for_each(|socket| dispatch.leave_client(socket));
        let Some(received) = received else { return is_drained };
        self.manager
            .prefetch(received.clone().filter_map(|r| Some((r.meta.source?, r.meta.local))));
        if !dispatch.taps().is_empty() {
            dispatch.taps().prefetch(received.clone().filter_map(|r| r.meta.source));
        }
        for datagrams in received {
            self.bytes += datagrams.bytes.len();
            let input = match readable(&datagrams) {
                Ok((source, burst)) => ManagerInput::ClientBurst {
                    source,
                    local: datagrams.meta.local,
                    tos: datagrams.meta.tos,
                    ttl: datagrams.meta.ttl,
                    burst,
                },
                Err(reason) => unusable(&datagrams, Direction::ToBackend, reason),
            };
            if let (Some(routes), ManagerInput::ClientBurst { source, .. }) = (self.routes, input)
                && let Some(shard) = routes.of(source.ip())
            {
                self.routed.push((*shard, input));
                continue;
            }
            dispatch.decide(self.manager, input, self.now);
        }
        is_drained
    }

    /// Takes one batch from an upstream socket; says whether nothing is left.
    pub(super) fn read_upstream<K: Kernel>(
        &mut self,
        id: UpstreamId,
        dispatch: &mut Dispatch<'_, 't, K>,
    ) -> bool {
        let (kernel, sockets) = dispatch.parts();
        // It may have closed since it became ready.
        let Some(upstream) = sockets.upstreams.get_mut(id) else {
            return true;
        };
        let is_shared = upstream.backend.is_none();
        let most = if is_shared { LISTENER_BATCH } else { UPSTREAM_BATCH };
        let max = most.min(self.tick.free());
        let Receipt { errors, received } = self.receive(kernel, &upstream.socket, max);
        // A short batch may have ended at an error, behind which datagrams wait.
        let is_drained =
            received.as_ref().is_none_or(|batch| batch.len() < max && !upstream.has_error);
        let mut queued = Vec::new();
        if upstream.has_error || !errors.is_empty() {
            queued = kernel.take_errors(&upstream.socket);
        }
        if is_drained {
            upstream.is_ready = false;
            upstream.has_error = false;
        }
        if !upstream.coalesces && received.as_ref().is_some_and(|received| received.len() > 1) {
            upstream.coalesces = true;
            kernel.coalesce(&upstream.socket);
        }
        let questions = self.manager.config().cluster.questions();
        let told = network_errors((id, is_shared), &errors, &queued, questions);
        told.for_each(|input| dispatch.decide(self.manager, input, self.now));
        let Some(received) = received else { return is_drained };
        let mut drops = 0;
        for datagrams in received {
            self.bytes += datagrams.bytes.len();
            drops = drops.max(datagrams.meta.drops);
            let input = match readable(&datagrams) {
                Ok((sender, burst)) => {
                    let tos = datagrams.meta.tos;
                    ManagerInput::UpstreamBurst { upstream: id, sender, tos, burst }
                }
                Err(reason) => unusable(&datagrams, Direction::ToClient, reason),
            };
            dispatch.decide(self.manager, input, self.now);
        }
        if drops > 0 {
            let (_, sockets) = dispatch.parts();
            sockets.note_drops(id, drops);
        }
        is_drained
    }
}

/// What the network has said of what an upstream socket has sent: by one that sends to many, all that
/// its error queue says, and of whom; by one that is connected, the last thing.
fn network_errors(
    (upstream, is_shared): (UpstreamId, bool),
    told: &[io::Error],
    queued: &[QueuedError],
    questions: Option<Transactions>,
) -> impl Iterator<Item = ManagerInput<'static>> {
    let of_all = queued.iter().filter(move |_| is_shared);
    let of_all = of_all.filter_map(move |queued| of_queue(upstream, queued, questions));
    let last = told.iter().rev().chain(queued.iter().rev().map(|queued| &queued.error));
    let last = { last }.find_map(errno::upstream_failure).filter(|_| !is_shared);
    let (remote, question) = (None, None);
    let of_peer = move |error| ManagerInput::UpstreamError { upstream, remote, question, error };
    of_all.chain(last.map(of_peer))
}

/// The sender and the datagrams, if they arrived whole.
///
/// # Errors
///
/// What is wrong with them.
pub(super) fn readable<'t>(received: &Received<'t>) -> Result<(SocketAddr, Burst<'t>), DropReason> {
    if received.meta.is_truncated {
        return Err(DropReason::Truncated);
    }
    if received.meta.is_control_truncated {
        return Err(DropReason::ControlTruncated);
    }
    let source = received.meta.source.ok_or(DropReason::ForeignSource)?;
    let burst = Burst::segmented(received.bytes, received.meta.segment);
    Ok((source, burst.ok_or(DropReason::Truncated)?))
}

pub(super) fn unusable<'t>(
    received: &Received<'_>,
    direction: Direction,
    reason: DropReason,
) -> ManagerInput<'t> {
    let burst = Burst::segmented(received.bytes, received.meta.segment);
    ManagerInput::Unusable {
        direction,
        reason,
        datagrams: burst.map_or(1, |burst| u32::from(burst.count())),
        bytes: received.bytes.len() as u64,
    }
}

/// Says once that receiving does not work: it may be so for every datagram.
fn complain(error: Option<&io::Error>) {
    static HAS_COMPLAINED: AtomicBool = AtomicBool::new(false);
    if let Some(error) = error
        && !HAS_COMPLAINED.swap(true, Ordering::Relaxed)
    {
        error!(
            "receiving keeps failing: {error}; datagrams are lost until it works again: see \
             whether a sandbox (seccomp) refuses recvmmsg"
        );
    }
}
