use super::*;
use crate::proxy_protocol::ProxyHeader;
use alloc::vec::Vec;
use proptest::prelude::*;
use std::format;
use std::vec;

/// From section 2.2 of the specification, by hand: 192.0.2.1:4711 called 198.51.100.7:53.
const IPV4: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0C\xC0\0\x02\x01\xC6\x33\x64\x07\x12\x67\0\x35";

fn parse(datagram: &[u8]) -> Result<ReceivedHeader<'_>, HeaderFault> {
    ReceivedHeader::parse(datagram).map(|header| header.expect("it begins as a header does"))
}

/// A header of any kind.
fn header(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let len = (block.len() as u16).to_be_bytes();
    [&SIGNATURE[..], &[command, family], &len, block].concat()
}

/// One TLV.
fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind][..], &(value.len() as u16).to_be_bytes(), value].concat()
}

/// The header of `IPV4` with TLVs and a checksum behind them.
fn with_checksum(tlvs: &[u8]) -> Vec<u8> {
    let block = [&IPV4[PREAMBLE_LEN..], tlvs, &tlv(CHECKSUM, &[0; 4])].concat();
    let mut header = header(0x21, 0x12, &block);
    let sum = crc32c(&[&header]).to_be_bytes();
    let at = header.len() - 4;
    header[at..].copy_from_slice(&sum);
    header
}

#[test]
fn an_ipv4_header_tells_both_addresses() {
    let datagram = [IPV4, b"question"].concat();
    let header = parse(&datagram).unwrap();
    let endpoints = header.endpoints.unwrap();
    assert_eq!(endpoints.client, "192.0.2.1:4711".parse().unwrap());
    assert_eq!(endpoints.destination, "198.51.100.7:53".parse().unwrap());
    assert!(header.tlvs.is_empty());
    assert_eq!(header.payload, b"question");
}

#[test]
fn an_ipv6_header_tells_both_addresses_and_mapped_ones_as_ipv4() {
    let client = "[2001:db8::1]:65535".parse().unwrap();
    for destination in ["[2001:db8::53]:443", "198.51.100.7:443"] {
        let destination = destination.parse().unwrap();
        let sent = ProxyHeader::new(client, destination);
        assert_eq!(sent.as_bytes().len(), PREAMBLE_LEN + IPV6_BLOCK_LEN);
        let header = parse(sent.as_bytes()).unwrap();
        assert_eq!(header.endpoints, Some(Endpoints { client, destination }));
    }
}

#[test]
fn what_does_not_begin_as_a_header_does_is_payload() {
    for datagram in [&b""[..], b"question", &IPV4[..11], &IPV4[1..], b"PROXY UDP4 1.2.3.4"] {
        assert_eq!(ReceivedHeader::parse(datagram), Ok(None));
    }
}

#[test]
fn a_header_without_payload_is_in_front_of_an_empty_datagram() {
    assert_eq!(parse(IPV4).unwrap().payload, b"");
}

#[test]
fn a_proxy_that_speaks_for_itself_names_nobody_whatever_follows() {
    for (command, family) in [(0x20, 0x00), (0x20, 0x12), (0x20, 0xFF), (0x21, 0x00)] {
        for block in [&b""[..], &IPV4[PREAMBLE_LEN..], b"\xFF\xFF\xFF"] {
            let datagram = [header(command, family, block), b"probe".to_vec()].concat();
            let header = parse(&datagram).unwrap();
            assert_eq!((header.endpoints, header.tlvs), (None, Tlvs::NONE));
            assert_eq!(header.payload, b"probe");
        }
    }
}

#[test]
fn a_client_of_a_unix_socket_has_no_address_and_its_tlvs_count() {
    let mut block = vec![b'/'; UNIX_BLOCK_LEN];
    block.extend(tlv(0x02, b"example.org"));
    let datagram = header(0x21, 0x32, &block);
    let header = parse(&datagram).unwrap();
    assert_eq!(header.endpoints, None);
    assert_eq!(header.tlvs.parts().concat(), tlv(0x02, b"example.org"));
}

#[test]
fn a_stream_header_is_taken_too() {
    for transport in 0..=2 {
        let datagram = header(0x21, 0x10 | transport, &IPV4[PREAMBLE_LEN..]);
        assert_eq!(parse(&datagram), parse(IPV4));
    }
}

#[test]
fn what_the_specification_does_not_know_is_refused() {
    let block = &IPV4[PREAMBLE_LEN..];
    for command in [0x00, 0x01, 0x11, 0x22, 0x2F, 0x31, 0xFF] {
        assert_eq!(parse(&header(command, 0x12, block)), Err(HeaderFault::Command));
    }
    for family in [0x03, 0x13, 0x1F, 0x23, 0x33, 0x41, 0x42, 0xF2] {
        assert_eq!(parse(&header(0x21, family, &[0; 300])), Err(HeaderFault::Family));
    }
}

#[test]
fn a_block_too_short_for_its_addresses_is_refused() {
    for (family, len) in [(0x12, 11), (0x22, 35), (0x32, 215), (0x12, 0)] {
        let datagram = header(0x21, family, &vec![0; len]);
        assert_eq!(parse(&datagram), Err(HeaderFault::Addresses));
    }
}

#[test]
fn a_header_longer_than_the_datagram_or_the_limit_is_refused() {
    for len in SIGNATURE.len()..IPV4.len() {
        assert_eq!(parse(&IPV4[..len]), Err(HeaderFault::Cut));
    }
    let fill = |len: usize| tlv(0x04, &vec![0; len - 3 - IPV4_BLOCK_LEN]);
    let longest = [&IPV4[PREAMBLE_LEN..], &fill(MAX_BLOCK_LEN)].concat();
    assert!(parse(&header(0x21, 0x12, &longest)).is_ok());
    let longer = [&IPV4[PREAMBLE_LEN..], &fill(MAX_BLOCK_LEN + 1)].concat();
    assert_eq!(parse(&header(0x21, 0x12, &longer)), Err(HeaderFault::TooLong));
}

#[test]
fn tlvs_that_do_not_add_up_are_refused() {
    for tlvs in [&b"\x02"[..], b"\x02\0", b"\x02\0\x01", b"\x04\0\0\x02\xFF\xFFabc"] {
        let block = [&IPV4[PREAMBLE_LEN..], tlvs].concat();
        assert_eq!(parse(&header(0x21, 0x12, &block)), Err(HeaderFault::Tlvs));
    }
    let sums = [tlv(CHECKSUM, &[0; 4]), tlv(CHECKSUM, &[0; 4])].concat();
    for tlvs in [tlv(CHECKSUM, &[0; 3]), tlv(CHECKSUM, &[0; 5]), sums] {
        let block = [&IPV4[PREAMBLE_LEN..], &tlvs].concat();
        assert_eq!(parse(&header(0x21, 0x12, &block)), Err(HeaderFault::Tlvs));
    }
}

#[test]
fn the_checksum_is_checked_and_left_out() {
    let authority = tlv(0x02, b"example.org");
    let datagram = [with_checksum(&authority), b"payload".to_vec()].concat();
    let header = parse(&datagram).unwrap();
    assert_eq!(header.tlvs.parts().concat(), authority);
    assert_eq!(header.tlvs.len(), authority.len());
    assert_eq!(header.payload, b"payload");
    assert!(format!("{:?}", header.tlvs).starts_with("Tlvs(02000b"));
}

#[test]
fn a_checksum_between_other_tlvs_leaves_both_sides() {
    let (left, right) = (tlv(0x02, b"left"), tlv(0xE0, b"right"));
    let block = [&IPV4[PREAMBLE_LEN..], &left, &tlv(CHECKSUM, &[0; 4]), &right].concat();
    let mut datagram = header(0x21, 0x12, &block);
    let at = datagram.len() - right.len() - 4;
    let sum = crc32c(&[&datagram]).to_be_bytes();
    datagram[at..at + 4].copy_from_slice(&sum);
    let header = parse(&datagram).unwrap();
    assert_eq!(header.tlvs.parts(), [&left[..], &right]);

    let sent = ProxyHeader::new("192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap());
    let onward = [sent.followed_by(&header.tlvs).as_bytes(), &left, &right].concat();
    let received = parse(&onward).unwrap();
    assert_eq!(received.tlvs, header.tlvs);
    assert_eq!(received.payload, b"");
}

fn any_address() -> impl Strategy<Value = SocketAddr> {
    let v4 = any::<([u8; 4], u16)>().prop_map(SocketAddr::from);
    let v6 = any::<([u8; 16], u16)>().prop_map(SocketAddr::from);
    prop_oneof![v4, v6]
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

proptest! {
    #[test]
    fn what_is_encoded_is_read_again(
        client in any_address(),
        destination in any_address(),
        tlvs in prop::collection::vec((4u8.., prop::collection::vec(any::<u8>(), 0..50)), 0..8),
        payload in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let bytes = tlvs.iter().map(|(kind, value)| tlv(*kind, value)).collect::<Vec<_>>().concat();
        let tlvs = Tlvs::parse(&bytes).unwrap();
        let sent = ProxyHeader::new(client, destination).followed_by(&tlvs);
        let datagram = [sent.as_bytes(), &bytes, &payload].concat();
        let header = parse(&datagram).unwrap();
        let [client, destination] = [client, destination].map(canonical);
        prop_assert_eq!(header.endpoints, Some(Endpoints { client, destination }));
        prop_assert_eq!(header.tlvs, tlvs);
        prop_assert_eq!(header.payload, &payload[..]);
    }

    #[test]
    fn no_part_of_a_header_is_a_header(client in any_address(), len in 0usize..52) {
        let whole = ProxyHeader::new(client, client);
        let len = len.min(whole.as_bytes().len() - 1);
        let part = ReceivedHeader::parse(&whole.as_bytes()[..len]);
        let expected = if len < SIGNATURE.len() { Ok(None) } else { Err(HeaderFault::Cut) };
        prop_assert_eq!(part, expected);
    }

    #[test]
    fn any_bytes_are_taken_apart_without_overlap(
        command in any::<u8>(),
        family in any::<u8>(),
        len in prop_oneof![0u16..300, any::<u16>()],
        rest in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let datagram =
            [&SIGNATURE[..], &[command, family], &len.to_be_bytes(), &rest].concat();
        if let Ok(Some(header)) = ReceivedHeader::parse(&datagram) {
            let header_len = PREAMBLE_LEN + usize::from(len);
            prop_assert_eq!(header.payload, &datagram[header_len..]);
            prop_assert!(header.tlvs.len() <= usize::from(len));
        }
    }

    #[test]
    fn a_checksum_tells_of_every_bit_that_has_turned(bit in 0usize..35 * 8) {
        let mut header = with_checksum(b"");
        let (at, bit) = (bit / 8, bit % 8);
        // Without its type there is no checksum.
        prop_assume!(at != header.len() - CHECKSUM_LEN);
        header[at] ^= 1 << bit;
        header.extend(b"payload");
        let names_somebody =
            |header: Option<ReceivedHeader<'_>>| header.is_some_and(|h| h.endpoints.is_some());
        prop_assert!(!ReceivedHeader::parse(&header).is_ok_and(names_somebody));
    }
}
