//! What a balancer promises.

use std::fmt;

/// A promise of a balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Promise {
    /// A rule of the contract, by its number in the documentation of `flowgate-core`.
    Rule(u8),
    /// Every datagram reaches whom it is for, uncut, marked and sent as it should be.
    Fidelity,
    /// A flow ends when the configuration says so, and not before.
    Lifetime,
    /// A new flow goes to a backend that the configuration allows.
    Balance,
    /// Nobody takes more than the configuration allows, and nothing goes in circles.
    Limits,
    /// A socket serves another flow only once nothing is to come for the former one.
    Reuse,
    /// Flows leave a backend that cannot serve, or stay, or end, as the configuration says.
    Failover,
    /// A backend is out of service for as long as it has to be, and for what it has done.
    Health,
    /// The configuration changes, and nothing else does.
    Change,
    /// What a flow was is written down.
    Record,
    /// What the kernel forwards is what the balancer would, is counted, and comes back.
    KernelPath,
    /// Anyone who goes on with a snapshot does what the balancer would have done.
    Snapshot,
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(number) => write!(f, "rule {number}"),
            Self::Fidelity => f.write_str("fidelity"),
            Self::Lifetime => f.write_str("lifetime"),
            Self::Balance => f.write_str("balance"),
            Self::Limits => f.write_str("limits"),
            Self::Reuse => f.write_str("reuse"),
            Self::Failover => f.write_str("failover"),
            Self::Health => f.write_str("health"),
            Self::Change => f.write_str("change"),
            Self::Record => f.write_str("record"),
            Self::KernelPath => f.write_str("kernel path"),
            Self::Snapshot => f.write_str("snapshot"),
        }
    }
}
