//! Questions that are asked again of another backend.

use flowgate_core::config::Retry;
use flowgate_core::counters::Traffic;
use flowgate_core::{DropReason, Instant, Repeat, SendId, UdpManager};

use super::admission::Seen;
use super::datagrams::sent_with;
use super::effect::Effect;
use super::sockets::Quarantined;
use super::{Flow, Model, Violation, require};
use crate::sim::forge::backend_id;

/// How many bytes of questions are kept at most.
const MOST_KEPT: usize = 4 << 20;

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
}

/// Why another is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    Refused,
    Unsent,
    Silent,
}

impl Model {
    fn retry(&self) -> Option<Retry> {
        self.config.cluster.retry.filter(|_| self.asks())
    }

    /// A flow begins with a question, or with the same again where another backend has it now.
    pub(super) fn keep(
        &mut self,
        place: usize,
        (front, datagram): (Vec<u8>, &[u8]),
        (tos, ttl): (u8, u8),
        now: Instant,
    ) {
        let Some(Retry { after, times }) = self.retry() else { return };
        let kept = self.flows.iter().filter_map(|flow| flow.kept.as_ref());
        let bytes: usize = kept.map(|kept| kept.front.len() + kept.datagram.len()).sum();
        let flow = &mut self.flows[place];
        let has_room = bytes + front.len() + datagram.len() <= MOST_KEPT;
        if flow.heard || flow.kept.is_some() || !has_room {
            return;
        }
        let (datagram, asked, due) = (datagram.to_vec(), vec![], Some(now + after));
        flow.kept = Some(Question { front, datagram, tos, ttl, times_left: times, asked, due });
    }

    /// Another backend is asked for a flow, if there is one that may be. `None`: there is none.
    pub(super) fn ask_another<'p>(
        &mut self,
        place: usize,
        cause: Cause,
        now: Instant,
        seen: &mut Seen,
    ) -> Result<Option<Vec<Effect<'p>>>, Violation> {
        let (Some(retry), Some(kept)) = (self.retry(), &mut self.flows[place].kept) else {
            return Ok(None);
        };
        kept.due = None;
        let Some(able) = self.who_may_be_asked(place, cause) else { return Ok(None) };
        let flow = self.flows[place].clone();
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
        self.has_to_sweep |= self.must_end(place).is_some();
        kept.asked.push(flow.backend);
        kept.times_left -= 1;
        kept.due = Some(now + retry.after).filter(|_| kept.times_left > 0);
        let (tos, ttl) = (kept.tos, kept.ttl);
        self.flows[place].kept = Some(kept);
        let left_before = self.quarantined.len();
        let mut effects = self.move_unchecked(place, ttl, now, seen)?;
        if self.quarantined.len() > left_before
            && let Some(left) = self.quarantined.last_mut()
        {
            left.until = left.until.max(flow.deadline);
            left.asker = Some(flow.id);
        }
        self.counters.retries += 1;
        let flow = &mut self.flows[place];
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
    fn who_may_be_asked(&self, place: usize, cause: Cause) -> Option<Vec<bool>> {
        let flow = &self.flows[place];
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
        let asking = (0..self.flows.len()).filter(|&place| self.is_silent(place, now)).count();
        let used = self.flows.len() + self.quarantined.len() + asking;
        let is_limited = self.loads.iter().any(|load| load.config.max_flows > 0);
        asking > 0 && (is_limited || used > self.slots())
    }

    /// Whether a flow's backend is silent for so long that another is to be asked.
    pub(super) fn is_silent(&self, place: usize, now: Instant) -> bool {
        let flow = &self.flows[place];
        let due = flow.kept.as_ref().and_then(|kept| kept.due);
        flow.deadline > now && due.is_some_and(|due| due <= now)
    }

    /// A question that could not be sent goes elsewhere. It stays queued then.
    pub(super) fn undelivered_question<'p>(
        &mut self,
        (place, send_id): (usize, SendId),
        reason: DropReason,
        unsent: Traffic,
        now: Instant,
        seen: &mut Seen,
    ) -> Result<Option<Vec<Effect<'p>>>, Violation> {
        let flow = &self.flows[place];
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
        let effects = self.ask_another(place, Cause::Unsent, now, seen)?;
        if effects.is_none() {
            self.flows[place].kept = None;
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
        let place = self.place_of(asker).filter(|&place| self.flows[place].kept.is_some() && fits);
        let Some(place) = place else {
            self.has_answered(left.backend, now);
            return None;
        };
        let flow = &mut self.flows[place];
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
        self.has_to_sweep |= self.must_end(place).is_some();
        let (upstream, backend) = (left.upstream, backend_id(left.backend as u8));
        let address = self.loads[left.backend].config.address;
        Some((place, Effect::Open { flow: asker, upstream, backend, address }))
    }

    /// What is kept is what flows have sent. Between the time when another is to be asked and the end of
    /// that tick it may have turned out that there is none.
    pub(super) fn check_kept(
        &mut self,
        manager: &UdpManager,
        now: Instant,
    ) -> Result<(), Violation> {
        for place in 0..self.flows.len() {
            let id = self.flows[place].id;
            let is = manager.kept(id);
            let is_nobody = self.who_may_be_asked(place, Cause::Silent).is_none();
            let may_be_over = self.is_silent(place, now) && (is_nobody || self.was_tight);
            let Flow { kept: Some(should), .. } = &mut self.flows[place] else {
                require!(is.is_none(), "{id:?} keeps {is:?}, and needs it no more");
                continue;
            };
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
