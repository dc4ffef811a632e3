//! Trains of datagrams: what UDP GRO delivers and what UDP GSO sends.
//!
//! Everything that moves bytes in this crate, the load generator, the backends and the bare relay, moves them with
//! the two types of this file, so that all of them are equally cheap.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, RecvMsg, SockaddrIn, recvmmsg,
    recvmsg, sendmmsg, setsockopt, sockopt,
};

/// The largest train that the kernel delivers.
pub(crate) const MAX_TRAIN_BYTES: usize = 65_536;

/// The most datagrams that one GSO send may carry.
pub(crate) const MAX_TRAIN_DATAGRAMS: usize = 64;

/// How many trains are received or sent by one system call.
pub(crate) const BATCH: usize = 32;

/// The receive and send buffer of every socket here: large enough that the balancer's own buffers decide what is lost.
const SOCKET_BUFFER: usize = 32 << 20;

/// One or more datagrams of equal size (the last may be shorter) that one peer sent in a row.
#[derive(Clone, Copy)]
pub(crate) struct Train<'a> {
    /// Who sent it, or who is to get it.
    pub(crate) peer: SockaddrIn,
    /// The bytes, as far as the receiving buffer could hold them.
    pub(crate) bytes: &'a [u8],
    /// The size of each datagram.
    pub(crate) stride: usize,
    /// How many datagrams there are, counting those beyond the end of `bytes`.
    pub(crate) datagrams: usize,
}

impl<'a> Train<'a> {
    /// A train that was `length` bytes long when it arrived, of which `bytes` have been kept. There is no stride if it
    /// is a single datagram.
    pub(crate) fn new(
        peer: SockaddrIn,
        bytes: &'a [u8],
        length: usize,
        stride: Option<usize>,
    ) -> Self {
        let datagrams = stride.map_or(1, |stride| length.div_ceil(stride));
        Train { peer, bytes, stride: stride.unwrap_or(length), datagrams }
    }
}

/// The size of the datagrams in a GRO train; none if the message is a single datagram.
fn stride_of(message: &RecvMsg<'_, '_, SockaddrIn>) -> Option<usize> {
    let mut messages = message.cmsgs().ok()?;
    messages.find_map(|message| match message {
        ControlMessageOwned::UdpGroSegments(stride) => usize::try_from(stride).ok(),
        _ => None,
    })
}

fn peer_of(message: &RecvMsg<'_, '_, SockaddrIn>) -> SockaddrIn {
    message.address.unwrap_or(SockaddrIn::new(0, 0, 0, 0, 0))
}

/// Takes one train that waits in `socket`, if there is one; what `slot` cannot hold is counted but not copied.
pub(crate) fn receive_one<'a>(
    socket: &UdpSocket,
    slot: &'a mut [u8],
) -> io::Result<Option<Train<'a>>> {
    let mut control = cmsg_space!(i32);
    let mut slices = [IoSliceMut::new(&mut *slot)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
    match recvmsg(socket.as_raw_fd(), &mut slices, Some(&mut control), flags) {
        Ok(message) => {
            let (peer, length, stride) = (peer_of(&message), message.bytes, stride_of(&message));
            Ok(Some(Train::new(peer, &slot[..length.min(slot.len())], length, stride)))
        }
        Err(Errno::EAGAIN | Errno::ECONNREFUSED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Receives trains in batches.
pub(crate) struct Inbox {
    arena: Vec<u8>,
    slot: usize,
    /// Rebuilt after each receive that brought something, since the kernel shrinks the space for control messages to
    /// what it used.
    headers: Option<MultiHeaders<SockaddrIn>>,
}

impl Inbox {
    /// An inbox which keeps the first `slot` bytes of each train.
    ///
    /// The rest of a longer train is counted but not copied, which keeps a reader cheap that looks only at the front.
    pub(crate) fn new(slot: usize) -> Self {
        Inbox { arena: vec![0; slot * BATCH], slot, headers: None }
    }

    /// Takes what waits in `socket`, at most [`BATCH`] trains, and shows it to `handle`.
    pub(crate) fn receive(
        &mut self,
        socket: &UdpSocket,
        handle: impl FnOnce(&[Train<'_>]),
    ) -> io::Result<()> {
        let mut headers = self
            .headers
            .take()
            .unwrap_or_else(|| MultiHeaders::preallocate(BATCH, Some(cmsg_space!(i32))));
        let mut slots: Vec<_> =
            self.arena.chunks_exact_mut(self.slot).map(|slot| [IoSliceMut::new(slot)]).collect();
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
        match recvmmsg(socket.as_raw_fd(), &mut headers, slots.iter_mut(), flags, None) {
            Ok(messages) => {
                let trains: Vec<_> = messages
                    .map(|message| {
                        let bytes = message.iovs().next().unwrap_or_default();
                        Train::new(peer_of(&message), bytes, message.bytes, stride_of(&message))
                    })
                    .collect();
                handle(&trains);
                Ok(())
            }
            Err(Errno::EAGAIN) => {
                self.headers = Some(headers);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Sends trains in batches.
pub(crate) struct Outbox {
    single: MultiHeaders<SockaddrIn>,
    segmented: MultiHeaders<SockaddrIn>,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Outbox {
            single: MultiHeaders::preallocate(BATCH, None),
            segmented: MultiHeaders::preallocate(BATCH, Some(cmsg_space!(u16))),
        }
    }

    /// Sends each train to its peer; what the kernel has no room for is dropped, as a network would.
    pub(crate) fn send(&mut self, socket: &UdpSocket, trains: &[Train<'_>]) -> io::Result<()> {
        for alike in trains.chunk_by(|a, b| segment_of(a) == segment_of(b)) {
            for batch in alike.chunks(BATCH) {
                self.send_alike(socket, batch)?;
            }
        }
        Ok(())
    }

    /// Sends at most [`BATCH`] trains that share one segment size, since `nix` gives all messages of a call the same
    /// control messages.
    fn send_alike(&mut self, socket: &UdpSocket, trains: &[Train<'_>]) -> io::Result<()> {
        let slices: Vec<_> = trains.iter().map(|train| [IoSlice::new(train.bytes)]).collect();
        let peers: Vec<_> = trains.iter().map(|train| Some(train.peer)).collect();
        let segment = segment_of(&trains[0]);
        let segments = segment.as_ref().map(ControlMessage::UdpGsoSegments);
        let headers = if segment.is_some() { &mut self.segmented } else { &mut self.single };

        let mut done = 0;
        while done < trains.len() {
            let (slices, peers) = (&slices[done..], &peers[done..]);
            match sendmmsg(
                socket.as_raw_fd(),
                headers,
                slices,
                peers,
                segments.as_slice(),
                MsgFlags::MSG_DONTWAIT,
            ) {
                Ok(sent) => done += sent.count(),
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ECONNREFUSED) => done += 1,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// The segment size to ask the kernel for; none for a single datagram.
fn segment_of(train: &Train<'_>) -> Option<u16> {
    (train.datagrams > 1).then_some(train.stride as u16)
}

/// A socket of the benchmark: on loopback, with GRO and with buffers that do not overflow.
pub(crate) fn bind(address: Ipv4Addr, port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(SocketAddrV4::new(address, port))?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::UdpGroSegment, &true)?;
    // Only root may exceed net.core.rmem_max; anyone else gets as much as that allows.
    setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER)
        .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &SOCKET_BUFFER))?;
    setsockopt(&socket, sockopt::SndBufForce, &SOCKET_BUFFER)
        .or_else(|_| setsockopt(&socket, sockopt::SndBuf, &SOCKET_BUFFER))?;
    Ok(socket)
}
