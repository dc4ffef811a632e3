//! Listener sockets: bound before anything runs, with every option the data path relies on.

use std::io;
use std::net::{IpAddr, SocketAddr};

use flowgate_config::Listener;
use flowgate_core::config::Accept;
use socket2::InterfaceIndexOrAddress;
use tracing::warn;

use crate::datapath::kernel::Socket;
use crate::sys::fd::{AsFd, BorrowedFd, OwnedFd};
use crate::sys::interface::{self, number_of};
use crate::sys::{sockopt, udp};

/// A listener that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("listener {name:?}: cannot listen on {address}: {source}; {advice}")]
pub struct BindError {
    name: String,
    address: SocketAddr,
    source: io::Error,
    advice: &'static str,
}

impl BindError {
    fn new(listener: &Listener, source: io::Error) -> Self {
        Self {
            name: listener.name.clone(),
            address: listener.address,
            advice: advice(&source),
            source,
        }
    }
}

/// The sockets of one listener, at least one for each worker, among which the kernel spreads the clients
/// by a hash of their addresses (`SO_REUSEPORT`).
pub struct Group {
    /// The address they are bound to, with the port that the kernel chose if none was given.
    pub address: SocketAddr,
    /// One for each worker, or more.
    pub sockets: Vec<Socket>,
}

/// Binds the sockets of a listener, beside `ours`, the addresses of those that are bound already.
/// Sockets among the `inherited` that are bound to its address are used first, all of them, since
/// the kernel spreads the clients over all: then there may be more than `workers`.
///
/// # Errors
///
/// When the address is taken, by whatever process: sockets that share a port with `SO_REUSEPORT`
/// would silently share its clients too, so the first one is bound without that option. Also when
/// the address is not this host's, or the port needs a capability.
pub fn bind(
    listener: &Listener,
    workers: usize,
    ours: impl Iterator<Item = (SocketAddr, bool)>,
    inherited: &mut Vec<(SocketAddr, OwnedFd)>,
) -> Result<Group, BindError> {
    let is_meant = |(address, socket): &mut (SocketAddr, OwnedFd)| {
        let interface = interface::of(socket);
        let is_its = interface.is_none() || interface.as_deref() == listener.interface.as_deref();
        *address == listener.address && is_its
    };
    let inherited = inherited.extract_if(.., is_meant).map(|(_, fd)| fd);
    let is_beside_ours = overlaps_any(listener, ours);
    let inherited = inherited.collect::<Vec<_>>();
    let checked = check_inherited(&inherited, listener);
    checked
        .and_then(|()| bind_group(listener, workers, is_beside_ours, inherited))
        .map_err(|source| BindError::new(listener, source))
}

/// The sockets of a listener of which another process had this many. Those that it has passed on are
/// `bound`; the others are opened in their stead, beside `ours`.
///
/// # Errors
///
/// As for [`bind`].
pub fn complete(
    listener: &Listener,
    count: usize,
    ours: impl Iterator<Item = (SocketAddr, bool)>,
    bound: Vec<OwnedFd>,
) -> Result<Group, BindError> {
    let is_beside_ours = overlaps_any(listener, ours);
    bind_group(listener, count, is_beside_ours, bound)
        .map_err(|source| BindError::new(listener, source))
}

/// The sockets of a listener with a range of ports, all of which another process has passed on.
///
/// # Errors
///
/// When one is missing: which port it had is not known.
pub fn all_passed_on(
    listener: &Listener,
    count: usize,
    bound: Vec<OwnedFd>,
) -> Result<Group, BindError> {
    let take = || {
        if bound.len() != count {
            let lost = format!("{} of its {count} sockets are lost", count - bound.len());
            return Err(io::Error::other(lost));
        }
        let v6 = listener.address.is_ipv6();
        let mut sockets = Vec::new();
        for fd in bound {
            let socket = socket2::Socket::from(fd);
            prepare(&socket, listener)?;
            sockets.push(Socket::new(OwnedFd::from(socket), v6));
        }
        Ok(Group { address: listener.address, sockets })
    };
    take().map_err(|source| BindError::new(listener, source))
}

/// Whether one of our own listeners, each with whether it is of IPv6 only, would make the kernel
/// refuse this one.
fn overlaps_any(listener: &Listener, mut ours: impl Iterator<Item = (SocketAddr, bool)>) -> bool {
    ours.any(|other| overlaps((listener.address, listener.v6_only), other))
}

/// Whether the kernel would refuse one of two addresses beside the other: the same address twice, as
/// where a reload binds it again; and a wildcard beside a single address of the same port, unless that
/// is of a family that the wildcard does not take. Datagrams go to the more specific of the two.
pub fn overlaps(one: (SocketAddr, bool), other: (SocketAddr, bool)) -> bool {
    let takes = |(wildcard, v6_only): (SocketAddr, bool), single: SocketAddr| {
        let is_dual = wildcard.is_ipv6() && !v6_only;
        wildcard.ip().is_unspecified() && (wildcard.is_ipv6() == single.is_ipv6() || is_dual)
    };
    let is_one_port = one.0.port() == other.0.port();
    one.0 == other.0 || is_one_port && (takes(one, other.0) || takes(other, one.0))
}

fn bind_group(
    listener: &Listener,
    workers: usize,
    is_beside_ours: bool,
    inherited: Vec<OwnedFd>,
) -> io::Result<Group> {
    let mut bound: Vec<socket2::Socket> = inherited.into_iter().map(Into::into).collect();
    if bound.is_empty() {
        let first = open(listener)?;
        if listener.accept != Accept::Shared {
            // The kernel looks no further for a datagram's socket than the first group, also where
            // that has one socket only: not at those of all clients.
            sockopt::found_group(first.as_fd())?;
        }
        sockopt::set_reuse_port(first.as_fd(), is_beside_ours)?;
        first.bind(&listener.address.into())?;
        bound.push(first);
    }
    // Shared only once they are ours, so that nobody slips in between, and only where there is
    // someone to share with: another program of this user could join, and take its part of the
    // clients.
    let is_shared =
        workers.max(bound.len()) > 1 || listener.accept != Accept::Shared || is_beside_ours;
    for socket in &bound {
        sockopt::set_reuse_port(socket.as_fd(), is_shared)?;
    }
    let address = bound[0].local_addr()?.as_socket().unwrap_or(listener.address);
    while bound.len() < workers {
        let next = open(listener)?;
        sockopt::set_reuse_port(next.as_fd(), true)?;
        next.bind(&address.into())?;
        bound.push(next);
    }
    // Those that were inherited were opened by a process that does not know what is relied on.
    for socket in &bound {
        sockopt::clear_timestamps(socket.as_fd());
        prepare(socket, listener)?;
        join_group(socket, listener)?;
    }
    let of_ipv6 = address.is_ipv6();
    let sockets = bound.into_iter().map(|socket| Socket::new(OwnedFd::from(socket), of_ipv6));
    Ok(Group { address, sockets: sockets.collect() })
}

/// Whether the sockets that someone else has opened for a listener will do.
fn check_inherited(inherited: &[OwnedFd], listener: &Listener) -> io::Result<()> {
    let unfit = |message: String| Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    if listener.accept != Accept::Shared
        && inherited.iter().any(|socket| sockopt::is_in_group(socket.as_fd()).is_ok_and(|is| !is))
    {
        return unfit("the service manager has opened its socket without ReusePort=".to_owned());
    }
    if let Some(interface) = &listener.interface
        && inherited.iter().any(|socket| interface::of(socket).is_none())
    {
        return unfit(format!(
            "the service manager has opened its socket without BindToDevice={interface}"
        ));
    }
    if listener.address.is_ipv6() && listener.address.ip().is_unspecified() {
        for socket in inherited {
            if socket2::SockRef::from(socket).only_v6()? != listener.v6_only {
                return unfit(format!(
                    "the service manager has opened its socket with v6_only = {}",
                    !listener.v6_only
                ));
            }
        }
    }
    Ok(())
}

/// Opens a socket that is ready to be bound.
fn open(listener: &Listener) -> io::Result<socket2::Socket> {
    let socket = udp::unbound(listener.address.is_ipv6())?;
    if listener.address.is_ipv6() {
        socket.set_only_v6(listener.v6_only)?;
    }
    if let Some(interface) = &listener.interface {
        interface::bind(&socket, interface)?;
    }
    // What arrives as soon as it is bound must say what the data path relies on.
    prepare(&socket, listener)?;
    Ok(socket)
}

/// Has datagrams to the multicast group arrive that is the listener's address, if it is one. They go
/// to every socket that is bound to the group: one is enough.
fn join_group(socket: &socket2::Socket, listener: &Listener) -> io::Result<()> {
    let Some(interface) = &listener.interface else { return Ok(()) };
    let joined = match listener.address.ip() {
        IpAddr::V4(group) if group.is_multicast() => {
            let at = InterfaceIndexOrAddress::Index(number_of(interface)?);
            socket.join_multicast_v4_n(&group, &at)
        }
        IpAddr::V6(group) if group.is_multicast() => {
            socket.join_multicast_v6(&group, number_of(interface)?)
        }
        _ => return Ok(()),
    };
    match joined {
        // One that another process has passed on is a member.
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(()),
        outcome => outcome,
    }
}

/// Asks for everything that the data path relies on.
fn prepare(socket: &socket2::Socket, listener: &Listener) -> io::Result<()> {
    let v6 = listener.address.is_ipv6();
    if listener.address.ip().is_unspecified() {
        // Only then is the address that a datagram was sent to in doubt.
        sockopt::set_receive_local_address(socket.as_fd(), v6)?;
    }
    sockopt::set_receive_tos(socket.as_fd(), v6)?;
    sockopt::set_receive_ttl(socket.as_fd(), v6)?;
    // Kernels before 5.0 have no GRO; datagrams then come one by one.
    let _ = sockopt::set_gro(socket.as_fd());
    Ok(())
}

/// What to ask of the kernel for a listener's sockets, as far as a reload may change it: buffers in bytes,
/// and whether what they send may not be cut into fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    receive: usize,
    send: usize,
    v6: bool,
    dont_fragment: bool,
}

impl SocketOptions {
    /// What a listener asks for.
    pub const fn of(listener: &Listener) -> Self {
        let &Listener { receive_buffer, send_buffer, dont_fragment, .. } = listener;
        let v6 = listener.address.is_ipv6();
        Self { receive: receive_buffer, send: send_buffer, v6, dont_fragment }
    }

    /// Asks for it. A buffer that is larger already stays: a service manager may have done what this
    /// process may not.
    pub fn set(self, fd: BorrowedFd<'_>) {
        let socket = socket2::SockRef::from(&fd);
        let is_short = |actual: io::Result<usize>, asked: usize| granted(actual) < asked;
        // Past the sysctl's limit where the process may, up to it where it may not.
        if is_short(socket.recv_buffer_size(), self.receive) {
            sockopt::ask_receive_buffer(fd, self.receive);
        }
        if is_short(socket.send_buffer_size(), self.send) {
            sockopt::ask_send_buffer(fd, self.send);
        }
        if sockopt::dont_fragment(fd) != self.dont_fragment {
            // Every kernel that there is knows it.
            let _ = sockopt::set_dont_fragment(fd, self.v6, self.dont_fragment);
        }
    }
}

/// Gives a listener's sockets the buffers it asks for.
pub fn set_options_quietly(listener: &Listener, group: &Group) {
    let asked = SocketOptions::of(listener);
    group.sockets.iter().for_each(|socket| asked.set(socket.as_fd()));
}

/// Gives a listener's sockets the buffers it asks for, and warns where the kernel grants less.
pub fn set_options(listener: &Listener, group: &Group) {
    let asked = SocketOptions::of(listener);
    set_options_quietly(listener, group);
    let Some(first) = group.sockets.first() else {
        return;
    };
    let first = socket2::SockRef::from(first);
    let (receive, send) = (granted(first.recv_buffer_size()), granted(first.send_buffer_size()));
    let sizes = [
        ("receive_buffer", asked.receive, receive, "net.core.rmem_max"),
        ("send_buffer", asked.send, send, "net.core.wmem_max"),
    ];
    for (key, asked, granted, sysctl) in sizes {
        if granted < asked {
            warn!(
                listener = listener.name.as_str(),
                "{key}: asked for {asked} bytes, the kernel grants {granted}; \
                 raise {sysctl} or give the process CAP_NET_ADMIN"
            );
        }
    }
}

/// What a buffer can hold.
fn granted(actual: io::Result<usize>) -> usize {
    actual.unwrap_or(0) / sockopt::REPORTED_BUFFER_FACTOR
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another process has the port: stop it, or change listener.address"
        }
        io::ErrorKind::AddrNotAvailable => {
            "the address is not one of this host: see `ip address`, or change listener.address"
        }
        io::ErrorKind::NotFound => "see `ip link`, or change listener.interface",
        io::ErrorKind::InvalidInput => {
            "make the .socket unit and the configuration agree: see BindIPv6Only= and BindToDevice="
        }
        io::ErrorKind::PermissionDenied => "ports below 1024 need root or CAP_NET_BIND_SERVICE",
        _ => "change listener.address",
    }
}
