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
//! An answered flow that was used within the last seconds never goes; one without an answer may,
//! once it has waited longer than answers take. If only such flows are there, the newcomer is refused.
//! What a client sends after an answer proves nothing, since anyone who forges an address can send
//! twice without hearing anything: it orders flows and keeps none.
//!
//! What is in quarantine stays. There are slots for it beside those of live flows, as far as there are
//! descriptors and ports, and a flow that makes room keeps its slot until its quarantine is over. So
//! that who forges addresses does not take them all, slots are *scarce* when no more than a quarter of
//! them is free. Then a newcomer sends the oldest flow away that waits in vain, though the table is not
//! full, and such flows go at the pace at which that quarter serves them all: as many within the time of
//! a quarantine as it has slots, but for an eighth. The newcomers between are refused, except for clients
//! that were answered lately: where each exchange is a flow of its own, as with DNS, they are newcomers
//! each time, and the eighth is theirs. It is not lost, since their flows end when they are answered.
//! Without a pace the first would take the quarter at once, and nobody would be served until their
//! quarantines end.
//!
//! Where managers share `max_flows` and `max_slots`, what the others hold counts as taken. One sends away
//! flows of its own; where none of those can go, the newcomer is refused, and another manager sends one of
//! its own away for the next.

use core::time::Duration;

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

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

/// For how long a flow without an answer stays at least where slots are scarce but not all taken.
const MIN_UNANSWERED: Duration = Duration::from_millis(100);

/// How far behind their pace flows that go into quarantine may catch up.
const CATCH_UP: Duration = Duration::from_millis(10);

/// How many flows of a queue one datagram without a flow looks at.
const MAX_LOOKS: usize = 8;

/// What other managers hold of the `max_flows` and `max_slots` that they share with one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub(crate) struct TakenElsewhere {
    pub(crate) flows: u32,
    /// Those of flows alive and in quarantine.
    pub(crate) slots: u32,
}

/// Where a new flow finds room.
#[derive(Clone, Copy, Debug)]
pub(super) enum Room {
    /// There is a free slot.
    Free,
    /// This flow is to end.
    Evict(FlowId),
}

impl UdpManager {
    /// Where one more flow of a client would find room. Where a flow has to end whose slot is free
    /// only later, it does so for those who come then.
    ///
    /// # Errors
    ///
    /// When there is none, and none can be made.
    pub(super) fn find_room<'p>(
        &mut self,
        source: u128,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) -> Result<Room, DropReason> {
        let are_scarce = self.are_slots_scarce();
        let is_known = are_scarce && self.answered_clients.contains(source);
        let limit = self.config.cluster.limits.unanswered_flows as usize;
        let (victim, reason) = if limit > 0 && self.queues.len(UNANSWERED) >= limit {
            (self.find_unanswered(now), DropReason::UnansweredFlows)
        } else if self.is_full() || !self.has_free_slot() {
            (self.find_victim(now), DropReason::MaxFlows)
        } else if are_scarce && !is_known {
            let is_old = |flow: &UdpFlow| flow.opened() + MIN_UNANSWERED <= now;
            let late = self.find_unanswered(now);
            match late.filter(|&late| self.flows.get(late).is_some_and(is_old)) {
                None => return Ok(Room::Free),
                late => (late, DropReason::MaxFlows),
            }
        } else {
            return Ok(Room::Free);
        };
        let victim = victim.ok_or(reason)?;
        let flow = self.flows.get(victim).ok_or(reason)?;
        let room = Room::Evict(victim);
        let Some(time) = self.quarantine_after(CloseReason::Evicted, flow) else { return Ok(room) };
        let kept_back =
            if is_known { 0 } else { self.quarter_of_slots() - self.slots_for_strangers() };
        let is_for_later =
            self.taken_by_all().saturating_add(kept_back) >= self.config.available_slots();
        let are_enough = self.quarantined_by_all() >= self.slots_for_strangers();
        if is_for_later && are_enough || !self.may_go_into_quarantine(time, now) {
            return Err(reason);
        }
        if is_for_later {
            self.make_room(room, now, outputs);
            return Err(reason);
        }
        Ok(room)
    }

    /// Whether there are as many flows as may be alive.
    fn is_full(&self) -> bool {
        let elsewhere = self.elsewhere().flows as usize;
        self.flows.len().saturating_add(elsewhere) >= self.config.max_flows as usize
    }

    /// Whether there is a slot for one more flow, alive or in quarantine.
    pub(super) fn has_free_slot(&self) -> bool {
        self.taken_by_all() < self.config.available_slots()
    }

    fn are_slots_scarce(&self) -> bool {
        self.taken_by_all().saturating_add(self.quarter_of_slots()) >= self.config.available_slots()
    }

    fn elsewhere(&self) -> TakenElsewhere {
        if self.config.shares_max_flows { self.elsewhere } else { TakenElsewhere::default() }
    }

    /// How many slots are taken, here and elsewhere.
    fn taken_by_all(&self) -> usize {
        self.flows.taken().saturating_add(self.elsewhere().slots as usize)
    }

    fn quarantined_by_all(&self) -> usize {
        let TakenElsewhere { flows, slots } = self.elsewhere();
        self.flows.quarantined().saturating_add(slots.saturating_sub(flows) as usize)
    }

    /// How many slots are kept for those that go into quarantine.
    fn quarter_of_slots(&self) -> usize {
        (self.config.available_slots() / 4).max(1)
    }

    /// How many of them are for clients that have not been answered lately.
    fn slots_for_strangers(&self) -> usize {
        let quarter = self.quarter_of_slots();
        quarter - quarter / 8
    }

    /// Whether it is the turn of a flow to go into a quarantine of this length.
    fn may_go_into_quarantine(&mut self, quarantine: Duration, now: Instant) -> bool {
        if !self.are_slots_scarce() {
            return true;
        }
        if self.next_into_quarantine > now + CATCH_UP {
            return false;
        }
        // Of the slots that are taken, others send flows away from theirs meanwhile.
        let share = self.taken_by_all() / self.flows.taken().max(1);
        let pace = quarantine / self.slots_for_strangers() as u32;
        let pace = pace.saturating_mul(share as u32);
        self.next_into_quarantine = self.next_into_quarantine.max(now) + pace;
        true
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

    /// Makes room for a newcomer of another manager that shares the limits with this one.
    pub(super) fn make_room_elsewhere<'p>(&mut self, now: Instant, outputs: &mut impl Outputs<'p>) {
        if !self.config.shares_max_flows {
            return;
        }
        let Some(victim) = self.find_victim(now) else { return };
        let Some(flow) = self.flows.get(victim) else { return };
        let time = self.quarantine_after(CloseReason::Evicted, flow);
        if time.is_none_or(|time| self.may_go_into_quarantine(time, now)) {
            self.make_room(Room::Evict(victim), now, outputs);
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
