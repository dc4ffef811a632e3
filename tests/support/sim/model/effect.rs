//! Outputs, taken apart into single datagrams.

use std::net::SocketAddr;

use flowgate_core::config::{Source, SourceAddress};
use flowgate_core::proxy_protocol::{ProxyHeader, Tlvs};
use flowgate_core::{
    BackendId, CloseReason, Direction, DropReason, FlowId, FlowRecord, LocalAddr, LocalSource,
    Output, Repeat, UpstreamId,
};

use super::Violation;

/// What an output does about one datagram or one flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect<'p> {
    Open {
        flow: FlowId,
        upstream: UpstreamId,
        backend: BackendId,
        address: SocketAddr,
    },
    OpenSocket {
        upstream: UpstreamId,
        connect: Option<SocketAddr>,
        v6: bool,
        ttl: u8,
        bound: Bound,
    },
    OpenClient {
        flow: FlowId,
        client: SocketAddr,
    },
    Request {
        flow: FlowId,
        upstream: UpstreamId,
        backend: BackendId,
        to: Option<SocketAddr>,
        prefix: Option<ProxyHeader>,
        tlvs: Tlvs<'p>,
        tos: u8,
        ttl: u8,
        datagram: &'p [u8],
    },
    Repeat(Repeat),
    Reply {
        flow: FlowId,
        upstream: UpstreamId,
        client: SocketAddr,
        local: Option<LocalAddr>,
        tos: u8,
        datagram: &'p [u8],
    },
    Offload {
        flow: FlowId,
        backend: BackendId,
        client: SocketAddr,
        local: Option<LocalAddr>,
    },
    Recall {
        flow: FlowId,
    },
    AskActivity {
        flow: FlowId,
    },
    Close {
        flow: FlowId,
        upstream: UpstreamId,
        reason: CloseReason,
    },
    CloseSocket {
        upstream: UpstreamId,
    },
    Record {
        flow: FlowId,
        record: FlowRecord,
    },
    Drop {
        direction: Direction,
        reason: DropReason,
    },
}

/// What a socket is bound to, but for the order of its ports.
#[derive(Clone, Copy, Debug, Eq)]
pub(super) enum Bound {
    Any,
    /// To one of these: no cluster of the cast has more.
    Local([Option<SourceAddress>; 2]),
    Client(SocketAddr),
}

impl PartialEq for Bound {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, Self::Any) => true,
            (Self::Local(one), Self::Local(other)) => {
                one.iter().any(|it| it.is_some() && other.contains(it))
            }
            (Self::Client(one), Self::Client(other)) => one == other,
            _ => false,
        }
    }
}

impl Bound {
    fn of(source: LocalSource) -> Self {
        match source {
            LocalSource::Any => Self::Any,
            LocalSource::Local { ip, ports, .. } => {
                Self::Local([Some(SourceAddress { ip, ports }), None])
            }
            LocalSource::Client(client) => Self::Client(client),
        }
    }

    /// What a client's socket is to be bound to.
    pub(super) fn chosen(source: &Source, client: SocketAddr) -> Self {
        match source {
            Source::Any => Self::Any,
            Source::Local(all) => Self::Local([0, 1].map(|index| all.get(index).copied())),
            Source::Client => Self::Client(client),
        }
    }
}

/// Everything that the outputs do, in order.
pub(super) fn of_outputs<'p>(outputs: &[Output<'p>]) -> Vec<Effect<'p>> {
    let mut effects = Vec::with_capacity(outputs.len());
    for output in outputs {
        match *output {
            Output::OpenUpstream { upstream, connect, v6, ttl, source } => {
                let bound = Bound::of(source);
                effects.push(Effect::OpenSocket { upstream, connect, v6, ttl, bound })
            }
            Output::OpenFlow { flow, upstream, backend, address, .. } => {
                effects.push(Effect::Open { flow, upstream, backend, address });
            }
            Output::Send { flow, upstream, backend, to, prefix, tlvs, tos, ttl, burst } => effects
                .extend(burst.datagrams().map(|datagram| Effect::Request {
                    flow,
                    upstream,
                    backend,
                    to,
                    prefix,
                    tlvs,
                    tos,
                    ttl,
                    datagram,
                })),
            Output::Repeat(repeat) => effects.push(Effect::Repeat(repeat)),
            Output::SendToClient { flow, upstream, client, local, tos, burst } => {
                effects.extend(burst.datagrams().map(|datagram| Effect::Reply {
                    flow,
                    upstream,
                    client,
                    local,
                    tos,
                    datagram,
                }))
            }
            Output::CloseFlow { flow, upstream, reason } => {
                effects.push(Effect::Close { flow, upstream, reason })
            }
            Output::CloseUpstream { upstream } => effects.push(Effect::CloseSocket { upstream }),
            Output::RecordFlow { flow, record } => effects.push(Effect::Record { flow, record }),
            Output::OpenClient { flow, client } => {
                effects.push(Effect::OpenClient { flow, client });
            }
            Output::Offload { flow, backend, client, local, .. } => {
                effects.push(Effect::Offload { flow, backend, client, local });
            }
            Output::Recall { flow } => effects.push(Effect::Recall { flow }),
            Output::AskActivity { flow } => effects.push(Effect::AskActivity { flow }),
            // Whether one is missing, the world sees: one too many does no harm.
            Output::RecallBackend { .. } => {}
            // In sessions there is none; the world refuses one that there is.
            Output::SendOneWay { .. } | Output::Mirror { .. } => {}
            Output::Drop { direction, reason, datagrams } => {
                let effect = Effect::Drop { direction, reason };
                effects.extend((0..datagrams).map(|_| effect));
            }
        }
    }
    effects
}

impl Effect<'_> {
    /// The flow that ends.
    pub(super) fn ended(&self) -> Option<FlowId> {
        match *self {
            Self::Close { flow, .. } => Some(flow),
            _ => None,
        }
    }

    /// The socket that closes.
    pub(super) fn closed_socket(&self) -> Option<UpstreamId> {
        match *self {
            Self::CloseSocket { upstream } => Some(upstream),
            _ => None,
        }
    }

    /// Whether one output can hold this and the effect before it.
    fn joins(&self, before: &Self) -> bool {
        match (*self, *before) {
            (
                Self::Request { flow, prefix, .. },
                Self::Request { flow: flow_before, prefix: prefix_before, .. },
            ) => (flow, prefix) == (flow_before, prefix_before),
            (Self::Reply { .. }, Self::Reply { .. }) => true,
            (Self::Drop { reason, .. }, Self::Drop { reason: before, .. }) => reason == before,
            _ => false,
        }
    }
}

/// How few outputs can hold these effects: a burst is cut only where it must be.
pub(super) fn fewest_outputs(effects: &[Effect<'_>]) -> usize {
    let cuts = effects.windows(2).filter(|pair| !pair[1].joins(&pair[0])).count();
    effects.len().min(1) + cuts
}

/// Says where two lists of effects part.
pub(super) fn difference(observed: &[Effect<'_>], expected: &[Effect<'_>]) -> Violation {
    let same = observed.iter().zip(expected).take_while(|(is, should)| is == should).count();
    let show = |effects: &[Effect<'_>]| match effects.get(same) {
        Some(effect) => format!("{effect:?}"),
        None => "nothing more".into(),
    };
    let (is, should) = (show(observed), show(expected));
    Violation(format!("effect {same} is     {is}\n       and should be {should}"))
}
