//! `flowgate run`: the balancer in the foreground.

use std::path::Path;

use tracing::{info, warn};

use super::Failure;
use crate::control::log;
use crate::control::supervisor::Supervisor;

pub(super) fn run(path: &Path) -> Result<(), Failure> {
    let (config, text) = flowgate_config::load_text(path)?;
    let level = log::init(&config.log);
    for warning in &config.warnings {
        warn!("{warning}");
    }
    let supervisor = Supervisor::start(path, (config, text), level)?;
    info!(version = env!("CARGO_PKG_VERSION"), io = supervisor.io().as_str(), "started");
    supervisor.run()?;
    info!("stopped");
    Ok(())
}
