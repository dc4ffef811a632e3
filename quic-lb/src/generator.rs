//! Connection ids for servers: ids of one server, with random nonces.

use std::time::Duration;

use crate::config::{EncodeError, FirstOctet, QuicLbConfig};
use crate::id::{ConnectionId, ServerId};

/// Makes ids that name one server, with nonces from the operating system's random numbers, and knows
/// them again.
#[derive(Clone, Debug)]
pub struct Generator {
    pub(crate) config: QuicLbConfig,
    server_id: ServerId,
    pub(crate) lifetime: Option<Duration>,
}

impl Generator {
    /// A generator for a server, which its load balancers know by `server_id`.
    ///
    /// # Errors
    ///
    /// When the id has another length than the configuration says.
    pub fn new(config: QuicLbConfig, server_id: ServerId) -> Result<Self, EncodeError> {
        if server_id.len() != config.server_id_length() {
            return Err(EncodeError::ServerIdLength);
        }
        Ok(Self { config, server_id, lifetime: None })
    }

    /// The same, of ids that are retired after a while, which s2n-quic wants to be one minute to one
    /// day: where keys are rotated, sooner than the load balancers forget the old one.
    #[must_use]
    pub fn with_lifetime(self, lifetime: Duration) -> Self {
        Self { lifetime: Some(lifetime), ..self }
    }

    /// # Panics
    ///
    /// When the operating system has no random numbers.
    pub(crate) fn next_id(&self) -> ConnectionId {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_id_of_another_length_is_refused() {
        let config = QuicLbConfig::new(0, 2, 8).unwrap();
        let refused = Generator::new(config, ServerId::new(&[1]).unwrap());
        assert_eq!(refused.err(), Some(EncodeError::ServerIdLength));
    }
}
