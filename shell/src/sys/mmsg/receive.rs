//! Receiving: an arena of slots, and turns over it.

use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};

use flowgate_core::LocalAddr;
use flowgate_core::burst::MAX_BURST_BYTES;

use crate::sys::cmsg::{self, ControlBuffer, RECEIVE_BYTES};
use crate::sys::sockaddr::{self, RawAddr};

/// The bytes a slot can receive: the largest burst.
const SLOT_BYTES: usize = MAX_BURST_BYTES + 1;

/// The distance between two slots' payloads: a little more than they hold, so that the first
/// lines of all slots do not fall into the same sets of the processor's caches.
const SLOT_STRIDE: usize = SLOT_BYTES + 5 * 64;

/// Memory to receive into, for one turn of a worker after another.
///
/// Every slot holds one burst with its source and control messages. The memory is reserved at
/// start and touched slot by slot: a listener of small datagrams keeps one page of each in use.
pub struct Arena {
    payloads: Owned<u8>,
    slots: Owned<Slot>,
    /// One for each slot, pointing into it for good.
    headers: Owned<libc::mmsghdr>,
    /// How many slots the last turn used, whose headers the kernel has written to.
    used: usize,
}

/// What a slot holds beside its payload.
struct Slot {
    source: RawAddr,
    control: ControlBuffer<RECEIVE_BYTES>,
    iovec: libc::iovec,
}

impl Arena {
    /// An arena of `slots` slots.
    pub fn new(slots: usize) -> Self {
        let payloads = Owned::new(vec![0; slots * SLOT_STRIDE]);
        let iovec = |index| libc::iovec {
            iov_base: payloads.at(index * SLOT_STRIDE).cast(),
            iov_len: SLOT_BYTES,
        };
        let empty = |index| Slot {
            source: RawAddr::EMPTY,
            control: ControlBuffer::new(),
            iovec: iovec(index),
        };
        let slots: Owned<Slot> = Owned::new((0..slots).map(empty).collect());
        let headers = (0..slots.len).map(|index| fresh_header(slots.at(index))).collect();
        Self { headers: Owned::new(headers), payloads, slots, used: 0 }
    }

    /// Begins a turn with all slots free. Whatever the last turn received is gone.
    pub fn begin(&mut self) -> Turn<'_> {
        for index in 0..self.used {
            // SAFETY: a slot below `used` exists, and its header is nobody else's.
            unsafe { self.headers.at(index).write(fresh_header(self.slots.at(index))) };
        }
        self.used = 0;
        Turn { arena: self }
    }

    /// What the kernel put into a slot.
    ///
    /// # Safety
    ///
    /// The slot was filled, and nothing writes to it during `'t`.
    unsafe fn received<'t>(&self, index: usize) -> Received<'t> {
        // SAFETY: the slot exists and nobody writes to it, says the caller.
        let (header, slot) = unsafe { (&*self.headers.at(index), &*self.slots.at(index)) };
        let len = (header.msg_len as usize).min(SLOT_BYTES);
        let control_len = header.msg_hdr.msg_controllen.min(RECEIVE_BYTES);
        let payload = self.payloads.at(index * SLOT_STRIDE);
        Received {
            // SAFETY: the payload has `SLOT_BYTES` initialised bytes that nobody writes to.
            bytes: unsafe { std::slice::from_raw_parts(payload, len) },
            source: slot.source.read(header.msg_hdr.msg_namelen),
            control: cmsg::read(slot.control.prefix(control_len)),
            is_truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            is_control_truncated: header.msg_hdr.msg_flags & libc::MSG_CTRUNC != 0,
        }
    }
}

/// A header that makes the kernel fill the slot, from the beginning and with all it has to say.
fn fresh_header(slot: *mut Slot) -> libc::mmsghdr {
    // SAFETY: places in a slot that exists; only their addresses are taken.
    let (source, control, iovec) = unsafe {
        ((*slot).source.as_mut_ptr(), (*slot).control.as_mut_ptr(), &raw mut (*slot).iovec)
    };
    libc::mmsghdr {
        msg_hdr: libc::msghdr {
            msg_name: source,
            msg_namelen: sockaddr::MAX_LEN,
            msg_iov: iovec,
            msg_iovlen: 1,
            msg_control: control,
            msg_controllen: RECEIVE_BYTES,
            msg_flags: 0,
        },
        msg_len: 0,
    }
}

/// One turn over an [`Arena`]: each receive takes the next free slots, and what it returns stays
/// valid until the turn is over, while later receives fill later slots.
pub struct Turn<'t> {
    arena: &'t mut Arena,
}

impl<'t> Turn<'t> {
    /// How many slots are free.
    pub const fn free(&self) -> usize {
        self.arena.slots.len - self.arena.used
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
        Ok(ReceivedBatch { arena: self.arena, slots: first..first + filled, lent: PhantomData })
    }
}

/// What one receive delivered, in order.
#[derive(Clone)]
pub struct ReceivedBatch<'t> {
    arena: *const Arena,
    slots: Range<usize>,
    lent: PhantomData<&'t Arena>,
}

impl<'t> Iterator for ReceivedBatch<'t> {
    type Item = Received<'t>;

    fn next(&mut self) -> Option<Received<'t>> {
        let slot = self.slots.next()?;
        // SAFETY: the arena lives, borrowed, for 't. The slot is filled and below `used`, so
        // nothing writes to it before the next turn begins, for which 't must have ended.
        Some(unsafe { (*self.arena).received(slot) })
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

    /// Receives from `socket` into as many slots as there are datagrams for, without blocking.
    ///
    /// # Errors
    ///
    /// Those of `recvmmsg(2)`: `WouldBlock` where nothing waits. An error that comes after some
    /// datagrams is kept back by the kernel for the next call.
    pub fn receive_from(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        if self.is_empty() {
            return Ok(0);
        }
        let first = self.arena.headers.at(self.arena.used);
        // SAFETY: `len` headers from `first` on exist and describe free slots, to which nobody
        // else has access while they are borrowed here.
        let filled = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                first,
                self.len as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        usize::try_from(filled).map_err(|_| io::Error::last_os_error())
    }

    /// Puts `arrival` into one of the slots, as the kernel would: for simulated kernels. Payload
    /// beyond a slot's size is cut off and marked so. A slot that is not there stays unfilled.
    pub fn fill(&mut self, slot: usize, arrival: &Arrival<'_>, v6_socket: bool) {
        if slot >= self.len {
            return;
        }
        let index = self.arena.used + slot;
        // SAFETY: the slot exists and is free, and it is borrowed here alone.
        let (header, slot) =
            unsafe { (&mut *self.arena.headers.at(index), &mut *self.arena.slots.at(index)) };
        let len = arrival.bytes.len().min(SLOT_BYTES);
        let payload = self.arena.payloads.at(index * SLOT_STRIDE);
        // SAFETY: the payload has room for `SLOT_BYTES`, and does not overlap what came in.
        unsafe { ptr::copy_nonoverlapping(arrival.bytes.as_ptr(), payload, len) };
        slot.source = RawAddr::new(arrival.source, v6_socket);
        slot.control.clear();
        if let Some(local) = arrival.local {
            slot.control.push_local(local, v6_socket);
        }
        slot.control.push_tos(arrival.tos, arrival.source.is_ipv6());
        if arrival.segment > 0 {
            slot.control.push_received_segment_size(arrival.segment);
        }
        let flags = [
            (arrival.is_truncated || len < arrival.bytes.len(), libc::MSG_TRUNC),
            (arrival.is_control_truncated, libc::MSG_CTRUNC),
        ];
        header.msg_len = len as libc::c_uint;
        header.msg_hdr.msg_namelen = slot.source.len();
        header.msg_hdr.msg_controllen = slot.control.as_bytes().len();
        header.msg_hdr.msg_flags =
            flags.iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag).sum();
    }
}

/// More than a quiet socket's buffer holds; whoever floods it must not hold up the others.
const MAX_DISCARDED: usize = 1_024;

/// Throws away all that waits to be read from `socket`, and says how many bursts and bytes that
/// was. An error of the network that waits is taken as well.
pub fn discard(socket: BorrowedFd<'_>) -> (u32, u64) {
    let (mut bursts, mut bytes) = (0, 0);
    for _ in 0..MAX_DISCARDED {
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        // SAFETY: an empty buffer is not written to.
        let len = unsafe { libc::recv(socket.as_raw_fd(), ptr::null_mut(), 0, flags) };
        match u64::try_from(len) {
            Ok(len) => {
                bursts += 1;
                bytes += len;
            }
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => {
                break;
            }
            // A signal, or what ICMP said of the former flow's datagrams: gone once it is told.
            Err(_) => {}
        }
    }
    (bursts, bytes)
}

/// Whether the system has a call that receives several datagrams.
///
/// # Errors
///
/// When it does not exist, or is refused.
pub fn check_receive() -> io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    let (none, flags) = (ptr::null_mut(), libc::MSG_DONTWAIT);
    // SAFETY: of no headers none is looked at.
    match unsafe { libc::recvmmsg(socket.as_raw_fd(), none, 0, flags, ptr::null_mut()) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes what waits in a socket's error queue (`IP_RECVERR` of `ip(7)`), and returns the last of
/// what the network said there. What the socket would have told of it by its next call goes as well.
pub fn take_errors(socket: BorrowedFd<'_>) -> Option<io::Error> {
    let mut told = None;
    for _ in 0..MAX_DISCARDED {
        let mut control = ControlBuffer::<RECEIVE_BYTES>::new();
        // SAFETY: all zeroes are a header, of nothing.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_control = control.as_mut_ptr();
        header.msg_controllen = RECEIVE_BYTES;
        let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
        // SAFETY: the header describes a buffer that lives and is nobody else's.
        if unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) } < 0 {
            break;
        }
        let len = header.msg_controllen.min(RECEIVE_BYTES);
        let number = cmsg::read_error(control.prefix(len));
        told = number.map(io::Error::from_raw_os_error).or(told);
    }
    told
}

/// What a receive delivered: one datagram, or several of one source (`UDP_GRO`).
#[derive(Clone, Copy, Debug)]
pub struct Received<'t> {
    /// The payload.
    pub bytes: &'t [u8],
    /// The sender; `None` if the kernel gave none.
    pub source: Option<SocketAddr>,
    /// What came beside it.
    pub control: cmsg::ReceivedControl,
    /// Whether payload was cut off (`MSG_TRUNC`).
    pub is_truncated: bool,
    /// Whether control messages were cut off (`MSG_CTRUNC`).
    pub is_control_truncated: bool,
}

/// What a simulated kernel delivers.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// The payload.
    pub bytes: &'a [u8],
    /// The sender.
    pub source: SocketAddr,
    /// The address it was sent to, if the socket asks for it.
    pub local: Option<LocalAddr>,
    /// The TOS or traffic-class byte.
    pub tos: u8,
    /// The length of each datagram; 0 for a single one.
    pub segment: u16,
    /// Whether to say that payload was cut off.
    pub is_truncated: bool,
    /// Whether to say that control messages were cut off.
    pub is_control_truncated: bool,
}

/// An allocation reached only by raw pointers, so that parts of it can be lent out while others
/// are written.
struct Owned<T> {
    first: NonNull<T>,
    len: usize,
    owns: PhantomData<T>,
}

// SAFETY: it owns what it points to; the pointers among that (headers, iovecs) point into other
// allocations of the same arena and move with it.
unsafe impl<T> Send for Owned<T> {}

impl<T> Owned<T> {
    fn new(values: Vec<T>) -> Self {
        let values = Box::leak(values.into_boxed_slice());
        Self { len: values.len(), first: NonNull::from(values).cast(), owns: PhantomData }
    }

    fn at(&self, index: usize) -> *mut T {
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
