//! The last minutes, for who opens the page now: kept by the process, in small.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::json;

use crate::admin::status::StatusDocument;

/// From one sample to the next.
pub(super) const PERIOD: Duration = Duration::from_secs(5);

/// How many samples are kept: five minutes of them.
const MAX_SAMPLES: usize = 60;

/// What the page calls those that a full receive buffer cost.
const KERNEL: &str = "receive buffer full (kernel)";

/// The last minutes. Times are those of a clock of the caller.
#[derive(Debug, Default)]
pub(super) struct History {
    /// The oldest first.
    samples: VecDeque<Sample>,
    last: Option<(Duration, Sums)>,
}

/// Datagrams a second.
#[derive(Debug)]
struct Sample {
    at: Duration,
    to_backend: f64,
    to_client: f64,
    dropped: BTreeMap<String, f64>,
}

/// Datagrams since the start.
#[derive(Debug, Default)]
struct Sums {
    to_backend: u64,
    to_client: u64,
    dropped: BTreeMap<String, u64>,
}

impl History {
    /// Takes in how things stand at `at`.
    pub(super) fn take(&mut self, document: &StatusDocument, at: Duration) {
        let sums = Sums::of(document);
        if let Some((before, old)) = self.last.as_ref().filter(|(before, _)| *before < at) {
            let seconds = (at - *before).as_secs_f64();
            let grown = |new: u64, old: u64| new.saturating_sub(old) as f64 / seconds;
            let dropped = sums.dropped.iter().filter_map(|(reason, &new)| {
                let grown = grown(new, old.dropped.get(reason).copied().unwrap_or_default());
                (grown > 0.0).then(|| (reason.clone(), grown))
            });
            self.samples.push_back(Sample {
                at,
                to_backend: grown(sums.to_backend, old.to_backend),
                to_client: grown(sums.to_client, old.to_client),
                dropped: dropped.collect(),
            });
            while self.samples.len() > MAX_SAMPLES {
                self.samples.pop_front();
            }
        }
        self.last = Some((at, sums));
    }

    /// The samples as JSON, the oldest first, each with its age in seconds.
    pub(super) fn json(&self, now: Duration) -> String {
        let sample = |sample: &Sample| {
            json!({
                "age": now.saturating_sub(sample.at).as_secs_f64(),
                "to_backend": sample.to_backend,
                "to_client": sample.to_client,
                "dropped": sample.dropped,
            })
        };
        json!(self.samples.iter().map(sample).collect::<Vec<_>>()).to_string()
    }
}

impl Sums {
    fn of(document: &StatusDocument) -> Self {
        let mut sums = Self::default();
        for listener in &document.listeners {
            sums.to_backend += listener.to_backend.forwarded.datagrams;
            sums.to_client += listener.to_client.forwarded.datagrams;
            for ledger in [&listener.to_backend, &listener.to_client] {
                for (reason, traffic) in &ledger.dropped {
                    *sums.dropped.entry(reason.clone()).or_default() += traffic.datagrams;
                }
            }
            if listener.socket_drops > 0 {
                *sums.dropped.entry(KERNEL.to_owned()).or_default() += listener.socket_drops;
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::status::{LedgerDoc, ListenerStatus, TrafficDoc};

    fn document(forwarded: u64, denied: u64) -> StatusDocument {
        let traffic = |datagrams| TrafficDoc { datagrams, bytes: 0 };
        let ledger = LedgerDoc {
            queued: TrafficDoc::default(),
            received: traffic(forwarded + denied),
            forwarded: traffic(forwarded),
            dropped: BTreeMap::from([("denied".to_owned(), traffic(denied))]),
        };
        let listener = ListenerStatus {
            name: "dns".into(),
            address: "0.0.0.0:53".into(),
            cluster: "dns".into(),
            flows_active: 0,
            flows_max: 1,
            flows_opened: 0,
            retries: 0,
            flows_closed: BTreeMap::new(),
            socket_drops: 0,
            upstream_socket_drops: 0,
            upstreams_per_flow: 0,
            upstreams_shared: 0,
            client_sockets: 0,
            client_sockets_failed: 0,
            fast_path: None,
            to_backend: ledger,
            to_client: LedgerDoc::default(),
            mirror: None,
            announce: None,
        };
        StatusDocument { listeners: vec![listener], ..StatusDocument::default() }
    }

    #[test]
    fn what_grew_is_kept_by_the_second_for_some_minutes() {
        let mut history = History::default();
        let second = Duration::from_secs(1);
        history.take(&document(100, 0), second);
        assert_eq!(history.json(second), "[]");
        history.take(&document(300, 10), 3 * second);
        // The same moment again adds nothing, and a counter that begins again is no rate.
        history.take(&document(300, 10), 3 * second);
        history.take(&document(0, 0), 4 * second);
        let samples: serde_json::Value = serde_json::from_str(&history.json(5 * second)).unwrap();
        assert_eq!(samples.as_array().unwrap().len(), 2);
        assert_eq!(samples[0]["age"], 2.0);
        assert_eq!(samples[0]["to_backend"], 100.0);
        assert_eq!(samples[0]["dropped"]["denied"], 5.0);
        assert_eq!(samples[1]["to_backend"], 0.0);

        for n in 5..5 + 2 * MAX_SAMPLES as u32 {
            history.take(&document(0, 0), n * second);
        }
        let samples: serde_json::Value = serde_json::from_str(&history.json(second)).unwrap();
        assert_eq!(samples.as_array().unwrap().len(), MAX_SAMPLES);
    }
}
