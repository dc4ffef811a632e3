use super::*;
use std::format;

fn header(client: &str, destination: &str) -> ProxyHeader {
    ProxyHeader::new(client.parse().unwrap(), destination.parse().unwrap())
}

/// Written by hand from section 2.2 of the specification.
#[test]
fn two_ipv4_addresses_make_a_28_byte_header() {
    #[rustfmt::skip]
    let expected = [
        0x0D, 0x0A, 0x0D, 0x0A, 0x00, 0x0D, 0x0A, 0x51, 0x55, 0x49, 0x54, 0x0A, // signature
        0x21,                   // version 2, PROXY
        0x12,                   // AF_INET, DGRAM
        0x00, 0x0C,             // 12 bytes follow
        192, 0, 2, 1,           // client
        198, 51, 100, 7,        // destination
        0x12, 0x67,             // port 4711
        0x00, 0x35,             // port 53
    ];
    assert_eq!(header("192.0.2.1:4711", "198.51.100.7:53").as_bytes(), expected);
}

#[test]
fn two_ipv6_addresses_make_a_52_byte_header() {
    #[rustfmt::skip]
    let expected = [
        0x0D, 0x0A, 0x0D, 0x0A, 0x00, 0x0D, 0x0A, 0x51, 0x55, 0x49, 0x54, 0x0A, // signature
        0x21,                   // version 2, PROXY
        0x22,                   // AF_INET6, DGRAM
        0x00, 0x24,             // 36 bytes follow
        0x20, 0x01, 0x0D, 0xB8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, // client
        0x20, 0x01, 0x0D, 0xB8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x53, // destination
        0xFF, 0xFF,             // port 65535
        0x01, 0xBB,             // port 443
    ];
    let header = header("[2001:db8::1]:65535", "[2001:db8::53]:443");
    assert_eq!(header.as_bytes(), expected);
    assert_eq!(header.as_bytes().len(), ProxyHeader::MAX_LEN);
}

#[test]
fn mixed_families_are_told_as_ipv6_with_the_ipv4_one_mapped() {
    #[rustfmt::skip]
    let expected = [
        0x0D, 0x0A, 0x0D, 0x0A, 0x00, 0x0D, 0x0A, 0x51, 0x55, 0x49, 0x54, 0x0A, // signature
        0x21, 0x22, 0x00, 0x24, // version 2, PROXY, AF_INET6, DGRAM, 36 bytes follow
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 192, 0, 2, 1,        // client
        0x20, 0x01, 0x0D, 0xB8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x53, // destination
        0x12, 0x67, 0x00, 0x35, // ports 4711 and 53
    ];
    for client in ["192.0.2.1:4711", "[::ffff:192.0.2.1]:4711"] {
        assert_eq!(header(client, "[2001:db8::53]:53").as_bytes(), expected);
    }

    let reversed = header("[2001:db8::53]:53", "192.0.2.1:4711");
    let client_first = [&expected[32..48], &expected[16..32], &[0x00, 0x35, 0x12, 0x67]].concat();
    assert_eq!(reversed.as_bytes()[16..], client_first);
}

#[test]
fn mapped_addresses_are_told_as_ipv4() {
    let plain = header("192.0.2.1:4711", "198.51.100.7:53");
    let mapped = header("[::ffff:192.0.2.1]:4711", "[::ffff:198.51.100.7]:53");
    assert_eq!(mapped, plain);
    assert_eq!(header("192.0.2.1:4711", "[::ffff:198.51.100.7]:53"), plain);
    assert_eq!(header("[::ffff:192.0.2.1]:4711", "198.51.100.7:53"), plain);
}

#[test]
fn debug_shows_the_bytes_as_hex() {
    let shown = format!("{:?}", header("192.0.2.1:4711", "198.51.100.7:53"));
    assert!(shown.starts_with("ProxyHeader(0d0a0d0a"));
    assert!(shown.ends_with("c0000201c633640712670035)"));
}
