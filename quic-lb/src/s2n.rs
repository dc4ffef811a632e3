//! Connection ids for servers built with s2n-quic.
//!
//! ```
//! use flowgate_quic_lb::{QuicLbConfig, ServerId, s2n::Format};
//!
//! let config = QuicLbConfig::new(0, 2, 6)?.with_key(b"sixteen byte key");
//! let format = Format::new(config, ServerId::new(&[0, 1])?)?;
//! // s2n_quic::Server::builder().with_connection_id(format)?
//! # let _ = format;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::time::Duration;

use s2n_quic_core::connection::id::{ConnectionInfo, Generator, LocalId, Validator};

use crate::config::{EncodeError, QuicLbConfig};
use crate::generator;
use crate::id::ServerId;

/// Makes ids that name one server, with nonces from the operating system's random numbers, and knows
/// them again.
#[derive(Clone, Debug)]
pub struct Format(generator::Generator);

impl Format {
    /// A format for a server, which its load balancers know by `server_id`.
    ///
    /// # Errors
    ///
    /// When the id has another length than the configuration says.
    pub fn new(config: QuicLbConfig, server_id: ServerId) -> Result<Self, EncodeError> {
        generator::Generator::new(config, server_id).map(Self)
    }

    /// The same, of ids that are retired after a while, which s2n-quic wants to be one minute to one
    /// day: where keys are rotated, sooner than the load balancers forget the old one.
    #[must_use]
    pub fn with_lifetime(self, lifetime: Duration) -> Self {
        Self(self.0.with_lifetime(lifetime))
    }
}

impl Generator for Format {
    /// # Panics
    ///
    /// When the operating system has no random numbers.
    fn generate(&mut self, _: &ConnectionInfo<'_>) -> LocalId {
        let id = self.0.generate();
        LocalId::try_from_bytes(&id).expect("ids of QUIC-LB have 6 to 20 bytes")
    }

    fn lifetime(&self) -> Option<Duration> {
        self.0.lifetime
    }
}

impl Validator for Format {
    fn validate(&self, _: &ConnectionInfo<'_>, buffer: &[u8]) -> Option<usize> {
        let id = buffer.get(..self.0.config.connection_id_length())?;
        self.0.is_ours(id).then_some(id.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::net::SocketAddr;
    use std::vec::Vec;

    #[test]
    fn every_id_names_the_server_and_is_known_again_before_other_bytes() {
        let config = QuicLbConfig::new(3, 2, 8).unwrap().with_key(&[7; 16]);
        let server_id = ServerId::new(&[0xAB, 0xCD]).unwrap();
        let mut format = Format::new(config.clone(), server_id).unwrap();
        let address = SocketAddr::from(([192, 0, 2, 1], 443)).into();
        let info = ConnectionInfo::new(&address);
        let ids: BTreeSet<Vec<u8>> =
            (0..1_000).map(|_| format.generate(&info).as_bytes().to_vec()).collect();
        assert_eq!(ids.len(), 1_000);
        for id in &ids {
            assert_eq!(config.decode(id), Some(server_id));
            let packet = [id.as_slice(), &[0x55; 40]].concat();
            assert_eq!(format.validate(&info, &packet), Some(id.len()));
            assert_eq!(format.validate(&info, &id[1..]), None);
        }
        assert_eq!(format.validate(&info, &[0xFF; 40]), None);
    }

    #[test]
    fn a_lifetime_is_told() {
        let config = QuicLbConfig::new(0, 1, 8).unwrap();
        let format = Format::new(config, ServerId::new(&[1]).unwrap()).unwrap();
        assert_eq!(format.lifetime(), None);
        let hour = Duration::from_secs(3_600);
        assert_eq!(format.with_lifetime(hour).lifetime(), Some(hour));
    }

    #[test]
    fn a_server_id_of_another_length_is_refused() {
        let config = QuicLbConfig::new(0, 2, 8).unwrap();
        let refused = Format::new(config, ServerId::new(&[1]).unwrap());
        assert_eq!(refused.err(), Some(EncodeError::ServerIdLength));
    }
}
