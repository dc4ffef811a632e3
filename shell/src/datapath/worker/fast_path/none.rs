//! Where the kernel forwards no flows by itself.

use std::ops::Range;
use std::time::Duration;

use flowgate_core::{FlowId, Instant};

use super::Worker;
use super::kernel::WorkerKernel;
use crate::datapath::fast_path::Offloads;

impl<K: WorkerKernel> Worker<K> {
    pub(super) fn use_fast_path(&mut self, offloads: Box<Offloads>) {
        match *offloads {}
    }

    pub(super) const fn begin_poll(&self, timeout: Option<Duration>) -> Option<Duration> {
        timeout
    }

    pub(super) const fn serve_fast_path(&self, _is_left: bool, _now: Instant) {}

    pub(super) const fn tell_all_activity(&self, _shard: Option<u32>, _now: Instant) {}

    pub(super) fn tell_activity_in(&self, _shard: u32, _slots: Range<usize>, _now: Instant) {}

    pub(super) const fn is_in_fast_path(&self, _shard: u32, _flow: FlowId) -> bool {
        false
    }
}
