//! SIP's Call-ID (RFC 3261, section 20.8), which all messages of a call have in common.

use memchr::memchr;

/// How far into a message the header is looked for.
const MAX_HEAD: usize = 2_048;

/// How many lines are looked at. Senders put it among the first.
const MAX_LINES: usize = 64;

/// The Call-ID of a message, without the spaces around it.
pub fn read(datagram: &[u8]) -> Option<&[u8]> {
    let mut rest = &datagram[..datagram.len().min(MAX_HEAD)];
    for _ in 0..MAX_LINES {
        let end = memchr(b'\n', rest)?;
        let line = &rest[..end];
        rest = &rest[end + 1..];
        match line.first() {
            Some(b'C' | b'c' | b'I' | b'i') => {}
            Some(b'\r') | None => return None,
            Some(_) => continue,
        }
        if let Some(id) = call_id(line) {
            return Some(id);
        }
    }
    None
}

/// What a line says after the header's name, long or short.
fn call_id(line: &[u8]) -> Option<&[u8]> {
    let colon = memchr(b':', &line[..line.len().min(16)])?;
    let name = line[..colon].trim_ascii_end();
    let is_it = name.eq_ignore_ascii_case(b"call-id") || name.eq_ignore_ascii_case(b"i");
    let id = line[colon + 1..].trim_ascii();
    (is_it && !id.is_empty()).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use std::format;

    fn message(header: &str) -> Vec<u8> {
        format!(
            "INVITE sip:bob@example.com SIP/2.0\r\nVia: SIP/2.0/UDP pc33.example.com\r\n\
             CSeq: 1 INVITE\r\n{header}\r\nContent-Length: 4\r\n\r\nCall-ID: not-this\r\n"
        )
        .into()
    }

    #[test]
    fn it_is_found_in_every_spelling() {
        for header in
            ["Call-ID: a84b@pc33", "call-id:a84b@pc33", "CALL-ID  :  a84b@pc33 ", "i: a84b@pc33"]
        {
            assert_eq!(read(&message(header)), Some(&b"a84b@pc33"[..]), "{header}");
        }
    }

    #[test]
    fn without_one_in_the_head_there_is_none() {
        for header in ["Call-ID:", "Call-IDs: x", "X-Call-ID: x", "Contact: i:x"] {
            assert_eq!(read(&message(header)), None, "{header}");
        }
        assert_eq!(read(b"Call-ID: without an end of line"), None);
        assert_eq!(read(&[b'\n'; 3_000]), None);
        assert_eq!(read(&message(&format!("{:2048}", "X: "))), None);
    }
}
