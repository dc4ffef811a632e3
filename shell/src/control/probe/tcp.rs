//! A probe that connects.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use flowgate_core::LocalSource;
use flowgate_core::probe::ProbeOutcome;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use socket2::{Domain, Socket, Type};

use crate::sys::fd::AsFd;
use crate::sys::{errno, udp};

/// A connection that is being made.
pub(super) struct TcpProbe {
    stream: TcpStream,
}

impl TcpProbe {
    /// Begins to connect.
    pub(super) fn start(
        address: SocketAddr,
        source: LocalSource,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        // Closed by a reset rather than in good order, it leaves no port in TIME_WAIT.
        socket.set_linger(Some(Duration::ZERO))?;
        if let LocalSource::Local { ip: Some(ip), .. } = source {
            udp::bind_source(socket.as_fd(), SocketAddr::new(ip, 0), address.is_ipv6())?;
        }
        match socket.connect(&address.into()) {
            Err(error) if !errno::is_in_progress(&error) => return Err(error),
            _ => {}
        }
        let mut stream = TcpStream::from_std(socket.into());
        registry.register(&mut stream, token, Interest::WRITABLE)?;
        Ok(Self { stream })
    }

    /// How it has ended; `None` while it has not.
    pub(super) fn outcome(&self) -> Option<ProbeOutcome> {
        match self.stream.take_error() {
            Ok(None) => {}
            // Only a connection that was made can be reset: one that is not taken is refused.
            Ok(Some(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Some(ProbeOutcome::Answered);
            }
            Ok(Some(error)) | Err(error) => return Some(errno::on_probe(&error)),
        }
        match self.stream.peer_addr() {
            Ok(peer) => Some(self.connected(peer)),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => None,
            Err(error) => Some(errno::on_probe(&error)),
        }
    }

    fn connected(&self, peer: SocketAddr) -> ProbeOutcome {
        match self.stream.local_addr() {
            // The kernel chose the very port that is probed, which therefore nobody has, and TCP
            // connects it with itself.
            Ok(local) if local == peer => ProbeOutcome::Refused,
            _ => ProbeOutcome::Answered,
        }
    }
}
