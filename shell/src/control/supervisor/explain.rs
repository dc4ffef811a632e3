//! Where a client's datagrams would go as things stand, and why.

use std::net::SocketAddr;

use flowgate_config::{Cluster, hex};
use flowgate_core::DropReason;
use flowgate_core::affinity::PlacedBy;
use flowgate_core::config::{BackendConfig, OnBackendDown};
use ipnet::IpNet;

use super::Supervisor;
use crate::admin::request::{FlowFilter, Response};
use crate::admin::status::{BackendState, BackendStatus};
use crate::control::explain::{ExplainedBackend, ExplainedListener, Question, explain_all};
use crate::datapath::report::ListenerReport;

impl Supervisor {
    /// Where a client's datagrams would go now.
    pub(super) fn explain(&mut self, client: SocketAddr, payload: Option<&str>) -> Response {
        let payload = match payload.map(|digits| hex::decode(digits).ok_or(digits)).transpose() {
            Ok(payload) => payload,
            Err(digits) => {
                return Response::refused(format!(
                    "{digits:?} is no payload in hexadecimal digits"
                ));
            }
        };
        let reports = self.server.report();
        let backend = self.clusters(&reports);
        let look = |cluster: &Cluster| {
            let known = backend.iter().find(|known| known.name == cluster.name);
            let said = known.map_or(&[][..], |known| &known.backends);
            let all = self.server.backends_of(cluster).into_iter();
            let with_standing = all.map(|backend| {
                let said = said.iter().find(|said| said.address == backend.address);
                let is_out = said.and_then(|said| why_out(said, &backend));
                let is_lost = said.is_some_and(|said| {
                    matches!(said.state, BackendState::Down | BackendState::Ejected)
                });
                let is_pinned = cluster.policy.health.on_backend_down == OnBackendDown::Pin;
                ExplainedBackend { backend, is_out, is_down: is_lost && !is_pinned }
            });
            with_standing.collect()
        };
        let question = Question { client, payload: payload.as_deref() };
        let mut listeners = explain_all(&self.config, question, &look);
        for explanation in &mut listeners {
            let reached = explanation.cluster.as_ref().and_then(|cluster| {
                let is_meant = |report: &&ListenerReport| {
                    report.name == explanation.listener
                        || report.name == format!("{}/{cluster}", explanation.listener)
                };
                reports.iter().filter(is_meant).find(|report| report.cluster == *cluster)
            });
            if let Some(report) = reached {
                explanation.address.clone_from(&report.address);
                if let Some(datagram) = question.payload
                    && let Some((PlacedBy::LearnedId, backend)) =
                        self.server.named_by(&report.name, datagram)
                {
                    let line = format!("but {backend} has announced this id: it goes there");
                    explanation.because.push(line);
                    (explanation.backend, explanation.is_named) = (Some(backend), true);
                }
                self.explain_limits(client, report, explanation);
            }
        }
        Response::Explained { listeners }
    }

    /// What a client has already, and what of it is limited.
    fn explain_limits(
        &self,
        client: SocketAddr,
        report: &ListenerReport,
        explanation: &mut ExplainedListener,
    ) {
        let Some(listener) = self.config.listener(&report.name) else { return };
        let limits = &listener.cluster.policy.limits;
        let ip = client.ip().to_canonical();
        let has = |prefix: u8| {
            let network = IpNet::new(ip, prefix).ok().map(|network| network.trunc());
            let limit = FlowFilter::MAX;
            let listener = Some(report.name.clone());
            self.server.flows(&FlowFilter { client: network, listener, limit, backend: None }).flows
        };
        let (host, source, subnet) = if ip.is_ipv4() { (32, 32, 24) } else { (128, 64, 56) };
        let flows = has(host);
        let goes_on = flows.iter().find(|flow| flow.client == client);
        if let Some(flow) = goes_on.filter(|_| listener.cluster.policy.transactions.is_none()) {
            let to = explanation.backend.filter(|_| explanation.is_named).unwrap_or(flow.backend);
            explanation.backend = Some(to);
            let line = match to == flow.backend {
                true => format!("but it has a flow, which goes on to {to}"),
                false => format!("and its flow to {} goes over to {to}", flow.backend),
            };
            explanation.because.push(line);
        } else if !flows.is_empty() {
            let flows = match flows.len() {
                1 => "a flow".to_owned(),
                several => format!("{several} flows"),
            };
            explanation.because.push(format!("its address has {flows} now"));
        }
        let mut limit = |what: &str, reason: DropReason, has: u64, most: u64| {
            if most > 0 && has >= most {
                let reason = reason.as_str();
                let line = format!("{what}: {has} of {most}: a new flow may be dropped ({reason})");
                explanation.because.push(line);
            }
        };
        limit("flows", DropReason::MaxFlows, report.figures.flows_active, report.flows_max);
        if limits.flows_per_source > 0 {
            let of_source = has(source).len() as u64;
            let most = limits.flows_per_source.into();
            limit("flows_per_source", DropReason::SourceFlows, of_source, most);
        }
        if limits.flows_per_subnet > 0 {
            let of_subnet = has(subnet).len() as u64;
            let most = limits.flows_per_subnet.into();
            limit("flows_per_subnet", DropReason::SubnetFlows, of_subnet, most);
        }
        if self.is_draining || self.is_stopping() {
            explanation.because.push("draining: a new flow is dropped".to_owned());
        }
    }
}

/// Why a backend takes no new flow, if it does not.
fn why_out(said: &BackendStatus, backend: &BackendConfig) -> Option<String> {
    let reason = said.reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
    match said.state {
        BackendState::Down | BackendState::Ejected | BackendState::Draining => {
            Some(format!("it is {}{reason}", said.state.as_str()))
        }
        _ if backend.max_flows > 0 && said.flows_active >= backend.max_flows.into() => {
            Some(format!("it is full, with {} flows", said.flows_active))
        }
        _ => None,
    }
}
