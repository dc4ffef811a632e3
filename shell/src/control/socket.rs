//! Serves the control socket: a unix stream socket that only its owner and root may use.
//!
//! One thread accepts. Each connection that it accepts is served by a thread of its own, at most
//! [`MOST_SERVED`] at a time; whoever comes beyond that is told so at once. A connection has
//! [`PATIENCE`] to write its request, of at most [`LONGEST_REQUEST`] bytes, and as long to read its
//! answer, so that nobody holds a place for long.

mod claim;
mod serve;

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::SockRef;
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

/// How long to wait when no connection can be accepted, most likely for want of a descriptor.
const PAUSE: Duration = Duration::from_millis(100);

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
#[derive(Debug)]
pub struct ControlSocket {
    claim: Claim,
    listener: Arc<UnixListener>,
    is_over: Arc<AtomicBool>,
    places: Arc<Places>,
    acceptor: Option<JoinHandle<()>>,
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
        let failed = |error| ControlError::Failed {
            path: path.to_owned(),
            doing: "starting its thread",
            error,
        };
        let listener = Arc::new(listener);
        let is_over = Arc::new(AtomicBool::new(false));
        let places = Arc::new(Places::new(MOST_SERVED));
        let accept = {
            let (listener, is_over) = (Arc::clone(&listener), Arc::clone(&is_over));
            let places = Arc::clone(&places);
            move || accept(&listener, &is_over, &places, &handler)
        };
        let acceptor = std::thread::Builder::new().name("control".into()).spawn(accept);
        let acceptor = Some(acceptor.map_err(failed)?);
        Ok(Self { claim, listener, is_over, places, acceptor })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.claim.path()
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // The file first: as long as somebody listens, nobody takes it for that of a dead process.
        self.claim.give_up();
        self.is_over.store(true, Ordering::Release);
        // Wakes the acceptor, now and whenever it asks again.
        let _ = SockRef::from(&*self.listener).shutdown(std::net::Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.thread().unpark();
            // It has nothing to return, and a panic of it has been reported.
            let _ = acceptor.join();
        }
        // Whoever asked to stop is to read the answer before the process ends.
        self.places.wait_for_answers(LAST_ANSWERS);
    }
}

/// Accepts connections until the end.
fn accept(listener: &UnixListener, is_over: &AtomicBool, places: &Arc<Places>, handler: &Handler) {
    loop {
        let accepted = listener.accept();
        if is_over.load(Ordering::Acquire) {
            return;
        }
        match accepted {
            Ok((stream, _)) => serve::admit(stream, places, handler),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                warn!("cannot accept on the control socket: {error}");
                std::thread::park_timeout(PAUSE);
            }
        }
    }
}

#[cfg(test)]
mod tests;
