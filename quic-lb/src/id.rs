//! The ids as values: a few bytes each, of a length of their own.

use core::fmt;
use core::ops::Deref;

use crate::{MAX_CONNECTION_ID_LENGTH, MAX_SERVER_ID_LENGTH};

/// What names a server within one configuration: 1 to 15 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId {
    bytes: [u8; MAX_SERVER_ID_LENGTH],
    length: u8,
}

/// Bytes that cannot be a server id: none at all, or more than 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerIdError;

impl ServerId {
    /// A server id of these bytes.
    ///
    /// # Errors
    ///
    /// When they are none, or more than 15.
    pub fn new(bytes: &[u8]) -> Result<Self, ServerIdError> {
        if bytes.is_empty() || bytes.len() > MAX_SERVER_ID_LENGTH {
            return Err(ServerIdError);
        }
        let mut id = Self { bytes: [0; MAX_SERVER_ID_LENGTH], length: bytes.len() as u8 };
        id.bytes[..bytes.len()].copy_from_slice(bytes);
        Ok(id)
    }
}

impl AsRef<[u8]> for ServerId {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl Deref for ServerId {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_ref()
    }
}

impl fmt::Debug for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerId({self})")
    }
}

/// In hexadecimal digits.
impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for ServerIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a server id has 1 to 15 bytes")
    }
}

impl core::error::Error for ServerIdError {}

/// A QUIC connection id of at most 20 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    bytes: [u8; MAX_CONNECTION_ID_LENGTH],
    length: u8,
}

impl ConnectionId {
    /// The caller keeps the length within bounds.
    pub(crate) fn zeroed(length: usize) -> Self {
        Self { bytes: [0; MAX_CONNECTION_ID_LENGTH], length: length as u8 }
    }

    pub(crate) fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..usize::from(self.length)]
    }
}

impl AsRef<[u8]> for ConnectionId {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl Deref for ConnectionId {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_ref()
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConnectionId(")?;
        self.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}
