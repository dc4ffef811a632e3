//! QUIC (RFC 8999, the properties that all versions share): a version that does not exist, to which
//! a server answers with those that do.
//!
//! It costs the server no state and no cryptography (RFC 9000, section 6).

/// The header has the long form.
const LONG_HEADER: u8 = 0x80;
/// Is set in every packet of version 1: servers may look at it before they look at the version.
const FIXED_BIT: u8 = 0x40;
/// The version of a list of versions.
const NEGOTIATION: [u8; 4] = [0; 4];
/// Servers do not answer what is shorter (RFC 9000, section 14.1).
const PACKET: usize = 1_200;

/// A packet under way.
#[derive(Clone, Copy, Debug)]
pub struct UnknownVersion {
    version: [u8; 4],
    destination: [u8; 8],
    source: [u8; 8],
}

impl UnknownVersion {
    /// The packet with those connection ids. Its version is drawn from them too, among those that
    /// are reserved to be unknown to everyone (RFC 9000, section 15).
    pub fn new(ids: u128) -> Self {
        let version = ids as u32 & 0xf0f0_f0f0 | 0x0a0a_0a0a;
        Self {
            version: version.to_be_bytes(),
            destination: ((ids >> 64) as u64).to_be_bytes(),
            source: (ids as u64).to_be_bytes(),
        }
    }

    /// The datagram that asks it.
    pub fn bytes(&self) -> Vec<u8> {
        let mut packet = vec![LONG_HEADER | FIXED_BIT];
        packet.extend(self.version);
        packet.push(self.destination.len() as u8);
        packet.extend(self.destination);
        packet.push(self.source.len() as u8);
        packet.extend(self.source);
        packet.resize(PACKET, 0);
        packet
    }

    /// Whether a datagram answers it: a list of versions, of which this is none, with the connection
    /// ids exchanged.
    pub fn accepts(&self, answer: &[u8]) -> bool {
        self.versions(answer).is_some_and(|versions| {
            let (versions, rest) = versions.as_chunks::<4>();
            !versions.is_empty() && rest.is_empty() && !versions.contains(&self.version)
        })
    }

    /// The list of versions, if it answers this packet.
    fn versions<'a>(&self, answer: &'a [u8]) -> Option<&'a [u8]> {
        let (first, rest) = answer.split_first()?;
        let (version, rest) = rest.split_first_chunk::<4>()?;
        let (destination, rest) = connection_id(rest)?;
        let (source, rest) = connection_id(rest)?;
        let is_answer = first & LONG_HEADER != 0
            && *version == NEGOTIATION
            && destination == self.source
            && source == self.destination;
        is_answer.then_some(rest)
    }
}

/// A connection id and what follows it.
fn connection_id(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*length))
}
