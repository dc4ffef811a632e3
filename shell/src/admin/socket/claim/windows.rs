//! Writes the file that says where to ask, and takes it away again.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::local::{Connection, Listener};
use super::super::socket_path;
use super::ControlError;

/// How long another process may take to be found to serve.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A file that says where to ask.
#[derive(Debug)]
pub(super) struct Claim {
    path: PathBuf,
    /// What was written to it.
    text: String,
}

impl Claim {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file, if it is still ours.
    pub(super) fn give_up(&self) {
        if std::fs::read_to_string(&self.path).is_ok_and(|text| text == self.text) {
            // A file that stays is replaced by the next to come.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Listens, and says so at `path`, in the place of a dead process's file if need be.
pub(super) fn claim(path: &Path) -> Result<(Claim, Listener), ControlError> {
    let failed = |doing| move |error| ControlError::Failed { path: path.to_owned(), doing, error };
    socket_path::prepare_directory(path).map_err(failed("its directory"))?;
    match std::fs::symlink_metadata(path) {
        Ok(file) if !file.is_file() => return Err(ControlError::NotASocket(path.to_owned())),
        Ok(_) if Connection::open(path, CONNECT_TIMEOUT).is_ok() => {
            return Err(ControlError::AnotherIsRunning(path.to_owned()));
        }
        Ok(_) => std::fs::remove_file(path).map_err(failed("removing that of a dead process"))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("looking at it")(error)),
    }
    let listener = Listener::open().map_err(failed("listening"))?;
    let text = listener.describe().map_err(failed("listening"))?;
    let write =
        || OpenOptions::new().write(true).create_new(true).open(path)?.write_all(text.as_bytes());
    write().map_err(failed("writing it"))?;
    Ok((Claim { path: path.to_owned(), text }, listener))
}
