//! What can happen to a manager. Each variant is named for the event, in the past.

use core::net::SocketAddr;

use crate::backend::event::BackendEvent;
use crate::burst::Burst;
use crate::config::prepared::PreparedConfig;
use crate::counters::Traffic;
use crate::id::{BackendId, FlowId, SendId, UpstreamId};
use crate::local_addr::LocalAddr;
use crate::proxy_protocol::ProxyInfo;
use crate::reason::{Direction, DropReason};
use crate::time::Instant;
use crate::transaction::TransactionId;

/// Something that happened in the world, told to [`UdpManager::handle_input`].
///
/// [`UdpManager::handle_input`]: crate::UdpManager::handle_input
#[derive(Clone, Copy, Debug)]
pub enum ManagerInput<'p> {
    /// The listener received datagrams of one client.
    ClientBurst {
        /// Who sent them. IPv4 clients of a dual-stack listener are [`SocketAddr::V4`].
        source: SocketAddr,
        /// The local address they were sent to, where the listener is bound to a wildcard.
        local: Option<LocalAddr>,
        /// The TOS or traffic-class byte they carried: DSCP (RFC 2474) and ECN (RFC 3168).
        tos: u8,
        /// The time to live or hop limit they arrived with.
        ttl: u8,
        /// The datagrams.
        burst: Burst<'p>,
    },
    /// The cluster that this one mirrors got datagrams of a client, and this one is to have copies.
    Mirrored {
        /// The client that sent them.
        client: SocketAddr,
        /// The local address they were sent to, where the listener is bound to a wildcard.
        local: Option<LocalAddr>,
        /// What the proxy that speaks for the client says of them, if one does.
        proxy_info: Option<ProxyInfo<'p>>,
        /// The TOS or traffic-class byte they carried.
        tos: u8,
        /// The time to live or hop limit they arrived with.
        ttl: u8,
        /// The datagrams.
        burst: Burst<'p>,
    },
    /// An upstream socket received datagrams.
    UpstreamBurst {
        /// The socket. It may have been told to close meanwhile.
        upstream: UpstreamId,
        /// Who sent them.
        sender: SocketAddr,
        /// The TOS or traffic-class byte they carried.
        tos: u8,
        /// The datagrams.
        burst: Burst<'p>,
    },
    /// Datagrams arrived that cannot be used: cut short, or from nobody knows whom.
    Unusable {
        /// Which way they were going.
        direction: Direction,
        /// What is wrong with them.
        reason: DropReason,
        /// How many there were.
        datagrams: u32,
        /// How many payload bytes of them arrived.
        bytes: u64,
    },
    /// The kernel has taken datagrams that an earlier [`Output`](crate::Output) told to send.
    Delivered {
        /// What they belong to; those to clients may belong to several flows. A flow may have
        /// closed meanwhile.
        send_id: SendId,
        /// The backend that they went to, as the output said; `None` where they went to clients.
        backend: Option<BackendId>,
        /// Which way they were going.
        direction: Direction,
        /// How many there were.
        datagrams: u32,
        /// Their payload bytes, without any prefix.
        bytes: u64,
    },
    /// Datagrams that an earlier [`Output`](crate::Output) told to send were not sent.
    Undelivered {
        /// What they belong to. A flow may have closed meanwhile, or moved.
        send_id: SendId,
        /// The backend that they were for, as the output said; `None` where it was a client.
        backend: Option<BackendId>,
        /// Which way they were going.
        direction: Direction,
        /// Why they were given up.
        reason: DropReason,
        /// How many there were.
        datagrams: u32,
        /// Their payload bytes, without any prefix.
        bytes: u64,
    },
    /// A socket could not be opened: out of descriptors, ports or memory, or no route. What it was
    /// to carry ends.
    UpstreamOpenFailed {
        /// The socket.
        upstream: UpstreamId,
    },
    /// The network has reported an error about what was sent by an upstream socket, or there is no
    /// way to where it was to be sent.
    UpstreamError {
        /// The socket.
        upstream: UpstreamId,
        /// Whom it is about; `None`: whom the socket is connected to.
        remote: Option<SocketAddr>,
        /// What names the question that it is about, where it quotes one.
        question: Option<TransactionId>,
        /// What it says.
        error: NetworkError,
    },
    /// The kernel has forwarded datagrams of a flow past the sockets, as an
    /// [`Output::Offload`](crate::Output::Offload) allows, and perhaps does no more. The flow may
    /// have closed meanwhile, or go on with another backend.
    FlowActivity {
        /// The flow.
        flow: FlowId,
        /// The backend that they were exchanged with.
        backend: BackendId,
        /// What went to the backend since this was last told.
        to_backend: Traffic,
        /// What went to the client since this was last told.
        to_client: Traffic,
        /// When the last datagram was forwarded, if any ever was.
        last: Option<Instant>,
    },
    /// Someone has news of a backend.
    BackendChanged {
        /// The backend.
        backend: BackendId,
        /// The news.
        event: BackendEvent,
    },
    /// This host has got another address, route or link: backends may be reached again that could not
    /// be. Nothing is held against them any more that the network has said.
    NetworkChanged,
    /// The configuration has changed.
    Configured(&'p PreparedConfig),
    /// Other managers that [share](crate::config::ManagerConfig::shares_max_flows) `max_flows` and
    /// `max_slots` with this one hold so much of them from now on.
    TakenElsewhere {
        /// How many flows they have alive.
        flows: u32,
        /// How many slots they have taken, by flows alive and in quarantine.
        slots: u32,
    },
    /// One of those managers has refused a newcomer, since there are as many flows as may be and none of
    /// its own can go for it. One of this manager's makes room for the next, if it may.
    RoomWanted,
    /// The listener is about to be read.
    Reading {
        /// Whether so much waits there that datagrams may soon be lost.
        is_behind: bool,
    },
    /// The operator asked for no new flows. Those that live may go on until `deadline`.
    Drain {
        /// When the flows that are left are closed.
        deadline: Instant,
    },
    /// The deadline of [`poll_timeout`](crate::UdpManager::poll_timeout) may have passed.
    ///
    /// Calling too early or too often is harmless.
    Timeout,
}

/// What the network says of a datagram. It counts against the backend; one is not enough to put that
/// out of service, since ICMP can be forged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NetworkError {
    /// ICMP port unreachable: nothing listens on the backend's port.
    Refused,
    /// ICMP host or network unreachable, or no route.
    Unreachable,
}
