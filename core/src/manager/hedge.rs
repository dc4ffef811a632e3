//! Copies to all backends of which the first answer counts.
//!
//! A client has a flow for each backend, its *branches*, which form a ring. One of them, the head, is
//! found by the client's address. Each has a socket of its own, so a backend that is slow or dead
//! holds up no other, and each ends by itself; when the head does, the next branch takes its place.
//!
//! One branch at a time *wins*: its answers go to the client. The first to answer does, and goes on
//! as long as it answers between any two datagrams of the client. One that does not has lost its
//! place: then the backend that answers next wins.

use super::forward::RecvMeta;
use super::{CONTINUED, EXCHANGED, UdpManager};
use crate::burst::Burst;
use crate::config::{Mode, ReplyFrom};
use crate::counters::Traffic;
use crate::flow::AcceptedRequests;
use crate::flow::key::FlowKey;
use crate::id::{BackendId, FlowId};
use crate::output::Outputs;
use crate::reason::{CloseReason, Direction, DropReason};
use crate::time::Instant;

impl UdpManager {
    pub(super) fn is_hedged(&self) -> bool {
        self.config.cluster.mode == Mode::FanOut { reply_from: ReplyFrom::First }
    }

    /// Sends a client's datagrams to all backends in service, each by its own branch. They count as
    /// forwarded if there is any.
    pub(super) fn handle_hedged<'p>(
        &mut self,
        key: &FlowKey,
        sender: &FlowKey,
        recv_meta: &RecvMeta<'p>,
        burst: Burst<'p>,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        let opened = self.open_branches(key, sender, recv_meta.ttl, now, outputs);
        let mut is_sent = false;
        let head = self.flows.look_up(key);
        let mut next = head;
        while let Some(branch) = next {
            let Some(flow) = self.flows.get_mut(branch) else { break };
            next = Some(flow.next_branch(branch)).filter(|next| Some(*next) != head);
            let is_wanted = self.backends.is_target(flow.backend());
            let is_prompt = flow.take_promptness();
            if !(is_prompt && is_wanted) {
                flow.set_winner(false);
            }
            if is_wanted {
                self.forward_by_branch(branch, recv_meta, burst, now, outputs);
                is_sent = true;
            }
        }
        if is_sent {
            self.counters.to_backend.forwarded.add(Traffic::of(&burst));
        } else {
            let reason = opened.err().unwrap_or(DropReason::NoBackend);
            self.drop_burst(Direction::ToBackend, reason, &burst, outputs);
        }
    }

    /// Opens a branch to each backend in service to which the client has none.
    ///
    /// # Errors
    ///
    /// When one cannot be had. There may be others.
    fn open_branches<'p>(
        &mut self,
        key: &FlowKey,
        sender: &FlowKey,
        ttl: u8,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) -> Result<(), DropReason> {
        let head = self.flows.find(key);
        let to_targets =
            self.branches(head).filter(|branch| self.backends.is_target(branch.1)).count();
        if head.is_some() && to_targets == self.backends.targets().len() {
            return Ok(());
        }
        match head {
            None => self.check_new(key.client.address(), sender)?,
            // What a draining manager has may go on.
            Some(_) if self.drain.is_some() => return Ok(()),
            Some(_) => {}
        }
        if self.drain.is_some() {
            return Err(DropReason::Draining);
        }
        if self.backends.targets().is_empty() {
            return Err(DropReason::NoBackend);
        }
        if head.is_none() {
            self.source_limits.admit(key.client.source(), now)?;
        }
        for index in 0..self.backends.targets().len() {
            let backend = self.backends.targets()[index];
            let head = self.flows.look_up(key);
            if self.branches(head).all(|branch| branch.1 != backend) {
                if head.is_some() {
                    self.source_limits.admit_another(key.client.source())?;
                }
                let room = self.find_room(key.client.source(), now, outputs)?;
                self.open(key, backend, room, ttl, now, outputs)?;
            }
        }
        Ok(())
    }

    /// The branches of a ring from one on, each with its backend.
    pub(super) fn branches(
        &self,
        first: Option<FlowId>,
    ) -> impl Iterator<Item = (FlowId, BackendId)> {
        let mut next = first;
        core::iter::from_fn(move || {
            let (id, flow) = (next?, self.flows.get(next?)?);
            next = Some(flow.next_branch(id)).filter(|next| Some(*next) != first);
            Some((id, flow.backend()))
        })
    }

    fn forward_by_branch<'p>(
        &mut self,
        branch: FlowId,
        recv_meta: &RecvMeta<'p>,
        burst: Burst<'p>,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        let Some(flow) = self.flows.get_mut(branch) else { return };
        let is_first = flow.is_new_to_its_backend();
        let AcceptedRequests { confirms, .. } = flow.accept_requests(burst, &self.limits, now);
        let backend = flow.backend();
        if confirms {
            self.queues.push_back(CONTINUED, branch.index());
        }
        self.emit_requests((branch, backend), is_first, recv_meta, burst, outputs);
    }

    /// Puts a new branch into the ring of its client, if there is one.
    pub(super) fn join_branches(&mut self, head: Option<FlowId>, new: FlowId) {
        let Some(head) = head else { return };
        let Some(flow) = self.flows.get_mut(head) else { return };
        let next = flow.next_branch(head);
        flow.set_next_branch(new);
        self.flows.unindex(new);
        if let Some(flow) = self.flows.get_mut(new) {
            flow.set_next_branch(next);
            flow.follow(true);
        }
    }

    /// Takes a branch that ends out of its ring. Where it is the head, the next one is from now on.
    pub(super) fn leave_branches(&mut self, leaving: FlowId) {
        let Some(flow) = self.flows.get(leaving) else { return };
        let (next, was_head) = (flow.next_branch(leaving), flow.is_findable());
        let Some((previous, _)) =
            self.branches(Some(next)).take_while(|branch| branch.0 != leaving).last()
        else {
            return;
        };
        if let Some(previous) = self.flows.get_mut(previous) {
            previous.set_next_branch(next);
        }
        if was_head {
            self.flows.unindex(leaving);
            self.flows.lead(next);
        }
    }

    /// Whether what a branch's backend answers goes to the client.
    pub(super) fn may_win(&mut self, branch: FlowId) -> bool {
        let is_winner = |id| self.flows.get(id).is_some_and(|flow| flow.is_winner());
        if !self.is_hedged() || is_winner(branch) {
            return true;
        }
        let is_free = !self.branches(Some(branch)).any(|(id, _)| is_winner(id));
        if is_free && let Some(flow) = self.flows.get_mut(branch) {
            flow.set_winner(true);
        }
        is_free
    }

    /// Takes in an answer that comes after another backend's.
    pub(super) fn drop_losing_reply<'p>(
        &mut self,
        branch: FlowId,
        burst: &Burst<'p>,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        let Some(flow) = self.flows.get_mut(branch) else { return };
        if flow.is_answered_in_vain(&self.limits, now) {
            self.queues.push_back(EXCHANGED, branch.index());
        }
        let backend = flow.backend();
        self.count_answer(backend, Traffic::default(), now);
        self.drop_burst(Direction::ToClient, DropReason::NotFirst, burst, outputs);
    }

    /// Ends all branches of a ring.
    pub(super) fn close_branches<'p>(
        &mut self,
        last: FlowId,
        reason: CloseReason,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        while let Some(flow) = self.flows.get(last)
            && flow.next_branch(last) != last
        {
            self.close(flow.next_branch(last), reason, now, outputs);
        }
        self.close(last, reason, now, outputs);
    }
}
