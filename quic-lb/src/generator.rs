//! What the adapters for servers have in common: ids of one server with random nonces.

use std::time::Duration;

use crate::config::{EncodeError, FirstOctet, QuicLbConfig};
use crate::id::{ConnectionId, ServerId};

#[derive(Clone, Debug)]
pub(crate) struct Generator {
    pub(crate) config: QuicLbConfig,
    server_id: ServerId,
    pub(crate) lifetime: Option<Duration>,
}

impl Generator {
    pub(crate) fn new(config: QuicLbConfig, server_id: ServerId) -> Result<Self, EncodeError> {
        if server_id.len() != config.server_id_length() {
            return Err(EncodeError::ServerIdLength);
        }
        Ok(Self { config, server_id, lifetime: None })
    }

    pub(crate) const fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = Some(lifetime);
        self
    }

    /// # Panics
    ///
    /// When the operating system has no random numbers.
    pub(crate) fn generate(&self) -> ConnectionId {
        let mut random = [0; crate::MAX_CONNECTION_ID_LENGTH];
        getrandom::fill(&mut random).expect("the operating system gives random numbers");
        let nonce = &random[1..][..self.config.nonce_length()];
        let id = self.config.encode(&self.server_id, nonce, FirstOctet::Random(random[0]));
        id.expect("lengths were compared when the generator was made")
    }

    pub(crate) fn is_ours(&self, id: &[u8]) -> bool {
        self.config.decode(id) == Some(self.server_id)
    }
}
