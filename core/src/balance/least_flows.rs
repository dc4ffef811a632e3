//! The one with the fewest flows for its weight.

use alloc::vec::Vec;
use core::cmp::Ordering;

use super::Member;
use crate::backend::Backends;
use crate::id::BackendId;
use crate::random::Random;

/// Looks at every backend for each new flow: flow counts change with every flow that opens or
/// closes, and a scan of figures side by side costs less than keeping them sorted.
///
/// Among backends loaded alike the weights decide by lot. That matters most where flows are so
/// short that all backends are mostly idle.
#[derive(Clone, Debug)]
pub(super) struct LeastFlows {
    ids: Vec<BackendId>,
}

impl LeastFlows {
    pub(super) fn new(members: &[Member]) -> Self {
        Self { ids: members.iter().map(|member| member.id).collect() }
    }

    pub(super) fn pick(&self, backends: &Backends, random: &mut Random) -> Option<BackendId> {
        let mut best = None;
        let mut weight_of_best = 0;
        for &id in &self.ids {
            let Some(backend) = backends.get(id).filter(|b| b.can_take_a_flow()) else {
                continue;
            };
            let weight = u64::from(backend.weight());
            match best.map_or(Ordering::Less, |(_, best)| backend.cmp_load(best)) {
                Ordering::Less => {
                    best = Some((id, backend));
                    weight_of_best = weight;
                }
                // Reservoir sampling: each of those alike ends up chosen in proportion to its
                // weight, without a list of them.
                Ordering::Equal => {
                    weight_of_best += weight;
                    if random.below(weight_of_best) < weight {
                        best = Some((id, backend));
                    }
                }
                Ordering::Greater => {}
            }
        }
        best.map(|(id, _)| id)
    }
}

#[cfg(test)]
mod tests;
