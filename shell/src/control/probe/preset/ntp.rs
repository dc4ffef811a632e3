//! NTP (RFC 5905): the time, of a server that is synchronised.
//!
//! The transmit timestamp of a request serves only to be given back in the answer, so it is random,
//! and tells nothing about the clock here.

/// No warning, version 4, mode 3: a client.
const CLIENT: u8 = 4 << 3 | 3;
/// `Mode`, which is 4 for a server.
const MODE: u8 = 0x07;
const SERVER: u8 = 4;
/// `LI`: all ones when the server's clock is not synchronised.
const LEAP: u8 = 0xc0;

const PACKET: usize = 48;
const ORIGIN: std::ops::Range<usize> = 24..32;
const TRANSMIT: std::ops::Range<usize> = 40..48;

/// A request under way.
#[derive(Clone, Copy, Debug)]
pub struct NtpRequest {
    transmitted: u64,
}

impl NtpRequest {
    /// The request with that transmit timestamp.
    pub const fn new(transmitted: u64) -> Self {
        Self { transmitted }
    }

    /// The datagram that asks it.
    pub fn bytes(&self) -> Vec<u8> {
        let mut packet = vec![0; PACKET];
        packet[0] = CLIENT;
        packet[TRANSMIT].copy_from_slice(&self.transmitted.to_be_bytes());
        packet
    }

    /// Whether a datagram answers it. A kiss of death (stratum 0) does not: it asks to stay away.
    pub fn accepts(&self, answer: &[u8]) -> bool {
        let Some((packet, _)) = answer.split_first_chunk::<PACKET>() else {
            return false;
        };
        packet[0] & MODE == SERVER
            && packet[0] & LEAP != LEAP
            && (1..=15).contains(&packet[1])
            && packet[ORIGIN] == self.transmitted.to_be_bytes()
            && packet[TRANSMIT] != [0; 8]
    }
}
