//! Lines over a unix socket, each within a limit of bytes and of time.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use crate::sys::clock::Deadline;

/// Reads up to the end of a line, which is not returned, or of the stream.
///
/// # Errors
///
/// `TimedOut` at the deadline, `FileTooLarge` for a line of more than `limit` bytes, and those of
/// the socket.
pub(super) fn read_line(
    mut stream: &UnixStream,
    limit: usize,
    deadline: &Deadline,
) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut chunk = [0; 8192];
    loop {
        stream.set_read_timeout(Some(deadline.left()?))?;
        let new = match stream.read(&mut chunk) {
            Ok(0) => return Ok(line),
            Ok(length) => &chunk[..length],
            Err(error) => match error.kind() {
                // The timeout, or a signal: the deadline decides.
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => continue,
                // The other side has closed without reading all, but its line may be here.
                io::ErrorKind::ConnectionReset if !line.is_empty() => return Ok(line),
                _ => return Err(error),
            },
        };
        let end = new.iter().position(|&byte| byte == b'\n');
        line.extend_from_slice(&new[..end.unwrap_or(new.len())]);
        if line.len() > limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if end.is_some() {
            return Ok(line);
        }
    }
}

/// Writes all of `bytes`.
///
/// # Errors
///
/// `TimedOut` at the deadline, and those of the socket.
pub(super) fn write_all(
    mut stream: &UnixStream,
    mut bytes: &[u8],
    deadline: &Deadline,
) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(deadline.left()?))?;
        match stream.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => bytes = &bytes[length..],
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                _ => return Err(error),
            },
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn read(written: &[u8], limit: usize) -> io::Result<Vec<u8>> {
        let (mut writer, reader) = UnixStream::pair().unwrap();
        writer.write_all(written).unwrap();
        drop(writer);
        read_line(&reader, limit, &Deadline::after(PATIENCE))
    }

    #[test]
    fn a_line_ends_at_its_line_break_or_with_the_stream() {
        assert_eq!(read(b"one\ntwo\n", 100).unwrap(), b"one");
        assert_eq!(read(b"one", 3).unwrap(), b"one");
        assert_eq!(read(b"", 100).unwrap(), b"");
    }

    #[test]
    fn a_line_beyond_the_limit_is_refused() {
        assert_eq!(read(&[b'x'; 50_000], 50_000).unwrap().len(), 50_000);
        assert_eq!(read(b"four", 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn whoever_writes_nothing_meets_the_deadline() {
        let (_writer, reader) = UnixStream::pair().unwrap();
        let deadline = Deadline::after(Duration::from_millis(20));
        let error = read_line(&reader, 100, &deadline).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(deadline.left().is_err());
    }

    #[test]
    fn whoever_reads_nothing_meets_the_deadline() {
        let (writer, _reader) = UnixStream::pair().unwrap();
        let deadline = Deadline::after(Duration::from_millis(20));
        let error = write_all(&writer, &vec![0; 16 << 20], &deadline).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(deadline.left().is_err());
    }
}
