//! The last good set of a cluster, on disk.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use flowgate_config::{Member, Place, parse_found, write_found};

use crate::admin::socket_path::{default_path, prepare_directory};

/// Where good sets are kept: in `$STATE_DIRECTORY`, which the service manager makes, else where the
/// control socket usually is, which nobody else may write to.
pub(crate) fn directory() -> Option<PathBuf> {
    directory_in(|name| std::env::var_os(name))
}

fn directory_in(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if let Some(directories) = variable("STATE_DIRECTORY").filter(|value| !value.is_empty()) {
        // The service manager may list several, with colons between them.
        return std::env::split_paths(&directories).next();
    }
    default_path().parent().map(Path::to_owned)
}

/// The file of one cluster's last good set.
pub(super) struct Kept(PathBuf);

impl Kept {
    /// A file of its own for each cluster and source: what another source said is of no use.
    pub(super) fn new(directory: &Path, cluster: &str, place: &Place) -> Self {
        let is_plain = |c: &char| c.is_ascii_alphanumeric() || "-_".contains(*c);
        let mut name: String = cluster.chars().filter(is_plain).take(64).collect();
        let _ = write!(name, "-{:016x}.backends.json", hash(&format!("{cluster}\0{place}")));
        Self(directory.join(name))
    }

    pub(super) fn read(&self) -> Option<(Vec<Member>, &Path)> {
        let members = parse_found(&fs::read(&self.0).ok()?).ok()?;
        Some((members, &self.0))
    }

    pub(super) fn write(&self, members: &[Member]) -> io::Result<()> {
        prepare_directory(&self.0)?;
        let draft = self.0.with_extension(format!("{}", std::process::id()));
        // What a process of the same number left behind is in the way.
        let _ = fs::remove_file(&draft);
        let mut file = File::create_new(&draft)?;
        let written =
            file.write_all(write_found(members).as_bytes()).and_then(|()| file.sync_all());
        let replaced = written.and_then(|()| fs::rename(&draft, &self.0));
        if replaced.is_err() {
            // What is left of it is of no use.
            let _ = fs::remove_file(&draft);
        }
        replaced
    }
}

/// FNV-1a, which is the same in every version of ours.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_kept_where_the_service_manager_says_else_where_the_control_socket_is() {
        let at = |value: &str| directory_in(|_| Some(value.into()));
        assert_eq!(at("/var/lib/flowgate:/b"), Some("/var/lib/flowgate".into()));
        assert_eq!(at(""), default_path().parent().map(Path::to_owned));
    }

    #[test]
    fn each_cluster_and_source_has_a_file_of_its_own() {
        let path = |cluster: &str, place: &str| {
            Kept::new(Path::new("/s"), cluster, &Place::File(place.into())).0
        };
        let one = path("a/../b", "/x");
        assert!(one.to_str().unwrap().starts_with("/s/ab-"), "{one:?}");
        assert_ne!(one, path("ab", "/x"));
        assert_ne!(one, path("a/../b", "/y"));
    }
}
