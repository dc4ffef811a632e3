//! Asks a running Flowgate on its control socket.

use std::error::Error;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use form_urlencoded::Serializer;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request as HttpRequest, header};
use hyper_util::rt::TokioIo;
use socket2::{Domain, SockAddr, Socket, Type};

use super::escape::escaped;
use super::request::{FlowFilter, Request, Response};
use super::socket_path;

/// The longest answer: the one that lists [`FlowFilter::MOST`](super::request::FlowFilter::MOST) flows
/// is shorter.
const MAX_ANSWER: usize = 128 << 20;

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
        _ => ClientError::Unusable(path.to_owned(), error),
    };
    let garbled = |why: String| ClientError::NotAnAnswer(path.to_owned(), why);

    socket_path::check_directory(path).map_err(failed)?;
    let question = encode(request).map_err(garbled)?;
    let stream = connect(path, timeout).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let exchange = async { tokio::time::timeout(timeout, exchange(stream, question)).await };
    let answer = match runtime.map_err(failed)?.block_on(exchange) {
        Err(_) => return Err(ClientError::TimedOut(path.to_owned(), timeout)),
        Ok(Err(Unanswered::Late)) => return Err(ClientError::TimedOut(path.to_owned(), timeout)),
        Ok(Err(Unanswered::Ended)) => return Err(ClientError::NoAnswer(path.to_owned())),
        Ok(Err(Unanswered::Garbled(why))) => return Err(garbled(why)),
        Ok(Ok(answer)) => answer,
    };
    decode(request, &answer).map_err(|error| garbled(error.to_string()))
}

/// Asks for what goes on until it ends, such as `/trace`, waits up to `timeout` for it to begin, says
/// that to `begun`, and gives its bytes to `read` as they come, as long as that says to go on. A
/// refusal is returned instead.
///
/// # Errors
///
/// As for [`request`], and where the connection ends before what was asked for.
pub fn follow(
    path: &Path,
    target: &str,
    timeout: Duration,
    begun: impl FnOnce(),
    read: impl FnMut(&[u8]) -> bool,
) -> Result<Option<Response>, ClientError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ClientError::NotListening(path.to_owned())
        }
        io::ErrorKind::PermissionDenied => ClientError::NotPermitted(path.to_owned()),
        _ => ClientError::Unusable(path.to_owned(), error),
    };
    let garbled = |why: String| ClientError::NotAnAnswer(path.to_owned(), why);
    socket_path::check_directory(path).map_err(failed)?;
    let question = HttpRequest::get(target).header(header::HOST, "flowgate");
    let question =
        question.body(Full::new(Bytes::new())).map_err(|error| garbled(error.to_string()))?;
    let stream = connect(path, timeout).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.map_err(failed)?.block_on(async {
        match begin(stream, question, timeout).await? {
            Ok(body) => {
                begun();
                read_body(body, read).await.map(|()| None)
            }
            Err(refusal) => Ok(Some(refusal)),
        }
    });
    match outcome {
        Ok(None) => Ok(None),
        Ok(Some(refusal)) => {
            serde_json::from_slice(&refusal).map(Some).map_err(|error| garbled(error.to_string()))
        }
        Err(Unanswered::Late) => Err(ClientError::TimedOut(path.to_owned(), timeout)),
        Err(Unanswered::Ended) => Err(ClientError::NoAnswer(path.to_owned())),
        Err(Unanswered::Garbled(why)) => Err(garbled(why)),
    }
}

/// Asks, and returns the answer as it comes, or as a whole where it is no success.
async fn begin(
    stream: UnixStream,
    question: HttpRequest<Full<Bytes>>,
    timeout: Duration,
) -> Result<Result<Incoming, Bytes>, Unanswered> {
    let stream = tokio::net::UnixStream::from_std(stream).map_err(|_| Unanswered::Ended)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // How it ends is told by what is read from it.
    tokio::spawn(connection);
    let answer = tokio::time::timeout(timeout, sender.send_request(question)).await;
    let answer = answer.map_err(|_| Unanswered::Late)??;
    if !answer.status().is_success() {
        let refusal = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let refusal = refusal.map_err(|error| Unanswered::Garbled(error.to_string()))?;
        return Ok(Err(refusal.to_bytes()));
    }
    Ok(Ok(answer.into_body()))
}

/// Reads what comes.
async fn read_body(
    mut body: Incoming,
    mut read: impl FnMut(&[u8]) -> bool,
) -> Result<(), Unanswered> {
    while let Some(frame) = body.frame().await {
        let Ok(bytes) = frame?.into_data() else { continue };
        if !read(&bytes) {
            break;
        }
    }
    Ok(())
}

/// Connects within `timeout`: that for sending is also that for a place among those who wait to be
/// accepted.
fn connect(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(timeout))?;
    socket.connect(&SockAddr::unix(path)?)?;
    socket.set_nonblocking(true)?;
    Ok(UnixStream::from(OwnedFd::from(socket)))
}

/// What is written for a request.
fn encode(request: &Request) -> Result<HttpRequest<Full<Bytes>>, String> {
    let (method, target, body) = match request {
        Request::Status => (Method::GET, "/status".to_owned(), Bytes::new()),
        Request::Flows { filter } => {
            (Method::GET, format!("/flows?{}", query(filter)), Bytes::new())
        }
        Request::Snapshot => (Method::GET, "/snapshot".to_owned(), Bytes::new()),
        _ => {
            let (command, details) = request.to_parts()?;
            let body = serde_json::to_vec(&details).map_err(|error| error.to_string())?;
            (Method::POST, format!("/{command}"), body.into())
        }
    };
    let request = HttpRequest::builder().method(method).uri(target);
    let request = request.header(header::HOST, "flowgate").header(header::CONNECTION, "close");
    let request = request.header(header::CONTENT_TYPE, "application/json");
    request.body(Full::new(body)).map_err(|error| error.to_string())
}

fn query(filter: &FlowFilter) -> String {
    let mut query = Serializer::new(String::new());
    if let Some(client) = filter.client {
        query.append_pair("client", &client.to_string());
    }
    if let Some(backend) = filter.backend {
        query.append_pair("backend", &backend.to_string());
    }
    if let Some(listener) = &filter.listener {
        query.append_pair("listener", listener);
    }
    query.append_pair("limit", &filter.limit.to_string()).finish()
}

/// What came for a request: its documents as they are, anything else as a [`Response`].
fn decode(request: &Request, answer: &[u8]) -> serde_json::Result<Response> {
    match request {
        Request::Status => serde_json::from_slice(answer).map(Response::Status),
        Request::Flows { .. } => serde_json::from_slice(answer).map(Response::Flows),
        _ => return serde_json::from_slice(answer),
    }
    .or_else(|error| serde_json::from_slice(answer).map_err(|_| error))
}

/// Why there is no answer.
enum Unanswered {
    /// The connection ended before.
    Ended,
    /// It did not begin in time.
    Late,
    /// What came is not HTTP, or too long.
    Garbled(String),
}

impl From<hyper::Error> for Unanswered {
    fn from(error: hyper::Error) -> Self {
        let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
        if error.is_parse() && !error.is_incomplete_message() {
            Self::Garbled(error.to_string())
        } else if error.is_incomplete_message() || error.is_canceled() || source.is_some() {
            Self::Ended
        } else {
            Self::Garbled(error.to_string())
        }
    }
}

async fn exchange(
    stream: UnixStream,
    question: HttpRequest<Full<Bytes>>,
) -> Result<Bytes, Unanswered> {
    let stream = tokio::net::UnixStream::from_std(stream).map_err(|_| Unanswered::Ended)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // How it ends is told by what is read from it.
    let _connection = tokio::spawn(connection);
    let body = Limited::new(sender.send_request(question).await?.into_body(), MAX_ANSWER);
    match body.collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => match error.downcast::<hyper::Error>() {
            Ok(error) => Err((*error).into()),
            Err(error) => Err(Unanswered::Garbled(error.to_string())),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_query() {
        let filter = FlowFilter {
            client: Some("10.0.0.0/8".parse().unwrap()),
            backend: Some("[::1]:53".parse().unwrap()),
            listener: Some("a&b=c\n".into()),
            limit: 5,
        };
        let expected =
            "client=10.0.0.0%2F8&backend=%5B%3A%3A1%5D%3A53&listener=a%26b%3Dc%0A&limit=5";
        assert_eq!(query(&filter), expected);
    }
}
