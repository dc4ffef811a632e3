//! Where the file is that says how to ask a running Flowgate, and who can read it.
//!
//! It is in a directory that only its user, the system and administrators can read, as Windows makes
//! it: nothing else keeps others from asking.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// The name of the file in its directory.
const NAME: &str = "control.token";

/// Where the service has it, which is a local service, under the directory of Windows.
const SERVICE: &str = r"ServiceProfiles\LocalService\AppData\Local\flowgate";

/// Where the file is unless someone says otherwise: in `flowgate` in the user's directory for what
/// stays on this machine.
pub fn default_path() -> PathBuf {
    path_in(|name| std::env::var_os(name))
}

/// Where a client looks when nobody names a file: at the [default](default_path), and if there is
/// nothing, where the service has its own.
pub fn path_to_ask() -> PathBuf {
    let (ours, of_service) = (default_path(), of_service());
    // Where we may not look, there is one: anyone who is not permitted is to be told that.
    let may_exist = |path: &Path| path.try_exists().unwrap_or(true);
    if !may_exist(&ours) && may_exist(&of_service) { of_service } else { ours }
}

/// Where the service has its own.
pub(crate) fn of_service() -> PathBuf {
    let windows = std::env::var_os("SystemRoot").unwrap_or_else(|| r"C:\Windows".into());
    Path::new(&windows).join(SERVICE).join(NAME)
}

fn path_in(variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let directory = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let local = directory("LOCALAPPDATA")
        .or_else(|| Some(directory("USERPROFILE")?.join("AppData").join("Local")))
        .unwrap_or_else(std::env::temp_dir);
    local.join("flowgate").join(NAME)
}

/// Makes the directory of a file, if there is none.
pub(crate) fn prepare_directory(file: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory_of(file))
}

/// Whether the directory of a file can be trusted: one that only its user can write to can.
pub(super) fn check_directory(_file: &Path) -> io::Result<()> {
    Ok(())
}

/// The directory that a file is in.
fn directory_of(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
