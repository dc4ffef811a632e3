//! Going over to what the configuration file says now.

use std::time::Duration;

use flowgate_config::{Config, ConfigFileError, FoundBackends};
use tracing::{info, warn};

use super::Supervisor;
use super::targets::{discovery_sources, names};
use crate::control::flow_log::FlowLogWriter;
use crate::control::server::StartError;

/// How long a reload waits for sources of backends that are new.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a reload waits for names that are new to be resolved. Nothing else is seen to
/// meanwhile; those that are not known then follow by themselves.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);

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
                // There is no signal for that.
                if cfg!(windows) {
                    self.flow_log.iter().for_each(FlowLogWriter::reopen);
                }
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
            let former = self.written.listeners.iter().find(|l| listener.has_sockets_of(l));
            listener.accept = former.map_or(listener.accept, |former| former.accept);
        }
        let found = self.discoverer.find_now(discovery_sources(&written), DISCOVERY_TIMEOUT);
        let (config, found, trouble) = match self.go_over_to(&written, found) {
            Ok(gone_over) => gone_over,
            Err(error) => {
                // Until here the names of both were kept fresh.
                self.follow_names();
                self.discoverer.set_sources(discovery_sources(&self.written));
                return Err(vec![error.to_string()]);
            }
        };

        self.level.set(config.log.level);
        let mut notes = self.config.changes_to(&config);
        if notes.is_empty() && waiting.is_empty() {
            notes.push("nothing has changed".to_owned());
        }
        notes.iter().for_each(|change| info!("{change}"));
        let mut warnings: Vec<_> = config.warnings.iter().map(ToString::to_string).collect();
        warnings.extend(trouble);
        let waits = |key: &&str| format!("{key}: takes effect when flowgate is started again");
        warnings.extend(waiting.iter().map(waits));
        warnings.iter().for_each(|warning| warn!("{warning}"));
        notes.append(&mut warnings);
        (self.config, self.text) = (config, text);
        (self.written, self.found) = (written, found);
        self.follow_names();
        self.keep_listeners();
        self.update_probes();
        self.announce_as_configured();
        Ok(notes)
    }

    /// Goes over to a configuration, which has the weights that it says and no operator's. Returns what
    /// the operator is to be warned of.
    fn apply(&mut self, config: &Config) -> Result<Vec<String>, StartError> {
        let mut bound = self.server.bind(config)?;
        let warnings = bound.take_warnings();
        self.server.forget_weights();
        self.server.go_over(config, bound);
        Ok(warnings)
    }

    /// Goes over to what is written and what was found. Where a set that was found since cannot be in
    /// force, the one that is stays, and it is said why, with what else there is to warn of.
    fn go_over_to(
        &mut self,
        written: &Config,
        found: FoundBackends,
    ) -> Result<(Config, FoundBackends, Vec<String>), StartError> {
        let config = written.with_found(&found);
        self.resolve_new_names(&config);
        let error = match self.apply(&config) {
            Ok(warnings) => return Ok((config, found, warnings)),
            Err(error) => error,
        };
        let mut former = found.clone();
        for (cluster, members) in &mut former {
            if let Some(in_force) = self.found.get(cluster) {
                members.clone_from(in_force);
            }
        }
        if former == found {
            return Err(error);
        }
        let config = written.with_found(&former);
        let mut trouble = self.apply(&config)?;
        trouble.push(format!(
            "cannot go over to the backends that were found: {error}; those that were found before \
             serve on until others are found"
        ));
        Ok((config, former, trouble))
    }

    /// Resolves the names that are new. Those that were needed until now are kept.
    fn resolve_new_names(&mut self, config: &Config) {
        let wanted = names(config);
        if wanted.iter().all(|name| !self.server.addresses_of(name).is_empty()) {
            return;
        }
        let all = &wanted | &names(&self.config);
        for (name, addresses) in self.resolver.resolve_now(all, RESOLVE_TIMEOUT) {
            self.server.resolved(&name, addresses);
        }
    }
}

/// One line for each problem.
fn reasons(error: ConfigFileError) -> Vec<String> {
    error.to_string().lines().map(str::to_owned).collect()
}
