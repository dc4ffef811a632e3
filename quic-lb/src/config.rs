//! One way to make connection ids, which servers and load balancers agree on.

use core::fmt;

use crate::cipher::Cipher;
use crate::id::{ConnectionId, ServerId};
use crate::{
    MAX_CONNECTION_ID_LENGTH, MAX_SERVER_ID_LENGTH, MIN_NONCE_LENGTH, ROTATIONS, rotation,
};

/// One configuration: which lengths, which rotation bits, and under which key.
///
/// `Debug` does not show the key.
#[derive(Clone, PartialEq, Eq)]
pub struct QuicLbConfig {
    rotation: u8,
    server_id_length: u8,
    nonce_length: u8,
    cipher: Option<Cipher>,
}

/// The last five bits of a connection id, which decoders do not look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstOctet {
    /// They say how long the id is, which hardware that takes packets apart may rely on.
    Length,
    /// These, which the caller takes from chance.
    Random(u8),
}

/// Why there can be no such configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The rotation is not one of 0 to 6.
    Rotation,
    /// A server id has 1 to 15 bytes.
    ServerIdLength,
    /// A nonce has at least 4 bytes.
    NonceLength,
    /// Server id and nonce together have more than 19 bytes.
    Length,
}

/// Why an id cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncodeError {
    /// The server id has not the length that the configuration says.
    ServerIdLength,
    /// The nonce has not the length that the configuration says.
    NonceLength,
}

impl QuicLbConfig {
    /// A configuration for ids that are not encrypted.
    ///
    /// # Errors
    ///
    /// When a value is not one that the draft allows.
    pub const fn new(
        rotation: u8,
        server_id_length: usize,
        nonce_length: usize,
    ) -> Result<Self, ConfigError> {
        if rotation as usize >= ROTATIONS {
            return Err(ConfigError::Rotation);
        }
        if server_id_length == 0 || server_id_length > MAX_SERVER_ID_LENGTH {
            return Err(ConfigError::ServerIdLength);
        }
        if nonce_length < MIN_NONCE_LENGTH {
            return Err(ConfigError::NonceLength);
        }
        if nonce_length > MAX_CONNECTION_ID_LENGTH - 1 - server_id_length {
            return Err(ConfigError::Length);
        }
        Ok(Self {
            rotation,
            server_id_length: server_id_length as u8,
            nonce_length: nonce_length as u8,
            cipher: None,
        })
    }

    /// The same, encrypted under a key.
    #[must_use]
    pub fn with_key(self, key: &[u8; 16]) -> Self {
        Self { cipher: Some(Cipher::new(key)), ..self }
    }

    /// The rotation bits of its ids.
    pub const fn rotation(&self) -> u8 {
        self.rotation
    }

    /// How many bytes its server ids have.
    pub const fn server_id_length(&self) -> usize {
        self.server_id_length as usize
    }

    /// How many bytes its nonces have.
    pub const fn nonce_length(&self) -> usize {
        self.nonce_length as usize
    }

    /// How many bytes its connection ids have.
    pub const fn connection_id_length(&self) -> usize {
        1 + self.server_id_length() + self.nonce_length()
    }

    /// Whether its ids are encrypted.
    pub const fn is_encrypted(&self) -> bool {
        self.cipher.is_some()
    }

    /// A connection id that names a server.
    ///
    /// A nonce must not be used twice for one server id while both ids could be in use. Where ids
    /// are encrypted a counter serves; where not it should look random, or observers can tell
    /// which ids belong together.
    ///
    /// # Errors
    ///
    /// When the server id or the nonce has another length than the configuration says.
    pub fn encode(
        &self,
        server_id: &[u8],
        nonce: &[u8],
        first_octet: FirstOctet,
    ) -> Result<ConnectionId, EncodeError> {
        if server_id.len() != self.server_id_length() {
            return Err(EncodeError::ServerIdLength);
        }
        if nonce.len() != self.nonce_length() {
            return Err(EncodeError::NonceLength);
        }
        let low_bits = match first_octet {
            FirstOctet::Length => (server_id.len() + nonce.len()) as u8,
            FirstOctet::Random(bits) => bits,
        };
        let mut id = ConnectionId::zeroed(self.connection_id_length());
        if let [first, text @ ..] = id.as_mut() {
            *first = self.rotation << 5 | low_bits & 0x1F;
            text[..server_id.len()].copy_from_slice(server_id);
            text[server_id.len()..].copy_from_slice(nonce);
            if let Some(cipher) = &self.cipher {
                cipher.encrypt(text);
            }
        }
        Ok(id)
    }

    /// The server that a connection id names. What follows the nonce is not looked at: servers
    /// append bytes of their own, and where the id of a short header ends only they know.
    ///
    /// `None` where the id is of another rotation, or too short. Whether there is such a server is
    /// for the caller to say: any bytes that are long enough name one.
    pub fn decode(&self, connection_id: &[u8]) -> Option<ServerId> {
        if rotation(connection_id)? != self.rotation {
            return None;
        }
        let length = self.connection_id_length();
        let text = connection_id.get(1..length)?;
        let Some(cipher) = &self.cipher else {
            return ServerId::new(&text[..self.server_id_length()]).ok();
        };
        let mut plain = [0; MAX_CONNECTION_ID_LENGTH];
        let plain = &mut plain[..length - 1];
        plain.copy_from_slice(text);
        cipher.decrypt(plain);
        ServerId::new(&plain[..self.server_id_length()]).ok()
    }
}

impl fmt::Debug for QuicLbConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicLbConfig")
            .field("rotation", &self.rotation)
            .field("server_id_length", &self.server_id_length)
            .field("nonce_length", &self.nonce_length)
            .field("is_encrypted", &self.is_encrypted())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rotation => "the rotation is a number from 0 to 6",
            Self::ServerIdLength => "a server id has 1 to 15 bytes",
            Self::NonceLength => "a nonce has at least 4 bytes",
            Self::Length => "server id and nonce together have at most 19 bytes",
        })
    }
}

impl core::error::Error for ConfigError {}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ServerIdLength => "the server id has another length than the configuration says",
            Self::NonceLength => "the nonce has another length than the configuration says",
        })
    }
}

impl core::error::Error for EncodeError {}
