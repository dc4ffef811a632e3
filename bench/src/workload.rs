//! What is measured: each workload is one row of this file.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backends::Behaviour;
use crate::payload::Payload;
use crate::peers::Peer;

/// How fast the clients send.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// As fast as datagrams arrive at the other end: this many may be under way at once. This finds the highest rate that
    /// a balancer sustains without ever drowning it.
    Window(u64),
    /// This many a second, whatever happens to them.
    PerSecond(u64),
}

/// The figure for which a workload exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Headline {
    /// Datagrams (or round trips) per second; more is better.
    Rate,
    /// CPU time of the balancer per datagram (or round trip, or flow); less is better.
    Cpu,
    /// The 99th percentile of the latency; less is better.
    Tail,
}

/// One kind of traffic.
#[derive(Debug)]
pub(crate) struct Workload {
    /// The name on the command line.
    pub(crate) name: &'static str,
    /// The name in tables and charts.
    pub(crate) title: &'static str,
    /// What the figures count.
    pub(crate) unit: &'static str,
    pub(crate) headline: Headline,
    pub(crate) behaviour: Behaviour,
    pub(crate) clients: usize,
    /// What datagrams look like.
    pub(crate) payload: Payload,
    /// Bytes of payload in each datagram.
    pub(crate) size: usize,
    /// Datagrams that a client sends in a row, by one GSO send.
    pub(crate) train: usize,
    /// Sends that a client does in a row.
    pub(crate) run: usize,
    pub(crate) pace: Pace,
    /// The balancer closes a flow after this many replies; 0 is never.
    pub(crate) responses: u32,
    /// Whether flows share sockets (`upstream = "shared"`), or have their own.
    pub(crate) shared: bool,
    /// Flowgate's `mode`. nginx knows only sessions.
    pub(crate) mode: Mode,
}

/// What Flowgate does with datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Session,
    OneWay,
    /// Each goes to this many backends.
    FanOut(usize),
}

impl Workload {
    /// How often a datagram arrives at backends, by way of `peer`. Only Flowgate copies: what a copy costs with the
    /// others is what a datagram costs.
    pub(crate) fn copies(&self, peer: Peer) -> usize {
        match self.mode {
            Mode::FanOut(copies) if peer == Peer::Flowgate => copies,
            Mode::FanOut(_) | Mode::Session | Mode::OneWay => 1,
        }
    }

    /// How long a place on a shared socket of Flowgate rests before another flow has it.
    pub(crate) const fn rest(&self) -> Duration {
        if self.shared { Duration::from_secs(1) } else { Duration::ZERO }
    }
}

/// Payload of a small datagram.
const SMALL: usize = 64;

/// A busy client sends a few datagrams whenever it has its turn, as the event loop of a real sender does. Each leaves by
/// itself: they arrive next to each other, but not joined.
const BUSY: usize = 4;

/// Small datagrams under way at once: enough to keep a balancer busy, also one that has to wait for its core, and few
/// enough for any socket buffer on the way.
const SMALL_WINDOW: u64 = 2_048;

/// Flows under way at once where each is of one question: enough to keep a balancer busy.
const NEW_FLOWS_WINDOW: u64 = 256;

/// What most workloads have in common.
pub(crate) const USUAL: Workload = Workload {
    name: "",
    title: "",
    unit: "datagram",
    headline: Headline::Rate,
    behaviour: Behaviour::Sink,
    clients: 64,
    payload: Payload::Plain,
    size: SMALL,
    train: 1,
    run: 1,
    pace: Pace::Window(SMALL_WINDOW),
    responses: 0,
    shared: false,
    mode: Mode::Session,
};

/// All workloads, in the order of the report.
pub(crate) const WORKLOADS: [Workload; 18] = [
    Workload { name: "one-way-64", title: "one-way, 64 clients", run: BUSY, ..USUAL },
    Workload { name: "one-way-4096", title: "one-way, 4,096 clients", clients: 4_096, ..USUAL },
    Workload {
        name: "one-way-mode-64",
        title: "mode one-way, 64 clients",
        run: BUSY,
        mode: Mode::OneWay,
        ..USUAL
    },
    Workload {
        name: "one-way-mode-4096",
        title: "mode one-way, 4,096 clients",
        clients: 4_096,
        mode: Mode::OneWay,
        ..USUAL
    },
    Workload {
        name: "one-way-mode-gso-64",
        title: "mode one-way, 64 clients, GSO",
        train: BUSY,
        mode: Mode::OneWay,
        ..USUAL
    },
    Workload {
        name: "one-way-mode-gso-4096",
        title: "mode one-way, 4,096 clients, GSO",
        clients: 4_096,
        train: BUSY,
        mode: Mode::OneWay,
        ..USUAL
    },
    Workload {
        name: "fan-out-3",
        title: "mode fan-out, 3 targets",
        unit: "copy",
        run: BUSY,
        mode: Mode::FanOut(3),
        ..USUAL
    },
    Workload {
        name: "round-trip-64",
        title: "round trips, 64 clients",
        unit: "round trip",
        behaviour: Behaviour::Echo,
        run: BUSY,
        ..USUAL
    },
    Workload {
        name: "round-trip-4096",
        title: "round trips, 4,096 clients",
        unit: "round trip",
        behaviour: Behaviour::Echo,
        clients: 4_096,
        ..USUAL
    },
    Workload {
        name: "round-trip-10000",
        title: "round trips, 10,000 clients",
        unit: "round trip",
        behaviour: Behaviour::Echo,
        clients: 10_000,
        ..USUAL
    },
    Workload {
        name: "bulk",
        title: "bulk trains, round trips",
        unit: "round trip",
        behaviour: Behaviour::Echo,
        clients: 16,
        size: 1_200,
        train: 32,
        pace: Pace::Window(16 * 32),
        ..USUAL
    },
    Workload {
        name: "new-flows",
        title: "new flow per datagram",
        unit: "flow",
        headline: Headline::Cpu,
        behaviour: Behaviour::Echo,
        // A client comes back after half a second, when its flow has long been closed.
        clients: 4_096,
        pace: Pace::PerSecond(8_000),
        responses: 1,
        ..USUAL
    },
    Workload {
        name: "new-flows-shared",
        title: "new flow, sockets shared",
        unit: "flow",
        headline: Headline::Cpu,
        behaviour: Behaviour::Echo,
        clients: 4_096,
        pace: Pace::PerSecond(8_000),
        responses: 1,
        shared: true,
        ..USUAL
    },
    Workload {
        name: "new-flows-busy",
        title: "new flows, as many as it can",
        unit: "flow",
        behaviour: Behaviour::Echo,
        clients: 4_096,
        pace: Pace::Window(NEW_FLOWS_WINDOW),
        responses: 1,
        ..USUAL
    },
    Workload {
        name: "new-flows-busy-shared",
        title: "the same, sockets shared",
        unit: "flow",
        behaviour: Behaviour::Echo,
        clients: 4_096,
        pace: Pace::Window(NEW_FLOWS_WINDOW),
        responses: 1,
        shared: true,
        ..USUAL
    },
    Workload {
        name: "dns-new-questions",
        title: "DNS, 8,000 questions a second",
        unit: "question",
        headline: Headline::Cpu,
        behaviour: Behaviour::Echo,
        clients: 4_096,
        payload: Payload::Dns,
        pace: Pace::PerSecond(8_000),
        responses: 1,
        shared: true,
        ..USUAL
    },
    Workload {
        name: "dns-new-questions-busy",
        title: "DNS, as many questions as it can",
        unit: "question",
        behaviour: Behaviour::Echo,
        clients: 4_096,
        payload: Payload::Dns,
        pace: Pace::Window(NEW_FLOWS_WINDOW),
        responses: 1,
        shared: true,
        ..USUAL
    },
    Workload {
        name: "latency",
        title: "latency at 20,000/s",
        unit: "round trip",
        headline: Headline::Tail,
        behaviour: Behaviour::Echo,
        pace: Pace::PerSecond(20_000),
        ..USUAL
    },
];
