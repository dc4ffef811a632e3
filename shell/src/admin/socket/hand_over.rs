//! The control socket goes on where another process has served it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use super::super::request::Handler;
use super::{ControlError, ControlSocket, claim};

impl ControlSocket {
    /// Goes on serving the socket at `path` that another process has served, with its listening
    /// socket.
    ///
    /// # Errors
    ///
    /// When the system does not let us.
    pub fn adopt(path: &Path, listener: OwnedFd, handler: Handler) -> Result<Self, ControlError> {
        Self::serve(claim::adopted(path)?, UnixListener::from(listener), handler)
    }

    /// The listening socket.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Accepts no connections any more: they wait in the listening socket, for another process or
    /// for [`resume`](Self::resume). Requests that were accepted are answered.
    pub fn pause(&self) {
        self.server.pause();
    }

    /// Accepts connections again.
    pub fn resume(&self) {
        self.server.resume();
    }

    /// Leaves the socket and its file to another process, which has the listening socket. Replies
    /// that are being given are read first.
    pub fn leave(mut self) {
        self.claim.disown();
    }
}
