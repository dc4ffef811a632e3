//! A stop that loses nothing: a while as a lame duck, in which others learn to send elsewhere and
//! everything is served as before; then a drain, in which flows end.

use flowgate_core::Instant;
use tracing::info;

use super::Supervisor;
use crate::control::signals::AT_ONCE;

/// The time in which everything is still served, though this instance is to stop.
#[derive(Clone, Copy, Debug)]
pub(super) struct LameDuck {
    pub(super) until: Instant,
    /// Whether the service manager may keep everything then.
    may_keep: bool,
}

impl Supervisor {
    /// Whether it is told to stop.
    pub(crate) const fn is_stopping(&self) -> bool {
        self.is_draining || self.lame_duck.is_some()
    }

    /// Begins to stop: it is ready no more, and no more announced. Where it is told so twice, this is
    /// the first time.
    pub(super) fn begin_stop(&mut self, may_keep: bool) {
        if self.is_stopping() {
            return;
        }
        self.withdraw();
        let time = self.config.lame_duck;
        if time.is_zero() {
            return self.serve_no_more(may_keep);
        }
        info!(
            "lame duck: everything is served for {}, then flows are let end; {AT_ONCE} stops at once",
            humantime::format_duration(time)
        );
        self.notifier.stopping(time + self.config.drain_timeout);
        self.lame_duck = Some(LameDuck { until: self.clock.now() + time, may_keep });
    }

    /// The time as a lame duck is over, if there was any.
    pub(super) fn end_lame_duck(&mut self) {
        if let Some(LameDuck { may_keep, .. }) = self.lame_duck.take() {
            self.serve_no_more(may_keep);
        }
    }

    fn serve_no_more(&mut self, may_keep: bool) {
        if may_keep && self.keep_everything() {
            // What is left to do is to wait for the workers.
            self.is_draining = true;
            self.server.stop();
        } else {
            self.drain();
        }
    }

    /// Stops at once, whatever it was about to do.
    pub(super) fn stop_now(&mut self) {
        self.lame_duck = None;
        self.is_draining = true;
        self.withdraw();
        self.server.stop();
    }
}
