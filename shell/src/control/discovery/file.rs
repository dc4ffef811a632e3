//! A file, by its directory.
//!
//! Anyone who replaces a file does so by a rename, or, as Kubernetes does for what it mounts, by one of
//! a link on the way to it. Either is an event of the directory. Where the kernel tells no events,
//! the file is looked at every few seconds.

use std::path::Path;
use std::time::Duration;

use super::Followed;
use crate::sys::files::Stamp;
use crate::sys::watch::Watch;

/// How long the file may change on before it is read.
const PAUSE: Duration = Duration::from_millis(50);

/// How often the file is looked at where events may not be told, as on network file systems.
const LOOK: Duration = Duration::from_secs(5);

/// The same where there are no events at all, such as while there is no directory.
const LOOK_OFTEN: Duration = Duration::from_secs(1);

/// The largest file that is read.
const LARGEST: u64 = 64 << 20;

pub(super) async fn follow(path: &Path, followed: &mut Followed) {
    let mut seen = None;
    loop {
        // Before the file is looked at, so that no change is missed.
        let watch = Watch::start(path);
        let now = std::fs::metadata(path).ok().map(|metadata| Stamp::of(&metadata));
        if seen.as_ref() != Some(&now) {
            // What is not read as a whole is read again with its next change.
            let _ = followed.learn(read(path));
            seen = Some(now);
        }
        match watch {
            Some(watch) => {
                let _ = tokio::time::timeout(LOOK, watch.changed()).await;
                tokio::time::sleep(PAUSE).await;
            }
            None => tokio::time::sleep(LOOK_OFTEN).await,
        }
    }
}

fn read(path: &Path) -> Result<Vec<flowgate_config::Member>, String> {
    match std::fs::metadata(path) {
        // A pipe would be waited for.
        Ok(metadata) if !metadata.is_file() => Err("it is no regular file".to_owned()),
        Ok(metadata) if metadata.len() > LARGEST => {
            Err(format!("it has more than {LARGEST} bytes"))
        }
        Ok(_) => {
            let text = std::fs::read(path).map_err(|error| error.to_string())?;
            flowgate_config::parse_found(&text)
        }
        Err(error) => Err(error.to_string()),
    }
}
