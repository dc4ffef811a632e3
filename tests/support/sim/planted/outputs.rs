//! Bugs in what is emitted.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use flowgate_core::config::SendProxyProtocol;
use flowgate_core::{
    BackendId, Burst, CloseReason, DropReason, FlowId, LocalSource, Output, Repeat, SendId,
    UdpManager, UpstreamId,
};

use super::Bug;

/// What a bug remembers.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    /// How many bursts were sent to backends.
    sent: u64,
    last_client: Option<SocketAddr>,
    last_upstream: Option<UpstreamId>,
    last_opened: Option<Output<'static>>,
    /// The first id of each slot.
    first_ids: BTreeMap<usize, FlowId>,
    /// Where each flow was opened first.
    first_backends: BTreeMap<FlowId, (BackendId, SocketAddr)>,
    /// The flow that has just moved.
    moved: Option<FlowId>,
}

impl Memory {
    /// Makes wrong what a manager has emitted.
    pub(super) fn corrupt<'p>(
        &mut self,
        bug: Bug,
        manager: &UdpManager,
        outputs: &mut Vec<Output<'p>>,
    ) {
        let honest = std::mem::take(outputs);
        for output in honest {
            match output {
                Output::OpenUpstream { .. } => self.corrupt_socket(bug, output, outputs),
                Output::OpenFlow { .. } => self.corrupt_open(bug, output, outputs),
                Output::Send { flow, .. } => {
                    self.corrupt_request(bug, manager, output, outputs);
                    outputs.extend(needless_offer(bug, manager, flow));
                }
                Output::Repeat(repeat) => self.corrupt_repeat(bug, manager, repeat, outputs),
                Output::SendToClient { .. } => self.corrupt_reply(bug, output, outputs),
                Output::CloseFlow { .. } => corrupt_close(bug, manager, output, outputs),
                Output::CloseUpstream { .. } if bug == Bug::ForgetsTheIdle => {}
                Output::CloseUpstream { .. } => {
                    let has_ended =
                        outputs.iter().any(|output| matches!(output, Output::CloseFlow { .. }));
                    if bug != Bug::LeavesTheFormerSocket || has_ended {
                        outputs.push(output);
                    }
                }
                Output::RecordFlow { .. } => self.corrupt_record(bug, output, outputs),
                Output::OpenClient { .. } if bug == Bug::ForgetsTheClientsSocket => {}
                Output::Recall { .. } if bug == Bug::ForgetsToRecall => {}
                Output::RecallBackend { .. } if bug == Bug::ForgetsTheGate => {}
                Output::AskActivity { flow } if bug == Bug::ClosesWithoutAsking => {
                    let upstream = manager.flow(flow).map(|flow| flow.upstream());
                    outputs.push(Output::Recall { flow });
                    let close =
                        |upstream| Output::CloseFlow { flow, upstream, reason: CloseReason::Idle };
                    outputs.extend(upstream.map(close));
                }
                Output::Offload { .. }
                | Output::Recall { .. }
                | Output::RecallBackend { .. }
                | Output::AskActivity { .. }
                | Output::OpenClient { .. }
                | Output::SendOneWay { .. }
                | Output::Mirror { .. } => {
                    outputs.push(output);
                }
                Output::Drop { reason, .. } => {
                    let is_refused = reason == DropReason::MaxFlows;
                    if bug == Bug::OpensForTheRefused && is_refused {
                        outputs.extend(self.last_opened);
                    }
                    outputs.push(output);
                }
            }
        }
        corrupt_order(bug, outputs);
    }

    fn corrupt_open<'p>(&mut self, bug: Bug, output: Output<'p>, outputs: &mut Vec<Output<'p>>) {
        let Output::OpenFlow { mut flow, upstream, backend, mut address, has_moved } = output
        else {
            return;
        };
        self.last_opened = Some(Output::OpenFlow { flow, upstream, backend, address, has_moved });
        let first_id = *self.first_ids.entry(flow.index()).or_insert(flow);
        let is_new = !self.first_backends.contains_key(&flow);
        let (_, first_address) = *self.first_backends.entry(flow).or_insert((backend, address));
        self.moved = (!is_new).then_some(flow);
        match bug {
            Bug::GivesIdsAgain => flow = first_id,
            Bug::WrongAddress => address.set_port(address.port() ^ 1),
            Bug::OpensTwice => outputs.push(output),
            Bug::MovesToWhereItWas => address = first_address,
            _ => {}
        }
        outputs.push(Output::OpenFlow { flow, upstream, backend, address, has_moved });
    }

    fn corrupt_socket<'p>(&mut self, bug: Bug, output: Output<'p>, outputs: &mut Vec<Output<'p>>) {
        let Output::OpenUpstream { upstream, mut connect, v6, mut ttl, mut source } = output else {
            return;
        };
        match bug {
            Bug::KeepsTheTtl => ttl += 1,
            Bug::ForgetsTheSource => source = LocalSource::Any,
            Bug::OpensTwice => outputs.push(output),
            Bug::WrongAddress => {
                if let Some(address) = &mut connect {
                    address.set_port(address.port() ^ 1);
                }
            }
            _ => {}
        }
        outputs.push(Output::OpenUpstream { upstream, connect, v6, ttl, source });
    }

    fn corrupt_request<'p>(
        &mut self,
        bug: Bug,
        manager: &UdpManager,
        output: Output<'p>,
        outputs: &mut Vec<Output<'p>>,
    ) {
        let Output::Send { flow, mut upstream, backend, mut to, mut prefix, tlvs, tos, ttl, burst } =
            output
        else {
            return;
        };
        let last_upstream = self.last_upstream.replace(upstream);
        match bug {
            Bug::MixesSockets => upstream = last_upstream.unwrap_or(upstream),
            Bug::ForgetsTheReceiver => to = None,
            _ => {}
        }
        self.sent += 1;
        if bug == Bug::DropsSilently && self.sent.is_multiple_of(100) {
            return;
        }
        let is_ipv6 = manager.flow(flow).is_some_and(|flow| flow.client().is_ipv6());
        if bug == Bug::ForgetsTheHeader && is_ipv6 {
            prefix = None;
        }
        let which = manager.config().cluster.send_proxy_protocol;
        if bug == Bug::ForgetsToIntroduce
            && which == SendProxyProtocol::First
            && self.moved.take() == Some(flow)
        {
            prefix = None;
        }
        outputs.extend(corrupt_burst(bug, burst).into_iter().map(|burst| Output::Send {
            flow,
            upstream,
            backend,
            to,
            prefix,
            tlvs,
            tos,
            ttl,
            burst,
        }));
    }

    fn corrupt_repeat(
        &self,
        bug: Bug,
        manager: &UdpManager,
        mut repeat: Repeat,
        outputs: &mut Vec<Output<'_>>,
    ) {
        let Repeat { flow, upstream, .. } = repeat;
        match bug {
            Bug::ForgetsToRepeat => return,
            Bug::CountsARepeat => repeat.send_id = SendId::Flow { flow, upstream },
            Bug::RepeatsToTheFormer => {
                let first = self.first_backends.get(&flow).map(|first| first.0);
                let former = first.and_then(|first| manager.backends().get(first));
                repeat.to = former.map(flowgate_core::backend::Backend::address);
            }
            _ => {}
        }
        outputs.push(Output::Repeat(repeat));
    }

    fn corrupt_reply<'p>(&mut self, bug: Bug, output: Output<'p>, outputs: &mut Vec<Output<'p>>) {
        let Output::SendToClient { flow, upstream, mut client, mut local, mut tos, burst } = output
        else {
            return;
        };
        let last_client = self.last_client.replace(client);
        match bug {
            Bug::SwapsClients => client = last_client.unwrap_or(client),
            Bug::MixesLinks => client = on_another_link(client),
            Bug::ForgetsLocal => local = None,
            Bug::ForgetsTos => tos = 0,
            _ => {}
        }
        outputs.extend(corrupt_burst(bug, burst).into_iter().map(|burst| Output::SendToClient {
            flow,
            upstream,
            client,
            local,
            tos,
            burst,
        }));
    }
}

impl Memory {
    fn corrupt_record<'p>(&self, bug: Bug, output: Output<'p>, outputs: &mut Vec<Output<'p>>) {
        let Output::RecordFlow { flow, mut record } = output else { return };
        match (bug, record.reason) {
            (Bug::LosesARecord, CloseReason::Evicted) => return,
            (Bug::RecordsTheFirstBackend, _) => {
                let first = self.first_backends.get(&flow);
                record.backend = first.map_or(record.backend, |first| first.0);
            }
            _ => {}
        }
        outputs.push(Output::RecordFlow { flow, record });
    }
}

/// A flow is offered to the kernel that must not be.
fn needless_offer<'p>(bug: Bug, manager: &UdpManager, id: FlowId) -> Option<Output<'p>> {
    let flow = manager.flow(id)?;
    let is_planted = match bug {
        Bug::OffersWhatCounts => flow.is_confirmed() && manager.config().cluster.responses > 0,
        Bug::OffersTheUnanswered => !flow.is_answered(),
        _ => false,
    };
    let (backend, client, local) = (flow.backend(), flow.client(), flow.local());
    let (upstream, address) = (flow.upstream(), manager.backends().get(backend)?.address());
    let offer = Output::Offload { flow: id, upstream, backend, address, client, local };
    (is_planted && manager.config().offload).then_some(offer)
}

fn on_another_link(client: SocketAddr) -> SocketAddr {
    match client {
        SocketAddr::V6(mut v6) if v6.scope_id() == 2 => {
            v6.set_scope_id(3);
            v6.into()
        }
        _ => client,
    }
}

fn corrupt_close<'p>(
    bug: Bug,
    manager: &UdpManager,
    output: Output<'p>,
    outputs: &mut Vec<Output<'p>>,
) {
    let Output::CloseFlow { mut flow, upstream, mut reason } = output else {
        return;
    };
    match (bug, reason) {
        (Bug::ForgetsToClose, CloseReason::Complete) => return,
        (Bug::MixesReasons, CloseReason::Complete) => reason = CloseReason::Idle,
        (Bug::EvictsAYoungerOne, CloseReason::Evicted) => {
            let unanswered = manager.flows().filter(|(_, flow)| !flow.is_answered());
            flow = unanswered.map(|(id, _)| id).min_by_key(|id| id.generation()).unwrap_or(flow);
        }
        (Bug::EvictsTheAnswered, CloseReason::Evicted) => {
            let answered = manager.flows().find(|(_, flow)| flow.is_answered());
            flow = answered.map_or(flow, |(id, _)| id);
        }
        _ => {}
    }
    outputs.push(Output::CloseFlow { flow, upstream, reason });
}

/// What is sent in place of a burst.
fn corrupt_burst(bug: Bug, burst: Burst<'_>) -> Vec<Burst<'_>> {
    let count = burst.count();
    let has_short_tail = burst.last_len() < usize::from(burst.stride());
    let (head, tail) = burst.split_at(count / 2);
    match bug {
        Bug::CutsTheTail if has_short_tail => burst.split_at(count - 1).0.into_iter().collect(),
        Bug::MergesDatagrams if count == 2 => Burst::single(burst.bytes()).into_iter().collect(),
        Bug::SendsTwice if count == 5 => vec![burst, burst],
        Bug::Reorders => tail.into_iter().chain(head).collect(),
        Bug::CutsNeedlessly => head.into_iter().chain(tail).collect(),
        _ => vec![burst],
    }
}

fn corrupt_order(bug: Bug, outputs: &mut [Output<'_>]) {
    /// Shared by all managers of a process, as a clock or an address in memory would be.
    static MOOD: AtomicU64 = AtomicU64::new(0);
    match (bug, &mut *outputs) {
        (Bug::SendsBeforeItOpens, [.., first @ Output::OpenFlow { .. }, second]) => {
            std::mem::swap(first, second);
        }
        (
            Bug::ClosesBeforeItSends,
            [.., send @ Output::SendToClient { .. }, close @ Output::CloseFlow { .. }]
            | [
                ..,
                send @ Output::SendToClient { .. },
                close @ Output::CloseFlow { .. },
                Output::CloseUpstream { .. },
            ],
        ) => {
            std::mem::swap(send, close);
        }
        (
            Bug::RecordsTooLate,
            [.., record @ Output::RecordFlow { .. }, close @ Output::CloseFlow { .. }]
            | [
                ..,
                record @ Output::RecordFlow { .. },
                close @ Output::CloseFlow { .. },
                Output::CloseUpstream { .. },
            ],
        ) => {
            std::mem::swap(record, close);
        }
        (Bug::HasAMood, [Output::CloseFlow { .. }, .., Output::CloseFlow { .. }])
            if MOOD.fetch_add(1, Ordering::Relaxed).is_multiple_of(3) =>
        {
            outputs.reverse();
        }
        _ => {}
    }
}
