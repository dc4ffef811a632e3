//! Bird's control socket: commands in lines, answers in lines with codes.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long bird may take to answer. It does so while it computes routes.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The longest answer that is read, in lines.
const MAX_LINES: usize = 10_000;

/// Enables a protocol, or disables it.
pub(super) fn tell(socket: &Path, protocol: &str, is_enabled: bool) -> Result<(), String> {
    let fail = |error: std::io::Error| format!("bird at {}: {error}", socket.display());
    let stream = UnixStream::connect(socket).map_err(fail)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(fail)?;
    stream.set_write_timeout(Some(TIMEOUT)).map_err(fail)?;
    let mut reader = BufReader::new(&stream);
    answer(&mut reader)?;
    let verb = if is_enabled { "enable" } else { "disable" };
    (&stream).write_all(format!("{verb} \"{protocol}\"\n").as_bytes()).map_err(fail)?;
    answer(&mut reader).map(drop)
}

/// Reads an answer to its end: lines of a code of four digits and a hyphen, or of a space before what
/// goes on, then one of a code and a space. Codes from 8000 on are errors.
fn answer(reader: &mut impl BufRead) -> Result<String, String> {
    let mut line = String::new();
    for _ in 0..MAX_LINES {
        line.clear();
        match reader.read_line(&mut line) {
            Ok(0) => return Err("bird has closed its socket".to_owned()),
            Ok(_) => {}
            Err(error) => return Err(format!("bird does not answer: {error}")),
        }
        let (code, text) = (line.get(..4).unwrap_or_default(), line.get(5..).unwrap_or_default());
        let Some(code) = code.parse::<u16>().ok().filter(|_| line.is_char_boundary(5)) else {
            continue;
        };
        if code >= 8000 {
            return Err(format!("bird says {:?}", text.trim_end()));
        }
        if line.as_bytes().get(4) == Some(&b' ') {
            return Ok(text.trim_end().to_owned());
        }
    }
    Err("bird's answer has no end".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_to_their_ends() {
        let mut text =
            &b"0001 BIRD 2.0.12 ready.\n0011-anycast: enabled\n 0000 goes on\n0000 \n0009-"[..];
        let mut next = || answer(&mut text);
        assert_eq!(next(), Ok("BIRD 2.0.12 ready.".to_owned()));
        assert_eq!(next(), Ok(String::new()));
        assert_eq!(next(), Err("bird has closed its socket".to_owned()));
    }

    #[test]
    fn errors_are_told_in_birds_words() {
        for text in ["8003 No protocols match\n", "0000-x\n9001 syntax error\n"] {
            let error = answer(&mut text.as_bytes()).unwrap_err();
            assert!(
                error.contains("No protocols match") || error.contains("syntax error"),
                "{error}"
            );
        }
        for nonsense in ["", "x", "\n", "éééé\n", "0000", "123"] {
            assert!(answer(&mut nonsense.as_bytes()).is_err(), "{nonsense:?}");
        }
    }
}
