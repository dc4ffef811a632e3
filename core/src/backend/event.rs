//! What others say of a backend.

use crate::time::Instant;

/// What the probes and the operator say of a backend. Each stands until the opposite is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackendEvent {
    /// The probes find it in order. Nothing that datagrams said against it counts any more.
    Up,
    /// The probes find it out of order.
    Down,
    /// Nobody probes it any more.
    Unprobed,
    /// It is to have no new flows. Those that live may go on until `deadline`, if there is one.
    Drain {
        /// When the flows that are left are closed.
        deadline: Option<Instant>,
    },
    /// It may have new flows again, whatever datagrams said against it.
    Undrain,
}
