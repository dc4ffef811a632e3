//! The kernel, as far as the data path uses it: behind a trait, so that simulations can stand in
//! for it and do everything a kernel may do, partial work and errors included.

mod portable;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use flowgate_core::config::Source;
use flowgate_core::{BackendId, FlowId, LocalSource};
use mio::unix::SourceFd;
use mio::{Interest, Registry};

use crate::datapath::fast_path::{Activity, Addresses, Offloads};
use crate::datapath::token::Token;
use crate::sys::arena::FreeSlots;
use crate::sys::mmsg::{self, Batch, QueuedError, Receiver, Sender};
use crate::sys::neighbours::SilentNeighbours;
use crate::sys::ports::PortLease;
use crate::sys::udp;
use crate::sys::{errno, process, sockopt};

pub use portable::{Portable, PortableSocket};

/// The system calls of the data path. None of them blocks.
pub trait Kernel {
    /// An open socket, closed when dropped.
    type Socket;

    /// Opens a socket towards backends, whose readiness is told under `token`, and which sends from
    /// the given source with the given time to live or hop limit. It is connected to one, or hears
    /// everybody and is of IPv4 or IPv6. Its receive buffer is to be of this many bytes, or of the
    /// usual size where that is 0.
    ///
    /// # Errors
    ///
    /// Those of `socket(2)`, `bind(2)` and `connect(2)`: out of descriptors, ports or memory, no
    /// such source, or no route.
    fn open_upstream(
        &mut self,
        connection: (Option<SocketAddr>, bool),
        source: LocalSource,
        ttl: u8,
        receive_buffer: usize,
        token: Token,
    ) -> io::Result<Self::Socket>;

    /// Has an upstream socket send from another address if it has none, or if that is not the one
    /// that the kernel would choose now. Says whether that was so. What has arrived stays to be
    /// read.
    ///
    /// # Errors
    ///
    /// As for [`open_upstream`](Self::open_upstream). The socket may be connected to nobody then.
    fn renew_source(
        &mut self,
        socket: &Self::Socket,
        backend: SocketAddr,
        source: LocalSource,
    ) -> io::Result<bool>;

    /// Takes what waits in a socket's error queue, so that it takes no room of datagrams: what the
    /// network said, oldest first. That is told by no other call then.
    fn take_errors(&mut self, socket: &Self::Socket) -> Vec<QueuedError>;

    /// The address and port that a socket sends from, where that can be told.
    fn local_address(&self, _socket: &Self::Socket) -> Option<SocketAddr> {
        None
    }

    /// How many datagrams a socket has lost, since its receive buffer was full.
    fn receive_drops(&self, socket: &Self::Socket) -> u32;

    /// Opens a socket of IPv4 or IPv6 that is connected to nobody and hears nobody. It sends from
    /// an address and port that the source allows. Only of its writability anything is told under
    /// `token`, and only while that is watched.
    ///
    /// # Errors
    ///
    /// Those of `socket(2)` and `bind(2)`: out of descriptors, ports or memory, no such family or
    /// no such source.
    fn open_egress_socket(
        &mut self,
        v6: bool,
        source: Source,
        token: Token,
    ) -> io::Result<Self::Socket>;

    /// Opens a socket on a listener's address that hears one client alone, whose readiness is told
    /// under `token`.
    ///
    /// # Errors
    ///
    /// Those of `socket(2)`, `bind(2)` and `connect(2)`: out of descriptors or memory, or more
    /// clients than the kernel has room for.
    fn open_client(
        &mut self,
        listener: &Self::Socket,
        client: SocketAddr,
        token: Token,
    ) -> io::Result<Self::Socket>;

    /// Has a client's own socket hear nothing more. What has arrived stays to be read. Says how many
    /// datagrams it has lost since its receive buffer was full.
    fn leave_client(&mut self, socket: &Self::Socket) -> u64;

    /// At most how many bursts wait to be read.
    fn most_queued(&self, socket: &Self::Socket) -> u64;

    /// Whether so much waits to be read that datagrams may soon be lost.
    fn is_half_full(&self, socket: &Self::Socket) -> bool;

    /// Makes a socket send with another time to live or hop limit.
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    fn set_ttl(&mut self, socket: &Self::Socket, ttl: u8) -> io::Result<()>;

    /// Receives into free slots and says how many it filled. Fewer than there are means that the
    /// socket is drained, unless it has an error pending.
    ///
    /// # Errors
    ///
    /// Those of `recvmmsg(2)`: `WouldBlock` where nothing waits.
    fn receive(&mut self, socket: &Self::Socket, slots: &mut FreeSlots<'_>) -> io::Result<usize>;

    /// Sends messages in order and says how many the kernel took.
    ///
    /// # Errors
    ///
    /// Those of `sendmmsg(2)` for the first message; none was sent then.
    fn send(&mut self, socket: &Self::Socket, batch: Batch<'_>) -> io::Result<usize>;

    /// Asks for what arrives to be joined into bursts from now on (UDP GRO). A hint: where the
    /// kernel cannot, datagrams come one by one.
    fn coalesce(&mut self, socket: &Self::Socket);

    /// Also tells, or no longer tells, under `token` when the socket can be written to.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl(2)`.
    fn watch_writable(
        &mut self,
        socket: &Self::Socket,
        token: Token,
        watch: bool,
    ) -> io::Result<()>;

    /// Where more than half of a socket's send buffer is full: finds out which neighbours do not say
    /// what their hardware address is, so that what was sent to them waits there. Says whether there
    /// are any.
    fn look_for_silent(&mut self, _socket: &Self::Socket) -> bool {
        false
    }

    /// Whether nothing is to be sent to a host now, since it would wait so.
    fn is_silent(&self, _host: IpAddr) -> bool {
        false
    }

    /// Lets the kernel forward a flow's datagrams past the sockets, if it can.
    fn offload(&mut self, _offer: &Offer<'_, Self::Socket>) {}

    /// Has a flow's datagrams come by the sockets again, and says what the kernel has forwarded since
    /// that was said last. `None` where it does not forward the flow.
    fn recall(&mut self, _shard: u32, _flow: FlowId) -> Option<Activity> {
        None
    }

    /// Has the datagrams of all flows of a backend come by the sockets, before the next packet.
    fn recall_backend(&mut self, _shard: u32, _backend: BackendId) {}

    /// What the kernel has forwarded of a flow since that was said last. `None` where it does not
    /// forward the flow.
    fn activity(&mut self, _shard: u32, _flow: FlowId) -> Option<Activity> {
        None
    }
}

/// A flow that the kernel may forward past the sockets.
#[derive(Debug)]
pub struct Offer<'a, S> {
    /// The shard that has it.
    pub shard: u32,
    /// The flow.
    pub flow: FlowId,
    /// Its backend.
    pub backend: BackendId,
    /// Its client.
    pub client: SocketAddr,
    /// The address that the client calls, where the listener is on a wildcard.
    pub called: Option<IpAddr>,
    /// The backend's address.
    pub address: SocketAddr,
    /// The listener's socket.
    pub listener: &'a S,
    /// The flow's own.
    pub upstream: &'a S,
    /// The longest payload that goes either way.
    pub max_datagram_size: u16,
}

/// The send buffer of a socket by which many clients' datagrams leave, in bytes.
const SHARED_SEND_BUFFER: usize = 4 << 20;

/// The real one.
pub struct Linux {
    registry: Registry,
    receiver: Receiver,
    sender: Sender,
    /// Whether buffers may be larger than the system's limit, as far as is known.
    may_force_buffers: bool,
    /// Sockets of flows have lower descriptors than this: those above are for whatever else the
    /// process opens, so that operators come in however many flows there are.
    descriptors: RawFd,
    /// Those who hold up a listener's send buffer.
    silent: SilentNeighbours,
    /// The flows that the kernel forwards past the sockets, where it may.
    pub fast_path: Option<Box<Offloads>>,
}

/// A UDP socket, and whether it is of IPv6.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    v6: bool,
    /// Whether what arrives at it is thrown away.
    is_deaf: bool,
    /// Its port, where that is one of a range. Declared last: it outlives the socket.
    _lease: Option<PortLease>,
}

impl Linux {
    /// Registers sockets with `registry`.
    pub fn new(registry: Registry) -> Self {
        let (receiver, sender) = Default::default();
        let descriptors = process::descriptors_for_flows();
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

    /// Leaves the last descriptors to others: the kernel always gives the lowest one that is free.
    ///
    /// # Errors
    ///
    /// `EMFILE` if the socket has one of the last.
    fn leave_descriptors(&self, socket: &Socket) -> io::Result<()> {
        let is_one_of_the_last = socket.fd.as_raw_fd() >= self.descriptors;
        if is_one_of_the_last { Err(errno::out_of_descriptors()) } else { Ok(()) }
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
    /// Takes over a bound or connected UDP socket.
    pub const fn new(fd: OwnedFd, v6: bool) -> Self {
        Self { fd, v6, is_deaf: false, _lease: None }
    }

    /// Takes over an upstream socket of another process.
    pub fn adopt(
        fd: OwnedFd,
        (backend, v6): (Option<SocketAddr>, bool),
        source: LocalSource,
    ) -> Self {
        let lease = backend.and_then(|backend| udp::adopt(fd.as_fd(), backend, source));
        Self { _lease: lease, ..Self::new(fd, v6) }
    }

    /// Takes over a UDP socket at which whatever arrives is thrown away.
    pub const fn deaf(fd: OwnedFd, v6: bool) -> Self {
        Self { fd, v6, is_deaf: true, _lease: None }
    }

    /// Whether what arrives at it is thrown away, or is another's to read.
    pub const fn is_deaf(&self) -> bool {
        self.is_deaf
    }

    /// Whether it is of IPv6.
    pub const fn is_v6(&self) -> bool {
        self.v6
    }

    /// What the poll is to tell of it when nothing waits to be sent. Of a deaf socket that is
    /// nothing: it never has urgent data.
    const fn interest(&self) -> Interest {
        if self.is_deaf { Interest::PRIORITY } else { Interest::READABLE }
    }

    /// The local address the kernel gave it.
    ///
    /// # Errors
    ///
    /// Those of `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let address = socket2::SockRef::from(&self.fd).local_addr()?;
        address.as_socket().ok_or_else(|| io::Error::other("not an IP socket"))
    }
}

/// What a socket is bound to that is connected to nobody: one that found no port at its first send
/// would never have one.
const fn bound_at_once(source: LocalSource) -> LocalSource {
    match source {
        LocalSource::Any => LocalSource::Local { ip: None, ports: None, salt: 0 },
        source => source,
    }
}

/// Asks for a send buffer for many clients' datagrams.
fn set_send_buffer(socket: &Socket) {
    sockopt::ask_send_buffer(socket.as_fd(), SHARED_SEND_BUFFER);
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
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
        let (fd, lease) = match backend {
            Some(backend) => udp::leased(backend, source)?,
            None => (udp::unconnected(v6, bound_at_once(source))?, None),
        };
        let socket = Socket { _lease: lease, ..Socket::new(fd, v6) };
        self.leave_descriptors(&socket)?;
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

    fn open_egress_socket(&mut self, v6: bool, source: Source, token: Token) -> io::Result<Socket> {
        let unconnected =
            |ip, ports, salt| udp::unconnected(v6, LocalSource::Local { ip, ports, salt });
        let fd = match source {
            // Bound at once: what found no port at its first send would never have one.
            Source::Any => unconnected(None, None, 0)?,
            Source::Local { ip, ports } => unconnected(ip, ports, process::random_seed()?)?,
            Source::Client => udp::raw(v6)?,
        };
        let socket = Socket::deaf(fd, v6);
        sockopt::deafen(socket.as_fd())?;
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
        let socket = Socket::new(fd, true);
        self.leave_descriptors(&socket)?;
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
