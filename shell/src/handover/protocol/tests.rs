//! Every order of events, every death.

use std::collections::{HashSet, VecDeque};

use super::*;

/// Two processes and the words under way between them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    old: Option<Old>,
    new: Option<New>,
    to_old: VecDeque<NewWord>,
    to_new: VecDeque<OldWord>,
    /// How many times someone may still die, hang, or say nonsense.
    mishaps: u8,
}

impl World {
    fn start(mishaps: u8) -> Self {
        Self {
            old: Some(Old::begin()),
            new: Some(New::begin()),
            to_old: VecDeque::from([NewWord::Hello]),
            to_new: VecDeque::new(),
            mishaps,
        }
    }

    /// Everything that can happen next.
    fn successors(&self) -> Vec<Self> {
        let mut all = Vec::new();
        if let Some(word) = self.to_old.front() {
            all.extend(self.clone().old_learns(Event::Heard(*word)));
        } else if self.new.is_none() {
            all.extend(self.clone().old_learns(Event::Ended));
        }
        if let Some(word) = self.to_new.front() {
            all.extend(self.clone().new_learns(Event::Heard(*word)));
        } else if self.old.is_none() {
            all.extend(self.clone().new_learns(Event::Ended));
        }
        if let Some(mishaps) = self.mishaps.checked_sub(1) {
            let fewer = Self { mishaps, ..self.clone() };
            all.extend(fewer.clone().old_learns(Event::Lost));
            all.extend(fewer.clone().new_learns(Event::Lost));
            all.extend(self.old.map(|_| Self { old: None, ..fewer.clone() }));
            all.extend(self.new.map(|_| Self { new: None, ..fewer.clone() }));
            // It refuses, or says what is not its turn.
            for word in [NewWord::Refused, NewWord::Serving, NewWord::Staged, NewWord::Hello] {
                let mut liar = fewer.clone();
                // A side that has ended has nothing more to say; one that serves is not refusing.
                if liar.new.is_some_and(|new| !new.serves()) {
                    liar.to_old.push_back(word);
                    liar.new = None;
                    all.push(liar);
                }
            }
        }
        all
    }

    fn old_learns(mut self, event: Event<NewWord>) -> Option<Self> {
        let old = self.old.as_mut()?;
        if matches!(old, Old::Gone | Old::Alone) {
            return None;
        }
        if matches!(event, Event::Heard(_)) {
            self.to_old.pop_front();
        }
        let does = old.on(event);
        match does {
            OldDoes::Leave => self.old = None,
            OldDoes::RollBack => {
                self.new = None;
                self.to_old.clear();
                self.to_new.clear();
            }
            _ => {}
        }
        // Nobody hears what is said to a dead process.
        if self.new.is_some() {
            self.to_new.extend(does.word());
        }
        Some(self)
    }

    fn new_learns(mut self, event: Event<OldWord>) -> Option<Self> {
        let new = self.new.as_mut()?;
        if matches!(new, New::Serving) {
            return None;
        }
        if matches!(event, Event::Heard(_)) {
            self.to_new.pop_front();
        }
        if new.on(event) == NewDoes::GiveUp {
            self.new = None;
            return Some(self);
        }
        self.to_old.extend(new.word());
        Some(self)
    }

    fn served_by(&self) -> usize {
        let old = self.old.is_some_and(|old| old.serves());
        let new = self.new.is_some_and(|new| new.serves());
        usize::from(old) + usize::from(new)
    }

    fn check(&self) {
        assert!(self.served_by() <= 1, "two serve: {self:?}");
        if self.new.is_some_and(|new| new.serves()) {
            let is_left = self.old.is_none_or(|old| !old.owns());
            assert!(is_left, "the new one serves what the old one owns: {self:?}");
        }
    }
}

/// Walks through all that can happen; returns the ends.
fn ends(mishaps: u8) -> Vec<World> {
    let (mut seen, mut open) = (HashSet::new(), vec![World::start(mishaps)]);
    let mut ends = Vec::new();
    while let Some(world) = open.pop() {
        if !seen.insert(world.clone()) {
            continue;
        }
        world.check();
        let next = world.successors();
        let is_end = next.iter().all(|next| next.mishaps < world.mishaps);
        if is_end {
            ends.push(world);
        }
        open.extend(next);
    }
    assert!(seen.len() > 5, "nothing happens");
    ends
}

#[test]
fn without_mishaps_the_new_process_ends_up_serving_and_the_old_one_has_left() {
    let ends = ends(0);
    assert_eq!(ends.len(), 1);
    assert_eq!((ends[0].old, ends[0].new), (None, Some(New::Serving)));
}

#[test]
fn whoever_dies_hangs_or_lies_at_whatever_moment_one_process_serves_in_the_end() {
    for mishaps in 1..=3 {
        for end in ends(mishaps) {
            if end.old.is_some() || end.new.is_some() {
                assert_eq!(end.served_by(), 1, "{end:?}");
            }
        }
    }
}

#[test]
fn one_death_leaves_the_other_process_in_charge() {
    let ends = ends(1);
    let by = |old: Option<Old>, new: Option<New>| {
        ends.iter().filter(|end| (end.old, end.new) == (old, new)).count()
    };
    assert!(by(Some(Old::Alone), None) > 0);
    assert!(by(None, Some(New::Serving)) > 0);
    // Only who dies after the other has left takes the service along.
    for end in ends.iter().filter(|end| (end.old, end.new) == (None, None)) {
        assert_eq!(end.mishaps, 0, "{end:?}");
    }
}
