//! Flowgate's configuration: TOML text in, a valid and typed [`Config`] out, or every reason why not.
//!
//! A [`Config`] is valid by construction. A listener holds the cluster that serves it, an address is
//! an address, and a number is within its range, so anyone who reads a `Config` checks nothing again.
//! Text that is not valid gives [`Errors`]: all problems at once, in the order of the file, each with
//! its line, column and key, what was found, what is allowed and the likeliest meaning of a typo.
//! [`Config::difference_to`] says what a reload has to do.
//!
//! ```
//! let config = flowgate_config::parse(
//!     r#"
//!     [[listener]]
//!     address = "0.0.0.0:53"
//!     cluster = "resolvers"
//!
//!     [cluster.resolvers]
//!     backends = ["10.0.0.1:53", { address = "10.0.0.2:53", weight = 2 }]
//!     "#,
//!     "flowgate.toml",
//! )?;
//! let listener = &config.listeners[0];
//! assert_eq!(listener.name, "0.0.0.0:53");
//! assert_eq!(listener.cluster.policy.backends[1].weight, 2);
//!
//! let errors = flowgate_config::parse(
//!     "[[listener]]\naddress = \"0.0.0.0:53\"\ncluster = \"web\"\n[cluster.web]\nbackend = []\n",
//!     "flowgate.toml",
//! )
//! .unwrap_err();
//! assert_eq!(
//!     errors.to_string(),
//!     "flowgate.toml:4:1: cluster.web.backends: missing; allowed: a list of backends, such as [\"10.0.0.1:53\"]\n\
//!      flowgate.toml:5:1: cluster.web.backend: unknown key; allowed: affinity, backends, backends_from, balance, failback, \
//!      health, hold, idle_timeout, limits, mirror, mode, on_backend_down, quic_lb, reply_from, requests, responses, retry, return, send_proxy_protocol, \
//!      source, transactions, upstream, upstream_quarantine; \
//!      did you mean `backends`?",
//! );
//! # Ok::<(), flowgate_config::Errors>(())
//! ```
//!
//! Nothing here panics, whatever the text. [`parse`] reads no file and no clock, and asks the system
//! for nothing but the number of an interface that a link-local address names; [`load`] reads the
//! file or directory that it is given, the environment, and the files with keys that are named.

#![forbid(unsafe_code)]

mod announce;
mod cluster;
mod difference;
mod error;
mod found;
pub mod hex;
mod keys;
mod nearest;
mod probing;
mod problems;
mod read;
mod reader;
mod schema;
mod texts;
mod value;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flowgate_core::config::{Accept, BackendConfig, ClusterConfig, ManagerConfig, OwnAddress};
use flowgate_core::route::Routes;
use ipnet::IpNet;
use toml::de::DeTable;

pub use announce::{Announce, AnnounceBy};
pub use cluster::{Cluster, Member, Target, names_one_host};
pub use difference::{ClusterChanges, Difference, ListenerChanges};
pub use error::{ConfigFileError, Errors, Fault, Problem};
pub use found::{BackendsFrom, FoundBackends, Place, parse_found, write_found};
pub use keys::{QuicLbKey, QuicLbSpec};
pub use probing::{Expect, Payload, Probe, Probing};
pub use schema::schema;
pub use texts::{Environment, Text};

/// A valid configuration.
///
/// Two are equal when they say the same, whatever the files they came from look like, as long as
/// neither draws a warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How many threads move datagrams.
    pub workers: Workers,
    /// How long a graceful stop waits for live flows to end. Zero: it does not wait.
    pub drain_timeout: Duration,
    /// How long everything is still served once the process is told to stop, new flows too, before it
    /// drains.
    pub lame_duck: Duration,
    /// When the whole of it is announced to routers, and how. None: it is not.
    pub announce: Option<Announce>,
    /// Where operators reach the process.
    pub admin: Admin,
    /// What is logged, and how.
    pub log: Log,
    /// The listeners in the order of the file: at least one, names and addresses all different.
    pub listeners: Vec<Listener>,
    /// The clusters in the order of the file, with those that no listener uses.
    pub clusters: Vec<Arc<Cluster>>,
    /// What is legal but hardly meant, such as a cluster that no listener uses.
    pub warnings: Vec<Problem>,
}

impl Config {
    /// The listener of this name.
    pub fn listener(&self, name: &str) -> Option<&Listener> {
        self.listeners.iter().find(|listener| listener.name == name)
    }

    /// The cluster of this name.
    pub fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.clusters.iter().find(|cluster| cluster.name == name)
    }

    /// What is announced: the whole, as None, and listeners by their names.
    pub fn announced(&self) -> impl Iterator<Item = (Option<&str>, &Announce)> {
        let all = self.announce.iter().map(|announce| (None, announce));
        let alone = self.listeners.iter().filter_map(|listener| {
            listener.announce.as_ref().map(|announce| (Some(listener.name.as_str()), announce))
        });
        all.chain(alone)
    }

    /// The names of the clusters that serve a listener's clients, those of its routes too.
    pub fn clusters_of(&self, listener: &str) -> HashSet<&str> {
        let is_its =
            |l: &&Listener| l.name == listener || l.routed_from.as_deref() == Some(listener);
        self.listeners.iter().filter(is_its).map(|l| l.cluster.name.as_str()).collect()
    }

    /// The clusters that serve a listener or mirror one that does, each once, in the order of the file.
    pub fn used_clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        let serving = self.listeners.iter().map(|listener| &*listener.cluster);
        let names = serving.flat_map(|c| [Some(c.name.as_str()), c.mirror.as_deref()]);
        let used: HashSet<&str> = names.flatten().collect();
        self.clusters.iter().filter(move |cluster| used.contains(cluster.name.as_str()))
    }
}

/// How many threads move datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// One for each core that the process may use.
    Auto,
    /// This many, at most 1,024.
    Count(NonZeroU16),
}

/// Where operators reach the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admin {
    /// Where the control socket is, in a path that fits a socket address. None: at the usual place.
    pub socket: Option<PathBuf>,
    /// Where metrics and the status page are served over HTTP. None: nowhere. Port 0: the kernel
    /// chooses one.
    pub http: Option<SocketAddr>,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The least severe level that is written.
    pub level: LogLevel,
    /// The form of a line.
    pub format: LogFormat,
    /// Where finished flows are told of.
    pub flows: FlowLog,
}

/// How much the log tells, from least to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// What failed.
    Error,
    /// And what may fail.
    Warn,
    /// And what an operator did or wants to know.
    Info,
    /// And what a developer wants to know.
    Debug,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON document a line.
    Json,
}

/// Where finished flows are told of: one JSON document a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlowLog {
    /// Nowhere.
    Off,
    /// On standard error, among the other lines.
    Stderr,
    /// At the end of this file.
    File(PathBuf),
}

/// Whether the kernel forwards established flows past the sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FastPathMode {
    /// No.
    #[default]
    Off,
    /// Where it can and may.
    Auto,
    /// By a program at the ingress of interfaces (tc). Where that cannot be, the configuration is
    /// refused.
    Tc,
}

impl FastPathMode {
    /// As it is written in a configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Auto => "auto",
            Self::Tc => "tc",
        }
    }
}

/// An address that clients send to, and the cluster that serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its name in logs and metrics: different from every other listener's, never empty, and free
    /// to hold any character, so escape it where it is shown. By default the address.
    pub name: String,
    /// Where it receives. Port 0: the kernel chooses one. Never an IPv4 address mapped into IPv6. A
    /// multicast group only beside an `interface`.
    pub address: SocketAddr,
    /// The interface whose datagrams it takes, and at which it joins the group that is its address.
    /// None: any.
    pub interface: Option<String>,
    /// The last of its ports, where it receives at all from that of `address` to this one.
    pub last_port: Option<u16>,
    /// Whether datagrams go on to the same port of the backend that they came to, rather than to the
    /// one that the backend's address has. Only beside `last_port`.
    pub same_port: bool,
    /// Whether `[::]` receives IPv6 only, rather than IPv4 too. Never true of an IPv4 address.
    pub v6_only: bool,
    /// The cluster that serves it: one of [`Config::clusters`].
    pub cluster: Arc<Cluster>,
    /// Clients that other clusters serve, which [`Config::clusters`] has under these names.
    pub routes: Routes<String>,
    /// The name of the listener that it gets its clients from: it has no address of its own, and is one
    /// of that one's routes.
    pub routed_from: Option<String>,
    /// The most flows alive at once, over all workers. None: as many as file descriptors allow.
    pub max_flows: Option<NonZeroU32>,
    /// The longest datagram in bytes that is forwarded, either way: 1 to 65,507.
    pub max_datagram_size: u16,
    /// The receive buffer to ask of the kernel for the socket, in bytes.
    pub receive_buffer: usize,
    /// The send buffer to ask of the kernel for the socket, in bytes.
    pub send_buffer: usize,
    /// Whether nothing that is sent, to clients or to backends, may be cut into fragments (DF).
    pub dont_fragment: bool,
    /// Proxies whose PROXY v2 headers tell the client. From elsewhere a header is payload.
    pub accept_proxy_protocol: Vec<IpNet>,
    /// Whether a client gets a socket of its own, and when.
    pub accept: Accept,
    /// Whether the kernel forwards established flows past the sockets.
    pub fast_path: FastPathMode,
    /// Clients that may open flows; empty: all of them.
    pub allow: Vec<IpNet>,
    /// Clients that may not, also where they are allowed.
    pub deny: Vec<IpNet>,
    /// When it is announced to routers by itself, and how. None: it is not.
    pub announce: Option<Announce>,
}

impl Listener {
    /// All ports that it receives at, as the file has them.
    pub fn ports(&self) -> std::ops::RangeInclusive<u16> {
        let first = self.address.port();
        first..=self.last_port.unwrap_or(first)
    }

    /// Its address with its ports, as the file has it.
    pub fn written_address(&self) -> String {
        match self.last_port {
            Some(last) => format!("{}-{last}", self.address),
            None => self.address.to_string(),
        }
    }

    /// Whether one worker has to serve all its clients: where it has a cluster, or a route to one of
    /// `clusters`, that [learns ids](Cluster::learns_ids).
    pub fn needs_one_worker(&self, clusters: &[Arc<Cluster>]) -> bool {
        let learns = |name: &String| clusters.iter().any(|c| c.name == *name && c.learns_ids());
        self.cluster.learns_ids() || self.routes.iter().any(|(_, cluster)| learns(cluster))
    }

    /// Whether the sockets that serve `other` are those that it asks for: they are bound alike, and
    /// where they are a route's, it is one to the same cluster. With port 0 they have the port that
    /// the kernel chose for the listener of that name.
    pub fn has_sockets_of(&self, other: &Self) -> bool {
        let at = |l: &Self| (l.address, l.last_port, l.same_port, l.v6_only);
        let place = |l: &Self| (at(l), l.interface.clone());
        let to = |l: &Self| l.routed_from.as_ref().map(|_| l.cluster.name.clone());
        let is_one_port = self.address.port() != 0 || self.name == other.name;
        place(self) == place(other) && to(self) == to(other) && is_one_port
    }

    /// The listener that it is at one of its ports.
    pub fn at_port(&self, port: u16) -> Self {
        let mut one = Self { last_port: None, ..self.clone() };
        if self.last_port.is_some() {
            // Of a link-local address the zone stays.
            one.address.set_port(port);
        }
        one
    }

    /// Where what is sent to a backend arrives from one of its ports: at that of the backend, or at the
    /// same.
    pub fn backend_at(&self, port: u16, backend: SocketAddr) -> SocketAddr {
        let mut at = backend;
        if self.same_port {
            at.set_port(port);
        }
        at
    }

    /// Whether a datagram to `backend` would come to one of its ports, where `is_local` tells the
    /// addresses of this host: see [`is_reached_at`](Self::is_reached_at).
    pub fn is_reached(&self, backend: SocketAddr, is_local: impl FnMut(IpAddr) -> bool) -> bool {
        let is_hit = self.same_port || self.ports().contains(&backend.port());
        let mut bound = self.address;
        if self.last_port.is_some() && is_hit {
            bound.set_port(backend.port());
        }
        Self::is_reached_at(bound, self.v6_only, backend, is_local)
    }

    /// Whether a datagram to `backend` would come to a listener that is bound to `bound`, where
    /// `is_local` tells the addresses of this host: the port is the same, and the address is too or
    /// is one of those of a wildcard.
    pub fn is_reached_at(
        bound: SocketAddr,
        v6_only: bool,
        backend: SocketAddr,
        mut is_local: impl FnMut(IpAddr) -> bool,
    ) -> bool {
        let (ip, to) = (bound.ip(), backend.ip());
        let takes_family = ip.is_ipv4() == to.is_ipv4() || ip.is_ipv6() && !v6_only;
        // The port first: who asks whether an address is local asks the kernel.
        bound.port() == backend.port()
            && (ip == to || ip.is_unspecified() && takes_family && is_local(to))
    }

    /// What a manager that serves this listener is told to do.
    ///
    /// `address` is the one that the socket was given, which has a port even where the file says 0,
    /// and `own_addresses` are those of all listeners. `max_flows` depends on the process's limits and
    /// on how many workers share the listener. `backends` are those of the cluster, each at the place
    /// where it is to stay: see [`Cluster::backends`].
    pub fn manager_config(
        &self,
        address: SocketAddr,
        max_flows: u32,
        own_addresses: Vec<OwnAddress>,
        record_flows: bool,
        backends: Vec<BackendConfig>,
    ) -> ManagerConfig {
        ManagerConfig {
            address,
            max_flows,
            max_slots: u32::MAX,
            shares_max_flows: self.last_port.is_some(),
            max_datagram_size: self.max_datagram_size,
            accept_proxy_protocol: self.accept_proxy_protocol.clone(),
            allow: self.allow.clone(),
            deny: self.deny.clone(),
            own_addresses,
            record_flows,
            offload: false,
            accept: self.accept,
            cluster: ClusterConfig { backends, ..self.cluster.policy.clone() },
        }
    }

    /// The same for the manager of its cluster's mirror, which has no flows, and whose clients are
    /// those that the listener has admitted.
    pub fn mirror_config(
        &self,
        mirror: &Cluster,
        address: SocketAddr,
        own_addresses: Vec<OwnAddress>,
        backends: Vec<BackendConfig>,
    ) -> ManagerConfig {
        ManagerConfig {
            offload: false,
            accept: Accept::Shared,
            accept_proxy_protocol: Vec::new(),
            allow: Vec::new(),
            deny: Vec::new(),
            cluster: ClusterConfig { backends, ..mirror.as_mirror() },
            ..self.manager_config(address, 1, own_addresses, false, Vec::new())
        }
    }
}

/// Reads the configuration that `text` holds. `file` names the text in messages and is not opened, and
/// neither are files with keys: ids that need one are read by what [`load`] returns only. There is
/// no environment: a string that asks for a variable is refused.
///
/// # Errors
/// Every problem of the text, in its order. Where the text is not TOML, what the parser could make
/// out is still checked, but nothing is called missing that may stand in the part it could not.
pub fn parse(text: &str, file: &str) -> Result<Config, Errors> {
    parse_texts(&[Text { file, text }], &|_| None).map(|(config, _)| config)
}

/// Reads the configuration that several texts make, as those of a directory do; `${NAME}` in a string
/// is what `environment` says. Returns it with a text that says the same to [`parse`].
///
/// Tables of one name become one, and listeners follow one another in the order of the texts. No key
/// may be in two of them.
///
/// # Errors
/// Every problem of the texts, in their order: see [`parse`].
pub fn parse_texts(
    texts: &[Text<'_>],
    environment: Environment<'_>,
) -> Result<(Config, String), Errors> {
    let (all, starts) = texts::join(texts);
    let (mut tables, mut syntax_errors) = (Vec::new(), Vec::new());
    let ends = starts.iter().skip(1).copied().chain([all.len()]);
    for (&start, end) in starts.iter().zip(ends) {
        let (table, errors) = DeTable::parse_recoverable(&all[start..end]);
        syntax_errors.extend(errors.iter().map(|e| problems::Finding::of_syntax(e, start)));
        tables.push((start, table.into_inner()));
    }
    let files = starts.iter().zip(texts).map(|(start, text)| (*start, text.file.into()));
    let problems = problems::Problems::new(&all, files.collect(), syntax_errors);
    let document = texts::merge(&problems, tables, environment);
    let config = reader::Table::document(&problems, &document).read(read::document);
    let (errors, warnings) = problems.conclude();
    match config {
        Some(config) if errors.is_empty() => {
            let is_itself = texts.len() == 1 && !all.contains("${");
            let text = if is_itself { all.clone() } else { texts::render(&document) };
            Ok((Config { warnings, ..config }, text))
        }
        _ => Err(Errors::new(errors)),
    }
}

/// Reads the configuration in the file at `path`, or in the files `*.toml` of the directory there in
/// the order of their names, with what they ask of the environment and the keys in the files that
/// they name.
///
/// # Errors
/// A file cannot be read or is not UTF-8, there is none, or they are not a valid configuration.
pub fn load(path: &Path) -> Result<Config, ConfigFileError> {
    load_text(path).map(|(config, _)| config)
}

/// The same with a text that says all of it, for anyone who is to read it again when the files and the
/// environment say something else.
///
/// # Errors
/// As for [`load`].
pub fn load_text(path: &Path) -> Result<(Config, String), ConfigFileError> {
    let unreadable = |path: &Path, source| {
        let file = path.display().to_string();
        ConfigFileError::Unreadable { file, source }
    };
    let files = match files_of(path) {
        Ok(Some(files)) if files.is_empty() => {
            return Err(ConfigFileError::NoFiles { directory: path.display().to_string() });
        }
        Ok(Some(files)) => files,
        Ok(None) => vec![path.to_owned()],
        Err(source) => return Err(unreadable(path, source)),
    };
    let mut read = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file).map_err(|error| unreadable(file, error))?;
        read.push((file.display().to_string(), text));
    }
    let texts: Vec<_> = read.iter().map(|(file, text)| Text { file, text }).collect();
    let (mut config, text) = parse_texts(&texts, &|name| std::env::var(name).ok())?;
    config.read_keys()?;
    Ok((config, text))
}

/// The files of a directory that make a configuration, in their order. None: it is no directory.
fn files_of(path: &Path) -> std::io::Result<Option<Vec<PathBuf>>> {
    if !path.is_dir() {
        return Ok(None);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let file = entry?.path();
        let name = file.file_name().unwrap_or_default().as_encoded_bytes();
        // What editors and those who write atomically leave beside them begins with a dot.
        if name.ends_with(b".toml") && !name.starts_with(b".") {
            files.push(file);
        }
    }
    files.sort_unstable();
    Ok(Some(files))
}
