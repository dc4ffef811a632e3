//! `flowgate service`: Flowgate as a service of Windows.

use clap::Subcommand;

use super::{ConfigArgument, Failure};

#[cfg_attr(not(windows), path = "service/none.rs")]
mod windows;

/// What is to be done with the service.
#[derive(Debug, Subcommand)]
pub(super) enum ServiceCommand {
    /// Have Windows run Flowgate as a service, from its next start on
    Install {
        #[command(flatten)]
        config: ConfigArgument,
    },
    /// Have Windows run it no more
    Uninstall,
    /// Start the service
    Start,
    /// Stop the service when its flows have ended
    Stop,
    /// What Windows starts
    #[command(hide = true)]
    Run {
        #[command(flatten)]
        config: ConfigArgument,
    },
}

pub(super) fn run(command: ServiceCommand) -> Result<(), Failure> {
    match command {
        ServiceCommand::Install { config } => windows::install(&config.config),
        ServiceCommand::Uninstall => windows::uninstall(),
        ServiceCommand::Start => windows::start(),
        ServiceCommand::Stop => windows::stop(),
        ServiceCommand::Run { config } => windows::run(config.config),
    }
}
