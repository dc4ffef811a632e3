//! Shared upstreams of a family, and where each backend can have another flow.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

use crate::id::{BackendId, UpstreamId};
use crate::random::Random;
use crate::time::Instant;

/// With this many sockets, one on which a backend's last flow is answered and over takes another
/// before its quarantine has passed, rather than that one more is opened. So a rate that no
/// quarantine can keep up with costs no more sockets than this.
const MAX_QUARANTINED: usize = 1_024;

/// How often another socket is drawn where the first was taken.
const DRAWS: usize = 4;

/// The sockets that may have another flow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub(crate) struct Pool {
    open: Vec<UpstreamId>,
    /// By the indices of backends.
    backends: Vec<PairPool>,
}

/// The sockets on which one backend has no flow. They may have closed since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
struct PairPool {
    free: Vec<UpstreamId>,
    /// Those that are to have none before some time, in the order in which they came.
    quarantined: VecDeque<(UpstreamId, Instant)>,
}

impl Pool {
    pub(crate) const fn len(&self) -> usize {
        self.open.len()
    }

    pub(crate) fn contains(&self, id: UpstreamId) -> bool {
        self.open.contains(&id)
    }

    /// Takes in a socket that has just been opened. Here, where a system call is made anyhow, all
    /// is allocated that giving it back will need.
    pub(crate) fn add(
        &mut self,
        id: UpstreamId,
        backends: usize,
        is_open: impl Fn(UpstreamId) -> bool,
    ) {
        self.open.push(id);
        let open = self.open.len();
        for pairs in &mut self.backends {
            pairs.free.push(id);
            pairs.forget_the_closed(open, &is_open);
        }
        self.know_backends(backends.max(self.backends.len()));
    }

    /// Makes pools for this many backends.
    pub(crate) fn know_backends(&mut self, backends: usize) {
        if self.open.is_empty() {
            return;
        }
        while self.backends.len() < backends {
            self.backends.push(PairPool { free: self.open.clone(), quarantined: VecDeque::new() });
        }
        self.make_room();
    }

    /// Makes the room that giving pairs back will need.
    pub(crate) fn make_room(&mut self) {
        for PairPool { free, quarantined } in &mut self.backends {
            // Beside what is there, which may have closed: each that is open may be given back.
            let most = free.len() + quarantined.len() + self.open.len();
            free.reserve(most.saturating_sub(free.len()));
            quarantined.reserve(most.saturating_sub(quarantined.len()));
        }
    }

    /// A socket on which a backend has no flow: one of those whose quarantine is over, at random.
    pub(crate) fn draw(
        &mut self,
        backend: BackendId,
        now: Instant,
        random: &mut Random,
        is_usable: impl Fn(UpstreamId) -> bool,
    ) -> Option<UpstreamId> {
        let is_large = self.open.len() >= MAX_QUARANTINED;
        if self.backends.len() <= backend.index() {
            self.know_backends(backend.index() + 1);
        }
        let PairPool { free, quarantined } = self.backends.get_mut(backend.index())?;
        while let Some(&(id, until)) = quarantined.front()
            && until <= now
        {
            quarantined.pop_front();
            free.push(id);
        }
        while !free.is_empty() {
            let id = free.swap_remove(random.below(free.len() as u64) as usize);
            if is_usable(id) {
                return Some(id);
            }
        }
        while is_large && let Some((id, _)) = quarantined.pop_front() {
            if is_usable(id) {
                return Some(id);
            }
        }
        None
    }

    /// Whether these are all that it holds, each once.
    pub(crate) fn holds(&self, members: impl Iterator<Item = UpstreamId>) -> bool {
        let mut members: Vec<UpstreamId> = members.collect();
        let mut open = self.open.clone();
        members.sort_unstable();
        open.sort_unstable();
        members == open
    }

    /// Any socket, at random, unless a few are taken one after another.
    pub(crate) fn draw_any(
        &self,
        random: &mut Random,
        is_taken: impl Fn(UpstreamId) -> bool,
    ) -> Option<UpstreamId> {
        let len = self.open.len() as u64;
        let mut draw = || self.open.get(random.below(len.max(1)) as usize).copied();
        (0..DRAWS).find_map(|_| draw().filter(|&id| !is_taken(id)))
    }

    /// A backend has no flow any more on a socket, and is to have none there until some time.
    pub(crate) fn give_back(
        &mut self,
        id: UpstreamId,
        backend: BackendId,
        quarantined_until: Option<Instant>,
    ) {
        let Some(pairs) = self.backends.get_mut(backend.index()) else { return };
        match quarantined_until {
            Some(until) => pairs.quarantined.push_back((id, until)),
            None => pairs.free.push(id),
        }
    }

    /// Forgets a socket that closes.
    pub(crate) fn forget(&mut self, id: UpstreamId) {
        if let Some(place) = self.open.iter().position(|&open| open == id) {
            self.open.swap_remove(place);
        }
    }

    /// Forgets all of them, and says which they were.
    pub(crate) fn take_all(&mut self) -> Vec<UpstreamId> {
        core::mem::take(self).open
    }
}

impl PairPool {
    /// Those that have closed are passed over when they are drawn, unless they become many.
    fn forget_the_closed(&mut self, most: usize, is_open: impl Fn(UpstreamId) -> bool) {
        if self.free.len() + self.quarantined.len() > 2 * most {
            self.free.retain(|&id| is_open(id));
            self.quarantined.retain(|&(id, _)| is_open(id));
        }
    }
}
