//! Who makes room for a new flow.
//!
//! When the table is full, or `unanswered_flows` is reached, these go, in this order:
//!
//! 1. flows that are over: answered, with nothing from their client since, and silent for a while;
//! 2. the oldest flow without an answer, once it has waited for longer than answers take. Before
//!    that its answer may be on its way: if each new flow took the place of one that waits, nobody
//!    would be served where flows come faster than answers;
//! 3. the flow that has been idle longest, as far as a look at a few of them can tell.
//!
//! What is in quarantine stays: it has slots of its own, and where all of those are taken the
//! newcomer is refused.
//!
//! An answered flow that was used within the last seconds never goes; one without an answer may,
//! once it has waited longer than answers take. If only such flows are there, the newcomer is refused. What a client sends after an answer proves nothing, since anyone who forges an
//! address can send twice without hearing anything: it orders flows and keeps none.

use core::time::Duration;

use super::{CONTINUED, EXCHANGED, UNANSWERED, UdpManager};
use crate::flow::UdpFlow;
use crate::id::FlowId;
use crate::output::Outputs;
use crate::reason::{CloseReason, DropReason};
use crate::time::Instant;

/// For how long a flow is silent that is over.
pub(super) const STALE_TIMEOUT: Duration = Duration::from_secs(5);

/// An answered flow that was used more recently than this never goes.
const MIN_IDLE: Duration = Duration::from_secs(2);

/// How many flows of a queue one datagram without a flow looks at.
const MAX_LOOKS: usize = 8;

/// Where a new flow finds room.
#[derive(Clone, Copy, Debug)]
pub(super) enum Room {
    /// There is a free slot.
    Free,
    /// This flow is to end.
    Evict(FlowId),
}

impl UdpManager {
    /// Where one more flow would find room.
    ///
    /// # Errors
    ///
    /// When there is none, and none can be made.
    pub(super) fn find_room(&mut self, now: Instant) -> Result<Room, DropReason> {
        let limit = self.config.cluster.limits.unanswered_flows as usize;
        if limit > 0 && self.queues.len(UNANSWERED) >= limit {
            let oldest = self.find_unanswered(now).filter(|&oldest| self.leaves_a_slot(oldest));
            return oldest.map(Room::Evict).ok_or(DropReason::UnansweredFlows);
        }
        if !self.flows.is_full() {
            let has_slot = self.flows.has_free_slot();
            return if has_slot { Ok(Room::Free) } else { Err(DropReason::MaxFlows) };
        }
        let victim = self.find_victim(now).filter(|&victim| self.leaves_a_slot(victim));
        victim.map(Room::Evict).ok_or(DropReason::MaxFlows)
    }

    /// Whether there is a slot for another flow once this one has ended, which may have to stay in
    /// quarantine.
    fn leaves_a_slot(&self, victim: FlowId) -> bool {
        let is_quarantined =
            |flow: &UdpFlow| self.quarantine_after(CloseReason::Evicted, flow).is_some();
        self.flows.has_free_slot() || !self.flows.get(victim).is_some_and(is_quarantined)
    }

    /// Makes the room that was found.
    pub(super) fn make_room<'p>(
        &mut self,
        room: Room,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        match room {
            Room::Free => {}
            Room::Evict(id) => {
                if self.flows.get(id).is_some_and(|flow| !flow.is_answered()) {
                    self.first_answers.record_evicted();
                }
                self.close(id, CloseReason::Evicted, now, outputs);
            }
        }
    }

    fn find_victim(&mut self, now: Instant) -> Option<FlowId> {
        let exchanged = self.find_exchanged(now);
        match exchanged {
            Some((flow, silence)) if silence >= STALE_TIMEOUT => Some(flow),
            _ => self
                .find_unanswered(now)
                .or(exchanged.map(|(flow, _)| flow))
                .or_else(|| self.find_continued(now)),
        }
    }

    /// The oldest flow without an answer, if it has waited for longer than answers take.
    fn find_unanswered(&self, now: Instant) -> Option<FlowId> {
        let (id, flow) = self.flows.at(self.queues.first(UNANSWERED)?);
        let waiting_room = match self.config.cluster.limits.unanswered_flows {
            0 => self.config.max_flows,
            limit => limit,
        };
        (flow.opened() + self.first_answers.timeout(waiting_room) <= now).then_some(id)
    }

    /// The first of the flows that had an answer and nothing from their client since, if it has
    /// been idle for long enough, and for how long. One that goes on being answered goes to the end
    /// of its queue; where one is there that was just answered, so are all behind it.
    fn find_exchanged(&mut self, now: Instant) -> Option<(FlowId, Duration)> {
        for _ in 0..MAX_LOOKS {
            let first = self.queues.first(EXCHANGED)?;
            let (id, flow) = self.flows.at(first);
            let silence = self.silence_of(first, now)?;
            if silence >= MIN_IDLE {
                return Some((id, silence));
            }
            if flow.first_answer() + silence >= now {
                return None;
            }
            self.queues.push_back(EXCHANGED, first);
        }
        None
    }

    /// Of the next few flows whose clients went on after an answer the one that has been idle
    /// longest, if that is long enough. They go to the end of their queue.
    fn find_continued(&mut self, now: Instant) -> Option<FlowId> {
        let mut longest = None;
        for _ in 0..MAX_LOOKS.min(self.queues.len(CONTINUED)) {
            let first = self.queues.first(CONTINUED)?;
            let silence = self.silence_of(first, now)?;
            if silence >= MIN_IDLE && longest.is_none_or(|(_, longest)| silence > longest) {
                longest = Some((self.flows.at(first).0, silence));
            }
            self.queues.push_back(CONTINUED, first);
        }
        longest.map(|(flow, _)| flow)
    }

    /// For how long nothing has come on a flow in either direction, where deadlines can tell.
    fn silence_of(&self, slot: usize, now: Instant) -> Option<Duration> {
        let is_known = now >= self.silences_known_from;
        is_known.then(|| self.flows.at(slot).1.silence(&self.limits, now))
    }
}
