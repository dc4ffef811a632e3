//! Linux's own kernel: `recvmmsg(2)`, `sendmmsg(2)`, and whatever else it has that others do not.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use flowgate_core::config::Source;
use flowgate_core::{BackendId, FlowId, LocalSource};
use mio::unix::SourceFd;
use mio::{Interest, Registry};

use super::{Kernel, Offer, SHARED_SEND_BUFFER, Socket, open_towards, unconnected};
use crate::datapath::fast_path::{Activity, Addresses, Offloads};
use crate::datapath::token::Token;
use crate::sys::arena::FreeSlots;
use crate::sys::message::{Batch, QueuedError};
use crate::sys::mmsg::{self, Receiver, Sender};
use crate::sys::neighbours::SilentNeighbours;
use crate::sys::process::DescriptorLimit;
use crate::sys::{sockopt, udp};

/// Linux, with all that it has for it.
pub struct Linux {
    registry: Registry,
    receiver: Receiver,
    sender: Sender,
    /// Whether buffers may be larger than the system's limit, as far as is known.
    may_force_buffers: bool,
    descriptors: DescriptorLimit,
    /// Those who hold up a listener's send buffer.
    silent: SilentNeighbours,
    /// The flows that the kernel forwards past the sockets, where it may.
    pub fast_path: Option<Box<Offloads>>,
}

impl Linux {
    /// Registers sockets with `registry`.
    pub fn new(registry: Registry) -> Self {
        let (receiver, sender) = Default::default();
        let descriptors = DescriptorLimit::of_this_process();
        Self {
            registry,
            receiver,
            sender,
            may_force_buffers: true,
            descriptors,
            silent: SilentNeighbours::default(),
            fast_path: None,
        }
    }

    fn set_receive_buffer(&mut self, socket: &Socket, bytes: usize) {
        self.may_force_buffers =
            self.may_force_buffers && sockopt::force_receive_buffer(socket.as_fd(), bytes).is_ok();
        if !self.may_force_buffers {
            let _ = socket2::SockRef::from(socket).set_recv_buffer_size(bytes);
        }
    }

    /// Has an upstream socket send from another address if it has sent from `gone`, which is no
    /// longer one of this host's. If there is none now, its next send finds out whether there is.
    pub fn leave_source(&self, socket: &Socket, gone: IpAddr, backend: SocketAddr) {
        if socket.local_addr().is_ok_and(|local| local.ip() == gone) {
            let _ = udp::reconnect(socket.as_fd(), backend);
        }
    }

    /// Asks to be told under `token` of a socket that comes from somewhere else, or again of one
    /// that was watched before: when it can be read from, and if `writable`, when it can be written
    /// to. What it is ready for already is told too.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl(2)`.
    pub fn watch(&self, socket: &Socket, token: Token, writable: bool) -> io::Result<()> {
        let usual = socket.interest();
        let interest = if writable { usual | Interest::WRITABLE } else { usual };
        let (fd, token) = (socket.fd.as_raw_fd(), mio::Token::from(token));
        match self.registry.register(&mut SourceFd(&fd), token, interest) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.registry.reregister(&mut SourceFd(&fd), token, interest)
            }
            outcome => outcome,
        }
    }
}

impl Socket {
    /// What the poll is to tell of it when nothing waits to be sent. Of a send-only socket that is
    /// nothing: it never has urgent data.
    const fn interest(&self) -> Interest {
        if self.is_send_only { Interest::PRIORITY } else { Interest::READABLE }
    }
}

/// Asks for a send buffer for many clients' datagrams.
fn set_send_buffer(socket: &Socket) {
    sockopt::ask_send_buffer(socket.as_fd(), SHARED_SEND_BUFFER);
}

impl Kernel for Linux {
    type Socket = Socket;

    fn open_upstream(
        &mut self,
        (backend, v6): (Option<SocketAddr>, bool),
        source: LocalSource,
        ttl: u8,
        receive_buffer: usize,
        token: Token,
    ) -> io::Result<Socket> {
        let socket = open_towards((backend, v6), source, self.descriptors)?;
        sockopt::set_ttl(socket.as_fd(), socket.v6, ttl)?;
        // Without them a reply still arrives, with its TOS byte unknown, or is lost uncounted, and
        // of what ICMP says less is heard.
        let _ = sockopt::set_receive_tos(socket.as_fd(), socket.v6);
        let _ = sockopt::set_receive_drops(socket.as_fd());
        let _ = sockopt::set_receive_errors(socket.as_fd(), socket.v6);
        if receive_buffer > 0 {
            self.set_receive_buffer(&socket, receive_buffer);
        }
        if backend.is_none() {
            set_send_buffer(&socket);
        }
        let fd = socket.fd.as_raw_fd();
        self.registry.register(&mut SourceFd(&fd), token.into(), Interest::READABLE)?;
        Ok(socket)
    }

    fn open_egress_socket(
        &mut self,
        v6: bool,
        source: &Source,
        token: Token,
    ) -> io::Result<Socket> {
        let fd = match source {
            Source::Client => udp::raw(v6)?,
            Source::Any | Source::Local(_) => unconnected(v6, source)?,
        };
        let socket = Socket::send_only(fd, v6);
        sockopt::discard_received(socket.as_fd())?;
        set_send_buffer(&socket);
        let fd = socket.fd.as_raw_fd();
        self.registry.register(&mut SourceFd(&fd), token.into(), socket.interest())?;
        Ok(socket)
    }

    fn renew_source(
        &mut self,
        socket: &Socket,
        backend: SocketAddr,
        source: LocalSource,
    ) -> io::Result<bool> {
        let fresh = Socket::new(udp::connected(backend, source)?, socket.v6);
        if socket.local_addr()?.ip() == fresh.local_addr()?.ip() {
            return Ok(false);
        }
        udp::reconnect(socket.as_fd(), backend)?;
        Ok(true)
    }

    fn take_errors(&mut self, socket: &Socket) -> Vec<QueuedError> {
        mmsg::take_errors(socket.as_fd())
    }

    fn local_address(&self, socket: &Socket) -> Option<SocketAddr> {
        socket2::SockRef::from(socket).local_addr().ok()?.as_socket()
    }

    fn receive_drops(&self, socket: &Socket) -> u32 {
        // Kernels before 4.12 do not tell.
        sockopt::receive_drops(socket.as_fd()).unwrap_or(0)
    }

    fn open_client(
        &mut self,
        listener: &Socket,
        client: SocketAddr,
        token: Token,
    ) -> io::Result<Socket> {
        let fd = udp::over_listener(listener.local_addr()?, client)?;
        // A client is to lose nothing by having a socket of its own. The kernel tells the double of
        // what it was asked for.
        let buffer = socket2::SockRef::from(listener).recv_buffer_size()? / 2;
        sockopt::ask_receive_buffer(fd.as_fd(), buffer);
        self.descriptors.check(fd.as_fd())?;
        let socket = Socket::new(fd, true);
        let source = socket.fd.as_raw_fd();
        self.registry.register(&mut SourceFd(&source), token.into(), Interest::READABLE)?;
        Ok(socket)
    }

    fn leave_client(&mut self, socket: &Socket) -> u64 {
        // It is read to its end all the same.
        let _ = self.registry.deregister(&mut SourceFd(&socket.fd.as_raw_fd()));
        // If this fails, the last datagrams may be lost when it closes.
        let _ = udp::disconnect(socket.as_fd());
        sockopt::receive_drops(socket.as_fd()).map_or(0, u64::from)
    }

    fn most_queued(&self, socket: &Socket) -> u64 {
        // Where the kernel does not tell, until nothing is left.
        sockopt::most_queued(socket.as_fd()).map_or(u64::MAX, u64::from)
    }

    fn is_half_full(&self, socket: &Socket) -> bool {
        // Kernels before 4.12 do not tell.
        sockopt::is_half_full(socket.as_fd()).unwrap_or(false)
    }

    fn set_dont_fragment(&mut self, socket: &Socket, never: bool) {
        // A raw socket sends headers that are made here.
        let _ = sockopt::set_dont_fragment(socket.as_fd(), socket.v6, never);
    }

    fn set_ttl(&mut self, socket: &Socket, ttl: u8) -> io::Result<()> {
        sockopt::set_ttl(socket.as_fd(), socket.v6, ttl)
    }

    fn receive(&mut self, socket: &Socket, slots: &mut FreeSlots<'_>) -> io::Result<usize> {
        self.receiver.receive(socket.as_fd(), slots)
    }

    fn send(&mut self, socket: &Socket, batch: Batch<'_>) -> io::Result<usize> {
        self.sender.send(socket.as_fd(), socket.v6, batch)
    }

    fn coalesce(&mut self, socket: &Socket) {
        // Kernels before 5.0 have no GRO.
        let _ = sockopt::set_gro(socket.as_fd());
    }

    fn watch_writable(&mut self, socket: &Socket, token: Token, watch: bool) -> io::Result<()> {
        let usual = socket.interest();
        let interest = if watch { usual | Interest::WRITABLE } else { usual };
        self.registry.reregister(&mut SourceFd(&socket.fd.as_raw_fd()), token.into(), interest)
    }

    fn look_for_silent(&mut self, socket: &Socket) -> bool {
        self.silent.look(socket.as_fd())
    }

    #[inline]
    fn is_silent(&self, host: IpAddr) -> bool {
        self.silent.has(host)
    }

    fn offload(&mut self, offer: &Offer<'_, Socket>) {
        let Some(fast_path) = &mut self.fast_path else { return };
        let (Ok(called), Ok(ours)) = (offer.listener.local_addr(), offer.upstream.local_addr())
        else {
            return;
        };
        let called = SocketAddr::new(offer.called.unwrap_or(called.ip()), called.port());
        let (client, backend) = (offer.client, offer.address);
        let addresses = Addresses { client, called, ours, backend };
        let key = (offer.shard, offer.flow);
        fast_path.offload(key, offer.backend, &addresses, offer.max_datagram_size);
    }

    fn recall(&mut self, shard: u32, flow: FlowId) -> Option<Activity> {
        self.fast_path.as_mut()?.recall((shard, flow))
    }

    fn recall_backend(&mut self, shard: u32, backend: BackendId) {
        if let Some(fast_path) = &self.fast_path {
            fast_path.recall_backend(shard, backend);
        }
    }

    fn activity(&mut self, shard: u32, flow: FlowId) -> Option<Activity> {
        self.fast_path.as_mut()?.activity((shard, flow))
    }
}
