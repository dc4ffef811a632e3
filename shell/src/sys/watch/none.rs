//! Where the system does not tell when a directory changes: files are looked at instead.

use std::future::pending;
use std::path::Path;

/// Nothing to wait for.
#[derive(Debug)]
pub struct Watch(());

impl Watch {
    /// Nothing is told.
    #[must_use]
    pub fn start(_path: &Path) -> Option<Self> {
        None
    }

    /// Never ends.
    pub async fn changed(&self) -> Change {
        pending().await
    }
}

/// What has happened in a directory: never anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// What is looked at is whole.
    Whole,
    /// It may be about to be.
    Begun,
    /// There is no directory any more.
    Gone,
}
