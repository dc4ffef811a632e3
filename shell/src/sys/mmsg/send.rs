//! Sending: a batch of messages, each gathered from pieces, in one system call.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use flowgate_core::LocalAddr;

use super::empty_header;
use crate::sys::cmsg::{ControlBuffer, SEND_BYTES};
use crate::sys::message::{Batch, Message};
use crate::sys::mmsg::raw::Headers;
use crate::sys::sockaddr::RawAddr;

/// The most messages that one `sendmmsg(2)` is given; the kernel takes 1,024.
const MAX_MESSAGES: usize = 256;

/// The memory that a `sendmmsg(2)` is written in, kept from one to the next.
#[derive(Default)]
pub struct Sender {
    addresses: Vec<RawAddr>,
    controls: Vec<ControlBuffer<SEND_BYTES>>,
    headers: Vec<libc::mmsghdr>,
    raw: Headers,
}

// SAFETY: the pointers in `headers` and `raw` are written before each call and not used after it.
unsafe impl Send for Sender {}

impl Sender {
    /// Sends a batch from `socket`, without blocking, and returns how many messages the kernel
    /// took: at least one, perhaps not all.
    ///
    /// # Errors
    ///
    /// Those of `sendmmsg(2)` for the first message. One that a later message meets is not
    /// reported: that message is the first of the next call.
    pub fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        v6: bool,
        batch: Batch<'_>,
    ) -> io::Result<usize> {
        let sent = match batch.messages {
            [] => return Ok(0),
            [message] if message.is_plain() && message.pieces.len() == 1 => {
                send_plain(socket, &batch.pieces[message.pieces.start])
            }
            messages => {
                let messages = &messages[..messages.len().min(MAX_MESSAGES)];
                self.write(v6, Batch { messages, ..batch });
                // SAFETY: the headers point to addresses, control messages and pieces that
                // outlive the call, and there are as many as is said.
                unsafe {
                    libc::sendmmsg(
                        socket.as_raw_fd(),
                        self.headers.as_mut_ptr(),
                        self.headers.len() as libc::c_uint,
                        (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
                    )
                }
            }
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Writes the headers of a batch, and all that they point to.
    fn write(&mut self, v6: bool, batch: Batch<'_>) {
        self.addresses.clear();
        self.controls.clear();
        self.headers.clear();
        for message in batch.messages {
            let address = message.destination.map_or(RawAddr::EMPTY, |to| match message.source {
                // A raw socket's protocol has ports, and raw sockets have none.
                Some(_) => RawAddr::new(without_port(to), v6),
                None => RawAddr::new(to, v6),
            });
            self.addresses.push(address);
            self.controls.push(message.control(v6));
        }
        self.raw.write(batch);
        // Pointers are taken only now that nothing is pushed, and so moved, any more. All are made of
        // shared references, of which none takes away from another: a send writes nowhere.
        let addressed = batch.messages.iter().zip(&self.addresses).zip(&self.controls);
        for (index, ((message, address), control)) in addressed.enumerate() {
            let pieces = &batch.pieces[message.pieces.clone()];
            // `IoSlice` has the layout of `iovec`.
            let plain = (pieces.as_ptr().cast_mut().cast(), pieces.len());
            let raw =
                self.raw.pieces(index).map(|pieces| (pieces.as_ptr().cast_mut(), pieces.len()));
            let (msg_iov, msg_iovlen) = raw.unwrap_or(plain);
            let mut header = empty_header();
            header.msg_name = RawAddr::storage(ptr::from_ref(address).cast_mut());
            header.msg_namelen = address.len();
            header.msg_iov = msg_iov;
            header.msg_iovlen = msg_iovlen as _;
            header.msg_controllen = control.as_bytes().len() as _;
            header.msg_control = ControlBuffer::storage(ptr::from_ref(control).cast_mut());
            self.headers.push(libc::mmsghdr { msg_hdr: header, msg_len: 0 });
        }
    }
}

impl Message {
    /// Whether it needs neither an address nor control messages.
    const fn is_plain(&self) -> bool {
        let Self { destination, local, source, ttl, .. } = self;
        let is_as_usual = self.tos == 0 && self.segment == 0 && ttl.is_none();
        is_as_usual && destination.is_none() && local.is_none() && source.is_none()
    }

    fn control(&self, v6_socket: bool) -> ControlBuffer<SEND_BYTES> {
        let mut control = ControlBuffer::new();
        let source = self.source.map(|source| LocalAddr { ip: source.ip(), interface: 0 });
        if let Some(local) = source.or(self.local) {
            control.push_local(local, v6_socket);
        }
        // The family of the datagram, which on a dual-stack socket is the client's.
        let v6 = self.destination.map_or(v6_socket, |to| to.is_ipv6());
        if self.tos != 0 {
            control.push_tos(self.tos, v6);
        }
        if let Some(ttl) = self.ttl {
            control.push_ttl(ttl, v6);
        }
        if self.segment != 0 {
            control.push_segment_size(self.segment);
        }
        control
    }
}

const fn without_port(mut address: SocketAddr) -> SocketAddr {
    address.set_port(0);
    address
}

/// Sends one datagram that needs nothing but its bytes: a cheaper call for the commonest case.
fn send_plain(socket: BorrowedFd<'_>, payload: &[u8]) -> libc::c_int {
    // SAFETY: the payload is readable for its length.
    let sent = unsafe {
        libc::send(
            socket.as_raw_fd(),
            payload.as_ptr().cast(),
            payload.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    // In messages, as `sendmmsg` counts: a datagram goes as a whole or not at all.
    if sent < 0 { -1 } else { 1 }
}
