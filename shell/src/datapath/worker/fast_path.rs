//! What a worker does for the flows that the kernel forwards by itself.

use std::ops::Range;
use std::time::Duration;

use flowgate_core::{FlowId, Instant};

use super::kernel::WorkerKernel;
use super::{NamedShard, Worker};
use crate::datapath::fast_path::{InheritedFlows, Offloads};

impl<K: WorkerKernel> Worker<K> {
    /// Lets the kernel forward flows from now on.
    pub(super) fn use_fast_path(&mut self, offloads: Box<Offloads>) {
        self.kernel.use_fast_path(offloads);
    }

    /// The poll begins, which may wait for so long otherwise.
    pub(super) fn begin_poll(&mut self, timeout: Option<Duration>) -> Option<Duration> {
        if self.kernel.fast_path().is_none() && self.inherited.is_empty() {
            return timeout;
        }
        let now = self.clock.now();
        let rest = self.inherited.iter().map(|flows| flows.until().saturating_since(now)).min();
        let of_kernel = self.kernel.fast_path_mut().and_then(|fast_path| {
            fast_path.begin_poll(now);
            fast_path.poll_timeout(now)
        });
        [timeout, rest, of_kernel].into_iter().flatten().min()
    }

    /// Says how far this worker has got, so that flows which have paused go past the sockets; and
    /// tells what has gone past them.
    pub(super) fn serve_fast_path(&mut self, is_left: bool, now: Instant) {
        if self.inherited.iter().any(|flows| flows.until() <= now) {
            self.tell_inherited(now);
            self.inherited.retain(|flows| now < flows.until());
        }
        let Some(fast_path) = self.kernel.fast_path_mut() else { return };
        let mut shards = self.shards.iter().flatten();
        let has_unsent = shards.any(|named| named.shard.sockets().has_unsent());
        fast_path.end_turn(!is_left && !has_unsent, now);
        for ((shard, flow), activity) in fast_path.due(now) {
            self.tell(shard, activity.input(flow), now);
        }
    }

    /// Tells what the kernel has forwarded of all flows of a shard, or of all shards.
    pub(super) fn tell_all_activity(&mut self, shard: Option<u32>, now: Instant) {
        self.tell_inherited(now);
        let Some(fast_path) = self.kernel.fast_path() else { return };
        for key in fast_path.keys(shard) {
            self.tell_activity(key, now);
        }
    }

    /// The same of the flows in some slots.
    pub(super) fn tell_activity_in(&mut self, shard: u32, slots: Range<usize>, now: Instant) {
        let Some(Some(named)) = self.shards.get(shard as usize) else { return };
        if self.kernel.fast_path().is_none() {
            return;
        }
        let manager = named.shard.manager();
        let slots = slots.start..slots.end.min(manager.slots());
        let flows: Vec<FlowId> = manager.flows_in(slots).map(|(flow, _)| flow).collect();
        for flow in flows {
            self.tell_activity((shard, flow), now);
        }
    }

    fn tell_activity(&mut self, (shard, flow): (u32, FlowId), now: Instant) {
        let fast_path = self.kernel.fast_path_mut();
        let activity = fast_path.and_then(|path| path.activity((shard, flow)));
        if let Some(activity) = activity.filter(|activity| !activity.is_empty()) {
            self.tell(shard, activity.input(flow), now);
        }
    }

    /// Lets the kernel go on with the flows that it forwards, while nobody serves.
    pub(super) fn lend_all(&mut self, now: Instant) {
        let Some(fast_path) = self.kernel.fast_path() else { return };
        self.recall_these(fast_path.unsettled(), now);
        let Some(fast_path) = self.kernel.fast_path_mut() else { return };
        fast_path.set_lent(true);
        for (number, named) in (0..).zip(&mut self.shards) {
            let Some(NamedShard { shard, .. }) = named else { continue };
            let offloads = shard.offloads_mut();
            offloads.flows = fast_path.snapshot(number);
            offloads.overtaken += fast_path.take_overtaken(number);
        }
    }

    /// Goes on with what the kernel has gone on with: this process's own, or another's.
    pub(super) fn inherit(&mut self, inherited: Option<InheritedFlows>, now: Instant) {
        match (inherited, self.kernel.fast_path_mut()) {
            (Some(flows), _) => {
                self.inherited.push(flows);
                self.tell_inherited(now);
            }
            (None, Some(fast_path)) => fast_path.set_lent(false),
            (None, None) => {}
        }
    }

    fn tell_inherited(&mut self, now: Instant) {
        let clock = self.clock;
        let all: Vec<_> = self.inherited.iter_mut().flat_map(|flows| flows.read(clock)).collect();
        for ((shard, flow), activity) in all {
            self.tell(shard, activity.input(flow), now);
        }
    }

    fn recall_these(&mut self, keys: Vec<(u32, FlowId)>, now: Instant) {
        for (shard, flow) in keys {
            let fast_path = self.kernel.fast_path_mut();
            if let Some(activity) = fast_path.and_then(|path| path.recall((shard, flow))) {
                self.tell(shard, activity.input(flow), now);
            }
        }
    }

    /// Has all datagrams come by the sockets again, and tells what the kernel has forwarded.
    pub(super) fn recall_all(&mut self, now: Instant) {
        let Some(fast_path) = self.kernel.fast_path_mut() else { return };
        let mut keys = fast_path.keys(None);
        keys.sort_unstable_by_key(|&(shard, flow)| (shard, flow.index()));
        fast_path.close_all();
        self.recall_these(keys, now);
        // What packets that were on their way meanwhile have added.
        let late = self.kernel.fast_path_mut().map(Offloads::read_resting).unwrap_or_default();
        for ((shard, flow), activity) in late {
            self.tell(shard, activity.input(flow), now);
        }
    }

    pub(super) fn is_in_fast_path(&self, shard: u32, flow: FlowId) -> bool {
        self.kernel.fast_path().is_some_and(|path| path.has((shard, flow)))
    }
}
