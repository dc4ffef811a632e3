//! The documents that tell how things stand: what `flowgate status --json` prints and `GET /status`
//! returns, and the list of flows.
//!
//! Their fields are the product's public face. Fields are added, never renamed or removed; anyone who
//! reads a document skips those that it does not know.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

pub use flowgate_core::backend::BackendState;
use flowgate_core::counters::{AnswerTimes, Counters, Ledger, Traffic};
use flowgate_core::{CloseReason, DropReason};
use serde::{Deserialize, Serialize};

/// How things stand.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusDocument {
    /// The version of the Flowgate that is running.
    pub version: String,
    /// Its process id.
    #[serde(default)]
    pub pid: u32,
    /// How long it has been running, with the processes that it took over from.
    pub uptime_seconds: f64,
    /// Whether it takes no new flows, to stop.
    #[serde(default)]
    pub draining: bool,
    /// Whether it is to stop: for a while it may still take new flows, see `lame_duck`.
    #[serde(default)]
    pub stopping: bool,
    /// How many backends of each cluster have to be up for this instance to be ready, unless one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_backends_up: Option<u32>,
    /// Whether the whole of it is announced, if it ever is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announce: Option<AnnounceStatus>,
    /// The listeners in the order of the configuration.
    pub listeners: Vec<ListenerStatus>,
    /// The clusters in the order of the configuration.
    pub clusters: Vec<ClusterStatus>,
    /// What was counted since the start, with what listeners counted that a reload has removed.
    pub counters: CountersDoc,
    /// The hosts whose names backends have, and whether they resolve.
    #[serde(default)]
    pub names: Vec<NameStatus>,
    /// The process, its host and its configuration.
    #[serde(default)]
    pub process: ProcessStatus,
    /// What happened last to backends and to the configuration, the latest first.
    #[serde(default)]
    pub events: Vec<EventDoc>,
}

/// Whether this instance, or a listener, is announced to routers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AnnounceStatus {
    /// Whether it is to be.
    pub wanted: bool,
    /// Whether they have been told so, or the contrary. None: neither yet.
    pub announced: Option<bool>,
    /// Why they could not be told the last time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// The process, its host and its configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessStatus {
    /// The host's name: any characters whatever, to be escaped wherever it is shown.
    pub host: String,
    /// The configuration file.
    pub config: String,
    /// What time it was when this was written, in seconds since 1970 began (UTC).
    pub now: f64,
    /// The same of the start of this process.
    pub started: f64,
    /// The last reload, if there was any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_reload: Option<ReloadStatus>,
    /// By which calls of the system datagrams come and go: `linux` or `portable`.
    pub io: String,
    /// What it uses of the system.
    pub usage: UsageDoc,
}

/// How a reload ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReloadStatus {
    /// When, in seconds since 1970 began (UTC).
    pub at: f64,
    /// Whether the new configuration is in force.
    pub ok: bool,
    /// What changed, or why it was refused.
    pub notes: Vec<String>,
}

/// What a process uses of the system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UsageDoc {
    /// Seconds on processors, in its own code and in the kernel's.
    pub cpu_seconds: f64,
    /// Bytes of memory that are there.
    pub resident_bytes: u64,
    /// Bytes of addresses that are taken.
    pub virtual_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Open files, sockets among them.
    pub open_files: u64,
    /// How many it may open.
    pub open_files_max: u64,
}

/// How things stand with the name of a host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NameStatus {
    /// The name, as the configuration has it.
    pub name: String,
    /// The addresses in use: those of the last good answer.
    pub addresses: Vec<IpAddr>,
    /// Whether the last lookup went well.
    pub resolves: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// For how long it has not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_seconds: Option<f64>,
}

/// Something that happened.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventDoc {
    /// When, in seconds since 1970 began (UTC).
    pub at: f64,
    /// What kind of thing: the state that a backend went over to, `reloaded`, `refused`.
    pub kind: String,
    /// What it happened to: `CLUSTER/BACKEND`, a listener that is announced by itself, or nothing.
    pub subject: String,
    /// What there is to say of it.
    pub text: String,
}

impl StatusDocument {
    /// Why new flows cannot all be served, a line for each reason. None: they can.
    pub fn not_ready(&self) -> Vec<String> {
        let is_used =
            |cluster: &str| self.listeners.iter().any(|listener| listener.cluster == cluster);
        self.unfit(self.min_backends_up.unwrap_or(1), is_used)
    }

    /// Why new flows cannot all be served by some clusters, of each of which at least `least` backends
    /// have to be up, a line for each reason.
    pub fn unfit(&self, least: u32, is_used: impl Fn(&str) -> bool) -> Vec<String> {
        let draining = match (self.draining, self.stopping) {
            (true, _) => Some("draining: no new flows are taken\n".to_owned()),
            (false, true) => Some("stopping: new flows are taken for a while yet\n".to_owned()),
            (false, false) => None,
        };
        let least = least as usize;
        let serves = |state| matches!(state, BackendState::Up | BackendState::Unchecked);
        let up = |cluster: &ClusterStatus| {
            cluster.backends.iter().filter(|backend| serves(backend.state)).count()
        };
        let used = self.clusters.iter().filter(|cluster| is_used(&cluster.name));
        let used = used.map(|cluster| (cluster, up(cluster)));
        let down = used.filter(|(_, up)| *up < least).map(|(cluster, up)| match up {
            0 => format!("cluster {:?}: no backend is up\n", cluster.name),
            up => {
                format!("cluster {:?}: {up} backends are up, of at least {least}\n", cluster.name)
            }
        });
        draining.into_iter().chain(down).collect()
    }
}

/// How things stand on one listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// Its name: any characters whatever, to be escaped wherever it is shown.
    pub name: String,
    /// The address it is bound to, with all its ports where it has a range of them.
    pub address: String,
    /// The name of its cluster.
    pub cluster: String,
    /// Flows alive.
    pub flows_active: u64,
    /// The most flows it can have.
    pub flows_max: u64,
    /// Flows opened since the start.
    #[serde(default)]
    pub flows_opened: u64,
    /// How often a question was asked again of another backend.
    #[serde(default)]
    pub retries: u64,
    /// Flows closed since the start, by reason; only reasons that are not zero.
    #[serde(default)]
    pub flows_closed: BTreeMap<String, u64>,
    /// Datagrams of clients that the kernel dropped before they were received: the receive buffer was
    /// full, or a checksum was wrong (`SO_RXQ_OVFL`). They are not among those received.
    #[serde(default)]
    pub socket_drops: u64,
    /// The same of backends' datagrams.
    #[serde(default)]
    pub upstream_socket_drops: u64,
    /// Sockets to backends that one flow has for itself.
    #[serde(default)]
    pub upstreams_per_flow: u64,
    /// Those that flows share.
    #[serde(default)]
    pub upstreams_shared: u64,
    /// Clients that have sockets of their own.
    #[serde(default)]
    pub client_sockets: u64,
    /// How often one could not be opened; the client was served by the listener then.
    #[serde(default)]
    pub client_sockets_failed: u64,
    /// Where the datagrams of clients went.
    #[serde(default)]
    pub to_backend: LedgerDoc,
    /// Where the datagrams of backends went.
    #[serde(default)]
    pub to_client: LedgerDoc,
    /// What mirrors its cluster, if anything does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<MirrorStatus>,
    /// How the kernel forwards its flows past the sockets, if it is to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fast_path: Option<FastPathStatus>,
    /// Whether it is announced by itself, if it ever is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announce: Option<AnnounceStatus>,
}

/// How the kernel forwards a listener's flows past the sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FastPathStatus {
    /// What the configuration asks for: "auto" or "tc".
    pub mode: String,
    /// Why it does not, if it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The flows that it forwards.
    pub flows: u64,
    /// The datagrams that it has forwarded. They are among those that were forwarded.
    pub datagrams: ByDirection,
    /// How often it began to forward a flow that had not paused for 100 ms, so that one datagram may
    /// have overtaken another.
    pub overtaken: u64,
}

/// How things stand with a mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MirrorStatus {
    /// The name of the cluster that gets the copies.
    pub cluster: String,
    /// Where the copies went. What is received are the datagrams that were copied.
    pub to_backend: LedgerDoc,
}

/// How things stand in one cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Its name: any characters whatever, to be escaped wherever it is shown.
    pub name: String,
    /// How it balances, as in the configuration.
    pub balance: String,
    /// What becomes of a client's datagrams, as in the configuration.
    #[serde(default)]
    pub mode: String,
    /// `direct` where answers go from the backends straight to the clients: nothing is known of them
    /// here then, and there are no flows.
    #[serde(default, rename = "return", skip_serializing_if = "Option::is_none")]
    pub way_back: Option<String>,
    /// What two instances share that place clients alike, in hexadecimal digits: it stands for the
    /// set of backends, their weights, and how a backend is chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// Its backends in the order of the configuration.
    pub backends: Vec<BackendStatus>,
}

/// How things stand with one backend of one cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Its address.
    pub address: SocketAddr,
    /// The host's name that was resolved to the address, if the configuration gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its weight.
    pub weight: u32,
    /// Whether it is used only while no other can be.
    #[serde(default)]
    pub backup: bool,
    /// Whether it takes flows.
    pub state: BackendState,
    /// Why, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// For how long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_seconds: Option<f64>,
    /// How long it will last at most, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_seconds: Option<f64>,
    /// How often it was put out of service by what traffic showed, by cause.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ejections: BTreeMap<String, u64>,
    /// Flows alive on it.
    pub flows_active: u64,
    /// Datagrams sent to it.
    pub datagrams_to: u64,
    /// Datagrams that came from it.
    pub datagrams_from: u64,
    /// Payload bytes sent to it.
    #[serde(default)]
    pub bytes_to: u64,
    /// Payload bytes that came from it.
    #[serde(default)]
    pub bytes_from: u64,
    /// Datagrams that were to be sent to it and could not be.
    #[serde(default)]
    pub datagrams_dropped: u64,
    /// How long its first answers took, where it is to answer through here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_answers: Option<AnswerTimesDoc>,
    /// The weight that the configuration gives it, where an operator has given it another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configured_weight: Option<u32>,
}

/// How long first answers took, from the first datagram of a flow on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AnswerTimesDoc {
    /// How many there were.
    pub count: u64,
    /// How long all of them took together.
    pub sum_seconds: f64,
    /// How many took at most this many seconds, in rising order.
    pub buckets: Vec<(f64, u64)>,
}

impl From<&AnswerTimes> for AnswerTimesDoc {
    fn from(times: &AnswerTimes) -> Self {
        let bounded = times.cumulated().filter_map(|(bound, count)| Some((bound?, count)));
        Self {
            count: times.count(),
            sum_seconds: times.sum().as_secs_f64(),
            buckets: bounded.map(|(bound, count)| (bound.as_secs_f64(), count)).collect(),
        }
    }
}

/// The sums over all listeners. In each direction `received = forwarded + dropped + queued`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CountersDoc {
    /// Datagrams that arrived.
    pub datagrams_received: ByDirection,
    /// Datagrams that the kernel has taken to send on.
    pub datagrams_forwarded: ByDirection,
    /// Datagrams that wait for room in send buffers.
    pub datagrams_queued: ByDirection,
    /// Datagrams that were dropped, for whatever reason.
    pub datagrams_dropped: ByDirection,
    /// Payload bytes that arrived.
    pub bytes_received: ByDirection,
    /// Payload bytes that the kernel has taken to send on.
    pub bytes_forwarded: ByDirection,
    /// Payload bytes that wait for room in send buffers.
    pub bytes_queued: ByDirection,
    /// Payload bytes that were dropped.
    pub bytes_dropped: ByDirection,
    /// Flows opened.
    pub flows_opened: u64,
    /// Flows closed.
    pub flows_closed: u64,
    /// Reloads that were applied.
    pub reloads_ok: u64,
    /// Reloads that were refused.
    pub reloads_failed: u64,
}

impl CountersDoc {
    /// Adds what one listener counted.
    pub fn add(&mut self, counters: &Counters) {
        type Pick = fn(&mut ByDirection) -> &mut u64;
        let ways: [(&Ledger, Pick); 2] = [
            (&counters.to_backend, |sums| &mut sums.to_backend),
            (&counters.to_client, |sums| &mut sums.to_client),
        ];
        for (ledger, way) in ways {
            let dropped = ledger.dropped_total();
            for (datagrams, bytes, traffic) in [
                (&mut self.datagrams_received, &mut self.bytes_received, ledger.received),
                (&mut self.datagrams_forwarded, &mut self.bytes_forwarded, ledger.forwarded),
                (&mut self.datagrams_queued, &mut self.bytes_queued, ledger.queued),
                (&mut self.datagrams_dropped, &mut self.bytes_dropped, dropped),
            ] {
                *way(datagrams) += traffic.datagrams;
                *way(bytes) += traffic.bytes;
            }
        }
        self.flows_opened += counters.flows_opened;
        self.flows_closed += counters.flows_closed.iter().sum::<u64>();
    }
}

/// A figure for each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ByDirection {
    /// From clients to backends.
    pub to_backend: u64,
    /// From backends to clients.
    pub to_client: u64,
}

/// Where the datagrams of one direction went: `received = forwarded + dropped + queued`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LedgerDoc {
    /// All that arrived.
    pub received: TrafficDoc,
    /// What the kernel has taken to send on.
    pub forwarded: TrafficDoc,
    /// What waits for room in send buffers.
    pub queued: TrafficDoc,
    /// What was dropped, by reason; only reasons that are not zero.
    pub dropped: BTreeMap<String, TrafficDoc>,
}

impl LedgerDoc {
    /// What was dropped, for whatever reason.
    pub fn dropped_total(&self) -> TrafficDoc {
        self.dropped.values().fold(TrafficDoc::default(), |sum, &traffic| sum.plus(traffic))
    }
}

impl From<&Ledger> for LedgerDoc {
    fn from(ledger: &Ledger) -> Self {
        let dropped = DropReason::ALL
            .iter()
            .map(|&reason| (reason.to_string(), ledger.dropped_for(reason).into()))
            .filter(|(_, traffic)| *traffic != TrafficDoc::default())
            .collect();
        Self {
            received: ledger.received.into(),
            forwarded: ledger.forwarded.into(),
            queued: ledger.queued.into(),
            dropped,
        }
    }
}

/// An amount of traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrafficDoc {
    /// Datagrams.
    pub datagrams: u64,
    /// Payload bytes: no headers, no prefixes.
    pub bytes: u64,
}

impl TrafficDoc {
    /// Both together.
    pub const fn plus(self, other: Self) -> Self {
        Self {
            datagrams: self.datagrams.saturating_add(other.datagrams),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }
}

impl From<Traffic> for TrafficDoc {
    fn from(traffic: Traffic) -> Self {
        Self { datagrams: traffic.datagrams, bytes: traffic.bytes }
    }
}

/// Flows closed, by reason; only reasons that are not zero.
pub fn flows_closed(counters: &Counters) -> BTreeMap<String, u64> {
    CloseReason::ALL
        .iter()
        .map(|&reason| (reason.to_string(), counters.closed(reason)))
        .filter(|(_, flows)| *flows > 0)
        .collect()
}

/// The flows that fit a [filter](crate::admin::request::FlowFilter).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowsDocument {
    /// The flows, in no particular order.
    pub flows: Vec<FlowStatus>,
    /// Whether more flows fit than the limit of the filter lets through.
    #[serde(default)]
    pub truncated: bool,
}

/// How things stand with one flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowStatus {
    /// The name of its listener: any characters whatever, to be escaped wherever it is shown.
    pub listener: String,
    /// The client.
    pub client: SocketAddr,
    /// The address that the client sends to, where the listener is on a wildcard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<SocketAddr>,
    /// The backend that serves it.
    pub backend: SocketAddr,
    /// How long ago it was opened.
    pub age_ms: u64,
    /// In how long it will be closed as idle, unless a datagram comes before.
    pub idle_deadline_ms: u64,
    /// What the client sent.
    pub to_backend: TrafficDoc,
    /// What the backend sent.
    pub to_client: TrafficDoc,
    /// Whether the backend has answered.
    pub answered: bool,
    /// Whether the kernel forwards its datagrams past the sockets.
    #[serde(default)]
    pub fast_path: bool,
    /// What it was placed by: "source", "server-id", "learned-id", "key" or "orphan".
    #[serde(default)]
    pub placed_by: String,
    /// The id or key that it was placed by, in hexadecimal digits: the first 20 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placed_by_id: Option<String>,
}

#[cfg(test)]
mod tests;
