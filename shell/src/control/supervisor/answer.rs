//! Answers to operators.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use flowgate_config::{Cluster, Target};
use flowgate_core::backend;
use tracing::info;

use super::Supervisor;
use crate::admin::request::{Request, Response};
use crate::admin::status::{
    BackendState, BackendStatus, ClusterStatus, CountersDoc, ListenerStatus, MirrorStatus,
    StatusDocument, flows_closed,
};
use crate::datapath::report::{BackendReport, ListenerReport};

impl Supervisor {
    pub(super) fn answer(&mut self, request: Request) -> Response {
        match request {
            Request::Status => Response::Status(self.status()),
            Request::Flows { filter } => Response::Flows(self.server.flows(&filter)),
            Request::Reload => match self.reload() {
                Ok(notes) => Response::Done { notes },
                Err(reasons) => Response::Refused { reasons },
            },
            Request::Drain { backend, deadline_ms } => {
                let patience = deadline_ms.map(Duration::from_millis);
                self.for_backends(&backend, |server, cluster, address| {
                    info!(?cluster, %address, ?patience, "draining a backend");
                    server.drain_backend(cluster, address, patience);
                })
            }
            Request::Undrain { backend } => {
                self.for_backends(&backend, |server, cluster, address| {
                    info!(?cluster, %address, "a backend drains no more");
                    server.undrain_backend(cluster, address);
                })
            }
            // Its answer comes when it is over.
            Request::Upgrade { .. } => Response::refused("an upgrade is not asked for here"),
            Request::Snapshot => self.snapshot(),
            Request::Stop { now } => {
                if now {
                    self.server.stop();
                } else {
                    self.drain();
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
        act: impl Fn(&mut crate::control::server::Server, &str, SocketAddr),
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

    fn status(&self) -> StatusDocument {
        let listeners = self.server.report();
        let mut counters = CountersDoc {
            reloads_ok: self.reloads.ok,
            reloads_failed: self.reloads.failed,
            ..CountersDoc::default()
        };
        counters.add(self.server.past());
        listeners.iter().for_each(|listener| counters.add(&listener.figures.counters));
        let clusters = self.server.clusters();
        StatusDocument {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.clock.uptime().as_secs_f64(),
            clusters: clusters.iter().map(|cluster| self.cluster(cluster, &listeners)).collect(),
            listeners: listeners.iter().map(listener).collect(),
            counters,
        }
    }

    /// How a cluster's backends stand, with all listeners that use it together.
    fn cluster(&self, cluster: &Cluster, listeners: &[ListenerReport]) -> ClusterStatus {
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
        let names = self.names_of(cluster);
        let backends = cluster.backends(|host| self.server.addresses_of(host));
        let describe = |config: &flowgate_core::config::BackendConfig| {
            let found = figures.get(&config.address);
            let (to, from) = found.map(|f| (f.to, f.from)).unwrap_or_default();
            let dropped = found.map_or(0, |found| found.dropped.datagrams);
            BackendStatus {
                address: config.address,
                name: names.get(&config.address).cloned(),
                weight: config.weight,
                backup: config.backup,
                state: found.map_or(BackendState::Up, |found| state(found.state)),
                flows_active: found.map_or(0, |found| found.flows_active),
                datagrams_to: to.datagrams,
                datagrams_from: from.datagrams,
                bytes_to: to.bytes,
                bytes_from: from.bytes,
                datagrams_dropped: dropped,
            }
        };
        ClusterStatus {
            name: cluster.name.clone(),
            balance: cluster.policy.balance.to_string(),
            mode: cluster.policy.mode.as_str().to_owned(),
            backends: backends.iter().map(describe).collect(),
        }
    }

    /// The names that addresses were resolved from.
    fn names_of(&self, cluster: &Cluster) -> HashMap<SocketAddr, String> {
        let mut names = HashMap::new();
        for member in &cluster.members {
            if let Target::Name { host, port } = &member.target {
                for ip in self.server.addresses_of(host) {
                    names.entry((ip, *port).into()).or_insert_with(|| host.clone());
                }
            }
        }
        names
    }
}

fn listener(report: &ListenerReport) -> ListenerStatus {
    let figures = &report.figures;
    ListenerStatus {
        name: report.name.clone(),
        address: report.address,
        cluster: report.cluster.clone(),
        flows_active: figures.flows_active,
        flows_max: report.flows_max,
        flows_opened: figures.counters.flows_opened,
        flows_closed: flows_closed(&figures.counters),
        socket_drops: figures.socket_drops,
        upstream_socket_drops: figures.upstream_socket_drops,
        client_sockets: figures.client_sockets,
        client_sockets_failed: figures.client_sockets_failed,
        to_backend: (&figures.counters.to_backend).into(),
        to_client: (&figures.counters.to_client).into(),
        mirror: report.mirror.clone().zip(figures.mirror.as_ref()).map(|(cluster, figures)| {
            MirrorStatus { cluster, to_backend: (&figures.counters.to_backend).into() }
        }),
    }
}

const fn state(state: backend::BackendState) -> BackendState {
    match state {
        backend::BackendState::Up => BackendState::Up,
        backend::BackendState::Down => BackendState::Down,
        backend::BackendState::Draining => BackendState::Draining,
    }
}
