//! The kernel, as far as the data path uses it: behind a trait, so that simulations can stand in
//! for it and do everything a kernel may do, partial work and errors included.

#[cfg(target_os = "linux")]
mod linux;
mod portable;

use std::io;
use std::net::{IpAddr, SocketAddr};

use flowgate_core::config::Source;
use flowgate_core::{BackendId, FlowId, LocalSource};

use crate::datapath::fast_path::Activity;
use crate::datapath::token::Token;
use crate::sys::arena::FreeSlots;
use crate::sys::fd::{AsFd, OwnedFd, has_socket};
use crate::sys::message::{Batch, QueuedError};
use crate::sys::ports::PortLease;
use crate::sys::process::{self, DescriptorLimit};
use crate::sys::udp;

#[cfg(target_os = "linux")]
pub use linux::{Linux, Linux as Native};
#[cfg(not(target_os = "linux"))]
pub use portable::Portable as Native;
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
        source: &Source,
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

    /// Has what a socket sends leave whole or not at all (DF), or allows fragments again. A hint, where
    /// the system has no such thing.
    fn set_dont_fragment(&mut self, _socket: &Self::Socket, _never: bool) {}

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

/// A UDP socket, and whether it is of IPv6.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    v6: bool,
    /// Whether what arrives at it is thrown away.
    is_send_only: bool,
    /// Its port, where that is one of a range. Declared last: it outlives the socket.
    lease: Option<PortLease>,
}

has_socket!(Socket, fd);

impl Socket {
    /// Takes over a bound or connected UDP socket.
    pub const fn new(fd: OwnedFd, v6: bool) -> Self {
        Self { fd, v6, is_send_only: false, lease: None }
    }

    /// Takes over an upstream socket of another process.
    pub fn adopt(
        fd: OwnedFd,
        (backend, v6): (Option<SocketAddr>, bool),
        source: LocalSource,
    ) -> Self {
        let lease = backend.and_then(|backend| udp::adopt(fd.as_fd(), backend, source));
        Self { lease, ..Self::new(fd, v6) }
    }

    /// Takes over a UDP socket at which whatever arrives is thrown away.
    pub const fn send_only(fd: OwnedFd, v6: bool) -> Self {
        Self { fd, v6, is_send_only: true, lease: None }
    }

    /// Whether what arrives at it is thrown away, or is another's to read.
    pub const fn is_send_only(&self) -> bool {
        self.is_send_only
    }

    /// Whether it is of IPv6.
    pub const fn is_v6(&self) -> bool {
        self.v6
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

/// Opens a socket towards backends, connected to one or to nobody, unless it would have one of the last
/// descriptors.
fn open_towards(
    (backend, v6): (Option<SocketAddr>, bool),
    source: LocalSource,
    descriptors: DescriptorLimit,
) -> io::Result<Socket> {
    let (fd, lease) = match backend {
        Some(backend) => udp::leased(backend, source)?,
        None => (udp::unconnected(v6, bound_at_once(source))?, None),
    };
    descriptors.check(fd.as_fd())?;
    Ok(Socket { lease, ..Socket::new(fd, v6) })
}

/// A socket that is connected to nobody and bound to what a source allows, if it is not the clients'
/// own.
fn unconnected(v6: bool, source: &Source) -> io::Result<OwnedFd> {
    if *source == Source::Any {
        return udp::unconnected(v6, bound_at_once(LocalSource::Any));
    }
    let seed = process::random_seed()?;
    let count = source.of_family(v6).count().max(1);
    let drawn = source.of_family(v6).nth(seed as usize % count).ok_or(udp::NoSource)?;
    udp::open_from(source, (drawn.with_salt(seed), v6), |source| udp::unconnected(v6, source))
}

/// What a socket is bound to that is connected to nobody: one that found no port at its first send
/// would never have one.
const fn bound_at_once(source: LocalSource) -> LocalSource {
    match source {
        LocalSource::Any => LocalSource::Local { ip: None, ports: None, salt: 0 },
        source => source,
    }
}
