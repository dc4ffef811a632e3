//! Choosing a backend for a new flow.
//!
//! Every algorithm keeps the same promises:
//!
//! - Only a backend that [can take a flow](crate::backend::Backend::can_take_a_flow) is picked,
//!   as that stands at the moment of the pick. While one cannot, its share goes to the others in
//!   proportion to their weights; once it can again it gets its share, and nothing to make up.
//! - A backup is picked only while no other backend can take a flow.
//! - A backend of weight 0 is never picked, nor is one that [gets only
//!   copies](crate::config::BackendConfig::answers).
//! - `None` means that there is no backend that can take a flow.
//! - The same backends, seed and calls give the same picks.

mod fingerprint;
mod least_flows;
mod maglev;
mod power_of_two;
mod random;
mod rendezvous;
mod round_robin;
#[cfg(feature = "snapshot")]
mod snapshot;
mod turn;

pub use fingerprint::fingerprint;

use alloc::vec::Vec;
use core::net::SocketAddr;

use crate::affinity::host;
use crate::backend::Backends;
use crate::config::{Affinity, Balance};
use crate::hash::{BackendHash, ClientHash};
use crate::id::BackendId;
use crate::random::Random;

use least_flows::LeastFlows;
use maglev::Maglev;
use power_of_two::PowerOfTwo;
use random::WeightedRandom;
use rendezvous::Rendezvous;
use round_robin::RoundRobin;

/// Picks backends for new flows, by one of the algorithms of [`Balance`].
///
/// It is made for one set of backends: when a backend comes, goes, or has its weight changed, a
/// new balancer is needed. Flow counts and limits may change at any time; they are looked at afresh
/// for every pick.
#[derive(Clone, Debug)]
pub struct Balancer {
    primaries: Algorithm,
    backups: Algorithm,
}

impl Balancer {
    /// A balancer over `backends`.
    ///
    /// Takes microseconds, for 10,000 backends a quarter of a millisecond; but [`Balance::Maglev`]
    /// builds a table of 2 MiB in 5 to 30 ms.
    pub fn new(balance: Balance, backends: &Backends) -> Self {
        Self::by_affinity(balance, Affinity::SourceIp, backends)
    }

    /// The same for a cluster whose affinity is known, which may leave out the backends' ports.
    pub fn by_affinity(balance: Balance, affinity: Affinity, backends: &Backends) -> Self {
        let of = |backup| Algorithm::new(balance, &members(backends, backup, affinity));
        Self { primaries: of(false), backups: of(true) }
    }

    /// The backend for one more flow of `client`; `None` when no backend can take one.
    ///
    /// `backends` are those that the balancer was made for. `random` is drawn on by the algorithms
    /// that leave something to chance, and only by them.
    pub fn pick(
        &mut self,
        backends: &Backends,
        client: SocketAddr,
        affinity: Affinity,
        random: &mut Random,
    ) -> Option<BackendId> {
        self.pick_by(backends, &|| ClientHash::new(client, affinity), random)
    }

    /// The same for one more flow whose hash is known, if it is asked for.
    pub fn pick_by(
        &mut self,
        backends: &Backends,
        hash: &impl Fn() -> ClientHash,
        random: &mut Random,
    ) -> Option<BackendId> {
        let mut pick_from = |tier: &mut Algorithm| tier.pick(backends, hash, random);
        pick_from(&mut self.primaries).or_else(|| pick_from(&mut self.backups))
    }

    /// The same of primaries alone.
    pub(crate) fn pick_primary(
        &mut self,
        backends: &Backends,
        hash: &impl Fn() -> ClientHash,
        random: &mut Random,
    ) -> Option<BackendId> {
        self.primaries.pick(backends, hash, random)
    }

    /// Goes on with the turns of `former`, which was there before a change: the backend that was
    /// next is next, and new ones come after those. Those in `replaced` are others than before.
    pub(crate) fn go_on_from(&mut self, former: &Self, replaced: &[BackendId]) {
        for (tier, former) in
            [(&mut self.primaries, &former.primaries), (&mut self.backups, &former.backups)]
        {
            if let (Algorithm::RoundRobin(turns), Algorithm::RoundRobin(former)) = (tier, former) {
                turns.go_on_from(former, replaced);
            }
        }
    }

    /// Begins a number of turns later, so that several balancers over the same backends do not all
    /// begin with the same one.
    pub(crate) fn skip_turns(&mut self, count: usize, backends: &Backends) {
        for tier in [&mut self.primaries, &mut self.backups] {
            if let Algorithm::RoundRobin(turns) = tier {
                turns.skip(count, backends);
            }
        }
    }

    /// The same where nothing but the hash decides; otherwise none.
    pub(crate) fn pick_hashed(&self, backends: &Backends, hash: ClientHash) -> Option<BackendId> {
        let pick_from = |tier: &Algorithm| match tier {
            Algorithm::Rendezvous(bids) => bids.pick(backends, hash),
            Algorithm::Maglev(table) => table.pick(backends, hash),
            _ => None,
        };
        pick_from(&self.primaries).or_else(|| pick_from(&self.backups))
    }
}

/// An algorithm and what it remembers of one tier: all the primaries, or all the backups.
#[derive(Clone, Debug)]
enum Algorithm {
    RoundRobin(RoundRobin),
    Random(WeightedRandom),
    LeastFlows(LeastFlows),
    PowerOfTwo(PowerOfTwo),
    Rendezvous(Rendezvous),
    Maglev(Maglev),
}

impl Algorithm {
    fn new(balance: Balance, members: &[Member]) -> Self {
        match balance {
            Balance::RoundRobin => Self::RoundRobin(RoundRobin::new(members)),
            Balance::Random => Self::Random(WeightedRandom::new(members)),
            Balance::LeastFlows => Self::LeastFlows(LeastFlows::new(members)),
            Balance::PowerOfTwo => Self::PowerOfTwo(PowerOfTwo::new(members)),
            Balance::Rendezvous => Self::Rendezvous(Rendezvous::new(members)),
            Balance::Maglev => Self::Maglev(Maglev::new(members)),
        }
    }

    fn pick(
        &mut self,
        backends: &Backends,
        hash: &impl Fn() -> ClientHash,
        random: &mut Random,
    ) -> Option<BackendId> {
        match self {
            Self::RoundRobin(turns) => turns.pick(backends),
            Self::Random(draw) => draw.pick(backends, random),
            Self::LeastFlows(members) => members.pick(backends, random),
            Self::PowerOfTwo(draw) => draw.pick(backends, random),
            Self::Rendezvous(bids) => bids.pick(backends, hash()),
            Self::Maglev(table) => table.pick(backends, hash()),
        }
    }
}

/// A backend as an algorithm knows it: what does not change while the set of backends does not.
#[derive(Clone, Copy, Debug)]
struct Member {
    id: BackendId,
    /// Its share relative to the other members: at least 1.
    weight: u32,
    hash: BackendHash,
}

/// The backends of one tier that can ever be picked, in configured order.
fn members(backends: &Backends, backup: bool, affinity: Affinity) -> Vec<Member> {
    let hashed = |backend: SocketAddr| match affinity {
        Affinity::Host => host::of(backend),
        _ => backend,
    };
    backends
        .iter()
        .filter(|(_, backend)| backend.is_backup() == backup && backend.weight() > 0)
        .filter(|(_, backend)| !backend.is_removed() && backend.answers())
        .map(|(id, backend)| Member {
            id,
            weight: backend.weight(),
            hash: BackendHash::new(hashed(backend.address())),
        })
        .collect()
}

#[cfg(test)]
mod tests;
