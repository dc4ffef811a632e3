//! A loopback address, and a token that anyone who asks has to know. Both stand in a file that only
//! those can read who may ask.
//!
//! ```text
//! 127.0.0.1:49812 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
//! ```

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue};

use super::super::access::Access;
use crate::sys::process;

/// What stands before the token in a request (RFC 6750).
const SCHEME: &str = "Bearer ";

/// The longest file that is read.
const MAX_LEN: u64 = 256;

/// What anyone who asks has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Token(Arc<str>);

impl Token {
    /// One that nobody can guess.
    pub(in super::super) fn new() -> io::Result<Self> {
        let part = || process::random_seed().map(|part| format!("{part:016x}"));
        Ok(Self([part()?, part()?, part()?, part()?].concat().into()))
    }

    /// Whether a request has it. It takes as long whatever the request has.
    pub(in super::super) fn is_in(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(AUTHORIZATION).map_or(&[][..], HeaderValue::as_bytes);
        let given = given.strip_prefix(SCHEME.as_bytes()).unwrap_or_default();
        let differences = given.iter().zip(self.0.as_bytes()).fold(0, |sum, (a, b)| sum | (a ^ b));
        given.len() == self.0.len() && differences == 0
    }
}

/// The listening socket.
#[derive(Debug)]
pub(in super::super) struct Listener {
    socket: TcpListener,
    token: Token,
}

impl Listener {
    /// Listens on a port that nobody has.
    pub(in super::super) fn open() -> io::Result<Self> {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        Ok(Self { socket, token: Token::new()? })
    }

    /// What stands in the file.
    pub(in super::super) fn describe(&self) -> io::Result<String> {
        Ok(format!("{} {}\n", self.socket.local_addr()?, self.token.0))
    }

    pub(in super::super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { socket: self.socket.try_clone()?, token: self.token.clone() })
    }

    pub(in super::super) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.socket.set_nonblocking(nonblocking)
    }
}

/// The same, for an event loop.
pub(in super::super) struct Accepting {
    socket: tokio::net::TcpListener,
    token: Token,
}

impl Accepting {
    pub(in super::super) fn new(listener: Listener) -> io::Result<Self> {
        let Listener { socket, token } = listener;
        Ok(Self { socket: tokio::net::TcpListener::from_std(socket)?, token })
    }

    /// The next connection, and what may be asked by it.
    pub(in super::super) async fn accept(&self) -> io::Result<(tokio::net::TcpStream, Access)> {
        let (stream, _) = self.socket.accept().await?;
        // Only costs latency if it fails.
        let _ = stream.set_nodelay(true);
        Ok((stream, Access::Token(self.token.clone())))
    }
}

/// A connection to a process.
pub(in super::super) struct Connection {
    stream: TcpStream,
    token: Token,
}

impl Connection {
    /// Connects to the process whose file is at `path`.
    pub(in super::super) fn open(path: &Path, timeout: Duration) -> io::Result<Self> {
        let (address, token) = read(path)?;
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, token })
    }

    /// Adds to a request what it needs.
    pub(in super::super) fn prepare<B>(&self, mut request: Request<B>) -> Request<B> {
        if let Ok(value) = HeaderValue::from_str(&format!("{SCHEME}{}", self.token.0)) {
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        request
    }

    pub(in super::super) fn into_stream(self) -> io::Result<tokio::net::TcpStream> {
        tokio::net::TcpStream::from_std(self.stream)
    }
}

fn read(path: &Path) -> io::Result<(SocketAddr, Token)> {
    if std::fs::metadata(path)?.len() > MAX_LEN {
        return Err(io::Error::other("it is not a file that flowgate writes"));
    }
    let text = std::fs::read_to_string(path)?;
    let parse = || {
        let (address, token) = text.trim_end().split_once(' ')?;
        let address: SocketAddr = address.parse().ok()?;
        // The token goes to no other machine.
        address.ip().is_loopback().then(|| (address, Token(token.into())))
    };
    parse().ok_or_else(|| io::Error::other("it is not a file that flowgate writes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn only_who_knows_the_token_may_ask() {
        let token = Token::new().unwrap();
        assert_eq!(token.0.len(), 64);
        assert_ne!(token, Token::new().unwrap());
        assert!(token.is_in(&headers(&format!("Bearer {}", token.0))));
        let short = &token.0[1..];
        for wrong in
            ["", "Bearer ", &token.0, &format!("Bearer {short}"), &format!("Bearer {short}x")]
        {
            assert!(!token.is_in(&headers(wrong)), "{wrong}");
        }
        assert!(!token.is_in(&HeaderMap::new()));
    }

    #[test]
    fn who_reads_the_file_finds_the_process_and_is_let_in() {
        let listener = Listener::open().unwrap();
        let path = std::env::temp_dir().join(format!("flowgate-token-{}", std::process::id()));
        std::fs::write(&path, listener.describe().unwrap()).unwrap();
        let connection = Connection::open(&path, Duration::from_secs(20)).unwrap();
        let request = connection.prepare(Request::new(()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let access = runtime.block_on(async {
            listener.set_nonblocking(true).unwrap();
            let accepting = Accepting::new(listener.try_clone().unwrap()).unwrap();
            let (stream, access) = accepting.accept().await.unwrap();
            let asking = connection.into_stream().unwrap();
            assert_eq!(stream.peer_addr().unwrap(), asking.local_addr().unwrap());
            access
        });
        assert_eq!(access.of_request(request.headers()), Access::Full);
        assert!(matches!(access.of_request(&HeaderMap::new()), Access::None(_)));
        // What leads to another machine would give it the token.
        for wrong in ["", "127.0.0.1:1", "192.0.2.1:80 token", &"x".repeat(1_000)] {
            std::fs::write(&path, wrong).unwrap();
            assert!(Connection::open(&path, Duration::from_secs(20)).is_err(), "{wrong}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
