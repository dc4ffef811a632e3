//! Questions of known protocols, and how to tell their answers.
//!
//! Each question carries ids that are drawn again for it, so that neither the answer to another one
//! nor a forged one passes. An answer passes if it shows a server that does its work: one that says
//! itself that it cannot is as good as silent. What else it says is not judged; that is what
//! `expect` is for.
//!
//! | preset | asks | is content with |
//! |---|---|---|
//! | [`dns`] | for the name servers of the root | any answer but SERVFAIL |
//! | [`ntp`] | for the time | the time of a server that is synchronised |
//! | [`sip`] | `OPTIONS` | any final response but a failure of the server |
//! | [`quic`] | for a version that does not exist | the list of those that do |

use std::net::SocketAddr;

pub mod dns;
pub mod ntp;
pub mod quic;
pub mod sip;

/// A protocol whose servers can be asked something without doing harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// Domain names.
    Dns,
    /// Time.
    Ntp,
    /// Telephony.
    Sip,
    /// QUIC, hence HTTP/3.
    Quic,
}

impl Preset {
    /// The datagram that asks from `local` to `peer`, and how to tell its answer.
    pub fn question(
        self,
        ids: u128,
        local: SocketAddr,
        peer: SocketAddr,
    ) -> (Vec<u8>, PresetQuestion) {
        match self {
            Self::Dns => {
                let question = dns::DnsQuery::new(ids as u16);
                (question.bytes(), PresetQuestion::Dns(question))
            }
            Self::Ntp => {
                let question = ntp::NtpRequest::new(ids as u64);
                (question.bytes(), PresetQuestion::Ntp(question))
            }
            Self::Sip => {
                let question = sip::SipOptions::new(ids);
                (question.bytes(local, peer), PresetQuestion::Sip(question))
            }
            Self::Quic => {
                let question = quic::UnknownVersion::new(ids);
                (question.bytes(), PresetQuestion::Quic(question))
            }
        }
    }
}

/// A question under way.
#[derive(Clone, Debug)]
pub enum PresetQuestion {
    /// Of [`Preset::Dns`].
    Dns(dns::DnsQuery),
    /// Of [`Preset::Ntp`].
    Ntp(ntp::NtpRequest),
    /// Of [`Preset::Sip`].
    Sip(sip::SipOptions),
    /// Of [`Preset::Quic`].
    Quic(quic::UnknownVersion),
}

impl PresetQuestion {
    /// Whether a datagram answers it. Never panics, whatever the bytes are.
    pub fn accepts(&self, answer: &[u8]) -> bool {
        match self {
            Self::Dns(question) => question.accepts(answer),
            Self::Ntp(question) => question.accepts(answer),
            Self::Sip(question) => question.accepts(answer),
            Self::Quic(question) => question.accepts(answer),
        }
    }
}

#[cfg(test)]
mod tests;
