//! UDP sockets as the data path opens them: as few system calls as can be.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use flowgate_core::config::Source;
use flowgate_core::{DropReason, LocalSource, is_nobodys};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use super::fd::{AsFd, BorrowedFd, OwnedFd};
use super::ports::{self, PortLease};
use super::{errno, sockopt};

#[cfg_attr(not(target_os = "linux"), path = "udp/none.rs")]
mod linux;

pub use linux::*;

/// How many ports of a range are tried for one socket. A range that is all taken costs no more than
/// that.
const MAX_TRIES: usize = 128;

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

/// Opens a socket from what was drawn of a source, or else from another of its addresses: one may be
/// gone, or have no port left, where another has.
///
/// # Errors
///
/// What `open` said of the one that was drawn.
pub fn open_from<T>(
    source: &Source,
    (drawn, v6): (LocalSource, bool),
    mut open: impl FnMut(LocalSource) -> io::Result<T>,
) -> io::Result<T> {
    open(drawn).or_else(|error| match errno::drop_reason(&error) {
        DropReason::NoPorts | DropReason::NoSource => {
            source.others(drawn, v6).find_map(|other| open(other).ok()).ok_or(error)
        }
        _ => Err(error),
    })
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
                    let mut ports = ports.shuffled(salt).take(MAX_TRIES);
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

/// Binds to the first of the ports that nobody has, or nobody for that peer.
fn bind_first(
    socket: BorrowedFd<'_>,
    ip: IpAddr,
    ports: &mut impl Iterator<Item = u16>,
    peer: Option<SocketAddr>,
    v6: bool,
) -> io::Result<Option<PortLease>> {
    let in_use = errno::address_in_use();
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
///
/// # Errors
///
/// Those of `bind(2)`; [`NoSource`] inside one that has no number.
pub fn bind_source(socket: BorrowedFd<'_>, address: SocketAddr, v6: bool) -> io::Result<()> {
    if address.is_ipv6() != v6 {
        return Err(NoSource.into());
    }
    bind(socket, address, v6)
        .map_err(|error| if errno::is_no_source(&error) { NoSource.into() } else { error })
}

fn open(v6: bool) -> io::Result<OwnedFd> {
    unbound(v6).map(OwnedFd::from)
}

/// Opens a non-blocking socket of IPv4 or IPv6 that is bound to nothing yet.
///
/// # Errors
///
/// Those of `socket(2)`.
pub fn unbound(v6: bool) -> io::Result<Socket> {
    open_as(v6, Type::DGRAM, Some(Protocol::UDP))
}

#[cfg(target_os = "linux")]
fn open_as(v6: bool, kind: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    Socket::new(domain, kind.nonblocking(), protocol)
}

#[cfg(not(target_os = "linux"))]
fn open_as(v6: bool, kind: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, kind, protocol)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
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
