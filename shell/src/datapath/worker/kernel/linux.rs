//! Linux can do all of it.

use std::io;
use std::net::IpAddr;

use flowgate_core::Instant;
use mio::Registry;

use super::super::{HandsOver, match_listener};
use super::WorkerKernel;
use crate::datapath::fast_path::Offloads;
use crate::datapath::kernel::{Linux, Socket};
use crate::datapath::shard::Shard;
use crate::datapath::token::Token;
use crate::datapath::upstream::UpstreamSnapshot;
use crate::handover::snapshot::{ShardCopy, ShardSnapshot};
use crate::sys::{errno, mmsg};

impl WorkerKernel for Linux {
    const FOLLOWS_THE_NETWORK: bool = true;

    fn check() -> io::Result<()> {
        match mmsg::check_receive() {
            Err(error) if errno::is_missing(&error) => Err(error),
            // What is refused now may be allowed later; it is logged when it is met.
            _ => Ok(()),
        }
    }

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

impl HandsOver for Linux {
    fn release(shards: Vec<(u32, Shard<Self>)>) -> Vec<(u32, Shard<Self>)> {
        shards
    }

    fn copy(shard: &mut Shard<Self>, is_followed: bool) -> Option<ShardCopy> {
        Some(ShardCopy::of(shard, is_followed))
    }

    fn changes(shard: &mut Shard<Self>) -> Option<ShardSnapshot> {
        Some(ShardSnapshot::of_changes(shard))
    }

    fn adopt(
        &mut self,
        mut shard: Shard<Self>,
        missing: Vec<UpstreamSnapshot>,
        now: Instant,
    ) -> io::Result<Option<Shard<Self>>> {
        shard.set_send_only(shard.listener().is_send_only());
        match_listener(&mut shard, self);
        shard.begin(missing, self, now)?;
        Ok(Some(shard))
    }

    fn watch_more(&self, shard: &mut Shard<Self>) -> io::Result<bool> {
        shard.watch_more(self)
    }
}
