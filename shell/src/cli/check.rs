//! `flowgate check`: is a configuration valid, and what does it say?

use std::path::Path;

use flowgate_core::config::Mode;

use super::Failure;
use crate::control::reach;

pub(super) fn run(path: &Path) -> Result<(), Failure> {
    let config = flowgate_config::load(path)?;
    for warning in &config.warnings {
        eprintln!("warning: {warning}");
    }
    reach::check(&config)?;
    println!("{}: valid", path.display());
    for listener in &config.listeners {
        let cluster = &listener.cluster;
        println!(
            "  listener {:?} on {} -> cluster {:?}: {}, {} backend{}",
            listener.name,
            listener.address,
            cluster.name,
            match cluster.policy.mode {
                Mode::Session { .. } => cluster.policy.balance.to_string(),
                Mode::OneWay => format!("one-way, {}", cluster.policy.balance),
                Mode::FanOut { .. } => "fan-out".to_owned(),
            },
            cluster.members.len(),
            if cluster.members.len() == 1 { "" } else { "s" },
        );
    }
    Ok(())
}
