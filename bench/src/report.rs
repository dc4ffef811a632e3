//! What came of a comparison: figures, medians, ratios.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::drive::Tally;
use crate::peers::Peer;
use crate::workload::{Headline, Workload};

/// The share of the time above which a balancer that works, or waits for its core, counts as saturated.
const SATURATED: f64 = 0.95;

/// Everything that was measured, in a form that can be kept.
#[derive(Serialize, Deserialize)]
pub(crate) struct Report {
    /// The processor and the kernel.
    pub(crate) machine: String,
    /// The versions of the peers that have one.
    pub(crate) versions: Vec<(Peer, String)>,
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    /// Processes that the balancer shared its core with.
    pub(crate) crowd: usize,
    pub(crate) rows: Vec<Row>,
}

/// One workload.
#[derive(Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) title: String,
    /// What the figures count.
    pub(crate) unit: String,
    pub(crate) headline: Headline,
    pub(crate) peers: Vec<Column>,
}

/// One peer in one workload.
#[derive(Serialize, Deserialize)]
pub(crate) struct Column {
    pub(crate) peer: Peer,
    pub(crate) median: Figures,
    pub(crate) rounds: Vec<Figures>,
}

/// One measurement, or the medians of several.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// Delivered per second.
    pub(crate) rate: f64,
    /// The share of what was sent that never arrived.
    pub(crate) lost: f64,
    /// Latency, in microseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    /// What it cost; none if there was no balancer.
    pub(crate) costs: Option<Costs>,
}

/// What a measurement cost the balancer.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Costs {
    /// CPU time per delivered datagram, in nanoseconds.
    pub(crate) cpu_ns: f64,
    /// The share of its core that the balancer used.
    pub(crate) busy: f64,
    /// The share of the time that it was ready, but something else had its core.
    pub(crate) waited: f64,
    /// Resident memory at the end, in bytes.
    pub(crate) resident: u64,
    /// The most resident memory, in bytes.
    pub(crate) peak: u64,
}

impl Report {
    pub(crate) fn new(
        versions: &[(Peer, String)],
        rounds: usize,
        seconds: f64,
        crowd: usize,
    ) -> Self {
        Report {
            machine: machine(),
            versions: versions.to_vec(),
            rounds,
            seconds,
            crowd,
            rows: Vec::new(),
        }
    }

    /// Adds what the rounds of one workload brought.
    pub(crate) fn add(
        &mut self,
        workload: &Workload,
        samples: impl Iterator<Item = (Peer, Vec<Figures>)>,
    ) {
        self.rows.push(Row {
            name: workload.name.to_owned(),
            title: workload.title.to_owned(),
            unit: workload.unit.to_owned(),
            headline: workload.headline,
            peers: samples
                .map(|(peer, rounds)| Column { peer, median: Figures::median(&rounds), rounds })
                .collect(),
        });
    }
}

impl Row {
    /// Whether `peer` could do more than it was asked to, though the clients sent all they could.
    pub(crate) fn has_time_to_spare(&self, peer: Peer) -> bool {
        let costs = self.figures(peer).and_then(|figures| figures.costs.as_ref());
        self.headline == Headline::Rate && costs.is_some_and(Costs::is_idle_at_times)
    }

    pub(crate) fn figures(&self, peer: Peer) -> Option<&Figures> {
        self.peers.iter().find(|column| column.peer == peer).map(|column| &column.median)
    }

    /// The figure for which the workload exists, as a multiple of that of nginx.
    pub(crate) fn relative_to_nginx(&self, peer: Peer) -> Option<f64> {
        Some(self.headline.of(self.figures(peer)?)? / self.headline.of(self.figures(Peer::Nginx)?)?)
    }
}

impl Figures {
    pub(crate) fn new(rate: f64, tally: &Tally, costs: Option<Costs>) -> Self {
        let microseconds = |quantile| tally.latency.value_at_quantile(quantile) as f64 / 1_000.0;
        Figures {
            rate,
            lost: 1.0 - tally.arrived.min(tally.sent) as f64 / tally.sent as f64,
            p50: microseconds(0.5),
            p99: microseconds(0.99),
            p999: microseconds(0.999),
            costs,
        }
    }

    /// The median of each figure by itself.
    fn median(rounds: &[Figures]) -> Self {
        let costs: Option<Vec<_>> = rounds.iter().map(|figures| figures.costs.clone()).collect();
        Figures {
            rate: median(rounds, |figures| figures.rate),
            lost: median(rounds, |figures| figures.lost),
            p50: median(rounds, |figures| figures.p50),
            p99: median(rounds, |figures| figures.p99),
            p999: median(rounds, |figures| figures.p999),
            costs: costs.map(|costs| Costs {
                cpu_ns: median(&costs, |costs| costs.cpu_ns),
                busy: median(&costs, |costs| costs.busy),
                waited: median(&costs, |costs| costs.waited),
                resident: median(&costs, |costs| costs.resident as f64) as u64,
                peak: median(&costs, |costs| costs.peak as f64) as u64,
            }),
        }
    }
}

impl Costs {
    /// Whether the balancer sometimes had nothing to do.
    fn is_idle_at_times(&self) -> bool {
        self.busy + self.waited < SATURATED
    }

    /// What a whole core delivers each second at this CPU time.
    pub(crate) fn per_core(&self) -> f64 {
        1e9 / self.cpu_ns
    }
}

impl Headline {
    pub(crate) fn of(self, figures: &Figures) -> Option<f64> {
        match self {
            Headline::Rate => Some(figures.rate),
            Headline::Cpu => figures.costs.as_ref().map(|costs| costs.cpu_ns / 1_000.0),
            Headline::Tail => Some(figures.p99),
        }
    }
}

/// The median of one figure.
fn median<T>(samples: &[T], figure: impl Fn(&T) -> f64) -> f64 {
    let mut values: Vec<_> = samples.iter().map(figure).collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => values[odd / 2],
        even => (values[even / 2 - 1] + values[even / 2]) / 2.0,
    }
}

/// The processor and the kernel of this machine.
fn machine() -> String {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let processor = model.map_or("unknown processor", |(_, name)| name);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    // The version alone: what follows the dash names a distribution's or a provider's build.
    let version = kernel.trim().split('-').next().unwrap_or_default();
    format!("{processor}, Linux {version}")
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_the_middle_of_the_sorted_values() {
        assert_eq!(median(&[3.0, 1.0, 2.0], |value| *value), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0], |value| *value), 2.5);
    }
}
