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

use crate::config::{EncodeError, QuicLbConfig};
use crate::generator;
use crate::id::ServerId;

/// Makes ids that name one server, with nonces from the operating system's random numbers.
#[derive(Clone, Debug)]
pub struct Generator(generator::Generator);

impl Generator {
    /// A generator for a server, which its load balancers know by `server_id`.
    ///
    /// # Errors
    ///
    /// When the id has another length than the configuration says.
    pub fn new(config: QuicLbConfig, server_id: ServerId) -> Result<Self, EncodeError> {
        generator::Generator::new(config, server_id).map(Self)
    }

    /// The same, of ids that are retired after a while: where keys are rotated, sooner than the
    /// load balancers forget the old one.
    #[must_use]
    pub fn with_lifetime(self, lifetime: Duration) -> Self {
        Self(self.0.with_lifetime(lifetime))
    }
}

impl ConnectionIdGenerator for Generator {
    /// # Panics
    ///
    /// When the operating system has no random numbers.
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&self.0.generate())
    }

    fn validate(&self, cid: &ConnectionId) -> Result<(), InvalidCid> {
        if self.0.is_ours(cid) { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        self.0.config.connection_id_length()
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        self.0.lifetime
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
