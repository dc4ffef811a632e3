//! What backends were sent and have sent by listeners that a reload has removed: their figures never
//! go down as long as their clusters have them.

use std::collections::HashMap;
use std::net::SocketAddr;

use flowgate_core::counters::{AnswerTimes, Traffic};
use flowgate_core::snapshot::address;
use serde::{Deserialize, Serialize};

use crate::datapath::report::{BackendReport, ShardReport};

/// The figures of one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PastFigures {
    to: Traffic,
    dropped: Traffic,
    from: Traffic,
    ejections: [u64; 2],
    answer_times: AnswerTimes,
}

/// The figures of one backend of one cluster, for another process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PastBackendSnapshot {
    cluster: String,
    #[serde(with = "address")]
    backend: SocketAddr,
    figures: PastFigures,
}

/// The figures of all backends, by cluster.
#[derive(Debug, Default)]
pub(super) struct PastBackends(HashMap<String, HashMap<SocketAddr, PastFigures>>);

impl PastBackends {
    /// Takes in what the last report of a shard says, which served a cluster and perhaps a mirror.
    pub(super) fn take(&mut self, cluster: &str, mirror: Option<&str>, report: &ShardReport) {
        self.take_all(cluster, &report.backends);
        if let (Some(mirror), Some(figures)) = (mirror, &report.mirror) {
            self.take_all(mirror, &figures.backends);
        }
    }

    fn take_all(&mut self, cluster: &str, backends: &[BackendReport]) {
        let sums = self.0.entry(cluster.to_owned()).or_default();
        for backend in backends.iter().filter(|backend| !backend.is_removed) {
            let sum = sums.entry(backend.address).or_default();
            sum.to = sum.to.plus(backend.to);
            sum.dropped = sum.dropped.plus(backend.dropped);
            sum.from = sum.from.plus(backend.from);
            for (sum, more) in sum.ejections.iter_mut().zip(backend.ejections) {
                *sum += more;
            }
            sum.answer_times.add(&backend.answer_times);
        }
    }

    /// Adds what there is of a backend to what it has now.
    pub(super) fn add_to(&self, cluster: &str, report: &mut BackendReport) {
        let past = self.0.get(cluster).and_then(|cluster| cluster.get(&report.address));
        let Some(past) = past else { return };
        report.to = report.to.plus(past.to);
        report.dropped = report.dropped.plus(past.dropped);
        report.from = report.from.plus(past.from);
        for (sum, more) in report.ejections.iter_mut().zip(past.ejections) {
            *sum += more;
        }
        report.answer_times.add(&past.answer_times);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets the backends that are no more.
    pub(super) fn retain(&mut self, exists: impl Fn(&str, SocketAddr) -> bool) {
        for (name, cluster) in &mut self.0 {
            cluster.retain(|&backend, _| exists(name, backend));
        }
        self.0.retain(|_, cluster| !cluster.is_empty());
    }

    pub(super) fn snapshot(&self) -> Vec<PastBackendSnapshot> {
        let of_cluster = |(cluster, backends): (&String, &HashMap<SocketAddr, PastFigures>)| {
            let cluster = cluster.clone();
            backends.clone().into_iter().map(move |(backend, figures)| PastBackendSnapshot {
                cluster: cluster.clone(),
                backend,
                figures,
            })
        };
        self.0.iter().flat_map(of_cluster).collect()
    }

    pub(super) fn restore(snapshots: Vec<PastBackendSnapshot>) -> Self {
        let mut past = Self::default();
        for PastBackendSnapshot { cluster, backend, figures } in snapshots {
            past.0.entry(cluster).or_default().insert(backend, figures);
        }
        past
    }
}
