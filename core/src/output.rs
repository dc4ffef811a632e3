//! What a manager wants done. Each variant is an order to the shell, in the imperative.

use core::net::SocketAddr;

use crate::burst::Burst;
use crate::counters::Traffic;
use crate::egress::LocalSource;
use crate::id::{BackendId, FlowId, SendId, UpstreamId};
use crate::local_addr::LocalAddr;
use crate::proxy_protocol::{ProxyHeader, ProxyInfo, Tlvs};
use crate::reason::{CloseReason, Direction, DropReason};

/// An order from [`UdpManager::handle_input`](crate::UdpManager::handle_input).
///
/// For one flow the order is always: its socket opens, it opens, sends, it closes, its socket closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output<'p> {
    /// Open a socket towards backends. What it carries is told after this.
    OpenUpstream {
        /// Its name, until it is told to close.
        upstream: UpstreamId,
        /// Whom to connect it to; `None`: nobody, so that it hears everybody.
        connect: Option<SocketAddr>,
        /// Whether it is of IPv6.
        v6: bool,
        /// The time to live or hop limit to send with: one less than the client's datagram had
        /// left, as a router does (RFC 1812), so that a loop of balancers comes to an end.
        ttl: u8,
        /// The address and port of ours to send from.
        source: LocalSource,
    },
    /// A flow begins; or goes on with another backend, and then this comes again. Nothing is to be
    /// done.
    OpenFlow {
        /// The flow.
        flow: FlowId,
        /// The socket that it uses, which is open.
        upstream: UpstreamId,
        /// The backend chosen for it.
        backend: BackendId,
        /// The backend's address.
        address: SocketAddr,
        /// Whether it had another before.
        has_moved: bool,
    },
    /// See to it that the flow's client has a socket of its own until the flow ends: bound as the
    /// listener is, and connected to the client. What comes by it is told as what comes by the
    /// listener is, after what the client sent before. Several flows may ask for one client's.
    OpenClient {
        /// The flow.
        flow: FlowId,
        /// The client.
        client: SocketAddr,
    },
    /// Let the kernel forward the flow's datagrams past the sockets from now on, both ways, where it
    /// can. A hint: nothing depends on whether it is carried out, or for how long, and it may come
    /// again. What the kernel forwards is told as
    /// [`FlowActivity`](crate::ManagerInput::FlowActivity).
    Offload {
        /// The flow, whose upstream socket stays open.
        flow: FlowId,
        /// That socket.
        upstream: UpstreamId,
        /// Its backend.
        backend: BackendId,
        /// The backend's address.
        address: SocketAddr,
        /// Its client.
        client: SocketAddr,
        /// The local address that the client sends to, where the listener is bound to a wildcard.
        local: Option<LocalAddr>,
    },
    /// Have all datagrams of the flow come by the sockets again, before anything that is ordered
    /// after this. Answered by a last [`FlowActivity`](crate::ManagerInput::FlowActivity) if the
    /// kernel has forwarded any.
    Recall {
        /// The flow.
        flow: FlowId,
    },
    /// Have all datagrams of all flows of a backend come by the sockets again, at once. Their
    /// entries need not be removed by themselves: each flow is offloaded again, or recalled.
    RecallBackend {
        /// The backend.
        backend: BackendId,
    },
    /// Tell by [`FlowActivity`](crate::ManagerInput::FlowActivity) what the kernel has forwarded of
    /// the flow, nothing if nothing: its time is over unless something came past the sockets.
    AskActivity {
        /// The flow.
        flow: FlowId,
    },
    /// Send a flow's datagrams from its upstream socket.
    Send {
        /// The flow.
        flow: FlowId,
        /// The socket.
        upstream: UpstreamId,
        /// The backend.
        backend: BackendId,
        /// Where to; `None`: to whom the socket is connected.
        to: Option<SocketAddr>,
        /// What to put in front of every datagram of the burst.
        prefix: Option<ProxyHeader>,
        /// What of a proxy's header is to be passed on behind the prefix, whose length counts it.
        tlvs: Tlvs<'p>,
        /// The TOS or traffic-class byte to send with.
        tos: u8,
        /// The time to live or hop limit to send with, as in [`Output::OpenUpstream`]. It follows
        /// the client's datagrams, so that also a loop through flows that are open already, as
        /// one is when a port is used again, comes to an end.
        ttl: u8,
        /// The datagrams.
        burst: Burst<'p>,
    },
    /// Send a flow's question once more, to a backend that has not had it.
    Repeat(Repeat),
    /// Send datagrams to a backend from a socket that belongs to no flow. What comes back is
    /// thrown away, ICMP errors too.
    SendOneWay {
        /// The backend, alone or as one of those that get copies.
        send_id: SendId,
        /// Its address.
        address: SocketAddr,
        /// The client's address and port, where it is to be sent from them. It is of the family of
        /// the backend's address, and one that a host can have.
        source: Option<SocketAddr>,
        /// What to put in front of every datagram of the burst.
        prefix: Option<ProxyHeader>,
        /// What of a proxy's header is to be passed on, as in [`Output::Send`].
        tlvs: Tlvs<'p>,
        /// The TOS or traffic-class byte to send with.
        tos: u8,
        /// The time to live or hop limit to send with, as in [`Output::OpenUpstream`].
        ttl: u8,
        /// The datagrams.
        burst: Burst<'p>,
    },
    /// Give a copy of a client's datagrams to the cluster's mirror, as
    /// [`ManagerInput::Mirrored`](crate::ManagerInput::Mirrored). They are counted there, not here.
    Mirror {
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
    /// Send datagrams from the listener socket.
    SendToClient {
        /// The flow.
        flow: FlowId,
        /// The socket that they came by.
        upstream: UpstreamId,
        /// Where to: the client's address, or that of the proxy that speaks for it.
        client: SocketAddr,
        /// The source address to send from, where the listener is bound to a wildcard.
        local: Option<LocalAddr>,
        /// The TOS or traffic-class byte to send with.
        tos: u8,
        /// The datagrams.
        burst: Burst<'p>,
    },
    /// The flow has ended. What waits for room in a send buffer for it is not to be sent any more:
    /// its answers would be nobody's.
    CloseFlow {
        /// The flow; its id is never used again.
        flow: FlowId,
        /// The socket that it used, which stays open until it is told to close.
        upstream: UpstreamId,
        /// Why it ends.
        reason: CloseReason,
    },
    /// Close an upstream socket, once what was ordered before is sent. One that could not be opened
    /// is told to close too.
    CloseUpstream {
        /// The socket; another may have its name soon.
        upstream: UpstreamId,
    },
    /// A flow is about to end: write down what it was, where that is wanted.
    RecordFlow {
        /// The flow.
        flow: FlowId,
        /// What it was.
        record: FlowRecord,
    },
    /// Nothing is to be done: datagrams were dropped, and counted.
    Drop {
        /// Which way they were going.
        direction: Direction,
        /// Why.
        reason: DropReason,
        /// How many.
        datagrams: u16,
    },
}

/// A question that is to be sent once more. What it consists of is in
/// [`UdpManager::kept`](crate::UdpManager::kept) until the next input, unless the flow is told to close
/// before that: then it is not to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Repeat {
    /// The flow.
    pub flow: FlowId,
    /// The socket.
    pub upstream: UpstreamId,
    /// The backend.
    pub backend: BackendId,
    /// Where to; `None`: to whom the socket is connected.
    pub to: Option<SocketAddr>,
    /// What to tell that it was, or was not, sent: the flow where it has never been sent before, or else
    /// a copy, which the listener's ledger has counted already.
    pub send_id: SendId,
    /// The TOS or traffic-class byte to send with.
    pub tos: u8,
    /// The time to live or hop limit to send with, as in [`Output::OpenUpstream`].
    pub ttl: u8,
}

/// What a flow was, for the log of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRecord {
    /// The client's address.
    pub client: SocketAddr,
    /// The backend that served it last.
    pub backend: BackendId,
    /// That backend's address.
    pub backend_address: SocketAddr,
    /// Why it ended.
    pub reason: CloseReason,
    /// What the client sent and was forwarded.
    pub to_backend: Traffic,
    /// What its backends answered and was forwarded.
    pub to_client: Traffic,
    /// How long it was open, in nanoseconds.
    pub lasted_ns: u64,
    /// How long after it opened the first answer came, in nanoseconds.
    pub first_answer_ns: Option<u64>,
}

// Outputs are passed by value on the hot path.
const _: () = assert!(size_of::<Output>() <= 200);

/// Where a manager puts its orders: a queue in the shell, a `Vec` in tests.
pub trait Outputs<'p> {
    /// Takes one order. Must not call back into the manager; failures come back as inputs.
    fn emit(&mut self, output: Output<'p>);
}

impl<'p> Outputs<'p> for alloc::vec::Vec<Output<'p>> {
    fn emit(&mut self, output: Output<'p>) {
        self.push(output);
    }
}
