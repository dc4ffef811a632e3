//! What a worker does where another process goes on with its work.

use std::io;
use std::sync::Arc;

use flowgate_core::Instant;
use flowgate_fastpath::InheritedMaps;

use super::kernel::WorkerKernel;
use super::{NamedShard, OfShards, SharingShard, Worker};
use crate::datapath::fast_path::InheritedFlows;
use crate::datapath::kernel::{Kernel, Linux};
use crate::datapath::shard::Shard;
use crate::datapath::upstream::UpstreamSnapshot;
use crate::handover::snapshot::{ShardCopy, ShardSnapshot};

/// What other threads ask of a worker for a handover.
pub enum HandOver {
    /// Go on with a shard that another process or this one has served before.
    Adopt {
        /// The shard.
        shard: u32,
        /// The first shard of its listener.
        first: u32,
        /// The name of the listener.
        name: Arc<str>,
        /// The shard, with its sockets.
        adopted: Box<Adopted>,
    },
    /// Let go of all shards: nobody serves them until someone adopts them, and nothing of theirs goes
    /// past the sockets.
    Release(OfShards<Shard<Linux>>),
    /// The same, but the kernel goes on with the flows that it forwards.
    Lend(OfShards<Shard<Linux>>),
    /// Copy all shards. Nothing is forwarded meanwhile, which takes some microseconds for every
    /// thousand flows.
    Copy {
        /// Whether to note what changes from then on.
        is_followed: bool,
        /// Where to send the copies, with their numbers.
        reply: OfShards<ShardCopy>,
    },
    /// Say what has changed in all shards since they were copied.
    Changes(OfShards<ShardSnapshot>),
    /// Note no longer what changes.
    ForgetChanges,
}

/// A shard that was served before.
pub struct Adopted {
    /// The shard.
    pub shard: Shard<Linux>,
    /// The upstream sockets that it had and has not any more.
    pub missing: Vec<UpstreamSnapshot>,
    /// What the kernel goes on with, where that was begun by another process.
    pub inherited: Option<Arc<InheritedMaps>>,
}

/// What a kernel can do for another process to go on: nothing, where nothing is said.
pub trait HandsOver: Kernel + Sized {
    /// The shards that nobody serves any more, for the next to serve, if they can be passed on.
    fn release(_shards: Vec<(u32, Shard<Self>)>) -> Vec<(u32, Shard<Linux>)> {
        Vec::new()
    }

    /// What a shard is, if that can be told. `is_followed`: what changes afterwards is noted.
    fn copy(_shard: &mut Shard<Self>, _is_followed: bool) -> Option<ShardCopy> {
        None
    }

    /// What has changed in a shard, where that was noted; or else what it is.
    fn changes(_shard: &mut Shard<Self>) -> Option<ShardSnapshot> {
        None
    }

    /// Goes on with a shard that another process or this one has served, if that can be. The upstream
    /// sockets that it had and has not any more are `missing`.
    ///
    /// # Errors
    ///
    /// Those of watching its sockets.
    fn adopt(
        &mut self,
        _shard: Shard<Linux>,
        _missing: Vec<UpstreamSnapshot>,
        _now: Instant,
    ) -> io::Result<Option<Shard<Self>>> {
        Ok(None)
    }

    /// Has the poll tell of some more sockets of a shard that was adopted; says whether that was
    /// still to be done.
    ///
    /// # Errors
    ///
    /// Those of watching them.
    fn watch_more(&self, _shard: &mut Shard<Self>) -> io::Result<bool> {
        Ok(false)
    }
}

impl<K: WorkerKernel> Worker<K> {
    pub(super) fn hand_over(&mut self, command: HandOver, now: Instant) -> io::Result<()> {
        // Anyone who asks for an answer may have gone; then nobody needs it.
        match command {
            HandOver::Adopt { shard, first, name, adopted } => {
                self.adopt(shard, (name, first), *adopted, now)?;
            }
            HandOver::Release(reply) => {
                self.recall_all(now);
                let _ = reply.send(self.release_all());
            }
            HandOver::Lend(reply) => {
                self.lend_all(now);
                let _ = reply.send(self.release_all());
            }
            HandOver::Copy { is_followed, reply } => {
                let _ = reply.send(self.of_shards_mut(|shard| K::copy(shard, is_followed)));
            }
            HandOver::Changes(reply) => {
                let _ = reply.send(self.of_shards_mut(K::changes));
            }
            HandOver::ForgetChanges => {
                let shards = self.shards.iter_mut().flatten();
                shards.for_each(|named| named.shard.forget_changes());
            }
        }
        Ok(())
    }

    fn of_shards_mut<T>(&mut self, of: impl Fn(&mut Shard<K>) -> Option<T>) -> Vec<(u32, T)> {
        let numbered = (0..).zip(&mut self.shards);
        let of = |named: &mut Option<NamedShard<K>>| of(&mut named.as_mut()?.shard);
        numbered.filter_map(|(number, named)| Some((number, of(named)?))).collect()
    }

    fn release_all(&mut self) -> Vec<(u32, Shard<Linux>)> {
        self.log_flows();
        self.shared_flows.clear();
        let numbered = (0..).zip(self.shards.drain(..));
        let all = numbered.filter_map(|(number, named)| {
            let mut shard = named?.shard;
            shard.end_watches();
            Some((number, shard))
        });
        K::release(all.collect())
    }

    fn adopt(
        &mut self,
        number: u32,
        (name, first): (Arc<str>, u32),
        adopted: Adopted,
        now: Instant,
    ) -> io::Result<()> {
        let Adopted { mut shard, missing, inherited } = adopted;
        let flows = std::mem::take(&mut shard.offloads_mut().flows);
        // Nothing of theirs goes past the sockets when the first is read.
        let inherited = inherited.map(|maps| InheritedFlows::take_back(number, maps, flows, now));
        let Some(shard) = self.kernel.adopt(shard, missing, now)? else { return Ok(()) };
        let sharing = SharingShard::of_listener(first);
        self.insert(number, NamedShard { name, shard, state_changes: 0, sharing });
        self.inherit(inherited, now);
        Ok(())
    }
}
