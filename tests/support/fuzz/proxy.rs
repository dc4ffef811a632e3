//! PROXY protocol headers: what is encoded is read again by a decoder that shares nothing with
//! the encoder, written from section 2.2 of the specification.

use std::net::{IpAddr, SocketAddr};

use flowgate_core::proxy_protocol::ProxyHeader;

/// A header says who the client is and whom it called, whatever the families.
pub fn proxy_header(data: &[u8]) {
    let Some((client, data)) = take_address(data) else { return };
    let Some((called, _)) = take_address(data) else { return };
    let header = ProxyHeader::new(client, called);
    let said = decode(header.as_bytes()).expect("a header is a header");
    let canonical = |address: SocketAddr| (address.ip().to_canonical(), address.port());
    assert_eq!(said.map(canonical), [client, called].map(canonical));
    let are_both_v4 = [client, called].iter().all(|address| address.ip().to_canonical().is_ipv4());
    assert_eq!(said[0].is_ipv4(), are_both_v4, "one family for both, IPv4 where it can be");
}

/// One byte for the family, then address and port.
fn take_address(data: &[u8]) -> Option<(SocketAddr, &[u8])> {
    let (family, data) = data.split_first()?;
    let (ip, data): (IpAddr, _) = if family.is_multiple_of(2) {
        let (octets, data) = data.split_first_chunk::<4>()?;
        (IpAddr::from(*octets), data)
    } else {
        let (octets, data) = data.split_first_chunk::<16>()?;
        (IpAddr::from(*octets), data)
    };
    let (port, data) = data.split_first_chunk()?;
    Some((SocketAddr::new(ip, u16::from_be_bytes(*port)), data))
}

/// Source and destination of a header that stands alone and has no TLVs.
fn decode(header: &[u8]) -> Option<[SocketAddr; 2]> {
    let block = header.strip_prefix(b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A")?;
    let (&[version_and_command, family_and_protocol], block) = block.split_first_chunk()?;
    let (length, block) = block.split_first_chunk()?;
    if version_and_command != 0x21 || usize::from(u16::from_be_bytes(*length)) != block.len() {
        return None;
    }
    let width = match family_and_protocol {
        0x12 => 4,
        0x22 => 16,
        _ => return None,
    };
    let ip = |octets: &[u8]| -> Option<IpAddr> {
        match width {
            4 => Some(<[u8; 4]>::try_from(octets).ok()?.into()),
            _ => Some(<[u8; 16]>::try_from(octets).ok()?.into()),
        }
    };
    let port = |bytes: &[u8]| Some(u16::from_be_bytes(bytes.try_into().ok()?));
    let (addresses, ports) = block.split_at_checked(2 * width)?;
    let source = SocketAddr::new(ip(&addresses[..width])?, port(ports.get(..2)?)?);
    let destination = SocketAddr::new(ip(&addresses[width..])?, port(ports.get(2..)?)?);
    Some([source, destination])
}
