//! On whose behalf something leaves.

/// On whose behalf datagrams leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// The cluster's that serves the listener.
    Cluster,
    /// The mirror's of that cluster.
    Mirror,
}
