//! What is known of sources, as plain data.

use alloc::vec;
use core::time::Duration;

use super::{BUCKET, Bucket, FlowCounts, Network, NewFlowRate, SourceLimits};
use crate::config::{Limits, MAX_FLOWS};
use crate::snapshot::ImageError;
use crate::snapshot::error::require;
use crate::snapshot::parts::{RateImage, SourcesImage};
use crate::time::Instant;

impl SourceLimits {
    /// All but the flows themselves. Whatever is over by `elapsed` is left out.
    pub(crate) fn image(&self, elapsed: Instant) -> SourcesImage {
        SourcesImage {
            source_keys: self.sources.as_ref().map(|counts| counts.keys),
            subnet_keys: self.subnets.as_ref().map(|counts| counts.keys),
            rate: self.rate.as_ref().map(|rate| rate.image(elapsed)),
        }
    }

    /// The same without flows, with room for those of so many sources.
    pub(crate) fn restored(
        image: &SourcesImage,
        limits: &Limits,
        capacity: usize,
    ) -> Result<Self, ImageError> {
        let counts = |limit: u32, network, keys: Option<(u64, u64)>| match (limit, keys) {
            (0, None) => Ok(None),
            (1.., Some(keys)) => Ok(Some(FlowCounts::new(limit, network, capacity, keys))),
            _ => Err(ImageError::Broken("sources are counted for no limit, or not for one")),
        };
        let rate = match (limits.new_flows_per_second_per_source, &image.rate) {
            (0, None) => None,
            (per_second @ 1.., Some(rate)) => Some(NewFlowRate::restored(rate, per_second)?),
            _ => return Err(ImageError::Broken("a rate is measured for no limit, or not for one")),
        };
        Ok(Self {
            sources: counts(limits.flows_per_source, Network::Address, image.source_keys)?,
            subnets: counts(limits.flows_per_subnet, Network::Subnet, image.subnet_keys)?,
            rate,
        })
    }
}

impl NewFlowRate {
    fn image(&self, elapsed: Instant) -> RateImage {
        let buckets = (0..).zip(&self.buckets);
        let filled = buckets.filter(|(_, bucket)| bucket.empty_at > elapsed);
        RateImage {
            keys: self.keys,
            buckets: self.buckets.len().trailing_zeros() as u8,
            filled: filled.map(|(at, b)| (at, b.fingerprint, b.empty_at)).collect(),
        }
    }

    fn restored(image: &RateImage, per_second: u32) -> Result<Self, ImageError> {
        let fewest = Self::buckets_for(0).trailing_zeros();
        let most = Self::buckets_for(MAX_FLOWS as usize).trailing_zeros();
        let is_possible = (fewest..=most).contains(&image.buckets.into());
        require!(is_possible, "an impossible number of buckets");
        let mut buckets = vec![Bucket::EMPTY; 1 << image.buckets];
        for &(at, fingerprint, empty_at) in &image.filled {
            let Some(bucket) = buckets.get_mut(at as usize) else {
                return Err(ImageError::Broken("a bucket beyond the last"));
            };
            *bucket = Bucket { fingerprint, empty_at };
        }
        let interval: Duration = BUCKET / per_second;
        Ok(Self { buckets, interval, keys: image.keys })
    }
}
