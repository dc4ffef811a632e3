//! What holds in every mode, and what in each.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use flowgate_core::config::{Mode, ReplyFrom};
use flowgate_core::counters::{Ledger, Traffic};
use flowgate_core::{
    BackendId, Burst, Direction, DropReason, FlowId, ManagerInput, Output, Repeat, SendId,
};

use super::{Balancer, Flow, Route, World};
use crate::sim::Violation;

/// How many flows that have ended are remembered.
const MOST_ENDED: usize = 16;

/// Returns a [`Violation`] unless a condition holds.
macro_rules! require {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(Violation(format!($($message)+)));
        }
    };
}

/// What became of the datagrams of one burst.
#[derive(Debug, Default)]
struct Fates {
    /// By flows, to each backend.
    by_flows: BTreeMap<usize, u32>,
    /// One way, to each backend.
    one_way: BTreeMap<usize, u32>,
    /// As copies, to each backend.
    copies: BTreeMap<usize, u32>,
    mirrored: u32,
    mirrors: u32,
    dropped: BTreeMap<DropReason, u32>,
    /// The flow that took some, if one did.
    flow: Option<FlowId>,
}

impl<B: Balancer> World<B> {
    /// Looks at what the balancer does about an input.
    pub(super) fn judge(
        &mut self,
        input: &ManagerInput<'_>,
        outputs: &[Output<'_>],
    ) -> Result<(), Violation> {
        let mut fates = Fates::default();
        for output in outputs {
            self.look(input, output, &mut fates)?;
        }
        match *input {
            ManagerInput::ClientBurst { source, burst, .. } => {
                self.check_request(source, &burst, &fates)?;
            }
            ManagerInput::Configured(_) => {
                let has_flows = self.config.cluster.mode.has_flows();
                require!(has_flows || self.flows.is_empty(), "flows outlive a change of mode");
            }
            _ => {
                let sent = fates.by_flows.len() + fates.one_way.len() + fates.copies.len();
                require!(sent == 0, "something is sent to a backend that no client has sent");
            }
        }
        let alive = self.balancer.manager().flow_count();
        require!(alive == self.flows.len(), "{alive} flows, and {} are open", self.flows.len());
        self.check_books(input, outputs)
    }

    /// One output by itself: flows and sockets, and who is sent to.
    fn look(
        &mut self,
        input: &ManagerInput<'_>,
        output: &Output<'_>,
        fates: &mut Fates,
    ) -> Result<(), Violation> {
        let mode = self.config.cluster.mode;
        match *output {
            Output::OpenUpstream { upstream, connect, .. } => {
                require!(mode.has_flows(), "a socket opens for flows where there are none");
                let is_new = self.sockets.insert(upstream, connect.is_some()).is_none();
                require!(is_new, "{upstream:?} opens twice");
            }
            Output::OpenFlow { flow, upstream, backend, address, .. } => {
                require!(mode.has_flows(), "a flow opens where there are none");
                require!(self.sockets.contains_key(&upstream), "{flow:?} opens on no socket");
                let known = self.flows.get(&flow);
                let client = match (input, known) {
                    (&ManagerInput::ClientBurst { source, .. }, _) => source,
                    // It goes to another backend, which one has refused it.
                    (
                        ManagerInput::UpstreamError { .. }
                        | ManagerInput::Undelivered { .. }
                        | ManagerInput::UpstreamBurst { .. },
                        Some(known),
                    ) => known.client,
                    _ => return Err(Violation("a flow opens for nobody".into())),
                };
                let mirrored = known.and_then(|flow| flow.mirrored);
                let route = Route { upstream, address };
                self.flows.insert(flow, Flow { client, backend, route, mirrored });
                self.heard.retain(|_, heard| *heard != flow);
                self.check_is_there(backend)?;
            }
            Output::CloseUpstream { upstream } => {
                require!(self.sockets.remove(&upstream).is_some(), "{upstream:?} is not open");
            }
            Output::CloseFlow { flow, .. } => {
                let Some(Flow { route, .. }) = self.flows.remove(&flow) else {
                    return Err(Violation(format!("{flow:?} closes and is not open")));
                };
                self.heard.retain(|_, heard| *heard != flow);
                self.ended.push_front((flow, route));
                self.ended.truncate(MOST_ENDED);
            }
            Output::Send { flow, upstream, backend, burst, .. } => {
                let Some(known) = self.flows.get(&flow) else {
                    return Err(Violation(format!("{flow:?} sends and is not open")));
                };
                require!(known.backend == backend, "{flow:?} sends to another backend");
                require!(known.route.upstream == upstream, "{flow:?} sends by another socket");
                self.check_source(input, known.client, &burst)?;
                self.check_is_there(backend)?;
                *fates.by_flows.entry(backend.index()).or_default() += u32::from(burst.count());
                fates.flow = Some(flow);
            }
            Output::Repeat(Repeat { flow, upstream, backend, .. }) => {
                require!(matches!(mode, Mode::Session { .. }), "{flow:?} asks again in no session");
                let is_refused = matches!(
                    input,
                    ManagerInput::UpstreamError { .. } | ManagerInput::Undelivered { .. }
                );
                require!(is_refused, "{flow:?} asks again though nobody refuses it");
                let is_its =
                    |known: &Flow| known.backend == backend && known.route.upstream == upstream;
                require!(self.flows.get(&flow).is_some_and(is_its), "{flow:?} asks another's");
            }
            Output::SendOneWay { send_id, address, burst, .. } => {
                let (to, fates) = match send_id {
                    SendId::OneWay(to) => (to, &mut fates.one_way),
                    SendId::Copy(to) => (to, &mut fates.copies),
                    SendId::Flow { .. } => return Err(Violation("a flow sends one way".into())),
                };
                let backend = &self.config.cluster.backends[to.index()];
                require!(backend.address == address, "{address} is not the backend {to:?}");
                require!(self.in_service(to.index()), "{to:?} is sent to and out of service");
                *fates.entry(to.index()).or_default() += u32::from(burst.count());
            }
            Output::SendToClient { flow, client, burst, .. } => {
                require!(
                    matches!(input, ManagerInput::UpstreamBurst { .. }),
                    "a reply from nobody"
                );
                require!(self.replied.is_none_or(|of| of == flow), "a reply goes to another flow");
                require!(burst.bytes() == b"reply", "a reply is not what was replied");
                self.check_reply(flow, client)?;
            }
            Output::Mirror { client, burst, .. } => {
                require!(
                    matches!(mode, Mode::Session { .. }),
                    "something is mirrored in a mode without mirrors"
                );
                self.check_source(input, client, &burst)?;
                fates.mirrored += u32::from(burst.count());
                fates.mirrors += 1;
            }
            Output::Drop { reason, datagrams, .. } => {
                *fates.dropped.entry(reason).or_default() += u32::from(datagrams);
            }
            // Hints, of which none is carried out here.
            Output::Offload { .. }
            | Output::Recall { .. }
            | Output::RecallBackend { .. }
            | Output::AskActivity { .. } => {}
            Output::OpenClient { .. } | Output::RecordFlow { .. } => {
                return Err(Violation("what nobody asked for".into()));
            }
        }
        Ok(())
    }

    /// What is sent for a client is what it has just sent.
    fn check_source(
        &self,
        input: &ManagerInput<'_>,
        client: SocketAddr,
        burst: &Burst<'_>,
    ) -> Result<(), Violation> {
        let ManagerInput::ClientBurst { source, burst: sent, .. } = input else {
            return Err(Violation("something is sent that nobody has sent".into()));
        };
        require!(*source == client, "what {source} sent goes out for {client}");
        let (sent, bytes) = (sent.bytes(), burst.bytes());
        let is_part = sent.windows(bytes.len()).any(|part| part == bytes);
        require!(is_part, "other bytes are sent than were");
        Ok(())
    }

    /// A reply goes to the client of its flow; where the first one counts, from one backend only
    /// between any two datagrams of the client.
    fn check_reply(&mut self, flow: FlowId, client: SocketAddr) -> Result<(), Violation> {
        let Some(known) = self.flows.get(&flow) else {
            return Err(Violation(format!("{flow:?} replies and is not open")));
        };
        require!(known.client == client, "{client} gets a reply for {}", known.client);
        if self.config.cluster.mode == (Mode::FanOut { reply_from: ReplyFrom::First }) {
            let heard = *self.heard.entry(client).or_insert(flow);
            require!(heard == flow, "{client} hears two backends: {heard:?} and {flow:?}");
        }
        Ok(())
    }

    fn check_is_there(&self, backend: BackendId) -> Result<(), Violation> {
        let backend = &self.config.cluster.backends[backend.index()];
        require!(!backend.removed, "{} is sent to, and has been removed", backend.address);
        Ok(())
    }

    /// Each datagram of a client goes where its mode says, once.
    fn check_request(
        &mut self,
        client: SocketAddr,
        burst: &Burst<'_>,
        fates: &Fates,
    ) -> Result<(), Violation> {
        let count = u32::from(burst.count());
        let dropped: u32 = fates.dropped.values().sum();
        let by_flows: u32 = fates.by_flows.values().sum();
        match self.config.cluster.mode {
            Mode::Session { mirrored_per_million } => {
                require!(by_flows + dropped == count, "{fates:?} of {count}");
                let others = fates.one_way.len() + fates.copies.len();
                require!(others == 0, "a session is copied");
                self.check_mirror(client, mirrored_per_million > 0, by_flows, fates)?;
            }
            Mode::OneWay => {
                let one_way: u32 = fates.one_way.values().sum();
                require!(one_way + dropped == count, "{fates:?} of {count}");
                let is_empty = fates.by_flows.is_empty() && fates.copies.is_empty();
                require!(is_empty, "what goes one way goes elsewhere too");
                require!(dropped == 0 || !self.has_any_in_service(), "it is dropped: {fates:?}");
            }
            Mode::FanOut { reply_from: ReplyFrom::Nobody } => {
                require!(by_flows == 0 && fates.one_way.is_empty(), "a copy is none: {fates:?}");
                self.check_copies(count, dropped, None, fates)?;
            }
            Mode::FanOut { reply_from: ReplyFrom::Chosen } => {
                require!(fates.by_flows.len() <= 1, "two backends may answer: {fates:?}");
                let chosen = fates.by_flows.keys().next().copied();
                let answers =
                    chosen.is_none_or(|index| self.config.cluster.backends[index].answers);
                require!(answers, "one that gets copies only has a flow");
                require!(by_flows == 0 || by_flows == count, "{fates:?} of {count}");
                if fates.dropped.keys().all(|reason| *reason == DropReason::NoBackend) {
                    self.check_copies(count, dropped, chosen, fates)?;
                } else {
                    require!(dropped == count && fates.copies.is_empty(), "{fates:?} of {count}");
                }
            }
            Mode::FanOut { reply_from: ReplyFrom::First } => {
                require!(fates.copies.is_empty() && fates.one_way.is_empty(), "a copy in a race");
                let targets = self.targets();
                for (index, sent) in &fates.by_flows {
                    require!(targets.contains(index), "{index} is no target: {fates:?}");
                    require!(*sent == count, "{fates:?} of {count}");
                }
                // Those in quarantine take slots too.
                let taken = self.flows.len() + self.balancer.manager().quarantined();
                let is_full = taken >= self.config.max_flows as usize;
                let is_complete = fates.by_flows.len() == targets.len();
                require!(is_complete || is_full || dropped == count, "some get none: {fates:?}");
                require!(fates.by_flows.is_empty() == (dropped == count), "{fates:?} of {count}");
            }
        }
        Ok(())
    }

    /// A flow is mirrored from its first datagram to its last, or not at all.
    fn check_mirror(
        &mut self,
        client: SocketAddr,
        may_begin: bool,
        by_flows: u32,
        fates: &Fates,
    ) -> Result<(), Violation> {
        require!(fates.mirrored == 0 || fates.mirrored == by_flows, "{fates:?} are mirrored");
        require!(fates.mirrors <= 1, "{client} is mirrored {} times", fates.mirrors);
        let Some(flow) = fates.flow.and_then(|flow| self.flows.get_mut(&flow)) else {
            return Ok(());
        };
        let is_mirrored = fates.mirrored > 0;
        let decided = *flow.mirrored.get_or_insert(is_mirrored);
        require!(decided == is_mirrored, "{client} is mirrored now and then");
        // One that was open when mirrors were turned off may go on.
        let _ = may_begin;
        Ok(())
    }

    /// Each target but the one that answers gets each datagram once, and nobody else does.
    fn check_copies(
        &self,
        count: u32,
        dropped: u32,
        chosen: Option<usize>,
        fates: &Fates,
    ) -> Result<(), Violation> {
        let mut targets = self.targets();
        let has_none = targets.is_empty() && chosen.is_none();
        require!(dropped == if has_none { count } else { 0 }, "{fates:?} of {count}");
        targets.retain(|index| Some(*index) != chosen);
        let copied: Vec<usize> = fates.copies.keys().copied().collect();
        require!(copied == targets, "{targets:?} are to get copies: {fates:?}");
        let is_once = fates.copies.values().all(|&copies| copies == count);
        require!(is_once, "not once each: {fates:?} of {count}");
        Ok(())
    }

    /// Whether a backend may have anything new.
    fn in_service(&self, index: usize) -> bool {
        let is_wanted = |index: usize| {
            let backend = &self.config.cluster.backends[index];
            !backend.removed && backend.weight > 0
        };
        let all = 0..self.config.cluster.backends.len();
        let is_open = self.config.cluster.health.fail_open
            && !all.clone().any(|index| is_wanted(index) && self.up[index]);
        is_wanted(index) && (self.up[index] || is_open)
    }

    fn has_any_in_service(&self) -> bool {
        (0..self.config.cluster.backends.len()).any(|index| self.in_service(index))
    }

    /// Who gets copies: those in service, backups only where nobody else is.
    fn targets(&self) -> Vec<usize> {
        let of = |backup: bool| {
            let all = 0..self.config.cluster.backends.len();
            let tier = all.filter(|&index| self.config.cluster.backends[index].backup == backup);
            tier.filter(|&index| self.in_service(index)).collect::<Vec<_>>()
        };
        let primaries = of(false);
        if primaries.is_empty() { of(true) } else { primaries }
    }

    /// The books balance, nothing goes back, and an input counts once.
    fn check_books(
        &mut self,
        input: &ManagerInput<'_>,
        outputs: &[Output<'_>],
    ) -> Result<(), Violation> {
        let now = self.balancer.counters();
        for direction in Direction::ALL {
            let (before, after) = (self.last.ledger(direction), now.ledger(direction));
            let name = direction.as_str();
            let sum = after.forwarded.plus(after.queued).plus(after.dropped_total());
            require!(sum == after.received, "{name}: {after:?}");
            let grows = |of: fn(&Ledger) -> Traffic| {
                of(after).datagrams >= of(before).datagrams && of(after).bytes >= of(before).bytes
            };
            let all_grow = grows(|l| l.received) && grows(|l| l.forwarded);
            require!(all_grow && grows(Ledger::dropped_total), "{name}: a counter goes down");
            let arrived = match (input, direction) {
                (ManagerInput::ClientBurst { burst, .. }, Direction::ToBackend)
                | (ManagerInput::UpstreamBurst { burst, .. }, Direction::ToClient) => burst.count(),
                _ => 0,
            };
            let received = after.received.datagrams - before.received.datagrams;
            require!(received == u64::from(arrived), "{name}: {received} of {arrived} received");
        }
        let _ = outputs;
        self.last = now;
        Ok(())
    }

    /// Lets everything come to rest.
    pub(super) fn settle(&mut self) -> Result<(), Violation> {
        self.unblock()?;
        while !self.replies.is_empty() {
            self.hear_a_reply()?;
        }
        for _ in 0..10_000 {
            let Some(due) = self.balancer.manager().poll_timeout() else { break };
            self.now = self.now.max(due.at);
            self.tell(ManagerInput::Timeout)?;
        }
        require!(self.balancer.manager().poll_timeout().is_none(), "timeouts have no end");
        require!(self.flows.is_empty(), "{} flows never end", self.flows.len());
        let counters = self.balancer.counters();
        for direction in Direction::ALL {
            let queued = counters.ledger(direction).queued;
            require!(queued == Traffic::default(), "{queued:?} stay queued");
        }
        let backends = self.balancer.manager().backends();
        for ((id, backend), &should) in backends.iter().zip(&self.delivered) {
            let is = backend.to.datagrams;
            require!(is == should, "{id:?} was delivered {should}, and {is} are counted");
        }
        Ok(())
    }
}
