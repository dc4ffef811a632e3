//! Connection ids for servers built with s2n-quic.
//!
//! ```
//! use flowgate_quic_lb::{QuicLbConfig, ServerId, s2n::Generator};
//!
//! let config = QuicLbConfig::new(0, 2, 6)?.with_key(b"sixteen byte key");
//! let generator = Generator::new(config, ServerId::new(&[0, 1])?)?;
//! // s2n_quic::Server::builder().with_connection_id(generator)?
//! # let _ = generator;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::time::Duration;

use s2n_quic_core::connection::id::{self, ConnectionInfo, LocalId, Validator};

pub use crate::generator::Generator;

impl id::Generator for Generator {
    /// # Panics
    ///
    /// When the operating system has no random numbers.
    fn generate(&mut self, _: &ConnectionInfo<'_>) -> LocalId {
        let id = self.next_id();
        LocalId::try_from_bytes(&id).expect("ids of QUIC-LB have 6 to 20 bytes")
    }

    fn lifetime(&self) -> Option<Duration> {
        self.lifetime
    }
}

impl Validator for Generator {
    fn validate(&self, _: &ConnectionInfo<'_>, buffer: &[u8]) -> Option<usize> {
        let id = buffer.get(..self.config.connection_id_length())?;
        self.is_ours(id).then_some(id.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{QuicLbConfig, ServerId};
    use id::Generator as _;
    use std::collections::BTreeSet;
    use std::net::SocketAddr;
    use std::vec::Vec;

    #[test]
    fn every_id_names_the_server_and_is_known_again_before_other_bytes() {
        let config = QuicLbConfig::new(3, 2, 8).unwrap().with_key(&[7; 16]);
        let server_id = ServerId::new(&[0xAB, 0xCD]).unwrap();
        let mut generator = Generator::new(config.clone(), server_id).unwrap();
        let address = SocketAddr::from(([192, 0, 2, 1], 443)).into();
        let info = ConnectionInfo::new(&address);
        let ids: BTreeSet<Vec<u8>> =
            (0..1_000).map(|_| generator.generate(&info).as_bytes().to_vec()).collect();
        assert_eq!(ids.len(), 1_000);
        for id in &ids {
            assert_eq!(config.decode(id), Some(server_id));
            let packet = [id.as_slice(), &[0x55; 40]].concat();
            assert_eq!(generator.validate(&info, &packet), Some(id.len()));
            assert_eq!(generator.validate(&info, &id[1..]), None);
        }
        assert_eq!(generator.validate(&info, &[0xFF; 40]), None);
    }

    #[test]
    fn a_lifetime_is_told() {
        let config = QuicLbConfig::new(0, 1, 8).unwrap();
        let generator = Generator::new(config, ServerId::new(&[1]).unwrap()).unwrap();
        assert_eq!(generator.lifetime(), None);
        let hour = Duration::from_secs(3_600);
        assert_eq!(generator.with_lifetime(hour).lifetime(), Some(hour));
    }
}
