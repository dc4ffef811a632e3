//! Whether to announce, when what is found goes back and forth.

/// Whether this instance is announced: it takes several looks in a row that say otherwise to change
/// that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hysteresis {
    /// None: nothing has been decided yet.
    announced: Option<bool>,
    /// How many looks in a row have found the same, which is not what is decided.
    looks: u32,
    last: bool,
}

impl Hysteresis {
    /// Takes in whether this instance is fit to be announced. Returns what is decided by it, if that
    /// is new.
    ///
    /// `rise` looks in a row that find it fit announce it, `fall` that find it unfit withdraw it.
    pub(crate) fn look(&mut self, is_fit: bool, rise: u32, fall: u32) -> Option<bool> {
        if self.announced == Some(is_fit) {
            self.looks = 0;
            return None;
        }
        self.looks = if self.last == is_fit { self.looks.saturating_add(1) } else { 1 };
        self.last = is_fit;
        if self.looks < if is_fit { rise } else { fall } {
            return None;
        }
        (self.announced, self.looks) = (Some(is_fit), 0);
        self.announced
    }

    /// What is decided, if anything is.
    pub(crate) const fn announced(&self) -> Option<bool> {
        self.announced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is decided at each of some looks: `+` finds it fit, `-` unfit.
    fn decisions(looks: &str, rise: u32, fall: u32) -> String {
        let mut hysteresis = Hysteresis::default();
        let decide = |look| match hysteresis.look(look == '+', rise, fall) {
            Some(true) => 'A',
            Some(false) => 'W',
            None => '.',
        };
        looks.chars().map(decide).collect()
    }

    #[test]
    fn it_takes_so_many_looks_in_a_row_to_rise_and_to_fall() {
        for (looks, rise, fall, expected) in [
            ("+++++", 1, 1, "A...."),
            ("+++++", 3, 1, "..A.."),
            ("++-++-+++", 3, 4, "........A"),
            ("+---+---", 1, 3, "A..WA..W"),
            ("+--+--+---", 1, 3, "A........W"),
            ("-----", 1, 3, "..W.."),
            ("+-+-+-", 2, 2, "......"),
        ] {
            assert_eq!(decisions(looks, rise, fall), expected, "{looks} {rise} {fall}");
        }
    }

    #[test]
    fn nothing_is_decided_before_the_first_looks() {
        let mut hysteresis = Hysteresis::default();
        assert_eq!(hysteresis.announced(), None);
        assert_eq!(hysteresis.look(true, 2, 2), None);
        assert_eq!(hysteresis.announced(), None);
        assert_eq!(hysteresis.look(true, 2, 2), Some(true));
        assert_eq!(hysteresis.announced(), Some(true));
    }
}
