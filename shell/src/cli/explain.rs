//! `flowgate explain`: where a client's datagrams would go, and why.

mod backend_setup;
mod payload;

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::Path;

use flowgate_config::{Cluster, Config, Listener};
use flowgate_core::backend::{Backend, Backends};
use flowgate_core::balance::Balancer;
use flowgate_core::config::{Affinity, Balance, ClusterConfig, Mode, ReplyFrom, Source};
use flowgate_core::hash::ClientHash;
use flowgate_core::random::Random;
use ipnet::IpNet;
use serde::Serialize;

use payload::Says;

pub(super) use backend_setup::backend_setup;
pub(super) use payload::Payload;

use super::Failure;
use super::ask::put;
use crate::admin::escape::escaped_json;
use crate::control::{reach, source};

/// What a client gets from one listener.
#[derive(Debug, Serialize)]
struct Explanation {
    listener: String,
    address: SocketAddr,
    /// None: it is not reached.
    cluster: Option<String>,
    /// The backend, where the configuration alone decides.
    backend: Option<SocketAddr>,
    /// Why, and what else there is to know.
    because: Vec<String>,
}

pub(super) fn run(
    path: &Path,
    client: SocketAddr,
    payload: Option<&Payload>,
    json: bool,
) -> Result<(), Failure> {
    let config = flowgate_config::load(path)?;
    reach::check(&config)?;
    let all: Vec<_> = config
        .listeners
        .iter()
        .filter(|listener| listener.routed_from.is_none())
        .map(|listener| explain_listener(&config, listener, client, payload))
        .collect();
    if json {
        let document = serde_json::json!({ "client": describe_client(client), "listeners": all });
        return put(&(escaped_json(&format!("{document:#}")) + "\n"));
    }
    let mut text = format!("client {}\n", describe_client(client));
    for Explanation { listener, address, cluster, because, .. } in all {
        text += &format!("\nlistener {listener:?} on {address}\n");
        if let Some(cluster) = cluster {
            text += &format!("  cluster {cluster:?}\n");
        }
        text.extend(because.iter().map(|line| format!("  {line}\n")));
    }
    put(&text)
}

/// What becomes of a client's datagrams at a listener.
fn explain_listener(
    config: &Config,
    listener: &Listener,
    client: SocketAddr,
    payload: Option<&Payload>,
) -> Explanation {
    let mut explanation = Explanation {
        listener: listener.name.clone(),
        address: listener.address,
        cluster: None,
        backend: None,
        because: Vec::new(),
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
    let (backend, lines) = explain(&listener.cluster, client, payload);
    explanation.backend = backend;
    because.extend(lines);
    because.extend(explain_source(listener, client));
    explanation
}

fn describe_client(client: SocketAddr) -> String {
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

/// What a host's name resolves to at this moment; nothing where it does not.
fn addresses_of(host: &str) -> Vec<IpAddr> {
    let resolved = (host, 0).to_socket_addrs();
    resolved.map(|all| all.map(|address| address.ip()).collect()).unwrap_or_default()
}

/// The backend that a new flow would get, if that can be told, and the lines that say so.
fn explain(
    cluster: &Cluster,
    client: SocketAddr,
    payload: Option<&Payload>,
) -> (Option<SocketAddr>, Vec<String>) {
    let policy = &cluster.policy;
    let backends = Backends::new(&cluster.backends(addresses_of), policy.health);
    if let Mode::FanOut { reply_from } = policy.mode {
        return (None, explain_copies(&backends, reply_from));
    }
    let resolved = ClusterConfig { backends: cluster.backends(addresses_of), ..policy.clone() };
    let (says, line) = payload::read(&resolved, payload);
    let mut lines: Vec<String> = line.into_iter().collect();
    let key = match says {
        Says::Backend(backend) => {
            lines.push(format!("backend {backend}"));
            lines.push("because its server id is in the connection id".to_owned());
            return (Some(backend), lines);
        }
        Says::Key(key) => Some(key),
        Says::Nothing => None,
    };
    let (backend, of_balance) = explain_balance(policy, &backends, client, key);
    lines.extend(of_balance);
    (backend, lines)
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
fn explain_source(listener: &Listener, client: SocketAddr) -> Option<String> {
    let source = listener.cluster.policy.source;
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
        Source::Local { .. } => format!("sent from {}", source::describe(source)),
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
