//! The inputs of a manager as bytes, and back.
//!
//! An input is a byte that says what it is, and numbers of as many bytes as they need (LEB128). Times
//! are told as what has passed since the input before. A client is written down where it comes first,
//! and is a number from then on, as is a flow; now and then counting restarts, so that neither
//! side remembers too much.

mod numbers;

use std::net::{IpAddr, SocketAddr};

use flowgate_core::config::ManagerConfig;
use flowgate_core::counters::Traffic;
use flowgate_core::snapshot;
use flowgate_core::{
    BackendEvent, BackendId, Burst, Direction, DropReason, FlowId, Instant, LocalAddr,
    ManagerInput, NetworkError, SendId, TransactionId, UpstreamId,
};

pub use numbers::Mark;
use numbers::Numbers;

/// What kinds of inputs there are: the low half of the first byte.
mod kind {
    pub(super) const CLIENT: u8 = 0;
    pub(super) const BACKEND: u8 = 1;
    pub(super) const READING: u8 = 2;
    pub(super) const READING_BEHIND: u8 = 3;
    pub(super) const TIMEOUT: u8 = 4;
    pub(super) const UNUSABLE: u8 = 5;
    pub(super) const UNDELIVERED: u8 = 6;
    pub(super) const NOT_OPENED: u8 = 7;
    pub(super) const BACKEND_CHANGED: u8 = 8;
    pub(super) const CONFIGURED: u8 = 9;
    pub(super) const DRAIN: u8 = 10;
    pub(super) const DELIVERED: u8 = 11;
    pub(super) const NETWORK_ERROR: u8 = 12;
    pub(super) const NETWORK_CHANGED: u8 = 13;
    pub(super) const FLOW_ACTIVITY: u8 = 14;
    pub(super) const TAKEN_ELSEWHERE: u8 = 15;
    pub(super) const ROOM_WANTED: u8 = 16;
}

/// No time has passed since the input before.
const SAME_TIME: u8 = 0x80;
/// There are several datagrams.
const SEVERAL: u8 = 0x40;
/// The first bytes of each datagram follow.
const WITH_PAYLOAD: u8 = 0x20;

/// How many clients and flows are numbered before counting restarts.
const MAX_NUMBERED: u32 = 50_000;

/// The same in bytes written.
const MAX_EPOCH_BYTES: usize = 1 << 20;

/// A client as it calls.
#[derive(Clone, Copy, Debug)]
struct Caller {
    source: SocketAddr,
    local: Option<LocalAddr>,
    tos: u8,
    ttl: u8,
}

/// What answers come by, and whose they are where that is known.
#[derive(Clone, Copy, Debug)]
struct Answered {
    upstream: UpstreamId,
    sender: SocketAddr,
    client: Option<SocketAddr>,
    tos: u8,
}

/// What is wrong with bytes that should be inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a block that is whole holds no inputs: its writer is broken, or not Flowgate")]
pub struct NoInputs;

/// An input as it was recorded.
#[derive(Clone, Debug)]
pub enum RecordedInput<'a> {
    /// Datagrams of a client.
    ClientBurst {
        /// Who sent them.
        source: SocketAddr,
        /// The local address.
        local: Option<LocalAddr>,
        /// Their TOS byte.
        tos: u8,
        /// Their time to live.
        ttl: u8,
        /// Their form.
        form: BurstForm<'a>,
    },
    /// Datagrams of a backend.
    UpstreamBurst {
        /// The socket that they came by.
        upstream: UpstreamId,
        /// Who sent them.
        sender: SocketAddr,
        /// The client that they were for, if its flow lived.
        client: Option<SocketAddr>,
        /// Their TOS byte.
        tos: u8,
        /// Their form.
        form: BurstForm<'a>,
    },
    /// What is the same for every manager.
    Plain(ManagerInput<'static>),
    /// A new configuration.
    Configured(Box<ManagerConfig>),
}

/// Datagrams without what they carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BurstForm<'a> {
    /// All bytes.
    pub len: u16,
    /// The bytes of each but the last.
    pub stride: u16,
    /// How many bytes of each are known, as far as it has as many.
    pub known: u16,
    /// These bytes, end to end.
    pub prefixes: &'a [u8],
}

impl<'a> BurstForm<'a> {
    /// Datagrams of this form: with what is known, and zeros. Memory is used only where something is.
    pub fn burst<'m>(&self, memory: &'m mut Vec<u8>) -> Option<Burst<'m>> {
        static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
        let len = usize::from(self.len);
        if self.prefixes.is_empty() {
            return Burst::segmented(&ZEROS[..len], self.stride);
        }
        memory.clear();
        memory.resize(len, 0);
        let mut rest = self.prefixes;
        for datagram in memory.chunks_mut(self.chunk()) {
            let known = datagram.len().min(self.known.into()).min(rest.len());
            datagram[..known].copy_from_slice(&rest[..known]);
            rest = &rest[known..];
        }
        Burst::segmented(memory, self.stride)
    }

    /// How many datagrams there are.
    pub fn datagrams(&self) -> u64 {
        usize::from(self.len).div_ceil(self.chunk()).max(1) as u64
    }

    fn chunk(&self) -> usize {
        match usize::from(self.stride) {
            0 => usize::from(self.len).max(1),
            stride => stride,
        }
    }
}

/// Writes the inputs of one manager.
#[derive(Debug)]
pub struct InputEncoder {
    bytes: Vec<u8>,
    inputs: u32,
    numbers: Numbers,
    /// How many callers have a number.
    callers: u32,
    /// The same of what is answered.
    answered: u32,
    now: u64,
    /// How many bytes since counting began.
    epoch_bytes: usize,
    is_fresh: bool,
    /// How many bytes of each datagram are kept.
    payload: u16,
}

/// Some inputs as bytes.
#[derive(Debug, Default)]
pub struct InputPiece {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// How many inputs they are.
    pub inputs: u32,
    /// Whether counting restarts with them.
    pub is_fresh: bool,
}

impl InputEncoder {
    /// An encoder that keeps this many bytes of each datagram.
    pub fn new(payload: u16) -> Self {
        Self {
            bytes: Vec::new(),
            inputs: 0,
            numbers: Numbers::new(),
            callers: 0,
            answered: 0,
            now: 0,
            epoch_bytes: 0,
            is_fresh: true,
            payload,
        }
    }

    /// Keeps this many bytes of each datagram from now on.
    pub const fn set_payload(&mut self, payload: u16) {
        self.payload = payload;
    }

    /// Takes what has been written since this was done last.
    pub fn take(&mut self) -> InputPiece {
        // The next turn is much like this one.
        let room = Vec::with_capacity(self.bytes.len());
        let bytes = std::mem::replace(&mut self.bytes, room);
        let piece = InputPiece { inputs: self.inputs, is_fresh: self.is_fresh, bytes };
        self.inputs = 0;
        self.epoch_bytes += piece.bytes.len();
        self.is_fresh =
            self.epoch_bytes > MAX_EPOCH_BYTES || self.callers + self.answered > MAX_NUMBERED;
        if self.is_fresh {
            self.restart();
        }
        piece
    }

    /// Restarts counting, after something has been lost.
    pub fn restart(&mut self) {
        self.bytes.clear();
        self.numbers.restart();
        (self.callers, self.answered) = (0, 0);
        (self.inputs, self.now, self.epoch_bytes, self.is_fresh) = (0, 0, 0, true);
    }

    /// Writes an input. `client` is the one that it is of, as it is to be known.
    pub fn input(&mut self, input: &ManagerInput<'_>, client: Option<&SocketAddr>, now: Instant) {
        let mark = self.prepare(input, client);
        self.write(input, client, mark, now);
    }

    /// Fetches from memory what is needed to write what clients send, those that come next.
    pub fn prefetch(&self, clients: impl Iterator<Item = SocketAddr>) {
        clients.for_each(|client| self.numbers.prefetch(&client));
    }

    /// Prepares to [write](Self::write) an input, which takes less time if something else is done meanwhile.
    pub fn prepare(&mut self, input: &ManagerInput<'_>, client: Option<&SocketAddr>) -> Mark {
        let mark = match input {
            ManagerInput::ClientBurst { source, local, tos, ttl, .. } => {
                let form =
                    u64::from(local.is_some()) << 16 | u64::from(*tos) << 8 | u64::from(*ttl);
                let mark = self.numbers.mark(client.unwrap_or(source)).word(1 << 32 | form);
                match local {
                    Some(LocalAddr { ip, interface }) => mark.ip(ip, (*interface).into()),
                    None => mark,
                }
            }
            ManagerInput::UpstreamBurst { upstream, sender, tos, .. } => {
                let form = u64::from(client.is_some()) << 8 | u64::from(*tos);
                let mark = self.numbers.mark(client.unwrap_or(sender)).word(2 << 32 | form);
                let mark =
                    mark.word((upstream.index() as u64) << 16 | u64::from(upstream.generation()));
                if client.is_some() { mark.address(sender) } else { mark }
            }
            _ => return Mark::default(),
        };
        self.numbers.expect(mark.end())
    }

    /// Writes an input that is [prepared](Self::prepare).
    pub fn write(
        &mut self,
        input: &ManagerInput<'_>,
        client: Option<&SocketAddr>,
        mark: Mark,
        now: Instant,
    ) {
        let tag = match input {
            ManagerInput::ClientBurst { .. } => kind::CLIENT,
            ManagerInput::UpstreamBurst { .. } => kind::BACKEND,
            ManagerInput::Reading { is_behind: false } => kind::READING,
            ManagerInput::Reading { is_behind: true } => kind::READING_BEHIND,
            ManagerInput::Timeout => kind::TIMEOUT,
            ManagerInput::Unusable { .. } => kind::UNUSABLE,
            ManagerInput::Undelivered { .. } => kind::UNDELIVERED,
            ManagerInput::Delivered { .. } => kind::DELIVERED,
            ManagerInput::UpstreamOpenFailed { .. } => kind::NOT_OPENED,
            ManagerInput::UpstreamError { .. } => kind::NETWORK_ERROR,
            ManagerInput::BackendChanged { .. } => kind::BACKEND_CHANGED,
            ManagerInput::NetworkChanged => kind::NETWORK_CHANGED,
            ManagerInput::TakenElsewhere { .. } => kind::TAKEN_ELSEWHERE,
            ManagerInput::RoomWanted => kind::ROOM_WANTED,
            ManagerInput::FlowActivity { .. } => kind::FLOW_ACTIVITY,
            ManagerInput::Configured(_) => kind::CONFIGURED,
            ManagerInput::Drain { .. } => kind::DRAIN,
            // What a mirror is told is no matter of the manager's.
            ManagerInput::Mirrored { .. } => return,
        };
        self.inputs += 1;
        let burst = match input {
            ManagerInput::ClientBurst { burst, .. } | ManagerInput::UpstreamBurst { burst, .. } => {
                Some(burst)
            }
            _ => None,
        };
        let several = burst.is_some_and(|burst| burst.count() > 1);
        let with_payload = burst.is_some_and(|b| self.payload > 0 && !b.bytes().is_empty());
        let passed = now.as_nanos().saturating_sub(self.now);
        self.bytes.push(
            tag | if passed == 0 { SAME_TIME } else { 0 }
                | if several { SEVERAL } else { 0 }
                | if with_payload { WITH_PAYLOAD } else { 0 },
        );
        if passed > 0 {
            self.number(passed);
            self.now = now.as_nanos();
        }
        match input {
            ManagerInput::ClientBurst { source, local, tos, ttl, .. } => {
                self.caller(client.unwrap_or(source), local, (*tos, *ttl), mark);
            }
            ManagerInput::UpstreamBurst { upstream, sender, tos, .. } => {
                self.answered(*upstream, sender, client, *tos, mark);
            }
            _ => self.rest(input),
        }
        if let Some(burst) = burst {
            self.burst(burst);
        }
    }

    fn rest(&mut self, input: &ManagerInput<'_>) {
        match *input {
            ManagerInput::UpstreamOpenFailed { upstream } => self.upstream(upstream),
            ManagerInput::UpstreamError { upstream, remote, question, error } => {
                self.upstream(upstream);
                let is_refused = u8::from(error == NetworkError::Refused);
                let is_known = u8::from(remote.is_some()) << 1 | u8::from(question.is_some()) << 2;
                self.bytes.push(is_refused | is_known);
                remote.into_iter().for_each(|remote| self.address(remote));
                for word in question.into_iter().flat_map(TransactionId::as_words) {
                    self.number(word.into());
                }
            }
            ManagerInput::Unusable { direction, reason, datagrams, bytes } => {
                self.loss(direction, reason, datagrams, bytes);
            }
            ManagerInput::Delivered { send_id, backend, direction, datagrams, bytes } => {
                self.send_id(send_id, backend, direction);
                self.number(datagrams.into());
                self.number(bytes);
            }
            ManagerInput::Undelivered { send_id, backend, direction, reason, datagrams, bytes } => {
                self.send_id(send_id, backend, direction);
                self.loss(direction, reason, datagrams, bytes);
            }
            ManagerInput::BackendChanged { backend, event } => {
                self.number(backend.index() as u64);
                self.event(event);
            }
            ManagerInput::Configured(prepared) => {
                let encoded = snapshot::encode(prepared.config());
                self.number(encoded.len() as u64);
                self.bytes.extend(encoded);
            }
            ManagerInput::Drain { deadline } => self.number(deadline.as_nanos()),
            ManagerInput::TakenElsewhere { flows, slots } => {
                self.number(flows.into());
                self.number(slots.into());
            }
            ManagerInput::FlowActivity { flow, backend, to_backend, to_client, last } => {
                self.flow(flow);
                self.number(backend.index() as u64);
                for traffic in [to_backend, to_client] {
                    self.number(traffic.datagrams);
                    self.number(traffic.bytes);
                }
                self.bytes.push(u8::from(last.is_some()));
                last.into_iter().for_each(|last| self.number(last.as_nanos()));
            }
            ManagerInput::ClientBurst { .. }
            | ManagerInput::UpstreamBurst { .. }
            | ManagerInput::Reading { .. }
            | ManagerInput::Timeout
            | ManagerInput::NetworkChanged
            | ManagerInput::RoomWanted
            | ManagerInput::Mirrored { .. } => {}
        }
    }

    fn send_id(&mut self, send_id: SendId, backend: Option<BackendId>, direction: Direction) {
        let (kind, of) = match send_id {
            SendId::Flow { .. } => (0, None),
            SendId::OneWay(backend) => (1, Some(backend)),
            SendId::Copy(backend) => (2, Some(backend)),
        };
        let is_known = u8::from(backend.is_some()) << 2;
        self.bytes.push(kind | is_known | u8::from(direction == Direction::ToClient) << 3);
        if let SendId::Flow { flow, upstream } = send_id {
            self.flow(flow);
            self.upstream(upstream);
        }
        for backend in of.into_iter().chain(backend) {
            self.number(backend.index() as u64);
        }
    }

    fn burst(&mut self, burst: &Burst<'_>) {
        self.number(burst.bytes().len() as u64);
        if burst.count() > 1 {
            self.number(burst.stride().into());
        }
        if self.payload > 0 && !burst.bytes().is_empty() {
            self.number(self.payload.into());
            let known = usize::from(self.payload);
            for datagram in burst.datagrams() {
                self.bytes.extend(&datagram[..datagram.len().min(known)]);
            }
        }
    }

    fn event(&mut self, event: BackendEvent) {
        match event {
            BackendEvent::Up => self.bytes.push(0),
            BackendEvent::Down => self.bytes.push(1),
            BackendEvent::Unprobed => self.bytes.push(2),
            BackendEvent::Drain { deadline: None } => self.bytes.push(3),
            BackendEvent::Drain { deadline: Some(deadline) } => {
                self.bytes.push(4);
                self.number(deadline.as_nanos());
            }
            BackendEvent::Undrain => self.bytes.push(5),
        }
    }

    fn loss(&mut self, direction: Direction, reason: DropReason, datagrams: u32, bytes: u64) {
        self.bytes.push(u8::from(direction == Direction::ToClient));
        // By its name: reasons that are added later change no number.
        self.bytes.push(reason.as_str().len() as u8);
        self.bytes.extend(reason.as_str().bytes());
        self.number(datagrams.into());
        self.number(bytes);
    }

    fn caller(
        &mut self,
        source: &SocketAddr,
        local: &Option<LocalAddr>,
        (tos, ttl): (u8, u8),
        mark: Mark,
    ) {
        let number = self.numbers.number(mark, self.callers);
        self.number(number.into());
        if number == self.callers {
            self.callers += 1;
            self.address(*source);
            self.bytes.extend([tos, ttl, u8::from(local.is_some())]);
            if let Some(LocalAddr { ip, interface }) = *local {
                self.ip(ip);
                self.number(interface.into());
            }
        }
    }

    fn answered(
        &mut self,
        upstream: UpstreamId,
        sender: &SocketAddr,
        client: Option<&SocketAddr>,
        tos: u8,
        mark: Mark,
    ) {
        let number = self.numbers.number(mark, self.answered);
        self.number(number.into());
        if number == self.answered {
            self.answered += 1;
            self.upstream(upstream);
            self.address(*sender);
            self.bytes.extend([tos, u8::from(client.is_some())]);
            client.into_iter().for_each(|client| self.address(*client));
        }
    }

    fn flow(&mut self, flow: FlowId) {
        self.number(flow.index() as u64);
        self.number(flow.generation().into());
    }

    fn upstream(&mut self, upstream: UpstreamId) {
        self.number(upstream.index() as u64);
        self.number(upstream.generation().into());
    }

    fn address(&mut self, address: SocketAddr) {
        self.ip(address.ip());
        self.bytes.extend(address.port().to_le_bytes());
        if let SocketAddr::V6(address) = address {
            self.number(address.scope_id().into());
        }
    }

    fn ip(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => {
                self.bytes.push(4);
                self.bytes.extend(ip.octets());
            }
            IpAddr::V6(ip) => {
                self.bytes.push(6);
                self.bytes.extend(ip.octets());
            }
        }
    }

    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }
}

/// Reads what an [`InputEncoder`] has written, all of it in order.
#[derive(Debug, Default)]
pub struct InputDecoder {
    callers: Vec<Caller>,
    answered: Vec<Answered>,
    now: u64,
}

impl InputDecoder {
    /// Counting restarts.
    pub fn restart(&mut self) {
        *self = Self::default();
    }

    /// Reads inputs, and gives each with its time to `take`.
    ///
    /// # Errors
    ///
    /// When the bytes are not inputs. Those before have been given.
    pub fn read<'a>(
        &mut self,
        bytes: &'a [u8],
        mut take: impl FnMut(RecordedInput<'a>, Instant),
    ) -> Result<(), NoInputs> {
        let mut reader = Reader(bytes);
        while !reader.0.is_empty() {
            let input = self.input(&mut reader).ok_or(NoInputs)?;
            take(input, Instant::from_nanos(self.now));
        }
        Ok(())
    }

    fn input<'a>(&mut self, reader: &mut Reader<'a>) -> Option<RecordedInput<'a>> {
        let tag = reader.byte()?;
        if tag & SAME_TIME == 0 {
            self.now = self.now.checked_add(reader.number()?)?;
        }
        Some(match tag & 0x1F {
            kind::CLIENT => {
                let Caller { source, local, tos, ttl } = self.caller(reader)?;
                RecordedInput::ClientBurst { source, local, tos, ttl, form: reader.form(tag)? }
            }
            kind::BACKEND => {
                let Answered { upstream, sender, client, tos } = self.answered(reader)?;
                let form = reader.form(tag)?;
                RecordedInput::UpstreamBurst { upstream, sender, client, tos, form }
            }
            kind::CONFIGURED => {
                let len = reader.number()?;
                let encoded = reader.bytes(usize::try_from(len).ok()?)?;
                RecordedInput::Configured(Box::new(snapshot::decode(encoded).ok()?))
            }
            other => RecordedInput::Plain(reader.plain(other)?),
        })
    }

    fn caller(&mut self, reader: &mut Reader<'_>) -> Option<Caller> {
        let number = usize::try_from(reader.number()?).ok()?;
        if number == self.callers.len() {
            let source = reader.address()?;
            let (tos, ttl) = (reader.byte()?, reader.byte()?);
            let local = match reader.byte()? {
                0 => None,
                _ => {
                    let ip = reader.ip()?;
                    Some(LocalAddr { ip, interface: reader.number()?.try_into().ok()? })
                }
            };
            self.callers.push(Caller { source, local, tos, ttl });
        }
        self.callers.get(number).copied()
    }

    fn answered(&mut self, reader: &mut Reader<'_>) -> Option<Answered> {
        let number = usize::try_from(reader.number()?).ok()?;
        if number == self.answered.len() {
            let (upstream, sender) = (reader.upstream()?, reader.address()?);
            let tos = reader.byte()?;
            let client = match reader.byte()? {
                0 => None,
                _ => Some(reader.address()?),
            };
            self.answered.push(Answered { upstream, sender, client, tos });
        }
        self.answered.get(number).copied()
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (first, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(first)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn flow(&mut self) -> Option<FlowId> {
        let index = self.number()?.try_into().ok()?;
        Some(FlowId::new(index, self.number()?.try_into().ok()?))
    }

    fn upstream(&mut self) -> Option<UpstreamId> {
        let index = self.number()?.try_into().ok()?;
        Some(UpstreamId::new(index, self.number()?.try_into().ok()?))
    }

    fn ip(&mut self) -> Option<IpAddr> {
        match self.byte()? {
            4 => Some(self.array::<4>()?.into()),
            6 => Some(self.array::<16>()?.into()),
            _ => None,
        }
    }

    fn address(&mut self) -> Option<SocketAddr> {
        let ip = self.ip()?;
        let mut address = SocketAddr::new(ip, u16::from_le_bytes(self.array()?));
        if let SocketAddr::V6(address) = &mut address {
            address.set_scope_id(self.number()?.try_into().ok()?);
        }
        Some(address)
    }

    fn form(&mut self, tag: u8) -> Option<BurstForm<'a>> {
        let len: u16 = self.number()?.try_into().ok()?;
        let stride = if tag & SEVERAL == 0 { 0 } else { self.number()?.try_into().ok()? };
        let mut form = BurstForm { len, stride, known: 0, prefixes: &[] };
        if tag & WITH_PAYLOAD != 0 {
            form.known = self.number()?.try_into().ok()?;
            let known = usize::from(form.known);
            let (whole, last) = (usize::from(len) / form.chunk(), usize::from(len) % form.chunk());
            let of_whole = whole.checked_mul(known.min(form.chunk()))?;
            form.prefixes = self.bytes(of_whole + known.min(last))?;
        }
        Some(form)
    }

    fn plain(&mut self, kind: u8) -> Option<ManagerInput<'static>> {
        Some(match kind {
            kind::READING => ManagerInput::Reading { is_behind: false },
            kind::READING_BEHIND => ManagerInput::Reading { is_behind: true },
            kind::TIMEOUT => ManagerInput::Timeout,
            kind::NETWORK_CHANGED => ManagerInput::NetworkChanged,
            kind::ROOM_WANTED => ManagerInput::RoomWanted,
            kind::TAKEN_ELSEWHERE => ManagerInput::TakenElsewhere {
                flows: self.number()?.try_into().ok()?,
                slots: self.number()?.try_into().ok()?,
            },
            kind::UNUSABLE => {
                let (direction, reason, datagrams, bytes) = self.loss()?;
                ManagerInput::Unusable { direction, reason, datagrams, bytes }
            }
            kind::UNDELIVERED => {
                let (send_id, backend, _) = self.send_id()?;
                let (direction, reason, datagrams, bytes) = self.loss()?;
                ManagerInput::Undelivered { send_id, backend, direction, reason, datagrams, bytes }
            }
            kind::DELIVERED => {
                let (send_id, backend, direction) = self.send_id()?;
                let (datagrams, bytes) = (self.number()?.try_into().ok()?, self.number()?);
                ManagerInput::Delivered { send_id, backend, direction, datagrams, bytes }
            }
            kind::NOT_OPENED => ManagerInput::UpstreamOpenFailed { upstream: self.upstream()? },
            kind::NETWORK_ERROR => {
                let upstream = self.upstream()?;
                let tag = self.byte()?;
                let remote = if tag & 2 == 0 { None } else { Some(self.address()?) };
                let question = if tag & 4 == 0 { None } else { Some(self.question()?) };
                let error =
                    if tag & 1 == 0 { NetworkError::Unreachable } else { NetworkError::Refused };
                ManagerInput::UpstreamError { upstream, remote, question, error }
            }
            kind::BACKEND_CHANGED => {
                let backend = self.backend()?;
                let event = match self.byte()? {
                    0 => BackendEvent::Up,
                    1 => BackendEvent::Down,
                    2 => BackendEvent::Unprobed,
                    3 => BackendEvent::Drain { deadline: None },
                    4 => {
                        let deadline = Some(Instant::from_nanos(self.number()?));
                        BackendEvent::Drain { deadline }
                    }
                    5 => BackendEvent::Undrain,
                    _ => return None,
                };
                ManagerInput::BackendChanged { backend, event }
            }
            kind::DRAIN => ManagerInput::Drain { deadline: Instant::from_nanos(self.number()?) },
            kind::FLOW_ACTIVITY => {
                let (flow, backend) = (self.flow()?, self.backend()?);
                let (to_backend, to_client) = (self.traffic()?, self.traffic()?);
                let last = match self.byte()? {
                    0 => None,
                    _ => Some(Instant::from_nanos(self.number()?)),
                };
                ManagerInput::FlowActivity { flow, backend, to_backend, to_client, last }
            }
            _ => return None,
        })
    }

    fn send_id(&mut self) -> Option<(SendId, Option<BackendId>, Direction)> {
        let tag = self.byte()?;
        let send_id = match tag & 3 {
            0 => SendId::Flow { flow: self.flow()?, upstream: self.upstream()? },
            1 => SendId::OneWay(self.backend()?),
            2 => SendId::Copy(self.backend()?),
            _ => return None,
        };
        let backend = if tag & 4 == 0 { None } else { Some(self.backend()?) };
        let direction = if tag & 8 == 0 { Direction::ToBackend } else { Direction::ToClient };
        Some((send_id, backend, direction))
    }

    fn question(&mut self) -> Option<TransactionId> {
        let mut words = [0; 3];
        for word in &mut words {
            *word = self.number()?.try_into().ok()?;
        }
        Some(TransactionId::from_words(words))
    }

    fn traffic(&mut self) -> Option<Traffic> {
        Some(Traffic { datagrams: self.number()?, bytes: self.number()? })
    }

    fn backend(&mut self) -> Option<BackendId> {
        let index: u32 = self.number()?.try_into().ok()?;
        Some(BackendId::new(index as usize))
    }

    fn loss(&mut self) -> Option<(Direction, DropReason, u32, u64)> {
        let direction = match self.byte()? {
            0 => Direction::ToBackend,
            1 => Direction::ToClient,
            _ => return None,
        };
        let len = self.byte()?.into();
        let name = self.bytes(len)?;
        let reason = DropReason::ALL.iter().find(|reason| reason.as_str().as_bytes() == name)?;
        Some((direction, *reason, self.number()?.try_into().ok()?, self.number()?))
    }
}

#[cfg(test)]
mod tests;
