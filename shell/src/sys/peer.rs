//! Who is at the other end of a unix socket.

use std::io;
use std::os::fd::BorrowedFd;

/// A process, as of when it connected.
#[derive(Clone, Debug)]
pub struct PeerProcess {
    /// Its user.
    pub user: u32,
    /// Its groups, as far as the system tells them.
    pub groups: Vec<u32>,
    /// Its number, where the system tells it.
    pub process: Option<i32>,
}

/// The process at the other end of a connected unix socket.
///
/// # Errors
///
/// Those of `getsockopt(2)`.
#[cfg(target_os = "linux")]
pub fn of(socket: BorrowedFd<'_>) -> io::Result<PeerProcess> {
    use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
    let peer = getsockopt(&socket, PeerCredentials)?;
    // Without supplementary groups the primary one counts.
    let mut groups = super::sockopt::peer_groups(socket).unwrap_or_default();
    groups.push(peer.gid());
    Ok(PeerProcess { user: peer.uid(), groups, process: Some(peer.pid()) })
}

/// The process at the other end of a connected unix socket.
///
/// # Errors
///
/// Those of `getpeereid(3)`.
#[cfg(not(target_os = "linux"))]
pub fn of(socket: BorrowedFd<'_>) -> io::Result<PeerProcess> {
    let (user, group) = nix::unistd::getpeereid(socket)?;
    Ok(PeerProcess { user: user.as_raw(), groups: vec![group.as_raw()], process: None })
}
