use flowgate_core::Direction;
use proptest::prelude::*;

use super::*;
use crate::observe::event::{Decision, TraceEvent};
use crate::observe::pcapng::Capture;

fn datagrams(bytes: &[u8]) -> Vec<(SocketAddr, SocketAddr, Vec<u8>)> {
    let mut reader = CaptureReader::new(bytes).unwrap();
    let mut all = Vec::new();
    while let Some(datagram) = reader.next_datagram().unwrap() {
        assert_eq!(usize::from(datagram.len), datagram.bytes.len());
        all.push((datagram.source, datagram.destination, datagram.bytes.to_vec()));
    }
    assert!(!reader.is_cut());
    all
}

/// A capture as `flowgate trace` writes it.
fn pcapng() -> Vec<u8> {
    let event = TraceEvent {
        time: 1.5,
        direction: Some(Direction::ToBackend),
        client: Some("192.0.2.7:4711".parse().unwrap()),
        called: Some("192.0.2.1:53".parse().unwrap()),
        upstream: Some("[2001:db8::9]:40000".parse().unwrap()),
        datagrams: 1,
        bytes: 3,
        size: 3,
        decisions: vec![Decision::Forwarded {
            flow: None,
            backend: Some("[2001:db8::1]:53".parse().unwrap()),
            datagrams: 1,
        }],
        payload: Some("010203".into()),
        ..TraceEvent::default()
    };
    let mut bytes = Vec::new();
    Capture::begin(&mut bytes).unwrap().write(&event).unwrap();
    bytes
}

/// The same packet as tcpdump has it on Ethernet, with a tag of a VLAN.
fn pcap(is_big_endian: bool) -> Vec<u8> {
    let word = |word: u32| if is_big_endian { word.to_be_bytes() } else { word.to_le_bytes() };
    let half = |half: u16| if is_big_endian { half.to_be_bytes() } else { half.to_le_bytes() };
    let mut packet = vec![0; 12];
    packet.extend([0x81, 0x00, 0, 7, 0x08, 0x00]);
    packet.extend([0x45, 0xB8, 0, 31, 0, 0, 0, 0, 61, 17, 0, 0, 192, 0, 2, 7, 192, 0, 2, 1]);
    packet.extend([0x12, 0x67, 0, 53, 0, 11, 0, 0, 1, 2, 3]);
    let mut bytes = word(0xA1B2_C3D4).to_vec();
    bytes.extend([half(2), half(4)].concat());
    bytes.extend([word(0), word(0), word(65_535), word(1)].concat());
    bytes.extend([word(7), word(500_000)].concat());
    bytes.extend([word(packet.len() as u32), word(packet.len() as u32)].concat());
    bytes.extend(packet);
    bytes
}

#[test]
fn both_formats_are_read() {
    let first = ("192.0.2.7:4711".parse().unwrap(), "192.0.2.1:53".parse().unwrap(), vec![1, 2, 3]);
    let all = datagrams(&pcapng());
    assert_eq!(all[0], first);
    assert_eq!(all[1].0, "[2001:db8::9]:40000".parse().unwrap());
    for is_big_endian in [false, true] {
        assert_eq!(datagrams(&pcap(is_big_endian)), std::slice::from_ref(&first));
    }
    let bytes = pcap(false);
    let mut reader = CaptureReader::new(&bytes[..]).unwrap();
    let datagram = reader.next_datagram().unwrap().unwrap();
    assert_eq!((datagram.nanos, datagram.tos, datagram.ttl), (7_500_000_000, 0xB8, 61));
}

#[test]
fn what_goes_to_the_port_is_a_request_and_what_comes_from_it_an_answer() {
    let datagram = |source: &str, destination: &str| CapturedDatagram {
        nanos: 5,
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        tos: 0,
        ttl: 64,
        len: 0,
        bytes: &[],
    };
    let is_request = |datagram: CapturedDatagram<'_>| {
        let input = datagram.as_input("192.0.2.1:53".parse().unwrap(), 0)?.0;
        Some(matches!(input, RecordedInput::ClientBurst { .. }))
    };
    assert_eq!(is_request(datagram("10.0.0.1:999", "192.0.2.1:53")), Some(true));
    assert_eq!(is_request(datagram("192.0.2.1:53", "10.0.0.1:999")), Some(false));
    assert_eq!(is_request(datagram("192.0.2.1:53", "10.0.0.1:53")), Some(false));
    assert_eq!(is_request(datagram("10.0.0.1:53", "192.0.2.1:53")), Some(true));
    assert_eq!(is_request(datagram("10.0.0.1:999", "192.0.2.1:54")), None);
}

#[test]
fn a_capture_that_is_cut_says_so() {
    for bytes in [pcap(false), pcapng()] {
        let mut reader = CaptureReader::new(&bytes[..bytes.len() - 1]).unwrap();
        while reader.next_datagram().unwrap().is_some() {}
        assert!(reader.is_cut());
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_capture_or_none(
        is_ng in any::<bool>(),
        flips in proptest::collection::vec((any::<u16>(), any::<u8>()), 0..10),
        more in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut bytes = if is_ng { pcapng() } else { pcap(false) };
        bytes.extend(more);
        let len = bytes.len();
        flips.into_iter().for_each(|(at, flip)| bytes[usize::from(at) % len] ^= flip);
        let Ok(mut reader) = CaptureReader::new(&bytes[..]) else { return Ok(()) };
        while let Some(datagram) = reader.next_datagram().unwrap() {
            prop_assert!(datagram.bytes.len() <= usize::from(datagram.len));
            let _ = datagram.as_input("192.0.2.1:53".parse().unwrap(), 0);
        }
    }
}
