//! Counters as plain data.

use alloc::borrow::Cow;

use super::{Counters, Ledger, Traffic};
use crate::reason::{CloseReason, DropReason};
use crate::snapshot::RestoreError;
use crate::snapshot::error::{MAX_COUNT, require};
use crate::snapshot::parts::{ByReason, CountersSnapshot, LedgerSnapshot};

impl Counters {
    /// What was counted, as plain data.
    pub fn snapshot(&self) -> CountersSnapshot {
        CountersSnapshot {
            to_backend: self.to_backend.snapshot(),
            to_client: self.to_client.snapshot(),
            flows_opened: self.flows_opened,
            flows_closed: named(CloseReason::ALL, CloseReason::as_str, &self.flows_closed),
            flows_moved: self.flows_moved,
            retries: self.retries,
            upstream_errors: self.upstream_errors,
        }
    }

    /// What plain data says was counted, by a manager that has this many flows now.
    ///
    /// # Errors
    ///
    /// When the figures contradict each other.
    pub fn restored(snapshot: &CountersSnapshot, flows: u64) -> Result<Self, RestoreError> {
        let restored = Self {
            to_backend: Ledger::restored(&snapshot.to_backend)?,
            to_client: Ledger::restored(&snapshot.to_client)?,
            flows_opened: snapshot.flows_opened,
            flows_closed: by_reason(CloseReason::ALL, CloseReason::as_str, &snapshot.flows_closed)?,
            flows_moved: snapshot.flows_moved,
            retries: snapshot.retries,
            upstream_errors: snapshot.upstream_errors,
        };
        let Self { flows_opened, flows_moved, retries, upstream_errors, .. } = restored;
        let figures = [flows_opened, flows_moved, retries, upstream_errors];
        require!(figures.iter().all(|&figure| figure < MAX_COUNT), "a counter ran over");
        let mut closed = restored.flows_closed.iter();
        let opened = closed.try_fold(flows, |sum, &closed| sum.checked_add(closed));
        require!(opened == Some(restored.flows_opened), "a flow was lost count of");
        Ok(restored)
    }
}

impl Ledger {
    fn snapshot(&self) -> LedgerSnapshot {
        LedgerSnapshot {
            received: self.received,
            forwarded: self.forwarded,
            queued: self.queued,
            by_kernel: self.by_kernel,
            dropped: named(DropReason::ALL, DropReason::as_str, &self.dropped),
        }
    }

    fn restored(snapshot: &LedgerSnapshot) -> Result<Self, RestoreError> {
        let restored = Self {
            received: snapshot.received,
            forwarded: snapshot.forwarded,
            queued: snapshot.queued,
            by_kernel: snapshot.by_kernel,
            dropped: by_reason(DropReason::ALL, DropReason::as_str, &snapshot.dropped)?,
        };
        require!(restored.received.has_room(), "a counter ran over");
        let by_kernel = restored.by_kernel;
        let is_part = by_kernel.datagrams <= restored.forwarded.datagrams
            && by_kernel.bytes <= restored.forwarded.bytes;
        require!(is_part, "the kernel has forwarded more than all");
        let mut dropped = restored.dropped.iter();
        let sent = restored.forwarded.checked_plus(restored.queued);
        let accounted =
            sent.and_then(|sent| dropped.try_fold(sent, |sum, &more| sum.checked_plus(more)));
        require!(accounted == Some(restored.received), "datagrams were lost count of");
        Ok(restored)
    }
}

impl Traffic {
    /// Whether it can go on growing.
    pub(crate) const fn has_room(self) -> bool {
        self.datagrams < MAX_COUNT && self.bytes < MAX_COUNT
    }

    fn checked_plus(self, other: Self) -> Option<Self> {
        Some(Self {
            datagrams: self.datagrams.checked_add(other.datagrams)?,
            bytes: self.bytes.checked_add(other.bytes)?,
        })
    }
}

fn named<R: Copy, T: Copy + Default + PartialEq>(
    reasons: &[R],
    name: impl Fn(R) -> &'static str,
    figures: &[T],
) -> ByReason<T> {
    let all = reasons.iter().zip(figures).filter(|(_, figure)| **figure != T::default());
    all.map(|(&reason, &figure)| (Cow::Borrowed(name(reason)), figure)).collect()
}

fn by_reason<R: Copy, T: Copy + Default + PartialEq, const COUNT: usize>(
    reasons: &[R],
    name: impl Fn(R) -> &'static str,
    figures: &ByReason<T>,
) -> Result<[T; COUNT], RestoreError> {
    let mut by_reason = [T::default(); COUNT];
    for (reason, figure) in figures {
        let index = reasons.iter().position(|&known| name(known) == *reason);
        let entry = index.and_then(|index| by_reason.get_mut(index));
        let Some(entry) = entry else {
            return Err(RestoreError::UnknownReason(reason.clone().into_owned()));
        };
        require!(*entry == T::default(), "a reason is named twice");
        *entry = *figure;
    }
    Ok(by_reason)
}
