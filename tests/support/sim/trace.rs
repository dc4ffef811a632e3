//! What a run did: as a number to compare, and as lines to read.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};

use flowgate_core::counters::Traffic;
use flowgate_core::proxy_protocol::Tlvs;
use flowgate_core::{
    Burst, Deadline, FlowId, FlowRecord, Instant, ManagerInput, Output, Repeat, UpstreamId,
};

use super::action::Action;

/// The record of a run. Equal runs have equal hashes.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    hash: DefaultHasher,
    lines: Option<String>,
}

impl Trace {
    /// A record that only hashes.
    pub fn hashed() -> Self {
        Self::default()
    }

    /// A record that can also be read.
    pub fn readable() -> Self {
        Self { lines: Some(String::new()), ..Self::default() }
    }

    /// The hash of all that has been recorded.
    pub fn hash(&self) -> u64 {
        self.hash.finish()
    }

    /// The lines, where they were asked for.
    pub fn lines(&self) -> &str {
        self.lines.as_deref().unwrap_or_default()
    }

    pub(super) fn action(&mut self, number: usize, action: Action) {
        if let Some(lines) = &mut self.lines {
            let _ = writeln!(lines, "{number:>5} {action:?}");
        }
    }

    pub(super) fn note(&mut self, note: &str) {
        if let Some(lines) = &mut self.lines {
            let _ = writeln!(lines, "      {note}");
        }
    }

    pub(super) fn exchange(
        &mut self,
        now: Instant,
        input: &ManagerInput<'_>,
        outputs: &[Output<'_>],
        deadline: Option<Deadline>,
    ) {
        now.hash(&mut self.hash);
        outputs.len().hash(&mut self.hash);
        for output in outputs {
            hash_output(output, &mut self.hash);
        }
        deadline.map(|deadline| deadline.at).hash(&mut self.hash);
        if let Some(lines) = &mut self.lines {
            let (seconds, nanos) = (now.as_nanos() / 1_000_000_000, now.as_nanos() % 1_000_000_000);
            let _ = writeln!(lines, "      > {} at {seconds}.{nanos:09}", Input(input));
            for output in outputs {
                let _ = writeln!(lines, "      = {}", Order(output));
            }
        }
    }
}

fn hash_output(output: &Output<'_>, hash: &mut impl Hasher) {
    std::mem::discriminant(output).hash(hash);
    match output {
        Output::OpenUpstream { upstream, connect, v6, ttl, source } => {
            (upstream, connect, v6, ttl, source).hash(hash);
        }
        Output::OpenFlow { flow, upstream, backend, address, has_moved } => {
            (flow, upstream, backend, address, has_moved).hash(hash);
        }
        Output::OpenClient { flow, client } => (flow, client).hash(hash),
        Output::Offload { flow, upstream, backend, address, client, local } => {
            (flow, upstream, backend, address, client, local).hash(hash);
        }
        Output::Recall { flow } | Output::AskActivity { flow } => flow.hash(hash),
        Output::RecallBackend { backend } => backend.hash(hash),
        Output::Send { flow, upstream, backend, to, prefix, tlvs, tos, ttl, burst } => {
            hash_tlvs(tlvs, hash);
            let prefix = prefix.as_ref().map(|prefix| prefix.as_bytes());
            (flow, upstream, backend, to, prefix, tos, ttl).hash(hash);
            hash_burst(burst, hash);
        }
        Output::Repeat(repeat) => repeat.hash(hash),
        Output::SendOneWay { send_id, address, source, prefix, tlvs, tos, ttl, burst } => {
            hash_tlvs(tlvs, hash);
            let prefix = prefix.as_ref().map(|prefix| prefix.as_bytes());
            (send_id, address, source, prefix, tos, ttl).hash(hash);
            hash_burst(burst, hash);
        }
        Output::Mirror { client, local, proxy_info, tos, ttl, burst } => {
            if let Some(proxy_info) = proxy_info {
                hash_tlvs(&proxy_info.tlvs, hash);
            }
            (client, local, proxy_info.map(|proxy_info| proxy_info.destination), tos, ttl)
                .hash(hash);
            hash_burst(burst, hash);
        }
        Output::SendToClient { flow, upstream, client, local, tos, burst } => {
            (flow, upstream, client, local, tos).hash(hash);
            hash_burst(burst, hash);
        }
        Output::CloseFlow { flow, upstream, reason } => (flow, upstream, reason).hash(hash),
        Output::CloseUpstream { upstream } => upstream.hash(hash),
        Output::RecordFlow { flow, record } => {
            let traffic = |sum: Traffic| (sum.datagrams, sum.bytes);
            let FlowRecord { client, backend, reason, lasted_ns, first_answer_ns, .. } = record;
            (flow, client, backend, reason, lasted_ns, first_answer_ns).hash(hash);
            (traffic(record.to_backend), traffic(record.to_client)).hash(hash);
        }
        Output::Drop { direction, reason, datagrams } => (direction, reason, datagrams).hash(hash),
    }
}

/// There are TLVs only behind proxies; for none nothing is hashed.
fn hash_tlvs(tlvs: &Tlvs<'_>, hash: &mut impl Hasher) {
    tlvs.parts().into_iter().filter(|part| !part.is_empty()).for_each(|part| part.hash(hash));
}

/// Every datagram begins with a number of its own, so that the first bytes tell bursts apart.
fn hash_burst(burst: &Burst<'_>, hash: &mut impl Hasher) {
    let bytes = burst.bytes();
    let start = &bytes[..bytes.len().min(8)];
    (burst.stride(), burst.count(), bytes.len(), start).hash(hash);
}

struct Input<'a>(&'a ManagerInput<'a>);

impl std::fmt::Display for Input<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            ManagerInput::ClientBurst { source, local, ttl, burst, .. } => {
                write!(f, "{} of client {source}, ttl {ttl}", Size(burst))?;
                local.map_or(Ok(()), |local| write!(f, " to {}", local.ip))
            }
            ManagerInput::UpstreamBurst { upstream, sender, burst, .. } => {
                write!(f, "{} of {sender} by {}", Size(burst), Socket(*upstream))
            }
            ManagerInput::UpstreamOpenFailed { upstream } => {
                write!(f, "{} could not be opened", Socket(*upstream))
            }
            ManagerInput::UpstreamError { upstream, remote, question, error } => {
                let about = Socket(*upstream);
                write!(f, "{about} of {remote:?}, about {question:?}: {error:?}")
            }
            ManagerInput::BackendChanged { backend, event } => {
                write!(f, "event of backend {}: {event:?}", backend.index())
            }
            ManagerInput::Configured(_) => f.write_str("the configuration is read again"),
            other => write!(f, "{other:?}"),
        }
    }
}

struct Order<'a>(&'a Output<'a>);

impl std::fmt::Display for Order<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Output::OpenUpstream { upstream, connect, ttl, .. } => {
                write!(f, "open {} to {connect:?}, ttl {ttl}", Socket(*upstream))
            }
            Output::OpenFlow { flow, upstream, address, .. } => {
                write!(f, "open {} to {address} by {}", Name(*flow), Socket(*upstream))
            }
            Output::OpenClient { flow, client } => {
                write!(f, "open a socket for {client}, {}", Name(*flow))
            }
            Output::Offload { flow, .. } => write!(f, "let the kernel forward {}", Name(*flow)),
            Output::Recall { flow } => write!(f, "recall {} from the kernel", Name(*flow)),
            Output::RecallBackend { backend } => {
                write!(f, "recall all flows of backend {} from the kernel", backend.index())
            }
            Output::AskActivity { flow } => {
                write!(f, "ask what the kernel has forwarded of {}", Name(*flow))
            }
            Output::Send { flow, prefix, burst, .. } => {
                let header = if prefix.is_some() { ", with header" } else { "" };
                write!(f, "send {} to the backend of {}{header}", Size(burst), Name(*flow))
            }
            Output::Repeat(Repeat { flow, upstream, .. }) => {
                write!(f, "repeat the question of {} by {}", Name(*flow), Socket(*upstream))
            }
            Output::SendOneWay { address, burst, .. } => {
                write!(f, "send {} one way to {address}", Size(burst))
            }
            Output::Mirror { client, burst, .. } => {
                write!(f, "mirror {} of {client}", Size(burst))
            }
            Output::SendToClient { flow, client, burst, .. } => {
                write!(f, "send {} to {client}, {}", Size(burst), Name(*flow))
            }
            Output::CloseFlow { flow, reason, .. } => write!(f, "close {}: {reason}", Name(*flow)),
            Output::CloseUpstream { upstream } => write!(f, "close {}", Socket(*upstream)),
            Output::RecordFlow { flow, record } => {
                let (sent, got) = (record.to_backend.datagrams, record.to_client.datagrams);
                write!(f, "write down {}: {sent} sent, {got} got", Name(*flow))
            }
            Output::Drop { direction, reason, datagrams } => {
                write!(f, "drop {datagrams} {}: {reason}", direction.as_str())
            }
        }
    }
}

struct Size<'a>(&'a Burst<'a>);

impl std::fmt::Display for Size<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (count, stride, last) = (self.0.count(), self.0.stride(), self.0.last_len());
        write!(f, "{count} x {stride} B")?;
        if last < usize::from(stride) {
            write!(f, " (last {last} B)")?;
        }
        Ok(())
    }
}

struct Socket(UpstreamId);

impl std::fmt::Display for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "socket {}#{}", self.0.index(), self.0.generation())
    }
}

struct Name(FlowId);

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "flow {}#{}", self.0.index(), self.0.generation())
    }
}
