//! What one client, or one neighbourhood of clients, may take.

pub(crate) mod answered;
pub(crate) mod overload;
mod snapshot;

use core::hash::Hasher;
use core::time::Duration;

use alloc::vec;
use alloc::vec::Vec;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use siphasher::sip::SipHasher13;

use crate::config::Limits;
use crate::random::Random;
use crate::reason::DropReason;
use crate::time::Instant;

/// The limits that hold for each source. Addresses are held mapped into IPv6.
///
/// All tables are allocated at start, for as many sources as there can be flows, and only where a
/// limit is set.
#[derive(Clone, Debug)]
pub(crate) struct SourceLimits {
    sources: Option<FlowCounts>,
    subnets: Option<FlowCounts>,
    rate: Option<NewFlowRate>,
}

impl SourceLimits {
    pub(crate) fn new(limits: &Limits, max_flows: usize, random: &mut Random) -> Self {
        let mut keys = || (random.draw(), random.draw());
        let counts = |limit, network, keys| {
            (limit > 0).then(|| FlowCounts::new(limit, network, max_flows, keys))
        };
        Self {
            sources: counts(limits.flows_per_source, Network::Address, keys()),
            subnets: counts(limits.flows_per_subnet, Network::Subnet, keys()),
            rate: (limits.new_flows_per_second_per_source > 0).then(|| {
                NewFlowRate::new(limits.new_flows_per_second_per_source, max_flows, keys())
            }),
        }
    }

    /// Whether `client` may have one more flow, and if so counts the attempt against its rate.
    pub(crate) fn admit(&mut self, client: u128, now: Instant) -> Result<(), DropReason> {
        self.admit_another(client)?;
        if self.rate.as_mut().is_some_and(|rate| !rate.admit(client, now)) {
            return Err(DropReason::SourceRate);
        }
        Ok(())
    }

    /// Whether `client` may have one more flow for the same datagram.
    pub(crate) fn admit_another(&self, client: u128) -> Result<(), DropReason> {
        if self.sources.as_ref().is_some_and(|counts| counts.is_at_limit(client)) {
            return Err(DropReason::SourceFlows);
        }
        if self.subnets.as_ref().is_some_and(|counts| counts.is_at_limit(client)) {
            return Err(DropReason::SubnetFlows);
        }
        Ok(())
    }

    /// Counts a flow of `client`.
    pub(crate) fn opened(&mut self, client: u128) {
        self.counts().for_each(|counts| counts.add(client));
    }

    /// Counts the end of a flow of `client`.
    pub(crate) fn closed(&mut self, client: u128) {
        self.counts().for_each(|counts| counts.remove(client));
    }

    /// How many flows are counted: for each table that there is.
    pub(crate) fn totals(&self) -> impl Iterator<Item = u64> {
        let tables = self.sources.iter().chain(&self.subnets);
        tables.map(|counts| counts.table.iter().map(|count| u64::from(count.flows)).sum())
    }

    fn counts(&mut self) -> impl Iterator<Item = &mut FlowCounts> {
        self.sources.iter_mut().chain(&mut self.subnets)
    }
}

/// Who is counted together.
#[derive(Clone, Copy, Debug)]
enum Network {
    /// Each address by itself.
    Address,
    /// A /24 of IPv4, a /56 of IPv6: what one customer or one site usually has.
    Subnet,
}

impl Network {
    fn of(self, client: u128) -> u128 {
        const IPV4_MAPPED: u128 = 0xFFFF << 32;
        let host_bits = match self {
            Self::Address => 0,
            Self::Subnet if client >> 32 == IPV4_MAPPED >> 32 => 8,
            Self::Subnet => 128 - 56,
        };
        client >> host_bits << host_bits
    }
}

/// How many flows each network has. It holds an entry only for those that have one.
#[derive(Clone, Debug)]
struct FlowCounts {
    limit: u32,
    network: Network,
    table: HashTable<Count>,
    keys: (u64, u64),
}

#[derive(Clone, Copy, Debug)]
struct Count {
    network: u128,
    flows: u32,
}

impl FlowCounts {
    fn new(limit: u32, network: Network, max_flows: usize, keys: (u64, u64)) -> Self {
        Self { limit, network, table: HashTable::with_capacity(max_flows * 2), keys }
    }

    fn is_at_limit(&self, client: u128) -> bool {
        let network = self.network.of(client);
        let count = self.table.find(hash(network, self.keys), |count| count.network == network);
        count.is_some_and(|count| count.flows >= self.limit)
    }

    fn add(&mut self, client: u128) {
        let network = self.network.of(client);
        self.entry(client).or_insert(Count { network, flows: 0 }).get_mut().flows += 1;
    }

    fn remove(&mut self, client: u128) {
        if let Entry::Occupied(mut entry) = self.entry(client) {
            entry.get_mut().flows -= 1;
            if entry.get().flows == 0 {
                entry.remove();
            }
        }
    }

    fn entry(&mut self, client: u128) -> Entry<'_, Count> {
        let (network, keys) = (self.network.of(client), self.keys);
        self.table.entry(
            hash(network, keys),
            |count| count.network == network,
            |count| hash(count.network, keys),
        )
    }
}

/// How fast each source may open flows: a leaky bucket of one second's worth for each, by the
/// generic cell rate algorithm (ITU-T I.371), which needs one word a bucket.
///
/// A source that has just lost its last flow must still be known, and forged sources come by the
/// million, so a source that is new to its set of buckets takes the emptiest of them over. Whoever
/// opens flows too fast keeps its own full, so that it stays known; and nobody is ever refused for
/// what others do, however many there are.
#[derive(Clone, Debug)]
struct NewFlowRate {
    /// Sets of [`BUCKETS_OF_SET`].
    buckets: Vec<Bucket>,
    interval: Duration,
    keys: (u64, u64),
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Whose it is.
    fingerprint: u32,
    /// The time at which it will have run empty.
    empty_at: Instant,
}

/// How much may come at once: one second's worth.
const BUCKET: Duration = Duration::from_secs(1);

/// How many sources of one hash are told apart.
const BUCKETS_OF_SET: usize = 4;

impl NewFlowRate {
    fn new(per_second: u32, max_flows: usize, keys: (u64, u64)) -> Self {
        Self {
            buckets: vec![Bucket::EMPTY; Self::buckets_for(max_flows)],
            interval: BUCKET / per_second,
            keys,
        }
    }

    fn buckets_for(max_flows: usize) -> usize {
        max_flows.max(1_024).next_power_of_two() * 2
    }

    fn admit(&mut self, client: u128, now: Instant) -> bool {
        let hash = hash(client, self.keys);
        let (set, fingerprint) =
            (hash as usize % (self.buckets.len() / BUCKETS_OF_SET), hash >> 32);
        let fingerprint = fingerprint as u32;
        let set = &mut self.buckets[set * BUCKETS_OF_SET..][..BUCKETS_OF_SET];
        let own = set.iter().position(|bucket| bucket.fingerprint == fingerprint);
        let filled_from = own.map_or(now, |own| set[own].empty_at.max(now));
        let empty_at = filled_from + self.interval;
        if empty_at.saturating_since(now) > BUCKET {
            return false;
        }
        let emptiest = || (0..BUCKETS_OF_SET).min_by_key(|&at| set[at].empty_at);
        if let Some(at) = own.or_else(emptiest) {
            set[at] = Bucket { fingerprint, empty_at };
        }
        true
    }
}

impl Bucket {
    const EMPTY: Self = Self { fingerprint: 0, empty_at: Instant::ORIGIN };
}

fn hash(network: u128, keys: (u64, u64)) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(keys.0, keys.1);
    hasher.write_u64((network >> 64) as u64);
    hasher.write_u64(network as u64);
    hasher.finish()
}

#[cfg(test)]
mod tests;
