//! The demo's servers: each echoes what it gets, signed with its number.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::message::Message;

/// How soon a backend without work sees that it is to end.
const RECEIVE_TIMEOUT: Duration = Duration::from_millis(50);

/// What a backend is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    /// How much of the work it gets, compared with the others.
    pub(super) weight: u32,
    /// How long it sleeps before it answers all that has come meanwhile. None: it never sleeps.
    pub(super) nap: Option<Duration>,
}

/// Running backends, one thread each. Dropping them ends them.
pub(super) struct Backends {
    addresses: Vec<SocketAddr>,
    is_stopped: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Backends {
    /// Starts a backend of each kind, on ports of 127.0.0.1 that the kernel chooses.
    ///
    /// # Errors
    ///
    /// Those of opening sockets and starting threads.
    pub(super) fn start(kinds: &[Kind]) -> io::Result<Self> {
        let is_stopped = Arc::new(AtomicBool::new(false));
        let mut backends =
            Self { addresses: Vec::new(), is_stopped: is_stopped.clone(), threads: Vec::new() };
        for (number, kind) in (0..).zip(kinds) {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            match kind.nap {
                None => socket.set_read_timeout(Some(RECEIVE_TIMEOUT))?,
                Some(_) => socket.set_nonblocking(true)?,
            }
            backends.addresses.push(socket.local_addr()?);
            let (is_stopped, nap) = (is_stopped.clone(), kind.nap);
            let thread = thread::Builder::new().name(format!("backend-{number}"));
            let echo = move || echo(&socket, number, nap, &is_stopped);
            backends.threads.push(thread.spawn(echo)?);
        }
        Ok(backends)
    }

    /// Where they are, in the order of their kinds.
    pub(super) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

impl Drop for Backends {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn echo(socket: &UdpSocket, number: u8, nap: Option<Duration>, is_stopped: &AtomicBool) {
    let mut buffer = [0; Message::LENGTH];
    while !is_stopped.load(Ordering::Relaxed) {
        if let Some(nap) = nap {
            thread::sleep(nap);
        }
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let answer = &mut buffer[..length];
            Message::sign(answer, number);
            // An answer that cannot be sent is lost, and its client counts it.
            let _ = socket.send_to(answer, client);
        }
    }
}
