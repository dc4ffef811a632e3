//! Who has to go for a new flow.

use std::time::Duration;

use flowgate_core::{CloseReason, DropReason, FlowId, Instant};

use super::effect::Effect;
use super::{Model, timeout_of};
use crate::sim::setting::Source;

/// How long a flow is silent that is over.
pub(super) const STALE_TIMEOUT: Duration = Duration::from_secs(5);

/// A flow that was used more recently than this never goes.
const IN_USE: Duration = Duration::from_secs(2);

const SECOND: Duration = Duration::from_secs(1);

/// A flow without an answer stays at least so long where slots are scarce but not all taken.
const MIN_UNANSWERED: Duration = Duration::from_millis(100);

/// How far behind their pace flows that go into quarantine may catch up.
const CATCH_UP: Duration = Duration::from_millis(10);

/// How many flows of a queue are looked at.
const LOOKS: usize = 8;

/// Where a new flow finds room.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Room {
    #[default]
    Free,
    Evict(FlowId),
}

/// How long first answers take: the mean, and how much they differ from it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FirstAnswers {
    known: Option<(Duration, Duration)>,
    /// How many flows have made room before their answer, since an answer came last.
    evicted: u32,
}

impl FirstAnswers {
    pub(super) fn take(&mut self, sample: Duration) {
        let sample = sample.clamp(Duration::from_micros(1), SECOND);
        self.evicted = 0;
        self.known = match self.known {
            None => Some((sample, sample / 2)),
            Some((mean, deviation)) => {
                let error = mean.abs_diff(sample);
                Some((mean * 7 / 8 + sample / 8, deviation * 3 / 4 + error / 4))
            }
        };
    }

    /// One that has not come by then is late.
    pub(super) fn timeout(self, waiting_room: u32) -> Duration {
        let timeout = |(mean, deviation)| mean + 4 * deviation;
        let at_least = |timeout: Duration| timeout.max(Duration::from_millis(10));
        let known = self.known.map(timeout).map(at_least).unwrap_or_default();
        let rounds = Duration::from_millis(10) * self.evicted / waiting_room.max(1);
        (known + rounds).min(SECOND)
    }
}

/// How many flows may open while the listener is behind: half as many at each read, four at least;
/// a quarter more at each read when it is not, up to as many as come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Openings {
    most: Option<u32>,
    pub(super) opened: u32,
}

impl Openings {
    pub(super) fn read(&mut self, is_behind: bool) {
        self.most = match (self.most, is_behind) {
            (None, false) => None,
            (Some(most), false) => Some(most + most.div_ceil(4)).filter(|&most| most < 1_024),
            (None, true) => Some(4.max(self.opened.min(1_024) / 2)),
            (Some(most), true) => Some(4.max(most.min(self.opened) / 2)),
        };
        self.opened = 0;
    }

    pub(super) fn is_used_up(self) -> bool {
        self.most.is_some_and(|most| self.opened >= most)
    }
}

impl Model {
    /// Whether there is room for one more flow, or where it comes from. Where somebody has to go for
    /// those who come later, it is said too.
    pub(super) fn find_room(&mut self, client: Source, now: Instant) -> Result<(), DropReason> {
        let (victim, reason) = self.victim(client, now);
        let Some(victim) = victim? else { return Ok(()) };
        let flow = &self.flows[self.index_of(victim).expect("a flow that is alive")];
        if let Some(time) = self.quarantine_after(CloseReason::Evicted, flow) {
            let quarter = self.quarter_of_slots();
            let is_known = self.answered_clients.contains(&client);
            let is_for_later = self.free_slots() <= if is_known { 0 } else { quarter / 8 };
            let (flows, slots) = self.others();
            let quarantined = self.quarantined.len() + slots.saturating_sub(flows);
            if is_for_later && quarantined >= quarter - quarter / 8 {
                return Err(reason);
            }
            if !self.may_go_into_quarantine(time, now) {
                return Err(reason);
            }
            if is_for_later {
                self.room = Room::Evict(victim);
                return Err(reason);
            }
        }
        self.room = Room::Evict(victim);
        Ok(())
    }

    /// Whether it is the turn of a flow to go into quarantine.
    fn may_go_into_quarantine(&mut self, time: Duration, now: Instant) -> bool {
        if !self.are_slots_scarce() {
            return true;
        }
        if self.next_into_quarantine > now + CATCH_UP {
            return false;
        }
        // The others do the same, each with as much of it as it has of the slots.
        let (quarter, own) = (self.quarter_of_slots(), self.flows.len() + self.quarantined.len());
        let share = own.saturating_add(self.others().1) / own.max(1);
        let pace = time / (quarter - quarter / 8) as u32;
        let pace = pace.saturating_mul(share as u32);
        self.next_into_quarantine = self.next_into_quarantine.max(now) + pace;
        true
    }

    /// Who has to go for a newcomer of another that shares the limits.
    pub(super) fn make_room_for_others<'p>(&mut self, now: Instant) -> Vec<Effect<'p>> {
        let victim = if self.config.shares_max_flows { self.who_goes(now) } else { None };
        let Some(victim) = victim else { return vec![] };
        let flow = &self.flows[self.index_of(victim).expect("a flow that is alive")];
        let time = self.quarantine_after(CloseReason::Evicted, flow);
        if time.is_some_and(|time| !self.may_go_into_quarantine(time, now)) {
            return vec![];
        }
        self.room = Room::Evict(victim);
        self.make_room(now)
    }

    /// Whether no more than a quarter of the slots is free.
    fn are_slots_scarce(&self) -> bool {
        self.free_slots() <= self.quarter_of_slots()
    }

    fn quarter_of_slots(&self) -> usize {
        (self.slots() / 4).max(1)
    }

    /// Who goes for a newcomer, if somebody has to, and why it is refused if nobody can.
    fn victim(
        &mut self,
        client: Source,
        now: Instant,
    ) -> (Result<Option<FlowId>, DropReason>, DropReason) {
        let limit = self.config.cluster.limits.unanswered_flows as usize;
        let max_flows = self.config.max_flows as usize;
        let unanswered = self.flows.iter().filter(|flow| !flow.answered).count();
        if limit > 0 && unanswered >= limit {
            let reason = DropReason::UnansweredFlows;
            return (self.oldest_if_late(now).map(Some).ok_or(reason), reason);
        }
        let reason = DropReason::MaxFlows;
        if self.flows.len() + self.others().0 >= max_flows || !self.has_free_slot() {
            return (self.who_goes(now).map(Some).ok_or(reason), reason);
        }
        let late = self.oldest_if_late(now).filter(|&late| {
            let index = self.index_of(late).expect("a flow that is alive");
            let is_old = now >= self.flows[index].opened + MIN_UNANSWERED;
            self.are_slots_scarce() && is_old && !self.answered_clients.contains(&client)
        });
        (Ok(late), reason)
    }

    fn who_goes(&mut self, now: Instant) -> Option<FlowId> {
        let exchanged = self.next_exchanged(now);
        if let Some(id) = exchanged
            && self.silence_of(id, now) >= STALE_TIMEOUT
        {
            return Some(id);
        }
        let late = self.oldest_if_late(now);
        late.or(exchanged).or_else(|| self.longest_idle(now))
    }

    fn oldest_if_late(&self, now: Instant) -> Option<FlowId> {
        let oldest = self.flows.iter().find(|flow| !flow.answered)?;
        let limit = self.config.cluster.limits.unanswered_flows;
        let waiting_room = if limit > 0 { limit } else { self.config.max_flows };
        let timeout = self.first_answers.timeout(waiting_room);
        (oldest.opened + timeout <= now).then_some(oldest.id)
    }

    /// For how long a flow has been silent, as deadlines tell.
    fn silence_of(&self, id: FlowId, now: Instant) -> Duration {
        let flow = &self.flows[self.index_of(id).expect("a flow that is alive")];
        (now + timeout_of(&self.config.cluster, flow.answered)).saturating_since(flow.deadline)
    }

    fn next_exchanged(&mut self, now: Instant) -> Option<FlowId> {
        for _ in 0..LOOKS {
            let &id = self.unconfirmed.front()?;
            if now < self.silences_known_from {
                return None;
            }
            let silence = self.silence_of(id, now);
            if silence >= IN_USE {
                return Some(id);
            }
            let first_answer = self.flows[self.index_of(id)?].first_answer?;
            if first_answer + silence >= now {
                return None;
            }
            self.unconfirmed.rotate_left(1);
        }
        None
    }

    fn longest_idle(&mut self, now: Instant) -> Option<FlowId> {
        if now < self.silences_known_from {
            return None;
        }
        let count = LOOKS.min(self.continued.len());
        let seen: Vec<FlowId> = self.continued.iter().take(count).copied().collect();
        self.continued.rotate_left(count);
        let idle = |&id: &FlowId| self.silence_of(id, now) >= IN_USE;
        let longest = seen.into_iter().filter(idle).rev();
        longest.max_by_key(|&id| self.silence_of(id, now))
    }

    /// Who has to go for a new flow.
    pub(super) fn make_room<'p>(&mut self, now: Instant) -> Vec<Effect<'p>> {
        match self.room {
            Room::Free => vec![],
            Room::Evict(id) => {
                let index = self.index_of(id).expect("a flow that is alive");
                self.first_answers.evicted += u32::from(!self.flows[index].answered);
                self.close(index, CloseReason::Evicted, now)
            }
        }
    }
}
