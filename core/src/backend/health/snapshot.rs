//! What a snapshot of unknown origin says for and against a backend.

use super::{BackendHealth, MAX_LEVEL};

impl BackendHealth {
    /// The same within its bounds.
    pub(in crate::backend) fn sound(mut self) -> Self {
        self.passive.is_ejected &= self.passive.ejection.is_some();
        self.passive.level = self.passive.level.min(MAX_LEVEL);
        self
    }
}
