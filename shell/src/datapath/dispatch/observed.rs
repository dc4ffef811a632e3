//! Telling a manager what happened, with or without someone who watches.

use flowgate_core::{Instant, ManagerInput, UdpManager};

use super::Dispatch;
use crate::datapath::kernel::Kernel;
use crate::observe::tap::Taps;

impl<'t, K: Kernel> Dispatch<'_, 't, K> {
    /// Has a manager decide on what happened, and notes what it emits.
    #[inline]
    pub fn decide(&mut self, manager: &mut UdpManager, input: ManagerInput<'t>, now: Instant) {
        if self.taps.is_empty() {
            manager.handle_input(input, now, self);
        } else {
            self.decide_watched(manager, input, now);
        }
        if !self.repeats.is_empty() {
            self.send_repeats(manager);
        }
    }

    /// Who watches.
    pub const fn taps(&mut self) -> &mut Taps {
        &mut self.taps
    }

    #[inline(never)]
    fn decide_watched(&mut self, manager: &mut UdpManager, input: ManagerInput<'t>, now: Instant) {
        // What is emitted comes back to `self`, and to no tap.
        let mut taps = std::mem::take(&mut self.taps);
        taps.decide(self.role, manager, (input, now), self, |dispatch, upstream| {
            let upstream = dispatch.sockets.upstreams.get_mut(upstream)?;
            dispatch.kernel.local_address(&upstream.socket)
        });
        self.taps = taps;
    }
}
