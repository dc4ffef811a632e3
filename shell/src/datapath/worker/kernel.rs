//! What a worker asks of its kernel, beside what its shards do.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

use flowgate_core::Instant;
use mio::Registry;

use super::match_buffers;
use crate::datapath::fast_path::Offloads;
use crate::datapath::kernel::{Kernel, Linux, Socket};
use crate::datapath::shard::Shard;
use crate::datapath::token::Token;
use crate::datapath::upstream::UpstreamSnapshot;
use crate::handover::snapshot::ShardSnapshot;

/// A kernel that a worker can run on. What not every system has is left out where nothing is said
/// of it: nobody may rely on that then, which is found out at start.
pub trait WorkerKernel: Kernel<Socket: AsFd + Send> + Send + Sized + 'static {
    /// Whether its sockets can leave an address that is gone, and news of that is to be had.
    const FOLLOWS_THE_NETWORK: bool = false;

    /// One whose sockets are told of by the poll of `registry`.
    fn on(registry: Registry) -> Self;

    /// Takes in a listener's socket, of which is told under `token`.
    ///
    /// # Errors
    ///
    /// Those of watching it, and of `setsockopt(2)`.
    fn listen(&mut self, listener: Socket, token: Token) -> io::Result<Self::Socket>;

    /// Has upstream sockets that have sent from an address which is gone send from another.
    fn leave_address(&self, _shard: &mut Shard<Self>, _gone: IpAddr) {}

    /// The shards that nobody serves any more, for whoever does next, if they can be passed on.
    fn release(_shards: Vec<(u32, Shard<Self>)>) -> Vec<(u32, Shard<Linux>)> {
        Vec::new()
    }

    /// What a shard is, if that can be told.
    fn snapshot(_shard: &Shard<Self>) -> Option<ShardSnapshot> {
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

    /// Lets the kernel forward flows past the sockets.
    fn use_fast_path(&mut self, _offloads: Box<Offloads>) {}

    /// The flows that the kernel forwards past the sockets, where it may.
    fn fast_path(&self) -> Option<&Offloads> {
        None
    }

    /// The same, to change them.
    fn fast_path_mut(&mut self) -> Option<&mut Offloads> {
        None
    }
}

impl WorkerKernel for Linux {
    const FOLLOWS_THE_NETWORK: bool = true;

    fn on(registry: Registry) -> Self {
        Self::new(registry)
    }

    fn listen(&mut self, listener: Socket, token: Token) -> io::Result<Socket> {
        self.watch(&listener, token, false)?;
        Ok(listener)
    }

    fn leave_address(&self, shard: &mut Shard<Self>, gone: IpAddr) {
        shard.leave_address(gone, self);
    }

    fn release(shards: Vec<(u32, Shard<Self>)>) -> Vec<(u32, Shard<Self>)> {
        shards
    }

    fn snapshot(shard: &Shard<Self>) -> Option<ShardSnapshot> {
        Some(ShardSnapshot::of(shard))
    }

    fn adopt(
        &mut self,
        mut shard: Shard<Self>,
        missing: Vec<UpstreamSnapshot>,
        now: Instant,
    ) -> io::Result<Option<Shard<Self>>> {
        shard.set_deaf(shard.listener().is_deaf());
        match_buffers(&mut shard);
        shard.begin(missing, self, now)?;
        Ok(Some(shard))
    }

    fn watch_more(&self, shard: &mut Shard<Self>) -> io::Result<bool> {
        shard.watch_more(self)
    }

    fn use_fast_path(&mut self, offloads: Box<Offloads>) {
        self.fast_path = Some(offloads);
    }

    fn fast_path(&self) -> Option<&Offloads> {
        self.fast_path.as_deref()
    }

    fn fast_path_mut(&mut self) -> Option<&mut Offloads> {
        self.fast_path.as_deref_mut()
    }
}
