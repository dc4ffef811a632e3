//! A trace as a capture for Wireshark: pcapng, with what was decided as comments.
//!
//! The IP and UDP headers are made up of what is known: addresses, ports and lengths are true, and
//! all else is not of the datagrams that were on the wire.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use flowgate_core::Direction;

use crate::observe::event::{Decision, TraceEvent};

/// Packets begin with their IP header (LINKTYPE_RAW).
const LINK_TYPE: u16 = 101;

const OPT_COMMENT: u16 = 1;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const EPB_FLAGS: u16 = 2;
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// A capture that is being written. It is whole after each packet.
pub struct Capture<W> {
    output: W,
}

impl<W: Write> Capture<W> {
    /// Begins a capture.
    ///
    /// # Errors
    ///
    /// Those of writing.
    pub fn begin(mut output: W) -> io::Result<Self> {
        // Byte order, version 1.0, and a section whose length nobody knows.
        let mut section = 0x1A2B_3C4D_u32.to_le_bytes().to_vec();
        section.extend([1, 0, 0, 0]);
        section.extend((-1_i64).to_le_bytes());
        option(&mut section, SHB_USERAPPL, b"flowgate trace");
        option(&mut section, 0, b"");
        block(&mut output, 0x0A0D_0D0A, &section)?;
        // Packets of any length, in microseconds as is usual.
        let mut interface = LINK_TYPE.to_le_bytes().to_vec();
        interface.extend([0; 6]);
        option(&mut interface, IF_NAME, b"flowgate");
        option(&mut interface, 0, b"");
        block(&mut output, 1, &interface)?;
        Ok(Self { output })
    }

    /// Writes the datagrams of an event, as they came and as they went on. One without datagrams
    /// leaves nothing.
    ///
    /// # Errors
    ///
    /// Those of writing.
    pub fn write(&mut self, event: &TraceEvent) -> io::Result<()> {
        let (Some(bytes), Some(direction)) = (event.payload_bytes(), event.direction) else {
            return Ok(());
        };
        let nobody = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let client = event.client.unwrap_or(nobody);
        let called = event.called.unwrap_or(nobody);
        let upstream = event.upstream.unwrap_or(nobody);
        let words = format!("{}: {}", event.listener, event.words());
        let backends = event.decisions.iter().filter_map(|decision| match decision {
            Decision::Forwarded { backend, .. } | Decision::Answered { backend, .. } => *backend,
            _ => None,
        });
        let backends: Vec<SocketAddr> = backends.collect();
        let size = usize::from(event.size).max(1);
        let mut datagrams: Vec<&[u8]> = bytes.chunks(size).collect();
        if datagrams.is_empty() {
            datagrams.push(&[]);
        }
        for datagram in &datagrams {
            let (from, to) = match direction {
                Direction::ToBackend => (client, called),
                Direction::ToClient => (backends.first().copied().unwrap_or(nobody), upstream),
            };
            self.packet(event.time, from, to, datagram, INBOUND, &words)?;
        }
        // A burst may be divided: each decision is about those that follow the ones before. Where
        // several get all of them, each begins again.
        let mut at = 0;
        for decision in &event.decisions {
            let (ends, count) = match decision {
                Decision::Forwarded { backend: Some(backend), datagrams, .. } => {
                    (Some((upstream, *backend)), *datagrams)
                }
                Decision::Answered { datagrams, .. } => (Some((called, client)), *datagrams),
                Decision::Dropped { datagrams, .. } => (None, *datagrams),
                _ => continue,
            };
            if at + count as usize > datagrams.len() {
                at = 0;
            }
            let these = datagrams.iter().skip(at).take(count as usize);
            at += count as usize;
            let Some((from, to)) = ends else { continue };
            for datagram in these {
                self.packet(event.time, from, to, datagram, OUTBOUND, &words)?;
            }
        }
        self.output.flush()
    }

    fn packet(
        &mut self,
        time: f64,
        from: SocketAddr,
        to: SocketAddr,
        datagram: &[u8],
        flags: u32,
        comment: &str,
    ) -> io::Result<()> {
        let packet = packet(from, to, datagram);
        let micros = (time * 1e6).round() as u64;
        let len = (packet.len() as u32).to_le_bytes();
        let mut body = vec![0; 4];
        body.extend(((micros >> 32) as u32).to_le_bytes());
        body.extend((micros as u32).to_le_bytes());
        body.extend(len);
        body.extend(len);
        body.extend(&packet);
        pad(&mut body);
        option(&mut body, OPT_COMMENT, comment.as_bytes());
        option(&mut body, EPB_FLAGS, &flags.to_le_bytes());
        option(&mut body, 0, b"");
        block(&mut self.output, 6, &body)
    }
}

fn block(output: &mut impl Write, kind: u32, body: &[u8]) -> io::Result<()> {
    let len = (body.len() as u32 + 12).to_le_bytes();
    let mut block = kind.to_le_bytes().to_vec();
    block.extend(len);
    block.extend(body);
    block.extend(len);
    output.write_all(&block)
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    body.extend(code.to_le_bytes());
    body.extend((value.len() as u16).to_le_bytes());
    body.extend(value);
    pad(body);
}

fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

/// A datagram with headers.
fn packet(from: SocketAddr, to: SocketAddr, datagram: &[u8]) -> Vec<u8> {
    let udp_len = (datagram.len() + 8).min(usize::from(u16::MAX)) as u16;
    let mut udp = from.port().to_be_bytes().to_vec();
    udp.extend(to.port().to_be_bytes());
    udp.extend(udp_len.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(datagram);
    let mut packet = Vec::with_capacity(udp.len() + 40);
    match (from.ip().to_canonical(), to.ip().to_canonical()) {
        (IpAddr::V4(from), to) => {
            let to = if let IpAddr::V4(to) = to { to } else { Ipv4Addr::UNSPECIFIED };
            v4_header(&mut packet, udp.len(), from, to);
        }
        (from, IpAddr::V4(to)) if from.is_unspecified() => {
            v4_header(&mut packet, udp.len(), Ipv4Addr::UNSPECIFIED, to);
        }
        (from, to) => {
            let octets = |ip| match ip {
                IpAddr::V6(ip) => ip.octets(),
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            };
            let addresses = [octets(from), octets(to)].concat();
            let mut pseudo = addresses.clone();
            pseudo.extend(u32::from(udp_len).to_be_bytes());
            pseudo.extend([0, 0, 0, 17]);
            pseudo.extend(&udp);
            let sum = match checksum(&pseudo) {
                0 => 0xFFFF,
                sum => sum,
            };
            udp[6..8].copy_from_slice(&sum.to_be_bytes());
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(udp_len.to_be_bytes());
            packet.extend([17, 64]);
            packet.extend(addresses);
        }
    }
    packet.extend(udp);
    packet
}

fn v4_header(packet: &mut Vec<u8>, udp_len: usize, from: Ipv4Addr, to: Ipv4Addr) {
    let len = (udp_len + 20).min(usize::from(u16::MAX)) as u16;
    packet.extend([0x45, 0]);
    packet.extend(len.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let mut sum: u32 = pairs.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum();
    if let [last] = rest {
        sum += u32::from(*last) << 8;
    }
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_rfc() {
        // RFC 1071, section 3: the sum is ddf2.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(checksum(&[0xFF]), !0xFF00);
    }

    #[test]
    fn a_capture_is_blocks_whose_lengths_agree() {
        let event = TraceEvent {
            time: 1.5,
            listener: "dns".into(),
            direction: Some(Direction::ToBackend),
            client: Some("[2001:db8::7]:4711".parse().unwrap()),
            called: Some("[2001:db8::1]:53".parse().unwrap()),
            upstream: Some("10.0.0.9:40000".parse().unwrap()),
            datagrams: 2,
            bytes: 5,
            size: 3,
            decisions: vec![Decision::Forwarded {
                flow: None,
                backend: Some("10.0.0.1:53".parse().unwrap()),
                datagrams: 2,
            }],
            payload: Some("0102030405".into()),
            ..TraceEvent::default()
        };
        let mut bytes = Vec::new();
        Capture::begin(&mut bytes).unwrap().write(&event).unwrap();
        let mut kinds = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            let len = word(4) as usize;
            assert_eq!(word(len - 4) as usize, len);
            kinds.push(word(0));
            rest = &rest[len..];
        }
        assert_eq!(kinds, [0x0A0D_0D0A, 1, 6, 6, 6, 6], "each comes in, and each goes on");
    }

    #[test]
    fn of_a_burst_that_is_divided_each_part_goes_where_it_went() {
        let forwarded = |backend: &str, datagrams| Decision::Forwarded {
            flow: None,
            backend: Some(backend.parse().unwrap()),
            datagrams,
        };
        let sent = |decisions| {
            let event = TraceEvent {
                direction: Some(Direction::ToBackend),
                datagrams: 3,
                bytes: 3,
                size: 1,
                decisions,
                payload: Some("0a0b0c".into()),
                ..TraceEvent::default()
            };
            let mut bytes = Vec::new();
            Capture { output: &mut bytes }.write(&event).unwrap();
            let mut sent = Vec::new();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
                // The last byte of the receiver's address, and the datagram, behind 28 bytes of block.
                sent.push((rest[28 + 19], rest[28 + 28]));
                rest = &rest[word(4) as usize..];
            }
            sent.split_off(3)
        };
        let dropped =
            Decision::Dropped { reason: "source_flows".into(), limit: None, datagrams: 1 };
        let parts = vec![forwarded("10.0.0.1:53", 1), dropped, forwarded("10.0.0.2:53", 1)];
        assert_eq!(sent(parts), [(1, 10), (2, 12)]);
        let copies = vec![forwarded("10.0.0.1:53", 3), forwarded("10.0.0.2:53", 3)];
        assert_eq!(sent(copies), [(1, 10), (1, 11), (1, 12), (2, 10), (2, 11), (2, 12)]);
    }

    #[test]
    fn packets_of_both_families_have_the_headers_of_their_family() {
        let v4 = packet("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap(), b"abc");
        assert_eq!((v4[0], v4.len(), checksum(&v4[..20])), (0x45, 31, 0));
        let v6 = packet("[::1]:1".parse().unwrap(), "[::2]:2".parse().unwrap(), b"abc");
        assert_eq!((v6[0], v6.len()), (0x60, 51));
        // A dual-stack listener that is called by IPv4.
        let mixed = packet("10.0.0.1:1".parse().unwrap(), "[::]:2".parse().unwrap(), b"");
        assert_eq!((mixed[0], mixed.len()), (0x45, 28));
    }
}
