//! What datagrams carry: the time at which each was meant to be sent, in some clothing.

use serde::{Deserialize, Serialize};

/// What the datagrams of a workload look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Payload {
    /// The time, and zeroes.
    Plain,
    /// A question of DNS that nobody has asked before: another ID each time, and the time as a name.
    Dns,
}

/// The time, as a number of nanoseconds.
const STAMP: usize = size_of::<u64>();

/// ID, flags, and four counts.
const HEADER: usize = 12;

/// The time as a label of hexadecimal digits.
const DIGITS: usize = 2 * STAMP;

/// What follows that label: the rest of the name, the type A and the class IN.
const REST: &[u8] = b"\x05bench\x00\x00\x01\x00\x01";

/// The bit of the third byte that tells an answer from a question.
const ANSWER: u8 = 0x80;

impl Payload {
    /// The shortest datagram.
    pub(crate) const fn least(self) -> usize {
        match self {
            Self::Plain => STAMP,
            Self::Dns => HEADER + 1 + DIGITS + REST.len(),
        }
    }

    /// Makes a datagram of `stamp`, as the `number`th one.
    pub(crate) fn write(self, datagram: &mut [u8], stamp: u64, number: u64) {
        match self {
            Self::Plain => datagram[..STAMP].copy_from_slice(&stamp.to_le_bytes()),
            Self::Dns => {
                let [.., high, low] = number.to_be_bytes();
                datagram[..HEADER].copy_from_slice(&[high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
                datagram[HEADER] = DIGITS as u8;
                let name = &mut datagram[HEADER + 1..];
                for (at, digit) in name[..DIGITS].iter_mut().enumerate() {
                    let nibble = stamp >> (4 * (DIGITS - 1 - at)) & 0xF;
                    *digit = b"0123456789abcdef"[nibble as usize];
                }
                name[DIGITS..DIGITS + REST.len()].copy_from_slice(REST);
            }
        }
    }

    /// The stamp of a datagram, or of its answer.
    pub(crate) fn stamp(self, datagram: &[u8]) -> Option<u64> {
        match self {
            Self::Plain => datagram.first_chunk().map(|stamp| u64::from_le_bytes(*stamp)),
            Self::Dns => {
                let digits = datagram.get(HEADER + 1..HEADER + 1 + DIGITS)?;
                u64::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
            }
        }
    }

    /// Makes an answer of a question; of what has no answers the same again.
    pub(crate) fn answer(self, question: &mut [u8]) {
        if let (Self::Dns, Some(flags)) = (self, question.get_mut(2)) {
            *flags |= ANSWER;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_also_from_an_answer() {
        for payload in [Payload::Plain, Payload::Dns] {
            let mut datagram = vec![0; payload.least()];
            payload.write(&mut datagram, 0x0123_4567_89AB_CDEF, 70_000);
            payload.answer(&mut datagram);
            assert_eq!(payload.stamp(&datagram), Some(0x0123_4567_89AB_CDEF), "{payload:?}");
            assert_eq!(payload.stamp(&datagram[..payload.least() / 4]), None, "{payload:?}");
        }
    }

    #[test]
    fn a_question_is_one_of_dns() {
        let mut datagram = vec![0; Payload::Dns.least()];
        Payload::Dns.write(&mut datagram, 0xAB, 0x1_2345);
        let expected =
            b"\x23\x45\x01\0\0\x01\0\0\0\0\0\0\x1000000000000000ab\x05bench\0\0\x01\0\x01";
        assert_eq!(datagram, expected);
    }
}
