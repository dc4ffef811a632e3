//! Snapshots of nobody knows what.

use std::net::SocketAddr;

use flowgate::handover::prepared::PreparedListeners;
use flowgate::handover::snapshot::ProcessSnapshot;
use flowgate_core::backend::Backend;
use flowgate_core::config::{Balance, ManagerConfig};
use flowgate_core::proxy_protocol::ProxyHeader;
use flowgate_core::snapshot::{ManagerSnapshot, SnapshotError, decode, encode};
use flowgate_core::{
    BackendEvent, Burst, Direction, DropReason, Instant, ManagerInput, NetworkError, Output,
    SendId, UdpFlow, UdpManager,
};
use serde::ser::SerializeTuple as _;
use serde::{Serialize, Serializer};

/// A larger table takes longer to allocate than to attack.
const LARGEST_TABLE: u32 = 4_096;

/// Timeouts until most of what there is has ended.
const TIMEOUTS: usize = 64;

/// Bytes are no snapshot, or one that says why it cannot be. In an envelope that fits them they may
/// be one that nobody has written: it is refused, or makes a manager that is sound, and stays so
/// whatever happens to it.
pub fn snapshot(data: &[u8]) {
    if let Ok(snapshot) = decode::<ManagerSnapshot>(data) {
        assert_eq!(
            decode(&encode(&snapshot)),
            Ok(snapshot),
            "what was decoded is encoded as another"
        );
    }
    match decode::<ManagerSnapshot>(&encode(&Raw(data))) {
        Ok(snapshot) => go_on(snapshot),
        Err(error) => assert_eq!(error, SnapshotError::Malformed, "the envelope is right"),
    }
    if let Ok(snapshot) = decode::<ProcessSnapshot>(&encode(&Raw(data))) {
        look_at(snapshot);
    }
}

/// The snapshot of a process is refused, or one of which everything can be made.
fn look_at(mut snapshot: ProcessSnapshot) {
    let shards = || snapshot.server.listeners.iter().flat_map(|listener| &listener.shards);
    let managers = || shards().flat_map(|shard| [Some(shard.manager()), shard.mirror()]).flatten();
    let are_small = managers().all(|manager| is_small(manager.config()));
    if are_small {
        // Why it is refused makes no difference.
        let _ = PreparedListeners::of(&mut snapshot.server);
    }
    let _ = flowgate_config::parse(&snapshot.config, "of another process");
}

fn is_small(config: &ManagerConfig) -> bool {
    config.max_flows <= LARGEST_TABLE && config.cluster.balance != Balance::Maglev
}

/// Bytes that are written as they are.
struct Raw<'a>(&'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = serializer.serialize_tuple(self.0.len())?;
        self.0.iter().try_for_each(|byte| bytes.serialize_element(byte))?;
        bytes.end()
    }
}

fn go_on(snapshot: ManagerSnapshot) {
    if !is_small(snapshot.config()) {
        return;
    }
    let sockets = snapshot.upstream_ids().count();
    let Ok(mut manager) = UdpManager::restore(snapshot, None) else { return };
    manager.assert_invariants();
    let written = manager.snapshot();
    assert_eq!(written.upstream_ids().count(), sockets, "a socket was lost");
    let mut again = UdpManager::restore(written.clone(), None).expect("the snapshot of a manager");
    assert_eq!(again.snapshot(), written, "what was restored is another");
    disturb(&mut manager);
    UdpManager::restore(manager.snapshot(), None).expect("the snapshot of a manager");
}

/// Something of every kind happens to a manager, and then time passes.
fn disturb(manager: &mut UdpManager) {
    let now = manager.poll_timeout().map_or(Instant::ORIGIN, |deadline| deadline.at);
    let of = |flow: &UdpFlow| {
        (flow.upstream(), manager.backends().get(flow.backend()).map(Backend::address))
    };
    let flows: Vec<_> = manager.flows().map(|(_, flow)| of(flow)).collect();
    let clients: Vec<SocketAddr> = manager.flows().map(|(_, flow)| flow.client()).collect();
    let strangers = (0..8).map(|port| SocketAddr::from(([198, 51, 100, 1], 4_000 + port)));
    let proxied = ProxyHeader::new(([198, 51, 100, 2], 1).into(), ([192, 0, 2, 1], 53).into());
    let header = [proxied.as_bytes(), b"x"].concat();
    for source in clients.into_iter().chain(strangers) {
        for bytes in [&header[..], b"follows"] {
            let burst = Burst::single(bytes).expect("a datagram");
            let (local, tos, ttl) = (None, 0, 64);
            tell(manager, ManagerInput::ClientBurst { source, local, tos, ttl, burst }, now);
        }
    }
    for &(upstream, remote) in &flows {
        let burst = Burst::single(b"answer").expect("a datagram");
        let sender = remote.unwrap_or(([198, 51, 100, 9], 9).into());
        tell(manager, ManagerInput::UpstreamBurst { upstream, sender, tos: 0, burst }, now);
        let error = NetworkError::Refused;
        tell(manager, ManagerInput::UpstreamError { upstream, remote, question: None, error }, now);
    }
    let backends: Vec<_> = manager.backends().iter().map(|(id, _)| id).collect();
    for (place, &backend) in backends.iter().enumerate() {
        let event = match place % 3 {
            0 => BackendEvent::Down,
            1 => BackendEvent::Drain { deadline: Some(now) },
            _ => BackendEvent::Up,
        };
        tell(manager, ManagerInput::BackendChanged { backend, event }, now);
    }
    for _ in 0..TIMEOUTS {
        let Some(deadline) = manager.poll_timeout() else { break };
        tell(manager, ManagerInput::Timeout, deadline.at.max(now));
    }
}

fn tell(manager: &mut UdpManager, input: ManagerInput<'_>, now: Instant) {
    let mut outputs: Vec<Output<'_>> = vec![];
    manager.handle_input(input, now, &mut outputs);
    let sent = outputs.iter().find_map(|output| match output {
        &Output::Send { flow, upstream, burst, .. } => {
            Some((SendId::Flow { flow, upstream }, burst))
        }
        Output::SendOneWay { send_id, burst, .. } => Some((*send_id, *burst)),
        _ => None,
    });
    // Some of it cannot be sent.
    if let Some((send_id, burst)) = sent.filter(|_| outputs.len() % 2 == 1) {
        let lost = ManagerInput::Undelivered {
            send_id,
            backend: None,
            direction: Direction::ToBackend,
            reason: DropReason::QueueFull,
            datagrams: burst.count().into(),
            bytes: burst.bytes().len() as u64,
        };
        manager.handle_input(lost, now, &mut vec![]);
    }
    manager.assert_invariants();
}
