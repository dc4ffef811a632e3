//! What is remembered from one answer to the next.

use std::collections::VecDeque;
use std::time::Duration;

use flowgate_core::Instant;

use super::stretch::Stretch;
use crate::admin::status::StatusDocument;

/// How many rates are remembered: more than a terminal has columns.
const REMEMBERED: usize = 500;

/// The last two documents, and the rates since the beginning.
pub(super) struct Watch {
    before: StatusDocument,
    now: StatusDocument,
    at: Instant,
    elapsed: Duration,
    /// Datagrams a second, both ways, the latest first.
    history: VecDeque<u64>,
}

impl Watch {
    pub(super) fn new(first: StatusDocument, at: Instant) -> Self {
        let before = first.clone();
        Self { before, now: first, at, elapsed: Duration::ZERO, history: VecDeque::new() }
    }

    /// Takes the next document, which came at `at`.
    pub(super) fn add(&mut self, status: StatusDocument, at: Instant) {
        if status.uptime_seconds < self.now.uptime_seconds {
            // Another process, which has started to count again.
            *self = Self::new(status, at);
            return;
        }
        self.before = std::mem::replace(&mut self.now, status);
        self.elapsed = at.saturating_since(self.at);
        self.at = at;
        let stretch = self.stretch();
        let rate = stretch.per_second(stretch.forwarded().iter().sum());
        self.history.push_front(rate);
        self.history.truncate(REMEMBERED);
    }

    pub(super) const fn stretch(&self) -> Stretch<'_> {
        Stretch { before: &self.before, now: &self.now, elapsed: self.elapsed }
    }

    pub(super) const fn history(&self) -> &VecDeque<u64> {
        &self.history
    }
}
