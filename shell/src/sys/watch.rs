//! Directories that are watched (inotify).

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What the kernel tells of a file's directory.
#[derive(Debug)]
pub struct Watch {
    events: AsyncFd<Events>,
    /// The file's own name.
    name: Option<OsString>,
}

/// What has happened in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The file, or what it may be reached by, has been put in place, or its writer has closed it.
    Whole,
    /// Something else, which may be the beginning of that.
    Begun,
    /// The directory itself is gone, or elsewhere.
    Gone,
}

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
        let name = path.file_name().map(OsString::from);
        registered.ok().map(|events| Self { events, name })
    }

    /// Waits until something changes in the directory.
    pub async fn changed(&self) -> Change {
        while let Ok(mut ready) = self.events.readable().await {
            match self.events.get_ref().0.read_events() {
                Err(Errno::EAGAIN | Errno::EINTR) => ready.clear_ready(),
                Err(_) => return Change::Gone,
                Ok(events) => return self.change(&events),
            }
        }
        Change::Gone
    }

    fn change(&self, events: &[InotifyEvent]) -> Change {
        let any = |of: AddWatchFlags| events.iter().any(|event| event.mask.intersects(of));
        let is_closed = |event: &InotifyEvent| {
            event.mask.contains(AddWatchFlags::IN_CLOSE_WRITE) && event.name == self.name
        };
        if any(AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF) {
            Change::Gone
        } else if any(AddWatchFlags::IN_MOVED_TO) || events.iter().any(is_closed) {
            Change::Whole
        } else {
            Change::Begun
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
