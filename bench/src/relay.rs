//! Bare relays: what a UDP balancer costs when it does nothing but move bytes.
//!
//! The one in this file is of connected sockets: one thread, one connected socket per client, backends in turn. It knows no limits and no timers, and closes
//! nothing: the distance to it is the price of being a balancer.

mod pool;

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::ops::Range;
use std::os::fd::AsRawFd;

use clap::ValueEnum;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg, setsockopt, sockopt};

use crate::train::{Inbox, MAX_TRAIN_BYTES, MAX_TRAIN_DATAGRAMS, Outbox, Train, bind, receive_one};

/// The payload that fits into one UDP send.
const MAX_SEND_BYTES: usize = 65_507;

/// Replies are collected here, one behind the other, and leave together.
const ARENA_BYTES: usize = 1 << 20;

/// Sockets that are looked after in one turn.
const EVENTS: usize = 256;

/// The token of the listener; all others are the index of an upstream.
const LISTENER: u64 = u64::MAX;

/// What the sockets towards backends are like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Design {
    /// Each is connected, and has one flow.
    #[default]
    Connected,
    /// None is connected, and each has a flow for every backend.
    Pool,
    /// None is connected, and each has a question of every ID for every backend.
    Ids,
}

/// Proxies what comes to `listen` until the process is killed.
pub(crate) fn run(
    design: Design,
    responses: u32,
    listen: SocketAddrV4,
    backends: &[SocketAddrV4],
) -> io::Result<()> {
    match design {
        Design::Connected => connected(listen, backends),
        Design::Pool => pool::run(pool::Told::BySender, responses, listen, backends),
        Design::Ids => pool::run(pool::Told::ById, responses, listen, backends),
    }
}

fn connected(listen: SocketAddrV4, backends: &[SocketAddrV4]) -> io::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    let listener = bind(*listen.ip(), listen.port())?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;

    let mut upstreams =
        Upstreams { epoll, backends, by_client: HashMap::new(), sockets: Vec::new() };
    let mut replies = Replies::new();
    let mut inbox = Inbox::new(MAX_TRAIN_BYTES);
    let mut events = [EpollEvent::empty(); EVENTS];
    loop {
        let ready = upstreams.epoll.wait(&mut events, EpollTimeout::NONE)?;
        for event in &events[..ready] {
            if event.data() == LISTENER {
                let mut forwarded = Ok(());
                inbox.receive(&listener, |trains| forwarded = forward(&mut upstreams, trains))?;
                forwarded?;
            } else {
                let (client, upstream) = &upstreams.sockets[event.data() as usize];
                replies.take(upstream, &listener, |_, _| Some(*client))?;
            }
        }
        replies.flush(&listener)?;
    }
}

/// The connected sockets, each of which stands for one client.
struct Upstreams<'b> {
    epoll: Epoll,
    backends: &'b [SocketAddrV4],
    by_client: HashMap<SocketAddrV4, usize>,
    sockets: Vec<(SockaddrIn, UdpSocket)>,
}

impl Upstreams<'_> {
    fn of(&mut self, client: SockaddrIn) -> io::Result<&UdpSocket> {
        let index = match self.by_client.get(&client.into()) {
            Some(&index) => index,
            None => self.open(client)?,
        };
        Ok(&self.sockets[index].1)
    }

    fn open(&mut self, client: SockaddrIn) -> io::Result<usize> {
        let index = self.sockets.len();
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::UdpGroSegment, &true)?;
        socket.connect(self.backends[index % self.backends.len()])?;
        self.epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
        self.sockets.push((client, socket));
        self.by_client.insert(client.into(), index);
        Ok(index)
    }
}

/// Sends trains to the backends of their clients; neighbours that belong together leave as one.
fn forward(upstreams: &mut Upstreams<'_>, mut trains: &[Train<'_>]) -> io::Result<()> {
    while let Some(first) = trains.first() {
        let (run, rest) = trains.split_at(run_length(trains));
        let upstream = upstreams.of(first.peer)?;
        send_run(upstream, run)?;
        trains = rest;
    }
    Ok(())
}

/// How many trains at the front come from one client, in datagrams of one size, and fit into one send.
fn run_length(trains: &[Train<'_>]) -> usize {
    let first = &trains[0];
    let (mut bytes, mut datagrams) = (first.bytes.len(), first.datagrams);
    let mut length = 1;
    for train in &trains[1..] {
        let full = bytes == datagrams * first.stride;
        bytes += train.bytes.len();
        datagrams += train.datagrams;
        let fits = bytes <= MAX_SEND_BYTES && datagrams <= MAX_TRAIN_DATAGRAMS;
        let alike = train.peer == first.peer && train.stride == first.stride && first.stride > 0;
        if !(full && fits && alike) {
            break;
        }
        length += 1;
    }
    length
}

fn send_run(upstream: &UdpSocket, run: &[Train<'_>]) -> io::Result<()> {
    let stride = run[0].stride as u16;
    let segmented = run.len() > 1 || run[0].datagrams > 1;
    let control = segmented.then_some(ControlMessage::UdpGsoSegments(&stride));
    let send = |slices: &[IoSlice<'_>]| {
        sendmsg::<SockaddrIn>(
            upstream.as_raw_fd(),
            slices,
            control.as_slice(),
            MsgFlags::MSG_DONTWAIT,
            None,
        )
    };
    let sent = match run {
        [train] => send(&[IoSlice::new(train.bytes)]),
        _ => send(&run.iter().map(|train| IoSlice::new(train.bytes)).collect::<Vec<_>>()),
    };
    match sent {
        Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ECONNREFUSED) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Replies on their way to the clients.
struct Replies {
    arena: Vec<u8>,
    used: usize,
    waiting: Vec<Reply>,
    outbox: Outbox,
}

/// A train in the arena.
struct Reply {
    client: SockaddrIn,
    range: Range<usize>,
    stride: Option<usize>,
}

impl Replies {
    fn new() -> Self {
        Replies {
            arena: vec![0; ARENA_BYTES],
            used: 0,
            waiting: Vec::with_capacity(EVENTS),
            outbox: Outbox::new(),
        }
    }

    /// Receives one train from a backend. An upstream that has more is ready again in the next turn.
    /// Whose it is `client_of` says of who sent it.
    fn take(
        &mut self,
        upstream: &UdpSocket,
        listener: &UdpSocket,
        client_of: impl FnOnce(SockaddrIn, &Train<'_>) -> Option<SockaddrIn>,
    ) -> io::Result<()> {
        if self.arena.len() - self.used < MAX_TRAIN_BYTES {
            self.flush(listener)?;
        }
        if let Some(train) = receive_one(upstream, &mut self.arena[self.used..])? {
            let Some(client) = client_of(train.peer, &train) else { return Ok(()) };
            let range = self.used..self.used + train.bytes.len();
            let stride = (train.datagrams > 1).then_some(train.stride);
            self.used = range.end;
            self.waiting.push(Reply { client, range, stride });
        }
        Ok(())
    }

    /// Sends what has been collected.
    fn flush(&mut self, listener: &UdpSocket) -> io::Result<()> {
        let trains: Vec<_> = self.waiting.iter().map(|reply| reply.train(&self.arena)).collect();
        self.outbox.send(listener, &trains)?;
        self.waiting.clear();
        self.used = 0;
        Ok(())
    }
}

impl Reply {
    fn train<'a>(&self, arena: &'a [u8]) -> Train<'a> {
        let bytes = &arena[self.range.clone()];
        Train::new(self.client, bytes, bytes.len(), self.stride)
    }
}
