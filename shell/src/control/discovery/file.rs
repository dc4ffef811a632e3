//! A file, by its directory.
//!
//! Anyone who replaces a file does so by a rename, or, as Kubernetes does for what it mounts, by one of
//! a link on the way to it. Either is an event of the directory. Where the kernel tells no events,
//! the file is looked at every few seconds.
//!
//! What has been put in place by a rename, or has been closed by those who wrote it, is whole and is read at
//! once. What may be written yet is given a moment.

use std::path::Path;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::Followed;
use crate::sys::files::Stamp;
use crate::sys::watch::{Change, Watch};

/// How long a file that may be written yet may change on before it is read, and the least time from one
/// reading to the next.
const READ_INTERVAL: Duration = Duration::from_millis(50);

/// The least time from one look at the file to the next, in a directory where much happens.
const MIN_LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// How often the file is looked at where events may not be told, as on network file systems.
const LOOK: Duration = Duration::from_secs(5);

/// The same where there are no events at all, such as while there is no directory.
const LOOK_OFTEN: Duration = Duration::from_secs(1);

/// The largest file that is read.
const MAX_LEN: u64 = 64 << 20;

pub(super) async fn follow(path: &Path, followed: &mut Followed) {
    let (mut seen, mut is_whole) = (None, true);
    let mut readings = tokio::time::interval(READ_INTERVAL);
    readings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Before the file is looked at, so that no change is missed.
    let mut watch = Watch::start(path);
    loop {
        let now = stamp(path);
        if seen.as_ref() != Some(&now) {
            if !is_whole {
                be_written(watch.as_ref(), READ_INTERVAL).await;
            }
            readings.tick().await;
            let now = stamp(path);
            // What is not read as a whole is read again with its next change.
            let _ = followed.learn(read(path));
            seen = Some(now);
        }
        watch = match watch {
            Some(watch) => match tokio::time::timeout(LOOK, watch.changed()).await {
                Ok(Change::Whole) => {
                    is_whole = true;
                    Some(watch)
                }
                Ok(Change::Begun) => {
                    is_whole = false;
                    tokio::time::sleep(MIN_LOOK_INTERVAL).await;
                    Some(watch)
                }
                // It may be another directory by now.
                Ok(Change::Gone) | Err(_) => {
                    is_whole = false;
                    tokio::time::sleep(MIN_LOOK_INTERVAL).await;
                    Watch::start(path)
                }
            },
            None => {
                is_whole = false;
                tokio::time::sleep(LOOK_OFTEN).await;
                Watch::start(path)
            }
        };
    }
}

/// Waits until a file that has changed is whole, at most as long as it may take to write one. What was put in
/// place right after something else in its directory, such as the writing of a draft, is whole already.
async fn be_written(watch: Option<&Watch>, at_most: Duration) {
    let Some(watch) = watch else { return tokio::time::sleep(at_most).await };
    let is_whole = async {
        loop {
            match watch.changed().await {
                Change::Whole => return,
                Change::Begun => {}
                // It tells nothing more.
                Change::Gone => std::future::pending().await,
            }
        }
    };
    // If it does not become so, it is read as it is.
    let _ = tokio::time::timeout(at_most, is_whole).await;
}

fn read(path: &Path) -> Result<Vec<flowgate_config::Member>, String> {
    match std::fs::metadata(path) {
        // A pipe would be waited for.
        Ok(metadata) if !metadata.is_file() => Err("it is no regular file".to_owned()),
        Ok(metadata) if metadata.len() > MAX_LEN => {
            Err(format!("it has more than {MAX_LEN} bytes"))
        }
        Ok(_) => {
            let text = std::fs::read(path).map_err(|error| error.to_string())?;
            flowgate_config::parse_found(&text)
        }
        Err(error) => Err(error.to_string()),
    }
}

/// In what state the file is. None: there is none.
fn stamp(path: &Path) -> Option<Stamp> {
    std::fs::metadata(path).ok().map(|metadata| Stamp::of(&metadata))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    /// Longer than any machine takes.
    const FOREVER: Duration = Duration::from_secs(3_600);

    #[test]
    fn what_was_put_in_place_right_after_its_draft_was_written_is_not_waited_for() {
        let name = format!("flowgate-draft-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).unwrap();
        let (path, draft) = (directory.join("web.json"), directory.join(".draft"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let Some(watch) = Watch::start(&path) else {
                // Where directories are not watched, all is waited for.
                return be_written(None, Duration::from_millis(1)).await;
            };
            fs::write(&draft, "[]").unwrap();
            assert_eq!(watch.changed().await, Change::Begun);
            fs::rename(&draft, &path).unwrap();
            let written = be_written(Some(&watch), FOREVER);
            tokio::time::timeout(FOREVER / 60, written).await.expect("it is whole");

            // One that is open yet is given its time, and no more.
            let mut file = File::create(&path).unwrap();
            std::io::Write::write_all(&mut file, b"[").unwrap();
            be_written(Some(&watch), Duration::from_millis(1)).await;
            // Until it is closed.
            drop(file);
            be_written(Some(&watch), FOREVER).await;
        });
        fs::remove_dir_all(&directory).unwrap();
    }
}
