//! Going over to what the configuration file says now.

use std::time::Duration;

use flowgate_config::LoadError;
use tracing::{info, warn};

use super::Supervisor;
use super::targets::names;

/// How long a reload waits for names that are new to be resolved. Nothing else is seen to
/// meanwhile; those that are not known then follow by themselves.
const PATIENCE_WITH_NAMES: Duration = Duration::from_secs(2);

impl Supervisor {
    /// Reads the file again and goes over to it. Returns what the operator may want to know.
    ///
    /// # Errors
    ///
    /// Every reason why not. Everything stays as it was then.
    pub(super) fn reload(&mut self) -> Result<Vec<String>, Vec<String>> {
        self.notifier.reloading();
        let outcome = self.try_reload();
        self.notifier.ready();
        match &outcome {
            Ok(_) => {
                self.reloads.ok += 1;
                info!("reloaded");
            }
            Err(_) => self.reloads.failed += 1,
        }
        outcome
    }

    fn try_reload(&mut self) -> Result<Vec<String>, Vec<String>> {
        if self.is_draining {
            return Err(vec![
                "flowgate is draining, to stop: it takes no new configuration".into(),
            ]);
        }
        let config = flowgate_config::load(&self.path).map_err(reasons)?;
        if config.workers != self.config.workers {
            return Err(vec![
                "workers: cannot change while flowgate runs; restart it, or set workers back"
                    .into(),
            ]);
        }
        let difference = self.config.difference_to(&config);
        self.resolve_new_names(&config);
        self.server.apply(&config).map_err(|error| vec![error.to_string()])?;

        self.level.set(config.log.level);
        let mut notes: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
        let waits = |key: &&str| format!("{key}: takes effect when flowgate is started again");
        notes.extend(difference.needs_restart.iter().map(waits));
        for note in &notes {
            warn!("{note}");
        }
        // What cannot change now is compared with again at the next reload.
        let (admin, format, flows) =
            (self.config.admin.clone(), self.config.log.format, self.config.log.flows.clone());
        self.config = config;
        (self.config.admin, self.config.log.format, self.config.log.flows) = (admin, format, flows);
        self.retarget();
        Ok(notes)
    }

    /// Resolves the names that are new, and has those that are not needed any more forgotten once
    /// the configuration is in force.
    fn resolve_new_names(&mut self, config: &flowgate_config::Config) {
        let wanted = names(config);
        let is_known = |name: &String| !self.server.addresses_of(name).is_empty();
        if wanted.iter().all(is_known) {
            self.resolver.set_names(wanted);
            return;
        }
        for (name, addresses) in self.resolver.resolve_now(wanted, PATIENCE_WITH_NAMES) {
            self.server.resolved(&name, addresses);
        }
    }
}

/// One line for each problem.
fn reasons(error: LoadError) -> Vec<String> {
    error.to_string().lines().map(str::to_owned).collect()
}
