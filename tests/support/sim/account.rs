//! Where the datagrams of one input go: each to one place, in order, uncut.

use flowgate_core::{Burst, ManagerInput};

use super::{Violation, require};

/// Where the datagrams of one input go.
pub(super) struct Account<'p> {
    bytes: &'p [u8],
    datagrams: usize,
    /// Where in `bytes` the last datagram ends that was forwarded.
    forwarded_to: usize,
    accounted_for: usize,
}

impl<'p> Account<'p> {
    pub(super) fn open(input: &ManagerInput<'p>) -> Self {
        let (bytes, datagrams): (&[u8], _) = match input {
            ManagerInput::ClientBurst { burst, .. } | ManagerInput::UpstreamBurst { burst, .. } => {
                (burst.bytes(), burst.count().into())
            }
            _ => (&[], 0),
        };
        Self { bytes, datagrams, forwarded_to: 0, accounted_for: 0 }
    }

    /// The bytes must be lent from what arrived, and lie behind all that was forwarded before: so
    /// nothing is sent twice, and nothing overtakes.
    pub(super) fn forward(&mut self, burst: &Burst<'_>) -> Result<(), Violation> {
        let start = burst.bytes().as_ptr().addr().wrapping_sub(self.bytes.as_ptr().addr());
        let end = start.saturating_add(burst.bytes().len());
        require!(end <= self.bytes.len(), "bytes are sent that did not arrive");
        require!(
            Burst::segmented(burst.bytes(), burst.stride()) == Some(*burst),
            "a burst is not of the shape that a kernel takes: {burst:?}"
        );
        require!(start >= self.forwarded_to, "datagrams are sent twice, or out of order");
        self.forwarded_to = end;
        self.accounted_for += usize::from(burst.count());
        Ok(())
    }

    pub(super) fn drop(&mut self, datagrams: u16) {
        self.accounted_for += usize::from(datagrams);
    }

    pub(super) fn close(self) -> Result<(), Violation> {
        let (arrived, accounted_for) = (self.datagrams, self.accounted_for);
        require!(
            arrived == accounted_for,
            "{arrived} datagrams arrived, and {accounted_for} were sent or dropped"
        );
        Ok(())
    }
}
