//! What flows begin with and another backend gets: questions, and what one has refused.

use std::time::Duration;

use flowgate_core::config::Retry;
use flowgate_core::counters::Traffic;
use flowgate_core::{DropReason, Instant, Repeat, SendId, UdpManager};

use super::admission::Seen;
use super::datagrams::sent_with;
use super::effect::Effect;
use super::sockets::Quarantined;
use super::{Flow, Model, Violation, require};
use crate::sim::forge::backend_id;

/// How many others, and bytes of them, may be kept behind one that is kept: it may make room for more.
const MAX_BEHIND: (usize, usize) = (1_000, 60_000);

/// How many others get what one refuses, where nothing is said of it.
const OTHERS: u8 = 3;

/// A question that may be asked again.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// What goes in front, and the datagram.
    front: Vec<u8>,
    datagram: Vec<u8>,
    tos: u8,
    /// The time to live that it came with.
    ttl: u8,
    times_left: u8,
    /// Who has been asked before.
    asked: Vec<usize>,
    /// When another is to be asked.
    pub(super) due: Option<Instant>,
    /// How many others have been kept since, and their bytes and its own.
    behind: (usize, usize),
}

/// Why another is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    Refused,
    Unsent,
    Silent,
}

impl Model {
    /// How many others may be asked, and after how long. All flows are sessions.
    fn attempts(&self) -> Option<(u8, Option<Duration>)> {
        match self.config.cluster.retry.filter(|_| self.asks()) {
            Some(Retry { after, times }) => Some((times, Some(after))),
            None => (self.config.cluster.backends.len() > 1).then_some((OTHERS, None)),
        }
    }

    /// A flow begins with something; a question may be the same again where another backend has it now.
    pub(super) fn keep(
        &mut self,
        index: usize,
        (front, datagram): (Vec<u8>, &[u8]),
        (tos, ttl): (u8, u8),
        now: Instant,
    ) {
        let Some((times, after)) = self.attempts() else { return };
        if self.flows[index].heard || self.flows[index].kept.is_some() {
            return;
        }
        let bytes = front.len() + datagram.len() + 1;
        for kept in self.flows.iter_mut().filter_map(|flow| flow.kept.as_mut()) {
            kept.behind = (kept.behind.0 + 1, kept.behind.1 + bytes);
        }
        let behind = (0, bytes);
        let (datagram, asked, due) = (datagram.to_vec(), vec![], after.map(|after| now + after));
        let times_left = times;
        let kept = Question { front, datagram, tos, ttl, times_left, asked, due, behind };
        self.flows[index].kept = Some(kept);
    }

    /// Another backend is asked for a flow, if there is one that may be. `None`: there is none.
    pub(super) fn ask_another<'p>(
        &mut self,
        index: usize,
        cause: Cause,
        now: Instant,
        seen: &mut Seen,
    ) -> Result<Option<Vec<Effect<'p>>>, Violation> {
        let (Some((_, after)), Some(kept)) = (self.attempts(), &mut self.flows[index].kept) else {
            return Ok(None);
        };
        kept.due = None;
        let is_late = self.flows[index].opened + Duration::from_secs(5) < now;
        if cause == Cause::Refused && after.is_none() && is_late {
            return Ok(None);
        }
        let Some(able) = self.who_may_be_asked(index, cause) else { return Ok(None) };
        let flow = self.flows[index].clone();
        let Some(mut kept) = flow.kept.clone() else { return Ok(None) };
        if let Some((_, backend, _)) = seen.opened.front() {
            let client = flow.client;
            self.balance.check(client, backend.index(), &self.loads, &able)?;
        }
        let is_owed = self.config.cluster.responses > 0 && flow.requests.datagrams > 0;
        if cause == Cause::Silent && is_owed {
            self.miss_answer(&flow, now);
        }
        // That backend may be to have no flows, and this one leaves it before that is seen to.
        self.has_to_sweep |= self.must_end(index).is_some();
        kept.asked.push(flow.backend);
        kept.times_left -= 1;
        kept.due = after.map(|after| now + after).filter(|_| kept.times_left > 0);
        let (tos, ttl) = (kept.tos, kept.ttl);
        self.flows[index].kept = Some(kept);
        let left_before = self.quarantined.len();
        let mut effects = self.move_unchecked(index, ttl, now, seen)?;
        if self.quarantined.len() > left_before
            && let Some(left) = self.quarantined.last_mut()
        {
            left.until = left.until.max(flow.deadline);
            left.asker = Some(flow.id);
        }
        self.counters.retries += 1;
        let flow = &mut self.flows[index];
        flow.introduced = true;
        let (id, upstream, backend) = (flow.id, flow.upstream, backend_id(flow.backend as u8));
        let is_shared = self.sockets.get(&upstream).is_some_and(|socket| socket.is_shared);
        let address = self.loads[backend.index()].config.address;
        effects.push(Effect::Repeat(Repeat {
            flow: id,
            upstream,
            backend,
            to: is_shared.then_some(address),
            send_id: match cause {
                Cause::Unsent => SendId::Flow { flow: id, upstream },
                Cause::Refused | Cause::Silent => SendId::Copy(backend),
            },
            tos,
            ttl: sent_with(ttl).unwrap_or(0),
        }));
        Ok(Some(effects))
    }

    /// Which backends another may be chosen from, if there is any.
    fn who_may_be_asked(&self, index: usize, cause: Cause) -> Option<Vec<bool>> {
        let flow = &self.flows[index];
        let kept = flow.kept.as_ref().filter(|kept| kept.times_left > 0)?;
        // What may still be answered is to find the flow.
        let may_wait = self.quarantine().is_some() && self.has_free_slot();
        let mut able = self.able();
        for &asked in kept.asked.iter().chain([&flow.backend]) {
            able[asked] = false;
        }
        let may_be = able.contains(&true) && (cause != Cause::Silent || may_wait);
        may_be.then_some(able)
    }

    /// Whether room may run out, or come free, for some of those that are to ask now: then it depends on
    /// the order who does.
    pub(super) fn is_tight(&self, now: Instant) -> bool {
        let asking = (0..self.flows.len()).filter(|&index| self.is_silent(index, now)).count();
        let used = self.flows.len() + self.quarantined.len() + asking;
        let is_limited = self.loads.iter().any(|load| load.config.max_flows > 0);
        asking > 0 && (is_limited || used > self.slots())
    }

    /// Whether a flow's backend is silent for so long that another is to be asked.
    pub(super) fn is_silent(&self, index: usize, now: Instant) -> bool {
        let flow = &self.flows[index];
        let due = flow.kept.as_ref().and_then(|kept| kept.due);
        flow.deadline > now && due.is_some_and(|due| due <= now)
    }

    /// A question that could not be sent goes elsewhere. It stays queued then.
    pub(super) fn undelivered_question<'p>(
        &mut self,
        (index, send_id): (usize, SendId),
        reason: DropReason,
        unsent: Traffic,
        now: Instant,
        seen: &mut Seen,
    ) -> Result<Option<Vec<Effect<'p>>>, Violation> {
        let flow = &self.flows[index];
        let is_theirs = matches!(
            reason,
            DropReason::Refused
                | DropReason::Unreachable
                | DropReason::NotPermitted
                | DropReason::SendFailed
        );
        let is_its = send_id == SendId::Flow { flow: flow.id, upstream: flow.upstream };
        // Of two questions by one name the kept one may be gone already.
        let kept = flow.kept.as_ref().map(|kept| (1, kept.datagram.len() as u64));
        let is_it = kept == Some((unsent.datagrams, unsent.bytes)) && flow.requests == unsent;
        if !is_theirs || !is_its || !is_it {
            return Ok(None);
        }
        let effects = self.ask_another(index, Cause::Unsent, now, seen)?;
        if effects.is_none() {
            self.flows[index].kept = None;
        }
        Ok(effects)
    }

    /// The flow that gets what comes where it has asked before, if it waits still: it goes back there.
    pub(super) fn goes_back<'p>(
        &mut self,
        left: &Quarantined,
        fits: bool,
        now: Instant,
    ) -> Option<(usize, Effect<'p>)> {
        let asker = left.asker?;
        let index = self.index_of(asker).filter(|&index| self.flows[index].kept.is_some() && fits);
        let Some(index) = index else {
            self.has_answered(left.backend, now);
            return None;
        };
        let flow = &mut self.flows[index];
        let former = (flow.upstream, flow.backend);
        (flow.upstream, flow.backend) = (left.upstream, left.backend);
        for other in &mut self.quarantined {
            if other.is(left) {
                (other.upstream, other.backend) = former;
            }
        }
        self.loads[former.1].flows -= 1;
        self.loads[left.backend].flows += 1;
        self.counters.flows_moved += 1;
        // That backend may be to have no flows meanwhile, and this one may be over before that is seen to.
        self.has_to_sweep |= self.must_end(index).is_some();
        let (upstream, backend) = (left.upstream, backend_id(left.backend as u8));
        let address = self.loads[left.backend].config.address;
        Some((index, Effect::Open { flow: asker, upstream, backend, address }))
    }

    /// What is kept is what flows have sent. Between the time when another is to be asked and the end of
    /// that tick it may have turned out that there is none.
    pub(super) fn check_kept(
        &mut self,
        manager: &UdpManager,
        now: Instant,
    ) -> Result<(), Violation> {
        for index in 0..self.flows.len() {
            let id = self.flows[index].id;
            let is = manager.kept(id);
            let is_nobody = self.who_may_be_asked(index, Cause::Silent).is_none();
            let may_be_over = self.is_silent(index, now) && (is_nobody || self.was_tight);
            let Flow { kept: Some(should), .. } = &mut self.flows[index] else {
                require!(is.is_none(), "{id:?} keeps {is:?}, and needs it no more");
                continue;
            };
            let may_be_gone = should.behind.0 >= MAX_BEHIND.0 || should.behind.1 >= MAX_BEHIND.1;
            if is.is_none() && may_be_gone {
                self.flows[index].kept = None;
                continue;
            }
            let Some(is) = is else {
                return Err(Violation(format!("{id:?} has forgotten what it asks")));
            };
            if is.due.is_none() && may_be_over {
                should.due = None;
            }
            let is = (is.front, is.datagram, is.due);
            let should = (&should.front[..], &should.datagram[..], should.due);
            require!(is == should, "{id:?} keeps {is:?}, and should keep {should:?}");
        }
        Ok(())
    }
}
