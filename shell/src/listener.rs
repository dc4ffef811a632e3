//! Listener sockets: bound before anything runs, with every option the data path relies on.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use flowgate_config::Listener;
use socket2::{Domain, Protocol, Type};
use tracing::warn;

use crate::kernel::Socket;
use crate::sys::sockopt;

/// A listener that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("listener {name:?}: cannot listen on {address}: {source}; {advice}")]
pub struct BindError {
    name: String,
    address: SocketAddr,
    source: io::Error,
    advice: &'static str,
}

/// The sockets of one listener, one for each worker, among which the kernel spreads the clients
/// by a hash of their addresses (`SO_REUSEPORT`).
pub struct Group {
    /// The address they are bound to, with the port that the kernel chose if none was given.
    pub address: SocketAddr,
    /// One for each worker.
    pub sockets: Vec<Socket>,
}

/// Binds the sockets of a listener, beside `ours`, the addresses of those that are bound already.
///
/// # Errors
///
/// When the address is taken, by whatever process: sockets that share a port with `SO_REUSEPORT`
/// would silently share its clients too, so the first one is bound without that option. Also when
/// the address is not this host's, or the port needs a capability.
pub fn bind(
    listener: &Listener,
    workers: usize,
    ours: impl Iterator<Item = SocketAddr>,
) -> Result<Group, BindError> {
    let fail = |source: io::Error| BindError {
        name: listener.name.clone(),
        address: listener.address,
        advice: advice(&source),
        source,
    };
    let is_beside_ours = overlaps(listener.address, ours);
    bind_group(listener, workers, is_beside_ours).map_err(fail)
}

/// Whether one of our own listeners would make the kernel refuse `address`: a wildcard beside a
/// single address of the same port. Datagrams go to the more specific of the two.
fn overlaps(address: SocketAddr, mut ours: impl Iterator<Item = SocketAddr>) -> bool {
    ours.any(|other| {
        other.port() == address.port()
            && (other.ip().is_unspecified() || address.ip().is_unspecified())
    })
}

fn bind_group(listener: &Listener, workers: usize, is_beside_ours: bool) -> io::Result<Group> {
    let first = open(listener)?;
    first.set_reuse_port(is_beside_ours)?;
    first.bind(&listener.address.into())?;
    // Shared only once it is ours, so that nobody slips in between.
    first.set_reuse_port(true)?;
    let address = first.local_addr()?.as_socket().unwrap_or(listener.address);
    let mut sockets = vec![Socket::new(OwnedFd::from(first), address.is_ipv6())];
    while sockets.len() < workers {
        let next = open(listener)?;
        next.set_reuse_port(true)?;
        next.bind(&address.into())?;
        sockets.push(Socket::new(OwnedFd::from(next), address.is_ipv6()));
    }
    Ok(Group { address, sockets })
}

/// Opens a socket that is ready to be bound.
fn open(listener: &Listener) -> io::Result<socket2::Socket> {
    let kind = Type::DGRAM.nonblocking().cloexec();
    let domain = Domain::for_address(listener.address);
    let socket = socket2::Socket::new(domain, kind, Some(Protocol::UDP))?;
    let v6 = listener.address.is_ipv6();
    if v6 {
        socket.set_only_v6(listener.v6_only)?;
    }
    if listener.address.ip().is_unspecified() {
        // Only then is the address that a datagram was sent to in doubt.
        sockopt::set_receive_local_address(socket.as_fd(), v6)?;
    }
    sockopt::set_receive_tos(socket.as_fd(), v6)?;
    sockopt::set_receive_ttl(socket.as_fd(), v6)?;
    // Kernels before 5.0 have no GRO; datagrams then come one by one.
    let _ = sockopt::set_gro(socket.as_fd());
    Ok(socket)
}

/// Gives a listener's sockets the buffers it asks for, and warns where the kernel grants less.
pub fn size_buffers(listener: &Listener, group: &Group) {
    let Some(first) = group.sockets.first() else {
        return;
    };
    for socket in &group.sockets {
        let (fd, socket) = (socket.as_fd(), socket2::SockRef::from(socket));
        // Past the sysctl's limit where the process may, up to it where it may not.
        if sockopt::force_receive_buffer(fd, listener.receive_buffer).is_err() {
            let _ = socket.set_recv_buffer_size(listener.receive_buffer);
        }
        if sockopt::force_send_buffer(fd, listener.send_buffer).is_err() {
            let _ = socket.set_send_buffer_size(listener.send_buffer);
        }
    }
    // The kernel doubles what it is asked for, to pay for its own bookkeeping (`socket(7)`).
    let first = socket2::SockRef::from(first);
    let receive = first.recv_buffer_size().unwrap_or(0) / 2;
    let send = first.send_buffer_size().unwrap_or(0) / 2;
    let sizes = [
        ("receive_buffer", listener.receive_buffer, receive, "net.core.rmem_max"),
        ("send_buffer", listener.send_buffer, send, "net.core.wmem_max"),
    ];
    for (key, asked, granted, sysctl) in sizes {
        if granted < asked {
            warn!(
                listener = ?listener.name,
                "{key}: asked for {asked} bytes, the kernel grants {granted}; \
                 raise {sysctl} or give the process CAP_NET_ADMIN"
            );
        }
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another process has the port: stop it, or change listener.address"
        }
        io::ErrorKind::AddrNotAvailable => {
            "the address is not one of this host: see `ip address`, or change listener.address"
        }
        io::ErrorKind::PermissionDenied => "ports below 1024 need root or CAP_NET_BIND_SERVICE",
        _ => "change listener.address",
    }
}
