//! The kernel of any system, with what all of them can do.
//!
//! It forwards the same datagrams to the same places, more slowly, and knows less of them: of the TOS
//! byte only the ECN bits, no time to live, no count of what the kernel has lost, and of what ICMP
//! says only what a connected socket is told.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use flowgate_core::LocalSource;
use flowgate_core::config::Source;
use mio::unix::SourceFd;
use mio::{Interest, Registry};

use super::{Kernel, Socket, bound_at_once};
use crate::datapath::token::Token;
use crate::datapath::worker::kernel::WorkerKernel;
use crate::sys::arena::FreeSlots;
use crate::sys::mmsg::{Batch, QueuedError};
use crate::sys::portable::Datagrams;
use crate::sys::{errno, process, sockopt, udp};

/// The kernel, as far as every system has it.
pub struct Portable {
    registry: Registry,
    /// Sockets of flows have lower descriptors than this, as Linux's own.
    descriptors: RawFd,
    /// Where what is made of several pieces is put together.
    scratch: Vec<u8>,
}

/// A UDP socket.
#[derive(Debug)]
pub struct PortableSocket {
    socket: Socket,
    datagrams: Datagrams,
    /// Whether the poll tells of it.
    is_watched: Cell<bool>,
}

impl AsFd for PortableSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Portable {
    /// Takes in a socket, and has the poll tell of it if anything is to be heard by it.
    fn take_in(
        &self,
        socket: Socket,
        peer: Option<SocketAddr>,
        token: Token,
    ) -> io::Result<PortableSocket> {
        let datagrams = Datagrams::new(socket.as_fd(), socket.v6, peer)?;
        let socket = PortableSocket { socket, datagrams, is_watched: Cell::new(false) };
        self.watch(&socket, token, false)?;
        Ok(socket)
    }

    fn watch(&self, socket: &PortableSocket, token: Token, writable: bool) -> io::Result<()> {
        let readable = (!socket.socket.is_deaf).then_some(Interest::READABLE);
        let writable = writable.then_some(Interest::WRITABLE);
        let interest = match (readable, writable) {
            (Some(one), Some(other)) => Some(one | other),
            (one, other) => one.or(other),
        };
        let (fd, token) = (socket.socket.fd.as_raw_fd(), mio::Token::from(token));
        let source = &mut SourceFd(&fd);
        let was_watched = socket.is_watched.replace(interest.is_some());
        match interest {
            Some(interest) if was_watched => self.registry.reregister(source, token, interest),
            Some(interest) => self.registry.register(source, token, interest),
            None if was_watched => self.registry.deregister(source),
            None => Ok(()),
        }
    }
}

impl Kernel for Portable {
    type Socket = PortableSocket;

    fn open_upstream(
        &mut self,
        (backend, v6): (Option<SocketAddr>, bool),
        source: LocalSource,
        ttl: u8,
        receive_buffer: usize,
        token: Token,
    ) -> io::Result<PortableSocket> {
        let (fd, lease) = match backend {
            Some(backend) => udp::leased(backend, source)?,
            None => (udp::unconnected(v6, bound_at_once(source))?, None),
        };
        let socket = Socket { _lease: lease, ..Socket::new(fd, v6) };
        if socket.fd.as_raw_fd() >= self.descriptors {
            return Err(errno::out_of_descriptors());
        }
        let options = socket2::SockRef::from(&socket);
        if receive_buffer > 0 {
            let _ = options.set_recv_buffer_size(receive_buffer);
        }
        if backend.is_none() {
            let _ = options.set_send_buffer_size(super::SHARED_SEND_BUFFER);
        }
        let socket = self.take_in(socket, backend, token)?;
        self.set_ttl(&socket, ttl).map(|()| socket)
    }

    fn renew_source(
        &mut self,
        _socket: &PortableSocket,
        _backend: SocketAddr,
        _source: LocalSource,
    ) -> io::Result<bool> {
        // Not every system lets a socket leave its address.
        Ok(false)
    }

    fn take_errors(&mut self, _socket: &PortableSocket) -> Vec<QueuedError> {
        Vec::new()
    }

    fn local_address(&self, socket: &PortableSocket) -> Option<SocketAddr> {
        socket.socket.local_addr().ok()
    }

    fn receive_drops(&self, _socket: &PortableSocket) -> u32 {
        0
    }

    fn open_egress_socket(
        &mut self,
        v6: bool,
        source: Source,
        token: Token,
    ) -> io::Result<PortableSocket> {
        let source = match source {
            Source::Any => bound_at_once(LocalSource::Any),
            Source::Local { ip, ports } => {
                LocalSource::Local { ip, ports, salt: process::random_seed()? }
            }
            Source::Client => return Err(io::ErrorKind::Unsupported.into()),
        };
        let socket = Socket::deaf(udp::unconnected(v6, source)?, v6);
        sockopt::deafen(socket.as_fd())?;
        let _ = socket2::SockRef::from(&socket).set_send_buffer_size(super::SHARED_SEND_BUFFER);
        self.take_in(socket, None, token)
    }

    fn open_client(
        &mut self,
        _listener: &PortableSocket,
        _client: SocketAddr,
        _token: Token,
    ) -> io::Result<PortableSocket> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn leave_client(&mut self, _socket: &PortableSocket) -> u64 {
        0
    }

    fn most_queued(&self, _socket: &PortableSocket) -> u64 {
        u64::MAX
    }

    fn is_half_full(&self, _socket: &PortableSocket) -> bool {
        false
    }

    fn set_ttl(&mut self, socket: &PortableSocket, ttl: u8) -> io::Result<()> {
        socket.datagrams.set_ttl(socket.as_fd(), ttl)
    }

    fn receive(&mut self, from: &PortableSocket, slots: &mut FreeSlots<'_>) -> io::Result<usize> {
        from.datagrams.receive(from.as_fd(), slots)
    }

    fn send(&mut self, socket: &PortableSocket, batch: Batch<'_>) -> io::Result<usize> {
        socket.datagrams.send(socket.as_fd(), batch, &mut self.scratch)
    }

    fn coalesce(&mut self, _socket: &PortableSocket) {
        // Where the system can, it was asked for at once.
    }

    fn watch_writable(
        &mut self,
        socket: &PortableSocket,
        token: Token,
        watch: bool,
    ) -> io::Result<()> {
        self.watch(socket, token, watch)
    }
}

impl WorkerKernel for Portable {
    fn on(registry: Registry) -> Self {
        Self { registry, descriptors: process::descriptors_for_flows(), scratch: Vec::new() }
    }

    fn listen(&mut self, listener: Socket, token: Token) -> io::Result<PortableSocket> {
        self.take_in(listener, None, token)
    }
}
