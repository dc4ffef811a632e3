//! Whether this instance, and each listener that is announced by itself, is announced to routers.

use std::time::Duration;

use flowgate_config::{Announce, Config};
use flowgate_core::Instant;
use tracing::{info, warn};

use super::{Event, Supervisor, sending};
use crate::admin::status::{AnnounceStatus, StatusDocument};
use crate::control::announce::{Announcer, Hysteresis, Outcome};

/// How long the end of the process waits for withdrawals.
const WITHDRAW_TIMEOUT: Duration = Duration::from_secs(1);

/// What is being announced.
#[derive(Default)]
pub(super) struct Announcing {
    all: Vec<Announced>,
    /// How many have been started.
    started: u64,
}

/// One that is announced: the whole instance, or a listener.
struct Announced {
    /// Which of all that have been started.
    number: u64,
    /// None: the whole instance.
    listener: Option<String>,
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
        let mut former = std::mem::take(&mut self.announcing.all);
        let mut wanted: Vec<_> = self
            .config
            .announced()
            .map(|(listener, settings)| (listener.map(str::to_owned), settings.clone()))
            .collect();
        // Who is told stays, even if it is of another listener now.
        wanted.retain(|(listener, settings)| {
            let Some(index) = former.iter().position(|f| f.settings.by == settings.by) else {
                return true;
            };
            let (listener, settings) = (listener.clone(), settings.clone());
            self.announcing.all.push(Announced { listener, settings, ..former.swap_remove(index) });
            false
        });
        for (listener, settings) in wanted {
            let index = former.iter().position(|former| former.listener == listener);
            let former = index.map(|index| former.swap_remove(index));
            self.begin_announcing(listener, settings, former);
        }
        for left in former {
            match &left.listener {
                // Nobody is served there any more.
                Some(listener) if self.config.listener(listener).is_none() => {
                    info!(listener, "{}", in_words(false));
                    left.announcer.order(false);
                }
                listener => info!(
                    listener,
                    "nothing is announced or withdrawn from now on: it stays as it is"
                ),
            }
        }
    }

    /// Begins to announce in place of one who told others of the same.
    fn begin_announcing(
        &mut self,
        listener: Option<String>,
        settings: Announce,
        former: Option<Announced>,
    ) {
        self.announcing.started += 1;
        let number = self.announcing.started;
        let event = move |outcome| Event::Announced(number, outcome);
        let on_outcome = sending(&self.sender, event);
        let (former, hysteresis) = former.map(|f| (f.announcer, f.hysteresis)).unzip();
        let hysteresis = hysteresis.unwrap_or_default();
        // Those who have been told before are not to go on by themselves.
        let announcer = match Announcer::start(settings.by.clone(), former, on_outcome) {
            Ok(announcer) => announcer,
            Err(error) => return warn!(listener, "cannot announce anything: {error}"),
        };
        if let Some(announced) = hysteresis.announced() {
            announcer.order(announced);
        }
        self.announcing.all.push(Announced {
            number,
            listener,
            settings,
            announcer,
            hysteresis,
            next_look: Some(self.clock.now()),
            outcome: None,
        });
    }

    /// When to look next whether something is fit to be announced.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.announcing.all.iter().filter_map(|announced| announced.next_look).min()
    }

    /// Looks whether what is due is fit to be announced.
    pub(super) fn look_whether_fit(&mut self) {
        let (status, now) = (self.status(), self.clock.now());
        let Self { announcing, config, conditions, clock, .. } = self;
        let is_due = |announced: &&mut Announced| announced.next_look.is_some_and(|at| at <= now);
        for announced in announcing.all.iter_mut().filter(is_due) {
            let not_ready = announced.not_ready(&status, config);
            let Announce { rise, fall, interval, .. } = announced.settings;
            announced.next_look = Some(now + interval);
            let is_fit = not_ready.is_empty();
            let Some(decided) = announced.hysteresis.look(is_fit, rise, fall) else { continue };
            let why = if decided { "ready".to_owned() } else { not_ready.concat() };
            let why = why.trim_end().replace('\n', "; ");
            let listener = announced.listener.as_deref();
            info!(listener, announced = decided, reason = why, "going to be {}", in_words(decided));
            announced.announcer.order(decided);
            conditions.announced(listener.unwrap_or_default(), decided, why, clock);
        }
    }

    /// Takes in what became of an order.
    pub(super) fn take_announced(&mut self, number: u64, outcome: Outcome) {
        let all = &mut self.announcing.all;
        let Some(announced) = all.iter_mut().find(|a| a.number == number) else { return };
        let listener = announced.listener.as_deref();
        match &outcome.failure {
            None => info!(listener, "{}", in_words(outcome.announced)),
            // Once is enough.
            Some(reason) if announced.outcome.as_ref() != Some(&outcome) => {
                warn!(listener, "cannot be {} yet: {reason}", in_words(outcome.announced));
            }
            Some(_) => {}
        }
        announced.outcome = Some(outcome);
    }

    /// Has everything withdrawn for good, as this instance stops.
    pub(super) fn withdraw(&mut self) {
        for announced in &mut self.announcing.all {
            if announced.next_look.take().is_some() {
                announced.announcer.order(false);
            }
        }
    }

    /// Ends here without a withdrawal, since another process goes on: what is announced stays so.
    pub(crate) fn leave_announced(&mut self) {
        self.announcing = Announcing::default();
    }

    /// Sees to it that nobody sends anything more to this process, which ends.
    pub(super) fn end_announcing(&mut self) {
        self.withdraw();
        let deadline = self.clock.now() + WITHDRAW_TIMEOUT;
        for announced in std::mem::take(&mut self.announcing.all) {
            announced.announcer.finish(deadline.saturating_since(self.clock.now()));
        }
    }

    /// What is announced of this instance or of a listener, for the status.
    pub(super) fn announce_status(&self, listener: Option<&str>) -> Option<AnnounceStatus> {
        let mut all = self.announcing.all.iter();
        let Announced { hysteresis, next_look, outcome, .. } =
            all.find(|announced| announced.listener.as_deref() == listener)?;
        let wanted = next_look.is_some() && hysteresis.announced() == Some(true);
        let done = outcome.as_ref().filter(|outcome| outcome.failure.is_none());
        let failure = outcome.as_ref().and_then(|outcome| outcome.failure.clone());
        Some(AnnounceStatus { wanted, announced: done.map(|done| done.announced), failure })
    }
}

impl Announced {
    /// Why it is not to be announced, a line for each reason.
    fn not_ready(&self, status: &StatusDocument, config: &Config) -> Vec<String> {
        let Some(listener) = &self.listener else { return status.not_ready() };
        let clusters = config.clusters_of(listener);
        status.unfit(self.settings.min_backends_up, |cluster| clusters.contains(cluster))
    }
}

const fn in_words(announced: bool) -> &'static str {
    if announced { "announced" } else { "withdrawn" }
}
