//! Receiving: as many bursts as wait, with one system call.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::{control_len, empty_header};
use crate::sys::arena::{FreeSlots, Owned, RecvMeta, SLOT_BYTES};
use crate::sys::cmsg::{self, ControlBuffer, RECEIVE_BYTES};
use crate::sys::message::QueuedError;
use crate::sys::sockaddr::{self, RawAddr};

/// The most bursts that one `recvmmsg(2)` is asked for; the kernel delivers 1,024.
const MAX_MESSAGES: usize = 64;

/// The memory that a `recvmmsg(2)` is written in, kept from one to the next.
pub struct Receiver {
    /// What the headers point to, but for payloads. No reference to a slot is ever made that is not
    /// shared: it would take away from the headers' pointers what they may do.
    slots: Owned<Slot>,
    /// One for each slot.
    headers: Vec<libc::mmsghdr>,
    /// How many headers the kernel has written to since they were fresh.
    used: usize,
}

/// What the kernel writes beside a payload.
#[repr(C)]
struct Slot {
    source: RawAddr,
    control: ControlBuffer<RECEIVE_BYTES>,
    payload: libc::iovec,
}

// SAFETY: the pointers in headers and slots point into the slots, which it owns and which stay where
// they are, and to payloads, which are written before each call and not used after it.
unsafe impl Send for Receiver {}

impl Default for Receiver {
    fn default() -> Self {
        let empty = || Slot {
            source: RawAddr::EMPTY,
            control: ControlBuffer::new(),
            payload: libc::iovec { iov_base: ptr::null_mut(), iov_len: SLOT_BYTES },
        };
        let slots = Owned::new((0..MAX_MESSAGES).map(|_| empty()).collect());
        // SAFETY: these slots exist.
        let header = |index| unsafe { fresh_header(slots.at(index)) };
        let headers = (0..MAX_MESSAGES).map(header).collect();
        Self { slots, headers, used: 0 }
    }
}

impl Receiver {
    /// Receives from `socket` into as many slots as there are bursts for, without blocking, and
    /// says how many it filled.
    ///
    /// # Errors
    ///
    /// Those of `recvmmsg(2)`: `WouldBlock` where nothing waits. An error that comes after some
    /// datagrams is kept back by the kernel for the next call.
    pub fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        free: &mut FreeSlots<'_>,
    ) -> io::Result<usize> {
        let max = free.len().min(MAX_MESSAGES);
        if max == 0 {
            return Ok(0);
        }
        let Self { slots, headers, used } = self;
        for (index, header) in headers.iter_mut().enumerate().take(*used) {
            // SAFETY: there is a slot for each header.
            *header = unsafe { fresh_header(slots.at(index)) };
        }
        for index in 0..max {
            let payload = free.payload(index).as_mut_ptr().cast();
            // SAFETY: there are as many slots as messages, and nobody else has them now.
            unsafe { (*slots.at(index)).payload.iov_base = payload };
        }
        let (first, flags) = (headers.as_mut_ptr(), libc::MSG_DONTWAIT as _);
        // SAFETY: at least `max` headers exist; they describe slots that are reached from here alone,
        // and payloads of `SLOT_BYTES` that are free.
        let filled = unsafe {
            libc::recvmmsg(socket.as_raw_fd(), first, max as libc::c_uint, flags, ptr::null_mut())
        };
        let filled = usize::try_from(filled).map_err(|_| io::Error::last_os_error())?.min(max);
        *used = filled;
        for (index, header) in headers.iter().enumerate().take(filled) {
            // SAFETY: the slot exists, and nobody writes to it while it is read here.
            let meta = unsafe { &*slots.at(index) }.meta(header);
            free.set(index, meta);
        }
        Ok(filled)
    }
}

impl Slot {
    /// What the kernel says of what it received here.
    fn meta(&self, header: &libc::mmsghdr) -> RecvMeta {
        let control_len = control_len(&header.msg_hdr).min(RECEIVE_BYTES);
        RecvMeta {
            len: (header.msg_len as usize).min(SLOT_BYTES),
            source: self.source.read(header.msg_hdr.msg_namelen),
            is_truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            is_control_truncated: header.msg_hdr.msg_flags & libc::MSG_CTRUNC != 0,
            ..cmsg::read(self.control.prefix(control_len))
        }
    }
}

/// A header that makes the kernel fill the slot, from the beginning and with all it has to say. Its
/// pointers may do what `slot` may.
///
/// # Safety
///
/// There is a slot.
unsafe fn fresh_header(slot: *mut Slot) -> libc::mmsghdr {
    // SAFETY: the places lie in the slot; none of them is read or borrowed.
    let (source, control, payload) =
        unsafe { (&raw mut (*slot).source, &raw mut (*slot).control, &raw mut (*slot).payload) };
    let mut header = empty_header();
    header.msg_name = RawAddr::storage(source);
    header.msg_namelen = sockaddr::MAX_LEN;
    header.msg_iov = payload;
    header.msg_iovlen = 1;
    header.msg_control = ControlBuffer::storage(control);
    header.msg_controllen = RECEIVE_BYTES as _;
    libc::mmsghdr { msg_hdr: header, msg_len: 0 }
}

/// Whether the system has a call that receives several datagrams.
///
/// # Errors
///
/// When it does not exist, or is refused.
pub fn check_receive() -> io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    let (none, flags) = (ptr::null_mut(), libc::MSG_DONTWAIT as _);
    // SAFETY: of no headers none is looked at.
    match unsafe { libc::recvmmsg(socket.as_raw_fd(), none, 0, flags, ptr::null_mut()) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How many errors are taken at once: anyone who floods a socket with them must not hold up the others.
const MAX_ERRORS: usize = 1_024;

/// How much of a datagram is looked at: what an IPv6 host quotes at most (RFC 4443, section 3.1), without
/// headers.
const MAX_QUOTED: usize = 1_232;

/// Takes what waits in a socket's error queue, oldest first. What the socket would have told of it
/// by its next call goes as well. Errors of this host's own are left out.
pub fn take_errors(socket: BorrowedFd<'_>) -> Vec<QueuedError> {
    let mut told = Vec::new();
    for _ in 0..MAX_ERRORS {
        let mut control = ControlBuffer::<RECEIVE_BYTES>::new();
        let mut remote = RawAddr::EMPTY;
        let mut quoted = [0_u8; MAX_QUOTED];
        let mut piece = libc::iovec { iov_base: quoted.as_mut_ptr().cast(), iov_len: quoted.len() };
        let mut header = empty_header();
        header.msg_name = RawAddr::storage(&raw mut remote);
        header.msg_namelen = sockaddr::MAX_LEN;
        header.msg_iov = &raw mut piece;
        header.msg_iovlen = 1;
        header.msg_control = ControlBuffer::storage(&raw mut control);
        header.msg_controllen = RECEIVE_BYTES as _;
        let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
        // SAFETY: the header describes buffers that live and are nobody else's.
        let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
        let Ok(received) = usize::try_from(received) else { break };
        let len = control_len(&header).min(RECEIVE_BYTES);
        if let Some(number) = cmsg::read_error(control.prefix(len)) {
            let (remote, error) =
                (remote.read(header.msg_namelen), io::Error::from_raw_os_error(number));
            let quoted = quoted[..received.min(MAX_QUOTED)].to_vec();
            told.push(QueuedError { remote, error, quoted });
        }
    }
    told
}

#[cfg(test)]
mod tests;
