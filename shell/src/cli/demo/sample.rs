//! How the demo stood at a moment, and what happened between two of them.

use std::time::Duration;

use flowgate_core::Instant;
use flowgate_core::counters::{Counters, Traffic};
use hdrhistogram::Histogram;

use super::clients::{self, Experience};
use crate::datapath::report::ShardReport;

/// How the demo stands at a moment. Every figure is measured: by the balancer, or by the clients.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// The moment.
    pub(super) at: Instant,
    /// What the balancer reports.
    pub(super) balancer: ShardReport,
    /// What the clients saw.
    pub(super) clients: Experience,
}

/// A stretch of time between two samples.
#[derive(Clone, Copy)]
pub(super) struct Stretch<'a> {
    /// Where it begins.
    pub(super) from: &'a Sample,
    /// Where it ends.
    pub(super) to: &'a Sample,
}

impl Stretch<'_> {
    pub(super) fn length(&self) -> Duration {
        self.to.at.saturating_since(self.from.at)
    }

    /// The datagrams of a kind that the balancer counted meanwhile.
    pub(super) fn datagrams(&self, of: impl Fn(&Counters) -> Traffic) -> u64 {
        let counted = |sample: &Sample| of(&sample.balancer.counters).datagrams;
        // A worker that has ended reports nothing.
        counted(self.to).saturating_sub(counted(self.from))
    }

    /// The round trips that ended meanwhile, to each backend.
    pub(super) fn round_trips_each(&self) -> impl Iterator<Item = Histogram<u64>> {
        self.to.clients.round_trips.iter().zip(&self.from.clients.round_trips).map(|(to, from)| {
            let mut meanwhile = to.clone();
            meanwhile.subtract(from).expect("bounds are equal and counts only grow");
            meanwhile
        })
    }

    /// The round trips that ended meanwhile, to all backends together.
    pub(super) fn round_trips(&self) -> Histogram<u64> {
        self.round_trips_each().fold(clients::no_round_trips(), |mut sum, each| {
            sum.add(each).expect("bounds are equal");
            sum
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::datapath::report::BackendReport;
    use flowgate_core::backend::BackendState;
    use flowgate_core::counters::AnswerTimes;

    /// Two backends, and nothing done yet.
    pub(in super::super) fn start() -> Sample {
        let backend = |port| BackendReport {
            address: ([127, 0, 0, 1], port).into(),
            weight: 1,
            state: BackendState::Up,
            ejection: None,
            ejections: [0; 2],
            doubts: 0,
            is_up: true,
            is_removed: false,
            flows_active: 0,
            to: Traffic::default(),
            dropped: Traffic::default(),
            from: Traffic::default(),
            answer_times: AnswerTimes::default(),
        };
        let backends = vec![backend(40_001), backend(40_002)];
        Sample {
            at: Instant::ORIGIN,
            balancer: ShardReport { backends, ..ShardReport::default() },
            clients: Experience::none_yet(2),
        }
    }

    /// Of 1,005 datagrams the balancer dropped three and the network two; the second backend
    /// answered a quarter of the rest, ten times as slowly as the first.
    pub(in super::super) fn two_seconds_later() -> Sample {
        let mut sample = start();
        sample.at += Duration::from_secs(2);
        let datagrams = |datagrams| Traffic { datagrams, bytes: 64 * datagrams };
        let counters = &mut sample.balancer.counters;
        counters.to_backend.received = datagrams(1_005);
        counters.to_backend.forwarded = datagrams(1_002);
        counters.to_backend.dropped[0] = datagrams(3);
        counters.to_client.received = datagrams(1_000);
        counters.to_client.forwarded = datagrams(1_000);
        sample.balancer.flows_active = 8;
        sample.balancer.backends[0].flows_active = 6;
        sample.balancer.backends[1].flows_active = 2;
        sample.clients.sent = 1_005;
        sample.clients.answered = 1_000;
        sample.clients.round_trips[0].record_n(100_000, 750).unwrap();
        sample.clients.round_trips[1].record_n(1_000_000, 250).unwrap();
        sample
    }

    #[test]
    fn a_stretch_tells_only_what_happened_in_it() {
        let (start, end) = (start(), two_seconds_later());
        let received = |counters: &Counters| counters.to_backend.received;
        let whole = Stretch { from: &start, to: &end };
        assert_eq!(whole.length(), Duration::from_secs(2));
        assert_eq!(whole.datagrams(received), 1_005);
        assert_eq!(whole.round_trips_each().map(|each| each.len()).collect::<Vec<_>>(), [750, 250]);
        assert_eq!(whole.round_trips().len(), 1_000);
        let nothing = Stretch { from: &end, to: &end };
        assert_eq!(nothing.datagrams(received), 0);
        assert_eq!(nothing.round_trips().len(), 0);
    }

    #[test]
    fn a_count_that_went_down_is_no_flood() {
        let (start, end) = (start(), two_seconds_later());
        let backwards = Stretch { from: &end, to: &start };
        assert_eq!(backwards.datagrams(|counters| counters.to_backend.forwarded), 0);
    }
}
