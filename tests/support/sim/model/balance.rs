//! Which backends may be given a flow: each algorithm by its definition.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::SocketAddr;

use flowgate_core::config::{self, Affinity, BackendConfig, ClusterConfig};
use flowgate_core::counters::Traffic;
use flowgate_core::hash::{BackendHash, ClientHash};

use super::health::Health;
use super::{Violation, require};
use crate::sim::choice::mix;

/// A backend and what it has.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) config: BackendConfig,
    pub(super) flows: u32,
    pub(super) to: Traffic,
    pub(super) from: Traffic,
    pub(super) health: Health,
}

impl Load {
    pub(super) fn none(config: BackendConfig) -> Self {
        let (to, from) = (Traffic::default(), Traffic::default());
        Self { config, flows: 0, to, from, health: Health::default() }
    }

    pub(super) fn is_full(&self) -> bool {
        self.config.max_flows > 0 && self.flows >= self.config.max_flows
    }

    fn has_fewer_for_its_weight(&self, other: &Self) -> bool {
        let cross = |a: &Self, b: &Self| u64::from(a.flows) * u64::from(b.config.weight);
        cross(self, other) < cross(other, self)
    }
}

/// What the algorithms remember.
#[derive(Clone, Debug)]
pub(super) struct Balance {
    algorithm: config::Balance,
    pub(super) affinity: Affinity,
    /// For round-robin: when each backend's next turn is.
    turns: Vec<u128>,
    /// For Maglev: which backend each client was given, and among which.
    given: BTreeMap<ClientHash, Vec<(Vec<usize>, usize)>>,
}

impl Balance {
    pub(super) fn new(cluster: &ClusterConfig) -> Self {
        Self {
            algorithm: cluster.balance,
            affinity: cluster.affinity,
            turns: first_turns(&cluster.backends),
            given: BTreeMap::new(),
        }
    }

    /// The same for another configuration. Turns go on: who was next is next, and who is new comes
    /// just before a stride is over.
    pub(super) fn followed_by(&self, new: &ClusterConfig, loads: &[Load]) -> Self {
        let mut next = Self::new(new);
        let are_turns = |algorithm| algorithm == config::Balance::RoundRobin;
        if !are_turns(self.algorithm) || !are_turns(next.algorithm) {
            return next;
        }
        for backup in [false, true] {
            let is_in_tier =
                |backend: &BackendConfig| is_member(backend) && backend.backup == backup;
            let former = |index: usize| loads.get(index).map(|load| &load.config);
            let is_known = |index: usize| {
                let is_same = |former: &&BackendConfig| {
                    is_in_tier(former) && former.address == new.backends[index].address
                };
                former(index).filter(is_same).is_some()
            };
            let tier: Vec<usize> =
                (0..new.backends.len()).filter(|&p| is_in_tier(&new.backends[p])).collect();
            let known = tier.iter().copied().filter(|&index| is_known(index));
            let Some(start) = known.map(|index| self.turns[index]).min() else { continue };
            for index in tier {
                let new_stride = stride(&new.backends[index]);
                next.turns[index] = match former(index).filter(|_| is_known(index)) {
                    Some(former) => {
                        let former_stride = stride(former);
                        let wait = (self.turns[index] - start).min(former_stride);
                        wait * new_stride / former_stride
                    }
                    None => new_stride - 1,
                };
            }
        }
        next
    }

    /// Whether a client's flow may go to the backend `chosen`, where those are able to take one.
    pub(super) fn check(
        &mut self,
        client: SocketAddr,
        chosen: usize,
        loads: &[Load],
        able: &[bool],
    ) -> Result<(), Violation> {
        let candidates = candidates(loads, able);
        require!(
            candidates.contains(&chosen),
            "backend {chosen} cannot take a flow; {candidates:?} can"
        );
        let client = ClientHash::new(client, self.affinity);
        let is_right = match self.algorithm {
            config::Balance::Random => true,
            config::Balance::LeastFlows => {
                !candidates.iter().any(|&c| loads[c].has_fewer_for_its_weight(&loads[chosen]))
            }
            // It was less loaded than another, or as loaded as another, or there was no other.
            config::Balance::PowerOfTwo => {
                let is_beaten =
                    |&c: &usize| c != chosen && !loads[c].has_fewer_for_its_weight(&loads[chosen]);
                candidates.len() == 1 || candidates.iter().any(is_beaten)
            }
            config::Balance::RoundRobin => self.next_in_turn(&candidates, loads) == chosen,
            config::Balance::Rendezvous => shortest_wait(client, &candidates, loads) == chosen,
            config::Balance::Maglev => self.keeps(client, chosen, candidates.clone()),
        };
        require!(
            is_right,
            "backend {chosen} of {candidates:?} is not what {:?} chooses",
            self.algorithm
        );
        Ok(())
    }

    /// The soonest turn is taken. Turns before it, of backends that could not take a flow, are lost.
    fn next_in_turn(&mut self, candidates: &[usize], loads: &[Load]) -> usize {
        let chosen = *candidates.iter().min_by_key(|&&c| (self.turns[c], c)).unwrap_or(&0);
        let (time, is_backup) = (self.turns[chosen], loads[chosen].config.backup);
        for (index, load) in loads.iter().enumerate() {
            let is_passed_over = is_member(&load.config)
                && load.config.backup == is_backup
                && (self.turns[index], index) < (time, chosen);
            if is_passed_over {
                let stride = stride(&load.config);
                self.turns[index] += stride * ((time - self.turns[index]) / stride + 1);
            }
        }
        self.turns[chosen] += stride(&loads[chosen].config);
        chosen
    }

    /// Nobody moves whose own backend can serve: who was given a backend among some is given the
    /// same among fewer of them, while it is one of those.
    fn keeps(&mut self, client: ClientHash, chosen: usize, candidates: Vec<usize>) -> bool {
        let given = self.given.entry(client).or_default();
        let has_moved = given.iter().any(|(among, backend)| {
            let are_fewer = candidates.iter().all(|c| among.contains(c));
            are_fewer && candidates.contains(backend) && *backend != chosen
        });
        if !given.iter().any(|(among, _)| *among == candidates) {
            given.push((candidates, chosen));
        }
        !has_moved
    }
}

/// The primaries that can take a flow, or, where none can, the backups that can.
fn candidates(loads: &[Load], able: &[bool]) -> Vec<usize> {
    let able_in_tier = |backup: bool| {
        let is_able = |&index: &usize| loads[index].config.backup == backup && able[index];
        (0..loads.len()).filter(is_able).collect::<Vec<_>>()
    };
    let primaries = able_in_tier(false);
    if primaries.is_empty() { able_in_tier(true) } else { primaries }
}

/// Whether a backend has a share at all, be it able to serve or not.
fn is_member(backend: &BackendConfig) -> bool {
    !backend.removed && backend.weight > 0
}

/// A backend of weight `w` has a turn every `1/w`. The first turns of `n` backends are staggered:
/// that of backend `k` comes after `(k + ½) / n` of its stride.
fn first_turns(backends: &[BackendConfig]) -> Vec<u128> {
    let mut turns = vec![0; backends.len()];
    for backup in [false, true] {
        let in_tier =
            |index: &usize| backends[*index].backup == backup && is_member(&backends[*index]);
        let tier: Vec<usize> = (0..backends.len()).filter(in_tier).collect();
        for (rank, &index) in tier.iter().enumerate() {
            let halves = 2 * rank as u128 + 1;
            turns[index] = stride(&backends[index]) * halves / (2 * tier.len() as u128);
        }
    }
    turns
}

fn stride(backend: &BackendConfig) -> u128 {
    u128::from(u64::MAX / u64::from(backend.weight.max(1)))
}

/// Each backend draws a number for the client; the draw, evenly spread between 0 and 1, becomes a
/// waiting time `-ln(u) / weight`; the shortest one wins.
fn shortest_wait(client: ClientHash, candidates: &[usize], loads: &[Load]) -> usize {
    let bid = |index: usize| {
        let backend = loads[index].config;
        let draw = mix(client.as_u64() ^ BackendHash::new(backend.address).as_u64());
        let evenly_spread = ((draw >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
        (-evenly_spread.ln() / f64::from(backend.weight), Reverse(draw))
    };
    let is_first = |&a: &usize, &b: &usize| {
        let ((wait_a, draw_a), (wait_b, draw_b)) = (bid(a), bid(b));
        wait_a.total_cmp(&wait_b).then(draw_a.cmp(&draw_b))
    };
    candidates.iter().copied().min_by(is_first).unwrap_or(0)
}
