//! What is tested: a manager, or something that pretends to be one.

use flowgate_core::counters::Counters;
use flowgate_core::snapshot::ManagerSnapshot;
use flowgate_core::{Deadline, Instant, ManagerInput, Output, UdpManager};

use super::Setting;

/// A manager as the simulator sees it. Wrappers that watch a manager, or corrupt what it does, are
/// subjects too.
pub trait Subject: Clone {
    /// As [`UdpManager::handle_input`].
    fn handle_input<'p>(
        &mut self,
        input: ManagerInput<'p>,
        now: Instant,
        outputs: &mut Vec<Output<'p>>,
    );

    /// As [`UdpManager::poll_timeout`].
    fn poll_timeout(&self) -> Option<Deadline> {
        self.manager().poll_timeout()
    }

    /// As [`UdpManager::counters`].
    fn counters(&self) -> &Counters {
        self.manager().counters()
    }

    /// The manager, for everything else that can be asked of it.
    fn manager(&self) -> &UdpManager;

    /// The same, to have it write down what it knows.
    fn manager_mut(&mut self) -> &mut UdpManager;

    /// What it writes down of its state.
    fn snapshot(&mut self) -> ManagerSnapshot {
        self.manager_mut().snapshot()
    }

    /// Goes on with a manager that was made of what it has written down.
    fn replace(&mut self, manager: UdpManager);
}

impl Subject for UdpManager {
    fn handle_input<'p>(
        &mut self,
        input: ManagerInput<'p>,
        now: Instant,
        outputs: &mut Vec<Output<'p>>,
    ) {
        self.handle_input(input, now, outputs);
    }

    fn manager(&self) -> &UdpManager {
        self
    }

    fn manager_mut(&mut self) -> &mut UdpManager {
        self
    }

    fn replace(&mut self, manager: UdpManager) {
        *self = manager;
    }
}

impl From<&Setting> for UdpManager {
    fn from(setting: &Setting) -> Self {
        Self::new(setting.config.clone(), setting.manager_seed, setting.start)
    }
}
