//! How a cluster's backends are probed.

use std::time::Duration;

/// How a cluster's backends are probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probing {
    /// What a probe does.
    pub kind: Probe,
    /// The port to probe, never 0. None: that of the backend.
    pub port: Option<u16>,
    /// How often each backend is probed.
    pub interval: Duration,
    /// How long an answer may take. Where that is longer than the interval, the next probe waits.
    pub timeout: Duration,
    /// How many probes in a row must succeed to bring a backend up. At least 1.
    pub rise: u32,
    /// How many probes in a row must fail to put a backend down. At least 1.
    pub fall: u32,
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Connects, and is content with that.
    Tcp,
    /// Sends a datagram and waits for an answer.
    Udp {
        /// What it sends.
        send: Payload,
        /// What the answer must be. [`Expect::Any`] where `send` is a preset, which knows itself
        /// what an answer looks like.
        expect: Expect,
    },
}

/// What a UDP probe sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// These bytes: 1 to 65,507 of them.
    Bytes(Vec<u8>),
    /// A DNS query.
    Dns,
    /// An NTP request.
    Ntp,
    /// A SIP `OPTIONS` request.
    Sip,
    /// A QUIC packet of a version that no server has, to be answered by version negotiation.
    Quic,
}

/// What the answer to a UDP probe must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Anything.
    Any,
    /// It begins with these bytes: 1 to 65,507 of them.
    Bytes(Vec<u8>),
    /// This pattern is found in it. `regex::bytes::Regex::new` accepts it.
    Regex(String),
}
