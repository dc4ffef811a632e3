//! A socket as a poll of any system tells of it.

use std::cell::{Cell, RefCell};
use std::io;
use std::mem;
use std::net::{SocketAddr, UdpSocket};

use mio::{Interest, Registry, Token};

use crate::sys::fd::{AsFd, BorrowedFd, OwnedFd, has_socket};

/// A UDP socket that a poll may tell of.
///
/// On Windows a poll that has told of a socket tells no more of it until a call found that it would
/// block, which it has to hear of: so each goes through [`call`](Self::call).
#[derive(Debug)]
pub struct Pollable {
    /// What `socket` owns, for as long as this lives.
    borrowed: BorrowedFd<'static>,
    socket: RefCell<mio::net::UdpSocket>,
    is_watched: Cell<bool>,
}

has_socket!(Pollable, borrowed);

impl From<OwnedFd> for Pollable {
    fn from(socket: OwnedFd) -> Self {
        // SAFETY: the socket is owned by the field beside it, which nothing replaces; no borrow is
        // given out that outlives this.
        let borrowed =
            unsafe { mem::transmute::<BorrowedFd<'_>, BorrowedFd<'static>>(socket.as_fd()) };
        let socket = mio::net::UdpSocket::from_std(UdpSocket::from(socket));
        Self { borrowed, socket: RefCell::new(socket), is_watched: Cell::new(false) }
    }
}

impl Pollable {
    /// Has the poll of `registry` tell under `token` of what is of interest, and of nothing else.
    ///
    /// # Errors
    ///
    /// Those of the poll: out of memory.
    pub fn watch(
        &self,
        registry: &Registry,
        token: Token,
        interest: Option<Interest>,
    ) -> io::Result<()> {
        let socket = &mut *self.socket.borrow_mut();
        let was_watched = self.is_watched.replace(interest.is_some());
        match interest {
            Some(interest) if was_watched => registry.reregister(socket, token, interest),
            Some(interest) => registry.register(socket, token, interest),
            None if was_watched => registry.deregister(socket),
            None => Ok(()),
        }
    }

    /// Makes a call that does not block.
    ///
    /// # Errors
    ///
    /// Those of the call.
    pub fn call<T>(&self, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.socket.borrow().try_io(call)
    }

    /// Receives one datagram, and says how long it is and who has sent it.
    ///
    /// # Errors
    ///
    /// Those of `recvfrom(2)`.
    pub fn receive_from(&self, payload: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.socket.borrow().recv_from(payload)
    }

    /// Sends one datagram. A socket that is connected is to name whom it is connected to.
    ///
    /// # Errors
    ///
    /// Those of `sendto(2)`.
    pub fn send_to(&self, payload: &[u8], to: SocketAddr) -> io::Result<()> {
        self.socket.borrow().send_to(payload, to).map(drop)
    }
}
