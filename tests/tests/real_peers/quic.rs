//! A QUIC client and server that send each other much, check every byte, and look at the ECN marks
//! of what arrives.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use quinn::rustls::RootCertStore;
use quinn::rustls::pki_types::PrivatePkcs8KeyDer;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{
    AsyncUdpSocket, ClientConfig, Endpoint, EndpointConfig, RecvStream, Runtime, SendStream,
    ServerConfig, TokioRuntime, UdpPoller,
};

/// The name in the server's certificate.
const NAME: &str = "quic.flowgate.test";

/// How much one write takes, and one read at most.
const PIECE: usize = 64 << 10;

/// A server on this host, and the certificate that its clients trust.
pub(crate) struct QuicServer {
    endpoint: Endpoint,
    socket: Arc<Watched>,
    client_config: ClientConfig,
}

/// What arrived at one end of a transfer, in bursts as the kernel coalesces them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marks {
    /// Marked as able to carry ECN.
    pub(crate) marked: u64,
    /// Not marked.
    pub(crate) unmarked: u64,
}

impl QuicServer {
    /// A server on a free port of `ip`, for the runtime that this is called in.
    ///
    /// # Panics
    ///
    /// When it cannot be had, or the transfer fails: here and in all that follows.
    pub(crate) fn start(ip: &str) -> Self {
        let certified = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
        let certificate = certified.cert.der().clone();
        let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let client_config = ClientConfig::with_root_certificates(Arc::new(roots)).unwrap();
        let config = ServerConfig::with_single_cert(vec![certificate], key.into()).unwrap();
        let (endpoint, socket) = endpoint(ip, Some(config));
        Self { endpoint, socket, client_config }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.endpoint.local_addr().unwrap()
    }

    /// Has a new client send bytes to `destination`, which leads here, and get as many others back, each way
    /// for as long as there is to be `more` after so many. Returns what the server and the client saw
    /// of ECN.
    pub(crate) async fn transfer(
        &self,
        destination: SocketAddr,
        more: impl Fn(u64) -> bool,
    ) -> [Marks; 2] {
        let any = if destination.is_ipv6() { "::" } else { "0.0.0.0" };
        let (mut client, client_socket) = endpoint(any, None);
        client.set_default_client_config(self.client_config.clone());
        let ((came, went), (sent, got)) =
            tokio::join!(self.serve(&more), call(&client, destination, &more));
        assert_eq!((came, got), (sent, went), "cut short");
        [self.socket.marks(), client_socket.marks()]
    }

    /// How many bytes came, and how many went back.
    async fn serve(&self, more: impl Fn(u64) -> bool) -> (u64, u64) {
        let connection = self.endpoint.accept().await.unwrap().await.unwrap();
        let (to_client, mut from_client) = connection.accept_bi().await.unwrap();
        let came = check(&mut from_client, 1).await;
        let went = fill(to_client, 2, more).await;
        // The client leaves when it has had everything.
        connection.closed().await;
        (came, went)
    }
}

/// How many bytes went, and how many came back.
async fn call(
    client: &Endpoint,
    destination: SocketAddr,
    more: impl Fn(u64) -> bool,
) -> (u64, u64) {
    let connection = client.connect(destination, NAME).unwrap().await.unwrap();
    assert_eq!(connection.remote_address(), destination);
    let (to_server, mut from_server) = connection.open_bi().await.unwrap();
    let sent = fill(to_server, 1, more).await;
    let got = check(&mut from_server, 2).await;
    connection.close(0u32.into(), b"all of it");
    client.wait_idle().await;
    (sent, got)
}

/// Writes bytes that depend on their place and on `salt`, and says how many.
async fn fill(mut stream: SendStream, salt: u64, more: impl Fn(u64) -> bool) -> u64 {
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while more(at) {
        (at..).zip(piece.iter_mut()).for_each(|(at, byte)| *byte = byte_at(at, salt));
        stream.write_all(&piece).await.unwrap();
        at += piece.len() as u64;
    }
    stream.finish().unwrap();
    at
}

/// Reads to the end, checks every byte, and says how many there were.
async fn check(stream: &mut RecvStream, salt: u64) -> u64 {
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while let Some(read) = stream.read(&mut piece).await.unwrap() {
        let is_right = (at..).zip(&piece[..read]).all(|(at, byte)| *byte == byte_at(at, salt));
        assert!(is_right, "wrong bytes between {at} and {}", at + read as u64);
        at += read as u64;
    }
    at
}

/// Bytes without a period that a lost or doubled datagram could hide in: a word of SplitMix64 for
/// every eight.
fn byte_at(at: u64, salt: u64) -> u8 {
    let mut word = (at / 8 + (salt << 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    word = (word ^ word >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ word >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    (word >> (at % 8 * 8)) as u8
}

/// An endpoint on a free port of `ip`, and its socket, to look at the marks.
fn endpoint(ip: &str, server: Option<ServerConfig>) -> (Endpoint, Arc<Watched>) {
    let address = SocketAddr::new(ip.parse().unwrap(), 0);
    let runtime = Arc::new(TokioRuntime);
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_nonblocking(true).unwrap();
    let inner = runtime.wrap_udp_socket(socket).unwrap();
    let watched = Arc::new(Watched { inner, marked: 0.into(), unmarked: 0.into() });
    let config = EndpointConfig::default();
    let endpoint =
        Endpoint::new_with_abstract_socket(config, server, watched.clone(), runtime).unwrap();
    (endpoint, watched)
}

/// A socket that counts the ECN marks of what it receives.
#[derive(Debug)]
struct Watched {
    inner: Arc<dyn AsyncUdpSocket>,
    marked: AtomicU64,
    unmarked: AtomicU64,
}

impl Watched {
    fn marks(&self) -> Marks {
        let [marked, unmarked] =
            [&self.marked, &self.unmarked].map(|count| count.load(Ordering::Relaxed));
        Marks { marked, unmarked }
    }
}

impl AsyncUdpSocket for Watched {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let outcome = self.inner.poll_recv(context, buffers, metas);
        if let Poll::Ready(Ok(received)) = outcome {
            for meta in &metas[..received] {
                let count = if meta.ecn.is_some() { &self.marked } else { &self.unmarked };
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
        outcome
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
