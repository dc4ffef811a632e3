//! Questions that wait for an answer, with copies of them, to be asked again of another backend.
//!
//! This is the one place where the core copies a datagram: only with
//! [`retry`](crate::config::ClusterConfig::retry), only until the first answer, and no more bytes of
//! all of them than [`MAX_BYTES`]. Where there is no room for one, it is asked once.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

use crate::id::{BackendId, FlowId};
use crate::time::Instant;

/// How many bytes a manager keeps at most.
pub(crate) const MAX_BYTES: usize = 4 << 20;

/// The questions that are kept, by the slots of their flows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub(crate) struct RetryBuffer {
    by_slot: BTreeMap<u32, KeptQuestion>,
    bytes: usize,
    /// Whose answer it still is that comes to a slot that such a flow has left behind, when it went on
    /// to ask another backend.
    askers: BTreeMap<u32, FlowId>,
}

/// A question, and who was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub(crate) struct KeptQuestion {
    /// What goes in front of it, and then the datagram.
    pub(crate) wire: Box<[u8]>,
    /// How much of that goes in front.
    pub(crate) front: u16,
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    /// How many more backends may be asked.
    pub(crate) times_left: u8,
    /// Who has been asked, but for whom the flow has now.
    pub(crate) asked: Vec<BackendId>,
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

impl RetryBuffer {
    /// Whether nothing is kept, as is always so without `retry`.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.by_slot.is_empty()
    }

    /// Whether there is room for this many bytes more.
    pub(crate) const fn has_room(&self, bytes: usize) -> bool {
        self.bytes + bytes <= MAX_BYTES
    }

    pub(crate) fn keep(&mut self, slot: usize, question: KeptQuestion) {
        self.forget(slot);
        self.bytes += question.wire.len();
        self.by_slot.insert(slot as u32, question);
    }

    pub(crate) fn get(&self, slot: usize) -> Option<&KeptQuestion> {
        self.by_slot.get(&(slot as u32))
    }

    pub(crate) fn get_mut(&mut self, slot: usize) -> Option<&mut KeptQuestion> {
        self.by_slot.get_mut(&(slot as u32))
    }

    /// When another backend is to be asked for the flow in a slot.
    pub(crate) fn due(&self, slot: usize) -> Option<Instant> {
        self.get(slot)?.due
    }

    /// It has been answered, or its flow ends.
    pub(crate) fn forget(&mut self, slot: usize) {
        if let Some(question) = self.by_slot.remove(&(slot as u32)) {
            self.bytes -= question.wire.len();
        }
    }

    /// A flow that asks elsewhere has left this slot behind.
    pub(crate) fn leave(&mut self, slot: usize, asker: FlowId) {
        self.askers.insert(slot as u32, asker);
    }

    /// The flow that has left a slot behind to ask elsewhere.
    pub(crate) fn asker(&self, slot: usize) -> Option<FlowId> {
        self.askers.get(&(slot as u32)).copied()
    }

    /// What was left behind in a slot is over.
    pub(crate) fn end(&mut self, slot: usize) {
        self.askers.remove(&(slot as u32));
    }

    /// Whether what is kept is that of flows in slots that `is_unanswered` knows, and was left behind in
    /// slots that `has_ended` knows.
    pub(crate) fn is_sound(
        &self,
        is_unanswered: impl Fn(usize) -> bool,
        has_ended: impl Fn(usize) -> bool,
    ) -> bool {
        let lengths = self.by_slot.values().map(|question| question.wire.len());
        let bytes = lengths.fold(0, usize::saturating_add);
        let is_one = |(&slot, question): (&u32, &KeptQuestion)| {
            usize::from(question.front) <= question.wire.len() && is_unanswered(slot as usize)
        };
        self.bytes == bytes
            && bytes <= MAX_BYTES
            && self.by_slot.iter().all(is_one)
            && self.askers.keys().all(|&slot| has_ended(slot as usize))
    }
}

impl KeptQuestion {
    pub(crate) fn parts(&self) -> KeptDatagram<'_> {
        let (front, datagram) = self.wire.split_at(usize::from(self.front));
        KeptDatagram { front, datagram, due: self.due }
    }
}
