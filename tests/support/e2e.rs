//! Flowgate in this process, over real sockets, with clients and backends that the test plays
//! itself.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use flowgate::control::io::Io;
use flowgate::control::server::{Server, ServerOptions};
use flowgate::datapath::report::{ListenerReport, ShardReport};
use flowgate::sys::clock::Clock;
use flowgate_core::counters::Ledger;
use flowgate_core::{Direction, DropReason};
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};

/// How long anything that must happen may take. It is reached only where it does not happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Repeats `look` until it finds something.
///
/// # Panics
///
/// When it does not in time.
#[track_caller]
pub fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    in_time(look).unwrap_or_else(|| panic!("waited in vain: {what}"))
}

/// The same where it is the caller's to say what was found instead.
fn in_time<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        let found = look();
        if found.is_some() || start.elapsed() >= PATIENCE {
            return found;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A loopback address that no other test uses, so that all of its ports are free, and stay so.
pub fn own_loopback() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let process = std::process::id();
    // Those of 16 are one process's.
    let (high, middle, low) = (process / 4_096 % 100, process / 16 % 256, process % 16);
    format!("127.{}.{middle}.{}", 100 + high, low * 16 + number % 16)
}

/// An address that no other test uses: one of its own, with a port that the kernel gives nobody by
/// itself, so that a socket that is bound to all addresses cannot get it either.
pub fn own_address() -> SocketAddr {
    SocketAddr::new(own_loopback().parse().expect("an address"), 5_300)
}

/// The first of `count` ports in a row that nobody has at `ip`, and no other test gets.
pub fn own_ports(ip: &str, count: u16) -> u16 {
    const BLOCK: u16 = 16;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    assert!(count <= BLOCK);
    let is_free = |port: u16| UdpSocket::bind(format!("{ip}:{port}")).is_ok();
    // Below what the kernel gives away by itself, so that none is taken meanwhile; each process
    // begins elsewhere, and takes fewer blocks than lie between two of them.
    let start = std::process::id() * 13;
    loop {
        let block = (start + TAKEN.fetch_add(1, Ordering::Relaxed)) % 1_300;
        let first = 10_000 + block as u16 * BLOCK;
        if (first..first + count).all(is_free) {
            return first;
        }
    }
}

/// Waits until no socket of IPv4 is bound to an address that the test has just closed one at.
///
/// A process that another thread of the test starts has copies of all descriptors for a moment,
/// and a socket lives as long as its last copy.
#[track_caller]
pub fn wait_until_closed(address: SocketAddr) {
    let SocketAddr::V4(address) = address else { panic!("{address} is not of IPv4") };
    // As `proc(5)` has it: the bytes of the address as a number of this machine.
    let ip = u32::from_ne_bytes(address.ip().octets());
    let entry = format!(": {ip:08X}:{:04X} ", address.port());
    eventually("nobody has the port", || {
        let sockets = std::fs::read_to_string("/proc/net/udp").expect("a proc file system");
        (!sockets.contains(&entry)).then_some(())
    });
}

/// A running balancer. It stops when dropped.
pub struct Balancer {
    server: Server,
}

impl Balancer {
    /// Starts what a configuration says.
    ///
    /// # Panics
    ///
    /// When it is not valid, or cannot be started.
    pub fn start(toml: &str) -> Self {
        let config = flowgate_config::parse(toml, "test.toml").unwrap_or_else(|e| panic!("{e}"));
        let server = Server::start(&config, Clock::start(), ServerOptions::default(), |end| {
            assert!(matches!(end, flowgate::control::server::WorkerEnd::Done), "a worker {end}");
        });
        Self { server: server.unwrap_or_else(|e| panic!("{e}")) }
    }

    /// Starts a listener at `address` in front of `backends`. `more` holds further lines of the
    /// cluster's table.
    pub fn between(address: &str, backends: &[&Peer], more: &str) -> Self {
        Self::start(&simple_config(address, backends, more))
    }

    /// The address of the first listener.
    pub fn address(&self) -> SocketAddr {
        self.server.addresses().next().expect("a listener")
    }

    /// The same port at another address of this host.
    pub fn at(&self, ip: &str) -> SocketAddr {
        SocketAddr::new(ip.parse().expect("an address"), self.address().port())
    }

    /// How things stand at the first listener.
    pub fn figures(&self) -> ShardReport {
        let report = self.server.report().into_iter().next();
        report.map(|ListenerReport { figures, .. }| figures).expect("a listener")
    }

    /// How things stand once `is_so`.
    #[track_caller]
    pub fn eventually(&self, what: &str, is_so: impl Fn(&ShardReport) -> bool) -> ShardReport {
        let mut last = None;
        let figures = in_time(|| {
            let figures = self.figures();
            if is_so(&figures) {
                return Some(figures);
            }
            last = Some(figures);
            None
        });
        figures.unwrap_or_else(|| panic!("waited in vain: {what}; it is {last:#?}"))
    }

    /// How many datagrams were dropped for `reason` so far.
    pub fn dropped(&self, direction: Direction, reason: DropReason) -> u64 {
        self.figures().counters.ledger(direction).dropped_for(reason).datagrams
    }

    /// Checks that everything received so far was forwarded: `to_backend` and `to_client` many.
    #[track_caller]
    pub fn assert_lossless(&self, to_backend: u64, to_client: u64) {
        let figures = self.figures();
        let check = |ledger: &Ledger, expected: u64| {
            assert_eq!(ledger.received.datagrams, expected, "{ledger:?}");
            assert_eq!(ledger.received, ledger.forwarded, "{ledger:?}");
        };
        check(&figures.counters.to_backend, to_backend);
        check(&figures.counters.to_client, to_client);
    }
}

/// The five lines that everybody begins with, and `more` for the cluster.
pub fn simple_config(address: &str, backends: &[&Peer], more: &str) -> String {
    let backends: Vec<_> = backends.iter().map(|peer| peer.address().to_string()).collect();
    format!(
        "[[listener]]\naddress = {address:?}\ncluster = \"test\"\n\
         [cluster.test]\nbackends = {backends:?}\n{more}\n"
    )
}

/// A client or a backend: a socket, and what the test makes it do.
pub struct Peer {
    socket: UdpSocket,
}

/// A datagram that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// What it holds.
    pub bytes: Vec<u8>,
    /// Who sent it.
    pub from: SocketAddr,
    /// Its TOS or traffic-class byte.
    pub tos: u8,
}

impl Peer {
    /// A socket at `address`, where port 0 is any.
    ///
    /// # Panics
    ///
    /// When there can be none, here and in all that follows.
    pub fn bind(address: &str) -> Self {
        Self::try_bind(address).unwrap_or_else(|e| panic!("{address}: {e}"))
    }

    /// The same, where the address may be taken.
    ///
    /// # Errors
    ///
    /// Those of `bind(2)` and `setsockopt(2)`.
    pub fn try_bind(address: &str) -> io::Result<Self> {
        let socket = UdpSocket::bind(address)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        // As much as root may have, or as much as there is.
        if setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20)).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &(4 << 20))?;
        }
        setsockopt(&socket, sockopt::IpRecvTos, &true)?;
        if socket.local_addr()?.is_ipv6() {
            setsockopt(&socket, sockopt::Ipv6RecvTClass, &true)?;
        }
        Ok(Self { socket })
    }

    /// A socket on 127.0.0.1.
    pub fn v4() -> Self {
        Self::bind("127.0.0.1:0")
    }

    /// A socket on `[::1]`.
    pub fn v6() -> Self {
        Self::bind("[::1]:0")
    }

    /// A socket that hears nobody but `address`, and learns what ICMP says of it.
    pub fn connected(address: SocketAddr) -> Self {
        let any = if address.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let peer = Self::bind(any);
        peer.socket.connect(address).unwrap();
        peer
    }

    /// Its own address.
    pub fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    /// Marks all that it sends from now on.
    pub fn set_tos(&self, tos: u8) {
        if self.address().is_ipv6() {
            setsockopt(&self.socket, sockopt::Ipv6TClass, &i32::from(tos)).unwrap();
        } else {
            setsockopt(&self.socket, sockopt::Ipv4Tos, &i32::from(tos)).unwrap();
        }
    }

    /// Sends a datagram to whom it is connected to.
    pub fn send(&self, bytes: &[u8]) {
        assert_eq!(self.socket.send(bytes).unwrap(), bytes.len());
    }

    /// Sends a datagram.
    pub fn send_to(&self, bytes: &[u8], to: SocketAddr) {
        assert_eq!(self.socket.send_to(bytes, to).unwrap(), bytes.len());
    }

    /// Sends datagrams of `segment` bytes each with one system call, as a GSO sender does; over
    /// loopback a receiver with GRO gets them as one burst.
    pub fn send_train(&self, bytes: &[u8], segment: u16, to: SocketAddr) {
        let to = SockaddrStorage::from(to);
        let control = [ControlMessage::UdpGsoSegments(&segment)];
        let (fd, pieces) = (self.socket.as_raw_fd(), [IoSlice::new(bytes)]);
        let sent = sendmsg(fd, &pieces, &control, MsgFlags::empty(), Some(&to)).unwrap();
        assert_eq!(sent, bytes.len());
    }

    /// The next datagram, waited for.
    #[track_caller]
    pub fn receive(&self) -> Datagram {
        self.try_receive().unwrap_or_else(|e| panic!("{} waited in vain: {e}", self.address()))
    }

    /// The next datagram, waited for, or what the kernel says instead.
    ///
    /// # Errors
    ///
    /// Those of `recvmsg(2)`: on a connected socket what ICMP said.
    pub fn try_receive(&self) -> io::Result<Datagram> {
        loop {
            match self.receive_once() {
                Err(Errno::EINTR) => {}
                outcome => return Ok(outcome?),
            }
        }
    }

    /// The next datagram, if one is there or comes within a moment.
    pub fn receive_soon(&self) -> Option<Datagram> {
        self.socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let datagram = self.try_receive().ok();
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        datagram
    }

    /// The next datagram, if one is there.
    pub fn receive_now(&self) -> Option<Datagram> {
        self.receive_with(MsgFlags::MSG_DONTWAIT).ok()
    }

    fn receive_once(&self) -> Result<Datagram, Errno> {
        self.receive_with(MsgFlags::empty())
    }

    fn receive_with(&self, flags: MsgFlags) -> Result<Datagram, Errno> {
        let mut bytes = vec![0; 65_536];
        let mut control = nix::cmsg_space!([i32; 4]);
        let mut pieces = [IoSliceMut::new(&mut bytes)];
        let fd = self.socket.as_raw_fd();
        let message = recvmsg::<SockaddrStorage>(fd, &mut pieces, Some(&mut control), flags)?;
        let tos = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4Tos(tos) => Some(tos),
            ControlMessageOwned::Ipv6TClass(class) => Some(class as u8),
            _ => None,
        });
        let from = message.address.as_ref().and_then(socket_address).expect("a sender");
        let len = message.bytes;
        bytes.truncate(len);
        Ok(Datagram { bytes, from, tos: tos.unwrap_or(0) })
    }

    /// Asks `to`, and is answered by this backend, from where it has asked. Returns whom the backend
    /// saw.
    #[track_caller]
    pub fn is_served_by(&self, to: SocketAddr, backend: &Self) -> SocketAddr {
        self.send_to(b"question", to);
        let question = backend.answer(b"answer");
        assert_eq!(question.bytes, b"question");
        let answer = self.receive();
        assert_eq!((&answer.bytes[..], answer.from), (&b"answer"[..], to));
        question.from
    }

    /// Answers the next datagram with `reply`, and returns it.
    #[track_caller]
    pub fn answer(&self, reply: &[u8]) -> Datagram {
        let request = self.receive();
        self.send_to(reply, request.from);
        request
    }
}

fn socket_address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|v4| SocketAddrV4::from(*v4).into());
    v4.or_else(|| storage.as_sockaddr_in6().map(|v6| SocketAddrV6::from(*v6).into()))
}

/// What passes of a TOS byte: all of it, or by the portable I/O the ECN bits.
pub fn passing_tos(tos: u8) -> u8 {
    match Io::of_this_process() {
        Ok(Io::Portable) => tos & 0b11,
        _ => tos,
    }
}

/// Bytes that differ from place to place, and from `salt` to `salt`.
pub fn pattern(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ salt).collect()
}
