#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, doctest, feature = "quinn", feature = "s2n"))]
extern crate std;

mod cipher;
mod config;
mod decoder;
#[cfg(any(feature = "quinn", feature = "s2n"))]
mod generator;
mod id;
#[cfg(feature = "quinn")]
pub mod quinn;
#[cfg(feature = "s2n")]
pub mod s2n;

pub use config::{ConfigError, EncodeError, FirstOctet, QuicLbConfig};
pub use decoder::Decoder;
pub use id::{ConnectionId, ServerId, ServerIdError};

/// The longest connection id of QUIC version 1 (RFC 9000, section 17.2).
pub const MAX_CONNECTION_ID_LENGTH: usize = 20;

/// The longest server id.
pub const MAX_SERVER_ID_LENGTH: usize = 15;

/// The shortest nonce.
pub const MIN_NONCE_LENGTH: usize = 4;

/// How many configurations there can be at once. The eighth value of the rotation bits says that
/// a connection id names no server.
pub const ROTATIONS: usize = 7;

/// The configuration that a connection id says it was made by: the first three bits. `None` for an
/// empty one, and for one that names no server.
pub fn rotation(connection_id: &[u8]) -> Option<u8> {
    let rotation = connection_id.first()? >> 5;
    (usize::from(rotation) < ROTATIONS).then_some(rotation)
}
