//! What a load balancer reads connection ids with.

use crate::config::QuicLbConfig;
use crate::id::ServerId;
use crate::{ROTATIONS, rotation};

/// Up to seven configurations, told apart by the rotation bits, so that servers can change to a new
/// key one after another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoder {
    configs: [Option<QuicLbConfig>; ROTATIONS],
}

impl Decoder {
    /// Adds a configuration, in place of that of the same rotation, which is returned.
    pub fn insert(&mut self, config: QuicLbConfig) -> Option<QuicLbConfig> {
        self.configs[usize::from(config.rotation())].replace(config)
    }

    /// Whether it has no configuration, and so reads no id.
    pub fn is_empty(&self) -> bool {
        self.configs.iter().all(Option::is_none)
    }

    /// The configuration that a connection id was made by, if there is one.
    pub fn config_for(&self, connection_id: &[u8]) -> Option<&QuicLbConfig> {
        self.configs[usize::from(rotation(connection_id)?)].as_ref()
    }

    /// The server that a connection id names. More may follow the id.
    ///
    /// `None` where its rotation is not configured, says that it names no server, or the id is too
    /// short. Whether there is such a server is for the caller to say.
    pub fn decode(&self, connection_id: &[u8]) -> Option<ServerId> {
        self.config_for(connection_id)?.decode(connection_id)
    }
}
