//! What the service manager keeps for the next process (`FileDescriptorStoreMax=` in
//! `systemd.service(5)`): the listeners all the time, and everything when this process stops.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use tracing::warn;

use crate::control::systemd::{Notifier, SEND_TIMEOUT};
use crate::sys::scm;

/// The name of the descriptors of listeners. The service manager finds them by their addresses.
pub(crate) const LISTENER: &str = "listener";

/// The name of the descriptors of flows. There may be many, and all names together are to fit into a
/// variable of the environment.
pub(crate) const FLOW: &str = "f";

/// The name of the snapshot that says what the descriptors are for.
pub(crate) const SNAPSHOT: &str = "snapshot";

/// What a former process has left.
#[derive(Debug)]
pub struct Kept {
    pub(crate) snapshot: OwnedFd,
    /// The sockets of its flows, in no particular order.
    pub flows: Vec<OwnedFd>,
}

impl Kept {
    /// The bytes of its snapshot.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn snapshot(&self) -> io::Result<Vec<u8>> {
        let mut file = File::from(self.snapshot.try_clone()?);
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

impl Notifier {
    /// How many descriptors the service manager keeps. 0: none.
    pub fn room(&self) -> usize {
        if self.way.is_some() { self.room } else { 0 }
    }

    /// Has the service manager keep the listeners, and no others than these.
    pub fn keep_listeners(&self, listeners: &[BorrowedFd<'_>]) {
        if self.room() == 0 {
            return;
        }
        let kept = self.forget(LISTENER).and_then(|()| self.keep(LISTENER, listeners));
        if let Err(error) = kept {
            warn!("the service manager does not keep the listeners: {error}");
        }
    }

    /// Has the service manager keep the sockets of all flows, and a snapshot that says what they
    /// are for. When this returns it has them.
    ///
    /// # Errors
    ///
    /// When it cannot be reached, or does not answer.
    pub fn keep_flows(&self, snapshot: &[u8], flows: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut file = File::from(memfd_create(SNAPSHOT, MFdFlags::MFD_CLOEXEC)?);
        file.write_all(snapshot)?;
        self.keep(FLOW, flows)?;
        self.keep(SNAPSHOT, &[file.as_fd()])?;
        self.wait_until_heard()
    }

    /// Has the service manager keep the flows of a former process no longer.
    pub fn forget_flows(&self) {
        if self.room() == 0 {
            return;
        }
        if let Err(error) = self.forget(SNAPSHOT).and_then(|()| self.forget(FLOW)) {
            warn!("the service manager keeps sockets that are of no use any more: {error}");
        }
    }

    fn keep(&self, name: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        // An error of the network on a socket is no reason to give it up.
        let message = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}\n");
        let socket = self.connected()?;
        let some = descriptors.chunks(scm::MAX_FDS);
        some.into_iter().try_for_each(|some| scm::send(socket.as_fd(), message.as_bytes(), some))
    }

    fn forget(&self, name: &str) -> io::Result<()> {
        let message = format!("FDSTOREREMOVE=1\nFDNAME={name}\n");
        scm::send(self.connected()?.as_fd(), message.as_bytes(), &[])
    }

    /// Waits until the service manager has seen all that was said: it does not know any more who a
    /// process was that has ended (`sd_notify_barrier(3)`).
    fn wait_until_heard(&self) -> io::Result<()> {
        let (ours, theirs) = io::pipe()?;
        scm::send(self.connected()?.as_fd(), b"BARRIER=1", &[theirs.as_fd()])?;
        // It closes its copy, the last one, when it comes to this.
        drop(theirs);
        let mut end = [PollFd::new(ours.as_fd(), PollFlags::POLLHUP)];
        let timeout = PollTimeout::try_from(5 * SEND_TIMEOUT).unwrap_or(PollTimeout::MAX);
        match poll(&mut end, timeout)? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }

    fn connected(&self) -> io::Result<UnixDatagram> {
        let way = self.way.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        socket.connect_addr(&way.manager)?;
        Ok(socket)
    }
}
