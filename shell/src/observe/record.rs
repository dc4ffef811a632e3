//! The tap of `flowgate record`: what managers are told, as blocks of a recording.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use flowgate_core::backend::BackendState;
use flowgate_core::config::{Affinity, ManagerConfig};
use flowgate_core::transaction::Transactions;
use flowgate_core::{
    BackendEvent, BackendId, Direction, Instant, ManagerInput, Output, SendId, UdpManager,
};
use siphasher::sip::SipHasher24;
use tokio::time::{Sleep, sleep};

use crate::datapath::role::Role;
use crate::observe::feed::{self, Rx, Tx};
use crate::observe::tap::Subject;
use crate::recording::codec::{InputEncoder, InputPiece, Mark};
use crate::recording::digest::Digest;
use crate::recording::file::{RecordingBlock, RecordingHead, RecordingStart, StartState};

/// How many bytes may wait to be written. What comes beyond is left out.
const MAX_WAITING: usize = 64 << 20;

/// How long a block is, about: of a file that is cut short, or damaged, so much more is lost.
const BLOCK: usize = 8 << 10;

/// How long an input waits at most until it is in a block.
const LATENCY: Duration = Duration::from_millis(200);

/// Among how many sums one is looked for that grows: with very many backends it takes less time to write
/// more of them.
const SUMS_LOOKED_AT: usize = 8;

/// What an item takes that waits, besides what it carries.
const ITEM: usize = 64;

/// How much of a datagram is kept where proxies speak for clients: their headers.
const PROXY_HEADER: u16 = 536;

/// What a recording is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordOptions {
    /// Which share of the clients is recorded.
    pub sample: f64,
    /// How many bytes of each datagram. `None`: as many as decisions need.
    pub payload: Option<u16>,
    /// Clients' addresses become others by this key, which keeps what they have in common.
    pub anonymise: Option<[u64; 2]>,
}

impl Eq for RecordOptions {}

/// Makes a channel from taps to the client that asked for a recording.
pub fn channel(head: RecordingHead) -> (RecordSender, RecordFeed) {
    let (sender, receiver) = feed::channel(MAX_WAITING);
    let head = Some(RecordingBlock::Head(head).to_bytes());
    (RecordSender(sender), RecordFeed { receiver, head, pending: BTreeMap::new(), timer: None })
}

/// The end of the channel that taps have. Never blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordSender(Tx<RecordItem>);

/// What a tap has to say of a shard.
#[derive(Debug)]
enum RecordItem {
    Start(u32, Box<RecordingStart>),
    Gap(u32, u64),
    Inputs(u32, InputPiece, u64),
}

/// The other end. Once it is dropped the taps go.
#[derive(Debug)]
pub struct RecordFeed {
    receiver: Rx<RecordItem>,
    head: Option<Vec<u8>>,
    /// What is to become a block, of each shard.
    pending: BTreeMap<u32, (InputPiece, u64)>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl RecordFeed {
    /// The next bytes of the recording; nothing when all taps have gone.
    pub fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<Option<Vec<u8>>> {
        if let Some(head) = self.head.take() {
            return Poll::Ready(Some(head));
        }
        loop {
            match self.receiver.poll(context) {
                Poll::Ready(Some(item)) => {
                    let bytes = self.take(item);
                    if !bytes.is_empty() {
                        return Poll::Ready(Some(bytes));
                    }
                }
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => break,
            }
        }
        if self.pending.is_empty() {
            self.timer = None;
            return Poll::Pending;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(LATENCY)));
        match timer.as_mut().poll(context) {
            Poll::Ready(()) => {
                self.timer = None;
                Poll::Ready(Some(self.flush()))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// Whatever is not in a block yet, and the end.
    pub fn end(&mut self) -> Vec<u8> {
        [self.drain(), RecordingBlock::End.to_bytes()].concat()
    }

    /// All that is there.
    pub(crate) fn drain(&mut self) -> Vec<u8> {
        let mut bytes = self.head.take().unwrap_or_default();
        while let Poll::Ready(Some(item)) = self.receiver.look() {
            bytes.extend(self.take(item));
        }
        bytes.extend(self.flush());
        bytes
    }

    fn take(&mut self, item: RecordItem) -> Vec<u8> {
        match item {
            RecordItem::Start(shard, start) => {
                let mut bytes = self.flush_shard(shard);
                bytes.extend(RecordingBlock::Start(shard, start).to_bytes());
                bytes
            }
            RecordItem::Gap(shard, inputs) => {
                let mut bytes = self.flush_shard(shard);
                bytes.extend(RecordingBlock::Gap(shard, inputs).to_bytes());
                bytes
            }
            RecordItem::Inputs(shard, piece, outputs) => {
                let bytes = if piece.is_fresh { self.flush_shard(shard) } else { Vec::new() };
                let (pending, sum) = self.pending.entry(shard).or_default();
                if pending.inputs == 0 {
                    pending.is_fresh = piece.is_fresh;
                }
                pending.bytes.extend(piece.bytes);
                pending.inputs += piece.inputs;
                *sum = outputs;
                let is_full = pending.bytes.len() >= BLOCK;
                if is_full { [bytes, self.flush_shard(shard)].concat() } else { bytes }
            }
        }
    }

    fn flush_shard(&mut self, shard: u32) -> Vec<u8> {
        match self.pending.remove(&shard) {
            Some((piece, outputs)) => RecordingBlock::Inputs { shard, piece, outputs }.to_bytes(),
            None => Vec::new(),
        }
    }

    fn flush(&mut self) -> Vec<u8> {
        let shards: Vec<u32> = self.pending.keys().copied().collect();
        shards.into_iter().flat_map(|shard| self.flush_shard(shard)).collect()
    }
}

/// Datagrams that the kernel has taken.
#[derive(Clone, Copy, Debug)]
struct Delivered {
    send_id: SendId,
    backend: Option<BackendId>,
    direction: Direction,
    datagrams: u32,
    bytes: u64,
}

impl Delivered {
    /// Whether both are counted in the same places: of which flow they were counts nowhere.
    fn counts_with(&self, other: &Self) -> bool {
        let is_same = match (self.send_id, other.send_id) {
            (SendId::Flow { .. }, SendId::Flow { .. }) => true,
            (one, other) => one == other,
        };
        is_same && (self.backend, self.direction) == (other.backend, other.direction)
    }
}

/// What records one shard.
#[derive(Debug)]
pub struct RecordTap {
    options: Arc<RecordOptions>,
    sender: RecordSender,
    shard: u32,
    listener: Arc<str>,
    cluster: Arc<str>,
    encoder: InputEncoder,
    outputs: Digest,
    /// How many inputs of this turn are written.
    written: u64,
    /// Whether the start has been told.
    has_begun: bool,
    /// Whether what is emitted now belongs to it.
    is_watching: bool,
    /// The mark of what its manager is told now.
    mark: Mark,
    /// What the kernel has taken and is not written yet.
    delivered: Vec<Delivered>,
    /// When the last input came.
    now: Instant,
    /// The client of that, as it is to be known if not as it is.
    anonymous: Option<SocketAddr>,
    /// How many inputs have been left out.
    lost: u64,
}

impl RecordTap {
    /// A tap for a shard of a listener, that begins with its next input.
    pub fn new(
        options: Arc<RecordOptions>,
        sender: RecordSender,
        shard: u32,
        listener: Arc<str>,
        cluster: Arc<str>,
    ) -> Self {
        Self {
            options,
            sender,
            shard,
            listener,
            cluster,
            encoder: InputEncoder::new(0),
            outputs: Digest::default(),
            written: 0,
            has_begun: false,
            is_watching: false,
            mark: Mark::default(),
            delivered: Vec::new(),
            now: Instant::ORIGIN,
            anonymous: None,
            lost: 0,
        }
    }

    /// Whether whole managers are recorded, so that they can be verified.
    fn is_whole(&self) -> bool {
        self.options.sample >= 1.0 && self.options.anonymise.is_none()
    }

    /// Before a manager is told of something: tells where it stands, if that is not known.
    pub(crate) fn begin(&mut self, role: Role, manager: &UdpManager, now: Instant) {
        if role != Role::Primary || self.has_begun || !self.sender.0.has_much_room() {
            return;
        }
        if self.lost > 0 {
            if !self.sender.0.send(RecordItem::Gap(self.shard, self.lost), ITEM) {
                return;
            }
            self.lost = 0;
        }
        let state = if self.is_whole() {
            StartState::Whole(manager.clone().snapshot())
        } else {
            StartState::Config(manager.config().clone())
        };
        let start = RecordingStart {
            listener: self.listener.to_string(),
            cluster: self.cluster.to_string(),
            state,
        };
        let bytes = self.start_bytes(manager);
        self.has_begun = self.sender.0.send(RecordItem::Start(self.shard, Box::new(start)), bytes);
        self.delivered.clear();
        self.now = now;
        self.encoder.restart();
        self.encoder.set_payload(self.payload(manager.config()));
        self.outputs = Digest::default();
        if self.has_begun && !self.is_whole() {
            self.tell_states(manager, now);
        }
    }

    /// What a start takes that waits, about: what it is as bytes is known when it is encoded.
    fn start_bytes(&self, manager: &UdpManager) -> usize {
        const CONFIG: usize = 4_096;
        if !self.is_whole() {
            return CONFIG;
        }
        // A flow is about a hundred bytes. However many there are, a start fits into what is free where
        // there is much room: a large table would never be recorded otherwise, and be copied in vain
        // at every input.
        let flows = 128 * manager.slots().min(manager.flow_count() * 2);
        (flows + CONFIG).min(self.sender.0.much_room().saturating_sub(ITEM))
    }

    /// What is said of backends, for whom the configuration is all there is.
    fn tell_states(&mut self, manager: &UdpManager, now: Instant) {
        for (index, (_, backend)) in manager.backends().iter().enumerate() {
            let event = match backend.state() {
                BackendState::Down => BackendEvent::Down,
                BackendState::Draining => BackendEvent::Drain { deadline: None },
                _ => continue,
            };
            let input = ManagerInput::BackendChanged { backend: BackendId::new(index), event };
            self.encoder.input(&input, None, now);
            self.written += 1;
        }
    }

    /// How much of each datagram decisions need.
    fn payload(&self, config: &ManagerConfig) -> u16 {
        if let Some(payload) = self.options.payload {
            return payload;
        }
        let by_affinity = match config.cluster.affinity {
            Affinity::SourceIp | Affinity::SourceIpPort | Affinity::Host => 0,
            // Both ids of a long header, and the first byte of what is behind them.
            Affinity::Quic => 64,
            Affinity::WireGuard => 16,
            Affinity::DtlsCid { .. } => 128,
            Affinity::SipCallId => u16::MAX,
            Affinity::Offset { offset, length } => offset.saturating_add(length.into()),
        };
        let by_questions = match &config.cluster.transactions {
            None => 0,
            // The question, which the answer repeats.
            Some(Transactions::Dns) => 512,
            Some(Transactions::Ntp) => 48,
            Some(Transactions::Stun) => 20,
            Some(Transactions::Sip) => u16::MAX,
            Some(Transactions::Pattern { request_offset, answer_offset, length }) => {
                (*request_offset).max(*answer_offset).saturating_add((*length).into())
            }
        };
        let by_affinity = by_affinity.max(by_questions);
        let by_proxies = if config.accept_proxy_protocol.is_empty() { 0 } else { PROXY_HEADER };
        by_affinity.saturating_add(by_proxies)
    }

    /// Before a manager is told of something: says whether that is recorded. Whatever is emitted from now
    /// on belongs to it.
    pub(crate) fn watch(
        &mut self,
        role: Role,
        input: &ManagerInput<'_>,
        subject: &Subject,
    ) -> bool {
        let wants = self.wants(role, input, subject);
        self.lost += u64::from(wants && !self.has_begun);
        self.is_watching = wants && self.has_begun;
        if self.is_watching {
            if let Some(key) = self.options.anonymise {
                let client = match input {
                    ManagerInput::ClientBurst { source, .. } => Some(*source),
                    _ => subject.client,
                };
                self.anonymous = client.map(|client| anonymous(client, key));
            }
            let client = self.anonymous.as_ref().or(subject.client.as_ref());
            self.mark = self.encoder.prepare(input, client);
        }
        self.is_watching
    }

    /// Whether an input is recorded.
    fn wants(&self, role: Role, input: &ManagerInput<'_>, subject: &Subject) -> bool {
        if role != Role::Primary {
            return false;
        }
        if self.is_whole() {
            return true;
        }
        match input {
            ManagerInput::BackendChanged { .. }
            | ManagerInput::Configured(_)
            | ManagerInput::Drain { .. } => true,
            ManagerInput::ClientBurst { source, .. } => self.is_sampled(*source),
            ManagerInput::UpstreamBurst { .. } => {
                subject.client.is_some_and(|client| self.is_sampled(client))
            }
            _ => false,
        }
    }

    /// Whether a client is recorded: all of its datagrams, whatever ports it uses, or none.
    fn is_sampled(&self, client: SocketAddr) -> bool {
        let mut digest = Digest::of(b"sample");
        match client.ip() {
            IpAddr::V4(ip) => digest.word(ip.to_bits().into()),
            IpAddr::V6(ip) => digest.word((ip.to_bits() >> 64) as u64),
        }
        digest.word(0);
        // The upper bits are the better ones.
        let index = (digest.value() >> 11) as f64 / (1_u64 << 53) as f64;
        index < self.options.sample
    }

    /// Fetches from memory what is needed when bursts of these clients come next.
    pub(crate) fn prefetch(&self, clients: impl Iterator<Item = SocketAddr>) {
        if self.is_whole() {
            self.encoder.prefetch(clients);
        }
    }

    /// Takes in what the kernel has taken, of a manager's datagrams. That decides nothing, so it is
    /// written as a sum, when the turn ends or before anything that is no datagram.
    pub(crate) fn see_delivered(&mut self, role: Role, input: &ManagerInput<'_>) {
        let ManagerInput::Delivered { send_id, backend, direction, datagrams, bytes } = *input
        else {
            return;
        };
        if role != Role::Primary || !self.is_whole() {
            return;
        }
        if !self.has_begun {
            self.lost += 1;
            return;
        }
        let more = Delivered { send_id, backend, direction, datagrams, bytes };
        let mut last = self.delivered.iter_mut().rev().take(SUMS_LOOKED_AT);
        match last.find(|sum| sum.counts_with(&more)) {
            Some(sum) if sum.datagrams.checked_add(datagrams).is_some() => {
                sum.datagrams += datagrams;
                sum.bytes += bytes;
            }
            _ => self.delivered.push(more),
        }
    }

    fn write_delivered(&mut self) {
        for sum in self.delivered.drain(..) {
            let Delivered { send_id, backend, direction, datagrams, bytes } = sum;
            let input = ManagerInput::Delivered { send_id, backend, direction, datagrams, bytes };
            self.encoder.input(&input, None, self.now);
            self.written += 1;
        }
    }

    /// Takes in what a manager emits.
    #[inline]
    pub(crate) fn output(&mut self, output: &Output<'_>) {
        if self.is_watching {
            self.outputs.output(output);
        }
    }

    /// Takes in the input that it [watches](Self::watch), now that all is emitted.
    pub(crate) fn see(&mut self, input: &ManagerInput<'_>, subject: &Subject, now: Instant) {
        if !self.is_watching {
            return;
        }
        let is_burst =
            matches!(input, ManagerInput::ClientBurst { .. } | ManagerInput::UpstreamBurst { .. });
        if !is_burst {
            self.write_delivered();
        }
        self.now = now;
        let client = self.anonymous.as_ref().or(subject.client.as_ref());
        self.encoder.write(input, client, self.mark, now);
        self.written += 1;
        if let ManagerInput::Configured(configuration) = input {
            let payload = self.payload(configuration.config());
            self.encoder.set_payload(payload);
        }
    }

    /// A turn is over. Says whether a client still listens.
    pub(crate) fn flush(&mut self) -> bool {
        self.write_delivered();
        let written = std::mem::take(&mut self.written);
        if written > 0 {
            let piece = self.encoder.take();
            let bytes = piece.bytes.len() + ITEM;
            let item = RecordItem::Inputs(self.shard, piece, self.outputs.value());
            if !self.sender.0.send(item, bytes) {
                self.has_begun = false;
                self.lost += written;
            }
        }
        !self.sender.0.is_closed()
    }
}

/// Another address in place of a client's. Two that have their first bits in common have as many in
/// common afterwards, and who does not know the key cannot tell which they were. Ports stay.
pub(crate) fn anonymous(client: SocketAddr, key: [u64; 2]) -> SocketAddr {
    let flips = |bits: u128, len: u32| {
        (0..len).fold(0_u128, |flips, at| {
            // Whether this bit flips depends on all before it.
            let prefix = if at == 0 { 0 } else { bits >> (len - at) };
            let mut hasher = SipHasher24::new_with_keys(key[0], key[1]);
            hasher.write_u32(at << 8 | len);
            hasher.write_u128(prefix);
            flips << 1 | u128::from(hasher.finish() & 1)
        })
    };
    let mut address = client;
    address.set_ip(match client.ip() {
        IpAddr::V4(ip) => {
            let bits = ip.to_bits();
            IpAddr::V4((bits ^ flips(bits.into(), 32) as u32).into())
        }
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() ^ flips(ip.to_bits(), 128)).into()),
    });
    address
}

#[cfg(test)]
mod tests {
    use flowgate_core::Burst;

    use super::*;

    /// A manager with this many flows.
    fn manager(flows: u16) -> UdpManager {
        let toml = "[[listener]]\naddress = \"192.0.2.1:53\"\ncluster = \"c\"\n\
                    [cluster.c]\nbackends = [\"10.0.0.1:53\"]\n";
        let config = flowgate_config::parse(toml, "test.toml").unwrap_or_else(|e| panic!("{e}"));
        let listener = &config.listeners[0];
        let backends = listener.cluster.backends(|_| Vec::new());
        let config = listener.manager_config(listener.address, 1_000, Vec::new(), false, backends);
        let mut manager = UdpManager::new(config, 7, Instant::ORIGIN);
        for port in 1..=flows {
            let (source, burst) = (([198, 51, 100, 7], port).into(), Burst::single(b"question"));
            let burst = burst.expect("a datagram");
            let input = ManagerInput::ClientBurst { source, local: None, tos: 0, ttl: 64, burst };
            manager.handle_input(input, Instant::ORIGIN, &mut Vec::new());
        }
        manager
    }

    #[test]
    fn a_table_begins_that_takes_more_than_there_is_room_for() {
        let manager = manager(200);
        assert_eq!(manager.flow_count(), 200);
        for sample in [1.0, 0.5] {
            let options = Arc::new(RecordOptions { sample, payload: None, anonymise: None });
            let (sender, mut receiver) = feed::channel(16 << 10);
            let mut tap =
                RecordTap::new(options, RecordSender(sender), 0, "dns".into(), "c".into());
            tap.lost = 3;
            tap.begin(Role::Primary, &manager, Instant::ORIGIN);
            assert!(tap.has_begun && tap.lost == 0, "of a share of {sample}");
            let mut next = || receiver.look();
            assert!(matches!(next(), Poll::Ready(Some(RecordItem::Gap(0, 3)))));
            assert!(matches!(next(), Poll::Ready(Some(RecordItem::Start(0, _)))));
        }
    }

    #[test]
    fn of_a_recording_that_is_cut_little_before_the_cut_is_lost() {
        let (sender, mut feed) = channel(RecordingHead::default());
        for _ in 0..400 {
            let piece = InputPiece { bytes: vec![7; 100], inputs: 10, is_fresh: false };
            assert!(sender.0.send(RecordItem::Inputs(0, piece, 0), 100));
        }
        let whole = [crate::recording::file::preamble(), feed.end()].concat();
        let cut = &whole[..whole.len() / 2];
        let mut reader = crate::recording::file::RecordingReader::new(cut).expect("a recording");
        let mut inputs = 0;
        while let Some(block) = reader.next_block().expect("a block") {
            if let RecordingBlock::Inputs { piece, .. } = block {
                inputs += piece.inputs;
            }
        }
        assert!((1_200..=2_000).contains(&inputs), "{inputs} of 4,000");
    }

    #[test]
    fn anonymous_addresses_keep_what_they_have_in_common() {
        let common = |a: &str, b: &str| {
            let bits = |text: &str| {
                let client = SocketAddr::new(text.parse().unwrap(), 7);
                match (client.ip(), anonymous(client, [4, 7]).ip()) {
                    (IpAddr::V4(before), IpAddr::V4(after)) => (before.to_bits(), after.to_bits()),
                    _ => unreachable!("all are of IPv4"),
                }
            };
            let ((before_a, after_a), (before_b, after_b)) = (bits(a), bits(b));
            assert_ne!((before_a, before_b), (after_a, after_b));
            assert_eq!((before_a ^ before_b).leading_zeros(), (after_a ^ after_b).leading_zeros());
        };
        common("192.0.2.1", "192.0.2.2");
        common("192.0.2.1", "192.0.3.1");
        common("10.0.0.1", "192.0.2.1");
        let client = "[2001:db8::7]:53".parse().unwrap();
        assert_eq!(anonymous(client, [1, 0]), anonymous(client, [1, 0]));
        assert_ne!(anonymous(client, [1, 0]), anonymous(client, [2, 0]));
    }
}
