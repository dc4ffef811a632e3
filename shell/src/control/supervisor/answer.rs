//! Answers to operators.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use flowgate_config::{Cluster, Target};
use flowgate_core::Instant;
use flowgate_core::backend::{Ejection, EjectionCause};
use flowgate_core::balance::fingerprint;
use flowgate_core::config::{BackendConfig, Mode};
use tracing::{info, warn};

use super::Supervisor;
use super::conditions::{Condition, Finding, seconds};
use crate::admin::request::{RecordRequest, Request, Response, TraceQuery, TraceRequest};
use crate::admin::status::{
    BackendState, BackendStatus, ByDirection, ClusterStatus, CountersDoc, FastPathStatus,
    ListenerStatus, MirrorStatus, NameStatus, ProcessStatus, StatusDocument, flows_closed,
};
use crate::control::probe::{Findings, TargetKey};
use crate::control::resolve::KnownName;
use crate::control::server::Server;
use crate::datapath::report::{BackendReport, ListenerReport};
use crate::observe::trace::Filter;
use crate::sys::clock::Clock;
use crate::sys::process;

impl Supervisor {
    pub(super) fn answer(&mut self, request: Request) -> Response {
        match request {
            Request::Status => Response::Status(self.status()),
            Request::Flows { filter } => Response::Flows(self.server.flows(&filter)),
            Request::Explain { client, payload } => self.explain(client, payload.as_deref()),
            Request::Reload => match self.reload() {
                Ok(notes) => Response::Done { notes },
                Err(reasons) => Response::Refused { reasons },
            },
            Request::Drain { backend, deadline_ms } => {
                let timeout = deadline_ms.map(Duration::from_millis);
                let response = self.for_backends(&backend, |server, cluster, address| {
                    let most = timeout.map(|most| humantime::format_duration(most).to_string());
                    info!(cluster, %address, timeout = most, "draining a backend");
                    server.drain_backend(cluster, address, timeout);
                });
                self.with_note_of_no_backend_left(&backend, response)
            }
            Request::Undrain { backend } => {
                self.for_backends(&backend, |server, cluster, address| {
                    info!(cluster, %address, "a backend is no longer drained");
                    server.undrain_backend(cluster, address);
                })
            }
            Request::Weight { backend, weight } => {
                let response = self.for_backends(&backend, |server, cluster, address| {
                    info!(cluster, %address, weight, "a backend has another weight until the next reload");
                    server.set_weight(cluster, address, weight);
                });
                self.with_note_of_no_backend_left(&backend, response)
            }
            // Its answer comes when it is over.
            Request::Upgrade { .. } => Response::refused("an upgrade is not asked for here"),
            Request::Snapshot => self.snapshot(),
            Request::Trace(request) => self.trace(request),
            Request::Record(RecordRequest { options, sender }) => {
                match self.server.record(options, &sender) {
                    Ok(()) => Response::done(),
                    Err(reason) => Response::refused(reason),
                }
            }
            Request::Stop { now } => {
                if now {
                    self.stop_now();
                } else {
                    self.begin_stop(false);
                }
                Response::done()
            }
        }
    }

    /// Does something to the backends that an operator means by `CLUSTER/BACKEND`: one, or all
    /// addresses of a name. When it returns all workers have done it.
    fn for_backends(
        &mut self,
        meant: &str,
        act: impl Fn(&mut Server, &str, SocketAddr),
    ) -> Response {
        // An address holds no slash; a cluster's name may.
        let Some((cluster, backend)) = meant.rsplit_once('/') else {
            return Response::refused(format!(
                "{meant:?} is not a backend; name it as CLUSTER/ADDRESS, such as dns/10.0.0.1:53"
            ));
        };
        let known = self.server.clusters().iter().find(|known| known.name == cluster);
        let Some(known) = known.cloned() else {
            let names: Vec<_> =
                self.server.clusters().iter().map(|known| format!("{:?}", known.name)).collect();
            return Response::refused(format!(
                "there is no cluster {cluster:?}; there are {}",
                names.join(", ")
            ));
        };
        let addresses = self.addresses_meant(&known, backend);
        if addresses.is_empty() {
            let all = known.backends(|host| self.server.addresses_of(host));
            let all: Vec<_> = all.iter().map(|backend| backend.address.to_string()).collect();
            return Response::refused(format!(
                "cluster {cluster:?} has no backend {backend:?}; it has {}",
                all.join(", ")
            ));
        }
        for address in addresses {
            act(&mut self.server, cluster, address);
        }
        self.server.acknowledged();
        Response::done()
    }

    /// Has a trace watch what it is about.
    fn trace(&self, TraceRequest { query, sender }: TraceRequest) -> Response {
        let TraceQuery { client, backend, drops, payload } = query;
        // An address holds no slash; a cluster's name may.
        let (cluster, name) = match backend.as_deref().map(|meant| meant.rsplit_once('/')) {
            None => (None, None),
            Some(Some((cluster, name))) => (Some(cluster), Some(name)),
            Some(None) => (None, backend.as_deref()),
        };
        let clusters = || self.server.clusters().iter();
        let of = clusters().filter(|known| cluster.is_none_or(|cluster| known.name == cluster));
        let backends: Option<Vec<SocketAddr>> =
            name.map(|name| of.flat_map(|cluster| self.addresses_meant(cluster, name)).collect());
        if backends.as_ref().is_some_and(Vec::is_empty) {
            let resolve = |host: &str| self.server.addresses_of(host);
            let all = clusters().flat_map(|known| {
                let backends = known.backends(resolve).into_iter();
                backends.map(|backend| format!("{}/{}", known.name, backend.address))
            });
            return Response::refused(format!(
                "there is no backend {:?}; there are {}",
                backend.unwrap_or_default(),
                all.collect::<Vec<_>>().join(", ")
            ));
        }
        let filter = Filter { client, backends, drops, payload };
        self.server.trace(cluster, &Arc::new(filter), &sender);
        Response::done()
    }

    /// Says so where a drain has left nobody to take new flows.
    fn with_note_of_no_backend_left(&self, meant: &str, response: Response) -> Response {
        let Response::Done { mut notes } = response else { return response };
        let cluster = meant.rsplit_once('/').map_or(meant, |(cluster, _)| cluster);
        if let Some(known) = self.server.clusters().iter().find(|known| known.name == cluster) {
            let all = self.server.backends_of(known);
            let takes_flows = |backend: &BackendConfig| {
                let said = self.server.service_state(cluster, backend.address);
                backend.weight > 0 && said.drain.is_none()
            };
            if !all.iter().any(takes_flows) {
                let note = format!(
                    "no backend of {cluster:?} takes new flows now: all are drained, or have weight 0; \
                     `flowgate undrain` lets one of them serve again"
                );
                warn!(cluster, "{note}");
                notes.push(note);
            }
        }
        Response::Done { notes }
    }

    fn addresses_meant(&self, cluster: &Cluster, backend: &str) -> Vec<SocketAddr> {
        let resolve = |host: &str| self.server.addresses_of(host);
        let of_name = cluster.members.iter().filter_map(|member| match &member.target {
            Target::Name { host, port } if member.target.to_string() == backend => {
                Some(resolve(host).into_iter().map(|ip| SocketAddr::from((ip, *port))))
            }
            _ => None,
        });
        let of_name: Vec<_> = of_name.flatten().collect();
        let address = backend.parse().ok();
        let is_meant =
            |candidate: SocketAddr| address == Some(candidate) || of_name.contains(&candidate);
        let all = cluster.backends(resolve).into_iter().map(|backend| backend.address);
        all.filter(|&candidate| is_meant(candidate)).collect()
    }

    /// Looks at what has become of backends, so that what has changed is told at once.
    pub(super) fn look_at_backends(&mut self) {
        self.status();
    }

    pub(super) fn status(&mut self) -> StatusDocument {
        let listeners = self.server.report();
        let mut counters = CountersDoc {
            reloads_ok: self.reloads.ok,
            reloads_failed: self.reloads.failed,
            ..CountersDoc::default()
        };
        counters.add(self.server.past());
        listeners.iter().for_each(|listener| counters.add(&listener.figures.counters));
        let clusters = self.clusters(&listeners);
        let described = |report: &ListenerReport| ListenerStatus {
            announce: self.announce_status(Some(&report.name)),
            ..listener(report)
        };
        StatusDocument {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.clock.uptime().as_secs_f64(),
            draining: self.is_draining,
            stopping: self.is_stopping(),
            min_backends_up: self.config.announce.as_ref().map(|announce| announce.min_backends_up),
            announce: self.announce_status(None),
            clusters,
            listeners: listeners.iter().map(described).collect(),
            counters,
            names: self.resolver.names().into_iter().map(name).collect(),
            process: self.process(),
            events: self.conditions.events(),
        }
    }

    fn process(&mut self) -> ProcessStatus {
        ProcessStatus {
            host: process::host_name().unwrap_or_default(),
            config: self.path.display().to_string(),
            now: self.clock.unix_time().as_secs_f64(),
            started: self.started.as_secs_f64(),
            last_reload: self.conditions.last_reload().cloned(),
            io: self.server.io().as_str().to_owned(),
            usage: self.usage.look(self.clock.now()),
        }
    }

    /// How all backends stand, with all listeners that use them together.
    pub(super) fn clusters(&mut self, listeners: &[ListenerReport]) -> Vec<ClusterStatus> {
        let Self { server, prober, conditions, clock, .. } = self;
        let findings = prober.findings();
        let mut doubted = Vec::new();
        let mut all = Vec::new();
        for cluster in server.clusters() {
            let mut figures = figures_of(cluster, listeners);
            figures.values_mut().for_each(|figures| server.add_past(&cluster.name, figures));
            let names = names_of(cluster, server);
            let answers_are_seen = cluster.policy.mode.has_flows();
            let configured = cluster.backends(|host| server.addresses_of(host));
            let weights: HashMap<_, _> = configured.iter().map(|b| (b.address, b.weight)).collect();
            let mut describe = |config: &BackendConfig| {
                let found = figures.get(&config.address);
                let state = found_state(server, cluster, config.address, found, &findings);
                let condition = conditions.observe(&cluster.name, config.address, state, clock);
                let name = names.get(&config.address).cloned();
                let has_other_weight =
                    server.service_state(&cluster.name, config.address).weight.is_some();
                let key = TargetKey { cluster: cluster.name.clone(), backend: config.address };
                if found.is_some_and(|found| conditions.is_doubted_anew(&key, found.doubts)) {
                    doubted.push(key);
                }
                let mut described = backend(config, name, found, condition, clock.now());
                described.first_answers = described.first_answers.filter(|_| answers_are_seen);
                if has_other_weight {
                    described.configured_weight = weights.get(&config.address).copied();
                }
                described
            };
            let backends = server.backends_of(cluster);
            all.push(ClusterStatus {
                name: cluster.name.clone(),
                fingerprint: Some(fingerprint_of(cluster, &backends)),
                balance: cluster.policy.balance.to_string(),
                mode: mode_of(cluster).to_owned(),
                way_back: cluster.is_direct.then(|| "direct".to_owned()),
                backends: backends.iter().map(&mut describe).collect(),
            });
        }
        conditions.retain(&all);
        drop(findings);
        doubted.into_iter().for_each(|key| prober.hasten(key));
        all
    }
}

impl Server {
    /// How things stand as far as the server knows, for a process without a control plane.
    pub fn status(&self, clock: &Clock) -> StatusDocument {
        let (listeners, now) = (self.report(), clock.now());
        let mut counters = CountersDoc::default();
        listeners.iter().for_each(|listener| counters.add(&listener.figures.counters));
        let describe = |cluster: &Cluster| {
            let figures = figures_of(cluster, &listeners);
            let describe = |config: &BackendConfig| {
                let found = figures.get(&config.address);
                let is_up = found.is_none_or(|found| found.is_up);
                let state = if is_up { BackendState::Up } else { BackendState::Ejected };
                let condition = Condition { state, reason: None, since: now, until: None };
                backend(config, None, found, condition, now)
            };
            let backends = cluster.backends(|_| Vec::new());
            ClusterStatus {
                name: cluster.name.clone(),
                fingerprint: Some(fingerprint_of(cluster, &backends)),
                balance: cluster.policy.balance.to_string(),
                mode: mode_of(cluster).to_owned(),
                way_back: cluster.is_direct.then(|| "direct".to_owned()),
                backends: backends.iter().map(describe).collect(),
            }
        };
        StatusDocument {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: clock.uptime().as_secs_f64(),
            clusters: self.clusters().iter().map(|cluster| describe(cluster)).collect(),
            listeners: listeners.iter().map(listener).collect(),
            counters,
            ..StatusDocument::default()
        }
    }
}

/// What becomes of a client's datagrams, as in the configuration.
fn mode_of(cluster: &Cluster) -> &'static str {
    if cluster.is_direct { Mode::SESSION.as_str() } else { cluster.policy.mode.as_str() }
}

/// What two instances share that place clients alike.
fn fingerprint_of(cluster: &Cluster, backends: &[BackendConfig]) -> String {
    let policy = &cluster.policy;
    let number = fingerprint(policy.mode, policy.balance, policy.affinity, backends);
    format!("{number:013x}")
}

/// The figures of a cluster's backends, of all listeners and mirrors together.
fn figures_of(
    cluster: &Cluster,
    listeners: &[ListenerReport],
) -> HashMap<SocketAddr, BackendReport> {
    let mut figures: HashMap<SocketAddr, BackendReport> = HashMap::new();
    for listener in listeners {
        let served = Some(&listener.figures.backends);
        let served = served.filter(|_| listener.cluster == cluster.name);
        let mirrored = listener.figures.mirror.as_ref().map(|mirror| &mirror.backends);
        let mirrored = mirrored.filter(|_| listener.mirror.as_ref() == Some(&cluster.name));
        let all = served.into_iter().chain(mirrored).flatten();
        for backend in all.filter(|backend| !backend.is_removed) {
            let sum = figures.entry(backend.address);
            sum.and_modify(|sum| sum.add(backend)).or_insert(*backend);
        }
    }
    figures
}

/// The names that addresses were resolved from.
fn names_of(cluster: &Cluster, server: &Server) -> HashMap<SocketAddr, String> {
    let mut names = HashMap::new();
    for member in &cluster.members {
        if let Target::Name { host, port } = &member.target {
            for ip in server.addresses_of(host) {
                names.entry((ip, *port).into()).or_insert_with(|| host.clone());
            }
        }
    }
    names
}

/// In what state a backend is, and why. What an operator wants comes first, then the probes, then
/// what traffic has shown.
fn found_state(
    server: &Server,
    cluster: &Cluster,
    address: SocketAddr,
    figures: Option<&BackendReport>,
    findings: &Findings,
) -> Finding {
    let said = server.service_state(&cluster.name, address);
    let key = TargetKey { cluster: cluster.name.clone(), backend: address };
    let probed = findings.get(&key).map(|outcome| format!("the last probe {outcome}"));
    let ejection = figures.and_then(|figures| figures.ejection);
    let was_answered = figures.is_some_and(|figures| figures.from.datagrams > 0);
    let (state, reason, until) = if let Some(deadline) = said.drain {
        (BackendState::Draining, Some("drained by an operator".to_owned()), deadline)
    } else if said.probe == Some(false) {
        let reason = probed.unwrap_or_else(|| "probes failed, before the last upgrade".to_owned());
        (BackendState::Down, Some(reason), None)
    } else if let Some(Ejection { cause, since, until }) = ejection {
        let reason = match cause {
            EjectionCause::NetworkErrors => "the network reports that it cannot be reached",
            EjectionCause::Unanswered => "it left clients without an answer",
        };
        let (state, reason, until) = (BackendState::Ejected, Some(reason.to_owned()), Some(until));
        return Finding { state, reason, since: Some(since), until };
    } else if probed.is_some() || was_answered {
        (BackendState::Up, probed, None)
    } else if cluster.health.is_some() {
        (BackendState::Unchecked, Some("not probed yet".to_owned()), None)
    } else {
        let reason = "no probe is configured, and no client was answered yet".to_owned();
        (BackendState::Unchecked, Some(reason), None)
    };
    Finding { state, reason, since: None, until }
}

fn backend(
    config: &BackendConfig,
    name: Option<String>,
    found: Option<&BackendReport>,
    condition: Condition,
    now: Instant,
) -> BackendStatus {
    let (to, from) = found.map(|f| (f.to, f.from)).unwrap_or_default();
    let Condition { state, reason, since, until } = condition;
    BackendStatus {
        address: config.address,
        name,
        weight: config.weight,
        backup: config.backup,
        state,
        reason,
        since_seconds: Some(seconds(now.saturating_since(since))),
        until_seconds: until.map(|until| seconds(until.saturating_since(now))),
        ejections: found.map(ejections).unwrap_or_default(),
        flows_active: found.map_or(0, |found| found.flows_active),
        datagrams_to: to.datagrams,
        datagrams_from: from.datagrams,
        bytes_to: to.bytes,
        bytes_from: from.bytes,
        datagrams_dropped: found.map_or(0, |found| found.dropped.datagrams),
        first_answers: Some((&found.map(|found| found.answer_times).unwrap_or_default()).into()),
        configured_weight: None,
    }
}

/// How often traffic has put a backend out of service, by cause.
fn ejections(found: &BackendReport) -> BTreeMap<String, u64> {
    let counted = EjectionCause::ALL.into_iter().zip(found.ejections);
    let some = counted.filter(|(_, count)| *count > 0);
    some.map(|(cause, count)| (cause.as_str().to_owned(), count)).collect()
}

fn name((name, known): (String, KnownName)) -> NameStatus {
    let KnownName { addresses, trouble } = known;
    let (reason, since) = trouble.unzip();
    NameStatus {
        name,
        addresses,
        resolves: reason.is_none(),
        reason,
        since_seconds: since.map(|since| seconds(since.uptime())),
    }
}

fn listener(report: &ListenerReport) -> ListenerStatus {
    let figures = &report.figures;
    ListenerStatus {
        name: report.name.clone(),
        address: report.address.clone(),
        cluster: report.cluster.clone(),
        flows_active: figures.flows_active,
        flows_max: report.flows_max,
        flows_opened: figures.counters.flows_opened,
        retries: figures.counters.retries,
        flows_closed: flows_closed(&figures.counters),
        socket_drops: figures.socket_drops,
        upstream_socket_drops: figures.upstream_socket_drops,
        upstreams_per_flow: figures.upstreams_per_flow,
        upstreams_shared: figures.upstreams_shared,
        client_sockets: figures.client_sockets,
        client_sockets_failed: figures.client_sockets_failed,
        to_backend: (&figures.counters.to_backend).into(),
        to_client: (&figures.counters.to_client).into(),
        fast_path: report.fast_path.as_ref().map(|state| FastPathStatus {
            mode: state.mode.as_str().to_owned(),
            reason: state.obstacle.clone(),
            flows: figures.fast_path.flows,
            datagrams: ByDirection {
                to_backend: figures.counters.to_backend.by_kernel.datagrams,
                to_client: figures.counters.to_client.by_kernel.datagrams,
            },
            overtaken: figures.fast_path.overtaken,
        }),
        mirror: report.mirror.clone().zip(figures.mirror.as_ref()).map(|(cluster, figures)| {
            MirrorStatus { cluster, to_backend: (&figures.counters.to_backend).into() }
        }),
        announce: None,
    }
}
