//! At random, in proportion to the weights.

use alloc::vec::Vec;
use core::ops::Range;

use super::Member;
use crate::backend::Backends;
use crate::id::BackendId;
use crate::random::Random;

/// How many draws may hit a backend that can take no flow before the able ones are counted.
const ATTEMPTS: usize = 16;

/// A lottery in which a member of weight `w` has `w` tickets.
///
/// A draw costs O(log n) while most tickets belong to backends that can take a flow, and O(n)
/// where hardly any do. Its odds are exact in both cases.
#[derive(Clone, Debug)]
pub(super) struct WeightedRandom {
    holders: Vec<Holder>,
}

#[derive(Clone, Copy, Debug)]
struct Holder {
    id: BackendId,
    weight: u32,
    /// The number after its last ticket, which is that of the next holder's first one.
    end: u64,
}

impl Holder {
    const fn tickets(&self) -> Range<u64> {
        self.end - self.weight as u64..self.end
    }
}

impl WeightedRandom {
    pub(super) fn new(members: &[Member]) -> Self {
        let mut end = 0;
        let issue = |member: &Member| {
            end += u64::from(member.weight);
            Holder { id: member.id, weight: member.weight, end }
        };
        Self { holders: members.iter().map(issue).collect() }
    }

    pub(super) fn pick(&self, backends: &Backends, random: &mut Random) -> Option<BackendId> {
        self.draw(backends, random, None).map(|index| self.id(index))
    }

    /// The index of a backend that can take a flow and is not at the index `except`.
    pub(super) fn draw(
        &self,
        backends: &Backends,
        random: &mut Random,
        except: Option<usize>,
    ) -> Option<usize> {
        let excluded = except.map_or(0..0, |index| self.holders[index].tickets());
        let excluded_len = excluded.end - excluded.start;
        let issued = self.holders.last()?.end;
        for _ in 0..ATTEMPTS {
            let mut ticket = random.below(issued - excluded_len);
            if ticket >= excluded.start {
                ticket += excluded_len;
            }
            let index = self.holders.partition_point(|holder| holder.end <= ticket);
            // There is no such holder where the excluded one has all tickets.
            let holder = self.holders.get(index)?;
            if backends.can_take_a_flow(holder.id) {
                return Some(index);
            }
        }
        self.draw_among_the_able(backends, random, except)
    }

    /// The id of the backend at a index that a draw returned.
    pub(super) fn id(&self, index: usize) -> BackendId {
        self.holders[index].id
    }

    fn draw_among_the_able(
        &self,
        backends: &Backends,
        random: &mut Random,
        except: Option<usize>,
    ) -> Option<usize> {
        let able = || {
            let is_able = |index, id| Some(index) != except && backends.can_take_a_flow(id);
            let holders = self.holders.iter().enumerate();
            holders.filter(move |&(index, holder)| is_able(index, holder.id))
        };
        let issued = able().map(|(_, holder)| u64::from(holder.weight)).sum();
        let ticket = random.below(issued);
        let mut end = 0;
        able()
            .find(|(_, holder)| {
                end += u64::from(holder.weight);
                ticket < end
            })
            .map(|(index, _)| index)
    }
}

#[cfg(test)]
mod tests;
