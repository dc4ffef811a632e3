//! The kernel of any system, with what all of them can do.
//!
//! It forwards the same datagrams to the same places, more slowly, and knows less of them: of the TOS
//! byte only the ECN bits, no time to live, no count of what the kernel has lost, and of what ICMP
//! says only what a connected socket is told.

use std::io;
use std::net::SocketAddr;

use flowgate_core::LocalSource;
use flowgate_core::config::Source;
use mio::{Interest, Registry};

use super::{Kernel, SHARED_SEND_BUFFER, Socket, open_towards, unconnected};
use crate::datapath::token::Token;
use crate::datapath::worker::HandsOver;
use crate::datapath::worker::kernel::WorkerKernel;
use crate::sys::arena::FreeSlots;
use crate::sys::fd::{AsFd, has_socket};
use crate::sys::message::{Batch, QueuedError};
use crate::sys::portable::{Calls, Datagrams};
use crate::sys::ports::PortLease;
use crate::sys::process::DescriptorLimit;
use crate::sys::sockopt;

/// The kernel, as far as every system has it.
pub struct Portable {
    registry: Registry,
    descriptors: DescriptorLimit,
    /// What all sockets share, once there is one.
    calls: Option<Calls>,
}

/// A UDP socket.
#[derive(Debug)]
pub struct PortableSocket {
    datagrams: Datagrams,
    is_send_only: bool,
    /// Declared last: it outlives the socket.
    _lease: Option<PortLease>,
}

has_socket!(PortableSocket, datagrams);

impl Portable {
    /// Takes in a socket, and has the poll tell of it if anything is to be heard by it.
    fn take_in(
        &mut self,
        socket: Socket,
        peer: Option<SocketAddr>,
        token: Token,
    ) -> io::Result<PortableSocket> {
        if self.calls.is_none() {
            self.calls = Some(Calls::new()?);
        }
        let Socket { fd, v6, is_send_only, lease } = socket;
        let datagrams = Datagrams::new(fd, v6, peer)?;
        let socket = PortableSocket { datagrams, is_send_only, _lease: lease };
        self.watch(&socket, token, false)?;
        Ok(socket)
    }

    fn watch(&self, socket: &PortableSocket, token: Token, writable: bool) -> io::Result<()> {
        let readable = (!socket.is_send_only).then_some(Interest::READABLE);
        let writable = writable.then_some(Interest::WRITABLE);
        let interest = match (readable, writable) {
            (Some(one), Some(other)) => Some(one | other),
            (one, other) => one.or(other),
        };
        socket.datagrams.socket().watch(&self.registry, token.into(), interest)
    }
}

/// What is said where a socket is used that was never taken in.
fn not_taken_in() -> io::Error {
    io::ErrorKind::NotConnected.into()
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
        let socket = open_towards((backend, v6), source, self.descriptors)?;
        let options = socket2::SockRef::from(&socket);
        if receive_buffer > 0 {
            let _ = options.set_recv_buffer_size(receive_buffer);
        }
        if backend.is_none() {
            let _ = options.set_send_buffer_size(SHARED_SEND_BUFFER);
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
        socket2::SockRef::from(socket).local_addr().ok()?.as_socket()
    }

    fn receive_drops(&self, _socket: &PortableSocket) -> u32 {
        0
    }

    fn open_egress_socket(
        &mut self,
        v6: bool,
        source: &Source,
        token: Token,
    ) -> io::Result<PortableSocket> {
        let fd = match source {
            Source::Client => return Err(io::ErrorKind::Unsupported.into()),
            Source::Any | Source::Local(_) => unconnected(v6, source)?,
        };
        let socket = Socket::send_only(fd, v6);
        sockopt::discard_received(socket.as_fd())?;
        let _ = socket2::SockRef::from(&socket).set_send_buffer_size(SHARED_SEND_BUFFER);
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

    fn set_dont_fragment(&mut self, socket: &PortableSocket, never: bool) {
        let _ = sockopt::set_dont_fragment(socket.as_fd(), socket.datagrams.is_v6(), never);
    }

    fn set_ttl(&mut self, socket: &PortableSocket, ttl: u8) -> io::Result<()> {
        socket.datagrams.set_ttl(ttl)
    }

    fn receive(&mut self, from: &PortableSocket, slots: &mut FreeSlots<'_>) -> io::Result<usize> {
        let calls = self.calls.as_ref().ok_or_else(not_taken_in)?;
        from.datagrams.receive(calls, slots)
    }

    fn send(&mut self, socket: &PortableSocket, batch: Batch<'_>) -> io::Result<usize> {
        let calls = self.calls.as_mut().ok_or_else(not_taken_in)?;
        socket.datagrams.send(calls, batch)
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

impl HandsOver for Portable {}

impl WorkerKernel for Portable {
    fn on(registry: Registry) -> Self {
        Self { registry, descriptors: DescriptorLimit::of_this_process(), calls: None }
    }

    fn listen(&mut self, listener: Socket, token: Token) -> io::Result<PortableSocket> {
        self.take_in(listener, None, token)
    }
}
