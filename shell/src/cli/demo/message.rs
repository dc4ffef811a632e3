//! What the demo's clients and backends say to each other.

use flowgate_core::Instant;

/// One datagram of the demo. A backend returns what it got, signed, so that a client can tell how
/// long the way took, who answered, and whether the answer was meant for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// The client that asked.
    pub(super) client: u64,
    /// When it asked, on its clock.
    pub(super) sent_at: Instant,
    /// The backend that answered.
    pub(super) backend: u8,
}

impl Message {
    /// How long it is on the wire: small, as most datagrams of games, voice and DNS are.
    pub(super) const LENGTH: usize = 64;

    /// Where a backend signs.
    const SIGNATURE: usize = 16;

    pub(super) fn encode(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..8].copy_from_slice(&self.client.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.sent_at.as_nanos().to_be_bytes());
        bytes[Self::SIGNATURE] = self.backend;
        bytes
    }

    /// None: the datagram is not of this demo.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LENGTH] = bytes.try_into().ok()?;
        Some(Self {
            client: u64::from_be_bytes(bytes[..8].try_into().ok()?),
            sent_at: Instant::from_nanos(u64::from_be_bytes(bytes[8..16].try_into().ok()?)),
            backend: bytes[Self::SIGNATURE],
        })
    }

    /// PassiveHealth an encoded message as answered by `backend`.
    pub(super) fn sign(bytes: &mut [u8], backend: u8) {
        if let Some(signature) = bytes.get_mut(Self::SIGNATURE) {
            *signature = backend;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signed_message_tells_who_asked_when_and_who_answered() {
        let asked = Message { client: 7, sent_at: Instant::from_millis(250), backend: 0 };
        let mut bytes = asked.encode();
        Message::sign(&mut bytes, 3);
        assert_eq!(Message::decode(&bytes), Some(Message { backend: 3, ..asked }));
    }

    #[test]
    fn a_datagram_of_another_length_is_not_a_message() {
        assert_eq!(Message::decode(&[0; Message::LENGTH - 1]), None);
        assert_eq!(Message::decode(&[0; Message::LENGTH + 1]), None);
    }
}
