//! Bugs made on purpose: what the simulator must find, or it proves nothing.

mod config;
mod failover;
mod outputs;
mod promise;
mod snapshot;

use std::collections::BTreeSet;
use std::time::Duration;

use flowgate_core::backend::Backend;
use flowgate_core::counters::Counters;
use flowgate_core::snapshot::ManagerSnapshot;
use flowgate_core::{
    BackendEvent, BackendId, Deadline, DeadlineReason, Direction, DropReason, Instant,
    ManagerInput, Output, UdpFlow, UdpManager, UpstreamId,
};

use self::failover::Before;
pub use self::promise::Promise;
use super::forge::FORGED_UPSTREAMS;
use super::{Setting, Subject};

/// Declares the bugs once: the variants, what they break, and the list of all.
macro_rules! bugs {
    ($($promise:expr => { $($variant:ident = $label:literal,)* })*) => {
        /// Something that a manager might do wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug { $($(#[doc = $label] $variant,)*)* }

        impl Bug {
            /// All of them.
            pub const ALL: &'static [Self] = &[$($(Self::$variant,)*)*];

            /// The promise that it breaks.
            pub const fn breaks(self) -> Promise {
                match self { $($(Self::$variant => $promise,)*)* }
            }

            /// What it does.
            pub const fn as_str(self) -> &'static str {
                match self { $($(Self::$variant => $label,)*)* }
            }
        }
    };
}

bugs! {
    Promise::Rule(1) => {
        SendsBeforeItOpens = "sends on a flow before it opens it",
        ClosesBeforeItSends = "closes a flow before it sends the last reply",
        OpensTwice = "opens the socket of a flow twice",
    }
    Promise::Rule(3) => {
        DropsSilently = "forgets to forward one burst in a hundred",
        CountsTwice = "counts an empty datagram twice",
        CountsNoDrop = "does not count what it drops while draining",
        CountsBeforeTheKernel = "counts what is queued as forwarded",
        ForgetsTheUndelivered = "does not count what the shell could not send",
    }
    Promise::Rule(4) => {
        HasAMood = "closes idle flows in an order that differs from run to run",
    }
    Promise::Rule(5) => {
        PanicsOnEmpty = "panics on an empty datagram of a backend",
        ServesStaleReplies = "gives a late reply to the flow that took the slot",
        ClosesTheSuccessor = "closes the flow that took the slot when a stale socket fails",
        GivesIdsAgain = "names a flow by its slot alone",
    }
    Promise::Rule(6) => {
        AsksForNowAgain = "asks for a timeout at the time of the last one",
        Oversleeps = "asks for a timeout a millisecond too late",
        ForgetsTheTimer = "asks for no timeout when one flow is left",
        EndsEarly = "believes that it is a nanosecond later",
        ForgetsTheDrainEnd = "asks for no timeout at the end of a drain",
    }
    Promise::Rule(7) => {
        OpensForTheRefused = "opens a socket for a datagram that it drops",
        AdmitsOneTooMany = "admits one flow more than the table may hold",
        AdmitsWhileDraining = "admits new flows while it drains",
    }
    Promise::Fidelity => {
        SwapsClients = "sends a reply to the client that was answered before",
        MixesLinks = "sends a reply to the same link-local address on another link",
        ForgetsLocal = "sends replies from any local address",
        CutsTheTail = "loses the short tail of a burst",
        MergesDatagrams = "sends a burst of two as one datagram",
        SendsTwice = "sends a burst of five twice",
        Reorders = "sends the second half of a burst first",
        ForgetsTos = "forgets the TOS byte of replies",
        ForgetsTheHeader = "leaves the PROXY header out behind an IPv6 client",
        RepeatsTheHeader = "puts a PROXY header on the second datagram too",
        ForwardsTheTooLarge = "forwards datagrams longer than it may",
        CutsNeedlessly = "cuts bursts where it need not",
        ForgetsTheClientsSocket = "asks for no socket of a client's own",
        ForgetsTheSource = "opens sockets from anywhere",
    }
    Promise::Lifetime => {
        ForgetsToClose = "forgets to close the socket of a complete flow",
        IgnoresResponses = "ignores `responses`",
        IgnoresRequests = "ignores `requests`",
        LivesTooLong = "keeps flows a millisecond too long",
        MixesReasons = "calls a complete flow idle",
    }
    Promise::Balance => {
        IgnoresLimits = "ignores `max_flows` of backends",
        IgnoresBackups = "uses backups as primaries",
        IgnoresWeights = "ignores weights",
        UsesTheWeightless = "uses backends of weight 0",
        IgnoresAffinity = "looks at the port where it must not",
        WrongAddress = "opens a socket to another backend than it says",
    }
    Promise::Limits => {
        IgnoresAllow = "serves clients that are not on the list",
        IgnoresDeny = "serves clients that are denied",
        ServesItself = "serves datagrams from its own address",
        IgnoresTtl = "opens a flow for a datagram that went in circles",
        KeepsTheTtl = "sends with the time to live that the datagram had",
        IgnoresFlowsPerSource = "ignores `flows_per_source`",
        IgnoresFlowsPerSubnet = "ignores `flows_per_subnet`",
        IgnoresTheRate = "ignores `new_flows_per_second_per_source`",
        ForgetsWhoOpens = "refuses one source for what others open",
        AllowsAFasterRate = "lets each source open one flow a second too many",
        IgnoresTheDatagramRate = "ignores `datagrams_per_second_per_source`",
        AllowsOneDatagramMore = "lets each source send one datagram a second too many",
        IgnoresTheByteRate = "ignores `bytes_per_second_per_source`",
        AllowsOneByteMore = "lets each source send one byte a second too many",
        IgnoresAmplification = "ignores `amplification`",
        AmplifiesABitMore = "sends a silent client one byte too many for each of its own",
        IgnoresUnansweredFlows = "ignores `unanswered_flows`",
        IgnoresUnansweredTimeout = "ignores `unanswered_timeout`",
        IgnoresTheSlots = "uses more sockets than there are",
        IgnoresTheOthers = "admits flows where others have all that there may be",
        EvictsAYoungerOne = "evicts a flow that is not the oldest without an answer",
        EvictsTheAnswered = "evicts a flow that was answered",
    }
    Promise::Reuse => {
        ForgetsTheQuarantine = "gives up a port that may still be answered",
        ShortensTheQuarantine = "gives up a port a millisecond too soon",
        IgnoresLateAnswers = "does not begin a quarantine again after a late answer",
        ForgetsTheIdle = "never closes the sockets that nobody wants",
        MixesSockets = "sends a flow's datagrams by the socket of another",
        ForgetsTheReceiver = "does not say whom a shared socket is to send to",
        TellsSocketsApartAlone = "takes whatever comes by a socket for its first backend's",
    }
    Promise::Failover => {
        KeepsUsingTheRemoved = "goes on with a backend that has been removed",
        ForgetsToReturn = "leaves flows with backups with `failback = \"all\"`",
        ForgetsToMove = "leaves flows where they are with `rehash`",
        MovesThePinned = "moves flows with `pin`",
        ClosesTheMoving = "ends flows with `rehash`",
        MovesTheClosing = "moves flows with `close`",
        MovesToWhereItWas = "opens the socket of a flow that moves to the backend that it had",
        LeavesTheFormerSocket = "leaves the former socket of a flow that moves open",
        ForgetsToIntroduce = "leaves the PROXY header out behind a flow that has moved",
        MiscountsMoves = "counts a flow that moves twice",
        ForgetsToSweep = "asks for no timeout when flows have to end at once",
        IgnoresFailOpen = "ignores `fail_open`",
        ForgetsToRepeat = "goes to another backend, and does not ask it",
        CountsARepeat = "counts a question that is asked again as another",
        RepeatsToTheFormer = "asks the backend again that it has asked",
        FailsOpenUnasked = "uses backends that are down without `fail_open`",
    }
    Promise::Health => {
        IgnoresProbes = "does not listen to the probes",
        IgnoresDrains = "gives a draining backend new flows",
        IgnoresUndrain = "does not take a backend back that is drained no more",
        DrainsWithoutEnd = "forgets when the drain of a backend ends",
        OneErrorIsEnough = "takes one error of the network for two",
        AnswersClearNothing = "remembers an error after an answer",
        MixesSigns = "counts silence as an error",
        WaitsForMoreSilence = "waits for one silent flow more than it is told",
        StaysOutTooLong = "leaves a backend out for a millisecond too long",
        ForgetsTheReturn = "asks for no timeout when a backend is to return",
    }
    Promise::Change => {
        ForgetsTheReplaced = "leaves flows open whose backend another has replaced",
        SwallowsTheNewcomer = "keeps a backend in a place that another takes",
        ForgetsTheStanding = "takes every backend for up when the configuration changes",
        RemembersTheRemoved = "takes a backend that comes back for as bad as it was",
        DisturbsTheTurns = "begins the turns again with every change",
        KeepsTheOldTimeout = "keeps the `idle_timeout` that it had",
        KeepsTheOldSource = "keeps the `source` that it had",
        KeepsTheOldTable = "keeps the `max_flows` that it had",
        ForgetsToRecount = "counts no flows that were there before their limit",
        IgnoresOtherListeners = "opens flows for datagrams of other listeners of ours",
    }
    Promise::Record => {
        LosesARecord = "writes nothing down of flows that it evicts",
        RecordsTooLate = "writes a flow down after its end",
        RecordsTheFirstBackend = "writes down the backend that a flow had first",
    }
    Promise::KernelPath => {
        ClosesWithoutAsking = "closes idle flows without asking what the kernel has forwarded",
        ForgetsToRecall = "leaves the entries of flows that end or move in the kernel",
        ForgetsTheGate = "lets the kernel forward to a backend that is lost",
        CountsActivityTwice = "counts what the kernel has forwarded twice",
        LosesTheLastActivity = "does not count what the kernel says last of a flow",
        GivesActivityToTheSuccessor = "takes the activity of a closed flow for its successor's",
        OffersWhatCounts = "lets the kernel forward flows whose datagrams it has to count",
        OffersTheUnanswered = "lets the kernel forward a flow before its first answer",
        KeepsOffersOverReloads = "lets the kernel go on when the configuration changes",
    }
    Promise::Snapshot => {
        LosesTheTurns = "forgets whose turn it is in a snapshot",
        LosesTheRandomness = "begins chance again after a snapshot",
        LosesTheOrderOfTimers = "turns round flows that end together in a snapshot",
        LosesTheOrderOfSlots = "turns round the slots that are free in a snapshot",
        LosesTheGeneration = "counts flow ids from the start after a snapshot",
        LosesTheRate = "forgets how fast sources open flows in a snapshot",
        LosesTheRest = "forgets two milliseconds of quarantines in a snapshot",
        LosesTheSigns = "forgets what speaks against backends in a snapshot",
        LosesTheDrains = "forgets which backends drain in a snapshot",
        LosesTheDrain = "forgets that it drains in a snapshot",
        LosesTheOldest = "turns round the flows without an answer in a snapshot",
        LosesTheFirstAnswer = "forgets when flows were answered in a snapshot",
        LosesTheIntroduction = "forgets which backends were told of a client in a snapshot",
        LosesTheSweep = "forgets that flows have to end in a snapshot",
        LosesTheProxies = "forgets whom proxies speak for in a snapshot",
    }
}

/// A manager with a bug.
#[derive(Clone, Debug)]
pub struct Planted {
    manager: UdpManager,
    bug: Bug,
    counters: Counters,
    /// Datagrams that were counted and should not have been.
    overcounted: u64,
    last_timeout: Option<Instant>,
    last_opened: Option<Instant>,
    /// Backends against which there was an error that is not forgotten.
    blamed: BTreeSet<BackendId>,
    /// Errors of the network that there never were.
    errors_made_up: u64,
    memory: outputs::Memory,
}

impl Planted {
    /// A manager with a bug.
    pub fn new(setting: &Setting, bug: Bug) -> Self {
        let mut setting = setting.clone();
        config::misread(&mut setting.config, bug);
        Self {
            manager: UdpManager::from(&setting),
            bug,
            counters: Counters::default(),
            overcounted: 0,
            last_timeout: None,
            last_opened: None,
            blamed: BTreeSet::new(),
            errors_made_up: 0,
            memory: outputs::Memory::default(),
        }
    }

    /// What it believes to have been told; `None` where it does not listen.
    fn mishear<'p>(&self, input: ManagerInput<'p>) -> Option<ManagerInput<'p>> {
        let in_the_slot_of = |stale: UpstreamId| {
            let mut ids = self.manager.flows().map(|(_, flow)| flow.upstream());
            ids.find(|id| id.index() == stale.index()).unwrap_or(stale)
        };
        let sends_by = |upstream: UpstreamId| {
            let mut flows = self.manager.flows().map(|(_, flow)| flow);
            flows.find(|flow| flow.upstream() == upstream).map(UdpFlow::backend)
        };
        match (self.bug, input) {
            (Bug::ForgetsTheUndelivered, ManagerInput::Undelivered { .. })
            | (Bug::AdmitsWhileDraining, ManagerInput::Drain { .. }) => None,
            (
                Bug::ServesStaleReplies | Bug::GivesIdsAgain,
                ManagerInput::UpstreamBurst { upstream, sender, tos, burst },
            ) => {
                let upstream = in_the_slot_of(upstream);
                Some(ManagerInput::UpstreamBurst { upstream, sender, tos, burst })
            }
            (Bug::ClosesTheSuccessor, ManagerInput::UpstreamOpenFailed { upstream }) => {
                Some(ManagerInput::UpstreamOpenFailed { upstream: in_the_slot_of(upstream) })
            }
            (
                Bug::TellsSocketsApartAlone,
                ManagerInput::UpstreamBurst { upstream, sender, tos, burst },
            ) => {
                let backend = sends_by(upstream).and_then(|id| self.manager.backends().get(id));
                let sender = backend.map_or(sender, Backend::address);
                Some(ManagerInput::UpstreamBurst { upstream, sender, tos, burst })
            }
            (
                Bug::IgnoresLateAnswers,
                ManagerInput::UpstreamBurst { upstream, sender, tos, burst },
            ) if sends_by(upstream).is_none() => {
                let upstream = FORGED_UPSTREAMS[2];
                Some(ManagerInput::UpstreamBurst { upstream, sender, tos, burst })
            }
            (Bug::LosesTheLastActivity, ManagerInput::FlowActivity { flow, .. })
                if self.manager.flow(flow).is_none() =>
            {
                None
            }
            (
                Bug::GivesActivityToTheSuccessor,
                ManagerInput::FlowActivity { flow, backend, to_backend, to_client, last },
            ) => {
                let mut alive = self.manager.flows().map(|(id, _)| id);
                let flow = alive.find(|id| id.index() == flow.index()).unwrap_or(flow);
                Some(ManagerInput::FlowActivity { flow, backend, to_backend, to_client, last })
            }
            (
                Bug::CountsActivityTwice,
                ManagerInput::FlowActivity { flow, backend, to_backend, to_client, last },
            ) => Some(ManagerInput::FlowActivity {
                flow,
                backend,
                to_backend: to_backend.plus(to_backend),
                to_client,
                last,
            }),
            (bug, ManagerInput::BackendChanged { backend, event }) => {
                let event = mishear_news(bug, event)?;
                Some(ManagerInput::BackendChanged { backend, event })
            }
            (Bug::IgnoresTtl, ManagerInput::ClientBurst { source, local, tos, ttl, burst }) => {
                let ttl = ttl.max(2);
                Some(ManagerInput::ClientBurst { source, local, tos, ttl, burst })
            }
            (Bug::PanicsOnEmpty, ManagerInput::UpstreamBurst { burst, .. }) => {
                assert!(!burst.bytes().is_empty(), "an empty datagram");
                Some(input)
            }
            _ => Some(input),
        }
    }

    /// Whether it takes a client without a flow for anyone who has opened one at the same moment.
    fn blames_another(&self, input: &ManagerInput<'_>, now: Instant) -> bool {
        let ManagerInput::ClientBurst { source, .. } = input else { return false };
        let limits = &self.manager.config().cluster.limits;
        self.bug == Bug::ForgetsWhoOpens
            && limits.new_flows_per_second_per_source == 1
            && self.last_opened == Some(now)
            && self.manager.flows().all(|(_, flow)| flow.client().ip() != source.ip())
    }

    fn miscount(&mut self, input: &ManagerInput<'_>) {
        if let ManagerInput::ClientBurst { burst, .. } = input
            && burst.bytes().is_empty()
        {
            self.overcounted += 1;
        }
        self.counters = self.manager.counters().clone();
        self.counters.upstream_errors -= self.errors_made_up;
        if self.bug == Bug::MiscountsMoves {
            self.counters.flows_moved *= 2;
        }
        let ledger = &mut self.counters.to_backend;
        match self.bug {
            Bug::CountsTwice => {
                ledger.received.datagrams += self.overcounted;
                ledger.forwarded.datagrams += self.overcounted;
            }
            Bug::CountsBeforeTheKernel => {
                let queued = std::mem::take(&mut ledger.queued);
                ledger.forwarded.datagrams += queued.datagrams;
                ledger.forwarded.bytes += queued.bytes;
            }
            Bug::CountsNoDrop => {
                let dropped = std::mem::take(&mut ledger.dropped[DropReason::Draining as usize]);
                ledger.received.datagrams -= dropped.datagrams;
                ledger.received.bytes -= dropped.bytes;
            }
            _ => {}
        }
    }
}

/// What it believes to have been told of a backend; `None` where it does not listen.
fn mishear_news(bug: Bug, event: BackendEvent) -> Option<BackendEvent> {
    match (bug, event) {
        (Bug::IgnoresProbes, BackendEvent::Down)
        | (Bug::IgnoresDrains, BackendEvent::Drain { .. })
        | (Bug::IgnoresUndrain, BackendEvent::Undrain) => None,
        (Bug::DrainsWithoutEnd, BackendEvent::Drain { .. }) => {
            Some(BackendEvent::Drain { deadline: None })
        }
        _ => Some(event),
    }
}

/// Counts and drops what it was given, as if its source opened flows too fast.
fn refuse<'p>(manager: &mut UdpManager, input: &ManagerInput<'p>, outputs: &mut Vec<Output<'p>>) {
    let ManagerInput::ClientBurst { burst, .. } = input else { return };
    let (direction, reason) = (Direction::ToBackend, DropReason::SourceRate);
    let (datagrams, bytes) = (burst.count(), burst.bytes().len() as u64);
    let refused = ManagerInput::Unusable { direction, reason, datagrams: datagrams.into(), bytes };
    manager.handle_input(refused, Instant::ORIGIN, outputs);
    outputs.push(Output::Drop { direction, reason, datagrams });
}

impl Subject for Planted {
    fn handle_input<'p>(
        &mut self,
        input: ManagerInput<'p>,
        now: Instant,
        outputs: &mut Vec<Output<'p>>,
    ) {
        let believed_time = match self.bug {
            Bug::EndsEarly => now + Duration::from_nanos(1),
            _ => now,
        };
        let opened_before = self.manager.counters().flows_opened;
        let before = Before::of(&self.manager, self.bug, &input);
        if let ManagerInput::Configured(new) = input {
            self.misconfigure(new, believed_time, outputs);
        } else if self.blames_another(&input, now) {
            refuse(&mut self.manager, &input, outputs);
        } else if let Some(believed) = self.mishear(input) {
            self.manager.handle_input(believed, believed_time, outputs);
        }
        if self.bug == Bug::KeepsOffersOverReloads && matches!(input, ManagerInput::Configured(_)) {
            outputs.retain(|output| !matches!(output, Output::RecallBackend { .. }));
        }
        self.slander(&before, &input, outputs, believed_time);
        self.memory.corrupt(self.bug, &self.manager, outputs);
        if self.manager.counters().flows_opened > opened_before {
            self.last_opened = Some(now);
        }
        self.miscount(&input);
        self.last_timeout = matches!(input, ManagerInput::Timeout).then_some(now);
    }

    fn poll_timeout(&self) -> Option<Deadline> {
        let mut asked = self.manager.poll_timeout()?;
        match self.bug {
            Bug::AsksForNowAgain => asked.at = self.last_timeout.unwrap_or(asked.at),
            Bug::Oversleeps => asked.at += Duration::from_millis(1),
            Bug::ForgetsTheTimer if self.manager.flow_count() == 1 => return None,
            Bug::ForgetsTheDrainEnd if asked.reason == DeadlineReason::DrainEnd => return None,
            Bug::ForgetsToSweep if asked.reason == DeadlineReason::Sweep => return None,
            Bug::ForgetsTheReturn if asked.reason == DeadlineReason::BackendEvent => return None,
            _ => {}
        }
        Some(asked)
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }

    fn manager(&self) -> &UdpManager {
        &self.manager
    }

    fn manager_mut(&mut self) -> &mut UdpManager {
        &mut self.manager
    }

    fn snapshot(&mut self) -> ManagerSnapshot {
        snapshot::forget(self.bug, self.manager.snapshot())
    }

    fn replace(&mut self, manager: UdpManager) {
        self.manager = manager;
    }
}
