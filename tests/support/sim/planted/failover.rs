//! Bugs about backends that are down, and about changes of the configuration.

use std::collections::BTreeMap;

use flowgate_core::backend::Backend;
use flowgate_core::config::Balance;
use flowgate_core::{
    BackendEvent, BackendId, CloseReason, FlowId, Instant, ManagerInput, NetworkError, Output,
    PreparedConfig, UdpFlow, UdpManager,
};

use super::{Bug, Planted, config};

/// What the bugs need to know of a manager before it handles an input.
#[derive(Debug, Default)]
pub(super) struct Before {
    /// The flows that are owed an answer, and by whom.
    owed: Vec<(FlowId, BackendId)>,
    /// The backend of the flow that the input is about.
    backend: Option<BackendId>,
}

impl Before {
    pub(super) fn of(manager: &UdpManager, bug: Bug, input: &ManagerInput<'_>) -> Self {
        let &(ManagerInput::UpstreamError { upstream, .. }
        | ManagerInput::UpstreamBurst { upstream, .. }) = input
        else {
            let is_owed = bug == Bug::MixesSigns && manager.config().cluster.responses > 0;
            let flows = manager.flows().filter(|(_, flow)| is_owed && !flow.is_answered());
            let owed = flows.map(|(id, flow)| (id, flow.backend())).collect();
            return Self { owed, backend: None };
        };
        let flow = manager.flows().find(|(_, flow)| flow.upstream() == upstream);
        Self { owed: vec![], backend: flow.map(|(_, flow)| flow.backend()) }
    }
}

impl Planted {
    /// Tells the manager of a configuration, as it understands it.
    pub(super) fn misconfigure<'p>(
        &mut self,
        new: &PreparedConfig,
        now: Instant,
        outputs: &mut Vec<Output<'p>>,
    ) {
        let mut believed = new.config().clone();
        config::misread(&mut believed, self.bug);
        config::misread_change(&mut believed, &self.manager, self.bug);
        let mut steps = vec![];
        if self.bug == Bug::DisturbsTheTurns && believed.cluster.balance == Balance::RoundRobin {
            let mut other = believed.clone();
            other.cluster.balance = Balance::LeastFlows;
            steps.push(PreparedConfig::new(other));
        }
        let is_honest = believed == *new.config();
        steps.push(if is_honest { new.clone() } else { PreparedConfig::new(believed) });

        let down_before = self.which_are_down();
        for step in &steps {
            let mut said = vec![];
            self.manager.handle_input(ManagerInput::Configured(step), now, &mut said);
            for output in said {
                if let Some(output) = without_bytes(output) {
                    outputs.push(output);
                }
            }
        }
        match self.bug {
            Bug::ForgetsTheReplaced => {
                outputs.retain(|output| !matches!(output, Output::CloseFlow { .. }));
            }
            Bug::ForgetsTheStanding => {
                self.say_of(&down_before, &[BackendEvent::Up, BackendEvent::Undrain], now);
            }
            Bug::RemembersTheRemoved => self.say_of(&down_before, &[BackendEvent::Down], now),
            _ => {}
        }
    }

    fn which_are_down(&self) -> Vec<BackendId> {
        let backends = self.manager.backends().iter();
        backends.filter(|(_, backend)| !backend.is_up()).map(|(id, _)| id).collect()
    }

    fn say_of(&mut self, backends: &[BackendId], event: &[BackendEvent], now: Instant) {
        for &backend in backends {
            for &event in event {
                let input = ManagerInput::BackendChanged { backend, event };
                self.manager.handle_input(input, now, &mut vec![]);
            }
        }
    }

    /// Holds against backends what is nothing, or what is over.
    pub(super) fn slander(
        &mut self,
        before: &Before,
        input: &ManagerInput<'_>,
        outputs: &[Output<'_>],
        now: Instant,
    ) {
        match (self.bug, *input, before.backend) {
            (Bug::OneErrorIsEnough, ManagerInput::UpstreamError { .. }, Some(backend)) => {
                self.blame(backend, now);
            }
            (Bug::AnswersClearNothing, ManagerInput::UpstreamError { .. }, Some(backend)) => {
                self.blamed.insert(backend);
            }
            // An error counts only if it is about something that was sent after the answer.
            (Bug::AnswersClearNothing, ManagerInput::ClientBurst { .. }, _) => {
                let sent = outputs.iter().find_map(|output| match *output {
                    Output::Send { flow, .. } => Some(flow),
                    _ => None,
                });
                let is_blamed = |flow: &FlowId| {
                    let backend = self.manager.flow(*flow).map(UdpFlow::backend);
                    backend.is_some_and(|backend| self.blamed.contains(&backend))
                };
                if let Some(flow) = sent.filter(is_blamed) {
                    self.report_error(flow, now);
                }
            }
            (Bug::MixesSigns, ..) => {
                let owed: BTreeMap<_, _> = before.owed.iter().copied().collect();
                for output in outputs {
                    if let Output::CloseFlow { flow, reason: CloseReason::Idle, .. } = output
                        && let Some(&backend) = owed.get(flow)
                    {
                        self.blame(backend, now);
                    }
                }
            }
            _ => {}
        }
    }

    /// Makes a manager believe that the network reports an error on the way to a backend.
    fn blame(&mut self, backend: BackendId, now: Instant) {
        let flow = self.manager.flows().find(|(_, flow)| flow.backend() == backend);
        if let Some((flow, _)) = flow {
            self.report_error(flow, now);
        }
    }

    fn report_error(&mut self, flow: FlowId, now: Instant) {
        let Some(known) = self.manager.flow(flow) else { return };
        let backend = self.manager.backends().get(known.backend());
        let (upstream, remote) = (known.upstream(), backend.map(Backend::address));
        let error = NetworkError::Refused;
        let input = ManagerInput::UpstreamError { upstream, remote, question: None, error };
        self.manager.handle_input(input, now, &mut vec![]);
        self.errors_made_up += 1;
    }
}

/// The same output, if it sends nothing. A change of the configuration sends nothing.
fn without_bytes(output: Output<'_>) -> Option<Output<'static>> {
    match output {
        Output::CloseFlow { flow, upstream, reason } => {
            Some(Output::CloseFlow { flow, upstream, reason })
        }
        Output::CloseUpstream { upstream } => Some(Output::CloseUpstream { upstream }),
        Output::RecordFlow { flow, record } => Some(Output::RecordFlow { flow, record }),
        _ => None,
    }
}
