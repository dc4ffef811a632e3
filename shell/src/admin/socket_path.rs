//! Where the control socket is, and whose directory that is.

use std::ffi::OsString;
use std::fs::{DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::local::readers;

/// The name of the socket in its directory.
const NAME: &str = "control.sock";

/// The socket of the Flowgate that the service manager runs, whose `$RUNTIME_DIRECTORY` others do
/// not see.
const SERVICE: &str = if cfg!(target_os = "linux") {
    "/run/flowgate/control.sock"
} else {
    "/var/run/flowgate/control.sock"
};

/// Where the control socket is unless someone says otherwise: `$RUNTIME_DIRECTORY/control.sock`,
/// else `$XDG_RUNTIME_DIR/flowgate/control.sock`, else `/tmp/flowgate-UID/control.sock`.
pub fn default_path() -> PathBuf {
    path_in(|name| std::env::var_os(name), geteuid().as_raw())
}

/// Where a client looks when nobody names a socket: at the [default](default_path), and if there is
/// nothing, where the system's service has its own.
pub fn path_to_ask() -> PathBuf {
    let ours = default_path();
    let of_service = Path::new(SERVICE);
    // Where we may not look, there is one: anyone who is not permitted is to be told that.
    let may_exist = |path: &Path| path.try_exists().unwrap_or(true);
    if !may_exist(&ours) && may_exist(of_service) { of_service.to_owned() } else { ours }
}

fn path_in(variable: impl Fn(&str) -> Option<OsString>, user: u32) -> PathBuf {
    let directory = |name| variable(name).filter(|value| !value.is_empty());
    let directory = if let Some(directories) = directory("RUNTIME_DIRECTORY") {
        // The service manager may list several, with colons between them.
        std::env::split_paths(&directories).next().unwrap_or_default()
    } else if let Some(directory) = directory("XDG_RUNTIME_DIR") {
        Path::new(&directory).join("flowgate")
    } else {
        fallback(user)
    };
    directory.join(NAME)
}

/// The directory that is used where the system offers none.
fn fallback(user: u32) -> PathBuf {
    PathBuf::from(format!("/tmp/flowgate-{user}"))
}

/// Makes the directory of a socket, for its owner only, if there is none; and looks at the one in
/// `/tmp`, where anybody else may have been first.
pub(crate) fn prepare_directory(socket: &Path) -> io::Result<()> {
    let directory = directory_of(socket);
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Err(_) => {}
        Ok(()) => admit_readers(directory)?,
    }
    check_directory(socket)
}

/// Lets members of the group that may read reach the socket in a directory that has just been made.
/// The one in `/tmp` stays private.
fn admit_readers(directory: &Path) -> io::Result<()> {
    if directory == fallback(geteuid().as_raw()) {
        return Ok(());
    }
    match readers() {
        Some(group) if chown(directory, None, Some(group.as_raw())).is_ok() => {
            std::fs::set_permissions(directory, Permissions::from_mode(0o750))
        }
        _ => Ok(()),
    }
}

/// Whether the directory of a socket can be trusted, where that is in question: the one in `/tmp`.
/// One that does not exist can.
pub(super) fn check_directory(socket: &Path) -> io::Result<()> {
    let (directory, user) = (directory_of(socket), geteuid().as_raw());
    if directory != fallback(user) {
        return Ok(());
    }
    match std::fs::symlink_metadata(directory) {
        Ok(metadata) => is_private(&metadata, user).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether this is a directory that only `user` can use.
fn is_private(metadata: &Metadata, user: u32) -> Result<(), String> {
    let mode = metadata.mode() & 0o7777;
    let fault = if metadata.is_symlink() {
        "it is a symbolic link".to_owned()
    } else if !metadata.is_dir() {
        "it is not a directory".to_owned()
    } else if metadata.uid() != user {
        format!("it belongs to user {}", metadata.uid())
    } else if mode & 0o077 != 0 {
        format!("others may use it too: its mode is {mode:04o}")
    } else {
        return Ok(());
    };
    Err(format!("{fault}; another user may have created it to impersonate Flowgate. Remove it"))
}

/// The directory that a socket is in.
pub(super) fn directory_of(socket: &Path) -> &Path {
    match socket.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn path(variables: &[(&str, &str)]) -> PathBuf {
        let value = |name: &str| variables.iter().find(|(given, _)| *given == name);
        path_in(|name| value(name).map(|(_, value)| value.into()), 1000)
    }

    #[test]
    fn the_socket_is_in_the_first_directory_that_is_offered() {
        let xdg = ("XDG_RUNTIME_DIR", "/run/user/1000");
        assert_eq!(
            path(&[xdg, ("RUNTIME_DIRECTORY", "/run/flowgate:/run/other")]),
            Path::new("/run/flowgate/control.sock"),
        );
        let expected = Path::new("/run/user/1000/flowgate/control.sock");
        assert_eq!(path(&[xdg]), expected);
        assert_eq!(path(&[xdg, ("RUNTIME_DIRECTORY", "")]), expected);
        assert_eq!(path(&[]), Path::new("/tmp/flowgate-1000/control.sock"));
    }

    #[test]
    fn a_directory_is_private_when_nobody_else_can_have_a_hand_in_it() {
        let directory = std::env::temp_dir().join(format!("flowgate-place-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&directory).unwrap();
        let link = directory.join("link");
        std::os::unix::fs::symlink(&directory, &link).unwrap();
        let look = |path: &Path| std::fs::symlink_metadata(path).unwrap();
        let user = look(&directory).uid();

        assert_eq!(is_private(&look(&directory), user), Ok(()));
        let error = is_private(&look(&link), user).unwrap_err();
        assert!(error.contains("symbolic link"), "{error}");
        let error = is_private(&look(&directory), user + 1).unwrap_err();
        assert!(error.contains("belongs to user"), "{error}");
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o750)).unwrap();
        let error = is_private(&look(&directory), user).unwrap_err();
        assert!(error.contains("mode is 0750"), "{error}");
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_socket_without_a_directory_is_in_the_current_one() {
        assert_eq!(directory_of(Path::new("control.sock")), Path::new("."));
        assert_eq!(
            directory_of(Path::new("/run/flowgate/control.sock")),
            Path::new("/run/flowgate")
        );
    }
}
