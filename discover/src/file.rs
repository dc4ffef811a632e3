//! The file that a balancer watches.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::Backends;

/// The file of one service's backends.
#[derive(Debug)]
pub struct BackendsFile {
    path: PathBuf,
    may_be_empty: bool,
}

/// What became of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// The file has it now.
    Changed,
    /// The file had it already, and was not touched.
    Same,
    /// It is empty and what the file has is not: that stays.
    KeptFormer,
}

impl BackendsFile {
    /// The file at `path`. With `may_be_empty`, an empty set replaces one that is not.
    pub fn new(path: impl Into<PathBuf>, may_be_empty: bool) -> Self {
        Self { path: path.into(), may_be_empty }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file say these backends. Who reads it sees what it said before or all of this.
    ///
    /// # Errors
    ///
    /// When it cannot be written. Then it is as it was.
    pub fn write(&self, backends: &Backends) -> io::Result<Written> {
        let text = backends.to_json();
        match fs::read(&self.path) {
            Ok(former) if former == text.as_bytes() => return Ok(Written::Same),
            Ok(_) if backends.is_empty() && !self.may_be_empty => return Ok(Written::KeptFormer),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if backends.is_empty() && !self.may_be_empty {
                    return Ok(Written::KeptFormer);
                }
            }
            Err(error) => return Err(error),
        }
        self.replace(text.as_bytes())?;
        Ok(Written::Changed)
    }

    /// Puts a new file in the place of the old one, in one step, once it is on the disk.
    fn replace(&self, content: &[u8]) -> io::Result<()> {
        let name = self.path.file_name().ok_or(io::ErrorKind::IsADirectory)?.to_string_lossy();
        let folder = match self.path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        // A name of our own: two that write the same file do not write into each other's.
        let draft = folder.join(format!(".{name}.{}", std::process::id()));
        let written = File::create(&draft).and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()
        });
        let replaced = written.and_then(|()| fs::rename(&draft, &self.path));
        if replaced.is_err() {
            // What is left of it is of no use.
            let _ = fs::remove_file(&draft);
            return replaced;
        }
        // Windows opens no folder; it keeps what was renamed by itself.
        if cfg!(windows) { Ok(()) } else { File::open(folder)?.sync_all() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Backend;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("fg-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn one(address: &str) -> Backends {
        let mut backends = Backends::default();
        backends.insert(address, Backend::default());
        backends
    }

    #[test]
    fn a_file_is_replaced_whole_and_only_where_it_changes() {
        use std::os::unix::fs::MetadataExt;

        let folder = Folder::new("replaced");
        let file = BackendsFile::new(folder.0.join("web.json"), false);
        let inode = || fs::metadata(file.path()).unwrap().ino();

        assert_eq!(file.write(&one("10.0.0.1:53")).unwrap(), Written::Changed);
        let held = File::open(file.path()).unwrap();
        let first = inode();
        assert_eq!(file.write(&one("10.0.0.1:53")).unwrap(), Written::Same);
        assert_eq!(inode(), first);
        assert_eq!(file.write(&one("10.0.0.2:53")).unwrap(), Written::Changed);
        assert_ne!(inode(), first, "who had it open reads on in the old one");
        let old = io::read_to_string(held).unwrap();
        assert!(old.contains("10.0.0.1:53"), "{old}");
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1, "no drafts are left");
    }

    #[test]
    fn an_empty_set_replaces_nothing_unless_it_may() {
        let folder = Folder::new("empty");
        let path = folder.0.join("web.json");
        let careful = BackendsFile::new(&path, false);
        assert_eq!(careful.write(&Backends::default()).unwrap(), Written::KeptFormer);
        assert!(!path.exists());
        careful.write(&one("10.0.0.1:53")).unwrap();
        assert_eq!(careful.write(&Backends::default()).unwrap(), Written::KeptFormer);
        assert!(fs::read_to_string(&path).unwrap().contains("10.0.0.1:53"));

        let trusting = BackendsFile::new(&path, true);
        assert_eq!(trusting.write(&Backends::default()).unwrap(), Written::Changed);
        assert_eq!(fs::read_to_string(&path).unwrap(), "[]\n");
    }

    #[test]
    fn what_cannot_be_written_leaves_no_draft() {
        let folder = Folder::new("refused");
        let path = folder.0.join("web.json");
        fs::create_dir_all(path.join("occupied")).unwrap();
        let file = BackendsFile::new(&path, false);
        assert!(file.write(&one("10.0.0.1:53")).is_err());
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
    }
}
