//! Asks a running Flowgate on its control socket.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use form_urlencoded::Serializer;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request as HttpRequest, Response as HttpResponse, header};
use hyper_util::rt::TokioIo;

use super::escape::{escaped, escaped_path};
use super::local::Connection;
use super::request::{FlowFilter, Request, Response};
use super::socket_path;

/// The longest answer: the one that lists [`FlowFilter::MAX`](super::request::FlowFilter::MAX) flows
/// is shorter.
const MAX_ANSWER: usize = 128 << 20;

/// Why there is no answer, and what to do next.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no socket, or nobody listens on it.
    #[error(
        "no flowgate is listening on {}; start one with `flowgate run`, or name its socket with \
         --socket", escaped_path(.0)
    )]
    NotListening(PathBuf),
    /// The socket belongs to another user.
    #[error(
        "{} is of another user's flowgate; run this as that user or as root, or name another socket \
         with --socket", escaped_path(.0)
    )]
    NotPermitted(PathBuf),
    /// The directory of the socket is not to be trusted, or the socket cannot be reached.
    #[error("cannot use {}: {}", escaped_path(.0), escaped(&.1.to_string()))]
    Unusable(PathBuf, io::Error),
    /// The answer did not come in time.
    #[error(
        "no answer on {} within {:?}; the flowgate there is busy or hangs: look at its log, and try \
         again", escaped_path(.0), .1
    )]
    TimedOut(PathBuf, Duration),
    /// The connection ended without an answer.
    #[error(
        "the connection to {} ended without an answer; if that flowgate is not just stopping, look \
         at its log", escaped_path(.0)
    )]
    NoAnswer(PathBuf),
    /// What came is not an answer.
    #[error(
        "what came from {} is not an answer of flowgate ({}); name the right socket with --socket, \
         or use the `flowgate` of the version that is running there", escaped_path(.0), escaped(.1)
    )]
    NotAnAnswer(PathBuf, String),
}

/// Asks the Flowgate whose control socket is at `path`, and waits up to `timeout` for the answer to
/// begin, and for the rest of it.
///
/// # Errors
///
/// If there is no answer: the reason, and what to do next. A refusal is an answer.
pub fn request(path: &Path, request: &Request, timeout: Duration) -> Result<Response, ClientError> {
    let asked = Asked { path, timeout };
    let question = encode(request).map_err(|why| asked.garbled(why))?;
    let answer = asked.send(question, async |answer| asked.whole(answer).await)?;
    decode(request, &answer).map_err(|error| asked.garbled(error.to_string()))
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
    mut read: impl FnMut(&[u8]) -> bool,
) -> Result<Option<Response>, ClientError> {
    let asked = Asked { path, timeout };
    let question = HttpRequest::get(target).header(header::HOST, "flowgate");
    let question = question.body(Full::new(Bytes::new()));
    let question = question.map_err(|error| asked.garbled(error.to_string()))?;
    let refusal = asked.send(question, async |answer| {
        if !answer.status().is_success() {
            return asked.whole(answer).await.map(Some);
        }
        begun();
        let mut body = answer.into_body();
        while let Some(frame) = body.frame().await {
            let Ok(bytes) = frame?.into_data() else { continue };
            if !read(&bytes) {
                break;
            }
        }
        Ok(None)
    })?;
    let refusal = refusal.map(|refusal| serde_json::from_slice(&refusal)).transpose();
    refusal.map_err(|error| asked.garbled(error.to_string()))
}

/// Who is asked, and how long an answer may take.
#[derive(Clone, Copy)]
struct Asked<'a> {
    path: &'a Path,
    timeout: Duration,
}

impl Asked<'_> {
    /// Sends a question, and has what is answered read.
    fn send<T>(
        self,
        question: HttpRequest<Full<Bytes>>,
        read: impl AsyncFnOnce(HttpResponse<Incoming>) -> Result<T, Unanswered>,
    ) -> Result<T, ClientError> {
        let failed = |error| self.failed(error);
        socket_path::check_directory(self.path).map_err(failed)?;
        let connection = Connection::open(self.path, self.timeout).map_err(failed)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let outcome = runtime.map_err(failed)?.block_on(async {
            let answer = self.in_time(begin(connection, question)).await?;
            read(answer).await
        });
        outcome.map_err(|why| match why {
            Unanswered::Late => ClientError::TimedOut(self.path.to_owned(), self.timeout),
            Unanswered::Ended => ClientError::NoAnswer(self.path.to_owned()),
            Unanswered::Garbled(why) => self.garbled(why),
        })
    }

    /// Reads all of an answer.
    async fn whole(self, answer: HttpResponse<Incoming>) -> Result<Bytes, Unanswered> {
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect();
        self.in_time(async {
            match body.await {
                Ok(body) => Ok(body.to_bytes()),
                Err(error) => Err(match error.downcast::<hyper::Error>() {
                    Ok(error) => (*error).into(),
                    Err(error) => Unanswered::Garbled(error.to_string()),
                }),
            }
        })
        .await
    }

    async fn in_time<T>(
        self,
        outcome: impl Future<Output = Result<T, Unanswered>>,
    ) -> Result<T, Unanswered> {
        tokio::time::timeout(self.timeout, outcome).await.unwrap_or(Err(Unanswered::Late))
    }

    fn failed(self, error: io::Error) -> ClientError {
        let path = self.path.to_owned();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotListening(path)
            }
            io::ErrorKind::PermissionDenied => ClientError::NotPermitted(path),
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                ClientError::TimedOut(path, self.timeout)
            }
            _ => ClientError::Unusable(path, error),
        }
    }

    fn garbled(self, why: String) -> ClientError {
        ClientError::NotAnAnswer(self.path.to_owned(), why)
    }
}

/// Asks, and returns the answer when it begins.
async fn begin(
    connection: Connection,
    question: HttpRequest<Full<Bytes>>,
) -> Result<HttpResponse<Incoming>, Unanswered> {
    let question = connection.prepare(question);
    let stream = connection.into_stream().map_err(|_| Unanswered::Ended)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // How it ends is told by what is read from it.
    tokio::spawn(connection);
    Ok(sender.send_request(question).await?)
}

/// What is written for a request.
fn encode(request: &Request) -> Result<HttpRequest<Full<Bytes>>, String> {
    let (method, target, body) = match request {
        Request::Status => (Method::GET, "/status".to_owned(), Bytes::new()),
        Request::Flows { filter } => {
            (Method::GET, format!("/flows?{}", query(filter)), Bytes::new())
        }
        Request::Explain { client, payload } => {
            let mut query = Serializer::new(String::new());
            query.append_pair("client", &client.to_string());
            if let Some(payload) = payload {
                query.append_pair("payload", payload);
            }
            (Method::GET, format!("/explain?{}", query.finish()), Bytes::new())
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
