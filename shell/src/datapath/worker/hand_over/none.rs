//! Where no other process can go on with a worker's shards.

use std::io;

use flowgate_core::Instant;

use super::Worker;
use super::kernel::WorkerKernel;
use crate::datapath::kernel::Kernel;
use crate::datapath::shard::Shard;

/// Nothing can be asked of a worker for a handover.
pub enum HandOver {}

/// What a kernel can do for another process to go on: nothing.
pub trait HandsOver: Kernel + Sized {
    /// Whether sockets are still to be watched.
    ///
    /// # Errors
    ///
    /// None.
    fn watch_more(&self, _shard: &mut Shard<Self>) -> io::Result<bool> {
        Ok(false)
    }
}

impl<K: WorkerKernel> Worker<K> {
    pub(super) fn hand_over(&mut self, command: HandOver, _now: Instant) -> io::Result<()> {
        match command {}
    }
}
