//! Bugs that this simulator has to find.

use std::net::SocketAddr;

use flowgate_core::counters::Counters;
use flowgate_core::{
    BackendEvent, Direction, DropReason, Instant, ManagerInput, Output, SendId, UdpManager,
};

use super::Balancer;

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Of copies the last one is forgotten.
    SkipsACopy,
    /// A copy is sent twice.
    CopiesTwice,
    /// What goes one way is sent twice.
    SendsTwiceOneWay,
    /// Backends that are down get copies.
    IgnoresProbes,
    /// Replies that come after the first one's go to the client too.
    PassesOnLosers,
    /// Replies go to the client that was replied to before.
    MixesClients,
    /// Flows that end when the mode changes keep their sockets.
    KeepsFlowsOverModes,
    /// A reload does not change the mode.
    IgnoresModes,
    /// A datagram is mirrored twice.
    MirrorsTwice,
    /// Some datagrams of a flow are not mirrored.
    MirrorsSome,
    /// Late replies go to the client that got one last.
    ServesLateReplies,
    /// Each copy counts as forwarded.
    CountsCopies,
    /// What went one way is never counted as forwarded.
    ForgetsDeliveries,
    /// What could not be sent is still queued.
    ForgetsLosses,
    /// A race is joined by nobody who comes later.
    ForgetsNewTargets,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::SkipsACopy,
        Self::CopiesTwice,
        Self::SendsTwiceOneWay,
        Self::IgnoresProbes,
        Self::PassesOnLosers,
        Self::MixesClients,
        Self::KeepsFlowsOverModes,
        Self::IgnoresModes,
        Self::MirrorsTwice,
        Self::MirrorsSome,
        Self::ServesLateReplies,
        Self::CountsCopies,
        Self::ForgetsDeliveries,
        Self::ForgetsLosses,
        Self::ForgetsNewTargets,
    ];
}

/// A manager with a bug.
#[derive(Clone, Debug)]
pub struct Planted {
    manager: UdpManager,
    bug: Bug,
    copies: u64,
    mirrors: u64,
    last_client: Option<SocketAddr>,
}

impl Planted {
    /// Plants a bug into a manager.
    pub const fn new(manager: UdpManager, bug: Bug) -> Self {
        Self { manager, bug, copies: 0, mirrors: 0, last_client: None }
    }

    /// Whether it does not hear something.
    fn is_deaf_to(&self, input: &ManagerInput<'_>) -> bool {
        match (self.bug, input) {
            (
                Bug::IgnoresProbes,
                ManagerInput::BackendChanged { event: BackendEvent::Down, .. },
            )
            | (Bug::ForgetsLosses, ManagerInput::Undelivered { .. })
            | (
                Bug::ForgetsDeliveries,
                ManagerInput::Delivered { send_id: SendId::OneWay(_), .. },
            ) => true,
            (Bug::IgnoresModes, ManagerInput::Configured(new)) => {
                new.config().cluster.mode != self.manager.config().cluster.mode
            }
            (
                Bug::ForgetsNewTargets,
                ManagerInput::BackendChanged { event: BackendEvent::Up, .. },
            ) => true,
            _ => false,
        }
    }

    fn corrupt<'p>(&mut self, input: &ManagerInput<'p>, outputs: &mut Vec<Output<'p>>) {
        let is_copy =
            |o: &Output<'p>| matches!(o, Output::SendOneWay { send_id: SendId::Copy(_), .. });
        self.copies += outputs.iter().filter(|output| is_copy(output)).count() as u64;
        let find =
            |outputs: &[Output<'p>], is: &dyn Fn(&Output<'p>) -> bool| outputs.iter().rposition(is);
        match self.bug {
            Bug::SkipsACopy => {
                if let Some(at) = find(outputs, &is_copy) {
                    outputs.remove(at);
                }
            }
            Bug::CopiesTwice => {
                if let Some(at) = find(outputs, &is_copy) {
                    outputs.insert(at, outputs[at]);
                }
            }
            Bug::SendsTwiceOneWay => {
                let is_one_way = |o: &Output<'p>| {
                    matches!(o, Output::SendOneWay { send_id: SendId::OneWay(_), .. })
                };
                if let Some(at) = find(outputs, &is_one_way) {
                    outputs.insert(at, outputs[at]);
                }
            }
            Bug::KeepsFlowsOverModes if matches!(input, ManagerInput::Configured(_)) => {
                outputs.retain(|output| !matches!(output, Output::CloseFlow { .. }));
            }
            Bug::MirrorsTwice | Bug::MirrorsSome => self.corrupt_mirrors(outputs),
            _ => self.corrupt_replies(input, outputs),
        }
    }

    fn corrupt_mirrors<'p>(&mut self, outputs: &mut Vec<Output<'p>>) {
        let is_mirror = |output: &Output<'p>| matches!(output, Output::Mirror { .. });
        let Some(at) = outputs.iter().position(is_mirror) else { return };
        self.mirrors += 1;
        if self.bug == Bug::MirrorsTwice {
            outputs.insert(at, outputs[at]);
        } else if self.mirrors.is_multiple_of(3) {
            outputs.remove(at);
        }
    }

    fn corrupt_replies<'p>(&mut self, input: &ManagerInput<'p>, outputs: &mut Vec<Output<'p>>) {
        let &ManagerInput::UpstreamBurst { upstream, tos, burst, .. } = input else { return };
        let is_dropped_for = |wanted| {
            outputs
                .iter()
                .any(|output| matches!(output, Output::Drop { reason, .. } if *reason == wanted))
        };
        let passed_on = match self.bug {
            Bug::PassesOnLosers if is_dropped_for(DropReason::NotFirst) => {
                let mut all = self.manager.flows();
                let of = all.find(|(_, flow)| flow.upstream() == upstream);
                of.map(|(id, flow)| (id, flow.client()))
            }
            Bug::ServesLateReplies if is_dropped_for(DropReason::UnknownFlow) => {
                self.manager.flows().map(|(id, _)| id).next().zip(self.last_client)
            }
            _ => None,
        };
        if let Some((flow, client)) = passed_on {
            let local = None;
            outputs.push(Output::SendToClient { flow, upstream, client, local, tos, burst });
        }
        for output in outputs {
            if let Output::SendToClient { client, .. } = output {
                let before = self.last_client.replace(*client);
                if self.bug == Bug::MixesClients {
                    *client = before.unwrap_or(*client);
                }
            }
        }
    }
}

impl Balancer for Planted {
    fn input<'p>(&mut self, input: ManagerInput<'p>, now: Instant, outputs: &mut Vec<Output<'p>>) {
        if !self.is_deaf_to(&input) {
            self.manager.handle_input(input, now, outputs);
        }
        self.corrupt(&input, outputs);
    }

    fn manager(&self) -> &UdpManager {
        &self.manager
    }

    fn counters(&self) -> Counters {
        let mut counters = self.manager.counters().clone();
        if self.bug == Bug::CountsCopies {
            counters.to_backend.forwarded.datagrams += self.copies;
        }
        debug_assert_eq!(Direction::ALL.len(), 2);
        counters
    }

    fn go_on_as(&mut self, manager: UdpManager) {
        self.manager = manager;
    }
}
