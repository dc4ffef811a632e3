//! Telling a manager what happened, with or without someone who watches.

use flowgate_core::{Instant, ManagerInput, UdpManager};

use super::Dispatch;
use crate::datapath::kernel::Kernel;
use crate::observe::tap::{Decided, Subject, Taps, Tee};

impl<'t, K: Kernel> Dispatch<'_, 't, K> {
    /// Has a manager decide on what happened, and notes what it emits.
    #[inline]
    pub fn decide(&mut self, manager: &mut UdpManager, input: ManagerInput<'t>, now: Instant) {
        if self.taps.is_empty() {
            manager.handle_input(input, now, self);
        } else {
            self.decide_watched(manager, input, now);
        }
    }

    /// Who watches.
    pub const fn taps(&mut self) -> &mut Taps {
        &mut self.taps
    }

    #[inline(never)]
    fn decide_watched(&mut self, manager: &mut UdpManager, input: ManagerInput<'t>, now: Instant) {
        self.taps.begin(self.role, manager, now);
        let subject = Subject::of(&input, manager);
        if !self.taps.want(self.role, &input, &subject, manager) {
            manager.handle_input(input, now, self);
            return;
        }
        let mut seen = self.taps.room();
        manager.handle_input(input, now, &mut Tee { outputs: &mut *self, seen: &mut seen });
        let Self { taps, sockets, kernel, role, .. } = self;
        let decided = Decided { role: *role, input: &input, subject, outputs: &seen, manager, now };
        taps.tell(&decided, &mut |flow| {
            let upstream = sockets.upstreams.get_mut(manager.flow(flow)?.upstream())?;
            kernel.local_address(&upstream.socket)
        });
        taps.put_back(seen);
    }
}
