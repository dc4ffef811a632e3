//! The connection ids of DTLS 1.2 (RFC 9146) and 1.3 (RFC 9147).
//!
//! A record carries the id that its receiver has chosen, and not its length, which the balancer has
//! to be told. Which id a server has chosen stands in its ServerHello, which is not encrypted.

use super::Found;

const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const TLS12_CID: u8 = 25;

const SERVER_HELLO: u8 = 2;
const CONNECTION_ID_EXTENSION: u16 = 54;

/// What a client's record says, whose ids have `length` bytes.
pub fn read(datagram: &[u8], length: u8) -> Found<'_> {
    let Some(&first) = datagram.first() else { return Found::Nothing };
    let at = match first {
        TLS12_CID => 11,
        // The unified header of DTLS 1.3: 001, and whether there is an id.
        0x20..=0x3F if first & 0x10 != 0 => 1,
        0x20..=0x3F | APPLICATION_DATA => return Found::Underway { id: &[], is_whole: true },
        _ => return Found::Nothing,
    };
    match datagram.get(at..at + usize::from(length)) {
        Some(id) => Found::Underway { id, is_whole: true },
        None => Found::Nothing,
    }
}

/// The id by which a server wants to be called from now on, if it has `length` bytes and its
/// datagram begins with the ServerHello that says so.
pub fn announced(datagram: &[u8], length: u8) -> Option<&[u8]> {
    let record = datagram.strip_prefix(&[HANDSHAKE, 0xFE])?;
    // The rest of the version, the epoch, the sequence number and the length.
    let (_, message) = record.split_at_checked(1 + 2 + 6 + 2)?;
    let message = message.strip_prefix(&[SERVER_HELLO])?;
    // Length, sequence number, offset, which has to be 0, and length of the fragment.
    let (head, body) = message.split_at_checked(3 + 2 + 3 + 3)?;
    if head[5..8] != [0; 3] {
        return None;
    }
    // Version and random number, session id, cipher suite and compression.
    let (_, body) = body.split_at_checked(2 + 32)?;
    let (_, body) = after_length(body)?;
    let (_, body) = body.split_at_checked(2 + 1 + 2)?;
    let extension = extension(body, CONNECTION_ID_EXTENSION)?;
    let (id, _) = after_length(extension)?;
    (!id.is_empty() && id.len() == usize::from(length)).then_some(id)
}

#[inline]
pub(super) fn fingerprint(datagram: &[u8], length: u8) -> u64 {
    let at = match datagram.first() {
        Some(&TLS12_CID) => 11,
        Some(0x30..=0x3F) => 1,
        // What carries no id has none to compare.
        _ => return 0,
    };
    let id = datagram.get(at..at + usize::from(length)).unwrap_or_default();
    super::eight_bytes(id, 0)
}

/// One of a list of extensions. No ServerHello has more than a few.
fn extension(mut list: &[u8], wanted: u16) -> Option<&[u8]> {
    const MAX_EXTENSIONS: usize = 32;
    for _ in 0..MAX_EXTENSIONS {
        let (kind, rest) = list.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (body, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        if u16::from_be_bytes(*kind) == wanted {
            return Some(body);
        }
        list = rest;
    }
    None
}

/// Bytes after their length, which is one byte, and what follows them.
fn after_length(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use std::vec;

    pub(crate) fn server_hello(id: &[u8]) -> Vec<u8> {
        let mut extensions = vec![0, 23, 0, 0];
        extensions.extend([0, 54, 0, id.len() as u8 + 1, id.len() as u8]);
        extensions.extend(id);
        let mut body = vec![0xFE, 0xFD];
        body.extend([7; 32]);
        body.extend([2, 1, 1, 0xC0, 0xA8, 0]);
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
        let length = (body.len() as u32).to_be_bytes();
        let mut message = vec![SERVER_HELLO];
        message.extend(&length[1..]);
        message.extend([0, 1, 0, 0, 0]);
        message.extend(&length[1..]);
        message.extend(body);
        let mut record = vec![HANDSHAKE, 0xFE, 0xFD, 0, 0, 0, 0, 0, 0, 0, 1];
        record.extend((message.len() as u16).to_be_bytes());
        record.extend(message);
        record
    }

    #[test]
    fn records_with_an_id_name_it() {
        let mut record = vec![TLS12_CID, 0xFE, 0xFD, 0, 1, 0, 0, 0, 0, 0, 9];
        record.extend([1, 2, 3, 4, 0, 30]);
        record.extend([0; 30]);
        let found = Found::Underway { id: &[1, 2, 3, 4], is_whole: true };
        assert_eq!(read(&record, 4), found);
        assert_eq!(read(&[0x3F, 1, 2, 3, 4, 5, 6], 4), found);
        assert_eq!(fingerprint(&record, 4), fingerprint(&[0x3F, 1, 2, 3, 4, 5, 6], 4));
        assert_ne!(fingerprint(&record, 4), fingerprint(&[0x3F, 1, 2, 3, 9, 5, 6], 4));
    }

    #[test]
    fn records_without_one_are_underway_where_they_carry_data() {
        let found = Found::Underway { id: &[], is_whole: true };
        assert_eq!(read(&[APPLICATION_DATA, 0xFE, 0xFD], 4), found);
        assert_eq!(read(&[0x2F, 1, 2], 4), found);
        for datagram in [&[][..], &[HANDSHAKE, 0xFE, 0xFD], &[0x3F, 1, 2, 3], &[TLS12_CID; 14]] {
            assert_eq!(read(datagram, 4), Found::Nothing);
        }
    }

    #[test]
    fn a_server_hello_says_which_id_the_server_wants() {
        let hello = server_hello(&[5, 6, 7, 8]);
        assert_eq!(announced(&hello, 4), Some(&[5, 6, 7, 8][..]));
        assert_eq!(announced(&hello, 5), None, "another length");
        assert_eq!(announced(&server_hello(&[]), 0), None, "it wants none");
        for length in 0..hello.len() {
            assert_eq!(announced(&hello[..length], 4), None);
        }
    }
}
