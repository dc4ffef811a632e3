//! The same happens to two managers: the kernel forwards what it is offered by the one, and refuses
//! whatever it is offered by the other. Nothing but speed may come of that.

use super::*;
use crate::PreparedConfig;
use crate::random::Random;

const CLIENTS: u64 = 12;
const STEPS: usize = 3_000;

#[derive(Clone, Copy, Debug)]
enum Happening {
    Question(u16),
    Answer(u16),
    Pause(u64),
    Event(u8, BackendEvent),
    Reload(u8),
    /// The kernel tells what it has forwarded, when it likes.
    Tell(u16),
}

fn happenings(seed: u64) -> Vec<Happening> {
    let mut random = Random::new(seed);
    let mut one = || {
        let who = random.below(CLIENTS) as u16;
        match random.below(200) {
            0..100 => Happening::Question(who),
            100..170 => Happening::Answer(who),
            170..185 => Happening::Pause(1 + random.below(40_000)),
            185..190 => Happening::Event(random.below(3) as u8, BackendEvent::Down),
            190..195 => Happening::Event(random.below(3) as u8, BackendEvent::Up),
            195..197 => Happening::Reload(random.below(3) as u8),
            _ => Happening::Tell(who),
        }
    };
    (0..STEPS).map(|_| one()).collect()
}

/// What the kernel has of a flow.
struct Entry {
    backend: BackendId,
    address: SocketAddr,
    is_open: bool,
    untold: [u64; 2],
    last: Option<Instant>,
}

/// One of the two.
struct Side {
    harness: Harness,
    /// `None`: the kernel refuses everything.
    table: Option<BTreeMap<FlowId, Entry>>,
    flows: BTreeMap<u16, FlowId>,
    /// Who has sent something to whom, and who has got something.
    questions: Vec<(u16, SocketAddr)>,
    answers: Vec<u16>,
    by_kernel: u64,
    now: Instant,
}

impl Side {
    fn new(has_kernel: bool) -> Self {
        let harness = offloading(|config| config.cluster.backends = three(0));
        let table = has_kernel.then(BTreeMap::new);
        let (flows, questions, answers) = (BTreeMap::new(), vec![], vec![]);
        Self { harness, table, flows, questions, answers, by_kernel: 0, now: at(1) }
    }

    /// The entry that a client's packets, or those for it, meet.
    fn entry(&mut self, who: u16) -> Option<&mut Entry> {
        let flow = self.flows.get(&who)?;
        self.table.as_mut()?.get_mut(flow).filter(|entry| entry.is_open)
    }

    fn happens(&mut self, what: Happening) {
        match what {
            Happening::Question(who) => self.ask(who),
            Happening::Answer(who) => self.answer(who),
            Happening::Pause(millis) => self.pass(millis),
            Happening::Event(backend, event) => {
                let backend = BackendId::new(usize::from(backend));
                self.tell(ManagerInput::BackendChanged { backend, event });
            }
            Happening::Reload(weights) => {
                let mut config = self.harness.manager.config().clone();
                config.cluster.backends = three(weights);
                self.tell(ManagerInput::Configured(&PreparedConfig::new(config)));
            }
            Happening::Tell(who) => {
                if let Some(&flow) = self.flows.get(&who) {
                    self.tell_activity(flow);
                }
            }
        }
    }

    fn ask(&mut self, who: u16) {
        let now = self.now;
        if let Some(entry) = self.entry(who) {
            entry.untold[0] += 1;
            entry.last = Some(now);
            let address = entry.address;
            self.questions.push((who, address));
            self.by_kernel += 1;
            return;
        }
        let burst = Burst::single(&[0; 100]).expect("a datagram");
        let source = client(who);
        self.tell(ManagerInput::ClientBurst { source, local: None, tos: 0, ttl: 64, burst });
    }

    fn answer(&mut self, who: u16) {
        let now = self.now;
        if let Some(entry) = self.entry(who) {
            entry.untold[1] += 1;
            entry.last = Some(now);
            self.answers.push(who);
            self.by_kernel += 1;
            return;
        }
        let flow = self.flows.get(&who).and_then(|flow| self.harness.manager.flow(*flow));
        let Some((upstream, backend)) = flow.map(|flow| (flow.upstream(), flow.backend())) else {
            return;
        };
        let Some(sender) = self.address(backend) else { return };
        let burst = Burst::single(&[0; 100]).expect("a datagram");
        self.tell(ManagerInput::UpstreamBurst { upstream, sender, tos: 0, burst });
    }

    fn address(&self, backend: BackendId) -> Option<SocketAddr> {
        self.harness.manager.backends().get(backend).map(|backend| backend.address())
    }

    fn pass(&mut self, millis: u64) {
        let until = self.now + Duration::from_millis(millis);
        while let Some(due) = self.harness.manager.poll_timeout().filter(|due| due.at <= until) {
            self.now = self.now.max(due.at);
            self.tell(ManagerInput::Timeout);
        }
        self.now = until;
    }

    fn tell_activity(&mut self, flow: FlowId) {
        let entry = self.table.as_mut().and_then(|table| table.get_mut(&flow));
        let Some(entry) = entry else { return };
        let [to_backend, to_client] = core::mem::take(&mut entry.untold).map(traffic);
        let (backend, last) = (entry.backend, entry.last);
        self.tell(ManagerInput::FlowActivity { flow, backend, to_backend, to_client, last });
    }

    /// Tells the manager, and does what it says.
    fn tell(&mut self, input: ManagerInput<'_>) {
        let outputs = self.harness.manager_only(input, self.now);
        for output in outputs {
            match output {
                Output::OpenFlow { flow, .. } => {
                    let who = self.client_of(flow);
                    self.flows.insert(who, flow);
                }
                Output::Send { flow, upstream, backend, .. } => {
                    let address = self.address(backend).expect("a backend");
                    let who = self.client_of(flow);
                    self.questions.push((who, address));
                    let send_id = SendId::Flow { flow, upstream };
                    self.delivered(send_id, Some(backend), Direction::ToBackend);
                }
                Output::SendToClient { flow, upstream, client, .. } => {
                    self.answers.push(client.port() - 1_000);
                    self.delivered(SendId::Flow { flow, upstream }, None, Direction::ToClient);
                }
                Output::Offload { flow, backend, address, .. } => {
                    let fresh =
                        Entry { backend, address, is_open: true, untold: [0; 2], last: None };
                    if let Some(table) = &mut self.table {
                        let entry = table.entry(flow).or_insert(fresh);
                        assert_eq!(entry.backend, backend, "it was not recalled");
                        entry.is_open = true;
                    }
                }
                Output::Recall { flow } => {
                    self.tell_activity(flow);
                    if let Some(table) = &mut self.table {
                        table.remove(&flow);
                    }
                }
                Output::RecallBackend { backend } => {
                    let all = self.table.iter_mut().flat_map(BTreeMap::values_mut);
                    let its = all.filter(|entry| entry.backend == backend);
                    its.for_each(|entry| entry.is_open = false);
                }
                Output::AskActivity { flow } if self.knows(flow) => self.tell_activity(flow),
                Output::AskActivity { flow } => {
                    let (backend, nothing) = (BackendId::new(0), traffic(0));
                    let (to_backend, to_client) = (nothing, nothing);
                    let last = None;
                    let none =
                        ManagerInput::FlowActivity { flow, backend, to_backend, to_client, last };
                    self.tell(none);
                }
                _ => {}
            }
        }
    }

    fn client_of(&self, flow: FlowId) -> u16 {
        let flow = self.harness.manager.flow(flow).expect("a flow");
        flow.client().port() - 1_000
    }

    fn knows(&self, flow: FlowId) -> bool {
        self.table.as_ref().is_some_and(|table| table.contains_key(&flow))
    }

    fn delivered(&mut self, send_id: SendId, backend: Option<BackendId>, direction: Direction) {
        let (datagrams, bytes) = (1, 100);
        self.tell(ManagerInput::Delivered { send_id, backend, direction, datagrams, bytes });
    }

    /// All that can be told of it at the end.
    fn outcome(&mut self) -> impl PartialEq + core::fmt::Debug {
        let flows: Vec<FlowId> = self.table.iter().flat_map(BTreeMap::keys).copied().collect();
        flows.into_iter().for_each(|flow| self.tell_activity(flow));
        let manager = &self.harness.manager;
        let counters = manager.counters();
        let ledgers = [Direction::ToBackend, Direction::ToClient].map(|direction| {
            let ledger = counters.ledger(direction);
            (ledger.received, ledger.forwarded, ledger.queued)
        });
        let closed =
            CloseReason::ALL.iter().map(|reason| counters.closed(*reason)).collect::<Vec<_>>();
        let backends: Vec<_> =
            manager.backends().iter().map(|(_, b)| (b.to, b.from, b.flows_active)).collect();
        (self.questions.clone(), self.answers.clone(), ledgers, closed, backends)
    }
}

/// Three backends, of which a reload weighs one otherwise.
fn three(heavy: u8) -> Vec<BackendConfig> {
    let of = |number: u8| BackendConfig {
        weight: if number == heavy { 3 } else { 1 },
        ..BackendConfig::new(backend(number + 1))
    };
    (0..3).map(of).collect()
}

#[test]
fn a_kernel_that_refuses_everything_makes_no_difference() {
    let mut by_kernel = 0;
    for seed in 0..20 {
        let (mut with, mut without) = (Side::new(true), Side::new(false));
        for happening in happenings(seed) {
            with.happens(happening);
            without.happens(happening);
        }
        assert_eq!(with.outcome(), without.outcome(), "seed {seed}");
        assert_eq!(without.by_kernel, 0);
        by_kernel += with.by_kernel;
    }
    assert!(by_kernel > 10_000, "the kernel has forwarded {by_kernel}");
}
