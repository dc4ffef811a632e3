//! A server that answers by itself while the test is busy being its clients.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use crate::e2e::eventually;

/// How often it looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(50);

/// A server on a thread of its own, which sends some datagrams back as they came. It stops when
/// dropped.
pub struct EchoServer {
    address: SocketAddr,
    received: Arc<AtomicU64>,
    is_stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EchoServer {
    /// A server at `address` that sends back what `echoes` says yes to.
    ///
    /// # Panics
    ///
    /// When the address cannot be had.
    pub fn start(address: &str, echoes: impl Fn(&[u8]) -> bool + Send + 'static) -> Self {
        // A port that was free a moment ago may be someone's for a while.
        let socket = eventually(address, || UdpSocket::bind(address).ok());
        socket.set_read_timeout(Some(LOOK)).expect("a timeout");
        // What a flood brings must find room while this thread waits for a processor.
        if setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20)).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &(4 << 20)).expect("a buffer");
        }
        let address = socket.local_addr().expect("an address");
        let (received, is_stopped) = <(Arc<AtomicU64>, Arc<AtomicBool>)>::default();
        let thread = std::thread::spawn({
            let (received, is_stopped) = (received.clone(), is_stopped.clone());
            move || serve(&socket, &echoes, &received, &is_stopped)
        });
        Self { address, received, is_stopped, thread: Some(thread) }
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many datagrams it has received.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        let panicked = self.thread.take().is_some_and(|thread| thread.join().is_err());
        assert!(!panicked || std::thread::panicking(), "the echo server panicked");
    }
}

fn serve(
    socket: &UdpSocket,
    echoes: &dyn Fn(&[u8]) -> bool,
    received: &AtomicU64,
    is_stopped: &AtomicBool,
) {
    let mut buffer = [0; 2_048];
    while !is_stopped.load(Ordering::Relaxed) {
        let (len, from) = match socket.recv_from(&mut buffer) {
            Ok(datagram) => datagram,
            Err(error) => match error.kind() {
                // Nothing came for a while.
                ErrorKind::WouldBlock | ErrorKind::Interrupted => continue,
                _ => panic!("{error}"),
            },
        };
        received.fetch_add(1, Ordering::Relaxed);
        if echoes(&buffer[..len]) {
            // An answer that cannot be sent is one that is not heard: the test sees that.
            let _ = socket.send_to(&buffer[..len], from);
        }
    }
}
