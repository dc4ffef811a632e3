//! Whether this instance is announced to routers.

use std::time::Duration;

use flowgate_config::Announce;
use flowgate_core::Instant;
use tracing::{info, warn};

use super::{Event, Supervisor, sending};
use crate::admin::status::AnnounceStatus;
use crate::control::announce::{Announcer, Hysteresis, Outcome};

/// How long the end of the process waits for a withdrawal.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is being announced.
pub(super) struct Announcing {
    settings: Announce,
    announcer: Announcer,
    hysteresis: Hysteresis,
    /// None: this instance stops, and is withdrawn for good.
    next_look: Option<Instant>,
    /// What became of the last order, if anything did yet.
    outcome: Option<Outcome>,
}

impl Supervisor {
    /// Begins to announce as the configuration says, or goes over to what it says now.
    pub(super) fn announce_as_configured(&mut self) {
        let wanted = self.config.announce.clone();
        match (&mut self.announcing, wanted) {
            (None, None) => {}
            (Some(now), Some(wanted)) if now.settings.by == wanted.by => now.settings = wanted,
            (Some(_), None) => {
                info!("nothing is announced or withdrawn from now on: it stays as it is");
                self.announcing = None;
            }
            (former, Some(settings)) => {
                let on_outcome = sending(&self.sender, Event::Announced);
                let former = former.take().map(|former| (former.announcer, former.hysteresis));
                let (former, hysteresis) = former.unzip();
                let hysteresis = hysteresis.unwrap_or_default();
                // Those who have been told before are not to go on by themselves.
                let announcer = match Announcer::start(settings.by.clone(), former, on_outcome) {
                    Ok(announcer) => announcer,
                    Err(error) => return warn!("cannot announce anything: {error}"),
                };
                if let Some(announced) = hysteresis.announced() {
                    announcer.order(announced);
                }
                let next_look = Some(self.clock.now());
                let outcome = None;
                self.announcing =
                    Some(Announcing { settings, announcer, hysteresis, next_look, outcome });
            }
        }
    }

    /// When to look next whether this instance is fit to be announced.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.announcing.as_ref()?.next_look
    }

    /// Looks whether this instance is fit to be announced.
    pub(super) fn look_whether_fit(&mut self) {
        let not_ready = self.status().not_ready();
        let now = self.clock.now();
        let Some(announcing) = &mut self.announcing else { return };
        let Announce { rise, fall, interval, .. } = announcing.settings;
        announcing.next_look = Some(now + interval);
        if let Some(announced) = announcing.hysteresis.look(not_ready.is_empty(), rise, fall) {
            let why = if announced { "ready".to_owned() } else { not_ready.concat() };
            let why = why.trim_end().replace('\n', "; ");
            info!(announced, reason = why, "going to be {}", in_words(announced));
            announcing.announcer.order(announced);
            self.conditions.announced(announced, why, &self.clock);
        }
    }

    /// Takes in what became of an order.
    pub(super) fn take_announced(&mut self, outcome: Outcome) {
        let Some(announcing) = &mut self.announcing else { return };
        match &outcome.failure {
            None => info!("{}", in_words(outcome.announced)),
            // Once is enough.
            Some(reason) if announcing.outcome.as_ref() != Some(&outcome) => {
                warn!("cannot be {} yet: {reason}", in_words(outcome.announced));
            }
            Some(_) => {}
        }
        announcing.outcome = Some(outcome);
    }

    /// Has this instance withdrawn for good, as it stops.
    pub(super) fn withdraw(&mut self) {
        if let Some(announcing) = &mut self.announcing
            && announcing.next_look.take().is_some()
        {
            announcing.announcer.order(false);
        }
    }

    /// Sees to it that nobody sends anything more to this process, which ends.
    pub(super) fn end_announcing(&mut self) {
        self.withdraw();
        if let Some(announcing) = self.announcing.take() {
            announcing.announcer.finish(PATIENCE);
        }
    }

    /// What is announced, for the status.
    pub(super) fn announce_status(&self) -> Option<AnnounceStatus> {
        let Announcing { hysteresis, next_look, outcome, .. } = self.announcing.as_ref()?;
        let wanted = next_look.is_some() && hysteresis.announced() == Some(true);
        let done = outcome.as_ref().filter(|outcome| outcome.failure.is_none());
        let failure = outcome.as_ref().and_then(|outcome| outcome.failure.clone());
        Some(AnnounceStatus { wanted, announced: done.map(|done| done.announced), failure })
    }
}

const fn in_words(announced: bool) -> &'static str {
    if announced { "announced" } else { "withdrawn" }
}
