//! `flowgate run`: the balancer in the foreground.

use std::path::Path;

use tracing::{info, warn};

use super::Failure;
use crate::log;
use crate::supervisor::Supervisor;

pub(super) fn run(path: &Path) -> Result<(), Failure> {
    let config = flowgate_config::load(path)?;
    let level = log::init(&config.log);
    for warning in &config.warnings {
        warn!("{warning}");
    }
    let supervisor = Supervisor::start(path, config, level)?;
    info!(version = env!("CARGO_PKG_VERSION"), "started");
    supervisor.run()?;
    info!("stopped");
    Ok(())
}
