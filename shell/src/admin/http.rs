//! The HTTP listener of `admin.http`: the reading half of the [admin API](super), for Prometheus,
//! orchestrators, and people who open the status page.
//!
//! However many ask at once, the control plane is asked once in 50 ms at most, so that the data path
//! pays for one report.

use std::io;
use std::net::{SocketAddr, TcpListener};

use tracing::info;

use super::request::Handler;
pub use super::server::MAX_CONNECTIONS;
use super::server::{Listener, Server};
use crate::sys::fd::{AsFd, BorrowedFd};

/// A running HTTP listener. Dropping it stops it.
#[derive(Debug)]
pub struct HttpServer {
    listener: TcpListener,
    address: SocketAddr,
    server: Server,
}

impl HttpServer {
    /// Binds `address` and answers there, with what `handler` says, from now on.
    ///
    /// Only requests to `localhost`, to an IP address or to this machine's name are answered: a web
    /// page that has its own name resolve to this machine (DNS rebinding) sees nothing.
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
        let address = listener.local_addr()?;
        let server = Server::start("http", Listener::Tcp(listener.try_clone()?), handler)?;
        info!(url = %format_args!("http://{address}/"), "serving the status page and metrics");
        Ok(Self { listener, address, server })
    }

    /// Accepts no connections any more: they wait in the listening socket. Requests that were
    /// accepted are answered.
    pub fn pause(&self) {
        self.server.pause();
    }

    /// Accepts connections again.
    pub fn resume(&self) {
        self.server.resume();
    }

    /// The listening socket.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Where it listens, with the port that the kernel chose if it was asked to.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}
