//! Connection ids for servers built with quinn.
//!
//! ```
//! use flowgate_quic_lb::{QuicLbConfig, ServerId, quinn::Generator};
//!
//! let config = QuicLbConfig::new(0, 2, 6)?.with_key(b"sixteen byte key");
//! let generator = Generator::new(config, ServerId::new(&[0, 1])?)?;
//! // endpoint_config.cid_generator(move || Box::new(generator.clone()));
//! # let _ = generator;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::time::Duration;

use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};

use crate::config::{EncodeError, FirstOctet, QuicLbConfig};
use crate::id::ServerId;

/// Makes ids that name one server, with nonces from the operating system's random numbers.
#[derive(Clone, Debug)]
pub struct Generator {
    config: QuicLbConfig,
    server_id: ServerId,
    lifetime: Option<Duration>,
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

    /// The same, of ids that are retired after a while: where keys are rotated, sooner than the
    /// load balancers forget the old one.
    #[must_use]
    pub fn with_lifetime(self, lifetime: Duration) -> Self {
        Self { lifetime: Some(lifetime), ..self }
    }
}

impl ConnectionIdGenerator for Generator {
    /// # Panics
    ///
    /// When the operating system has no random numbers.
    fn generate_cid(&mut self) -> ConnectionId {
        let mut random = [0; crate::MAX_CONNECTION_ID_LENGTH];
        getrandom::fill(&mut random).expect("the operating system gives random numbers");
        let nonce = &random[1..][..self.config.nonce_length()];
        let id = self.config.encode(&self.server_id, nonce, FirstOctet::Random(random[0]));
        ConnectionId::new(&id.expect("lengths were compared when the generator was made"))
    }

    fn validate(&self, cid: &ConnectionId) -> Result<(), InvalidCid> {
        let is_ours = self.config.decode(cid) == Some(self.server_id);
        if is_ours { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        self.config.connection_id_length()
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        self.lifetime
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    #[test]
    fn every_id_names_the_server_and_no_two_are_the_same() {
        let config = QuicLbConfig::new(3, 2, 8).unwrap().with_key(&[7; 16]);
        let server_id = ServerId::new(&[0xAB, 0xCD]).unwrap();
        let mut generator = Generator::new(config.clone(), server_id).unwrap();
        let ids: BTreeSet<Vec<u8>> =
            (0..1_000).map(|_| generator.generate_cid().to_vec()).collect();
        assert_eq!(ids.len(), 1_000);
        for id in &ids {
            assert_eq!((id.len(), config.decode(id)), (generator.cid_len(), Some(server_id)));
            assert!(generator.validate(&ConnectionId::new(id)).is_ok());
        }
        assert!(generator.validate(&ConnectionId::new(&[0xFF; 11])).is_err());
    }

    #[test]
    fn a_server_id_of_another_length_is_refused() {
        let config = QuicLbConfig::new(0, 2, 8).unwrap();
        let refused = Generator::new(config, ServerId::new(&[1]).unwrap());
        assert_eq!(refused.err(), Some(EncodeError::ServerIdLength));
    }
}
