//! On whose behalf something leaves.

use serde::{Deserialize, Serialize};

/// On whose behalf datagrams leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Way {
    /// The cluster's that serves the listener.
    Cluster,
    /// The mirror's of that cluster.
    Mirror,
}
