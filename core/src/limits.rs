//! What one client, or one neighbourhood of clients, may take.

pub(crate) mod answered;
pub(crate) mod overload;
mod rate;
#[cfg(feature = "snapshot")]
mod snapshot;

use core::hash::Hasher;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use siphasher::sip::SipHasher13;

use self::rate::{Level, Rate};
use crate::burst::Burst;
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
    new_flows: Option<Rate>,
    datagrams: Option<Rate>,
    bytes: Option<Rate>,
}

impl SourceLimits {
    pub(crate) fn new(limits: &Limits, max_flows: usize, random: &mut Random) -> Self {
        let mut keys = || (random.draw(), random.draw());
        let counts = |limit, network, keys| {
            (limit > 0).then(|| FlowCounts::new(limit, network, max_flows, keys))
        };
        let sources = counts(limits.flows_per_source, Network::Address, keys());
        let subnets = counts(limits.flows_per_subnet, Network::Subnet, keys());
        let mut rate = |limit| (limit > 0).then(|| Rate::new(limit, max_flows, keys()));
        Self {
            sources,
            subnets,
            new_flows: rate(limits.new_flows_per_second_per_source.into()),
            datagrams: rate(limits.datagrams_per_second_per_source.into()),
            bytes: rate(limits.bytes_per_second_per_source),
        }
    }

    /// Whether `client` may have one more flow, and if so counts the attempt against its rate.
    pub(crate) fn admit(&mut self, client: u128, now: Instant) -> Result<(), DropReason> {
        self.admit_another(client)?;
        if self.new_flows.as_mut().is_some_and(|rate| !rate.admit(client, now)) {
            return Err(DropReason::SourceRate);
        }
        Ok(())
    }

    /// Whether what sources send is measured at all.
    #[inline]
    pub(crate) const fn measure_datagrams(&self) -> bool {
        self.datagrams.is_some() || self.bytes.is_some()
    }

    /// How many datagrams of a burst `client` may send, and why no more. They are counted against
    /// its rates; what is beyond them is not, so that a source that is too fast still gets its rate.
    /// Once one is too many, none behind it overtakes it.
    pub(crate) fn admit_datagrams(
        &mut self,
        client: u128,
        burst: &Burst<'_>,
        now: Instant,
    ) -> (u16, DropReason) {
        let level = |rate: &Option<Rate>| rate.as_ref().map(|rate| rate.level(client, now));
        let (datagrams, bytes) = (level(&self.datagrams), level(&self.bytes));
        let most = |rate: &Option<Rate>, level: &Option<Level>, sizes: Sizes| match (rate, level) {
            (Some(rate), Some(level)) => rate.fits(level, sizes),
            _ => burst.count(),
        };
        let by_count = most(&self.datagrams, &datagrams, Sizes::ones(burst.count()));
        let by_bytes = most(&self.bytes, &bytes, Sizes::of(burst));
        let (admitted, reason) = if by_count <= by_bytes {
            (by_count, DropReason::SourceDatagrams)
        } else {
            (by_bytes, DropReason::SourceBytes)
        };
        if let (Some(rate), Some(level)) = (&mut self.datagrams, datagrams) {
            rate.fill(level, Sizes::ones(burst.count()).first(admitted));
        }
        if let (Some(rate), Some(level)) = (&mut self.bytes, bytes) {
            rate.fill(level, Sizes::of(burst).first(admitted));
        }
        (admitted, reason)
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

/// How much each of some things counts: all the same, but perhaps the last.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    count: u16,
    each: u16,
    last: u16,
}

impl Sizes {
    const fn ones(count: u16) -> Self {
        Self { count, each: 1, last: 1 }
    }

    fn of(burst: &Burst<'_>) -> Self {
        // No longer than the others.
        Self { count: burst.count(), each: burst.stride(), last: burst.last_len() as u16 }
    }

    /// The first of them.
    const fn first(self, count: u16) -> Self {
        let last = if count < self.count { self.each } else { self.last };
        Self { count, last, ..self }
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

fn hash(network: u128, keys: (u64, u64)) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(keys.0, keys.1);
    hasher.write_u64((network >> 64) as u64);
    hasher.write_u64(network as u64);
    hasher.finish()
}

#[cfg(test)]
mod tests;
