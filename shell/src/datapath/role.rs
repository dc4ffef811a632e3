//! The role of a cluster: whether it serves the listener or mirrors what is served.

use serde::{Deserialize, Serialize};

/// Whose datagrams leave by a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// The cluster that serves the listener.
    Primary,
    /// The mirror of that cluster.
    Mirror,
}
