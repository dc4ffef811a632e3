//! Plays a recording through the core.
//!
//! As it was recorded, every manager is told the same as then, and decides the same: what it emits is
//! compared with what was emitted. With another configuration, or where not all was recorded, only what
//! came from outside is told: datagrams of clients, and of backends to whatever flow the client has by
//! then; timeouts come when this manager asks for them.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::ops::AddAssign;

use flowgate_config::{Config, Listener};
use flowgate_core::config::{BackendConfig, MAX_FLOWS, ManagerConfig};
use flowgate_core::snapshot::RestoreError;
use flowgate_core::{
    BackendEvent, BackendId, FlowId, Instant, ManagerInput, Output, Outputs, PreparedConfig,
    SendId, UdpManager, UpstreamId,
};
use serde::Serialize;

use crate::control::server::assign_indices;
use crate::observe::tap::address_of;
use crate::recording::codec::{InputDecoder, NoInputs, RecordedInput};
use crate::recording::digest::Digest;
use crate::recording::file::{RecordingBlock, RecordingHead, RecordingStart, StartState};

/// How many timeouts a manager may ask for between two inputs, lest a clock that leaps hold it up.
const MAX_TIMEOUTS: usize = 1_000_000;

/// How many stretches of time are told apart.
const MAX_STRETCHES: u64 = 100_000;

const SECOND: u64 = 1_000_000_000;

/// Why a recording cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum PlayError {
    /// What it starts from is not how a manager can stand.
    #[error("what the recording starts from: {0}")]
    State(#[from] RestoreError),
    /// A block holds something else than inputs.
    #[error(transparent)]
    Inputs(#[from] NoInputs),
    /// It tells of a shard whose start it does not tell.
    #[error("the recording tells of a listener and not how it stood: its writer is broken")]
    NoStart,
}

/// What came of playing.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PlayReport {
    /// How long it lasted, in seconds of the recording.
    pub seconds: f64,
    /// Bursts and other inputs.
    pub inputs: u64,
    /// Bursts of datagrams.
    pub bursts: u64,
    /// Datagrams that came, from both sides.
    pub datagrams: u64,
    /// Flows opened.
    pub flows_opened: u64,
    /// Flows that went on with another backend.
    pub flows_moved: u64,
    /// Flows closed, by reason.
    pub flows_closed: BTreeMap<String, u64>,
    /// Datagrams dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Datagrams of backends whose client had no flow.
    pub answers_without_flow: u64,
    /// Each backend by its address.
    pub backends: BTreeMap<SocketAddr, BackendShare>,
    /// Second by second, those in which something came.
    pub timeline: BTreeMap<u64, PlayStretch>,
    /// Blocks whose outputs were compared with the recorded ones.
    pub blocks_compared: u64,
    /// The first block in which they are others, as `listener, block number`.
    pub first_difference: Option<String>,
    /// Inputs that the recording says are missing in it.
    pub left_out: u64,
}

/// What one backend got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BackendShare {
    /// Flows that were opened to it.
    pub flows: u64,
    /// Datagrams that were sent to it.
    pub datagrams: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl AddAssign for BackendShare {
    fn add_assign(&mut self, more: Self) {
        let Self { flows, datagrams, bytes } = more;
        self.flows += flows;
        self.datagrams += datagrams;
        self.bytes += bytes;
    }
}

/// What came in a second.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PlayStretch {
    /// Datagrams.
    pub datagrams: u64,
    /// Flows opened.
    pub flows: u64,
    /// Datagrams dropped.
    pub dropped: u64,
    /// The same by reason.
    pub dropped_by: BTreeMap<&'static str, u64>,
}

impl AddAssign for PlayStretch {
    fn add_assign(&mut self, more: Self) {
        let Self { datagrams, flows, dropped, dropped_by } = more;
        self.datagrams += datagrams;
        self.flows += flows;
        self.dropped += dropped;
        for (reason, count) in dropped_by {
            *self.dropped_by.entry(reason).or_default() += count;
        }
    }
}

/// Where the datagrams of a client went, in the end.
pub type Destinations = BTreeMap<(String, SocketAddr), Option<SocketAddr>>;

/// Plays recordings.
pub struct Player<'c> {
    /// Another configuration than the recorded one.
    config: Option<&'c Config>,
    /// Whether what came from outside is told, and no more.
    is_free: bool,
    /// `None`: the configuration has no such listener, and what is told of it is left out.
    shards: BTreeMap<u32, Option<ShardPlay>>,
    /// The past of shards that began again, and where they sent.
    past: PlayReport,
    past_destinations: Destinations,
    head: RecordingHead,
    notes: Vec<String>,
}

struct ShardPlay {
    listener: String,
    manager: UdpManager,
    /// What the manager was told to do when this was recorded.
    recorded: ManagerConfig,
    is_free: bool,
    /// Whether it goes by another configuration than the recorded one.
    has_other_config: bool,
    /// What it goes over to with the first input, as with a reload.
    new_config: Option<PreparedConfig>,
    decoder: InputDecoder,
    tally: Tally,
    first: Option<Instant>,
    last: Instant,
    blocks: u64,
    report: PlayReport,
    memory: Vec<u8>,
}

/// What a manager emits, added up.
#[derive(Default)]
struct Tally {
    digest: Option<Digest>,
    shares: Vec<BackendShare>,
    /// The flows that a client has, the latest last, with some that it had: several where each of its
    /// questions is one.
    flows: HashMap<SocketAddr, Vec<FlowId>>,
    /// Where the datagrams of a client went last; `None`: nowhere.
    destinations: HashMap<SocketAddr, Option<BackendId>>,
    /// Whose datagrams are at hand.
    client: Option<SocketAddr>,
    dropped: u64,
    drops: BTreeMap<&'static str, u64>,
    /// Those since the last stretch.
    drops_now: BTreeMap<&'static str, u64>,
    closed: BTreeMap<&'static str, u64>,
    opened: u64,
    moved: u64,
}

impl<'c> Player<'c> {
    /// Plays as it was recorded, and compares.
    pub fn as_recorded() -> Self {
        Self::new(None, false)
    }

    /// Plays what came from outside, by another configuration or by the recorded one.
    pub fn with(config: Option<&'c Config>) -> Self {
        Self::new(config, true)
    }

    fn new(config: Option<&'c Config>, is_free: bool) -> Self {
        Self {
            config,
            is_free,
            shards: BTreeMap::new(),
            past: PlayReport::default(),
            past_destinations: Destinations::new(),
            head: RecordingHead::default(),
            notes: Vec::new(),
        }
    }

    /// What the recording says of itself.
    pub const fn head(&self) -> &RecordingHead {
        &self.head
    }

    /// Notes for the reader of the report.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Plays one block.
    ///
    /// # Errors
    ///
    /// When it says what cannot be.
    pub fn play(&mut self, block: RecordingBlock) -> Result<(), PlayError> {
        match block {
            RecordingBlock::Head(head) => self.head = head,
            RecordingBlock::Start(shard, start) => self.start(shard, *start)?,
            RecordingBlock::Gap(_, inputs) => self.past.left_out += inputs,
            RecordingBlock::Inputs { shard, piece, outputs } => {
                let shard = self.shards.get_mut(&shard).ok_or(PlayError::NoStart)?;
                let Some(shard) = shard else { return Ok(()) };
                if piece.is_fresh {
                    shard.decoder.restart();
                }
                shard.play(&piece.bytes, outputs)?;
            }
            RecordingBlock::End => {}
        }
        Ok(())
    }

    fn start(&mut self, number: u32, start: RecordingStart) -> Result<(), PlayError> {
        let RecordingStart { listener, state, .. } = start;
        let mut is_free = self.is_free;
        let (manager, recorded) = match state {
            StartState::Whole(snapshot) => {
                let config = snapshot.config().clone();
                (Some(UdpManager::restore(snapshot, None)?), config)
            }
            StartState::Config(config) => {
                is_free = true;
                (None, bounded(config))
            }
        };
        if let Some(former) = self.shards.remove(&number).flatten() {
            self.past_destinations.extend(former.destinations());
            former.finish(&mut self.past);
        }
        let new = self.config.and_then(|config| {
            let mut all = config.listeners.iter();
            config.listener(&listener).or_else(|| all.find(|l| l.address == recorded.address))
        });
        if self.config.is_some() && new.is_none() {
            // Each of its shards begins, and more than once.
            let note = format!("the configuration has no listener {listener:?}: left out");
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
            self.shards.insert(number, None);
            return Ok(());
        }
        let shard = ShardPlay::new(listener, manager, recorded, is_free, new);
        self.shards.insert(number, Some(shard));
        Ok(())
    }

    /// Plays inputs that come from elsewhere than a recording, to a manager that knows nothing yet.
    pub(crate) fn begin_with(&mut self, listener: &Listener, config: ManagerConfig) {
        let shard = ShardPlay::new(listener.name.clone(), None, config, true, None);
        self.shards.insert(0, Some(shard));
    }

    /// One input of that kind.
    pub(crate) fn tell(&mut self, input: RecordedInput<'_>, now: Instant) {
        if let Some(Some(shard)) = self.shards.get_mut(&0) {
            shard.input(input, now);
        }
    }

    /// Where the datagrams of each client of each listener went last.
    pub fn destinations(&self) -> Destinations {
        let mut all = self.past_destinations.clone();
        all.extend(self.shards.values().flatten().flat_map(ShardPlay::destinations));
        all
    }

    /// What came of it.
    pub fn report(mut self) -> PlayReport {
        for shard in std::mem::take(&mut self.shards).into_values().flatten() {
            shard.finish(&mut self.past);
        }
        self.past
    }
}

impl ShardPlay {
    fn new(
        listener: String,
        manager: Option<UdpManager>,
        recorded: ManagerConfig,
        is_free: bool,
        new: Option<&Listener>,
    ) -> Self {
        let manager =
            manager.unwrap_or_else(|| UdpManager::new(recorded.clone(), 1, Instant::ORIGIN));
        let is_free = is_free || new.is_some();
        let mut tally = Tally { digest: (!is_free).then(Digest::default), ..Tally::default() };
        for (id, flow) in manager.flows() {
            tally.flows.entry(flow.client()).or_default().push(id);
        }
        Self {
            listener,
            has_other_config: new.is_some(),
            new_config: new.map(|new| PreparedConfig::new(reconfigured(&recorded, new))),
            manager,
            recorded,
            is_free,
            decoder: InputDecoder::default(),
            tally,
            first: None,
            last: Instant::ORIGIN,
            blocks: 0,
            report: PlayReport::default(),
            memory: Vec::new(),
        }
    }

    /// Plays a block, behind which all outputs should have this sum.
    fn play(&mut self, bytes: &[u8], expected: u64) -> Result<(), NoInputs> {
        let mut decoder = std::mem::take(&mut self.decoder);
        let outcome = decoder.read(bytes, |input, now| self.input(input, now));
        self.decoder = decoder;
        outcome?;
        self.blocks += 1;
        if let Some(digest) = &self.tally.digest {
            self.report.blocks_compared += 1;
            if digest.value() != expected && self.report.first_difference.is_none() {
                self.report.first_difference =
                    Some(format!("{}, block {}", self.listener, self.blocks));
            }
        }
        Ok(())
    }

    fn input(&mut self, input: RecordedInput<'_>, now: Instant) {
        self.report.inputs += 1;
        if self.first.is_none() {
            self.first = Some(now);
            if let Some(prepared) = self.new_config.take() {
                self.manager.handle_input(
                    ManagerInput::Configured(&prepared),
                    now,
                    &mut self.tally,
                );
            }
        }
        self.last = now;
        let (opened, dropped) = (self.tally.opened, self.tally.dropped);
        if self.is_free {
            self.fire_timeouts(now);
        }
        let datagrams = match &input {
            RecordedInput::ClientBurst { form, .. } | RecordedInput::UpstreamBurst { form, .. } => {
                self.report.bursts += 1;
                form.datagrams()
            }
            _ => 0,
        };
        self.report.datagrams += datagrams;
        self.decide(input, now);
        let (flows, dropped) = (self.tally.opened - opened, self.tally.dropped - dropped);
        if datagrams > 0 || flows > 0 || dropped > 0 {
            let dropped_by = std::mem::take(&mut self.tally.drops_now);
            self.note(now, PlayStretch { datagrams, flows, dropped, dropped_by });
        }
    }

    fn note(&mut self, now: Instant, more: PlayStretch) {
        let first = self.first.unwrap_or(now);
        let second = (now.as_nanos().saturating_sub(first.as_nanos()) / SECOND).min(MAX_STRETCHES);
        *self.report.timeline.entry(second).or_default() += more;
    }

    fn decide(&mut self, input: RecordedInput<'_>, now: Instant) {
        let Self { manager, tally, memory, is_free, .. } = self;
        match input {
            RecordedInput::ClientBurst { source, local, tos, ttl, form } => {
                let Some(burst) = form.burst(memory) else { return };
                tally.client = Some(source);
                tally.destinations.insert(source, None);
                let input = ManagerInput::ClientBurst { source, local, tos, ttl, burst };
                manager.handle_input(input, now, tally);
                tally.client = None;
                tally.forget_the_ended(source, manager);
            }
            RecordedInput::UpstreamBurst { upstream, sender, client, tos, form } => {
                let Some(burst) = form.burst(memory) else { return };
                let route = if *is_free {
                    tally.route_to(client, burst.bytes(), manager)
                } else {
                    Some((upstream, sender))
                };
                match route {
                    Some((upstream, sender)) => {
                        let input = ManagerInput::UpstreamBurst { upstream, sender, tos, burst };
                        manager.handle_input(input, now, tally);
                    }
                    None => self.report.answers_without_flow += form.datagrams(),
                }
            }
            RecordedInput::Configured(config) => {
                self.recorded = (*config).clone();
                if !self.has_other_config {
                    let prepared = PreparedConfig::new(bounded(*config));
                    manager.handle_input(ManagerInput::Configured(&prepared), now, tally);
                }
            }
            RecordedInput::Plain(ManagerInput::BackendChanged { backend, event }) if *is_free => {
                self.backend_changed(backend, event, now);
            }
            RecordedInput::Plain(input) => {
                if !*is_free {
                    manager.handle_input(input, now, tally);
                }
            }
        }
    }

    /// What was said of a backend is said of the one that has its address.
    fn backend_changed(&mut self, recorded: BackendId, event: BackendEvent, now: Instant) {
        let address = self.recorded.cluster.backends.get(recorded.index()).map(|b| b.address);
        let mut all = self.manager.backends().iter();
        let found = all.find(|(_, backend)| Some(backend.address()) == address);
        let found = found.map(|(backend, _)| backend);
        drop(all);
        if let Some(backend) = found {
            let input = ManagerInput::BackendChanged { backend, event };
            self.manager.handle_input(input, now, &mut self.tally);
        }
    }

    fn fire_timeouts(&mut self, now: Instant) {
        for _ in 0..MAX_TIMEOUTS {
            match self.manager.poll_timeout() {
                Some(deadline) if deadline.at <= now => {
                    self.manager.handle_input(ManagerInput::Timeout, deadline.at, &mut self.tally);
                }
                _ => return,
            }
        }
    }

    fn destinations(&self) -> impl Iterator<Item = ((String, SocketAddr), Option<SocketAddr>)> {
        self.tally.destinations.iter().map(|(client, backend)| {
            let address = backend.and_then(|backend| address_of(backend, &self.manager));
            ((self.listener.clone(), *client), address)
        })
    }

    /// Adds what came of it to the report of all.
    fn finish(self, sum: &mut PlayReport) {
        let Self { manager, tally, report, first, last, .. } = self;
        let seconds = first.map_or(0.0, |first| (last - first).as_secs_f64());
        sum.seconds = sum.seconds.max(seconds);
        sum.inputs += report.inputs;
        sum.bursts += report.bursts;
        sum.datagrams += report.datagrams;
        sum.flows_opened += tally.opened;
        sum.flows_moved += tally.moved;
        sum.answers_without_flow += report.answers_without_flow;
        sum.blocks_compared += report.blocks_compared;
        sum.first_difference = sum.first_difference.take().or(report.first_difference);
        for (reason, count) in tally.closed {
            *sum.flows_closed.entry(reason.to_owned()).or_default() += count;
        }
        for (reason, count) in tally.drops {
            *sum.dropped.entry(reason.to_owned()).or_default() += count;
        }
        let shares = tally.shares.into_iter().chain(std::iter::repeat(BackendShare::default()));
        for ((_, backend), share) in manager.backends().iter().zip(shares) {
            *sum.backends.entry(backend.address()).or_default() += share;
        }
        for (second, stretch) in report.timeline {
            *sum.timeline.entry(second).or_default() += stretch;
        }
    }
}

impl Tally {
    /// What an answer to a client comes by, and from whom: of its flows the one it belongs to, where
    /// it says so, else the latest.
    fn route_to(
        &self,
        client: Option<SocketAddr>,
        answer: &[u8],
        manager: &UdpManager,
    ) -> Option<(UpstreamId, SocketAddr)> {
        let flows = self.flows.get(&client?)?;
        let routes = || flows.iter().rev().filter_map(|&id| Some((id, route_of(id, manager)?)));
        let belongs = |(flow, (upstream, sender)): &(FlowId, (UpstreamId, SocketAddr))| {
            manager.flow_of(*upstream, Some(*sender), answer) == Some(*flow)
        };
        routes().find(belongs).or_else(|| routes().next()).map(|(_, route)| route)
    }

    /// Forgets flows of a client that have ended, now and then.
    fn forget_the_ended(&mut self, client: SocketAddr, manager: &UdpManager) {
        if let Some(flows) = self.flows.get_mut(&client)
            && flows.len() >= 16
            && flows.len().is_power_of_two()
        {
            flows.retain(|&flow| manager.flow(flow).is_some());
        }
    }

    fn sent(&mut self, backend: BackendId, burst: &flowgate_core::Burst<'_>) {
        let share = self.share(backend);
        share.datagrams += u64::from(burst.count());
        share.bytes += burst.bytes().len() as u64;
        if let Some(client) = self.client {
            self.destinations.insert(client, Some(backend));
        }
    }

    fn share(&mut self, backend: BackendId) -> &mut BackendShare {
        if self.shares.len() <= backend.index() {
            self.shares.resize(backend.index() + 1, BackendShare::default());
        }
        &mut self.shares[backend.index()]
    }
}

impl<'p> Outputs<'p> for Tally {
    fn emit(&mut self, output: Output<'p>) {
        if let Some(digest) = &mut self.digest {
            digest.output(&output);
        }
        match output {
            Output::OpenFlow { flow, backend, has_moved, .. } => {
                if has_moved {
                    self.moved += 1;
                } else {
                    self.opened += 1;
                    self.share(backend).flows += 1;
                }
                if let Some(client) = self.client {
                    let flows = self.flows.entry(client).or_default();
                    if has_moved {
                        flows.retain(|known| *known != flow);
                    }
                    flows.push(flow);
                }
            }
            Output::Send { backend, burst, .. } => self.sent(backend, &burst),
            Output::SendOneWay { send_id, burst, .. } => match send_id {
                SendId::OneWay(backend) | SendId::Copy(backend) => self.sent(backend, &burst),
                SendId::Flow { .. } => {}
            },
            Output::CloseFlow { reason, .. } => {
                *self.closed.entry(reason.as_str()).or_default() += 1;
            }
            Output::Drop { reason, datagrams, .. } => {
                self.dropped += u64::from(datagrams);
                for drops in [&mut self.drops, &mut self.drops_now] {
                    *drops.entry(reason.as_str()).or_default() += u64::from(datagrams);
                }
            }
            // What was asked before is counted there.
            Output::Repeat(_)
            | Output::OpenUpstream { .. }
            | Output::OpenClient { .. }
            | Output::Offload { .. }
            | Output::Recall { .. }
            | Output::RecallBackend { .. }
            | Output::AskActivity { .. }
            | Output::SendToClient { .. }
            | Output::Mirror { .. }
            | Output::CloseUpstream { .. }
            | Output::RecordFlow { .. } => {}
        }
    }
}

/// What answers to a flow come by, and from whom.
fn route_of(flow: FlowId, manager: &UdpManager) -> Option<(UpstreamId, SocketAddr)> {
    let flow = manager.flow(flow)?;
    Some((flow.upstream(), manager.backends().get(flow.backend())?.address()))
}

/// Of a recording nobody knows who has written it: no table is larger than any manager's.
fn bounded(config: ManagerConfig) -> ManagerConfig {
    ManagerConfig { max_flows: config.max_flows.clamp(1, MAX_FLOWS), ..config }
}

/// What a manager would be told to do after a reload: backends keep their places. Names of backends
/// cannot be resolved here, and stand for nobody.
pub fn reconfigured(recorded: &ManagerConfig, new: &Listener) -> ManagerConfig {
    let mut wanted: Vec<BackendConfig> = new.cluster.backends(|_| Vec::new());
    for backend in &mut wanted {
        backend.address = new.backend_at(recorded.address.port(), backend.address);
    }
    let backend_list = assign_indices(&recorded.cluster.backends, &wanted, |_| false);
    let max_flows = new.max_flows.map_or(recorded.max_flows, |flows| flows.get());
    let (own_addresses, record_flows) = (recorded.own_addresses.clone(), recorded.record_flows);
    ManagerConfig {
        max_slots: recorded.max_slots,
        ..new.manager_config(recorded.address, max_flows, own_addresses, record_flows, backend_list)
    }
}

#[cfg(test)]
mod tests;
