//! Whose turn is next, as plain data.

use alloc::vec::Vec;

use super::round_robin::RoundRobin;
use super::{Algorithm, Balancer};
use crate::snapshot::ImageError;
use crate::snapshot::parts::TurnsImage;

impl Balancer {
    /// The turns of primaries and backups.
    pub(crate) fn image(&self) -> [TurnsImage; 2] {
        [&self.primaries, &self.backups].map(|tier| match tier {
            Algorithm::RoundRobin(turns) => TurnsImage(turns.times()),
            _ => TurnsImage(Vec::new()),
        })
    }

    /// Goes on with other turns.
    pub(crate) fn restore(&mut self, image: &[TurnsImage; 2]) -> Result<(), ImageError> {
        for (tier, TurnsImage(times)) in
            [&mut self.primaries, &mut self.backups].into_iter().zip(image)
        {
            let is_restored = match tier {
                Algorithm::RoundRobin(turns) => RoundRobin::restore(turns, times),
                _ => times.is_empty(),
            };
            if !is_restored {
                return Err(ImageError::Broken("turns of no backends, or backends without turns"));
            }
        }
        Ok(())
    }
}
