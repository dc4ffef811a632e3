//! Why a snapshot is refused.

use alloc::string::String;

/// Why a snapshot is not that of a manager.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// Two parts of it contradict each other, or one cannot be.
    #[error("the state in the snapshot does not fit together: {0}")]
    Broken(&'static str),
    /// It wants a larger flow table than any configuration may ask for.
    #[error(
        "the snapshot is of a listener with room for {max_flows} flows, and {most} are the most"
    )]
    TooManyFlows {
        /// How many flows it has room for.
        max_flows: u32,
        /// How many there may be.
        most: u32,
    },
    /// A later version has counted something for a reason that this one does not know.
    #[error("the snapshot counts what this version does not know: {0:?}")]
    UnknownReason(String),
}

/// Refuses a snapshot, unless a condition holds that every manager keeps.
macro_rules! require {
    ($condition:expr, $broken:literal) => {
        if !$condition {
            return Err($crate::snapshot::RestoreError::Broken($broken));
        }
    };
}
pub(crate) use require;

/// Figures grow by steps that are far smaller than what is left above this, so none ever overflows.
pub(crate) const MAX_COUNT: u64 = 1 << 63;
