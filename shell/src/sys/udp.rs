//! UDP sockets as the data path opens them: as few system calls as can be.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use flowgate_core::{LocalSource, is_nobodys};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use super::ports::{self, PortLease};
use super::sockopt;

/// How many ports of a range are tried for one socket. A range that is all taken costs no more than
/// that.
const MOST_TRIES: usize = 128;

/// The source that is configured cannot be had for a socket: the address is not this host's, or of
/// another family than the peer.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the source is not an address of this host, or of another family than the backend")]
pub struct NoSource;

impl From<NoSource> for io::Error {
    fn from(no_source: NoSource) -> Self {
        Self::new(io::ErrorKind::AddrNotAvailable, no_source)
    }
}

/// Opens a non-blocking socket that is bound to `source` and connected to `peer`. From the source
/// that the kernel chooses it takes two system calls.
///
/// # Errors
///
/// Those of `socket(2)`, `bind(2)` and `connect(2)`; [`NoSource`] inside one that has no number.
pub fn connected(peer: SocketAddr, source: LocalSource) -> io::Result<OwnedFd> {
    leased(peer, source).map(|(socket, _)| socket)
}

/// The same with a lease, where its port is one of a range, which others have for other peers.
///
/// # Errors
///
/// As for [`connected`].
pub fn leased(peer: SocketAddr, source: LocalSource) -> io::Result<(OwnedFd, Option<PortLease>)> {
    let v6 = peer.is_ipv6();
    let (socket, lease) = bound(v6, source, Some(peer))?;
    connect(socket.as_fd(), peer, v6)?;
    Ok((socket, lease))
}

/// Notes the port of a socket that another process has opened as [`leased`] does.
pub fn adopt(socket: BorrowedFd<'_>, peer: SocketAddr, source: LocalSource) -> Option<PortLease> {
    let LocalSource::Local { ip, ports: Some(_), .. } = source else { return None };
    let port = SockRef::from(&socket).local_addr().ok()?.as_socket()?.port();
    let local = SocketAddr::new(ip.unwrap_or(unspecified(peer.is_ipv6())), port);
    ports::adopt(socket, local, peer).ok()
}

/// Opens a non-blocking socket of IPv4 or IPv6 that is bound to `source`.
///
/// # Errors
///
/// Those of `socket(2)` and `bind(2)`; [`NoSource`] inside one that has no number.
pub fn unconnected(v6: bool, source: LocalSource) -> io::Result<OwnedFd> {
    bound(v6, source, None).map(|(socket, _)| socket)
}

/// Opens a non-blocking raw socket that sends UDP datagrams from whatever address and port each of them
/// has, and hears nothing.
///
/// # Errors
///
/// Those of `socket(2)` and `bind(2)`: it needs CAP_NET_RAW.
pub fn raw(v6: bool) -> io::Result<OwnedFd> {
    let socket = open_as(v6, Type::RAW, Some(Protocol::UDP))?;
    sockopt::set_transparent(socket.as_fd(), v6)?;
    // It would get a copy of each datagram that comes to this host, but for those that are for
    // another address than its own. Nobody sends to these: one of this host that nobody has heard
    // of, and one that is for throwing away (RFC 6666).
    let nobody = if v6 {
        IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1))
    } else {
        IpAddr::V4(Ipv4Addr::new(127, 255, 255, 254))
    };
    bind(socket.as_fd(), SocketAddr::new(nobody, 0), v6)?;
    Ok(socket)
}

fn bound(
    v6: bool,
    source: LocalSource,
    peer: Option<SocketAddr>,
) -> io::Result<(OwnedFd, Option<PortLease>)> {
    let socket = open(v6)?;
    let mut lease = None;
    match source {
        LocalSource::Any => {}
        LocalSource::Local { ip, ports, salt } => {
            if v6 {
                // A port that is taken in IPv4 only is free here.
                sockopt::set_only_v6(socket.as_fd(), true)?;
            }
            let ip = ip.unwrap_or(unspecified(v6));
            match ports {
                None => bind_source(socket.as_fd(), SocketAddr::new(ip, 0), v6)?,
                Some(ports) => {
                    let mut ports = ports.shuffled(salt).take(MOST_TRIES);
                    lease = bind_first(socket.as_fd(), ip, &mut ports, peer, v6)?;
                }
            }
        }
        // In their place the kernel would choose an address or a port of ours.
        LocalSource::Client(client) if is_nobodys(client) => return Err(NoSource.into()),
        LocalSource::Client(client) => {
            sockopt::set_transparent(socket.as_fd(), v6)?;
            bind_source(socket.as_fd(), client, v6)?;
        }
    }
    Ok((socket, lease))
}

/// The address that stands for whichever the kernel chooses.
pub const fn unspecified(v6: bool) -> IpAddr {
    if v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) }
}

/// Opens a non-blocking socket on the IPv4 address of a listener, connected to one of its clients,
/// which tells all that the listener does.
///
/// It is a socket of IPv6, which takes IPv4 too. So it is in no group with the listener, and the
/// kernel, which puts such sockets behind others of the address, finds the listener first: neither
/// before it is connected nor for the sake of it does anybody else's datagram take another way, and
/// no search comes by all of them. Its client's are found by both addresses (Linux 6.13).
///
/// # Errors
///
/// Those of `socket(2)`, `setsockopt(2)`, `bind(2)` and `connect(2)`.
pub fn over_listener(listener: SocketAddr, client: SocketAddr) -> io::Result<OwnedFd> {
    let socket = open(true)?;
    sockopt::set_only_v6(socket.as_fd(), false)?;
    sockopt::set_reuse_port(socket.as_fd(), true)?;
    sockopt::set_receive_tos(socket.as_fd(), true)?;
    sockopt::set_receive_ttl(socket.as_fd(), true)?;
    bind(socket.as_fd(), listener, true)?;
    connect(socket.as_fd(), client, true)?;
    Ok(socket)
}

/// Connects a connected socket again. Unless it was bound before, it gets another port, and the
/// address that the kernel would choose now. What has arrived stays to be read.
///
/// # Errors
///
/// Those of `connect(2)`. It is connected to nobody then.
pub fn reconnect(socket: BorrowedFd<'_>, peer: SocketAddr) -> io::Result<()> {
    disconnect(socket)?;
    connect(socket, peer, peer.is_ipv6())
}

/// Has a connected socket that was bound before hear nothing more that the listener of its address
/// may hear. What has arrived stays to be read.
///
/// # Errors
///
/// Those of `connect(2)`.
pub fn disconnect(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::net::connect_unspec(socket)?)
}

/// Binds to the first of the ports that nobody has, or nobody for that peer.
fn bind_first(
    socket: BorrowedFd<'_>,
    ip: IpAddr,
    ports: &mut impl Iterator<Item = u16>,
    peer: Option<SocketAddr>,
    v6: bool,
) -> io::Result<Option<PortLease>> {
    let in_use = io::Error::from_raw_os_error(libc::EADDRINUSE);
    let take = |local: SocketAddr| {
        let bind = || bind_source(socket, local, v6);
        match peer {
            Some(peer) => ports::lease(socket, local, peer, bind).map(Some),
            None => bind().map(|()| None),
        }
    };
    ports
        .map(|port| take(SocketAddr::new(ip, port)))
        .find(|result| !matches!(result, Err(e) if e.kind() == io::ErrorKind::AddrInUse))
        .unwrap_or(Err(in_use))
}

/// Binds to an address of the configuration or of a client, and tells where it cannot be had.
fn bind_source(socket: BorrowedFd<'_>, address: SocketAddr, v6: bool) -> io::Result<()> {
    if address.is_ipv6() != v6 {
        return Err(NoSource.into());
    }
    bind(socket, address, v6).map_err(|error| match error.raw_os_error() {
        // `connect(2)` tells a lack of ports by the first of these numbers.
        Some(libc::EADDRNOTAVAIL | libc::EINVAL | libc::EAFNOSUPPORT) => NoSource.into(),
        _ => error,
    })
}

fn open(v6: bool) -> io::Result<OwnedFd> {
    open_as(v6, Type::DGRAM, None)
}

fn open_as(v6: bool, kind: Type, protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    Socket::new(domain, kind.nonblocking(), protocol).map(OwnedFd::from)
}

fn bind(socket: BorrowedFd<'_>, address: SocketAddr, v6: bool) -> io::Result<()> {
    SockRef::from(&socket).bind(&to_kernel(address, v6))
}

fn connect(socket: BorrowedFd<'_>, peer: SocketAddr, v6: bool) -> io::Result<()> {
    SockRef::from(&socket).connect(&to_kernel(peer, v6))
}

/// An address as a socket of a family takes it: an IPv4 one mapped where that is IPv6.
fn to_kernel(address: SocketAddr, v6: bool) -> SockAddr {
    match address {
        SocketAddr::V4(v4) if v6 => SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port())).into(),
        address => address.into(),
    }
}
