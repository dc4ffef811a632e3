//! Keys in payloads: what is found is a part of the datagram, and the part that a second reading of
//! the specifications finds. And connection ids of QUIC-LB: what any bytes name can be named again.

use flowgate_core::affinity::{Affinity, Found};
use flowgate_quic_lb::{Decoder, FirstOctet, QuicLbConfig};

/// The first byte says how long an id or key is, and the second where it is; then the datagram comes.
pub fn affinity(data: &[u8]) {
    let Some((&[length, offset], datagram)) = data.split_first_chunk() else { return };
    let lent = |part: &[u8]| part.is_empty() || is_part_of(datagram, part);
    let affinities = [
        Affinity::Quic,
        Affinity::WireGuard,
        Affinity::DtlsCid { length },
        Affinity::SipCallId,
        Affinity::Offset { offset: offset.into(), length },
    ];
    for affinity in affinities {
        match affinity.read(datagram) {
            Found::Nothing => {}
            Found::Opening { id } | Found::Underway { id, .. } => assert!(lent(id), "{affinity:?}"),
            Found::Key(key) => assert!(lent(key), "{affinity:?}"),
        }
        assert!(affinity.announced(datagram).is_none_or(lent), "{affinity:?}");
    }
    assert_eq!(Affinity::Quic.read(datagram), quic(datagram));
    assert_eq!(Affinity::WireGuard.read(datagram), wireguard(datagram));
    if let Found::Key(id) = Affinity::SipCallId.read(datagram) {
        assert!(!id.is_empty() && !id.contains(&b'\n') && id == id.trim_ascii());
    }
    let range = usize::from(offset)..usize::from(offset) + usize::from(length);
    let key = datagram.get(range).map_or(Found::Nothing, Found::Key);
    assert_eq!(affinities[4].read(datagram), key);
    quic_lb(length, offset, datagram);
}

fn is_part_of(whole: &[u8], part: &[u8]) -> bool {
    let (whole, part) = (whole.as_ptr_range(), part.as_ptr_range());
    whole.start <= part.start && part.end <= whole.end
}

/// RFC 8999, section 5, byte by byte; and which packets of versions 1 and 2 are a client's later ones.
fn quic(datagram: &[u8]) -> Found<'_> {
    let byte = |at: usize| datagram.get(at).copied();
    match byte(0) {
        None => return Found::Nothing,
        Some(0..0x80) if datagram.len() == 1 => return Found::Nothing,
        Some(0..0x80) => {
            let id = &datagram[1..datagram.len().min(21)];
            return Found::Underway { id, is_whole: false };
        }
        Some(_) => {}
    }
    let length = usize::from(byte(5).unwrap_or(u8::MAX));
    let source_length = usize::from(byte(6 + length).unwrap_or(u8::MAX));
    let is_whole = datagram.len() >= 7 + length + source_length;
    if length == 0 || length > 20 || source_length > 20 || !is_whole {
        return Found::Nothing;
    }
    let id = &datagram[6..6 + length];
    match (&datagram[1..5], datagram[0] & 0x30) {
        ([0, 0, 0, 0], _) => Found::Nothing,
        ([0, 0, 0, 1], 0x20) | ([0x6b, 0x33, 0x43, 0xcf], 0x30) => {
            Found::Underway { id, is_whole: true }
        }
        _ => Found::Opening { id },
    }
}

/// The messages of the white paper's section 5.4 by their lengths.
fn wireguard(datagram: &[u8]) -> Found<'_> {
    let at = match (datagram.get(..4), datagram.len()) {
        (Some([2, 0, 0, 0]), 92) => 8,
        (Some([3, 0, 0, 0]), 64) | (Some([4, 0, 0, 0]), 32..) => 4,
        _ => return Found::Nothing,
    };
    Found::Underway { id: &datagram[at..at + 4], is_whole: true }
}

/// Whatever server some bytes name, an id that is made for it names it too.
fn quic_lb(lengths: u8, flags: u8, id: &[u8]) {
    let (server_length, nonce_length) = (usize::from(lengths & 0xF), usize::from(lengths >> 4));
    let Ok(config) = QuicLbConfig::new(flags % 7, server_length, nonce_length) else { return };
    let config = if flags & 0x80 == 0 { config } else { config.with_key(&[flags; 16]) };
    let mut decoder = Decoder::default();
    decoder.insert(config.clone());
    assert_eq!(decoder.decode(id), config.decode(id));
    if let Some(server) = config.decode(id) {
        let nonce = vec![flags; nonce_length];
        let made = config.encode(&server, &nonce, FirstOctet::Length).expect("its own lengths");
        assert_eq!(decoder.decode(&made), Some(server));
        assert_eq!(decoder.decode(&made[..made.len() - 1]), None, "too short");
    }
}
