//! The memory that datagrams are received into, and what is known of each: without the kernel in it.
//!
//! A kernel fills [`FreeSlots`] with payloads and a [`RecvMeta`] each; what was received is lent out
//! until the tick is over, while later receives of the same tick fill later slots.

use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::ops::Range;
use std::ptr::{self, NonNull};

use flowgate_core::LocalAddr;
use flowgate_core::burst::MAX_BURST_BYTES;

/// The bytes a slot can receive: the largest burst.
pub const SLOT_BYTES: usize = MAX_BURST_BYTES + 1;

/// The distance between two slots' payloads: a little more than they hold, so that the first
/// lines of all slots do not fall into the same sets of the processor's caches.
const SLOT_STRIDE: usize = SLOT_BYTES + 5 * 64;

/// The time to live of a datagram that does not tell: what most systems send with.
pub const DEFAULT_TTL: u8 = 64;

/// What a kernel says of a burst that it has received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecvMeta {
    /// The length of the payload in bytes.
    pub len: usize,
    /// The sender; `None` if the kernel gave none.
    pub source: Option<SocketAddr>,
    /// The address it was sent to (`IP_PKTINFO`, `IPV6_PKTINFO`), if the socket asks for it.
    pub local: Option<LocalAddr>,
    /// The length of each datagram of a burst (`UDP_GRO`); 0 when nothing was coalesced.
    pub segment: u16,
    /// The TOS or traffic-class byte.
    pub tos: u8,
    /// The time to live or hop limit it had left.
    pub ttl: u8,
    /// How many datagrams the socket has lost before this one (`SO_RXQ_OVFL`), if any.
    pub drops: u32,
    /// Whether payload was cut off (`MSG_TRUNC`).
    pub is_truncated: bool,
    /// Whether control messages were cut off (`MSG_CTRUNC`).
    pub is_control_truncated: bool,
}

impl Default for RecvMeta {
    fn default() -> Self {
        Self {
            len: 0,
            source: None,
            local: None,
            segment: 0,
            tos: 0,
            ttl: DEFAULT_TTL,
            drops: 0,
            is_truncated: false,
            is_control_truncated: false,
        }
    }
}

/// Memory to receive into, for one tick of a worker after another.
///
/// Every slot holds one burst. The memory is reserved at start and touched slot by slot: a listener
/// of small datagrams keeps one page of each in use.
pub struct Arena {
    payloads: Owned<u8>,
    metas: Owned<RecvMeta>,
    /// How many slots are filled.
    used: usize,
}

impl Arena {
    /// An arena of `slots` slots.
    pub fn new(slots: usize) -> Self {
        Self {
            payloads: Owned::new(vec![0; slots * SLOT_STRIDE]),
            metas: Owned::new(vec![RecvMeta::default(); slots]),
            used: 0,
        }
    }

    /// Begins a tick with all slots free. What the last tick received is gone.
    pub const fn begin(&mut self) -> Tick<'_> {
        self.used = 0;
        Tick { arena: self }
    }
}

/// One tick over an [`Arena`]: each receive takes the next free slots, and what it returns stays
/// valid until the tick is over, while later receives fill later slots.
pub struct Tick<'t> {
    arena: &'t mut Arena,
}

impl<'t> Tick<'t> {
    /// How many slots are free.
    pub const fn free(&self) -> usize {
        self.arena.metas.len - self.arena.used
    }

    /// Receives into at most `max` slots by way of `receive`, which says how many it filled, and
    /// returns what they hold.
    ///
    /// # Errors
    ///
    /// What `receive` returns.
    pub fn receive(
        &mut self,
        max: usize,
        receive: impl FnOnce(&mut FreeSlots<'_>) -> io::Result<usize>,
    ) -> io::Result<ReceivedBatch<'t>> {
        let (first, max) = (self.arena.used, max.min(self.free()));
        let filled = receive(&mut FreeSlots { arena: self.arena, len: max })?.min(max);
        self.arena.used += filled;
        Ok(ReceivedBatch {
            payloads: self.arena.payloads.first,
            metas: self.arena.metas.first,
            slots: first..first + filled,
            lent: PhantomData,
        })
    }
}

/// What a receive delivered: one datagram, or several of one source (`UDP_GRO`).
#[derive(Clone, Copy, Debug)]
pub struct Received<'t> {
    /// The payload.
    pub bytes: &'t [u8],
    /// What is known of it.
    pub meta: &'t RecvMeta,
}

/// What one receive delivered, in order.
#[derive(Clone)]
pub struct ReceivedBatch<'t> {
    payloads: NonNull<u8>,
    metas: NonNull<RecvMeta>,
    slots: Range<usize>,
    lent: PhantomData<&'t Arena>,
}

impl<'t> Iterator for ReceivedBatch<'t> {
    type Item = Received<'t>;

    fn next(&mut self) -> Option<Received<'t>> {
        let slot = self.slots.next()?;
        // SAFETY: the arena lives, borrowed, for 't, and the slot is one of it. The slot is filled,
        // so nothing writes to it before the next tick begins, for which 't must have ended; its
        // payload has `SLOT_BYTES` initialised bytes.
        unsafe {
            let meta = self.metas.add(slot).as_ref();
            let payload = self.payloads.add(slot * SLOT_STRIDE).as_ptr();
            let bytes = std::slice::from_raw_parts(payload, meta.len.min(SLOT_BYTES));
            Some(Received { bytes, meta })
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.slots.size_hint()
    }
}

impl ExactSizeIterator for ReceivedBatch<'_> {}

/// The slots that one receive may fill.
pub struct FreeSlots<'f> {
    arena: &'f mut Arena,
    len: usize,
}

impl FreeSlots<'_> {
    /// How many there are.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The room for the payload of a slot, [`SLOT_BYTES`] long. Empty if there is no such slot.
    pub fn payload(&mut self, slot: usize) -> &mut [u8] {
        let len = if slot < self.len { SLOT_BYTES } else { 0 };
        let index = self.arena.used + slot.min(self.len);
        // SAFETY: a slot below `len` exists and is free, so that nobody else has access to it while
        // it is borrowed here; its bytes are initialised. Of no bytes none is reached.
        unsafe { std::slice::from_raw_parts_mut(self.arena.payloads.at(index * SLOT_STRIDE), len) }
    }

    /// The rooms for the payloads of all slots from `first` on, as [`payload`](Self::payload) gives
    /// them one by one.
    pub fn payloads(&mut self, first: usize) -> impl Iterator<Item = &mut [u8]> {
        let (payloads, used) = (&self.arena.payloads, self.arena.used);
        (first..self.len).map(move |slot| {
            // SAFETY: the slot exists and is free, so that nobody else has access to it while it is
            // borrowed here; each is another, and slots do not overlap; its bytes are initialised.
            unsafe {
                std::slice::from_raw_parts_mut(payloads.at((used + slot) * SLOT_STRIDE), SLOT_BYTES)
            }
        })
    }

    /// Says what is known of the payload that was written to a slot. Nothing is said of a slot that
    /// does not exist.
    pub fn set(&mut self, slot: usize, meta: RecvMeta) {
        if slot < self.len {
            // SAFETY: the slot exists and is free, as above.
            unsafe { self.arena.metas.at(self.arena.used + slot).write(meta) };
        }
    }

    /// Puts a copy of `bytes` into a slot, where a kernel does not write there by itself. What is
    /// beyond the size of a slot is cut off and marked so.
    pub fn fill(&mut self, slot: usize, bytes: &[u8], meta: RecvMeta) {
        let payload = self.payload(slot);
        let len = bytes.len().min(payload.len());
        payload[..len].copy_from_slice(&bytes[..len]);
        let is_truncated = meta.is_truncated || len < bytes.len();
        self.set(slot, RecvMeta { len, is_truncated, ..meta });
    }
}

/// An allocation reached only by raw pointers, so that parts of it can be lent out while others
/// are written, or written by the kernel where a pointer says that was made before.
pub(super) struct Owned<T> {
    first: NonNull<T>,
    len: usize,
    owns: PhantomData<T>,
}

// SAFETY: it owns what it points to.
unsafe impl<T: Send> Send for Owned<T> {}

impl<T> Owned<T> {
    pub(super) fn new(values: Vec<T>) -> Self {
        let values = Box::leak(values.into_boxed_slice());
        Self { len: values.len(), first: NonNull::from(values).cast(), owns: PhantomData }
    }

    /// One of the values by its number, or the end.
    pub(super) fn at(&self, index: usize) -> *mut T {
        assert!(index <= self.len, "beyond the allocation");
        // SAFETY: within the allocation, or one past its end.
        unsafe { self.first.as_ptr().add(index) }
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        let values = ptr::slice_from_raw_parts_mut(self.first.as_ptr(), self.len);
        // SAFETY: it came from a box of this length and is freed once, here.
        drop(unsafe { Box::from_raw(values) });
    }
}

#[cfg(test)]
mod tests;
