//! Files, as far as systems differ about them.

use std::fs::{File, Metadata};
use std::io;
use std::path::Path;

#[cfg(unix)]
use super::errno;

/// A file that is always there, and keeps nothing.
pub const NULL: &str = if cfg!(windows) { "NUL" } else { "/dev/null" };

/// Opens a file for its owner alone, and makes it if there is none. What it holds stays.
///
/// # Errors
///
/// Those of `open(2)` and `chmod(2)`.
#[cfg(unix)]
pub fn private(path: &Path) -> io::Result<File> {
    use std::fs::Permissions;
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(path)?;
    if file.metadata()?.is_file() {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

/// Opens a file, and makes it if there is none, for those who may read in its directory. What it holds
/// stays.
///
/// # Errors
///
/// Those of the system.
#[cfg(not(unix))]
pub fn private(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(false).open(path)
}

/// A pipe without a reader was to be written to.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("nobody reads this pipe")]
pub struct NoReader;

/// Whether this is a pipe with a name.
#[cfg(unix)]
pub fn is_pipe(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    path.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo())
}

/// There are none in the file system.
#[cfg(not(unix))]
pub const fn is_pipe(_: &Path) -> bool {
    false
}

/// What helps where a file [cannot be appended to](append_to).
pub fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        _ if error.get_ref().is_some_and(|inner| inner.is::<NoReader>()) => {
            "start the program that reads it first, or name a file"
        }
        io::ErrorKind::NotFound => "make its directory, or name another file",
        io::ErrorKind::PermissionDenied => {
            "let flowgate's user write it and make files in its directory, or name another file"
        }
        _ => "name a file that can be appended to",
    }
}

/// Opens a file for appending. A pipe that nobody reads is an error, and not waited for.
///
/// # Errors
///
/// Those of `open(2)`, and [`NoReader`].
#[cfg(unix)]
pub fn append_to(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let mut options = File::options();
    options.append(true).create(true).custom_flags(OFlag::O_NONBLOCK.bits());
    let file = options.open(path).map_err(|error| {
        // A socket has the same error.
        if errno::is_no_reader(&error) && is_pipe(path) {
            io::Error::other(NoReader)
        } else {
            error
        }
    })?;
    // From now on its writer may wait.
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND))?;
    Ok(file)
}

/// Opens a file for appending.
///
/// # Errors
///
/// Those of the system.
#[cfg(not(unix))]
pub fn append_to(path: &Path) -> io::Result<File> {
    File::options().append(true).create(true).open(path)
}

/// The device and the inode of standard error, where there are such.
#[cfg(unix)]
pub fn identity_of_stderr() -> Option<(u64, u64)> {
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;
    let ours = File::from(io::stderr().as_fd().try_clone_to_owned().ok()?).metadata().ok()?;
    Some((ours.dev(), ours.ino()))
}

/// There are none.
#[cfg(not(unix))]
pub const fn identity_of_stderr() -> Option<(u64, u64)> {
    None
}

/// What tells one state of a file from another: on Unix its size, device and inode, and when content and
/// inode have changed; on Windows when it was made and has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    size: u64,
    of_system: [i128; 6],
}

impl Stamp {
    /// The state that a file is in.
    pub fn of(metadata: &Metadata) -> Self {
        Self { size: metadata.len(), of_system: stamp(metadata) }
    }
}

#[cfg(unix)]
fn stamp(metadata: &Metadata) -> [i128; 6] {
    use std::os::unix::fs::MetadataExt;
    let place = [metadata.dev(), metadata.ino()].map(i128::from);
    let modified = [metadata.mtime(), metadata.mtime_nsec()].map(i128::from);
    let changed = [metadata.ctime(), metadata.ctime_nsec()].map(i128::from);
    [place[0], place[1], modified[0], modified[1], changed[0], changed[1]]
}

#[cfg(windows)]
fn stamp(metadata: &Metadata) -> [i128; 6] {
    use std::os::windows::fs::MetadataExt;
    [metadata.creation_time().into(), metadata.last_write_time().into(), 0, 0, 0, 0]
}
