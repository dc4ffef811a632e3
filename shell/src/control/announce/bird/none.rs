//! Bird does not run on Windows.

use std::path::Path;

/// Cannot be told anything.
pub(super) fn tell(socket: &Path, _protocol: &str, _is_enabled: bool) -> Result<(), String> {
    Err(format!("bird at {}: there is no bird on Windows", socket.display()))
}
