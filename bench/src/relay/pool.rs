//! Bare relays of unconnected sockets: the limits of balancers whose flows share sockets.
//!
//! A flow takes a socket on which nothing else would be told from its answers: in a *pool* a socket on
//! which its backend has no flow, so that the sender of an answer says whose it is; with *ids* one
//! on which its backend has no question of that ID. Sockets are opened where there is none left, and
//! never closed. There is no quarantine, and no limit.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::SockaddrIn;

use super::{EVENTS, LISTENER, Replies};
use crate::train::{Inbox, MAX_TRAIN_BYTES, Outbox, Train, bind};

/// How answers are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// By who sends them.
    BySender,
    /// By the first two bytes, too, as those of DNS are.
    ById,
}

/// Proxies what comes to `listen` until the process is killed. A flow of a pool ends after so many
/// `responses`, if that is not 0; a question always after its answer.
pub(super) fn run(
    told: Told,
    responses: u32,
    listen: SocketAddrV4,
    backends: &[SocketAddrV4],
) -> io::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    let listener = bind(*listen.ip(), listen.port())?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut flows = Flows::new(told, responses, backends.len());
    let backends: Vec<SockaddrIn> = backends.iter().map(|&backend| backend.into()).collect();
    let mut sockets: Vec<UdpSocket> = Vec::new();

    let (mut inbox, mut answers) = (Inbox::new(MAX_TRAIN_BYTES), Inbox::new(MAX_TRAIN_BYTES));
    let (mut outbox, mut replies) = (Outbox::new(), Replies::new());
    let mut events = [EpollEvent::empty(); EVENTS];
    loop {
        let ready = epoll.wait(&mut events, EpollTimeout::NONE)?;
        for event in &events[..ready] {
            let at = event.data();
            let mut done = Ok(());
            if at == LISTENER {
                inbox.receive(&listener, |trains| {
                    done =
                        forward(&mut flows, &mut sockets, &epoll, &backends, &mut outbox, trains);
                })?;
            } else if told == Told::BySender {
                let socket = &sockets[at as usize];
                replies.take(socket, &listener, |backend, answer| {
                    let backend = backends.iter().position(|&other| other == backend)?;
                    flows.answered(at as usize, backend, answer)
                })?;
            } else {
                let socket = &sockets[at as usize];
                answers.receive(socket, |trains| {
                    let told = trains.iter().flat_map(datagrams).filter_map(|answer| {
                        let backend = backends.iter().position(|&other| other == answer.peer)?;
                        let client = flows.answered(at as usize, backend, &answer)?;
                        Some(Train { peer: client, ..answer })
                    });
                    done = outbox.send(&listener, &told.collect::<Vec<_>>());
                })?;
            }
            done?;
        }
        replies.flush(&listener)?;
    }
}

/// Sends trains on, those that leave by one socket together.
fn forward(
    flows: &mut Flows,
    sockets: &mut Vec<UdpSocket>,
    epoll: &Epoll,
    backends: &[SockaddrIn],
    outbox: &mut Outbox,
    trains: &[Train<'_>],
) -> io::Result<()> {
    let mut leaving = Vec::with_capacity(trains.len());
    let singly = flows.told == Told::ById;
    let parts =
        trains.iter().flat_map(|train| if singly { datagrams(train) } else { vec![*train] });
    for train in parts {
        let (socket, backend) = flows.index_of(&train);
        while sockets.len() <= socket {
            let new = bind(Ipv4Addr::LOCALHOST, 0)?;
            epoll.add(&new, EpollEvent::new(EpollFlags::EPOLLIN, sockets.len() as u64))?;
            sockets.push(new);
        }
        leaving.push((socket, Train { peer: backends[backend], ..train }));
    }
    leaving.sort_by_key(|&(socket, _)| socket);
    for together in leaving.chunk_by(|a, b| a.0 == b.0) {
        let trains: Vec<_> = together.iter().map(|&(_, train)| train).collect();
        outbox.send(&sockets[together[0].0], &trains)?;
    }
    Ok(())
}

/// The datagrams of a train, each as a train of its own.
fn datagrams<'a>(train: &Train<'a>) -> Vec<Train<'a>> {
    let peer = train.peer;
    let singly = train.bytes.chunks(train.stride.max(1));
    singly.map(|bytes| Train { peer, bytes, stride: bytes.len(), datagrams: 1 }).collect()
}

/// A flow: its client, and how many answers it has had.
#[derive(Clone, Copy)]
struct Flow {
    client: SockaddrIn,
    answers: u32,
}

/// Which flow is where.
struct Flows {
    told: Told,
    responses: u32,
    /// By client, in a pool.
    indices: HashMap<SocketAddrV4, (usize, usize)>,
    /// By socket and backend, and by ID where those count.
    flows: HashMap<(usize, usize, u16), Flow>,
    /// The sockets on which a backend has no flow, in a pool.
    free: Vec<Vec<usize>>,
    /// How many sockets there are.
    sockets: usize,
    next_backend: usize,
}

impl Flows {
    fn new(told: Told, responses: u32, backends: usize) -> Self {
        Self {
            told,
            responses,
            indices: HashMap::new(),
            flows: HashMap::new(),
            free: vec![Vec::new(); backends],
            sockets: 0,
            next_backend: 0,
        }
    }

    fn turn(&mut self) -> usize {
        self.next_backend = (self.next_backend + 1) % self.free.len();
        self.next_backend
    }

    /// The socket and the backend of a client's train.
    fn index_of(&mut self, train: &Train<'_>) -> (usize, usize) {
        let flow = Flow { client: train.peer, answers: 0 };
        if self.told == Told::ById {
            let (id, backend) = (id_of(train), self.turn());
            let is_taken = |socket: &usize| self.flows.contains_key(&(*socket, backend, id));
            let socket = (0..).find(|socket| !is_taken(socket)).unwrap_or(0);
            self.flows.insert((socket, backend, id), flow);
            return (socket, backend);
        }
        if let Some(&index) = self.indices.get(&train.peer.into()) {
            return index;
        }
        let backend = self.turn();
        let socket = self.free[backend].pop().unwrap_or_else(|| {
            let new = self.sockets;
            let others = (0..self.free.len()).filter(|&other| other != backend);
            others.for_each(|other| self.free[other].push(new));
            self.sockets += 1;
            new
        });
        self.flows.insert((socket, backend, 0), flow);
        self.indices.insert(train.peer.into(), (socket, backend));
        (socket, backend)
    }

    /// Whose a backend's train is.
    fn answered(&mut self, socket: usize, backend: usize, train: &Train<'_>) -> Option<SockaddrIn> {
        if self.told == Told::ById {
            return self.flows.remove(&(socket, backend, id_of(train))).map(|flow| flow.client);
        }
        let flow = self.flows.get_mut(&(socket, backend, 0))?;
        flow.answers += train.datagrams as u32;
        let Flow { client, answers } = *flow;
        if self.responses > 0 && answers >= self.responses {
            self.flows.remove(&(socket, backend, 0));
            self.indices.remove(&client.into());
            self.free[backend].push(socket);
        }
        Some(client)
    }
}

fn id_of(train: &Train<'_>) -> u16 {
    train.bytes.first_chunk().map_or(0, |id| u16::from_be_bytes(*id))
}
