//! Serves the control socket: a unix stream socket that only its owner and root may use.
//!
//! One thread accepts. Each connection that it accepts is served by a thread of its own, at most
//! [`MOST_SERVED`] at a time; whoever comes beyond that is told so at once. A connection has
//! [`PATIENCE`] to write its request, of at most [`LONGEST_REQUEST`] bytes, and as long to read its
//! answer, so that nobody holds a place for long.

mod claim;
mod serve;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::warn;

use self::claim::Claim;
use self::serve::Places;
use super::escape::escaped;
use super::request::Handler;

/// The longest request, in bytes.
pub const LONGEST_REQUEST: usize = 64 << 10;

/// How long a connection may take to write its request, and again to read its answer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How many connections are served at the same time.
pub const MOST_SERVED: usize = 16;

/// How long the end waits for answers that are being given.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// How long to wait when no connection can be accepted, most likely for want of a descriptor, in
/// milliseconds.
const PAUSE: u8 = 100;

/// Why the control socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Somebody serves it already.
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
    listener: Arc<UnixListener>,
    handler: Handler,
    places: Arc<Places>,
    acceptor: Option<Acceptor>,
}

/// The thread that accepts connections. It ends when the stream is dropped.
struct Acceptor {
    stop: UnixStream,
    thread: JoinHandle<()>,
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
        let failed = |path: &Path, error| ControlError::Failed {
            path: path.to_owned(),
            doing: "starting its thread",
            error,
        };
        listener.set_nonblocking(true).map_err(|error| failed(claim.path(), error))?;
        let (listener, places) = (Arc::new(listener), Arc::new(Places::new(MOST_SERVED)));
        let mut socket = Self { claim, listener, handler, places, acceptor: None };
        match socket.resume() {
            Ok(()) => Ok(socket),
            Err(error) => Err(failed(socket.claim.path(), error)),
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
    pub fn pause(&mut self) {
        if let Some(Acceptor { stop, thread }) = self.acceptor.take() {
            drop(stop);
            // It has nothing to return, and a panic of it has been reported.
            let _ = thread.join();
        }
    }

    /// Accepts connections again.
    ///
    /// # Errors
    ///
    /// When there can be no thread for it.
    pub fn resume(&mut self) -> io::Result<()> {
        let (stop, stopped) = UnixStream::pair()?;
        let (listener, places) = (Arc::clone(&self.listener), Arc::clone(&self.places));
        let handler = Arc::clone(&self.handler);
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || accept(&listener, &stopped, &places, &handler))?;
        self.acceptor = Some(Acceptor { stop, thread });
        Ok(())
    }

    /// Leaves the socket and its file to another process, which has the listening socket.
    pub fn leave(mut self) {
        self.pause();
        self.places.wait_for_answers(LAST_ANSWERS);
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
        // The file first: as long as somebody listens, nobody takes it for that of a dead process.
        self.claim.give_up();
        self.pause();
        // Whoever asked to stop is to read the answer before the process ends.
        self.places.wait_for_answers(LAST_ANSWERS);
    }
}

/// Accepts connections until the other end of `stopped` is dropped.
fn accept(listener: &UnixListener, stopped: &UnixStream, places: &Arc<Places>, handler: &Handler) {
    loop {
        let mut waits = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut waits, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(error) => return warn!("the control socket cannot be waited for: {error}"),
            Ok(_) if waits[1].any().unwrap_or(true) => return,
            Ok(_) => {}
        }
        match listener.accept() {
            Ok((stream, _)) => serve::admit(stream, places, handler),
            Err(error) => match error.kind() {
                // It may have gone away again.
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {}
                _ => {
                    warn!("cannot accept on the control socket: {error}");
                    // Not at once again; but an end is not to wait for that.
                    let mut stop = [PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
                    let _ = poll(&mut stop, PAUSE);
                }
            },
        }
    }
}

#[cfg(test)]
mod tests;
