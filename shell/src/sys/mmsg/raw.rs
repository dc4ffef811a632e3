//! What a raw socket is given: UDP headers that are written here, since no UDP socket could send
//! from an address and port that are a client's. The IP header is the kernel's, and so is cutting
//! into fragments.

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};

use crate::sys::message::Batch;

/// The length of a UDP header.
const HEADER: usize = 8;

/// The number of UDP among IP's protocols.
const UDP: u8 = 17;

/// The headers of a batch, and its messages with them in front.
#[derive(Default)]
pub(super) struct Headers {
    headers: Vec<[u8; HEADER]>,
    pieces: Vec<libc::iovec>,
    starts: Vec<usize>,
}

impl Headers {
    /// Writes the header of each message that has a source of its own.
    pub(super) fn write(&mut self, batch: Batch<'_>) {
        self.headers.clear();
        self.pieces.clear();
        self.starts.clear();
        if batch.messages.iter().all(|message| message.source.is_none()) {
            return;
        }
        for message in batch.messages {
            if let (Some(source), Some(destination)) = (message.source, message.destination) {
                let pieces = &batch.pieces[message.pieces.clone()];
                self.headers.push(header(source, destination, pieces));
            }
        }
        // Pointers are taken only now that no header is moved any more, and are for reading.
        let mut headers = self.headers.iter();
        for message in batch.messages {
            self.starts.push(self.pieces.len());
            if message.source.is_none() || message.destination.is_none() {
                continue;
            }
            let Some(header) = headers.next() else { continue };
            self.pieces
                .push(libc::iovec { iov_base: header.as_ptr().cast_mut().cast(), iov_len: HEADER });
            let pieces = batch.pieces[message.pieces.clone()].iter();
            self.pieces.extend(pieces.map(|piece| libc::iovec {
                // A send does not write to it.
                iov_base: piece.as_ptr().cast_mut().cast(),
                iov_len: piece.len(),
            }));
        }
        self.starts.push(self.pieces.len());
    }

    /// What message number `index` is made of with its header; none if it has none.
    pub(super) fn pieces(&self, index: usize) -> Option<&[libc::iovec]> {
        let (start, end) = (*self.starts.get(index)?, *self.starts.get(index + 1)?);
        if start == end { None } else { self.pieces.get(start..end) }
    }
}

/// The header of a datagram (RFC 768), with the checksum over it, what it carries and the addresses
/// (RFC 8200, 8.1).
fn header(source: SocketAddr, destination: SocketAddr, pieces: &[IoSlice<'_>]) -> [u8; HEADER] {
    let payload: usize = pieces.iter().map(|piece| piece.len()).sum();
    // No more than that fits into a datagram: the kernel refuses what is longer.
    let length = u16::try_from(payload + HEADER).unwrap_or(u16::MAX);
    let mut header = [0; HEADER];
    header[0..2].copy_from_slice(&source.port().to_be_bytes());
    header[2..4].copy_from_slice(&destination.port().to_be_bytes());
    header[4..6].copy_from_slice(&length.to_be_bytes());
    let mut sum = Sum::default();
    for ip in [source.ip(), destination.ip()] {
        match ip {
            IpAddr::V4(ip) => sum.add(&ip.octets()),
            IpAddr::V6(ip) => sum.add(&ip.octets()),
        }
    }
    sum.add(&[0, UDP]);
    sum.add(&length.to_be_bytes());
    sum.add(&header);
    pieces.iter().for_each(|piece| sum.add(piece));
    header[6..8].copy_from_slice(&sum.checksum().to_be_bytes());
    header
}

/// The sum of the Internet checksum (RFC 1071), over bytes that come in pieces of any length.
#[derive(Default)]
struct Sum {
    sum: u64,
    /// Whether a byte has come that waits for the other half of its word.
    is_odd: bool,
}

impl Sum {
    fn add(&mut self, mut bytes: &[u8]) {
        if self.is_odd
            && let Some((first, rest)) = bytes.split_first()
        {
            self.sum += u64::from(*first);
            (self.is_odd, bytes) = (false, rest);
        }
        let (words, last) = bytes.as_chunks::<4>();
        self.sum += words.iter().map(|word| u64::from(u32::from_be_bytes(*word))).sum::<u64>();
        let (words, last) = last.as_chunks::<2>();
        self.sum += words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum::<u64>();
        if let [last] = last {
            self.sum += u64::from(*last) << 8;
            self.is_odd = true;
        }
    }

    /// The checksum: never 0, which stands for none.
    const fn checksum(&self) -> u16 {
        let mut sum = self.sum;
        while sum > 0xFFFF {
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        match !(sum as u16) {
            0 => 0xFFFF,
            checksum => checksum,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// The sum of all words of a datagram with its pseudo-header, as its receiver forms it: all ones
    /// if the checksum is right.
    fn seen(source: SocketAddr, destination: SocketAddr, bytes: &[u8]) -> u16 {
        let mut pseudo = Vec::new();
        for ip in [source.ip(), destination.ip()] {
            match ip {
                IpAddr::V4(ip) => pseudo.extend(ip.octets()),
                IpAddr::V6(ip) => pseudo.extend(ip.octets()),
            }
        }
        pseudo.extend([0, UDP]);
        pseudo.extend((bytes.len() as u16).to_be_bytes());
        pseudo.extend(bytes);
        if pseudo.len() % 2 == 1 {
            pseudo.push(0);
        }
        let words = pseudo.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let sum = words.fold(0, |sum, word| {
            let sum = sum + word;
            (sum & 0xFFFF) + (sum >> 16)
        });
        sum as u16
    }

    #[test]
    fn receivers_find_every_checksum_right() {
        for (source, destination) in [
            ("192.0.2.7:4711", "10.0.0.1:53"),
            ("[2001:db8::7]:4711", "[2001:db8::1]:53"),
            ("255.255.255.254:65535", "255.255.255.253:65535"),
        ] {
            let (source, destination) = (address(source), address(destination));
            for length in [0, 1, 2, 3, 4, 5, 7, 8, 9, 63, 1472, 1473, 65_507] {
                let payload: Vec<u8> = (0..length).map(|n| (n * 7 + 3) as u8).collect();
                for cut in [0, 1, 2, 3, 5].into_iter().filter(|cut| *cut <= payload.len()) {
                    let (one, two) = payload.split_at(cut);
                    let pieces = [IoSlice::new(one), IoSlice::new(two)];
                    let header = header(source, destination, &pieces);
                    let datagram = [&header[..], &payload].concat();
                    assert_eq!(seen(source, destination, &datagram), 0xFFFF, "{length}, {cut}");
                    assert_eq!(header[4..6], (8 + length as u16).to_be_bytes());
                }
            }
        }
    }

    #[test]
    fn a_checksum_of_zero_is_sent_as_all_ones() {
        let (source, destination) = (address("0.0.0.0:0"), address("0.0.0.0:0"));
        // What makes the sum all ones: it would be 0, which stands for none.
        let sum = seen(source, destination, &[0, 0, 0, 0, 0, 10, 0, 0, 0, 0]);
        let payload = (!sum).to_be_bytes();
        let header = header(source, destination, &[IoSlice::new(&payload)]);
        assert_eq!(header[6..8], [0xFF, 0xFF]);
    }
}
