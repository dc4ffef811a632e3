//! The tap of `flowgate trace`: what is decided on the datagrams of some clients.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use flowgate_config::hex;
use flowgate_core::config::Limits;
use flowgate_core::{
    Burst, CloseReason, Direction, DropReason, FlowId, ManagerInput, NetworkError, Output, Repeat,
    UdpManager,
};
use ipnet::IpNet;

use crate::datapath::role::Role;
use crate::observe::event::{Decision, TraceEvent, TraceLine};
use crate::observe::feed::{self, Rx, Tx};
use crate::observe::tap::{Decided, Subject, address_of};

/// How many bytes of memory events take that wait to be read. What comes beyond is left out.
const MAX_WAITING: usize = 16 << 20;

/// What an event takes besides its payload, about.
const EVENT_BYTES: usize = 512;

/// How many flows of one shard a trace remembers, to tell of their end.
const MAX_FOLLOWED: usize = 100_000;

/// What a trace is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only of clients in this network.
    pub client: Option<IpNet>,
    /// Only what is for or from one of these backends.
    pub backends: Option<Vec<SocketAddr>>,
    /// Only what was dropped.
    pub drops: bool,
    /// Whether the datagrams come along.
    pub payload: bool,
}

/// Makes a channel from taps to anyone who asked for a trace.
pub fn channel() -> (TraceSender, TraceFeed) {
    let (sender, receiver) = feed::channel(MAX_WAITING);
    (TraceSender(sender), TraceFeed(receiver))
}

/// The end of the channel that taps have. Never blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceSender(Tx<Vec<TraceEvent>>);

/// The other end. Once it is dropped the taps go.
#[derive(Debug)]
pub struct TraceFeed(Rx<Vec<TraceEvent>>);

impl TraceSender {
    /// Passes on what there is room for.
    fn send(&self, events: &mut Vec<TraceEvent>, bytes: usize) {
        let events = std::mem::take(events);
        let count = events.len() as u64;
        if !self.0.send(events, bytes) {
            self.0.leave_out(count);
        }
    }
}

impl TraceFeed {
    /// What comes next; nothing when all taps have gone.
    pub fn poll_lines(&mut self, context: &mut Context<'_>) -> Poll<Option<Vec<TraceLine>>> {
        self.0.poll(context).map(|events| Some(self.lines(events?)))
    }

    fn lines(&self, events: Vec<TraceEvent>) -> Vec<TraceLine> {
        let events = events.into_iter().map(|event| TraceLine::Event(Box::new(event)));
        self.take_left_out().into_iter().chain(events).collect()
    }

    /// What has been left out since that was said last.
    pub fn take_left_out(&self) -> Option<TraceLine> {
        match self.0.take_left_out() {
            0 => None,
            left_out => Some(TraceLine::LeftOut { left_out }),
        }
    }
}

/// What watches one shard for a trace.
#[derive(Debug)]
pub struct TraceTap {
    filter: Arc<Filter>,
    sender: TraceSender,
    listener: Arc<str>,
    /// The time of day when the clock of the shard read nothing.
    origin: Duration,
    /// The flows that it has told of and that live.
    followed: HashMap<FlowId, Followed>,
    /// What this turn has to tell.
    events: Vec<TraceEvent>,
    bytes: usize,
}

/// What is known of a flow when it is gone.
#[derive(Clone, Copy, Debug)]
struct Followed {
    client: SocketAddr,
    backend: Option<SocketAddr>,
    upstream: Option<SocketAddr>,
}

impl TraceTap {
    /// A tap for a shard of `listener`, whose clock read nothing at the time of day `origin`.
    pub fn new(
        filter: Arc<Filter>,
        sender: TraceSender,
        listener: Arc<str>,
        origin: Duration,
    ) -> Self {
        let followed = HashMap::new();
        Self { filter, sender, listener, origin, followed, events: Vec::new(), bytes: 0 }
    }

    /// Whether what is decided on an input may be of interest.
    pub(crate) fn wants(
        &self,
        input: &ManagerInput<'_>,
        subject: &Subject,
        manager: &UdpManager,
    ) -> bool {
        let Filter { client: network, backends, .. } = &*self.filter;
        let is_of = |client: Option<SocketAddr>| match network {
            Some(network) => client.is_some_and(|client| network.contains(&client.ip())),
            None => true,
        };
        match input {
            ManagerInput::Reading { .. }
            | ManagerInput::TakenElsewhere { .. }
            | ManagerInput::Delivered { .. }
            | ManagerInput::BackendChanged { .. } => false,
            ManagerInput::Timeout
            | ManagerInput::RoomWanted
            | ManagerInput::Configured(_)
            | ManagerInput::Drain { .. } => !self.followed.is_empty(),
            ManagerInput::ClientBurst { .. } => {
                !manager.config().accept_proxy_protocol.is_empty() || is_of(subject.client)
            }
            ManagerInput::Mirrored { .. } => is_of(subject.client),
            _ => is_of(subject.client) && is_one_of(backends.as_deref(), subject.backend),
        }
    }

    /// Takes in what was decided on an input that it [wants](Self::wants).
    pub(crate) fn see(
        &mut self,
        decided: &Decided<'_, '_>,
        upstream: &mut dyn FnMut(FlowId) -> Option<SocketAddr>,
    ) {
        match decided.input {
            ManagerInput::Timeout
            | ManagerInput::RoomWanted
            | ManagerInput::Configured(_)
            | ManagerInput::Drain { .. } => {
                self.see_ends(decided);
            }
            _ => self.see_burst(decided, upstream),
        }
    }

    /// A tick is over. Says whether someone still listens.
    pub(crate) fn flush(&mut self) -> bool {
        if !self.events.is_empty() {
            self.sender.send(&mut self.events, std::mem::take(&mut self.bytes));
        }
        !self.sender.0.is_closed()
    }

    fn see_ends(&mut self, decided: &Decided<'_, '_>) {
        for output in decided.outputs {
            let Output::CloseFlow { flow, reason, .. } = output else { continue };
            let Some(followed) = self.followed.remove(flow) else { continue };
            if self.filter.drops {
                continue;
            }
            let event = TraceEvent {
                client: Some(followed.client),
                upstream: followed.upstream,
                decisions: vec![closed(*flow, *reason)],
                ..self.blank(decided)
            };
            self.push(event);
        }
    }

    fn blank(&self, decided: &Decided<'_, '_>) -> TraceEvent {
        let time = self.origin + Duration::from_nanos(decided.now.as_nanos());
        TraceEvent {
            time: time.as_secs_f64(),
            listener: self.listener.to_string(),
            mirror: decided.role == Role::Mirror,
            ..TraceEvent::default()
        }
    }

    fn push(&mut self, event: TraceEvent) {
        self.bytes += EVENT_BYTES + event.payload.as_ref().map_or(0, String::len);
        self.events.push(event);
    }

    fn see_burst(
        &mut self,
        decided: &Decided<'_, '_>,
        upstream: &mut dyn FnMut(FlowId) -> Option<SocketAddr>,
    ) {
        let Decided { input, subject, manager, .. } = *decided;
        let mut event = self.blank(decided);
        event.client = subject.client;
        event.called = Some(manager.config().address);
        let burst = self.describe(input, subject, &mut event);
        let mut backend = subject.backend;
        let mut flow = subject.flow;
        for output in decided.outputs {
            match output {
                Output::OpenFlow { flow: opened, address, .. } => {
                    (flow, backend) = (Some(*opened), Some(*address));
                }
                Output::Send { flow: sent, .. } if flow.is_none() => {
                    flow = Some(*sent);
                }
                Output::SendOneWay { address, .. } if backend.is_none() => {
                    backend = Some(*address);
                }
                _ => {}
            }
            self.decide(output, decided, &mut event);
        }
        let known = flow.and_then(|flow| self.followed.get(&flow)).copied();
        let live = flow.and_then(|flow| manager.flow(flow));
        // Where a proxy speaks for the client, that is known by now.
        event.client = event.client.or_else(|| live.map(|flow| flow.client()));
        backend = backend
            .or_else(|| live.and_then(|flow| address_of(flow.backend(), manager)))
            .or(known.and_then(|known| known.backend));
        if !self.is_wanted(&event, backend) {
            return;
        }
        if self.filter.payload {
            let known = known.filter(|known| known.backend == backend);
            let known = known.and_then(|known| known.upstream);
            event.upstream = known.or_else(|| flow.and_then(upstream));
        }
        if let (Some(flow), Some(client)) = (flow.filter(|_| live.is_some()), event.client) {
            let followed = Followed { client, backend, upstream: event.upstream };
            if self.followed.len() < MAX_FOLLOWED || self.followed.contains_key(&flow) {
                self.followed.insert(flow, followed);
            }
        }
        for output in decided.outputs {
            if let Output::CloseFlow { flow, .. } = output {
                self.followed.remove(flow);
            }
        }
        if !self.filter.drops || event.is_drop() {
            let payload = burst.filter(|_| self.filter.payload);
            event.payload = payload.map(|burst| hex::encode(burst.bytes()));
            self.push(event);
        }
    }

    /// Whether an event is what was asked for.
    fn is_wanted(&self, event: &TraceEvent, backend: Option<SocketAddr>) -> bool {
        let Filter { client: network, backends, .. } = &*self.filter;
        let is_of_client = network.is_none_or(|network| {
            event.client.is_some_and(|client| network.contains(&client.ip()))
        });
        let goes_there = || {
            event.decisions.iter().any(|decision| match decision {
                Decision::Forwarded { backend, .. } => is_one_of(backends.as_deref(), *backend),
                _ => false,
            })
        };
        is_of_client && (is_one_of(backends.as_deref(), backend) || goes_there())
    }

    /// Says what came, and returns the datagrams if it was some.
    fn describe<'p>(
        &self,
        input: &ManagerInput<'p>,
        subject: Subject,
        event: &mut TraceEvent,
    ) -> Option<Burst<'p>> {
        match *input {
            ManagerInput::ClientBurst { local, burst, .. }
            | ManagerInput::Mirrored { local, burst, .. } => {
                if let (Some(called), Some(local)) = (&mut event.called, local) {
                    called.set_ip(local.ip);
                }
                count(event, &burst, Direction::ToBackend);
                Some(burst)
            }
            ManagerInput::UpstreamBurst { burst, .. } => {
                count(event, &burst, Direction::ToClient);
                Some(burst)
            }
            ManagerInput::Unusable { direction, reason, datagrams, bytes }
            | ManagerInput::Undelivered { direction, reason, datagrams, bytes, .. } => {
                event.direction = Some(direction);
                (event.datagrams, event.bytes) = (datagrams, bytes);
                event.size = bytes.checked_div(datagrams.into()).unwrap_or(0) as u16;
                event.decisions.push(Decision::Dropped {
                    reason: reason.as_str().to_owned(),
                    limit: None,
                    datagrams,
                });
                None
            }
            ManagerInput::UpstreamOpenFailed { .. } => {
                event.decisions.push(failed(subject, "could not be opened"));
                None
            }
            ManagerInput::UpstreamError { error, .. } => {
                event.decisions.push(failed(
                    subject,
                    match error {
                        NetworkError::Refused => "port unreachable",
                        NetworkError::Unreachable => "host or network unreachable",
                    },
                ));
                None
            }
            _ => None,
        }
    }

    /// Says what an output is.
    fn decide(&self, output: &Output<'_>, decided: &Decided<'_, '_>, event: &mut TraceEvent) {
        let manager = decided.manager;
        event.decisions.push(match output {
            Output::OpenFlow { flow, address, has_moved: true, .. } => {
                Decision::Moved { flow: name(*flow), backend: *address }
            }
            Output::OpenFlow { flow, address, .. } => {
                let placed = manager.placed(*flow);
                let by = match placed.id() {
                    [] => manager.config().cluster.balance.as_str(),
                    _ => placed.by().as_str(),
                };
                Decision::Opened { flow: name(*flow), backend: *address, by: by.to_owned() }
            }
            Output::Send { flow, backend, burst, .. } => Decision::Forwarded {
                flow: Some(name(*flow)),
                backend: address_of(*backend, manager),
                datagrams: burst.count().into(),
            },
            Output::Repeat(Repeat { flow, backend, .. }) => Decision::Forwarded {
                flow: Some(name(*flow)),
                backend: address_of(*backend, manager),
                datagrams: 1,
            },
            Output::SendOneWay { address, burst, .. } => Decision::Forwarded {
                flow: None,
                backend: Some(*address),
                datagrams: burst.count().into(),
            },
            Output::SendToClient { flow, burst, .. } => Decision::Answered {
                flow: name(*flow),
                backend: decided.subject.backend,
                datagrams: burst.count().into(),
                first_answer_ms: decided
                    .subject
                    .unanswered_since
                    .map(|since| (decided.now - since).as_secs_f64() * 1e3),
            },
            Output::Mirror { burst, .. } => Decision::Mirrored { datagrams: burst.count().into() },
            Output::Drop { reason, datagrams, .. } => Decision::Dropped {
                reason: reason.as_str().to_owned(),
                limit: limit_of(*reason, manager),
                datagrams: (*datagrams).into(),
            },
            Output::CloseFlow { flow, reason, .. } => closed(*flow, *reason),
            Output::OpenUpstream { .. }
            | Output::CloseUpstream { .. }
            | Output::OpenClient { .. }
            | Output::Offload { .. }
            | Output::Recall { .. }
            | Output::RecallBackend { .. }
            | Output::AskActivity { .. }
            | Output::RecordFlow { .. } => return,
        });
    }
}

fn is_one_of(wanted: Option<&[SocketAddr]>, backend: Option<SocketAddr>) -> bool {
    wanted.is_none_or(|wanted| backend.is_some_and(|backend| wanted.contains(&backend)))
}

fn count(event: &mut TraceEvent, burst: &Burst<'_>, direction: Direction) {
    event.direction = Some(direction);
    event.datagrams = burst.count().into();
    event.bytes = burst.bytes().len() as u64;
    event.size = burst.stride();
}

/// A name for a flow that no other flow of its shard has: its slot, and which flow of that it is.
fn name(flow: FlowId) -> String {
    format!("{}.{}", flow.index(), flow.generation())
}

fn failed(subject: Subject, failure: &str) -> Decision {
    let flow = subject.flow.map_or_else(|| "-".to_owned(), name);
    Decision::Failed { flow, failure: failure.to_owned() }
}

fn closed(flow: FlowId, reason: CloseReason) -> Decision {
    Decision::Closed { flow: name(flow), reason: reason.as_str().to_owned() }
}

/// The limit that a datagram met which was dropped for a reason.
fn limit_of(reason: DropReason, manager: &UdpManager) -> Option<u64> {
    let Limits {
        flows_per_source,
        flows_per_subnet,
        new_flows_per_second_per_source,
        amplification,
        unanswered_flows,
        ..
    } = manager.config().cluster.limits;
    let limit = match reason {
        DropReason::MaxFlows => manager.config().max_flows,
        DropReason::TooLarge => u32::from(manager.config().max_datagram_size),
        DropReason::SourceFlows => flows_per_source,
        DropReason::SubnetFlows => flows_per_subnet,
        DropReason::SourceRate => new_flows_per_second_per_source,
        DropReason::Amplification => amplification,
        DropReason::UnansweredFlows => unanswered_flows,
        _ => return None,
    };
    Some(limit.into())
}

#[cfg(test)]
mod tests;
