//! Reading from the listener and from upstream sockets: each burst becomes an input of the manager.

mod clients;

use std::io;
use std::net::SocketAddr;

use flowgate_core::{Burst, Direction, DropReason, Instant, ManagerInput, UdpManager};

use crate::datapath::dispatch::Dispatch;
use crate::datapath::kernel::Kernel;
use crate::datapath::send::transmit::upstream_failure;
use crate::sys::mmsg::{Received, Turn};

/// The most bursts that one receive takes from a listener.
pub(super) const LISTENER_BATCH: usize = 64;

/// The most bursts that one receive takes from an upstream socket.
pub(super) const UPSTREAM_BATCH: usize = 16;

/// A turn takes in no more once it holds this many bytes: what is sent should still be in the
/// processor's cache from when it was received.
const TURN_BYTES: usize = 512 << 10;

/// What a turn reads with.
pub(super) struct Reading<'a, 't> {
    pub(super) manager: &'a mut UdpManager,
    pub(super) turn: &'a mut Turn<'t>,
    /// How much it has read.
    pub(super) bytes: usize,
    pub(super) now: Instant,
}

impl<'t> Reading<'_, 't> {
    /// Whether the turn may take in more.
    pub(super) const fn has_room(&self) -> bool {
        self.turn.free() > 0 && self.bytes < TURN_BYTES
    }

    /// Takes one batch from the listener; says whether nothing is left. Calls `release` with the
    /// slot of each client's own socket that had to wait for this.
    pub(super) fn read_listener<K: Kernel>(
        &mut self,
        dispatch: &mut Dispatch<'_, 't, K>,
        release: impl FnMut(u32),
    ) -> bool {
        let (kernel, sockets) = dispatch.parts();
        let max = LISTENER_BATCH.min(self.turn.free());
        let received = self.turn.receive(max, |slots| kernel.receive(&sockets.listener, slots));
        let (bursts, is_drained) = match &received {
            Ok(received) => (received.len(), received.len() < max),
            Err(error) => (0, says_drained(error)),
        };
        let unused = sockets.clients.listener_was_read(bursts, is_drained, release);
        unused.into_iter().for_each(|socket| dispatch.leave_client(socket));
        let Ok(received) = received else { return is_drained };
        self.manager.prefetch(received.clone().filter_map(|r| Some((r.source?, r.control.local))));
        for datagrams in received {
            self.bytes += datagrams.bytes.len();
            let input = match readable(&datagrams) {
                Ok((source, burst)) => ManagerInput::ClientBurst {
                    source,
                    local: datagrams.control.local,
                    tos: datagrams.control.tos,
                    ttl: datagrams.control.ttl,
                    burst,
                },
                Err(reason) => unusable(&datagrams, Direction::ToBackend, reason),
            };
            self.manager.handle_input(input, self.now, dispatch);
        }
        is_drained
    }

    /// Takes one batch from a flow's upstream socket; says whether nothing is left.
    pub(super) fn read_upstream<K: Kernel>(
        &mut self,
        slot: usize,
        dispatch: &mut Dispatch<'_, 't, K>,
    ) -> bool {
        let (kernel, sockets) = dispatch.parts();
        // It may have closed since it became ready.
        let Some(upstream) = sockets.upstreams.at_mut(slot) else {
            return true;
        };
        let flow = upstream.flow;
        let max = UPSTREAM_BATCH.min(self.turn.free());
        let received = self.turn.receive(max, |slots| kernel.receive(&upstream.socket, slots));
        let backend = upstream.backend;
        let is_drained = match &received {
            Ok(received) => received.len() < max && !upstream.has_error,
            Err(error) => says_drained(error),
        };
        if is_drained {
            upstream.is_ready = false;
            upstream.has_error = false;
        }
        if !upstream.coalesces && received.as_ref().is_ok_and(|received| received.len() > 1) {
            upstream.coalesces = true;
            kernel.coalesce(&upstream.socket);
        }
        let received = match received {
            Ok(received) => received,
            Err(error) => {
                if let Some(failure) = upstream_failure(&error) {
                    self.manager.handle_input(
                        ManagerInput::UpstreamFailed { flow, failure },
                        self.now,
                        dispatch,
                    );
                }
                return is_drained;
            }
        };
        for datagrams in received {
            self.bytes += datagrams.bytes.len();
            let input = match readable(&datagrams) {
                Ok((source, burst)) if source == backend => {
                    ManagerInput::BackendBurst { flow, tos: datagrams.control.tos, burst }
                }
                // Between its birth and its connection a socket hears anyone who guesses its port.
                Ok(_) => unusable(&datagrams, Direction::ToClient, DropReason::ForeignSource),
                Err(reason) => unusable(&datagrams, Direction::ToClient, reason),
            };
            self.manager.handle_input(input, self.now, dispatch);
        }
        is_drained
    }
}

/// The sender and the datagrams, if they arrived whole.
///
/// # Errors
///
/// What is wrong with them.
pub(super) fn readable<'t>(received: &Received<'t>) -> Result<(SocketAddr, Burst<'t>), DropReason> {
    if received.is_truncated {
        return Err(DropReason::Truncated);
    }
    if received.is_control_truncated {
        return Err(DropReason::ControlTruncated);
    }
    let source = received.source.ok_or(DropReason::ForeignSource)?;
    let burst = Burst::segmented(received.bytes, received.control.segment);
    Ok((source, burst.ok_or(DropReason::Truncated)?))
}

pub(super) fn unusable<'t>(
    received: &Received<'_>,
    direction: Direction,
    reason: DropReason,
) -> ManagerInput<'t> {
    let burst = Burst::segmented(received.bytes, received.control.segment);
    ManagerInput::Unusable {
        direction,
        reason,
        datagrams: burst.map_or(1, |burst| u32::from(burst.count())),
        bytes: received.bytes.len() as u64,
    }
}

/// Whether an error of a receive says that nothing is left to be read. Any other is told once, and
/// datagrams may wait behind it: of those no poll tells again.
pub(super) fn says_drained(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}
