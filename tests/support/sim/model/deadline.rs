//! When flows end, and when the balancer must ask to be called.

use std::time::Duration;

use flowgate_core::{CloseReason, Deadline, DeadlineReason, FlowId, Instant};

use super::effect::Effect;
use super::{Model, Violation, require};

/// Deadlines are kept to the next full millisecond.
const TICK: Duration = Duration::from_millis(1);

/// One timeout looks at a bounded number of timers, perhaps at one flow's several times. To so many
/// flows it gets for sure; of more than that it may leave some to the next tick.
const SURELY_LOOKED_AT: usize = 128;

impl Model {
    /// The closes that a timeout must bring. The order is that of `observed`.
    ///
    /// What has a deadline that has passed may end; it must end once it is due. At the end of a
    /// drain all must end.
    pub(super) fn timeout<'p>(&mut self, now: Instant, observed: &[Effect<'_>]) -> Vec<Effect<'p>> {
        let is_over = self.drain.is_some_and(|deadline| deadline <= now);
        let reason = if is_over { CloseReason::Drained } else { CloseReason::Idle };
        let may_be_left = self.socket_count() > SURELY_LOOKED_AT;
        let may_end = |at: Instant| is_over || at <= now;
        let must_end = |at: Instant| !may_be_left && (is_over || self.due(at) <= now);
        let ids_of = |ends: &dyn Fn(Instant) -> bool| -> Vec<FlowId> {
            self.timers().filter(|(_, at)| ends(*at)).map(|(id, _)| id).collect()
        };
        let (may_end, must_end) = (ids_of(&may_end), ids_of(&must_end));
        let mut ends: Vec<FlowId> = observed.iter().filter_map(Effect::ended).collect();
        ends.retain(|id| may_end.contains(id));
        let missing = must_end.into_iter().filter(|id| !ends.contains(id));
        ends.extend(missing.collect::<Vec<_>>());
        let mut closes = vec![];
        for id in ends {
            if let Some(place) = self.flows.iter().position(|flow| flow.id == id) {
                closes.push(self.close(place, reason, now));
            } else if let Some(place) = self.resting.iter().position(|other| other.id == id) {
                self.resting.remove(place);
                closes.push(Effect::CloseSocket { flow: id });
            }
        }
        self.timers_seen = now;
        closes
    }

    /// Whether the balancer asks to be called when it must be, and never for what is past.
    ///
    /// It may ask to be called earlier than anything ends: how much earlier is bounded by the
    /// number of calls that a run may take to its end.
    pub fn check_deadline(
        &self,
        asked: Option<Deadline>,
        timeout_at: Option<Instant>,
    ) -> Result<(), Violation> {
        let Some(first_due) = self.timers().map(|(_, at)| self.due(at)).min() else {
            require!(asked.is_none(), "it asks to be called, for nothing: {asked:?}");
            return Ok(());
        };
        let Some(asked) = asked else {
            return Err(Violation("something must end, and it asks for no timeout".into()));
        };
        let drain_end = self.drain.filter(|_| !self.flows.is_empty());
        let mut latest = drain_end.map_or(first_due, |drain| drain.min(first_due));
        if self.socket_count() > SURELY_LOOKED_AT {
            latest = latest.max(self.timers_seen + TICK);
        }
        require!(asked.at <= latest, "it asks for {asked:?}, later than {latest:?}");
        if let Some(now) = timeout_at {
            require!(asked.at > now, "after a timeout at {now:?} it asks for {asked:?}");
        }
        let is_drain_end = asked.reason == DeadlineReason::DrainEnd;
        require!(
            !is_drain_end || self.drain.is_some_and(|drain| drain <= asked.at),
            "{asked:?} is not the end of the drain, {:?}",
            self.drain
        );
        Ok(())
    }

    /// When flows end, and resting sockets close.
    fn timers(&self) -> impl Iterator<Item = (FlowId, Instant)> {
        let resting = self.resting.iter().map(|resting| (resting.id, resting.closes()));
        self.flows.iter().map(|flow| (flow.id, flow.deadline)).chain(resting)
    }

    /// When something must end at the latest: at the end of the tick of its deadline. A tick in
    /// which timers were seen to counts as over.
    fn due(&self, deadline: Instant) -> Instant {
        let earliest = self.timers_seen + Duration::from_nanos(1);
        let tick = TICK.as_nanos() as u64;
        Instant::from_nanos(deadline.max(earliest).as_nanos().next_multiple_of(tick))
    }
}
