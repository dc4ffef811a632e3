//! Who may ask what on the control socket.

use std::os::fd::BorrowedFd;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Gid, Group, geteuid};
use tracing::warn;

use crate::sys::sockopt::peer_groups;

/// Members of this group may read, where the system has it.
const READERS: &str = "flowgate";

/// What a client may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing, for this reason.
    None(String),
    /// Ask how things stand.
    Read,
    /// Everything.
    Full,
}

/// The group whose members may read.
pub(super) fn readers() -> Option<Gid> {
    Group::from_name(READERS).ok().flatten().map(|group| group.gid)
}

/// What the peer of a connected unix socket may do: root and the user that this process runs as,
/// everything; members of the group `flowgate`, read.
///
/// The mode of the file says the same; but it can be changed.
pub(super) fn access_of(socket: BorrowedFd<'_>) -> Access {
    let peer = match getsockopt(&socket, PeerCredentials) {
        Ok(peer) => peer,
        Err(error) => return Access::None(format!("the system does not say who you are: {error}")),
    };
    // Without supplementary groups the primary one counts.
    let mut groups = peer_groups(socket).unwrap_or_default();
    groups.push(peer.gid());
    let us = geteuid().as_raw();
    let access = decide(peer.uid(), &groups, us, || readers().map(Gid::as_raw));
    if let Access::None(_) = access {
        warn!(user = peer.uid(), process = peer.pid(), "refused on the control socket");
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
        use std::os::fd::AsFd;
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(access_of(one.as_fd()), Access::Full);
    }
}
