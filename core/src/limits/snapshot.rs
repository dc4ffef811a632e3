//! What is known of sources, as plain data.

use alloc::vec;

use super::rate::{Bucket, Rate};
use super::{FlowCounts, Network, SourceLimits};
use crate::config::{Limits, MAX_FLOWS};
use crate::snapshot::RestoreError;
use crate::snapshot::error::require;
use crate::snapshot::parts::{RateSnapshot, SourcesSnapshot};
use crate::time::Instant;

impl SourceLimits {
    /// All but the flows themselves. Whatever is over by `elapsed` is left out.
    pub(crate) fn snapshot(&self, elapsed: Instant) -> SourcesSnapshot {
        SourcesSnapshot {
            source_keys: self.sources.as_ref().map(|counts| counts.keys),
            subnet_keys: self.subnets.as_ref().map(|counts| counts.keys),
            rates: [&self.new_flows, &self.datagrams, &self.bytes]
                .map(|rate| rate.as_ref().map(|rate| rate.snapshot(elapsed))),
        }
    }

    /// The same without flows, with room for those of this many sources.
    pub(crate) fn restored(
        snapshot: &SourcesSnapshot,
        limits: &Limits,
        capacity: usize,
    ) -> Result<Self, RestoreError> {
        let counts = |limit: u32, network, keys: Option<(u64, u64)>| match (limit, keys) {
            (0, None) => Ok(None),
            (1.., Some(keys)) => Ok(Some(FlowCounts::new(limit, network, capacity, keys))),
            _ => Err(RestoreError::Broken("sources are counted for no limit, or not for one")),
        };
        let rate = |limit: u64, snapshot: &Option<RateSnapshot>| match (limit, snapshot) {
            (0, None) => Ok(None),
            (1.., Some(snapshot)) => Ok(Some(Rate::restored(snapshot, limit)?)),
            _ => Err(RestoreError::Broken("a rate is measured for no limit, or not for one")),
        };
        let [new_flows, datagrams, bytes] = &snapshot.rates;
        Ok(Self {
            sources: counts(limits.flows_per_source, Network::Address, snapshot.source_keys)?,
            subnets: counts(limits.flows_per_subnet, Network::Subnet, snapshot.subnet_keys)?,
            new_flows: rate(limits.new_flows_per_second_per_source.into(), new_flows)?,
            datagrams: rate(limits.datagrams_per_second_per_source.into(), datagrams)?,
            bytes: rate(limits.bytes_per_second_per_source, bytes)?,
        })
    }
}

impl Rate {
    fn snapshot(&self, elapsed: Instant) -> RateSnapshot {
        let buckets = (0..).zip(&self.buckets);
        let filled = buckets.filter(|(_, bucket)| bucket.empty_at > elapsed);
        RateSnapshot {
            keys: self.keys,
            buckets: self.buckets.len().trailing_zeros() as u8,
            filled: filled.map(|(at, b)| (at, b.fingerprint, b.empty_at)).collect(),
        }
    }

    fn restored(snapshot: &RateSnapshot, per_second: u64) -> Result<Self, RestoreError> {
        let fewest = Self::buckets_for(0).trailing_zeros();
        let most = Self::buckets_for(MAX_FLOWS as usize).trailing_zeros();
        let is_possible = (fewest..=most).contains(&snapshot.buckets.into());
        require!(is_possible, "an impossible number of buckets");
        let mut buckets = vec![Bucket::EMPTY; 1 << snapshot.buckets];
        for &(at, fingerprint, empty_at) in &snapshot.filled {
            let Some(bucket) = buckets.get_mut(at as usize) else {
                return Err(RestoreError::Broken("a bucket beyond the last"));
            };
            *bucket = Bucket { fingerprint, empty_at };
        }
        Ok(Self::with_buckets(buckets, per_second, snapshot.keys))
    }
}
