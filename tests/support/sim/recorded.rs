//! Recordings as scenarios: what happened in production, played by the cast of the simulator.
//!
//! The configuration is the recorded one, as far as the model knows it: what is about addresses is about
//! those of the cast, and the table is small. Each client is one of the cast, in the order in which they
//! come; what they send has the recorded sizes and comes at the recorded times. What it carries is tagged,
//! as in any run, so that the world can tell whom each datagram is for. What backends answer is what they
//! have been asked; those that never did in the recording never do.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::net::SocketAddr;

use flowgate::recording::codec::{BurstForm, InputDecoder, RecordedInput};
use flowgate::recording::file::{RecordingBlock, RecordingReader, StartState};
use flowgate_core::config::{Affinity, BackendConfig, ManagerConfig, Mode, QuicLb, Source};
use flowgate_core::{BackendEvent, Instant, ManagerInput};

use crate::modes;

use super::setting::{LARGEST_TABLE, NAMED_BY_PARTY, PARTIES, Party};
use super::{
    Action, BackendPick, Change, Fate, FlowPick, News, Pause, Setting, SocketFailure, Temper,
    Train, When,
};

/// The most backends of a scenario: the cast has a byte for the place of each.
const MOST_BACKENDS: usize = 250;

/// The longest silence that is played: a recording that is idle for days is no longer than that.
const LONGEST_SILENCE_MILLIS: u64 = 4_000_000;

/// What a recording tells of one shard, from one start on.
#[derive(Debug)]
pub struct Scenario {
    /// The name of its listener.
    pub listener: String,
    /// What is built. In another mode than a session's it is for [`modes::report_of`].
    pub setting: Setting,
    /// What happens.
    pub actions: Vec<Action>,
    /// Inputs that have no counterpart in the simulator.
    pub left_out: u64,
}

impl Scenario {
    /// The scenarios in a recording, as far as that can be read.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn read_all(recording: impl Read) -> Result<Vec<Self>, String> {
        let mut reader = RecordingReader::new(recording).map_err(|error| error.to_string())?;
        let mut tellers: HashMap<u32, Teller> = HashMap::new();
        let mut all = Vec::new();
        while let Some(block) = reader.next_block().map_err(|error| error.to_string())? {
            match block {
                RecordingBlock::Start(shard, start) => {
                    let config = match start.state {
                        StartState::Whole(snapshot) => snapshot.config().clone(),
                        StartState::Config(config) => config,
                    };
                    let former = tellers.remove(&shard);
                    all.extend(former.map(Teller::finish));
                    tellers.insert(shard, Teller::new(start.listener, config));
                }
                RecordingBlock::Inputs { shard, piece, .. } => {
                    let Some(teller) = tellers.get_mut(&shard) else { continue };
                    teller.hear_all(&piece.bytes, piece.is_fresh)?;
                }
                RecordingBlock::Head(_) | RecordingBlock::Gap(..) | RecordingBlock::End => {}
            }
        }
        let mut last: Vec<_> = tellers.into_iter().collect();
        last.sort_by_key(|(shard, _)| *shard);
        all.extend(last.into_iter().map(|(_, teller)| teller.finish()));
        Ok(all)
    }
}

/// Turns the inputs of one shard into actions.
struct Teller {
    listener: String,
    config: ManagerConfig,
    decoder: InputDecoder,
    now: Option<Instant>,
    actions: Vec<Action>,
    parties: Vec<u8>,
    cast: HashMap<SocketAddr, u8>,
    answering: HashSet<SocketAddr>,
    left_out: u64,
}

impl Teller {
    fn new(listener: String, config: ManagerConfig) -> Self {
        let can_play = |number: &u8| Party::new(*number).can_be_answered();
        Self {
            listener,
            config,
            decoder: InputDecoder::default(),
            now: None,
            actions: Vec::new(),
            parties: (0..PARTIES).filter(can_play).collect(),
            cast: HashMap::new(),
            answering: HashSet::new(),
            left_out: 0,
        }
    }

    fn finish(self) -> Scenario {
        let Self { listener, config, mut actions, answering, mut left_out, .. } = self;
        let setting = setting(&config, &answering);
        if !is_session(setting.config.cluster.mode) {
            let all = actions.len();
            actions.retain(modes::can_play);
            left_out += (all - actions.len()) as u64;
        }
        Scenario { listener, setting, actions, left_out }
    }

    fn hear_all(&mut self, bytes: &[u8], is_fresh: bool) -> Result<(), String> {
        let mut decoder = std::mem::take(&mut self.decoder);
        if is_fresh {
            decoder.restart();
        }
        let outcome = decoder.read(bytes, |input, now| self.hear(&input, now));
        self.decoder = decoder;
        outcome.map_err(|error| error.to_string())
    }

    fn hear(&mut self, input: &RecordedInput<'_>, now: Instant) {
        let before = *self.now.get_or_insert(now);
        self.wait(now.as_nanos().saturating_sub(before.as_nanos()));
        self.now = Some(now);
        match input {
            RecordedInput::ClientBurst { source, tos, ttl, form, .. } => {
                let next = self.parties[self.cast.len() % self.parties.len()];
                let party = *self.cast.entry(*source).or_insert(next);
                let (train, fate) = (train(form), Fate::Now);
                self.actions.push(Action::Send { party, tos: *tos, ttl: *ttl, train, fate });
            }
            RecordedInput::UpstreamBurst { sender, .. } => {
                self.answering.insert(*sender);
                self.actions.push(Action::Answer { pick: 0, coalesced: true, fate: Fate::Now });
            }
            RecordedInput::Configured(config) => self.reconfigure(config),
            RecordedInput::Plain(input) => self.hear_plain(input, now),
        }
    }

    fn hear_plain(&mut self, input: &ManagerInput<'static>, now: Instant) {
        self.actions.push(match *input {
            ManagerInput::Timeout => Action::Timeout(When::Now),
            ManagerInput::Reading { is_behind } => Action::Read { is_behind },
            ManagerInput::Unusable { direction, reason, datagrams, .. } => {
                Action::Unusable { direction, reason, datagrams }
            }
            ManagerInput::UpstreamOpenFailed { .. } => {
                Action::Fail { flow: FlowPick::Live(0), failure: SocketFailure::NotOpened }
            }
            ManagerInput::UpstreamError { error, .. } => {
                Action::Fail { flow: FlowPick::Live(0), failure: SocketFailure::Network(error) }
            }
            ManagerInput::BackendChanged { backend, event } => Action::News {
                backend: BackendPick::Known(backend.index().min(255) as u8),
                event: match event {
                    BackendEvent::Up => News::Up,
                    BackendEvent::Down => News::Down,
                    BackendEvent::Unprobed => News::Unprobed,
                    BackendEvent::Undrain => News::Undrain,
                    BackendEvent::Drain { deadline } => {
                        News::Drain(deadline.map(|deadline| deadline.saturating_since(now)))
                    }
                },
            },
            ManagerInput::NetworkChanged => Action::NetworkChanges,
            ManagerInput::RoomWanted => Action::WantRoom,
            ManagerInput::TakenElsewhere { flows, slots } => Action::Others { flows, slots },
            ManagerInput::Drain { deadline } => {
                Action::Drain { patience: deadline.saturating_since(now) }
            }
            // The world says by itself what the kernel has taken.
            ManagerInput::Delivered { .. } => return,
            _ => {
                self.left_out += 1;
                return;
            }
        });
    }

    /// Weights, and who is there: the rest of a reload is left out.
    fn reconfigure(&mut self, config: &ManagerConfig) {
        let (old, new) = (&self.config.cluster.backends, &config.cluster.backends);
        let mut actions = Vec::new();
        for (index, (old, new)) in old.iter().zip(new).take(MOST_BACKENDS).enumerate() {
            let index = index as u8;
            let mut change = |change| {
                actions.push(Action::Reconfigure { change, patient: false });
            };
            match (old.removed, new.removed) {
                (false, true) => change(Change::Remove(index)),
                (true, false) => change(Change::Return(index)),
                _ => {}
            }
            if old.weight != new.weight {
                change(Change::Weight(index, new.weight));
            }
        }
        self.left_out += u64::from(actions.is_empty());
        self.actions.extend(actions);
        self.config.cluster.backends.clone_from(new);
    }

    fn wait(&mut self, nanos: u64) {
        let mut millis = (nanos / 1_000_000).min(LONGEST_SILENCE_MILLIS);
        while millis > 0 {
            let part = millis.min(u16::MAX.into());
            self.actions.push(Action::Wait(Pause::Millis(part as u16)));
            millis -= part;
        }
        let rest = (nanos % 1_000_000).min(u16::MAX.into()) as u16;
        if rest > 0 {
            self.actions.push(Action::Wait(Pause::Nanos(rest)));
        }
    }
}

const fn is_session(mode: Mode) -> bool {
    matches!(mode, Mode::Session { .. })
}

fn train(form: &BurstForm<'_>) -> Train {
    let count = form.datagrams();
    let len = if count > 1 { form.stride } else { form.len };
    let whole = u64::from(len) * count;
    let short_by = u16::try_from(whole.saturating_sub(form.len.into())).unwrap_or(0);
    Train { len, count: count.min(u8::MAX.into()) as u8, short_by }
}

/// A setting of the simulator that is as much like a configuration as can be.
fn setting(config: &ManagerConfig, answering: &HashSet<SocketAddr>) -> Setting {
    let mut own = config.clone();
    own.address = "192.0.2.53:53".parse().expect("an address");
    own.max_flows = own.max_flows.min(LARGEST_TABLE);
    own.max_datagram_size = own.max_datagram_size.max(8);
    (own.allow, own.deny, own.own_addresses) = (Vec::new(), Vec::new(), Vec::new());
    own.accept_proxy_protocol = Vec::new();
    own.offload = false;
    let cluster = &mut own.cluster;
    let is_session = is_session(cluster.mode);
    if is_session {
        cluster.mode = Mode::SESSION;
    }
    cluster.quic_lb = QuicLb::default();
    if cluster.affinity != Affinity::SourceIp {
        cluster.affinity = Affinity::SourceIpPort;
    }
    cluster.transactions = cluster.transactions.map(|_| NAMED_BY_PARTY);
    if let Source::Local(_) = cluster.source {
        cluster.source = Source::Any;
    }
    let recorded: Vec<BackendConfig> =
        cluster.backends.iter().copied().take(MOST_BACKENDS).collect();
    let of_cast = |(index, recorded): (usize, &BackendConfig)| BackendConfig {
        address: ([10, 0, 0, index as u8], 53).into(),
        server_id: None,
        answers: is_session || recorded.answers,
        ..*recorded
    };
    cluster.backends = recorded.iter().enumerate().map(of_cast).collect();
    let temper = |backend: &BackendConfig| {
        let answers = answering.is_empty() || answering.contains(&backend.address);
        if answers { Temper::Echo } else { Temper::Silent }
    };
    Setting {
        config: own,
        manager_seed: 1,
        start: Instant::ORIGIN,
        tempers: recorded.iter().map(temper).collect(),
    }
}
