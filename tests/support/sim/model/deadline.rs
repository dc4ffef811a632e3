//! When flows end, and when the balancer must ask to be called.

use std::time::Duration;

use flowgate_core::{CloseReason, Deadline, DeadlineReason, FlowId, Instant, UpstreamId};

use super::admission::Seen;
use super::effect::Effect;
use super::retry::Cause;
use super::sockets::Quarantined;
use super::{Flow, Model, Violation, require};

/// Deadlines are kept to the next full millisecond.
const TICK: Duration = Duration::from_millis(1);

/// One timeout looks at a bounded number of timers, perhaps at one flow's several times. To this many
/// flows it gets for sure; of more than that it may leave some to the next tick.
const SURELY_LOOKED_AT: usize = 128;

/// This many sockets without flows close at once; of more than that it may leave some to the next tick.
const SURELY_CLOSED: usize = 16;

impl Model {
    /// The closes that a timeout must bring. The order is that of `observed`.
    ///
    /// What has a deadline that has passed may end; it must end once it is due. At the end of a
    /// drain all must end. So must all flows of a backend that is to have none; a flow that is one
    /// of those and may be idle too ends for either reason.
    pub(super) fn timeout<'p>(
        &mut self,
        now: Instant,
        observed: &[Effect<'_>],
    ) -> Result<Vec<Effect<'p>>, Violation> {
        let mut seen = Seen::of(observed);
        self.was_tight = self.is_tight(now);
        let passive = self.config.cluster.health.passive;
        self.loads.iter_mut().for_each(|load| load.health.pass(passive.as_ref(), now));
        let is_over = self.drain.is_some_and(|deadline| deadline <= now);
        let (flows_may_be_left, sockets_may_be_left) =
            (self.may_leave_flows(), self.may_leave_sockets());
        let has_idle = self.idle_sockets().iter().any(|(_, at)| *at <= now);
        let mut effects = vec![];
        for effect in observed {
            match *effect {
                Effect::Close { flow, reason, .. } => {
                    effects.extend(self.end_of(flow, reason, is_over, now));
                }
                Effect::Open { flow, upstream, .. } => {
                    let is_silent = |index: &usize| !is_over && self.is_silent(*index, now);
                    if let Some(index) = self.index_of(flow).filter(is_silent) {
                        self.make_room_to_ask(upstream, now);
                        let asks = self.ask_another(index, Cause::Silent, now, &mut seen)?;
                        effects.extend(asks.into_iter().flatten());
                    }
                }
                Effect::AskActivity { flow } => {
                    let may_ask = |flow: &Flow| flow.offered && flow.deadline <= now && !is_over;
                    let index = self.index_of(flow).filter(|&index| may_ask(&self.flows[index]));
                    effects.extend(index.map(|index| self.ask(index, now)));
                }
                // It may have closed with its flow.
                Effect::CloseSocket { upstream }
                    if !effects.contains(&Effect::CloseSocket { upstream }) =>
                {
                    effects.extend(self.end_of_socket(upstream, is_over, now));
                }
                _ => {}
            }
        }
        // Another must have been asked, if there is one.
        for index in 0..self.flows.len() {
            let due = self.flows[index].kept.as_ref().and_then(|kept| kept.due);
            let must_ask = due.is_some_and(|due| self.due(due) <= now);
            let is_sure = !is_over && !flows_may_be_left && !self.was_tight;
            if must_ask && is_sure && self.is_silent(index, now) {
                let asks = self.ask_another(index, Cause::Silent, now, &mut seen)?;
                effects.extend(asks.into_iter().flatten());
            }
        }
        // What is left must not be there.
        while let Some((index, reason)) = self.must_have_ended(is_over, now)
            && !flows_may_be_left
        {
            if reason == CloseReason::Idle && self.flows[index].offered {
                effects.push(self.ask(index, now));
            } else {
                effects.extend(self.close(index, reason, now));
            }
        }
        for left in self.quarantined.clone() {
            if !flows_may_be_left && (is_over || self.due(left.until) <= now) {
                effects.extend(self.end_of_quarantine(left, now));
            }
        }
        for (upstream, at) in self.idle_sockets() {
            let is_a_tick_later = self.timers_seen + TICK <= now;
            if !sockets_may_be_left && is_a_tick_later && self.due(at) <= now {
                effects.extend(self.close_socket(upstream));
            }
        }
        self.may_have_left = flows_may_be_left || sockets_may_be_left || has_idle;
        self.timers_seen = now;
        Ok(effects)
    }

    /// What is in quarantine on a shared socket may have ended before, of which nothing was seen.
    fn make_room_to_ask(&mut self, upstream: UpstreamId, now: Instant) {
        let is_over = |model: &Self, left: &Quarantined| {
            let socket = model.sockets.get(&left.upstream);
            let is_wanted = left.upstream == upstream || !model.has_free_slot();
            is_wanted && left.until <= now && socket.is_some_and(|socket| socket.stays_open())
        };
        while let Some(left) = self.quarantined.iter().find(|left| is_over(self, left)).cloned() {
            self.end_of_quarantine(left, now);
        }
    }

    /// The end of a flow that is said to end for `reason`, if it may end for that.
    fn end_of<'p>(
        &mut self,
        id: FlowId,
        reason: CloseReason,
        is_over: bool,
        now: Instant,
    ) -> Vec<Effect<'p>> {
        let Some(index) = self.index_of(id) else { return vec![] };
        let flow = &self.flows[index];
        let may_be_idle = !is_over && flow.deadline <= now && !flow.offered;
        let is_right = match reason {
            CloseReason::Idle => may_be_idle,
            CloseReason::Drained if is_over => true,
            _ => self.must_end(index) == Some(reason),
        };
        if is_right { self.close(index, reason, now) } else { vec![] }
    }

    /// The end of a socket that is said to close, if it may: what was left on it may be over, or it
    /// has been idle for long.
    fn end_of_socket<'p>(
        &mut self,
        upstream: UpstreamId,
        is_over: bool,
        now: Instant,
    ) -> Vec<Effect<'p>> {
        let mut effects = vec![];
        for left in self.quarantined.clone() {
            if left.upstream == upstream && (is_over || left.until <= now) {
                effects.extend(self.end_of_quarantine(left, now));
            }
        }
        if self.idle_sockets().into_iter().any(|(id, at)| id == upstream && at <= now) {
            effects.extend(self.close_socket(upstream));
        }
        effects
    }

    pub(super) fn end_of_quarantine<'p>(
        &mut self,
        left: Quarantined,
        now: Instant,
    ) -> Option<Effect<'p>> {
        let index = self.quarantined.iter().position(|other| other.is(&left))?;
        self.quarantined.remove(index);
        self.leave(left.upstream, left.backend, false, now)
    }

    /// A flow that a timeout must have brought to its end, and why.
    fn must_have_ended(&self, is_over: bool, now: Instant) -> Option<(usize, CloseReason)> {
        (0..self.flows.len()).find_map(|index| {
            let is_idle = self.due(self.flows[index].next_check()) <= now;
            let reason = if is_over {
                Some(CloseReason::Drained)
            } else if is_idle {
                Some(CloseReason::Idle)
            } else {
                self.must_end(index)
            };
            reason.map(|reason| (index, reason))
        })
    }

    /// Whether the balancer asks to be called when it must be, and never for what is past.
    ///
    /// It may ask to be called earlier than anything ends: how much earlier is bounded by the
    /// number of calls that a run may take to its end.
    pub fn check_deadline(
        &self,
        asked: Option<Deadline>,
        now: Instant,
        is_timeout: bool,
    ) -> Result<(), Violation> {
        let Some(asked) = asked else {
            let due = self.first_due(now);
            require!(due.is_none(), "something is due at {due:?}, and it asks for no timeout");
            return Ok(());
        };
        self.check_reason(asked)?;
        if is_timeout {
            require!(asked.at > now, "after a timeout at {now:?} it asks for {asked:?}");
        }
        // A sweep that turned out to have nothing left to do does no harm.
        let Some(mut latest) = self.first_due(now) else {
            let is_vain = self.has_to_sweep && asked.reason == DeadlineReason::Sweep;
            require!(is_vain, "it asks to be called, for nothing: {asked:?}");
            return Ok(());
        };
        let has_idle = self.idle_sockets().iter().any(|(_, at)| *at <= now);
        if self.may_have_left || self.may_leave_flows() || self.may_leave_sockets() || has_idle {
            latest = latest.max(self.timers_seen + TICK);
        }
        require!(asked.at <= latest, "it asks for {asked:?}, later than {latest:?}");
        Ok(())
    }

    /// When the balancer must be called at the latest.
    fn first_due(&self, now: Instant) -> Option<Instant> {
        let flows = self.flows.iter().map(|flow| self.due(flow.next_check()));
        let asks = self.flows.iter().filter_map(|flow| flow.kept.as_ref()?.due);
        let flows = flows.chain(asks.map(|due| self.due(due)));
        let ended = self.quarantined.iter().map(|left| self.due(left.until));
        let idle = self.idle_sockets().into_iter().map(|(_, at)| self.due(at));
        let drain_end = self.drain.filter(|_| !self.flows.is_empty());
        let has_to_end = (0..self.flows.len()).any(|index| self.must_end(index).is_some());
        let sweep = has_to_end.then_some(now);
        let others = [drain_end, sweep, self.next_backend_event()];
        flows.chain(ended).chain(idle).chain(others.into_iter().flatten()).min()
    }

    /// Whether what it says it is to be called for can be it.
    fn check_reason(&self, asked: Deadline) -> Result<(), Violation> {
        let has_come = |at: Option<Instant>| at.is_some_and(|at| at <= asked.at);
        let can_be = match asked.reason {
            DeadlineReason::FlowTimer => !self.flows.is_empty() || !self.quarantined.is_empty(),
            DeadlineReason::IdleUpstream => {
                has_come(self.idle_sockets().into_iter().map(|(_, at)| at).min())
            }
            DeadlineReason::Sweep => self.has_to_sweep,
            DeadlineReason::BackendEvent => has_come(self.next_backend_event()),
            DeadlineReason::DrainEnd => has_come(self.drain),
        };
        require!(can_be, "{asked:?} is for something that does not happen then");
        Ok(())
    }

    /// Whether there are more flows and quarantines than one timeout surely gets to.
    fn may_leave_flows(&self) -> bool {
        self.flows.len() + self.quarantined.len() > SURELY_LOOKED_AT
    }

    /// Whether there are more sockets without flows than close at once.
    fn may_leave_sockets(&self) -> bool {
        self.idle_sockets().len() > SURELY_CLOSED
    }

    /// When something must end at the latest: at the end of the tick of its deadline. A tick in
    /// which timers were seen to counts as over.
    fn due(&self, deadline: Instant) -> Instant {
        let earliest = self.timers_seen + Duration::from_nanos(1);
        let tick = TICK.as_nanos() as u64;
        Instant::from_nanos(deadline.max(earliest).as_nanos().next_multiple_of(tick))
    }
}
