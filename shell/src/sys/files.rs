//! Files, as far as systems differ about them.

use std::fs::{File, Metadata};
use std::io;
use std::path::Path;

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

/// Opens a file for appending. A pipe that nobody reads is an error, and not waited for.
///
/// # Errors
///
/// Those of `open(2)`.
#[cfg(unix)]
pub fn append_to(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let mut options = File::options();
    options.append(true).create(true).custom_flags(OFlag::O_NONBLOCK.bits());
    let file = options.open(path)?;
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
