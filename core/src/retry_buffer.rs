//! What flows begin with, kept as copies until it is answered, to go to another backend.
//!
//! This is the one place where the core copies a datagram: only until the first answer, and no more bytes
//! of all of them than [`MAX_BYTES`], or with [`retry`](crate::config::ClusterConfig::retry)
//! [`MAX_BYTES_TO_ASK_AGAIN`]. All memory is allocated before: the copies lie one behind the other, the
//! oldest make room for the newest, and where the end is reached those that are needed move together. A
//! refusal comes soon, or not at all.

use alloc::vec::Vec;
use core::ops::Range;

#[cfg(feature = "snapshot")]
use serde::{Deserialize, Serialize};

use crate::config::{ManagerConfig, slots_for};
use crate::id::{BackendId, FlowId};
use crate::time::Instant;

/// How many copies a manager keeps at most, and how many bytes of them.
const MAX_COPIES: usize = 1 << 12;
const MAX_BYTES: usize = 256 << 10;

/// The same where they are kept until another backend is asked since one is silent.
const MAX_COPIES_TO_ASK_AGAIN: usize = 1 << 14;
const MAX_BYTES_TO_ASK_AGAIN: usize = 4 << 20;

/// How many copies a manager with few flows keeps at most.
const MIN_COPIES: usize = 1 << 10;

/// What a manager with few flows has room for in each slot.
const BYTES_FOR_EACH: usize = 2_048;

/// How many other backends may get one datagram.
pub(crate) const MAX_OTHERS: u8 = 3;

/// The copies, by the slots of their flows.
#[derive(Clone, Debug, Default)]
pub(crate) struct RetryBuffer {
    /// The oldest first, with those that are needed no more until they are [swept out](Self::compact).
    copies: Vec<KeptQuestion>,
    /// The bytes of the copies, in their order.
    bytes: Vec<u8>,
    /// How many copies are needed, and bytes of them.
    needed: usize,
    needed_bytes: usize,
    /// How many of each may be. There is room for twice that.
    max_copies: usize,
    max_bytes: usize,
    /// Where the oldest copy that is needed is, or one before.
    oldest: usize,
    /// Where the copy for the flow in a slot is, if that is of this slot.
    by_slot: Vec<u32>,
    /// Whose answer it still is that comes to a slot that such a flow has left behind, when it went on
    /// to another backend.
    askers: Vec<Option<FlowId>>,
}

/// A datagram, and who was asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeptQuestion {
    /// Whose it is; `None`: it is needed no more.
    slot: Option<u32>,
    /// Where its bytes begin, with what goes in front of it, and how many these are.
    begin: u32,
    len: u32,
    front: u16,
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    /// How many more backends may be asked.
    pub(crate) times_left: u8,
    /// Who has been asked, but for whom the flow has now.
    asked: [Option<BackendId>; MAX_OTHERS as usize],
    /// When another is asked, if nothing comes before.
    pub(crate) due: Option<Instant>,
}

/// What [`UdpManager::kept`](crate::UdpManager::kept) gives to send again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptDatagram<'a> {
    /// What goes in front of the datagram: a PROXY header, or nothing.
    pub front: &'a [u8],
    /// The datagram, as the client has sent it.
    pub datagram: &'a [u8],
    /// When yet another backend is asked, if nothing comes before.
    pub due: Option<Instant>,
}

/// How a datagram is kept.
#[derive(Clone, Copy)]
pub(crate) struct Keep<'a> {
    /// What goes in front, in parts.
    pub(crate) front: [&'a [u8]; 3],
    pub(crate) datagram: &'a [u8],
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    pub(crate) times: u8,
    pub(crate) due: Option<Instant>,
}

impl RetryBuffer {
    /// Nothing, and room for what flows begin with, where it is kept.
    pub(crate) fn new(config: &ManagerConfig) -> Self {
        let mut buffer = Self::default();
        buffer.reserve(config);
        buffer
    }

    /// Makes room for what flows of a configuration begin with, if there is less.
    pub(crate) fn reserve(&mut self, config: &ManagerConfig) {
        if config.cluster.attempts().is_none() {
            return;
        }
        let (max_copies, max_bytes) = match config.cluster.retry {
            None => (MAX_COPIES, MAX_BYTES),
            Some(_) => (MAX_COPIES_TO_ASK_AGAIN, MAX_BYTES_TO_ASK_AGAIN),
        };
        let slots = slots_for(config.reserved_flows());
        // One of any size fits.
        self.max_bytes = self.max_bytes.max((slots * BYTES_FOR_EACH).clamp(1 << 17, max_bytes));
        self.max_copies = self.max_copies.max(slots.clamp(MIN_COPIES, max_copies));
        self.make_room();
        self.by_slot.reserve_exact(slots.saturating_sub(self.by_slot.len()));
        self.askers.reserve_exact(slots.saturating_sub(self.askers.len()));
    }

    fn make_room(&mut self) {
        self.copies.reserve_exact((2 * self.max_copies).saturating_sub(self.copies.len()));
        self.bytes.reserve_exact((2 * self.max_bytes).saturating_sub(self.bytes.len()));
    }

    /// Whether nothing is kept.
    #[inline]
    pub(crate) const fn is_empty(&self) -> bool {
        self.needed == 0
    }

    /// Keeps what a flow begins with, if there is room for it at all. The oldest make room for it.
    pub(crate) fn keep(&mut self, slot: usize, keep: &Keep<'_>) {
        self.forget(slot);
        let front = keep.front.iter().map(|part| part.len()).sum::<usize>();
        let len = front + keep.datagram.len();
        if len > self.max_bytes || self.max_copies == 0 {
            return;
        }
        while self.needed >= self.max_copies || self.needed_bytes + len > self.max_bytes {
            self.forget_oldest();
        }
        // Half of the copies are needed no more then: memory that is touched once stays resident.
        if self.copies.len() >= (2 * self.needed).max(MIN_COPIES)
            || self.bytes.len() + len > 2 * self.max_bytes
        {
            self.compact();
        }
        let begin = self.bytes.len() as u32;
        for part in keep.front.into_iter().chain([keep.datagram]) {
            self.bytes.extend_from_slice(part);
        }
        if self.by_slot.len() <= slot {
            self.by_slot.resize(slot + 1, 0);
        }
        self.by_slot[slot] = self.copies.len() as u32;
        self.copies.push(KeptQuestion {
            slot: Some(slot as u32),
            begin,
            len: len as u32,
            front: front as u16,
            tos: keep.tos,
            ttl: keep.ttl,
            times_left: keep.times.min(MAX_OTHERS),
            asked: [None; MAX_OTHERS as usize],
            due: keep.due,
        });
        self.needed += 1;
        self.needed_bytes += len;
    }

    fn forget_oldest(&mut self) {
        let from = self.oldest;
        let needed = self.copies[from..].iter().position(|copy| copy.slot.is_some());
        let Some(at) = needed else { return };
        self.oldest = from + at;
        if let Some(slot) = self.copies[self.oldest].slot {
            self.forget(slot as usize);
        }
    }

    /// Sweeps out the copies that are needed no more.
    fn compact(&mut self) {
        let Self { copies, bytes, by_slot, .. } = self;
        let (mut at, mut len) = (0_usize, 0);
        copies.retain_mut(|copy| {
            let Some(slot) = copy.slot else { return false };
            bytes.copy_within(copy.range(), len);
            copy.begin = len as u32;
            len += copy.len as usize;
            by_slot[slot as usize] = at as u32;
            at += 1;
            true
        });
        bytes.truncate(len);
        self.oldest = 0;
    }

    fn index(&self, slot: usize) -> Option<usize> {
        let index = *self.by_slot.get(slot)? as usize;
        let is_its = self.copies.get(index)?.slot == Some(slot as u32);
        is_its.then_some(index)
    }

    pub(crate) fn get(&self, slot: usize) -> Option<&KeptQuestion> {
        self.copies.get(self.index(slot)?)
    }

    pub(crate) fn get_mut(&mut self, slot: usize) -> Option<&mut KeptQuestion> {
        let index = self.index(slot)?;
        self.copies.get_mut(index)
    }

    /// What is kept for the flow in a slot.
    pub(crate) fn datagram(&self, slot: usize) -> Option<KeptDatagram<'_>> {
        let kept = self.get(slot)?;
        let (front, datagram) = self.bytes[kept.range()].split_at(usize::from(kept.front));
        Some(KeptDatagram { front, datagram, due: kept.due })
    }

    /// When another backend is to be asked for the flow in a slot.
    pub(crate) fn due(&self, slot: usize) -> Option<Instant> {
        self.get(slot)?.due
    }

    /// It has been answered, or its flow ends.
    pub(crate) fn forget(&mut self, slot: usize) {
        let Some(kept) = self.get_mut(slot) else { return };
        kept.slot = None;
        let len = kept.len as usize;
        self.needed -= 1;
        self.needed_bytes -= len;
        if self.needed == 0 {
            self.compact();
        }
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        self.copies.clear();
        self.bytes.clear();
        (self.needed, self.needed_bytes, self.oldest) = (0, 0, 0);
        self.askers.clear();
    }

    /// A flow that goes on elsewhere has left this slot behind.
    pub(crate) fn leave(&mut self, slot: usize, asker: FlowId) {
        if self.askers.len() <= slot {
            self.askers.resize(slot + 1, None);
        }
        self.askers[slot] = Some(asker);
    }

    /// The flow that has left a slot behind to go on elsewhere.
    pub(crate) fn asker(&self, slot: usize) -> Option<FlowId> {
        *self.askers.get(slot)?
    }

    /// What was left behind in a slot is over.
    pub(crate) fn end(&mut self, slot: usize) {
        if let Some(asker) = self.askers.get_mut(slot) {
            *asker = None;
        }
    }

    /// Whether what is kept is that of flows in slots that `is_unanswered` knows, and was left behind in
    /// slots that `has_ended` knows.
    pub(crate) fn is_sound(
        &self,
        is_unanswered: impl Fn(usize) -> bool,
        has_ended: impl Fn(usize) -> bool,
    ) -> bool {
        let needed = || self.copies.iter().filter_map(|copy| Some((copy.slot? as usize, copy)));
        let mut left = (0..self.askers.len()).filter(|&slot| self.askers[slot].is_some());
        let is_one = |(slot, copy): (usize, &KeptQuestion)| {
            copy.range().end <= self.bytes.len()
                && u32::from(copy.front) <= copy.len
                && self.index(slot).is_some()
                && is_unanswered(slot)
        };
        needed().count() == self.needed
            && needed().map(|(_, copy)| copy.len as usize).sum::<usize>() == self.needed_bytes
            && needed().all(is_one)
            && left.all(has_ended)
    }
}

impl KeptQuestion {
    const fn range(&self) -> Range<usize> {
        self.begin as usize..self.begin as usize + self.len as usize
    }

    /// Who has been asked, but for whom the flow has now.
    pub(crate) fn asked(&self) -> impl Iterator<Item = BackendId> + Clone {
        self.asked.into_iter().flatten()
    }

    /// Another is asked than this one, which was asked before.
    pub(crate) fn turn_from(&mut self, former: BackendId, due: Option<Instant>) {
        if let Some(free) = self.asked.iter_mut().find(|asked| asked.is_none()) {
            *free = Some(former);
        }
        self.times_left = self.times_left.saturating_sub(1);
        self.due = due.filter(|_| self.times_left > 0);
    }
}

/// What is kept, in a [snapshot](crate::snapshot).
#[cfg(feature = "snapshot")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RetrySnapshot {
    /// In the order in which they were kept.
    copies: Vec<CopySnapshot>,
    askers: Vec<(u32, FlowId)>,
    /// How many copies and bytes there may be, which a former configuration may have made more.
    max_copies: u32,
    max_bytes: u32,
}

#[cfg(feature = "snapshot")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct CopySnapshot {
    slot: u32,
    front: Vec<u8>,
    datagram: Vec<u8>,
    tos: u8,
    ttl: u8,
    times_left: u8,
    asked: Vec<BackendId>,
    due: Option<Instant>,
}

#[cfg(feature = "snapshot")]
impl RetryBuffer {
    pub(crate) fn snapshot(&self) -> RetrySnapshot {
        let slots = self.copies.iter().filter_map(|copy| copy.slot);
        let copies = slots.filter_map(|slot| {
            let kept = self.get(slot as usize)?;
            let KeptDatagram { front, datagram, due } = self.datagram(slot as usize)?;
            let (front, datagram) = (front.to_vec(), datagram.to_vec());
            let &KeptQuestion { tos, ttl, times_left, .. } = kept;
            let asked = kept.asked().collect();
            Some(CopySnapshot { slot, front, datagram, tos, ttl, times_left, asked, due })
        });
        let askers = (0..).zip(&self.askers).filter_map(|(slot, asker)| Some((slot, (*asker)?)));
        RetrySnapshot {
            copies: copies.collect(),
            askers: askers.collect(),
            max_copies: self.max_copies as u32,
            max_bytes: self.max_bytes as u32,
        }
    }

    /// What a snapshot says, of flows in no more slots than `slots`. `None`: it is of others.
    pub(crate) fn restored(
        snapshot: &RetrySnapshot,
        config: &ManagerConfig,
        slots: usize,
    ) -> Option<Self> {
        let mut buffer = Self::new(config);
        let (copies, bytes) = (snapshot.max_copies as usize, snapshot.max_bytes as usize);
        buffer.max_copies = buffer.max_copies.max(copies.min(MAX_COPIES_TO_ASK_AGAIN));
        buffer.max_bytes = buffer.max_bytes.max(bytes.min(MAX_BYTES_TO_ASK_AGAIN));
        buffer.make_room();
        for copy in &snapshot.copies {
            let slot = Some(copy.slot as usize).filter(|&slot| slot < slots)?;
            let (tos, ttl, times, due) = (copy.tos, copy.ttl, copy.times_left, copy.due);
            let (front, datagram) = ([&copy.front[..], &[], &[]], &copy.datagram[..]);
            if copy.front.len() > usize::from(u16::MAX) || buffer.get(slot).is_some() {
                return None;
            }
            buffer.keep(slot, &Keep { front, datagram, tos, ttl, times, due });
            if let Some(kept) = buffer.get_mut(slot) {
                kept.asked.iter_mut().zip(&copy.asked).for_each(|(to, asked)| *to = Some(*asked));
            }
        }
        for &(slot, asker) in &snapshot.askers {
            buffer.leave(Some(slot as usize).filter(|&slot| slot < slots)?, asker);
        }
        Some(buffer)
    }
}

#[cfg(test)]
mod tests;
