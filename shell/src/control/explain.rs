//! Where a client's datagrams would go, and why: by a configuration alone, or as things stand.

mod payload;

use std::net::{IpAddr, SocketAddr};

use flowgate_config::{Cluster, Config, Listener};
use flowgate_core::backend::{Backend, Backends};
use flowgate_core::balance::Balancer;
use flowgate_core::config::{
    Affinity, BackendConfig, Balance, ClusterConfig, Mode, ReplyFrom, Source, SourceAddress,
};
use flowgate_core::hash::ClientHash;
use flowgate_core::random::Random;
use flowgate_core::{BackendEvent, BackendId, Instant, ManagerInput, UdpManager};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use payload::Says;

use crate::control::source;

/// A backend as it stands.
pub(crate) struct ExplainedBackend {
    /// What is configured, resolved and set.
    pub(crate) backend: BackendConfig,
    /// Why it takes no new flow, if it does not.
    pub(crate) is_out: Option<String>,
    /// Whether it takes nothing at all, not even of connections that it knows.
    pub(crate) is_down: bool,
}

/// How the backends of a cluster stand.
pub(crate) type Look<'a> = &'a dyn Fn(&Cluster) -> Vec<ExplainedBackend>;

/// What a client sends, as far as that counts.
#[derive(Clone, Copy)]
pub(crate) struct Question<'p> {
    /// The client; port 0 stands for any.
    pub(crate) client: SocketAddr,
    /// The payload of its first datagram.
    pub(crate) payload: Option<&'p [u8]>,
}

/// What a client gets from one listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedListener {
    /// The listener.
    pub listener: String,
    /// Its address, with all its ports where it has a range of them.
    pub address: String,
    /// None: it is not reached.
    pub cluster: Option<String>,
    /// The backend, where what is known decides.
    pub backend: Option<SocketAddr>,
    /// Why, and what else there is to know.
    pub because: Vec<String>,
    /// Whether an id names the backend, to which a flow that there is goes over.
    #[serde(skip)]
    pub is_named: bool,
}

/// What a client gets from each listener.
pub(crate) fn explain_all(
    config: &Config,
    question: Question<'_>,
    look: Look<'_>,
) -> Vec<ExplainedListener> {
    let all = config.listeners.iter().filter(|listener| listener.routed_from.is_none());
    all.map(|listener| explain_listener(config, listener, question, look)).collect()
}

/// What becomes of a client's datagrams at a listener.
fn explain_listener(
    config: &Config,
    listener: &Listener,
    question: Question<'_>,
    look: Look<'_>,
) -> ExplainedListener {
    let client = question.client;
    let mut explanation = ExplainedListener {
        listener: listener.name.clone(),
        address: listener.written_address(),
        cluster: None,
        backend: None,
        because: Vec::new(),
        is_named: false,
    };
    let because = &mut explanation.because;
    let proxies = &listener.accept_proxy_protocol;
    let ip = client.ip().to_canonical();
    if proxies.iter().any(|network| network.contains(&ip)) {
        because.push("is believed as a proxy: its PROXY v2 headers name the client".to_owned());
    }
    // By a proxy a client of either family can come.
    if proxies.is_empty() && !can_reach(client.ip(), listener) {
        because.push("cannot be reached: it does not listen on the client's family".to_owned());
        return explanation;
    }
    if proxies.is_empty()
        && let Some(line) = refused(listener, ip)
    {
        because.push(line);
        return explanation;
    }
    let routed = listener.routes.of(ip);
    if let Some(cluster) = routed {
        because.push(format!("by the first route that has it, to cluster {cluster:?}"));
    }
    let routed = routed.and_then(|cluster| config.cluster(cluster));
    let listener =
        &Listener { cluster: routed.unwrap_or(&listener.cluster).clone(), ..listener.clone() };
    explanation.cluster = Some(listener.cluster.name.clone());
    let (backend, lines) = explain(listener, question, look, &mut explanation.is_named);
    explanation.backend = backend;
    because.extend(lines);
    because.extend(explain_source(listener, client, backend, look));
    explanation
}

pub(crate) fn describe_client(client: SocketAddr) -> String {
    match client.port() {
        0 => format!("{} (any port)", client.ip()),
        _ => client.to_string(),
    }
}

/// Whether datagrams of the client's family can arrive at a listener.
fn can_reach(client: IpAddr, listener: &Listener) -> bool {
    match (client.to_canonical(), listener.address) {
        (IpAddr::V4(_), SocketAddr::V4(_)) | (IpAddr::V6(_), SocketAddr::V6(_)) => true,
        (IpAddr::V6(_), SocketAddr::V4(_)) => false,
        (IpAddr::V4(_), SocketAddr::V6(on)) => on.ip().is_unspecified() && !listener.v6_only,
    }
}

/// The line that says why a client has no flows here, if it may have none.
fn refused(listener: &Listener, client: IpAddr) -> Option<String> {
    let holder = |networks: &[IpNet]| networks.iter().find(|net| net.contains(&client)).copied();
    if let Some(network) = holder(&listener.deny) {
        return Some(format!("dropped (denied): the client is in {network}, which `deny` lists"));
    }
    let is_allowed = listener.allow.is_empty() || holder(&listener.allow).is_some();
    (!is_allowed)
        .then(|| "dropped (denied): no network that `allow` lists has the client".to_owned())
}

/// The backend that a new flow would get, if that can be told, and the lines that say so.
fn explain(
    listener: &Listener,
    Question { client, payload }: Question<'_>,
    look: Look<'_>,
    is_named: &mut bool,
) -> (Option<SocketAddr>, Vec<String>) {
    let policy = &listener.cluster.policy;
    let explained = look(&listener.cluster);
    let manager = manager_of(listener, &explained);
    let backends = manager.backends();
    let why_out = |ExplainedBackend { backend, is_out, .. }: &ExplainedBackend| {
        Some(format!("not {}: {}", backend.address, is_out.as_ref()?))
    };
    let mut lines: Vec<String> = explained.iter().filter_map(why_out).collect();
    if !lines.is_empty() && lines.len() == explained.len() && policy.health.fail_open {
        lines.push("none is left, so that all count as up (fail_open)".to_owned());
    }
    if let Mode::FanOut { reply_from } = policy.mode {
        lines.extend(explain_copies(backends, reply_from));
        return (None, lines);
    }
    let resolved = ClusterConfig {
        backends: explained.iter().map(|backend| backend.backend).collect(),
        ..policy.clone()
    };
    let (says, line) = payload::read(&resolved, payload);
    lines.extend(line);
    let takes = |named: SocketAddr, is_new: bool| {
        let known = explained.iter().find(|known| known.backend.address == named);
        known.is_some_and(|known| if is_new { known.is_out.is_none() } else { !known.is_down })
    };
    let key = match says {
        Says::Backend { address, is_new } if !takes(address, is_new) => {
            lines.push(format!("its server id is that of {address}, which does not take it"));
            None
        }
        Says::Backend { address: backend, .. } => {
            *is_named = true;
            lines.push(format!("backend {backend}"));
            lines.push("because its server id is in the connection id".to_owned());
            return (Some(backend), lines);
        }
        Says::Key(key) => Some(key),
        Says::Nothing => None,
    };
    let (backend, of_balance) = explain_balance(policy, backends, client, key);
    lines.extend(of_balance);
    (backend, lines)
}

/// A manager that knows the backends, and how they stand.
fn manager_of(listener: &Listener, explained: &[ExplainedBackend]) -> UdpManager {
    let backends = explained.iter().map(|backend| backend.backend).collect();
    let config = listener.manager_config(listener.address, 1, Vec::new(), false, backends);
    let mut manager = UdpManager::new(config, 0, Instant::ORIGIN);
    for (place, _) in explained.iter().enumerate().filter(|(_, s)| s.is_out.is_some()) {
        let (backend, event) = (BackendId::new(place), BackendEvent::Down);
        let input = ManagerInput::BackendChanged { backend, event };
        manager.handle_input(input, Instant::ORIGIN, &mut Vec::new());
    }
    manager
}

/// The backend that the balancer would pick, by a key if there is one, if that can be told.
fn explain_balance(
    policy: &ClusterConfig,
    backends: &Backends,
    client: SocketAddr,
    key: Option<&[u8]>,
) -> (Option<SocketAddr>, Vec<String>) {
    let mut balancer = Balancer::by_affinity(policy.balance, policy.affinity, backends);
    let hash = || match key {
        Some(key) => ClientHash::of_key(key),
        None => ClientHash::new(client, policy.affinity),
    };
    let picked = balancer.pick_by(backends, &hash, &mut Random::new(0));
    let Some(picked) = picked.and_then(|id| backends.get(id)) else {
        return (None, vec!["no backend: datagrams are dropped (no_backend)".to_owned()]);
    };
    let balance = policy.balance;
    let is_hashed = matches!(balance, Balance::Rendezvous | Balance::Maglev);
    if is_hashed && !(policy.affinity == Affinity::SourceIpPort && client.port() == 0) {
        let key = match policy.affinity {
            _ if key.is_some() => "the key",
            Affinity::SourceIpPort => "its address and port",
            _ => "its address",
        };
        let lines = vec![
            format!("backend {}", picked.address()),
            format!("because {balance} hashes {key} to it, here and on every other instance"),
        ];
        return (Some(picked.address()), lines);
    }
    let mut lines = vec![match balance {
        Balance::Rendezvous | Balance::Maglev => {
            format!("backend by {balance} of address and port: give a port to see which")
        }
        Balance::RoundRobin => "backend by turns: whichever is next".to_owned(),
        Balance::Random => "backend at random".to_owned(),
        Balance::LeastFlows => "backend with the fewest flows for its weight".to_owned(),
        Balance::PowerOfTwo => "backend with fewer flows of two taken at random".to_owned(),
    }];
    lines.extend(shares(backends));
    (None, lines)
}

/// The line that says which address the backend sees, where the configuration chooses one.
fn explain_source(
    listener: &Listener,
    client: SocketAddr,
    backend: Option<SocketAddr>,
    look: Look<'_>,
) -> Option<String> {
    let source = &listener.cluster.policy.source;
    Some(match source {
        Source::Any => return None,
        Source::Client if listener.cluster.is_direct => format!(
            "sent from its own address: {}; answers go straight to it, from a backend that is set up \
             for that (`flowgate explain --backend-setup`)",
            describe_client(client)
        ),
        Source::Client if !listener.accept_proxy_protocol.is_empty() => {
            "sent from the client's own address and port, or those that its proxy names".to_owned()
        }
        Source::Client => format!("sent from its own address: {}", describe_client(client)),
        Source::Local(addresses) => {
            let known = || look(&listener.cluster).into_iter().map(|known| known.backend.address);
            let all = backend.map_or_else(|| known().collect(), |backend| vec![backend]);
            // While no backend is known, each may come to be used.
            let is_used = |source: &&SourceAddress| {
                all.is_empty() || all.iter().any(|backend| source.is_of_family(backend.is_ipv6()))
            };
            let used = addresses.iter().filter(is_used).copied().collect();
            format!("sent from {}", source::describe(&Source::Local(used)))
        }
    })
}

/// The lines that say who gets copies, and whose answers the client gets.
fn explain_copies(backends: &Backends, reply_from: ReplyFrom) -> Vec<String> {
    let targets = || backends.targets().iter().filter_map(|&id| backends.get(id));
    let mut lines = vec!["every backend in service gets a copy:".to_owned()];
    lines.extend(targets().map(|backend| format!("  {}", backend.address())));
    lines.push(match reply_from {
        ReplyFrom::Nobody => "answers are thrown away".to_owned(),
        ReplyFrom::First => "the client gets the answer that comes first".to_owned(),
        ReplyFrom::Chosen => {
            let answers = targets().filter(|backend| backend.answers());
            let answers: Vec<_> = answers.map(|backend| backend.address().to_string()).collect();
            format!("the client gets the answers of {}", answers.join(" or "))
        }
    });
    lines
}

/// What part of the new flows each backend gets, with none full.
fn shares(backends: &Backends) -> Vec<String> {
    let serves = |backend: &&Backend| backend.can_take_a_flow();
    let all = || backends.iter().map(|(_, backend)| backend).filter(serves);
    let are_backups = all().all(Backend::is_backup);
    let serving = || all().filter(|backend| backend.is_backup() == are_backups);
    let total: f64 = serving().map(|backend| f64::from(backend.weight())).sum();
    serving()
        .map(|backend| {
            let share = 100.0 * f64::from(backend.weight()) / total;
            format!("  {share:5.1} %  {} (weight {})", backend.address(), backend.weight())
        })
        .collect()
}
