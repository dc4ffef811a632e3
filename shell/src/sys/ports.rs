//! Which local ports of configured ranges this process uses, and for which backends.
//!
//! A port serves one socket for each backend: the kernel tells connected sockets of one port apart
//! by their peers. It would also let two of them have the same peer, and give all that comes to
//! one of them; so who has what is written down here. Other processes get none of these ports: a
//! socket takes a port that is not ours without `SO_REUSEADDR`, and allows others of ours beside it
//! only afterwards.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::SocketAddr;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use super::fd::BorrowedFd;
use super::sockopt;

/// The peers that each local address is used for.
type Book = HashMap<SocketAddr, Vec<SocketAddr>>;

static BOOK: LazyLock<Mutex<Book>> = LazyLock::new(Mutex::default);

fn book() -> MutexGuard<'static, Book> {
    // Each change is one step.
    BOOK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A local address that is used for one peer, for as long as this lives.
#[derive(Debug)]
pub struct PortLease {
    local: SocketAddr,
    peer: SocketAddr,
}

impl Drop for PortLease {
    fn drop(&mut self) {
        let mut book = book();
        if let Entry::Occupied(mut peers) = book.entry(self.local) {
            if let Some(at) = peers.get().iter().position(|peer| *peer == self.peer) {
                peers.get_mut().swap_remove(at);
            }
            if peers.get().is_empty() {
                peers.remove();
            }
        }
    }
}

/// Binds a socket that is to be connected to `peer`, by `bind`. Where another socket of ours has
/// the port for that peer, it is in use.
///
/// # Errors
///
/// Those of `bind` and of `setsockopt(2)`.
pub fn lease(
    socket: BorrowedFd<'_>,
    local: SocketAddr,
    peer: SocketAddr,
    bind: impl FnOnce() -> io::Result<()>,
) -> io::Result<PortLease> {
    let mut book = book();
    let is_ours = match book.get(&local) {
        // Others than Linux would give all that comes to one of the sockets.
        Some(peers) if peers.contains(&peer) || !cfg!(target_os = "linux") => {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        peers => peers.is_some(),
    };
    if cfg!(target_os = "linux") {
        sockopt::set_reuse_address(socket, is_ours)?;
    }
    bind()?;
    if cfg!(target_os = "linux") {
        sockopt::set_reuse_address(socket, true)?;
    }
    book.entry(local).or_default().push(peer);
    Ok(PortLease { local, peer })
}

/// Notes a socket that is bound and connected already, and was opened by another process.
///
/// # Errors
///
/// Those of `setsockopt(2)`.
pub fn adopt(socket: BorrowedFd<'_>, local: SocketAddr, peer: SocketAddr) -> io::Result<PortLease> {
    sockopt::set_reuse_address(socket, true)?;
    book().entry(local).or_default().push(peer);
    Ok(PortLease { local, peer })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    /// A socket that is bound to `local`, or to any port, and its lease.
    fn bound(local: SocketAddr, peer: SocketAddr) -> io::Result<(socket2::Socket, PortLease)> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
        let lease = lease(socket.as_fd(), local, peer, || socket.bind(&local.into()))?;
        Ok((socket, lease))
    }

    #[test]
    fn a_port_is_taken_once_for_each_peer_and_by_nobody_else() {
        let [one, other] = [1, 2].map(|last| SocketAddr::from(([127, 0, 0, last], 9)));
        let local = {
            let probe = UdpSocket::bind("127.0.0.1:0").unwrap();
            probe.local_addr().unwrap()
        };
        let first = bound(local, one).unwrap();
        let _second = bound(local, other).expect("the same port for another peer");
        let refused = bound(local, one).expect_err("the port is taken for that peer");
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        UdpSocket::bind(local).expect_err("the port is not for others");
        drop(first);
        bound(local, one).expect("it is free for that peer again");
    }
}
