//! What a UDP probe sends, and what it takes for an answer.

use std::net::SocketAddr;

use regex::bytes::Regex;

use super::preset::{Preset, PresetQuestion};

/// What a probe sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbePayload {
    /// Always these bytes.
    Bytes(Vec<u8>),
    /// A question of a known protocol, with ids of its own each time.
    Preset(Preset),
}

impl ProbePayload {
    /// What one probe sends from `local` to `peer`. What it must not share with others comes from
    /// `ids`, which must be random and unknown to anyone else.
    pub fn question(&self, ids: u128, local: SocketAddr, peer: SocketAddr) -> ProbeRequest {
        match self {
            Self::Bytes(bytes) => ProbeRequest { bytes: bytes.clone(), preset: None },
            Self::Preset(preset) => {
                let (bytes, preset) = preset.question(ids, local, peer);
                ProbeRequest { bytes, preset: Some(preset) }
            }
        }
    }
}

/// A question under way.
#[derive(Clone, Debug)]
pub struct ProbeRequest {
    bytes: Vec<u8>,
    preset: Option<PresetQuestion>,
}

impl ProbeRequest {
    /// The datagram that asks it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether a datagram answers it. Bytes of no known protocol are answered by anything.
    pub fn accepts(&self, answer: &[u8]) -> bool {
        self.preset.as_ref().is_none_or(|preset| preset.accepts(answer))
    }
}

/// What an answer must be.
#[derive(Clone, Debug)]
pub enum ExpectedReply {
    /// Anything, even empty.
    Any,
    /// It begins with these bytes; whatever follows, such as a version or a time, may vary. A regex
    /// with `^` and `$` asks for the whole of it.
    Begins(Vec<u8>),
    /// The pattern is found somewhere in it.
    Regex(Regex),
}

impl ExpectedReply {
    /// Whether a datagram is what is expected.
    pub fn accepts(&self, answer: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Begins(bytes) => answer.starts_with(bytes),
            Self::Regex(regex) => regex.is_match(answer),
        }
    }
}

/// Two patterns are equal when they are written alike.
impl PartialEq for ExpectedReply {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, Self::Any) => true,
            (Self::Begins(one), Self::Begins(other)) => one == other,
            (Self::Regex(one), Self::Regex(other)) => one.as_str() == other.as_str(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regex(pattern: &str) -> ExpectedReply {
        ExpectedReply::Regex(Regex::new(pattern).unwrap())
    }

    #[test]
    fn an_answer_is_what_is_expected_or_not() {
        let begins = |bytes: &[u8]| ExpectedReply::Begins(bytes.to_vec());
        for (expect, answer, accepted) in [
            (ExpectedReply::Any, &b""[..], true),
            (ExpectedReply::Any, b"\xff\x00", true),
            (begins(b"PONG"), b"PONG", true),
            (begins(b"PONG"), b"PONG 1.2.3", true),
            (begins(b"PONG"), b"A PONG", false),
            (begins(b"PONG"), b"PON", false),
            (begins(b"PONG"), b"", false),
            (begins(b"\xff\xff\xff\xffI"), b"\xff\xff\xff\xffI\x11", true),
            (begins(b""), b"", true),
            (regex("(?i)pong"), b"a PONG", true),
            (regex("^PONG$"), b"PONG 1", false),
            (regex(r"(?-u)^\xff{4}"), b"\xff\xff\xff\xff", true),
            (regex(r"(?-u)^\xff{4}"), b"\xff\xff\xff", false),
        ] {
            assert_eq!(expect.accepts(answer), accepted, "{expect:?} {answer:?}");
        }
    }

    #[test]
    fn patterns_are_equal_when_they_are_written_alike() {
        assert_eq!(regex("a+"), regex("a+"));
        assert_ne!(regex("a+"), regex("aa*"));
        assert_ne!(regex("a"), ExpectedReply::Begins(b"a".to_vec()));
        assert_ne!(ExpectedReply::Any, ExpectedReply::Begins(vec![]));
    }
}
