//! Serves the admin API by HTTP on one listening socket, unix or TCP.
//!
//! A task of the control plane. Everything that a client can hold on to has a limit: the
//! bytes and the time of a request's head, the life of a connection, and the number of connections.
//! When there are too many, one that has sent nothing since its last reply is closed. A descriptor
//! is kept in reserve, so that an operator is accepted even when the process has none left.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::Either;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc as queue, watch};
use tokio::task::JoinHandle as TaskHandle;
use tracing::warn;

use super::access::Access;
use super::local;
use super::reports::Reports;
use super::request::Handler;
use super::router::Router;
use crate::control::task::{self, ControlTask};
use crate::sys::{errno, files};

/// The most connections at once.
pub const MAX_CONNECTIONS: usize = 64;

/// The most bytes of a request's line and headers.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// The most headers of a request.
const MAX_HEADERS: usize = 64;

/// How long a client may take to send a request's head, and be silent between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection is used for further requests.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(60);

/// How long after that a request may still take: an upgrade or a reload waits for others.
const LAST_REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the end waits for replies that are being sent.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// How often all connections are polled before one of them is closed in favour of another: once to
/// ask for what has come, and once to have it.
const POLLS_BEFORE_A_CHOICE: usize = 3;

/// How long no connection is accepted after one could not be, for want of descriptors.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// A listening socket of either kind.
#[derive(Debug)]
pub(super) enum Listener {
    Local(local::Listener),
    Tcp(TcpListener),
}

/// A running server. Dropping it ends it, after replies that are being given.
#[derive(Debug)]
pub(super) struct Server {
    commands: queue::UnboundedSender<Command>,
    task: ControlTask,
}

#[derive(Debug)]
enum Command {
    /// Accept no connections any more, and say so.
    Pause(mpsc::Sender<()>),
    /// Accept them again.
    Resume,
}

impl Server {
    /// Serves a listening socket from now on.
    ///
    /// # Errors
    ///
    /// When there can be no event loop for it.
    pub(super) fn start(
        name: &'static str,
        listener: Listener,
        handler: Handler,
    ) -> io::Result<Self> {
        let is_local = match &listener {
            Listener::Local(socket) => socket.set_nonblocking(true).map(|()| true)?,
            Listener::Tcp(socket) => socket.set_nonblocking(true).map(|()| false)?,
        };
        let listener = {
            let runtime = task::runtime()?;
            let _inside = runtime.enter();
            Accepting::new(listener)?
        };
        let (commands, inbox) = queue::unbounded_channel();
        let task = ControlTask::spawn(name, serve(listener, is_local, handler, inbox))?;
        Ok(Self { commands, task })
    }

    /// Accepts no connections any more: they wait in the listening socket, for another process or
    /// for [`resume`](Self::resume). Requests that were accepted are answered.
    pub(super) fn pause(&self) {
        let (done, is_done) = mpsc::channel();
        if self.commands.send(Command::Pause(done)).is_ok() {
            let _ = is_done.recv();
        }
    }

    /// Accepts connections again.
    pub(super) fn resume(&self) {
        // A server that has ended says so in the log.
        let _ = self.commands.send(Command::Resume);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.release();
        (self.commands, _) = queue::unbounded_channel();
        self.task.join();
    }
}

/// A connection that is being served.
struct Connection {
    task: TaskHandle<()>,
    /// Who is at the other end, where that is known.
    peer: Option<IpAddr>,
    activity: Arc<Activity>,
}

/// What a connection is doing.
#[derive(Debug, Default)]
struct Activity(AtomicU8);

impl Activity {
    /// Nothing has come since the last reply.
    const IDLE: u8 = 0;
    /// A part of a request has come.
    const RECEIVING: u8 = 1;
    /// A request waits for its reply.
    const WAITING: u8 = 2;
    /// The reply is on its way.
    const REPLYING: u8 = 3;
    /// A reply is on its way that ends when what it tells of does.
    const STREAMING: u8 = 4;

    fn set(&self, state: u8) {
        self.0.store(state, Ordering::Relaxed);
    }

    /// Goes from one state to another, unless it is in a third.
    fn advance(&self, from: u8, to: u8) {
        // Being in a third state is fine.
        let _ = self.0.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn is_idle(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::IDLE
    }

    fn is_streaming(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::STREAMING
    }
}

enum Accepting {
    Local(local::Accepting),
    Tcp(tokio::net::TcpListener),
}

trait Stream: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

type Accepted = (Pin<Box<dyn Stream>>, Access, Option<IpAddr>);

impl Accepting {
    fn new(listener: Listener) -> io::Result<Self> {
        Ok(match listener {
            Listener::Local(socket) => Self::Local(local::Accepting::new(socket)?),
            Listener::Tcp(socket) => Self::Tcp(tokio::net::TcpListener::from_std(socket)?),
        })
    }

    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Local(listener) => {
                let (stream, access) = listener.accept().await?;
                Ok((Box::pin(stream), access, None))
            }
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Only costs latency if it fails.
                let _ = stream.set_nodelay(true);
                Ok((Box::pin(stream), Access::Read, Some(address.ip())))
            }
        }
    }
}

/// Accepts connections until the server is dropped.
async fn serve(
    listener: Accepting,
    is_local: bool,
    handler: Handler,
    mut commands: queue::UnboundedReceiver<Command>,
) {
    let reports = Reports::start(Arc::clone(&handler), !is_local);
    let router = Arc::new(Router::new(is_local, reports, handler));
    let mut connections = Vec::<Connection>::with_capacity(MAX_CONNECTIONS);
    let mut reserve = Reserve::default();
    let (mut shutdown, mut ends) = watch::channel(());
    let (mut is_failing, mut is_paused) = (false, false);
    loop {
        reserve.refill();
        let accepted = tokio::select! {
            command = commands.recv() => match command {
                None => break,
                Some(Command::Pause(done)) => {
                    is_paused = true;
                    // Idle connections close, and find the process that serves when they come again.
                    (shutdown, ends) = watch::channel(());
                    let _ = done.send(());
                    continue;
                }
                Some(Command::Resume) => {
                    is_paused = false;
                    continue;
                }
            },
            accepted = listener.accept(), if !is_paused => accepted,
        };
        let (stream, access, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if errno::is_out_of_descriptors(&error) && reserve.release() => continue,
            Err(error) => {
                if !std::mem::replace(&mut is_failing, true) {
                    warn!("cannot accept connections to the admin API: {error}; trying again");
                }
                tokio::time::sleep(ACCEPT_RETRY_INTERVAL).await;
                continue;
            }
        };
        is_failing = false;
        connections.retain(|connection| !connection.task.is_finished());
        if connections.len() >= MAX_CONNECTIONS {
            // What has come by those that were accepted just now is looked at first.
            for _ in 0..POLLS_BEFORE_A_CHOICE {
                tokio::task::yield_now().await;
            }
            if !make_room(&mut connections, peer) {
                continue;
            }
        }
        let activity = Arc::<Activity>::default();
        let stream = Watched { stream, activity: Arc::clone(&activity) };
        let task = tokio::spawn(converse(stream, access, Arc::clone(&router), ends.clone()));
        connections.push(Connection { task, peer, activity });
    }
    drop(shutdown);
    let last = async {
        for connection in &mut connections {
            if !connection.activity.is_idle() {
                let _ = (&mut connection.task).await;
            }
        }
    };
    let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, last).await;
    // A request may still wait, for the caller that stops this.
    connections.iter().for_each(|connection| connection.task.abort());
}

/// Closes a connection in favour of a new one: the oldest of the idle ones, else one of the client
/// that has the most. Says whether there is room now.
fn make_room(connections: &mut Vec<Connection>, peer: Option<IpAddr>) -> bool {
    let is_idle = |connection: &Connection| connection.activity.is_idle();
    let count = |peer| connections.iter().filter(|other| other.peer == peer).count();
    let victim = connections.iter().position(is_idle).or_else(|| {
        let (most, at) = (0..connections.len())
            .map(|at| (count(connections[at].peer), at))
            .max_by_key(|&(count, at)| (count, std::cmp::Reverse(at)))?;
        (most > count(peer) + 1).then_some(at)
    });
    victim.map(|at| connections.remove(at).task.abort()).is_some()
}

/// A descriptor that is given up when there are no others, to accept one more connection.
#[derive(Default)]
struct Reserve(Option<File>);

impl Reserve {
    fn refill(&mut self) {
        if self.0.is_none() {
            self.0 = File::open(files::NULL).ok();
        }
    }

    fn release(&mut self) -> bool {
        self.0.take().is_some()
    }
}

/// Answers the requests of one connection.
async fn converse(
    stream: Watched,
    access: Access,
    router: Arc<Router>,
    mut shutdown: watch::Receiver<()>,
) {
    let activity = Arc::clone(&stream.activity);
    let watched = Arc::clone(&activity);
    let service = service_fn(move |request| {
        let (router, access, activity) = (Arc::clone(&router), access.clone(), activity.clone());
        async move {
            activity.set(Activity::WAITING);
            let response = router.respond(request, &access).await;
            let goes_on = matches!(response.body(), Either::Right(_));
            activity.set(if goes_on { Activity::STREAMING } else { Activity::REPLYING });
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // A connection that fails is its client's business.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = shutdown.changed() => {}
        () = is_old(&watched) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(LAST_REPLY_TIMEOUT, connection).await;
}

/// Waits until a connection has been used for so long that it is to take no more requests. A reply
/// that goes on is none that anybody waits for.
async fn is_old(activity: &Activity) {
    loop {
        tokio::time::sleep(CONNECTION_LIFETIME).await;
        if !activity.is_streaming() {
            return;
        }
    }
}

/// A stream that tells what it is used for.
struct Watched {
    stream: Pin<Box<dyn Stream>>,
    activity: Arc<Activity>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = self.stream.as_mut().poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.activity.advance(Activity::IDLE, Activity::RECEIVING);
        }
        outcome
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = self.stream.as_mut().poll_flush(context);
        if outcome.is_ready() {
            self.activity.advance(Activity::REPLYING, Activity::IDLE);
        }
        outcome
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(context)
    }
}
