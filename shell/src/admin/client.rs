//! Asks a running Flowgate on its control socket.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use super::escape::escaped;
use super::line;
use super::request::{Request, Response};
use super::socket_path;
use crate::sys::clock::Deadline;

/// The longest answer: that which lists [`FlowFilter::MOST`](super::request::FlowFilter::MOST) flows
/// is shorter.
const LONGEST_ANSWER: usize = 128 << 20;

/// Why there is no answer, and what to do next.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no socket, or nobody listens on it.
    #[error(
        "no flowgate is listening on {}; start one with `flowgate run`, or name its socket with \
         --socket", shown(.0)
    )]
    NotListening(PathBuf),
    /// The socket belongs to another user.
    #[error(
        "{} is of another user's flowgate; run this as that user or as root, or name another socket \
         with --socket", shown(.0)
    )]
    NotPermitted(PathBuf),
    /// The directory of the socket is not to be trusted, or the socket cannot be reached.
    #[error("cannot use {}: {}", shown(.0), escaped(&.1.to_string()))]
    Unusable(PathBuf, io::Error),
    /// The answer did not come in time.
    #[error(
        "no answer on {} within {:?}; the flowgate there is busy or hangs: look at its log, and try \
         again", shown(.0), .1
    )]
    TimedOut(PathBuf, Duration),
    /// The connection ended without an answer.
    #[error(
        "the connection to {} ended without an answer; if that flowgate is not just stopping, look \
         at its log", shown(.0)
    )]
    NoAnswer(PathBuf),
    /// What came is not an answer.
    #[error(
        "what came from {} is not an answer of flowgate ({}); name the right socket with --socket, \
         or use the `flowgate` of the version that is running there", shown(.0), escaped(.1)
    )]
    NotAnAnswer(PathBuf, String),
}

/// A path without anything that a terminal would obey.
fn shown(path: &Path) -> String {
    escaped(&path.to_string_lossy())
}

/// Asks the Flowgate whose control socket is at `path`, and waits up to `timeout` for the answer.
///
/// # Errors
///
/// If there is no answer: the reason, and what to do next. A refusal is an answer.
pub fn request(path: &Path, request: &Request, timeout: Duration) -> Result<Response, ClientError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ClientError::NotListening(path.to_owned())
        }
        io::ErrorKind::PermissionDenied => ClientError::NotPermitted(path.to_owned()),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            ClientError::TimedOut(path.to_owned(), timeout)
        }
        io::ErrorKind::ConnectionReset => ClientError::NoAnswer(path.to_owned()),
        _ => ClientError::Unusable(path.to_owned(), error),
    };
    let garbled = |why: String| ClientError::NotAnAnswer(path.to_owned(), why);

    let deadline = Deadline::after(timeout);
    socket_path::check_directory(path).map_err(failed)?;
    let stream = connect(path, timeout).map_err(failed)?;
    let mut question = serde_json::to_vec(request).map_err(|error| garbled(error.to_string()))?;
    question.push(b'\n');
    match line::write_all(&stream, &question, &deadline) {
        // Whoever refuses a connection answers before anything is asked.
        Err(error) if is_hangup(&error) => {}
        outcome => outcome.map_err(failed)?,
    }
    let answer = line::read_line(&stream, LONGEST_ANSWER, &deadline).map_err(failed)?;
    if answer.is_empty() {
        return Err(ClientError::NoAnswer(path.to_owned()));
    }
    serde_json::from_slice(&answer).map_err(|error| garbled(error.to_string()))
}

/// Connects within `timeout`: that for sending is also that for a place among those who wait to be
/// accepted.
fn connect(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(timeout))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(UnixStream::from(OwnedFd::from(socket)))
}

fn is_hangup(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}
