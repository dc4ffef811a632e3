//! Highest random weight (Thaler and Ravishankar, 1998): a client keeps its backend as long as
//! that can serve, and whatever happens to the others.
//!
//! Each backend draws a number for each client, a hash of the two, and the highest one wins.
//! Since no draw depends on another backend, taking a backend away moves its own clients and no
//! others, spreads them over all that remain, and bringing it back brings back exactly them.
//!
//! With weights, the draw `u`, evenly spread between 0 and 1, becomes a waiting time `-ln(u) / w`,
//! and the shortest one wins: of exponential clocks that run at rates `w`, each rings first with
//! probability `w / Σw` (Schindelhauer and Schomaker, 2005). With equal weights that is the highest
//! draw again, and no logarithm is needed.

use alloc::vec::Vec;

use super::Member;
use crate::backend::Backends;
use crate::hash::ClientHash;
use crate::id::BackendId;
use crate::random::mix;

/// Looks at every backend for each new flow: 1 ns each with equal weights, 1 to 4 ns otherwise.
///
/// Where a client lands is frozen, as [`hash`](crate::hash) is.
#[derive(Clone, Debug)]
pub(super) struct Rendezvous {
    members: Vec<Member>,
    weights_differ: bool,
}

impl Rendezvous {
    pub(super) fn new(members: &[Member]) -> Self {
        let weights_differ = members.windows(2).any(|pair| pair[0].weight != pair[1].weight);
        Self { members: members.to_vec(), weights_differ }
    }

    pub(super) fn pick(&self, backends: &Backends, client: ClientHash) -> Option<BackendId> {
        if self.weights_differ {
            self.shortest_wait(backends, client)
        } else {
            self.highest_draw(backends, client)
        }
    }

    fn highest_draw(&self, backends: &Backends, client: ClientHash) -> Option<BackendId> {
        let mut best: Option<(u64, BackendId)> = None;
        for member in &self.members {
            let draw = member.draw(client);
            let is_better = best.is_none_or(|(highest, _)| draw > highest);
            if is_better && backends.can_take_a_flow(member.id) {
                best = Some((draw, member.id));
            }
        }
        best.map(|(_, id)| id)
    }

    fn shortest_wait(&self, backends: &Backends, client: ClientHash) -> Option<BackendId> {
        let mut best: Option<(Bid, BackendId)> = None;
        for member in &self.members {
            let draw = member.draw(client);
            let weight = f64::from(member.weight);
            if best.is_some_and(|(best, _)| best.clearly_beats(draw, weight)) {
                continue;
            }
            let bid = Bid::new(draw, weight);
            let is_better = best.is_none_or(|(best, _)| bid.beats(&best));
            if is_better && backends.can_take_a_flow(member.id) {
                best = Some((bid, member.id));
            }
        }
        best.map(|(_, id)| id)
    }
}

impl Member {
    /// Its draw for a client. Members of different hashes never draw the same for one client.
    const fn draw(&self, client: ClientHash) -> u64 {
        mix(client.as_u64() ^ self.hash.as_u64())
    }
}

/// What a member offers for a client.
#[derive(Clone, Copy, Debug)]
struct Bid {
    wait: f64,
    draw: u64,
}

impl Bid {
    fn new(draw: u64, weight: f64) -> Self {
        // libm's logarithm is the same arithmetic on every machine, and errs by less than the
        // waits of neighbouring draws differ: equal weights are ordered exactly as their draws.
        let wait = -libm::log(unit(draw)) / weight;
        Self { wait, draw }
    }

    fn beats(&self, other: &Self) -> bool {
        self.wait < other.wait || (self.wait == other.wait && self.draw > other.draw)
    }

    /// Whether this bid beats one from `draw` and `weight`, where that is plain without a
    /// logarithm: `-ln(u)` is never below `1 - u`. The margin is far above any rounding.
    fn clearly_beats(&self, draw: u64, weight: f64) -> bool {
        const MARGIN: f64 = 1.000_000_1;
        1.0 - unit(draw) > self.wait * weight * MARGIN
    }
}

/// Spreads draws over the numbers between 0 and 1, neither of them included.
fn unit(draw: u64) -> f64 {
    const SCALE: f64 = 1.0 / (1_u64 << 52) as f64;
    // 52 bits and a half fill the 53 bits of a mantissa: nothing is rounded.
    ((draw >> 12) as f64 + 0.5) * SCALE
}

#[cfg(test)]
mod tests;
