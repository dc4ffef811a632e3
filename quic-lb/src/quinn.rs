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

pub use crate::generator::Generator;

impl ConnectionIdGenerator for Generator {
    /// # Panics
    ///
    /// When the operating system has no random numbers.
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&self.next_id())
    }

    fn validate(&self, cid: &ConnectionId) -> Result<(), InvalidCid> {
        if self.is_ours(cid) { Ok(()) } else { Err(InvalidCid) }
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
    use crate::{QuicLbConfig, ServerId};
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
}
