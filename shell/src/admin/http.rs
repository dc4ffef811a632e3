//! The HTTP listener of `admin.http`: `/metrics` for Prometheus, `/status` as JSON, and a status
//! page for people on `/`.
//!
//! It runs on a thread of its own and asks the [handler](Handler) how things stand, as the control
//! socket does. However many ask at once, the handler is asked once in 50 ms at most, so that the
//! data path pays for one report. Everything that a client can hold on to has a limit: the bytes
//! and the time of a request's head, the life of a connection, and the number of connections, of
//! which the oldest goes when there are too many.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tracing::{info, warn};

use super::reports::Reports;
use super::site::Site;
use crate::admin::request::Handler;

/// The most connections at once.
pub const MOST_CONNECTIONS: usize = 64;

/// The most bytes of a request's line and headers.
const LONGEST_HEAD: usize = 16 << 10;

/// The most headers of a request.
const MOST_HEADERS: usize = 64;

/// How long a client may take to send a request's head, and be silent between two requests.
const HEAD_TIME: Duration = Duration::from_secs(5);

/// How long a connection is used for further requests.
const CONNECTION_LIFE: Duration = Duration::from_secs(60);

/// How long after that the client may still take to read what it asked for.
const LAST_ANSWER_TIME: Duration = Duration::from_secs(10);

/// How long no connection is accepted after one could not be, for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A running HTTP listener. Dropping it stops it.
#[derive(Debug)]
pub struct HttpServer {
    listener: TcpListener,
    address: SocketAddr,
    /// Dropped to stop the thread.
    stop: Option<oneshot::Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl HttpServer {
    /// Binds `address` and answers there, with what `handler` says, from now on.
    ///
    /// Where the address is a loopback one, only requests to `localhost` or to an IP address are
    /// answered: a web page that has its own name resolve to this machine (DNS rebinding) sees
    /// nothing.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound or the thread cannot be started.
    pub fn start(address: SocketAddr, handler: Handler) -> io::Result<Self> {
        Self::adopt(TcpListener::bind(address)?, handler)
    }

    /// The same with a socket that is listening already, and may have connections waiting.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started.
    pub fn adopt(listener: TcpListener, handler: Handler) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let accepting = listener.try_clone()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("http".into()).spawn(move || {
            runtime.block_on(serve(accepting, handler, stopped));
            // Does not wait for the handler, which may be waiting for whoever stops this.
            runtime.shutdown_background();
        })?;
        info!(url = %format_args!("http://{address}/"), "serving the status page and metrics");
        Ok(Self { listener, address, stop: Some(stop), thread: Some(thread) })
    }

    /// Stops answering, and returns the listening socket, in which connections wait from now on.
    ///
    /// # Errors
    ///
    /// When there are no descriptors left.
    pub fn stop(self) -> io::Result<TcpListener> {
        self.listener.try_clone()
    }

    /// Where it listens, with the port that the kernel chose if it was asked to.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic has been printed.
            let _ = thread.join();
        }
    }
}

/// Accepts connections until it is stopped.
async fn serve(listener: TcpListener, handler: Handler, mut stop: oneshot::Receiver<Infallible>) {
    let (address, listener) = match listener
        .local_addr()
        .and_then(|address| Ok((address, tokio::net::TcpListener::from_std(listener)?)))
    {
        Ok(listener) => listener,
        Err(error) => return warn!("the HTTP listener cannot be used: {error}"),
    };
    let site = Arc::new(Site::new(address, Reports::start(handler)));
    let mut connections = VecDeque::<AbortHandle>::with_capacity(MOST_CONNECTIONS);
    let mut is_failing = false;
    loop {
        let accepted = tokio::select! {
            _ = &mut stop => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                if !is_failing {
                    warn!("cannot accept HTTP connections: {error}; trying again");
                }
                is_failing = true;
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        is_failing = false;
        connections.retain(|connection| !connection.is_finished());
        if connections.len() >= MOST_CONNECTIONS
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        connections.push_back(tokio::spawn(converse(stream, Arc::clone(&site))).abort_handle());
    }
}

/// Answers the requests of one connection.
async fn converse(stream: TcpStream, site: Arc<Site>) {
    // Only costs latency if it fails.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let site = Arc::clone(&site);
        async move { Ok::<_, Infallible>(site.respond(&request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(LONGEST_HEAD)
        .max_headers(MOST_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // A connection that fails is its client's business.
    if tokio::time::timeout(CONNECTION_LIFE, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(LAST_ANSWER_TIME, connection).await;
    }
}
