//! Places for the files of a test, where nobody else has any.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A path for temporary files at which there is nothing: another user's run, or one of before, may
/// have had the same process id and have left something behind.
pub fn unused_path(name: &str) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let (directory, process) = (std::env::temp_dir(), std::process::id());
    let mut candidates = std::iter::repeat_with(|| {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        directory.join(format!("flowgate-{process}-{number}-{name}"))
    });
    candidates.find(|path| path.symlink_metadata().is_err()).expect("there is no end to numbers")
}

/// A directory that is deleted when dropped, with all that is in it.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new one.
    ///
    /// # Panics
    ///
    /// When it cannot be made.
    pub fn new(name: &str) -> Self {
        let path = unused_path(name);
        std::fs::create_dir(&path).expect("a directory");
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
