//! Whatever comes, nothing panics, and what is found is a part of it; and what is put into a datagram
//! is found.

use alloc::vec::Vec;
use core::ops::Range;
use proptest::collection::vec as many;
use proptest::prelude::*;
use std::string::String;
use std::{format, vec};

use crate::affinity::{Affinity, Found, quic, wireguard};

fn any_affinity() -> impl Strategy<Value = Affinity> {
    prop_oneof![
        Just(Affinity::SourceIp),
        Just(Affinity::Host),
        Just(Affinity::Quic),
        Just(Affinity::WireGuard),
        any::<u8>().prop_map(|length| Affinity::DtlsCid { length }),
        Just(Affinity::SipCallId),
        (0..100_u16, any::<u8>()).prop_map(|(offset, length)| Affinity::Offset { offset, length }),
    ]
}

/// Bytes of no kind, and some that begin as messages do.
fn any_datagram() -> impl Strategy<Value = Vec<u8>> {
    let beginnings: &[&[u8]] = &[
        b"",
        b"\xC0\0\0\0\x01",
        b"\xE0\0\0\0\x01\x08",
        b"\x40",
        b"\x04\0\0\0",
        b"\x19\xFE\xFD",
        b"\x3F",
        b"\x16\xFE\xFD\0\0\0\0\0\0\0\0\0\x50\x02",
        b"INVITE sip:a@b SIP/2.0\r\ni: ",
    ];
    let beginning = prop::sample::select(beginnings);
    (beginning, many(any::<u8>(), 0..300)).prop_map(|(beginning, rest)| {
        let mut datagram = beginning.to_vec();
        datagram.extend(rest);
        datagram
    })
}

fn bounds_of(found: Found<'_>) -> (&[u8], usize) {
    match found {
        Found::Nothing => (&[], 0),
        Found::Opening { id } | Found::Underway { id, .. } => (id, 255),
        Found::Key(key) => (key, 2_048),
    }
}

/// Where a part of some bytes lies in them.
fn place_in(whole: &[u8], part: &[u8]) -> Option<Range<usize>> {
    let (whole, part) = (whole.as_ptr_range(), part.as_ptr_range());
    let is_inside = whole.start <= part.start && part.end <= whole.end;
    is_inside.then(|| {
        let start = part.start.addr() - whole.start.addr();
        start..start + (part.end.addr() - part.start.addr())
    })
}

proptest! {
    #[test]
    fn what_is_found_is_a_part_of_the_datagram(
        affinity in any_affinity(),
        datagram in any_datagram(),
    ) {
        let (part, longest) = bounds_of(affinity.read(&datagram));
        prop_assert!(part.len() <= longest);
        prop_assert!(part.is_empty() || place_in(&datagram, part).is_some());
        let announced = affinity.announced(&datagram).unwrap_or_default();
        prop_assert!(announced.is_empty() || place_in(&datagram, announced).is_some());
        let _ = affinity.fingerprint(&datagram);
    }

    /// The longest id that a short header can have begins with the id that a server has announced.
    #[test]
    fn quic_clients_repeat_what_servers_announce(
        server in many(any::<u8>(), 4..=20),
        client in many(any::<u8>(), 0..=20),
        low_bits in 0..0x40_u8,
        rest in many(any::<u8>(), 20..60),
    ) {
        let long = |first: u8, destination: &[u8], source: &[u8]| {
            let mut packet = vec![first | low_bits & 0xF, 0, 0, 0, 1];
            for id in [destination, source] {
                packet.push(id.len() as u8);
                packet.extend(id);
            }
            packet.extend(&rest);
            packet
        };
        let hello = long(0xC0, &client, &server);
        prop_assert_eq!(quic::announced(&hello), Some(&server[..]));
        let handshake = long(0xE0, &server, &client);
        let whole = Found::Underway { id: &server, is_whole: true };
        prop_assert_eq!(quic::read(&handshake), whole);
        let short = [&[0x40 | low_bits], &server[..], &rest].concat();
        let Found::Underway { id, is_whole: false } = quic::read(&short) else {
            panic!("a short header");
        };
        prop_assert!(id.starts_with(&server) && id.len() == quic::MAX_ID);
        if server.len() >= 8 {
            // Between first flights of other clients there is no such relation.
            let again = [&[0x40 | !low_bits & 0x3F], &server[..], &rest].concat();
            prop_assert_eq!(quic::fingerprint(&short), quic::fingerprint(&again));
        }
    }

    #[test]
    fn wireguard_peers_repeat_what_the_other_announces(
        index: [u8; 4],
        other: [u8; 4],
        payload in many(any::<u8>(), 24..100),
    ) {
        let mut response = vec![2, 0, 0, 0];
        response.extend(index);
        response.extend(other);
        response.resize(92, 0);
        prop_assert_eq!(wireguard::announced(&response), Some(&index[..]));
        let data = [&[4, 0, 0, 0], &index[..], &payload].concat();
        prop_assert_eq!(wireguard::read(&data), Found::Underway { id: &index, is_whole: true });
        let is_same = wireguard::fingerprint(&data)
            == wireguard::fingerprint(&[&[4, 0, 0, 0], &other[..], &payload].concat());
        prop_assert_eq!(is_same, index == other);
    }

    #[test]
    fn dtls_records_carry_the_id_of_the_length_that_is_set(
        id in many(any::<u8>(), 1..=255),
        sequence: [u8; 8],
        first in 0x30..0x40_u8,
        rest in many(any::<u8>(), 2..50),
    ) {
        let affinity = Affinity::DtlsCid { length: id.len() as u8 };
        let found = Found::Underway { id: &id, is_whole: true };
        let old = [&[25, 0xFE, 0xFD][..], &sequence, &id, &rest].concat();
        prop_assert_eq!(affinity.read(&old), found);
        let new = [&[first][..], &id, &rest].concat();
        prop_assert_eq!(affinity.read(&new), found);
        prop_assert_eq!(affinity.fingerprint(&old), affinity.fingerprint(&new));
        prop_assert_eq!(affinity.read(&new[..id.len()]), Found::Nothing);
    }

    #[test]
    fn a_call_id_is_found_among_other_headers(
        id in "[!-~]{1,60}",
        name in prop::sample::select(vec!["Call-ID", "call-id", "CALL-id", "i", "I"]),
        before in many("(Via|To|From|CSeq|Contact|Content-Type|X-Call-ID): [ -~]{0,20}", 0..12),
    ) {
        let mut message = String::from("OPTIONS sip:a@b SIP/2.0\r\n");
        before.iter().for_each(|line| message += &format!("{line}\r\n"));
        message += &format!("{name}: {id}\r\n\r\ni: another\r\n");
        let found = Affinity::SipCallId.read(message.as_bytes());
        prop_assert_eq!(found, Found::Key(id.as_bytes()));
    }

    #[test]
    fn a_key_at_an_offset_is_those_bytes(
        datagram in many(any::<u8>(), 0..300),
        offset in 0..300_u16,
        length: u8,
    ) {
        let range = usize::from(offset)..usize::from(offset) + usize::from(length);
        let found = Affinity::Offset { offset, length }.read(&datagram);
        prop_assert_eq!(found, datagram.get(range).map_or(Found::Nothing, Found::Key));
    }
}
