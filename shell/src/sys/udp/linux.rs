//! Sockets that only Linux has, and what only there can be done with one that is open.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use socket2::{Protocol, Type};

use super::{bind, connect, open_as, unbound};
use crate::sys::sockopt;

/// Opens a non-blocking raw socket that sends UDP datagrams from whatever address and port each of them
/// has, and hears nothing.
///
/// # Errors
///
/// Those of `socket(2)` and `bind(2)`: it needs CAP_NET_RAW.
pub fn raw(v6: bool) -> io::Result<OwnedFd> {
    let socket = OwnedFd::from(open_as(v6, Type::RAW, Some(Protocol::UDP))?);
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
    let socket = OwnedFd::from(unbound(true)?);
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
