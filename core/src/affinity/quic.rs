//! QUIC's connection ids (RFC 8999, which holds for every version, and RFC 9000).
//!
//! A client sends the id that its server has chosen, in every packet but its first ones: those carry
//! an id that the client has made up. Where the id of a short header ends only its server knows.

use super::Found;

/// The longest id that QUIC version 1 has.
pub(super) const MAX_ID: usize = 20;

/// A shorter id than this is taken for nobody's: too many connections have the same.
const MIN_LEARNED: usize = 4;

const LONG_HEADER: u8 = 0x80;

const PACKET_TYPE: u8 = 0x30;

const VERSION_2: u32 = 0x6b33_43cf;

/// What the first packet of a client's datagram says.
pub fn read(datagram: &[u8]) -> Found<'_> {
    let Some(&first) = datagram.first() else { return Found::Nothing };
    if first & LONG_HEADER == 0 {
        let id = &datagram[1..datagram.len().min(1 + MAX_ID)];
        return if id.is_empty() {
            Found::Nothing
        } else {
            Found::Underway { id, is_whole: false }
        };
    }
    let Some(header) = LongHeader::read(datagram) else { return Found::Nothing };
    let id = header.destination;
    if header.version == 0 || id.is_empty() {
        Found::Nothing
    } else if header.is_handshake() {
        Found::Underway { id, is_whole: true }
    } else {
        Found::Opening { id }
    }
}

/// The id by which a server wants to be called from now on, where its datagram says so: every long
/// header does, but for version negotiation, which repeats what the client has said.
pub fn announced(datagram: &[u8]) -> Option<&[u8]> {
    let header = LongHeader::read(datagram)?;
    let is_one = header.version != 0 && header.source.len() >= MIN_LEARNED;
    is_one.then_some(header.source)
}

/// The bytes that differ where ids do: one read for each burst of a known flow. The type of a long
/// header counts too: what a first flight says of an id is not what holds for the packets after it.
#[inline]
pub(super) fn fingerprint(datagram: &[u8]) -> u64 {
    let first = datagram.first().copied().unwrap_or(0);
    if first & LONG_HEADER == 0 {
        return super::eight_bytes(datagram, 1);
    }
    super::eight_bytes(datagram, 6) ^ u64::from(first & (LONG_HEADER | PACKET_TYPE))
}

struct LongHeader<'p> {
    first: u8,
    version: u32,
    destination: &'p [u8],
    source: &'p [u8],
}

impl<'p> LongHeader<'p> {
    fn read(datagram: &'p [u8]) -> Option<Self> {
        let (&first, rest) = datagram.split_first()?;
        let (version, rest) = rest.split_first_chunk()?;
        let (destination, rest) = id(rest)?;
        let (source, _) = id(rest)?;
        let version = u32::from_be_bytes(*version);
        (first & LONG_HEADER != 0).then_some(Self { first, version, destination, source })
    }

    /// Whether it is a packet that only a client can send that has heard its server.
    fn is_handshake(&self) -> bool {
        let packet_type = self.first >> 4 & 0b11;
        match self.version {
            1 => packet_type == 2,
            VERSION_2 => packet_type == 3,
            _ => false,
        }
    }
}

/// An id after its length.
fn id(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&length, rest) = bytes.split_first()?;
    let length = usize::from(length);
    if length > MAX_ID { None } else { rest.split_at_checked(length) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use std::vec;

    fn long(first: u8, version: u32, destination: &[u8], source: &[u8]) -> Vec<u8> {
        let mut packet = vec![first];
        packet.extend(version.to_be_bytes());
        for id in [destination, source] {
            packet.push(id.len() as u8);
            packet.extend(id);
        }
        packet.extend([0; 30]);
        packet
    }

    #[test]
    fn first_flights_open_and_what_follows_them_is_underway() {
        let (client, server) = ([7; 8], [9; 18]);
        for (first, version, is_opening) in [
            (0xC0, 1, true),
            (0xD0, 1, true),
            (0xE0, 1, false),
            (0xD0, VERSION_2, true),
            (0xE0, VERSION_2, true),
            (0xF0, VERSION_2, false),
            (0xE0, 0xBABA_BABA, true),
        ] {
            let packet = long(first, version, &server, &client);
            let found = if is_opening {
                Found::Opening { id: &server }
            } else {
                Found::Underway { id: &server, is_whole: true }
            };
            assert_eq!(read(&packet), found, "{first:x} {version:x}");
            assert_eq!(announced(&packet), Some(&client[..]));
        }
    }

    #[test]
    fn a_short_header_has_an_id_of_unknown_length() {
        let packet: Vec<u8> = (0x40..0x80).collect();
        assert_eq!(read(&packet), Found::Underway { id: &packet[1..21], is_whole: false });
        assert_eq!(read(&packet[..3]), Found::Underway { id: &packet[1..3], is_whole: false });
        assert_eq!(announced(&packet), None);
    }

    #[test]
    fn version_negotiation_and_what_is_cut_short_say_nothing() {
        let negotiation = long(0x80, 0, &[1; 8], &[2; 8]);
        assert_eq!((read(&negotiation), announced(&negotiation)), (Found::Nothing, None));
        let whole = long(0xC0, 1, &[1; 8], &[2; 8]);
        for length in 0..1 + 4 + 1 + 8 + 1 + 8 {
            let cut = &whole[..length];
            assert_eq!((read(cut), announced(cut)), (Found::Nothing, None), "{length}");
        }
        let too_long = long(0xC0, 1, &[1; 21], &[2; 8]);
        assert_eq!((read(&too_long), announced(&too_long)), (Found::Nothing, None));
        assert_eq!(announced(&long(0xC0, 1, &[1; 8], &[2; 3])), None, "too short to be one's own");
    }

    #[test]
    fn other_ids_have_other_fingerprints() {
        let fingerprints = [
            fingerprint(&long(0xC0, 1, &[1; 8], &[2; 8])),
            fingerprint(&long(0xE0, 1, &[1; 8], &[2; 8])),
            fingerprint(&[0x40, 1, 1, 1, 1, 1, 1, 1, 1]),
            fingerprint(&long(0xC0, 1, &[3; 8], &[2; 8])),
            fingerprint(&[0x40, 5, 5, 5, 5, 5, 5, 5, 5]),
            fingerprint(&[0x40, 5]),
        ];
        for (at, fingerprint) in fingerprints.iter().enumerate() {
            assert!(!fingerprints[..at].contains(fingerprint));
        }
        assert_eq!(fingerprint(&[0x41, 5, 9]), fingerprint(&[0x5F, 5, 9]), "only the id counts");
    }
}
