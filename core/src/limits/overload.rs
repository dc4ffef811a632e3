//! How many flows may open while the listener is behind.

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

/// A budget of new flows for each time that the listener is read.
///
/// To open a flow costs ten times as much as to refuse one or to forward a datagram of one that is
/// known. So where more new clients come than can be served, to try it would fill the listener's
/// buffer, and known clients would lose as much as strangers. While the listener is behind the
/// budget halves, down to a few; when it is not, it grows by a quarter, until it is no limit any
/// more: additive increase and multiplicative decrease, as in TCP, but for the increase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub(crate) struct OpeningBudget {
    /// How many flows may open until the listener is read again; `None`: as many as come.
    budget: Option<u32>,
    /// How many have opened since it was read last.
    opened: u32,
}

/// However far behind the listener is, some newcomers are served.
const MIN_BUDGET: u32 = 4;

/// More than one read of the listener brings is no limit.
const MAX_BUDGET: u32 = 1_024;

impl OpeningBudget {
    pub(crate) const UNLIMITED: Self = Self { budget: None, opened: 0 };

    /// The listener is about to be read.
    pub(crate) fn begin(&mut self, is_behind: bool) {
        let former = self.budget.unwrap_or(MAX_BUDGET);
        self.budget = if is_behind {
            Some((former.min(self.opened) / 2).max(MIN_BUDGET))
        } else {
            self.budget.map(|budget| budget + budget.div_ceil(4)).filter(|&new| new < MAX_BUDGET)
        };
        self.opened = 0;
    }

    /// Whether one more flow may open.
    pub(crate) fn has_room(self) -> bool {
        self.budget.is_none_or(|budget| self.opened < budget)
    }

    /// Counts a flow that opens.
    pub(crate) const fn record_opened(&mut self) {
        self.opened = self.opened.saturating_add(1);
    }

    /// The same, if it can be: what a snapshot says is not believed.
    pub(crate) fn restored(self) -> Self {
        let budget = self.budget.map(|budget| budget.clamp(MIN_BUDGET, MAX_BUDGET));
        Self { budget, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_all(budget: &mut OpeningBudget, wanted: u32) -> u32 {
        let mut opened = 0;
        while opened < wanted && budget.has_room() {
            budget.record_opened();
            opened += 1;
        }
        opened
    }

    #[test]
    fn it_halves_while_the_listener_is_behind_and_grows_back_until_it_is_none() {
        let mut budget = OpeningBudget::UNLIMITED;
        assert_eq!(open_all(&mut budget, 200), 200);
        let halving: std::vec::Vec<u32> = (0..8)
            .map(|_| {
                budget.begin(true);
                open_all(&mut budget, 200)
            })
            .collect();
        assert_eq!(halving, [100, 50, 25, 12, 6, 4, 4, 4]);
        let mut reads = 0;
        while budget != OpeningBudget::UNLIMITED {
            budget.begin(false);
            reads += 1;
        }
        assert!((10..40).contains(&reads), "{reads}");
    }

    #[test]
    fn being_behind_for_another_reason_than_new_flows_leaves_room_for_some() {
        let mut budget = OpeningBudget::UNLIMITED;
        for _ in 0..100 {
            budget.begin(true);
            assert_eq!(open_all(&mut budget, 4), 4);
        }
    }
}
