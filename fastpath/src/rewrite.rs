//! What the kernel program does to a packet, in Rust: the program's specification, to which tests
//! compare it.

use std::ops::Range;

use crate::layout::{Entry, RawTuple4, RawTuple6};
use crate::tuple::Key;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const UDP: usize = 8;
const PROTOCOL_UDP: u8 = 17;

/// Where the fields are that differ between the families.
struct Header {
    source: Range<usize>,
    destination: Range<usize>,
    udp: usize,
    hop_limit: usize,
}

/// The packet as the program forwards it, by the entry that `find` has for its tuple; `None` if it
/// goes on to the sockets. `packet` is an Ethernet frame, checksums included, that holds one
/// datagram. Whether the entry is in force is the caller's to say.
///
/// Checksums are computed from the whole packet here and changed by differences in the kernel.
/// Both are right if the old ones are; a wrong one must stay wrong, so what the old one is off by
/// is kept.
pub fn rewrite<'e>(
    packet: &[u8],
    find: impl Fn(&[u8], bool) -> Option<&'e Entry>,
) -> Option<Vec<u8>> {
    let (header, key, length) = parse(packet)?;
    let (key, is_v6) = match &key {
        Key::V4(RawTuple4 { source, destination, source_port, destination_port }) => {
            ([&source[..], destination, source_port, destination_port].concat(), false)
        }
        Key::V6(RawTuple6 { source, destination, source_port, destination_port }) => {
            ([&source[..], destination, source_port, destination_port].concat(), true)
        }
    };
    let entry = find(&key, is_v6)?;
    if length > usize::from(entry.max_len) {
        return None;
    }
    let mut new = packet.to_vec();
    let size = header.source.len();
    new[header.source.clone()].copy_from_slice(&entry.source[..size]);
    new[header.destination.clone()].copy_from_slice(&entry.destination[..size]);
    new[header.hop_limit] -= 1;
    new[header.udp..header.udp + 2].copy_from_slice(&entry.source_port);
    new[header.udp + 2..header.udp + 4].copy_from_slice(&entry.destination_port);

    let end = ETHERNET + length;
    if !is_v6 {
        let at = ETHERNET + 10;
        let ip = ETHERNET..ETHERNET + IPV4;
        let (old_sum, new_sum) = (sum(&packet[ip.clone()]), sum(&new[ip]));
        put(&mut new, at, corrected(get(packet, at), old_sum, new_sum));
    }
    let at = header.udp + 6;
    if get(packet, at) != 0 {
        let covered = |packet: &[u8]| {
            let pseudo = sum(&packet[header.source.start..header.destination.end]);
            pseudo + sum(&packet[header.udp..end])
        };
        let check = corrected(get(packet, at), covered(packet), covered(&new));
        put(&mut new, at, if check == 0 { 0xffff } else { check });
    }
    Some(new)
}

/// The headers of an ordinary IP packet with a whole UDP datagram, and the IP packet's length.
fn parse(packet: &[u8]) -> Option<(Header, Key, usize)> {
    // The kernel tells a packet to its own address from others by the destination; tests use that of
    // the loopback interface.
    if packet.get(..6)? != [0; 6] {
        return None;
    }
    let ip = packet.get(ETHERNET..)?;
    match get(packet, 12) {
        0x0800 => {
            let is_plain = ip.len() >= IPV4 + UDP
                && ip[0] == 0x45
                && ip[9] == PROTOCOL_UDP
                && get(ip, 6) & 0x3fff == 0
                && ip[8] >= 2;
            let length = usize::from(get(ip, 2));
            let is_whole = is_plain
                && length >= IPV4 + UDP
                && length <= ip.len()
                && usize::from(get(ip, IPV4 + 4)) == length - IPV4;
            let header = Header {
                source: ETHERNET + 12..ETHERNET + 16,
                destination: ETHERNET + 16..ETHERNET + 20,
                udp: ETHERNET + IPV4,
                hop_limit: ETHERNET + 8,
            };
            is_whole.then(|| {
                let key = RawTuple4 {
                    source: array(ip, 12),
                    destination: array(ip, 16),
                    source_port: array(ip, IPV4),
                    destination_port: array(ip, IPV4 + 2),
                };
                (header, Key::V4(key), length)
            })
        }
        0x86dd => {
            let is_plain =
                ip.len() >= IPV6 + UDP && ip[0] >> 4 == 6 && ip[6] == PROTOCOL_UDP && ip[7] >= 2;
            let length = is_plain.then(|| IPV6 + usize::from(get(ip, 4)))?;
            let is_whole = length >= IPV6 + UDP
                && length <= ip.len()
                && usize::from(get(ip, IPV6 + 4)) == length - IPV6
                && get(ip, IPV6 + 6) != 0;
            let header = Header {
                source: ETHERNET + 8..ETHERNET + 24,
                destination: ETHERNET + 24..ETHERNET + 40,
                udp: ETHERNET + IPV6,
                hop_limit: ETHERNET + 7,
            };
            is_whole.then(|| {
                let key = RawTuple6 {
                    source: array(ip, 8),
                    destination: array(ip, 24),
                    source_port: array(ip, IPV6),
                    destination_port: array(ip, IPV6 + 2),
                };
                (header, Key::V6(key), length)
            })
        }
        _ => None,
    }
}

fn array<const N: usize>(packet: &[u8], at: usize) -> [u8; N] {
    let mut octets = [0; N];
    octets.copy_from_slice(&packet[at..at + N]);
    octets
}

fn get(packet: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

fn put(packet: &mut [u8], at: usize, value: u16) {
    packet[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// The ones' complement sum of the octets (RFC 1071), not folded.
fn sum(octets: &[u8]) -> u64 {
    octets
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)))
        .sum()
}

/// The checksum for what sums up to `new` that is as wrong as `old_check` was for what summed up to
/// `old`. The sums include the old checksum itself in both, which cancels out.
fn corrected(old_check: u16, old: u64, new: u64) -> u16 {
    let fold = |mut sum: u64| {
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum
    };
    let less = u64::from(!(fold(old) as u16));
    !(fold(u64::from(!old_check) + less + fold(new)) as u16)
}
