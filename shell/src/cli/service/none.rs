//! Other systems have service managers of their own.

use std::path::{Path, PathBuf};

use super::Failure;

fn refuse() -> Result<(), Failure> {
    Err(Failure(
        "`flowgate service` is for Windows; here the system's own service manager runs flowgate: see \
         systemd, rc.d and launchd among the examples"
            .to_owned(),
    ))
}

pub(super) fn install(_config: &Path) -> Result<(), Failure> {
    refuse()
}

pub(super) fn uninstall() -> Result<(), Failure> {
    refuse()
}

pub(super) fn start() -> Result<(), Failure> {
    refuse()
}

pub(super) fn stop() -> Result<(), Failure> {
    refuse()
}

pub(super) fn run(_config: PathBuf) -> Result<(), Failure> {
    refuse()
}
