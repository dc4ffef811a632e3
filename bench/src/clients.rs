//! The clients: each is a connected socket with an address of its own.

use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, sendmmsg, setsockopt, sockopt};

use crate::payload::Payload;
use crate::train::{Train, receive_one};
use crate::workload::Workload;

/// Clients read so much of a train: all stamps of 64 datagrams of 64 bytes, or the first few of larger ones.
const SLOT: usize = 4_096;

/// Clients whose replies are taken in one turn.
const EVENTS: usize = 64;

/// The clients of a workload, which take turns.
pub(crate) struct Clients {
    sockets: Vec<UdpSocket>,
    next: usize,
    size: usize,
    payload: Payload,
    /// How many datagrams have been made.
    made: u64,
    /// What one send carries: one datagram, or a train of them.
    train: Vec<u8>,
    /// How many sends a client does in its turn.
    run: usize,
    headers: MultiHeaders<SockaddrIn>,
    epoch: Instant,
    epoll: Epoll,
    slot: Vec<u8>,
}

impl Clients {
    /// The clients of `workload`, spread over `targets`.
    pub(crate) fn new(workload: &Workload, targets: &[SocketAddr]) -> io::Result<Self> {
        // 127.16.0.0 and up: apart from 127.0.0.1, where balancers and backends live.
        let first = u32::from(Ipv4Addr::new(127, 16, 0, 0));
        Self::at(workload, targets, |index| Ipv4Addr::from(first + index as u32))
    }

    /// The same at addresses that `address` tells for each.
    pub(crate) fn at(
        workload: &Workload,
        targets: &[SocketAddr],
        address: impl Fn(usize) -> Ipv4Addr,
    ) -> io::Result<Self> {
        assert!(workload.size >= workload.payload.least(), "a datagram has room for its stamp");
        let epoll = Epoll::new(EpollCreateFlags::empty())?;
        let mut sockets = Vec::with_capacity(workload.clients);
        for index in 0..workload.clients {
            let socket = client(address(index), targets[index % targets.len()])?;
            if workload.train > 1 {
                setsockopt(&socket, sockopt::UdpGsoSegment, &(workload.size as i32))?;
            }
            epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
            sockets.push(socket);
        }
        Ok(Clients {
            sockets,
            next: 0,
            size: workload.size,
            payload: workload.payload,
            made: 0,
            train: vec![0; workload.size * workload.train],
            run: workload.run,
            headers: MultiHeaders::preallocate(workload.run, None),
            epoch: Instant::now(),
            epoll,
            slot: vec![0; SLOT],
        })
    }

    /// Lets the next client have its turn, with datagrams stamped `at`; answers how many sends the kernel took.
    pub(crate) fn send(&mut self, at: Instant) -> io::Result<usize> {
        let stamp = at.saturating_duration_since(self.epoch).as_nanos() as u64;
        for datagram in self.train.chunks_exact_mut(self.size) {
            self.payload.write(datagram, stamp, self.made);
            self.made += 1;
        }
        let client = &self.sockets[self.next];
        self.next = (self.next + 1) % self.sockets.len();

        let slices = vec![[IoSlice::new(&self.train)]; self.run];
        let peers = vec![None; self.run];
        match sendmmsg(
            client.as_raw_fd(),
            &mut self.headers,
            &slices,
            peers,
            [],
            MsgFlags::MSG_DONTWAIT,
        ) {
            Ok(sent) => Ok(sent.count()),
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ECONNREFUSED) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Shows the replies that have come to `arrived`, some clients at a time.
    pub(crate) fn receive(&mut self, mut arrived: impl FnMut(&Train<'_>)) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let ready = self.epoll.wait(&mut events, EpollTimeout::ZERO)?;
        for event in &events[..ready] {
            let client = &self.sockets[event.data() as usize];
            if let Some(train) = receive_one(client, &mut self.slot)? {
                arrived(&train);
            }
        }
        Ok(())
    }

    /// The moment that the stamps of the datagrams count from.
    pub(crate) fn epoch(&self) -> Instant {
        self.epoch
    }
}

/// One client, known to the balancer by its address as well as by its port.
fn client(address: Ipv4Addr, target: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((address, 0))?;
    socket.connect(target)?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::UdpGroSegment, &true)?;
    Ok(socket)
}

/// The stamps in a train, as nanoseconds, each with the number of datagrams that it stands for: those that the
/// receiving buffer could not hold go with the last one seen.
pub(crate) fn stamps<'a>(
    payload: Payload,
    train: &Train<'a>,
) -> impl Iterator<Item = (u64, usize)> + use<'a> {
    let datagrams = train.bytes.chunks(train.stride.max(payload.least()));
    let seen = datagrams.filter_map(move |datagram| payload.stamp(datagram));
    let last = seen.clone().count();
    let unseen = train.datagrams.saturating_sub(last);
    seen.enumerate().map(move |(index, stamp)| {
        let datagrams = if index + 1 == last { 1 + unseen } else { 1 };
        (stamp, datagrams)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_beyond_the_buffer_go_with_the_last_stamp_seen() {
        let mut bytes = vec![0; 48];
        bytes[0] = 7;
        bytes[32] = 9;
        let train = Train {
            peer: SockaddrIn::new(127, 0, 0, 1, 1),
            bytes: &bytes,
            stride: 32,
            datagrams: 5,
        };
        assert_eq!(stamps(Payload::Plain, &train).collect::<Vec<_>>(), [(7, 1), (9, 4)]);
    }
}
