//! Going over to what the configuration file says now.

use std::time::Duration;

use flowgate_config::{Config, ConfigFileError};
use tracing::{info, warn};

use super::Supervisor;
use super::targets::{holds, names, places};
use crate::control::server::StartError;

/// How long a reload waits for sources of backends that are new.
const PATIENCE_WITH_SOURCES: Duration = Duration::from_secs(2);

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
        // No matter who asked for it, it is logged: others look there for what has happened.
        match &outcome {
            Ok(_) => {
                self.reloads.ok += 1;
                info!("reloaded");
            }
            Err(reasons) => {
                self.reloads.failed += 1;
                reasons.iter().for_each(|reason| warn!("{reason}"));
                warn!("reload refused; the configuration stays as it was");
            }
        }
        let (Ok(notes) | Err(notes)) = &outcome;
        self.conditions.reloaded(outcome.is_ok(), notes, &self.clock);
        outcome
    }

    fn try_reload(&mut self) -> Result<Vec<String>, Vec<String>> {
        if self.is_stopping() {
            return Err(vec!["flowgate is stopping: it takes no new configuration".into()]);
        }
        if self.upgrade.is_some() {
            return Err(vec!["an upgrade is under way: try again when it is over".into()]);
        }
        let (mut written, text) = flowgate_config::load_text(&self.path).map_err(reasons)?;
        if written.workers != self.written.workers {
            return Err(vec![
                "workers: cannot change while flowgate runs; restart it, or set workers back"
                    .into(),
            ]);
        }
        let waiting = self.written.difference_to(&written).needs_restart;
        // What waits for a restart stays as it is, and is compared with again at the next reload.
        written.admin.clone_from(&self.written.admin);
        written.log.format = self.written.log.format;
        written.log.flows.clone_from(&self.written.log.flows);
        for listener in &mut written.listeners {
            let former = self.written.listeners.iter().find(|l| l.address == listener.address);
            listener.accept = former.map_or(listener.accept, |former| former.accept);
        }
        let found = self.discoverer.find_now(places(&written), PATIENCE_WITH_SOURCES);
        let config = written.with_found(&found);
        let changes = self.config.changes_to(&config);
        self.resolver.set_holds(holds(&config));
        self.resolve_new_names(&config);
        let applied = self.apply(&config).map_err(|error| vec![error.to_string()]);
        // Until here the names of both were kept fresh.
        let is_applied = applied.is_ok();
        self.resolver.set_names(names(if is_applied { &config } else { &self.config }));
        self.discoverer.set_places(places(if is_applied { &written } else { &self.written }));
        applied?;

        self.level.set(config.log.level);
        let mut notes = changes;
        if notes.is_empty() && waiting.is_empty() {
            notes.push("nothing has changed".to_owned());
        }
        notes.iter().for_each(|change| info!("{change}"));
        let mut warnings: Vec<_> = config.warnings.iter().map(ToString::to_string).collect();
        let waits = |key: &&str| format!("{key}: takes effect when flowgate is started again");
        warnings.extend(waiting.iter().map(waits));
        warnings.iter().for_each(|warning| warn!("{warning}"));
        notes.append(&mut warnings);
        (self.config, self.text) = (config, text);
        (self.written, self.found) = (written, found);
        self.keep_listeners();
        self.retarget();
        self.announce_as_configured();
        Ok(notes)
    }

    /// Goes over to a configuration, which has the weights that it says and no operator's.
    fn apply(&mut self, config: &Config) -> Result<(), StartError> {
        let bound = self.server.bind(config)?;
        self.server.forget_weights();
        self.server.go_over(config, bound);
        Ok(())
    }

    /// Resolves the names that are new. Those that were needed until now are kept.
    fn resolve_new_names(&mut self, config: &Config) {
        let wanted = names(config);
        if wanted.iter().all(|name| !self.server.addresses_of(name).is_empty()) {
            return;
        }
        let all = &wanted | &names(&self.config);
        for (name, addresses) in self.resolver.resolve_now(all, PATIENCE_WITH_NAMES) {
            self.server.resolved(&name, addresses);
        }
    }
}

/// One line for each problem.
fn reasons(error: ConfigFileError) -> Vec<String> {
    error.to_string().lines().map(str::to_owned).collect()
}
