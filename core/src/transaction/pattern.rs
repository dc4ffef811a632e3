//! An identifier at a fixed place, for protocols that nothing else is known of.

use super::TransactionId;

/// The `length` bytes at `offset`, if the datagram has them all.
pub(super) fn id(datagram: &[u8], offset: u16, length: u8) -> Option<TransactionId> {
    let offset = usize::from(offset);
    let bytes = datagram.get(offset..offset + usize::from(length))?;
    (!bytes.is_empty()).then(|| TransactionId::of_bytes(bytes))
}
