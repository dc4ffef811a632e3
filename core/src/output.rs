//! What a manager wants done. Each variant is an order to the shell, in the imperative.

use core::net::SocketAddr;

use crate::burst::Burst;
use crate::counters::Traffic;
use crate::egress::LocalSource;
use crate::id::{BackendId, Carrier, FlowId};
use crate::local_addr::LocalAddr;
use crate::proxy_protocol::{ProxyHeader, ProxyInfo, Tlvs};
use crate::reason::{CloseReason, Direction, DropReason};

/// An order from [`UdpManager::handle_input`](crate::UdpManager::handle_input).
///
/// For one flow the order is always: open, sends, close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output<'p> {
    /// Open a socket connected to `address` and name it `flow`; or name so the socket of a
    /// finished flow, which is connected already. For a flow that goes on with another backend this
    /// comes again, after [`Output::CloseUpstream`].
    OpenUpstream {
        /// The flow that the socket is to serve.
        flow: FlowId,
        /// The backend chosen for it.
        backend: BackendId,
        /// The backend's address.
        address: SocketAddr,
        /// The time to live or hop limit to send with: one less than the client's datagram had
        /// left, as a router does (RFC 1812), so that a loop of balancers comes to an end.
        ttl: u8,
        /// The finished flow whose socket is to be used. Its slot is the new flow's slot.
        reuse: Option<FlowId>,
        /// The address and port of ours to send from, where a socket has to be opened.
        source: LocalSource,
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
    /// Send datagrams from the flow's upstream socket.
    SendToBackend {
        /// The flow.
        flow: FlowId,
        /// The backend that its socket leads to.
        backend: BackendId,
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
    /// Send datagrams to a backend from a socket that belongs to no flow. What comes back is
    /// thrown away, ICMP errors too.
    SendOneWay {
        /// The backend, alone or as one of those that get copies.
        carrier: Carrier,
        /// Its address.
        address: SocketAddr,
        /// The client's address and port, where it is to be sent from them. It is of the family of
        /// the backend's address, and one that a host can have.
        source: Option<SocketAddr>,
        /// What to put in front of every datagram of the burst.
        prefix: Option<ProxyHeader>,
        /// What of a proxy's header is to be passed on, as in [`Output::SendToBackend`].
        tlvs: Tlvs<'p>,
        /// The TOS or traffic-class byte to send with.
        tos: u8,
        /// The time to live or hop limit to send with, as in [`Output::OpenUpstream`].
        ttl: u8,
        /// The datagrams.
        burst: Burst<'p>,
    },
    /// Give a copy of a client's datagrams to whoever serves as the cluster's mirror, as
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
        /// Where to: the client's address, or that of the proxy that speaks for it.
        client: SocketAddr,
        /// The source address to send from, where the listener is bound to a wildcard.
        local: Option<LocalAddr>,
        /// The TOS or traffic-class byte to send with.
        tos: u8,
        /// The datagrams.
        burst: Burst<'p>,
    },
    /// The flow has ended. Close its upstream socket, once what was ordered before is sent.
    CloseFlow {
        /// The flow; its id is never used again.
        flow: FlowId,
        /// Why it ends.
        reason: CloseReason,
        /// Whether to keep the socket open under the flow's id: in quarantine, or for another flow
        /// to use.
        keep_socket: bool,
    },
    /// Close the upstream socket of a flow, once what was ordered before is sent: one that a
    /// finished flow left behind, or one of a flow that goes on with another backend.
    CloseUpstream {
        /// The flow.
        flow: FlowId,
    },
    /// A flow is about to end: write down what it was, where that is wanted.
    RecordFlow {
        /// The flow, whose upstream socket is still open if it ever was.
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

/// What a flow was, for the log of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRecord {
    /// The client's address.
    pub client: SocketAddr,
    /// The backend that served it last.
    pub backend: BackendId,
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
const _: () = assert!(size_of::<Output>() <= 184);

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
