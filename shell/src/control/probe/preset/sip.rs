//! SIP (RFC 3261): `OPTIONS`, which asks a server what it can do.
//!
//! Every final response shows a server at work, even one that says that it does not know the
//! method. Of those that say that the server has failed (5xx), only 501 does.

use std::net::SocketAddr;

const VERSION: &[u8] = b"SIP/2.0 ";

/// A request under way.
#[derive(Clone, Copy, Debug)]
pub struct SipOptions {
    branch: u64,
    call: u64,
}

impl SipOptions {
    /// The request with those ids.
    pub const fn new(ids: u128) -> Self {
        Self { branch: (ids >> 64) as u64, call: ids as u64 }
    }

    /// The datagram that asks it from `local` to `peer`.
    pub fn bytes(&self, local: SocketAddr, peer: SocketAddr) -> Vec<u8> {
        // Without the scope of a link-local address, which a URI cannot have.
        let [local, peer] = [local, peer].map(|a| SocketAddr::new(a.ip(), a.port()));
        let (branch, call) = (self.branch(), self.call_id());
        // Half of the call's id would do for a tag; nothing depends on it.
        let tag = self.call as u32;
        let request = format!(
            "OPTIONS sip:{peer} SIP/2.0\r\n\
             Via: SIP/2.0/UDP {local};branch={branch};rport\r\n\
             Max-Forwards: 70\r\n\
             From: <sip:flowgate@{local}>;tag={tag:08x}\r\n\
             To: <sip:{peer}>\r\n\
             Call-ID: {call}\r\n\
             CSeq: 1 OPTIONS\r\n\
             Contact: <sip:flowgate@{local}>\r\n\
             Accept: application/sdp\r\n\
             Content-Length: 0\r\n\r\n"
        );
        request.into_bytes()
    }

    /// The id of the transaction, with the cookie that says that it is unique.
    fn branch(&self) -> String {
        format!("z9hG4bK{:016x}", self.branch)
    }

    fn call_id(&self) -> String {
        format!("{:016x}", self.call)
    }

    /// Whether a datagram answers it. A provisional response (1xx) is none yet.
    pub fn accepts(&self, answer: &[u8]) -> bool {
        let mut lines = Lines(answer);
        let Some(code) = lines.next().and_then(status_code) else {
            return false;
        };
        let is_well = matches!(code, 200..=499 | 501 | 600..=699);
        is_well && self.is_to_this(lines)
    }

    /// Whether headers belong to this request: the call is its own, and so is the topmost `Via`.
    fn is_to_this<'a>(&self, lines: impl Iterator<Item = &'a [u8]>) -> bool {
        let (branch, call) = (self.branch(), self.call_id());
        let (mut via, mut calls) = (None, None);
        for (name, value) in lines.take_while(|line| !line.is_empty()).filter_map(header) {
            let is = |long: &[u8], short: &[u8]| {
                name.eq_ignore_ascii_case(long) || name.eq_ignore_ascii_case(short)
            };
            if is(b"Via", b"v") {
                via.get_or_insert(value);
            } else if is(b"Call-ID", b"i") {
                calls.get_or_insert(value);
            }
        }
        calls == Some(call.as_bytes()) && via.is_some_and(|via| topmost_branch(via, &branch))
    }
}

/// Whether the first of the values of a `Via` header has this branch.
fn topmost_branch(via: &[u8], branch: &str) -> bool {
    let first = via.split(|byte| *byte == b',').next().unwrap_or_default();
    first.split(|byte| *byte == b';').skip(1).any(|parameter| {
        let mut parts = parameter.splitn(2, |byte| *byte == b'=').map(<[u8]>::trim_ascii);
        let name = parts.next().unwrap_or_default();
        name.eq_ignore_ascii_case(b"branch") && parts.next() == Some(branch.as_bytes())
    })
}

/// The code of a status line: `SIP/2.0 200 OK`.
fn status_code(line: &[u8]) -> Option<u16> {
    let rest = line.strip_prefix(VERSION)?;
    let (code, rest) = rest.split_at_checked(3)?;
    let is_code = code.iter().all(u8::is_ascii_digit) && rest.first().is_none_or(|b| *b == b' ');
    is_code.then(|| code.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0')))
}

/// The name and the value of a header.
fn header(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = line.split_at(colon);
    Some((name.trim_ascii(), value[1..].trim_ascii()))
}

/// The lines of a message, without their ends. A line that begins with a blank belongs to the one
/// before it.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.0.is_empty() {
            return None;
        }
        let is_end = |at: usize| {
            self.0[at] == b'\n' && (at == 0 || self.0[..at] == *b"\r" || !self.continues_at(at + 1))
        };
        let end = (0..self.0.len()).find(|at| is_end(*at)).unwrap_or(self.0.len());
        let (line, rest) = self.0.split_at(end);
        self.0 = rest.get(1..).unwrap_or_default();
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }
}

impl Lines<'_> {
    fn continues_at(&self, at: usize) -> bool {
        matches!(self.0.get(at), Some(b' ' | b'\t'))
    }
}
