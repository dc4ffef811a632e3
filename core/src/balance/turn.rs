//! Stride scheduling (Waldspurger and Weihl, 1995): how weights become an order of turns.

/// The next turn of one member, on a clock that all members share: a member of weight `w` has a
/// turn every `1/w`. Turns taken in order of time are shared out by weight, and evenly mixed.
///
/// Turns at the same time are taken in order of rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    // The order of the fields is the order of the turns.
    /// In units of 2^-64. Wide enough for 2^64 turns of the lightest member.
    at: u128,
    rank: u32,
    stride: u64,
}

impl Turn {
    /// The first turn of a member of `weight`, one stride from the start of the clock.
    pub(super) fn first(rank: usize, weight: u32) -> Self {
        let stride = u64::MAX / u64::from(weight.max(1));
        Self { at: stride.into(), rank: rank as u32, stride }
    }

    /// The first turn of a member among `count`, staggered by rank.
    ///
    /// Members of equal weight begin in order of rank; light members are spread over the turns of
    /// a heavy one rather than coming all at once.
    pub(super) fn first_staggered(rank: usize, count: usize, weight: u32) -> Self {
        let mut turn = Self::first(rank, weight);
        turn.at = turn.at * (2 * rank as u128 + 1) / (2 * count as u128);
        turn
    }

    /// The index of the member among all members.
    pub(super) const fn member(&self) -> usize {
        self.rank as usize
    }

    /// When it is, in whole units of the clock and 2^-64 parts of one.
    pub(super) const fn time(&self) -> (u64, u64) {
        ((self.at >> 64) as u64, self.at as u64)
    }

    /// The member's turn at another time; `None` beyond the end of the clock, which leaves room for
    /// 2^63 more turns of the lightest member.
    pub(super) const fn at_time(self, (whole, parts): (u64, u64)) -> Option<Self> {
        let at = (whole as u128) << 64 | parts as u128;
        if whole < 1 << 63 { Some(Self { at, ..self }) } else { None }
    }

    /// The member's turn just before one stride from the start of the clock is over: after the turns
    /// of those of its weight that go on from there, and before they come again.
    pub(super) const fn within_a_stride_from_the_start(self) -> Self {
        Self { at: self.stride as u128 - 1, ..self }
    }

    /// The member's turn on a clock that starts now, where it was `former` on another clock, on which
    /// `next` is the next of all: as many of its strides from now as it was there, one at most.
    pub(super) fn in_place_of(self, former: &Self, next: &Self) -> Self {
        let wait = former.at.saturating_sub(next.at).min(former.stride.into());
        let at = wait * u128::from(self.stride) / u128::from(former.stride.max(1));
        Self { at, ..self }
    }

    /// The member's next turn after this one.
    pub(super) const fn next(self) -> Self {
        Self { at: self.at + self.stride as u128, ..self }
    }

    /// The member's first turn that is later than `other`'s time; this one if it is.
    ///
    /// The turns in between are lost, and the rhythm is kept.
    pub(super) const fn later_than(self, other: &Self) -> Self {
        if self.at > other.at {
            return self;
        }
        let missed = (other.at - self.at) / self.stride as u128 + 1;
        Self { at: self.at + missed * self.stride as u128, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRIDE: u128 = (u64::MAX / 4) as u128;

    /// The `n`th turn of a member of weight 4.
    fn turn(n: u128) -> Turn {
        Turn { at: n * STRIDE, ..Turn::first(0, 4) }
    }

    #[test]
    fn a_turn_that_is_later_already_stays() {
        assert_eq!(turn(5).later_than(&turn(4)), turn(5));
    }

    #[test]
    fn a_turn_at_the_same_time_is_not_later() {
        assert_eq!(turn(5).later_than(&turn(5)), turn(6));
    }

    #[test]
    fn as_many_turns_are_lost_as_have_passed_and_the_rhythm_is_kept() {
        assert_eq!(turn(1).later_than(&turn(7)), turn(8));
        let between = Turn { at: 7 * STRIDE + 1, ..turn(0) };
        assert_eq!(turn(1).later_than(&between), turn(8));
        let just_before = Turn { at: 7 * STRIDE - 1, ..turn(0) };
        assert_eq!(turn(1).later_than(&just_before), turn(7));
    }
}
