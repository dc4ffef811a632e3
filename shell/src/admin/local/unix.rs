//! A unix socket, and who is at its other end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use hyper::Request;
use nix::unistd::{Gid, Group, geteuid};
use socket2::{Domain, SockAddr, Socket, Type};
use tracing::warn;

use super::super::access::{Access, READERS};
use crate::sys::peer;

/// The listening socket.
pub(in super::super) type Listener = std::os::unix::net::UnixListener;

/// The same, for an event loop.
pub(in super::super) struct Accepting(tokio::net::UnixListener);

impl Accepting {
    pub(in super::super) fn new(listener: Listener) -> io::Result<Self> {
        tokio::net::UnixListener::from_std(listener).map(Self)
    }

    /// The next connection, and what may be asked by it.
    pub(in super::super) async fn accept(&self) -> io::Result<(tokio::net::UnixStream, Access)> {
        let (stream, _) = self.0.accept().await?;
        let access = access_of(stream.as_fd());
        Ok((stream, access))
    }
}

/// A connection to a process.
pub(in super::super) struct Connection(UnixStream);

impl Connection {
    /// Connects in time: that for sending is also that for a place among those who wait to be
    /// accepted.
    pub(in super::super) fn open(path: &Path, timeout: Duration) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_write_timeout(Some(timeout))?;
        socket.connect(&SockAddr::unix(path)?)?;
        socket.set_nonblocking(true)?;
        Ok(Self(UnixStream::from(OwnedFd::from(socket))))
    }

    /// Adds to a request what it needs. The socket tells who asks.
    pub(in super::super) fn prepare<B>(&self, request: Request<B>) -> Request<B> {
        request
    }

    pub(in super::super) fn into_stream(self) -> io::Result<tokio::net::UnixStream> {
        tokio::net::UnixStream::from_std(self.0)
    }
}

/// The group whose members may read.
pub(in super::super) fn readers() -> Option<Gid> {
    Group::from_name(READERS).ok().flatten().map(|group| group.gid)
}

/// What the peer of a connected unix socket may do: root and the user that this process runs as,
/// everything; members of the group `flowgate`, read.
///
/// The mode of the file says the same; but it can be changed.
fn access_of(socket: BorrowedFd<'_>) -> Access {
    let peer = match peer::of(socket) {
        Ok(peer) => peer,
        Err(error) => return Access::None(format!("the system does not say who you are: {error}")),
    };
    let us = geteuid().as_raw();
    let access = decide(peer.user, &peer.groups, us, || readers().map(Gid::as_raw));
    if let Access::None(_) = access {
        warn!(user = peer.user, process = peer.process, "refused on the control socket");
    }
    access
}

fn decide(user: u32, groups: &[u32], us: u32, readers: impl Fn() -> Option<u32>) -> Access {
    if user == 0 || user == us {
        return Access::Full;
    }
    if readers().is_some_and(|readers| groups.contains(&readers)) {
        return Access::Read;
    }
    let whom = if us == 0 { "root".to_owned() } else { format!("user {us} and root") };
    Access::None(format!(
        "you are user {user}; only {whom} may control this flowgate, and members of the group \
         {READERS} may read its status"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_may_everything_readers_read_and_others_nothing() {
        let decide = |user, groups: &[u32]| decide(user, groups, 100, || Some(7));
        assert_eq!(decide(0, &[]), Access::Full);
        assert_eq!(decide(100, &[]), Access::Full);
        assert_eq!(decide(101, &[3, 7]), Access::Read);
        let Access::None(reason) = decide(101, &[3]) else { panic!("a stranger") };
        assert!(reason.contains("you are user 101; only user 100 and root may"), "{reason}");
        assert!(matches!(super::decide(101, &[7], 100, || None), Access::None(_)));
    }

    #[test]
    fn our_own_process_has_full_access() {
        let (one, _other) = UnixStream::pair().unwrap();
        assert_eq!(access_of(one.as_fd()), Access::Full);
    }
}
