//! Directories that are watched (inotify).

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What the kernel tells of a file's directory.
#[derive(Debug)]
pub struct Watch(AsyncFd<Events>);

impl Watch {
    /// `None` where it tells nothing: there is no directory, or too much is watched already.
    #[must_use]
    pub fn start(path: &Path) -> Option<Self> {
        let directory = match path.parent() {
            Some(directory) if directory != Path::new("") => directory,
            _ => Path::new("."),
        };
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok()?;
        let events = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_MOVE_SELF;
        inotify.add_watch(directory, events).ok()?;
        // SAFETY: the descriptor that `as_raw_fd` returns is the instance's own, the same each time,
        // and is open as long as the instance lives, which the result owns.
        let registered =
            unsafe { AsyncFd::register_with_interest(Events(inotify), Interest::READABLE) };
        registered.ok().map(Self)
    }

    /// Waits until something changes in the directory.
    pub async fn changed(&self) {
        while let Ok(mut ready) = self.0.readable().await {
            match self.0.get_ref().0.read_events() {
                Err(Errno::EAGAIN | Errno::EINTR) => ready.clear_ready(),
                _ => return,
            }
        }
    }
}

#[derive(Debug)]
struct Events(Inotify);

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}
