//! What names a transaction: the identifier of a question that its answer repeats.
//!
//! Where a protocol has one, many questions can share a socket and a backend, and an answer belongs
//! to anyone who sent its question, however late it comes and whatever else is under way. Each module
//! has one protocol: pure functions of one datagram, which they do not copy, bounded by the
//! datagram's length.
//!
//! A datagram that is no question of its protocol, or no answer, has no identifier. Nothing is
//! guessed: an answer that might belong to another question belongs to none.

mod dns;
mod ntp;
mod pattern;
mod sip;
mod stun;

use core::hash::Hasher;

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};
use siphasher::sip128::{Hasher128, SipHasher13};

/// Where questions and answers carry the identifier of their transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub enum Transactions {
    /// In the header of DNS (RFC 1035), along with the question, which an answer repeats.
    Dns,
    /// In the timestamps of NTP (RFC 5905): what a client sends as its transmit timestamp comes back
    /// as the origin timestamp.
    Ntp,
    /// In the header of STUN (RFC 8489), and of whatever is made of it, as TURN is.
    Stun,
    /// At a fixed place, which need not be the same in questions and answers.
    Pattern {
        /// How many bytes lie before it in a question.
        request_offset: u16,
        /// How many bytes lie before it in an answer.
        answer_offset: u16,
        /// How many bytes it has, in both. Zero is no identifier.
        length: u8,
    },
    /// In the Call-ID of SIP (RFC 3261): what belongs together is a call.
    Sip,
}

impl Transactions {
    /// The identifier of a client's datagram, if it is a question.
    pub fn request_id(&self, datagram: &[u8]) -> Option<TransactionId> {
        match *self {
            Self::Dns => dns::request_id(datagram),
            Self::Ntp => ntp::request_id(datagram),
            Self::Stun => stun::request_id(datagram),
            Self::Pattern { request_offset, length, .. } => {
                pattern::id(datagram, request_offset, length)
            }
            Self::Sip => sip::id(datagram),
        }
    }

    /// The identifier of a backend's datagram, if it is an answer: that of the question to which it
    /// is one.
    pub fn answer_id(&self, datagram: &[u8]) -> Option<TransactionId> {
        match *self {
            Self::Dns => dns::answer_id(datagram),
            Self::Ntp => ntp::answer_id(datagram),
            Self::Stun => stun::answer_id(datagram),
            Self::Pattern { answer_offset, length, .. } => {
                pattern::id(datagram, answer_offset, length)
            }
            Self::Sip => sip::id(datagram),
        }
    }

    /// Whether a transaction is over with its first answer. A call has as many messages as it likes.
    pub const fn has_one_answer(&self) -> bool {
        !matches!(self, Self::Sip)
    }
}

/// What names a transaction between one socket and one backend.
///
/// Identifiers of one kind only are compared with each other, so that it does not say of which kind
/// it is. It has the 96 bits of the longest one that has to be kept as it is, which is STUN's; of
/// what is longer there is a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct TransactionId([u32; WORDS]);

const WORDS: usize = 3;

/// How many bytes it keeps.
const BYTES: usize = WORDS * size_of::<u32>();

impl TransactionId {
    /// The same bytes give the same identifier. Those of one protocol are of one length, or so long
    /// that they are hashed.
    fn of_bytes(bytes: &[u8]) -> Self {
        let mut kept = [0; BYTES];
        match kept.get_mut(..bytes.len()) {
            Some(place) => place.copy_from_slice(bytes),
            None => kept.copy_from_slice(&digest(bytes).to_be_bytes()[..BYTES]),
        }
        Self::from_bytes(kept)
    }

    /// The same of what may be short or long: there is always a hash, so that nothing that is sent
    /// looks like the hash of something else.
    fn of_text(bytes: &[u8]) -> Self {
        let mut kept = [0; BYTES];
        kept.copy_from_slice(&digest(bytes).to_be_bytes()[..BYTES]);
        Self::from_bytes(kept)
    }

    fn from_bytes(bytes: [u8; BYTES]) -> Self {
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u32::from_be_bytes(*bytes);
        }
        Self(words)
    }

    /// The one of these bits.
    pub const fn from_words(words: [u32; WORDS]) -> Self {
        Self(words)
    }

    /// The bits, for tables that hash by a key of their own.
    pub const fn as_words(self) -> [u32; WORDS] {
        self.0
    }
}

/// SipHash-1-3 of 128 bits under a public key.
///
/// No secret is needed. To find two questions with one hash costs more than all that it gains: an
/// answer to the one is then handed to the client that has asked the other by the same identifier,
/// and the client compares the question itself, as RFC 5452 (section 9.1) demands. A second question
/// for another's takes 2^80 tries and more. And without a key the identifier is the same for
/// every process that gets a socket handed over.
fn digest(bytes: &[u8]) -> u128 {
    let mut hasher = SipHasher13::new_with_key(b"flowgate transac");
    hasher.write(bytes);
    hasher.finish128().as_u128()
}

#[cfg(test)]
mod tests;
