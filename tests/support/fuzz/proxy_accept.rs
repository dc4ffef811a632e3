//! PROXY headers that come in: what is read agrees with a reader that shares nothing with it, written
//! from section 2.2 of the specification, and nothing breaks a manager that believes the sender.

use std::net::{IpAddr, SocketAddr};

use flowgate_core::config::{BackendConfig, ManagerConfig};
use flowgate_core::proxy_protocol::{Endpoints, MAX_BLOCK_LEN, ProxyHeader, ReceivedHeader};
use flowgate_core::{Burst, Instant, ManagerInput, UdpManager};

const SIGNATURE: &[u8] = b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A";

/// What a valid header says: who called whom, the TLVs without the checksum, and the payload.
type ProxiedClient<'p> = (Option<[SocketAddr; 2]>, Vec<u8>, &'p [u8]);

/// Any bytes are read as the specification says, as they are and behind a signature, and are
/// counted by a manager, in whatever bursts they come.
pub fn proxy_accept(data: &[u8]) {
    let signed = [SIGNATURE, data].concat();
    for datagram in [data, &signed] {
        compare(datagram);
    }
    let Some((&[high, low], bytes)) = data.split_first_chunk() else { return };
    let stride = u16::from_be_bytes([high, low]);
    let mut manager = trusting_manager();
    for bytes in [bytes, &signed, bytes] {
        let Some(burst) = Burst::segmented(bytes, stride) else { return };
        let source = SocketAddr::from(([10, 0, 0, 9], 4711));
        let input = ManagerInput::ClientBurst { source, local: None, tos: 0, ttl: 64, burst };
        let before = manager.counters().to_backend.received.datagrams;
        manager.handle_input(input, Instant::ORIGIN, &mut Vec::new());
        manager.assert_invariants();
        let received = manager.counters().to_backend.received.datagrams - before;
        assert_eq!(received, u64::from(burst.count()));
    }
}

fn compare(datagram: &[u8]) {
    let is = match ReceivedHeader::parse(datagram) {
        Ok(None) => {
            assert!(!datagram.starts_with(SIGNATURE));
            return;
        }
        Err(_) => None,
        Ok(Some(header)) => {
            let endpoints = header.endpoints.map(|Endpoints { client, destination }| {
                let onward = ProxyHeader::new(client, destination).followed_by(&header.tlvs);
                let parts = header.tlvs.parts();
                let again = [onward.as_bytes(), parts[0], parts[1], header.payload].concat();
                let read = ReceivedHeader::parse(&again);
                assert_eq!(read, Ok(Some(header)), "what is passed on says the same");
                [client, destination]
            });
            Some((endpoints, header.tlvs.parts().concat(), header.payload))
        }
    };
    assert_eq!(is, read(datagram), "{datagram:02x?}");
}

/// Reads a header; `None` where it is not valid.
fn read(datagram: &[u8]) -> Option<ProxiedClient<'_>> {
    let at = |index: usize| datagram.get(index).copied();
    let len = usize::from(at(14)?) << 8 | usize::from(at(15)?);
    let header = datagram.get(..16 + len).filter(|_| len <= MAX_BLOCK_LEN)?;
    let payload = &datagram[16 + len..];
    let (command, family, transport) = (at(12)?, at(13)? >> 4, at(13)? & 15);
    if command == 0x20 || (command == 0x21 && family == 0 && transport <= 2) {
        return Some((None, vec![], payload));
    }
    let width = match family {
        1 => 4,
        2 => 16,
        3 => 108,
        _ => return None,
    };
    let ports = if family == 3 { 0 } else { 4 };
    let tlvs_at = 16 + 2 * width + ports;
    if command != 0x21 || transport > 2 || header.len() < tlvs_at {
        return None;
    }
    let ip = |start: usize| -> Option<IpAddr> {
        let octets = &header[start..start + width];
        let v4 = || <[u8; 4]>::try_from(octets).ok().map(IpAddr::from);
        let v6 = || <[u8; 16]>::try_from(octets).ok().map(IpAddr::from);
        v4().or_else(v6).map(|ip| ip.to_canonical())
    };
    let port = |start: usize| u16::from(header[start]) << 8 | u16::from(header[start + 1]);
    let endpoint = |which: usize| {
        let ip = ip(16 + which * width)?;
        Some(SocketAddr::new(ip, port(16 + 2 * width + 2 * which)))
    };
    let endpoints = endpoint(0).zip(endpoint(1)).map(|(client, called)| [client, called]);
    Some((endpoints, read_tlvs(header, tlvs_at)?, payload))
}

/// The TLVs without the checksum, which is checked.
fn read_tlvs(header: &[u8], mut at: usize) -> Option<Vec<u8>> {
    let mut kept = vec![];
    let mut checksum = None;
    while at < header.len() {
        let len = usize::from(*header.get(at + 1)?) << 8 | usize::from(*header.get(at + 2)?);
        let end = at + 3 + len;
        let tlv = header.get(at..end)?;
        if tlv[0] != 3 {
            kept.extend_from_slice(tlv);
        } else if len != 4 || checksum.replace(at + 3).is_some() {
            return None;
        }
        at = end;
    }
    if let Some(at) = checksum {
        let mut blank = header.to_vec();
        blank[at..at + 4].fill(0);
        if slow_crc32c(&blank).to_be_bytes() != header[at..at + 4] {
            return None;
        }
    }
    Some(kept)
}

/// Bit by bit.
fn slow_crc32c(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum % 2 == 1 { (sum / 2) ^ 0x82F6_3B78 } else { sum / 2 };
        }
    }
    !sum
}

fn trusting_manager() -> UdpManager {
    const TEXT: &str = "[[listener]]\naddress = \"192.0.2.53:53\"\ncluster = \"test\"\n\
                        accept_proxy_protocol = [\"10.0.0.0/8\"]\n\
                        [cluster.test]\nbackends = []\nsend_proxy_protocol = \"every\"\n";
    let config = flowgate_config::parse(TEXT, "fuzz.toml").expect("a valid configuration");
    let listener = &config.listeners[0];
    let backends = vec![BackendConfig::new(SocketAddr::from(([192, 0, 2, 1], 53)))];
    let config: ManagerConfig =
        listener.manager_config(listener.address, 4, vec![], false, backends);
    UdpManager::new(config, 1, Instant::ORIGIN)
}
