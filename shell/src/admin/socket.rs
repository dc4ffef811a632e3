//! The control socket: the whole [admin API](super) on a unix stream socket, which its owner and root
//! may use, and members of the group `flowgate` may read from.

mod claim;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use self::claim::Claim;
use super::escape::escaped;
use super::request::Handler;
use super::server::{Listener, Server};

/// Why the control socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Someone serves it already.
    #[error(
        "another flowgate is running: it serves the control socket {}; stop it (`flowgate stop`), \
         or give this one another `admin.socket`", shown(.0)
    )]
    AnotherIsRunning(PathBuf),
    /// Something else has the name.
    #[error(
        "{} is there already and is not a socket; remove it, or choose another `admin.socket`",
        shown(.0)
    )]
    NotASocket(PathBuf),
    /// Anything else.
    #[error("cannot serve the control socket {}: {doing}: {}", shown(.path), escaped(&.error.to_string()))]
    Failed {
        /// Where the socket was to be.
        path: PathBuf,
        /// What failed.
        doing: &'static str,
        /// How.
        error: io::Error,
    },
}

/// A path without anything that a terminal would obey.
fn shown(path: &Path) -> String {
    escaped(&path.to_string_lossy())
}

/// The control socket, served until this is dropped. Then its file is removed too, unless another
/// Flowgate has its own in that place by then.
pub struct ControlSocket {
    claim: Claim,
    listener: UnixListener,
    server: Server,
}

impl ControlSocket {
    /// Serves the socket at `path`, whose directory is made if need be. The file of a dead process
    /// is replaced. `handler` is called on threads of the socket, for several requests at a time.
    ///
    /// # Errors
    ///
    /// When another process serves that socket, or the system does not let us.
    pub fn start(path: &Path, handler: Handler) -> Result<Self, ControlError> {
        let (claim, listener) = claim::claim(path)?;
        Self::serve(claim, listener, handler)
    }

    /// Goes on serving the socket at `path` that another process has served, with its listening
    /// socket.
    ///
    /// # Errors
    ///
    /// When the system does not let us.
    pub fn adopt(path: &Path, listener: OwnedFd, handler: Handler) -> Result<Self, ControlError> {
        Self::serve(claim::adopted(path)?, UnixListener::from(listener), handler)
    }

    fn serve(claim: Claim, listener: UnixListener, handler: Handler) -> Result<Self, ControlError> {
        let serve = || {
            let accepting = Listener::Unix(listener.try_clone()?);
            Server::start("control", accepting, handler)
        };
        match serve() {
            Ok(server) => Ok(Self { claim, listener, server }),
            Err(error) => {
                claim.give_up();
                let (path, doing) = (claim.path().to_owned(), "starting its thread");
                Err(ControlError::Failed { path, doing, error })
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.claim.path()
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

impl fmt::Debug for ControlSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlSocket").field("claim", &self.claim).finish_non_exhaustive()
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // The file first: as long as someone listens, nobody takes it for that of a dead process.
        // Then the server ends, and waits for anyone who asked to stop to read the reply.
        self.claim.give_up();
    }
}

#[cfg(test)]
mod tests;
