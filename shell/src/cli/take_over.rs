//! `flowgate run --take-over`: the balancer in the place of another process, which has started this one.

use std::path::Path;

use tracing::{error, info, warn};

use super::Failure;
use crate::control::log;
use crate::control::supervisor::Supervisor;
use crate::handover::predecessor::Predecessor;

pub(super) fn run(path: &Path) -> Result<(), Failure> {
    let predecessor = Predecessor::of_this_process()?;
    let (config, text) = match flowgate_config::load_text(path) {
        Ok(loaded) => loaded,
        Err(error) => {
            predecessor.refuse(error.to_string().lines().map(str::to_owned).collect());
            return Err(error.into());
        }
    };
    let level = log::init(&config.log);
    for warning in &config.warnings {
        warn!("{warning}");
    }
    let supervisor = Supervisor::take_over(path, (config, text), level, predecessor);
    let supervisor = supervisor.inspect_err(|error| error!("{error}"))?;
    info!(version = env!("CARGO_PKG_VERSION"), io = supervisor.io().as_str(), "took over");
    supervisor.run()?;
    info!("stopped");
    Ok(())
}
