//! From the sets that a source sends to the file.

use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};

use crate::{Backends, BackendsFile, Backoff, Written};

/// Where a source sends each set that it sees; `None` before the first.
pub type Sets = watch::Sender<Option<Backends>>;

/// Writes the sets of one source to a file, until the source is gone. Changes that follow each
/// other within `pause` are written once. With `once`, ends after the first set.
///
/// # Errors
///
/// Only with `once`: that the first set cannot be written. That it is empty, and was not written for
/// that, is no error: the balancer starts without, and hears of backends later.
pub async fn publish(
    mut sets: watch::Receiver<Option<Backends>>,
    file: &BackendsFile,
    pause: Duration,
    once: bool,
) -> Result<(), String> {
    let mut backoff = Backoff::default();
    while sets.changed().await.is_ok() {
        tokio::time::sleep(pause).await;
        let Some(backends) = sets.borrow_and_update().clone() else { continue };
        let outcome = write(file, &backends);
        if once {
            return outcome;
        }
        if let Err(why) = outcome {
            warn!("{why}");
            tokio::time::sleep(backoff.failed()).await;
            sets.mark_changed();
        } else {
            backoff.worked();
        }
    }
    Ok(())
}

/// Writes one set, and says what became of it. That an empty one was not written is not the
/// file's fault, and trying again would not help.
fn write(file: &BackendsFile, backends: &Backends) -> Result<(), String> {
    let path = file.path();
    match file.write(backends) {
        Ok(Written::Changed) => info!(?path, backends = backends.len(), "wrote the backends"),
        Ok(Written::Same) => {}
        Ok(Written::KeptFormer) => {
            warn!(?path, "the source has no backends: the file stays as it is (--allow-empty)");
        }
        Err(error) => return Err(format!("cannot write {}: {error}", path.display())),
    }
    Ok(())
}
