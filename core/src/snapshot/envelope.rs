//! What every snapshot is wrapped in: what it is, which format, how long, and a checksum.

use alloc::vec::Vec;

use serde::Serialize;
use serde::de::DeserializeOwned;
use siphasher::sip::SipHasher24;

/// The format that this version writes, and the newest that it reads.
pub const VERSION: u16 = 5;

/// The oldest format that this version reads.
pub const OLDEST_VERSION: u16 = 5;

const MAGIC: &[u8; 8] = b"flowgate";

/// The checksum finds damage. It keeps no secret, and proves nothing to whom the sender is not
/// trusted.
const CHECKSUM_KEY: &[u8; 16] = b"flowgate snapsho";

/// Magic, format, length and checksum. All numbers are little-endian, as in the document.
const HEADER: usize = 8 + 2 + 8 + 8;

/// Why bytes are no snapshot that this version can read. The document's own content may still be
/// refused: see [`RestoreError`](super::RestoreError).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// They do not begin as a snapshot does.
    #[error("this is not a snapshot of Flowgate")]
    BadMagic,
    /// A later version has written it.
    #[error("the snapshot has format {found}, and this version reads formats up to {newest}")]
    TooNew {
        /// Its format.
        found: u16,
        /// The newest that can be read.
        newest: u16,
    },
    /// A version has written it that is too old.
    #[error("the snapshot has format {found}, and this version reads formats from {oldest} on")]
    TooOld {
        /// Its format.
        found: u16,
        /// The oldest that can be read.
        oldest: u16,
    },
    /// Its end is missing.
    #[error("the snapshot is cut short: {found} of {expected} bytes are there")]
    Truncated {
        /// How many bytes it should have, as far as that can be told.
        expected: u64,
        /// How many it has.
        found: u64,
    },
    /// More follows where it should end.
    #[error("{excess} bytes follow the end of the snapshot")]
    TooLong {
        /// How many bytes.
        excess: u64,
    },
    /// Its checksum does not fit.
    #[error("the snapshot is damaged: its checksum does not fit")]
    ChecksumMismatch,
    /// It is whole, and yet not the document that it should be.
    #[error("the snapshot is malformed")]
    Malformed,
}

/// Wraps a document, encoded with postcard.
///
/// # Panics
///
/// When the document cannot be encoded, which is a bug in its type: only one that serializes
/// sequences without telling their lengths, or that fails by itself, cannot.
pub fn encode<T: Serialize + ?Sized>(document: &T) -> Vec<u8> {
    let mut encoded = Vec::new();
    encoded.extend_from_slice(MAGIC);
    encoded.extend_from_slice(&VERSION.to_le_bytes());
    encoded.resize(HEADER, 0);
    let mut encoded = postcard::to_extend(document, encoded).expect("a document of plain data");
    let (header, body) = encoded.split_at_mut(HEADER);
    header[10..18].copy_from_slice(&(body.len() as u64).to_le_bytes());
    let sum = checksum(&header[..18], body);
    header[18..].copy_from_slice(&sum.to_le_bytes());
    encoded
}

/// Unwraps a document.
///
/// Takes no more memory than a small multiple of the bytes, whatever they say.
///
/// # Errors
///
/// When the bytes are not exactly one snapshot, undamaged, of a format that this version reads,
/// with a document of this type in it.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, SnapshotError> {
    let body = body_of(bytes)?;
    let (document, rest) = postcard::take_from_bytes(body).map_err(|_| SnapshotError::Malformed)?;
    if rest.is_empty() { Ok(document) } else { Err(SnapshotError::Malformed) }
}

/// The document's bytes, once everything around them has proved right.
fn body_of(bytes: &[u8]) -> Result<&[u8], SnapshotError> {
    let begins = bytes.len().min(MAGIC.len());
    if bytes[..begins] != MAGIC[..begins] {
        return Err(SnapshotError::BadMagic);
    }
    let cut_short =
        |expected: u64| SnapshotError::Truncated { expected, found: bytes.len() as u64 };
    // The format comes first: what follows may be another.
    let format = bytes.get(8..10).and_then(|format| format.try_into().ok());
    let found = u16::from_le_bytes(format.ok_or(cut_short(HEADER as u64))?);
    if found > VERSION {
        return Err(SnapshotError::TooNew { found, newest: VERSION });
    }
    if found < OLDEST_VERSION {
        return Err(SnapshotError::TooOld { found, oldest: OLDEST_VERSION });
    }
    let (header, body) = bytes.split_at_checked(HEADER).ok_or(cut_short(HEADER as u64))?;
    let number = |at: usize| u64::from_le_bytes(core::array::from_fn(|byte| header[at + byte]));
    let (length, sum) = (number(10), number(18));
    let found = body.len() as u64;
    if found < length {
        return Err(cut_short(length.saturating_add(HEADER as u64)));
    }
    if found > length {
        return Err(SnapshotError::TooLong { excess: found - length });
    }
    if sum != checksum(&header[..18], body) {
        return Err(SnapshotError::ChecksumMismatch);
    }
    Ok(body)
}

fn checksum(header: &[u8], body: &[u8]) -> u64 {
    use core::hash::Hasher as _;
    let mut hasher = SipHasher24::new_with_key(CHECKSUM_KEY);
    hasher.write(header);
    hasher.write(body);
    hasher.finish()
}
