//! Takes the socket's place in the file system, and gives it back.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg, OFlag};
use socket2::{Domain, SockAddr, Socket, Type};

use super::super::local::readers;
use super::super::socket_path;
use super::ControlError;
use crate::admin::escape::escaped_path;
use crate::sys::clock::Clock;

/// How many connections wait to be accepted.
const BACKLOG: i32 = 128;

/// How long to wait for another process that is taking its place in the same directory.
const TURN: Duration = Duration::from_secs(2);

/// How long to wait before asking whether it has.
const STEP: Duration = Duration::from_millis(5);

/// A socket's file, known by its device and inode.
#[derive(Debug)]
pub(super) struct Claim {
    path: PathBuf,
    /// The device and the inode, unless the file is another's to remove.
    file: Option<(u64, u64)>,
}

impl Claim {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file, if it is still ours.
    pub(super) fn give_up(&self) {
        let is_ours = |file: Metadata| Some((file.dev(), file.ino())) == self.file;
        if std::fs::symlink_metadata(&self.path).is_ok_and(is_ours) {
            // A file that stays is replaced by the next to come.
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// Leaves the file to someone else.
    pub(super) const fn disown(&mut self) {
        self.file = None;
    }
}

/// The file of a listening socket that was bound elsewhere, and is ours from now on.
pub(super) fn adopted(path: &Path) -> Result<Claim, ControlError> {
    let failed = |doing| move |error| ControlError::Failed { path: path.to_owned(), doing, error };
    let file = std::fs::symlink_metadata(path).map_err(failed("looking at it"))?;
    Ok(Claim { path: path.to_owned(), file: Some((file.dev(), file.ino())) })
}

/// Binds a listening socket to `path`, in the place of that of a dead process if need be.
pub(super) fn claim(path: &Path) -> Result<(Claim, UnixListener), ControlError> {
    let failed = |doing| move |error| ControlError::Failed { path: path.to_owned(), doing, error };
    let address = SockAddr::unix(path).map_err(failed("its path (at most 107 bytes)"))?;
    socket_path::prepare_directory(path).map_err(failed("its directory"))?;
    // Two that start at the same time would each take the other's file for that of a dead process.
    let _turn = turn(path).map_err(failed("its lock"))?;
    clear(path, &address)?;
    let socket = bind(path, &address).map_err(failed("binding it"))?;
    let file = std::fs::symlink_metadata(path).map_err(failed("looking at it"))?;
    let claim = Claim { path: path.to_owned(), file: Some((file.dev(), file.ino())) };
    let listen = || {
        // Members of the group may read: what they may ask is checked when they ask. Who may not
        // give it to the group does without.
        let readers = readers().filter(|readers| chown(path, None, Some(readers.as_raw())).is_ok());
        let mode = if readers.is_some() { 0o660 } else { 0o600 };
        // A umask may have taken rights from the owner.
        if file.mode() & 0o777 != mode {
            std::fs::set_permissions(path, Permissions::from_mode(mode))?;
        }
        socket.listen(BACKLOG)
    };
    if let Err(error) = listen() {
        claim.give_up();
        return Err(failed("listening on it")(error));
    }
    Ok((claim, UnixListener::from(OwnedFd::from(socket))))
}

/// Waits until no other process claims this path, and keeps others waiting: by a lock on a file
/// beside it, which nobody but its owner can open. It stays, since another may wait for it.
fn turn(path: &Path) -> io::Result<Flock<File>> {
    let clock = Clock::start();
    let mut lock = path.as_os_str().to_owned();
    lock.push(".lock");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.custom_flags(OFlag::O_NOFOLLOW.bits()).open(lock)?;
    loop {
        let (again, error) = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(turn) => return Ok(turn),
            Err((again, errno)) => (again, io::Error::from(errno)),
        };
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted if clock.uptime() < TURN => {
                file = again;
                std::thread::sleep(STEP);
            }
            io::ErrorKind::WouldBlock => return Err(io::Error::other("another process holds it")),
            _ => return Err(error),
        }
    }
}

/// Makes sure that nothing is at `path`: removes the socket of a dead process, and nothing else.
fn clear(path: &Path, address: &SockAddr) -> Result<(), ControlError> {
    let failed = |doing, error| ControlError::Failed { path: path.to_owned(), doing, error };
    match std::fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => {}
        Ok(_) => return Err(ControlError::NotASocket(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("looking at it", error)),
    }
    match is_served(address) {
        Ok(true) => Err(ControlError::AnotherIsRunning(path.to_owned())),
        Ok(false) => std::fs::remove_file(path)
            .map_err(|error| failed("removing that of a dead process", error)),
        Err(error) => Err(failed("finding out whether another flowgate serves it", error)),
    }
}

/// Whether someone listens there.
fn is_served(address: &SockAddr) -> io::Result<bool> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(address) {
        Ok(()) => Ok(true),
        Err(error) => match error.kind() {
            // The queue of connections is full.
            io::ErrorKind::WouldBlock => Ok(true),
            io::ErrorKind::ConnectionRefused => Ok(false),
            _ => Err(error),
        },
    }
}

/// Binds a socket whose file nobody but its owner has ever been able to use.
fn bind(path: &Path, address: &SockAddr) -> io::Result<Socket> {
    let socket = File::from(OwnedFd::from(Socket::new(Domain::UNIX, Type::STREAM, None)?));
    // On Linux the file gets the mode of the socket, less the umask. Others refuse that; and before
    // someone listens, nobody can connect.
    let narrowed = socket.set_permissions(Permissions::from_mode(0o600));
    if cfg!(target_os = "linux") {
        narrowed?;
    }
    let socket = Socket::from(OwnedFd::from(socket));
    socket.bind(address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => io::Error::other(format!(
            "{} was created by another process at the same moment",
            escaped_path(path)
        )),
        _ => error,
    })?;
    Ok(socket)
}
