//! Which clients have been answered, as far as a table of fixed size remembers.

use alloc::vec;
use alloc::vec::Vec;

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

use super::hash;
use crate::random::Random;

/// How many clients of one hash are remembered.
const WAYS: usize = 4;

/// How many clients are remembered.
const CAPACITY: usize = 4_096;

/// The clients that were answered last. Of each there is a fingerprint: who is taken for another is
/// rare, and does no harm: this only says whose silence is a sign against a backend, and who has another
/// flow where slots are scarce.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(from = "Few", into = "Few"))]
pub(crate) struct AnsweredClients {
    keys: (u64, u64),
    /// Sets of [`WAYS`], in each the latest first; 0 is nobody.
    fingerprints: Vec<u32>,
}

/// The same in a snapshot: those that there are, by their places. A listener with a thousand ports has
/// a thousand tables, most of them all but empty.
#[cfg(feature = "serde")]
#[derive(Serialize, Deserialize)]
struct Few {
    keys: (u64, u64),
    fingerprints: Vec<(u16, u32)>,
}

#[cfg(feature = "serde")]
impl From<AnsweredClients> for Few {
    fn from(AnsweredClients { keys, fingerprints }: AnsweredClients) -> Self {
        let all = (0..).zip(fingerprints);
        Self { keys, fingerprints: all.filter(|(_, fingerprint)| *fingerprint != 0).collect() }
    }
}

#[cfg(feature = "serde")]
impl From<Few> for AnsweredClients {
    fn from(Few { keys, fingerprints: few }: Few) -> Self {
        let mut fingerprints = vec![0; CAPACITY];
        for (place, fingerprint) in few {
            match fingerprints.get_mut(usize::from(place)) {
                Some(at) => *at = fingerprint,
                // Not sound: see below.
                None => return Self { keys, fingerprints: Vec::new() },
            }
        }
        Self { keys, fingerprints }
    }
}

impl AnsweredClients {
    pub(crate) fn new(random: &mut Random) -> Self {
        Self { keys: (random.draw(), random.draw()), fingerprints: vec![0; CAPACITY] }
    }

    /// Whether it is one that works: what a snapshot says is not believed.
    pub(crate) const fn is_sound(&self) -> bool {
        self.fingerprints.len() == CAPACITY
    }

    /// Remembers a client.
    pub(crate) fn insert(&mut self, client: u128) {
        let (set, fingerprint) = self.index_of(client);
        let set = &mut self.fingerprints[set * WAYS..][..WAYS];
        let last = set.iter().position(|&other| other == fingerprint).unwrap_or(WAYS - 1);
        set[..=last].rotate_right(1);
        set[0] = fingerprint;
    }

    /// Whether a client is remembered.
    pub(crate) fn contains(&self, client: u128) -> bool {
        let (set, fingerprint) = self.index_of(client);
        self.fingerprints[set * WAYS..][..WAYS].contains(&fingerprint)
    }

    fn index_of(&self, client: u128) -> (usize, u32) {
        let hash = hash(client, self.keys);
        ((hash % (CAPACITY / WAYS) as u64) as usize, (hash >> 32) as u32 | 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_remembered_and_strangers_are_not() {
        let mut clients = AnsweredClients::new(&mut Random::new(1));
        (0..100_000u128).for_each(|client| clients.insert(client));
        let known = (99_000..100_000u128).filter(|&client| clients.contains(client)).count();
        assert!(known > 950, "{known} of the last 1000");
        let strangers = (200_000..300_000u128).filter(|&client| clients.contains(client)).count();
        assert!(strangers < 5, "{strangers} of 100000 strangers");
    }

    #[test]
    fn one_that_is_answered_again_stays() {
        let mut clients = AnsweredClients::new(&mut Random::new(1));
        for client in 0..100_000u128 {
            clients.insert(client);
            clients.insert(u128::MAX);
        }
        assert!(clients.contains(u128::MAX));
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_snapshot_has_those_that_there_are_and_no_place_that_there_is_not() {
        let mut clients = AnsweredClients::new(&mut Random::new(1));
        (0..10u128).for_each(|client| clients.insert(client));
        let mut few = Few::from(clients.clone());
        assert_eq!(few.fingerprints.len(), 10);
        few.fingerprints.push((CAPACITY as u16, 1));
        assert!(!AnsweredClients::from(few).is_sound());
        assert_eq!(AnsweredClients::from(Few::from(clients.clone())), clients);
    }
}
