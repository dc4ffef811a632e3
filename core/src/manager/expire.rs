//! Timeouts: flows that fell silent, and the end of a drain.

use super::UdpManager;
use super::retry::RetryCause;
use super::upstream::KEPT_FOR;
use crate::collections::wheel::TICK;
use crate::flow::Offload;
use crate::output::Outputs;
use crate::reason::CloseReason;
use crate::time::Instant;

/// How many timers one [`Timeout`](crate::ManagerInput::Timeout) looks at. What is left waits
/// for the next one, so that a million flows that end together hold up no datagram for long.
const TIMERS_PER_TIMEOUT: usize = 1_024;

/// When a manager wants a [`Timeout`](crate::ManagerInput::Timeout), and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// When.
    pub at: Instant,
    /// Why.
    pub reason: DeadlineReason,
}

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadlineReason {
    /// A flow may have fallen silent: its timer wants to be looked at.
    FlowTimer,
    /// A shared upstream has been without a flow for long.
    IdleUpstream,
    /// Flows have to end, since their backend is to have none.
    Sweep,
    /// A backend returns to service by itself, or its drain ends.
    BackendEvent,
    /// The drain ends, and what is left is closed.
    DrainEnd,
}

impl UdpManager {
    /// When to send the next [`Timeout`](crate::ManagerInput::Timeout) at the latest; `None`
    /// while there is nothing to wait for. Constant time.
    ///
    /// After a timeout has been handled this is strictly later than the time it was handled at.
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let flow_timer = self.wheel.next_due().map(|at| (at, DeadlineReason::FlowTimer));
        let drain_end =
            self.drain.filter(|_| self.flows.len() > 0).map(|at| (at, DeadlineReason::DrainEnd));
        let backend_event = self.backends.next_event().map(|at| (at, DeadlineReason::BackendEvent));
        let sweep = self.sweep.map(|sweep| (sweep.at, DeadlineReason::Sweep));
        let idle = self.upstreams.longest_idle();
        let idle = idle.map(|(_, since)| (since + KEPT_FOR, DeadlineReason::IdleUpstream));
        let all = [drain_end, sweep, backend_event, flow_timer, idle];
        let (at, reason) = all.into_iter().flatten().min_by_key(|d| d.0)?;
        let earliest = self.last_partial_timeout.map_or(at, |last| last + TICK);
        Some(Deadline { at: at.max(earliest), reason })
    }

    pub(super) fn handle_timeout<'p>(&mut self, now: Instant, outputs: &mut impl Outputs<'p>) {
        if self.backends.handle_timeout(now) {
            self.sweep_if_needed(now);
        }
        let drained = self.drain.is_some_and(|deadline| deadline <= now);
        let finished = if drained {
            self.close_drained(now, outputs)
        } else {
            self.expire_flows(now, outputs)
        };
        // Last: a flow that has ended in silence may have put its backend out of service.
        let is_swept = self.sweep(now, outputs);
        let are_closed = self.close_idle_upstreams(now, outputs);
        let is_partial = !(finished && is_swept && are_closed);
        // One that comes within a tick of another puts nothing off further.
        let since = self.last_partial_timeout.filter(|&last| now < last + TICK).unwrap_or(now);
        self.last_partial_timeout = is_partial.then_some(since);
    }

    /// Closes the flows whose deadline has passed, and says whether it got to the last of them.
    fn expire_flows<'p>(&mut self, now: Instant, outputs: &mut impl Outputs<'p>) -> bool {
        for _ in 0..TIMERS_PER_TIMEOUT {
            let Some(timer) = self.wheel.pop_due(now) else {
                return true;
            };
            let (id, flow) = self.flows.at(timer);
            let next_look = self.next_look(timer);
            if next_look > now {
                self.wheel.schedule(timer, next_look);
            } else if flow.deadline() > now {
                self.ask_another(id, RetryCause::Silent, now, outputs);
                self.schedule(timer);
            } else if flow.has_ended() {
                self.end_quarantine(timer, now, outputs);
            } else if flow.offload() == Offload::No {
                self.close(id, CloseReason::Idle, now, outputs);
            } else {
                self.ask_activity(id, now, outputs);
            }
        }
        false
    }

    /// Closes whatever flows are left, and says whether it got to the last of them.
    fn close_drained<'p>(&mut self, now: Instant, outputs: &mut impl Outputs<'p>) -> bool {
        for _ in 0..TIMERS_PER_TIMEOUT {
            let Some(timer) = self.wheel.pop_any() else {
                return true;
            };
            let (id, flow) = self.flows.at(timer);
            if flow.has_ended() {
                self.end_quarantine(timer, now, outputs);
            } else {
                self.close(id, CloseReason::Drained, now, outputs);
            }
        }
        false
    }
}
