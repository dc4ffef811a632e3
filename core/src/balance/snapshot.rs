//! Whose turn is next, as plain data.

use alloc::vec::Vec;

use super::round_robin::RoundRobin;
use super::{Algorithm, Balancer};
use crate::snapshot::RestoreError;

impl Balancer {
    /// The turns of primaries and backups.
    pub(crate) fn snapshot(&self) -> [Vec<(u64, u64)>; 2] {
        [&self.primaries, &self.backups].map(|tier| match tier {
            Algorithm::RoundRobin(turns) => turns.times(),
            _ => Vec::new(),
        })
    }

    /// Goes on with other turns.
    pub(crate) fn restore(&mut self, snapshot: &[Vec<(u64, u64)>; 2]) -> Result<(), RestoreError> {
        for (tier, times) in [&mut self.primaries, &mut self.backups].into_iter().zip(snapshot) {
            let is_restored = match tier {
                Algorithm::RoundRobin(turns) => RoundRobin::restore(turns, times),
                _ => times.is_empty(),
            };
            if !is_restored {
                return Err(RestoreError::Broken(
                    "turns of no backends, or backends without turns",
                ));
            }
        }
        Ok(())
    }
}
