//! One lookup: `/etc/hosts`, then DNS for both families of addresses at the same time.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::{Hosts, Resolver, TokioResolver};

use super::state::{Family, Outcome};
use super::system::{RESOLV_CONF, hosts_file, servers};

/// How long an answer of `/etc/hosts` is good: nobody says when it changes.
const HOSTS_TTL: Duration = Duration::from_secs(10);

/// How much longer than one family's answer the other's may take. Some networks swallow questions
/// for IPv6 addresses.
const GRACE: Duration = Duration::from_secs(2);

/// Where names are looked up.
pub(in crate::control) enum Lookups {
    /// As the system does.
    System { hosts: Mutex<Derived<Hosts>>, client: Mutex<Derived<Arc<TokioResolver>>> },
    /// At certain DNS servers, and nowhere else.
    Servers(Result<Arc<TokioResolver>, String>),
}

/// An SRV record.
#[derive(Clone, Debug)]
pub(in crate::control) struct Service {
    /// A whole name, with a dot at its end.
    pub host: String,
    pub port: u16,
    pub priority: u16,
    pub weight: u16,
}

impl Lookups {
    pub(in crate::control) fn of_system() -> Self {
        Self::System { hosts: Mutex::default(), client: Mutex::default() }
    }

    pub(in crate::control) fn of_servers(servers: &[SocketAddr], timeout: Duration) -> Self {
        let server = |address: &SocketAddr| {
            let mut ways = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
            ways.iter_mut().for_each(|way| way.port = address.port());
            NameServerConfig::new(address.ip(), true, ways)
        };
        let config = ResolverConfig::from_name_servers(servers.iter().map(server).collect());
        let mut options = ResolverOpts::default();
        options.timeout = timeout;
        options.attempts = 2;
        Self::Servers(client(config, options).map_err(|error| error.to_string()))
    }

    /// Looks the SRV records of a name up, and for how long they are good.
    pub(in crate::control) async fn look_up_services(
        &self,
        name: &str,
    ) -> Result<(Vec<Service>, Duration), String> {
        let name = Name::from_utf8(name).map_err(|error| format!("it is no name: {error}"))?;
        let lookup = match self.client()?.lookup(name, RecordType::SRV).await {
            Ok(lookup) => lookup,
            Err(error) if error.is_nx_domain() => return Err("it does not exist (NXDOMAIN)".into()),
            Err(error) if error.is_no_records_found() => {
                return Err("it has no SRV records".into());
            }
            Err(error) => return Err(error.to_string()),
        };
        let mut services = Vec::new();
        let mut ttl = u32::MAX;
        for record in lookup.answers() {
            if let RData::SRV(srv) = &record.data {
                ttl = ttl.min(record.ttl);
                services.push(Service {
                    host: srv.target.to_ascii(),
                    port: srv.port,
                    priority: srv.priority,
                    weight: srv.weight,
                });
            }
        }
        Ok((services, Duration::from_secs(u64::from(ttl))))
    }

    /// Looks a name up.
    pub(super) async fn look_up(&self, name: &str) -> Outcome {
        let failed =
            |why: String| Outcome { v4: Family::Failed(why.clone()), v6: Family::Failed(why) };
        let host = match Name::from_utf8(name) {
            Ok(host) => host,
            Err(error) => return failed(format!("it is no name: {error}")),
        };
        if let Some(outcome) = self.in_hosts_file(&host) {
            return outcome;
        }
        let client = match self.client() {
            Ok(client) => client,
            Err(why) => return failed(why),
        };
        let v4 = family(&client, host.clone(), RecordType::A);
        let v6 = family(&client, host, RecordType::AAAA);
        let (v4, v6) = both(v4, v6).await;
        // In two domains of the search list are two hosts: what has IPv4 addresses is meant.
        match (v4, v6) {
            ((v4, Some(one)), (_, Some(other))) if one != other => {
                Outcome { v4, v6: Family::Nothing }
            }
            ((v4, _), (v6, _)) => Outcome { v4, v6 },
        }
    }

    /// What `/etc/hosts` says about a name. What it says stands, also where it has addresses of one
    /// family only.
    fn in_hosts_file(&self, name: &Name) -> Option<Outcome> {
        let Self::System { hosts, .. } = self else {
            return None;
        };
        let mut hosts = hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let read = |text: &[u8]| {
            let mut hosts = Hosts::default();
            hosts.read_hosts_conf(text).map(|()| hosts).map_err(|error| error.to_string())
        };
        // Without the file, or with one that cannot be read, there is DNS.
        let hosts = hosts.of_file(&hosts_file(), read).ok()?;
        let find = |record_type| {
            let lookup = hosts.lookup_static_host(&Query::query(name.clone(), record_type))?;
            Some(found(lookup.answers(), Some(HOSTS_TTL)))
        };
        match (find(RecordType::A), find(RecordType::AAAA)) {
            (None, None) => None,
            (v4, v6) => Some(Outcome {
                v4: v4.unwrap_or(Family::Nothing),
                v6: v6.unwrap_or(Family::Nothing),
            }),
        }
    }

    /// What asks DNS servers.
    fn client(&self) -> Result<Arc<TokioResolver>, String> {
        match self {
            Self::Servers(client) => client.clone(),
            Self::System { client: derived, .. } => {
                let mut derived = derived.lock().unwrap_or_else(PoisonError::into_inner);
                let read = |text: &[u8]| {
                    let (config, options) = servers(text)?;
                    client(config, options).map_err(|error| error.to_string())
                };
                match RESOLV_CONF {
                    Some(path) => derived.of_file(path, read).cloned(),
                    None => read(&[]),
                }
            }
        }
    }
}

/// Something that was made of a file's content.
pub(in crate::control) struct Derived<T> {
    content: Vec<u8>,
    value: Option<T>,
}

impl<T> Default for Derived<T> {
    fn default() -> Self {
        Self { content: Vec::new(), value: None }
    }
}

impl<T> Derived<T> {
    /// Of the file as it is now: made again only if the file has changed.
    fn of_file(
        &mut self,
        path: &str,
        make: impl Fn(&[u8]) -> Result<T, String>,
    ) -> Result<&T, String> {
        let content = match std::fs::read(path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(format!("cannot read {path}: {error}")),
        };
        if self.value.is_none() || content != self.content {
            self.value = None;
            self.value = Some(make(&content)?);
            self.content = content;
        }
        self.value.as_ref().ok_or_else(|| format!("{path} gives nothing"))
    }
}

/// A client without a cache, which could only hide how old an answer is.
fn client(
    config: ResolverConfig,
    mut options: ResolverOpts,
) -> Result<Arc<TokioResolver>, NetError> {
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    let builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
    builder.with_options(options).build().map(Arc::new)
}

/// Asks for the addresses of one family. With the name that has them, which may be one in a domain
/// of the search list.
async fn family(
    client: &TokioResolver,
    name: Name,
    record_type: RecordType,
) -> (Family, Option<Name>) {
    match client.lookup(name, record_type).await {
        Ok(lookup) => match found(lookup.answers(), None) {
            found @ Family::Found { .. } => (found, Some(lookup.query().name().clone())),
            nothing => (nothing, None),
        },
        Err(error) if error.is_nx_domain() => (Family::NoName, None),
        Err(error) if error.is_no_records_found() => (Family::Nothing, None),
        Err(error) => (Family::Failed(error.to_string()), None),
    }
}

/// The addresses in some records, good for as long as the shortest-lived of them.
fn found(records: &[Record], ttl: Option<Duration>) -> Family {
    let addresses = records.iter().filter_map(|record| record.data.ip_addr());
    let addresses: Vec<_> =
        addresses.map(|ip| ip.to_canonical()).filter(flowgate_config::names_one_host).collect();
    if addresses.is_empty() {
        return Family::Nothing;
    }
    let least = records.iter().map(|record| record.ttl).min().unwrap_or_default();
    let ttl = ttl.unwrap_or(Duration::from_secs(u64::from(least)));
    Family::Found { addresses, ttl }
}

/// Both answers; where one has addresses, the other has only so much time left.
async fn both<N>(
    v4: impl Future<Output = (Family, Option<N>)>,
    v6: impl Future<Output = (Family, Option<N>)>,
) -> ((Family, Option<N>), (Family, Option<N>)) {
    let (mut v4, mut v6) = (pin!(v4), pin!(v6));
    tokio::select! {
        v4 = &mut v4 => {
            let v6 = rest(&v4.0, v6).await;
            (v4, v6)
        }
        v6 = &mut v6 => {
            let v4 = rest(&v6.0, v4).await;
            (v4, v6)
        }
    }
}

/// The second answer, after a first one.
async fn rest<N>(
    first: &Family,
    second: impl Future<Output = (Family, Option<N>)>,
) -> (Family, Option<N>) {
    if !matches!(first, Family::Found { .. }) {
        return second.await;
    }
    let late = |_| (Family::Failed("no answer in time".into()), None);
    tokio::time::timeout(GRACE, second).await.unwrap_or_else(late)
}
