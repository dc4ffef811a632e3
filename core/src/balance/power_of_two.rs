//! The less loaded of two taken at random (Mitzenmacher, 2001).

use core::cmp::Ordering;

use super::Member;
use super::random::WeightedRandom;
use crate::backend::Backends;
use crate::id::BackendId;
use crate::random::Random;

/// Nearly as even as looking at all backends, for the price of looking at two.
///
/// Both are drawn by weight, and they differ where two can take a flow. Where both are loaded
/// alike the first one drawn is taken, so that chance alone still shares by weight.
#[derive(Clone, Debug)]
pub(super) struct PowerOfTwo {
    lottery: WeightedRandom,
}

impl PowerOfTwo {
    pub(super) fn new(members: &[Member]) -> Self {
        Self { lottery: WeightedRandom::new(members) }
    }

    pub(super) fn pick(&self, backends: &Backends, random: &mut Random) -> Option<BackendId> {
        let first_place = self.lottery.draw(backends, random, None)?;
        let first = self.lottery.id(first_place);
        let Some(second_place) = self.lottery.draw(backends, random, Some(first_place)) else {
            return Some(first);
        };
        let second = self.lottery.id(second_place);
        match backends.get(second)?.cmp_load(backends.get(first)?) {
            Ordering::Less => Some(second),
            Ordering::Equal | Ordering::Greater => Some(first),
        }
    }
}

#[cfg(test)]
mod tests;
