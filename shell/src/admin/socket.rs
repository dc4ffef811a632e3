//! The control socket: the whole [admin API](super) on a unix stream socket, which its owner and root
//! may use, and members of the group `flowgate` may read from. Windows has a loopback address instead,
//! with a token that its owner and administrators can read.

#[cfg_attr(windows, path = "socket/claim/windows.rs")]
mod claim;
#[cfg(target_os = "linux")]
mod hand_over;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use self::claim::Claim;
use super::escape::{escaped, escaped_path};
use super::local;
use super::request::Handler;
use super::server::{Listener, Server};

/// Why the control socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Someone serves it already.
    #[error(
        "another flowgate is running: it serves the control socket {}; stop it (`flowgate stop`), \
         or give this one another `admin.socket`", escaped_path(.0)
    )]
    AnotherIsRunning(PathBuf),
    /// Something else has the name.
    #[error(
        "{} is there already and is not a socket; remove it, or choose another `admin.socket`",
        escaped_path(.0)
    )]
    NotASocket(PathBuf),
    /// Anything else.
    #[error("cannot serve the control socket {}: {doing}: {}", escaped_path(.path), escaped(&.error.to_string()))]
    Failed {
        /// Where the socket was to be.
        path: PathBuf,
        /// What failed.
        doing: &'static str,
        /// How.
        error: io::Error,
    },
}

/// The control socket, served until this is dropped. Then its file is removed too, unless another
/// Flowgate has its own in that place by then.
pub struct ControlSocket {
    claim: Claim,
    listener: local::Listener,
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

    fn serve(
        claim: Claim,
        listener: local::Listener,
        handler: Handler,
    ) -> Result<Self, ControlError> {
        let serve = || {
            let accepting = Listener::Local(listener.try_clone()?);
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
