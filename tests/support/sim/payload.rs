//! Payloads that say whose they are.

/// The start of every datagram that is long enough: who is at the client's end of it, and a number
/// that no other datagram has.
///
/// A backend that answers copies `party` from the request it answers. So wherever a datagram turns
/// up, it is known whom it is for, without asking the balancer or the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) party: u16,
    pub(super) number: u32,
}

/// Shorter datagrams cannot say whose they are. The model knows it still.
const TAG_LEN: usize = 6;

/// What names the question of a party: what its datagrams begin with.
pub(super) const fn name_of(party: u16) -> [u8; 2] {
    party.to_be_bytes()
}

impl Tag {
    /// Fills a datagram with the tag and, beyond it, bytes that differ from place to place, so
    /// that a cut or a shift shows.
    pub(super) fn fill(self, datagram: &mut [u8]) {
        let mut bytes = [0; TAG_LEN];
        bytes[..2].copy_from_slice(&self.party.to_be_bytes());
        bytes[2..].copy_from_slice(&self.number.to_be_bytes());
        let len = datagram.len().min(TAG_LEN);
        datagram[..len].copy_from_slice(&bytes[..len]);
        for (index, byte) in datagram.iter_mut().enumerate().skip(TAG_LEN) {
            *byte = (index as u8).wrapping_add(self.number as u8);
        }
    }

    /// The tag of a datagram, where it is long enough to have one.
    pub(super) fn read(datagram: &[u8]) -> Option<Self> {
        let (party, rest) = datagram.split_first_chunk()?;
        let number = rest.first_chunk()?;
        Some(Self { party: u16::from_be_bytes(*party), number: u32::from_be_bytes(*number) })
    }
}
