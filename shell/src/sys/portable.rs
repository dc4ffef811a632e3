//! Many datagrams with as few calls as the system has, whichever it is: by `quinn-udp`, which knows
//! what Linux, the BSDs, macOS and Windows can do.
//!
//! Of a datagram it tells and sets the ECN bits and the local address; not the DSCP, nor the time to
//! live, nor what the kernel has lost, nor of whom the network has said something.

mod pollable;

use std::array;
use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};

use flowgate_core::LocalAddr;
use quinn_udp::{BATCH_SIZE, EcnCodepoint, Transmit, UdpSockRef, UdpSocketState};

use super::arena::{FreeSlots, RecvMeta};
use super::errno::{self, SendError};
use super::fd::AsFd;
use super::message::{Batch, Message};
use super::sockopt;

pub use pollable::Pollable;

/// The bits of the TOS byte that are ECN's (RFC 3168).
const ECN: u8 = 0b11;

/// What all sockets share: what the system is found to be able to do, which takes two sockets to find
/// out, and memory to put together what is made of several pieces.
#[derive(Debug)]
pub struct Calls {
    /// `None` where `quinn-udp` cannot do with the system, as with Windows before version 10.
    state: Option<UdpSocketState>,
    scratch: Vec<u8>,
}

impl Calls {
    /// Finds out what the system can do.
    ///
    /// # Errors
    ///
    /// Those of `socket(2)` and `setsockopt(2)`: out of descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { state: find_out()?, scratch: Vec::new() })
    }
}

fn find_out() -> io::Result<Option<UdpSocketState>> {
    let any = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    match UdpSocketState::new(UdpSockRef::from(&any)) {
        Ok(state) => Ok(Some(state)),
        Err(_) if cfg!(windows) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is known of a socket that datagrams are sent and received by.
#[derive(Debug)]
pub struct Datagrams {
    socket: Pollable,
    v6: bool,
    /// Whether the address that a datagram was sent to is in doubt.
    is_wildcard: bool,
    /// Whom it is connected to.
    peer: Option<SocketAddr>,
    /// The time to live that it sends with, where nothing else is said beside a message.
    own_ttl: Cell<Option<u8>>,
    /// The one that it has been given last.
    ttl: Cell<Option<u8>>,
    /// Errors that came after something else had been done, for the next call to tell.
    of_receive: RefCell<Option<io::Error>>,
    of_send: RefCell<Option<io::Error>>,
}

super::fd::has_socket!(Datagrams, socket);

impl Datagrams {
    /// Asks for all that is relied on, of a socket that is bound or connected.
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)` and `getsockname(2)`.
    pub fn new(
        socket: impl Into<Pollable>,
        v6: bool,
        peer: Option<SocketAddr>,
    ) -> io::Result<Self> {
        let socket = socket.into();
        let local = socket2::SockRef::from(&socket).local_addr()?.as_socket();
        let is_wildcard = peer.is_none() && local.is_some_and(|local| local.ip().is_unspecified());
        sockopt::prepare_portable(socket.as_fd(), v6, is_wildcard)?;
        Ok(Self {
            socket,
            v6,
            is_wildcard,
            peer,
            own_ttl: Cell::new(None),
            ttl: Cell::new(None),
            of_receive: RefCell::default(),
            of_send: RefCell::default(),
        })
    }

    /// The socket, for a poll to tell of.
    pub const fn socket(&self) -> &Pollable {
        &self.socket
    }

    /// Whether it is a socket of IPv6, which may send IPv4 too.
    pub const fn is_v6(&self) -> bool {
        self.v6
    }

    /// Sends with this time to live or hop limit from now on.
    ///
    /// # Errors
    ///
    /// Those of `setsockopt(2)`.
    pub fn set_ttl(&self, ttl: u8) -> io::Result<()> {
        self.own_ttl.set(Some(ttl));
        self.send_with(Some(ttl))
    }

    fn send_with(&self, ttl: Option<u8>) -> io::Result<()> {
        let Some(wanted) = ttl.filter(|_| ttl != self.ttl.get()) else { return Ok(()) };
        let options = socket2::SockRef::from(&self.socket);
        if self.v6 {
            options.set_unicast_hops_v6(wanted.into())?;
        } else {
            options.set_ttl_v4(wanted.into())?;
        }
        self.ttl.set(ttl);
        Ok(())
    }

    /// Receives into as many slots as there are bursts for, without blocking, and says how many it
    /// filled.
    ///
    /// # Errors
    ///
    /// Those of the system: `WouldBlock` where nothing waits. One that comes after some datagrams is
    /// kept back for the next call.
    pub fn receive(&self, calls: &Calls, free: &mut FreeSlots<'_>) -> io::Result<usize> {
        if let Some(error) = self.of_receive.take() {
            return Err(error);
        }
        let (mut filled, mut ignored) = (0, 0);
        while filled < free.len() {
            let mut metas = [quinn_udp::RecvMeta::default(); BATCH_SIZE];
            let mut payloads: [_; BATCH_SIZE] = array::from_fn(|_| IoSliceMut::new(&mut []));
            let rooms = payloads.iter_mut().zip(free.payloads(filled));
            let asked = rooms.map(|(payload, room)| *payload = IoSliceMut::new(room)).count();
            let (socket, payloads) = (UdpSockRef::from(&self.socket), &mut payloads[..asked]);
            let received = match &calls.state {
                Some(state) => self.socket.call(|| state.recv(socket, payloads, &mut metas)),
                None => self.receive_plainly(payloads, &mut metas),
            };
            match received {
                Ok(received) => {
                    for meta in &metas[..received] {
                        free.set(filled, self.meta(meta));
                        filled += 1;
                    }
                    // Where they are received one by one, only the next call tells that none is left.
                    if received < asked {
                        break;
                    }
                }
                // Of whom it was said nobody knows, where there are several.
                Err(error) if self.peer.is_none() && errno::is_of_a_send(&error) => {
                    ignored += 1;
                    if ignored > MAX_IGNORED {
                        return if filled == 0 { Err(error) } else { Ok(filled) };
                    }
                }
                Err(error) if filled == 0 => return Err(error),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    self.of_receive.replace(Some(error));
                    break;
                }
            }
        }
        Ok(filled)
    }

    /// Receives one datagram, of which no more is known than who has sent it.
    fn receive_plainly(
        &self,
        payloads: &mut [IoSliceMut<'_>],
        metas: &mut [quinn_udp::RecvMeta],
    ) -> io::Result<usize> {
        let ([payload, ..], [meta, ..]) = (payloads, metas) else { return Ok(0) };
        let (len, addr) = self.socket.receive_from(payload)?;
        *meta = quinn_udp::RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
        Ok(1)
    }

    fn meta(&self, meta: &quinn_udp::RecvMeta) -> RecvMeta {
        let local = meta.dst_ip.filter(|_| self.is_wildcard).map(|ip| ip.to_canonical());
        let is_burst = meta.stride < meta.len;
        RecvMeta {
            len: meta.len,
            source: Some(as_inside(meta.addr)),
            // Nothing is sent from a group's address.
            local: local.filter(|ip| !ip.is_multicast()).map(|ip| LocalAddr { ip, interface: 0 }),
            segment: if is_burst { meta.stride as u16 } else { 0 },
            tos: meta.ecn.map_or(0, |ecn| ecn as u8),
            ..RecvMeta::default()
        }
    }

    /// Sends messages in order, without blocking, and says how many the system took.
    ///
    /// # Errors
    ///
    /// Those of the system for the first message. One that a later message meets is told by the next
    /// call, of which that message is the first.
    pub fn send(&self, calls: &mut Calls, batch: Batch<'_>) -> io::Result<usize> {
        if let Some(error) = self.of_send.take() {
            return Err(error);
        }
        for (sent, message) in batch.messages.iter().enumerate() {
            let pieces = &batch.pieces[message.pieces.clone()];
            match self.send_one(calls, pieces, message) {
                Ok(()) => {}
                Err(error) if sent == 0 => return Err(error),
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        self.of_send.replace(Some(error));
                    }
                    return Ok(sent);
                }
            }
        }
        Ok(batch.messages.len())
    }

    fn send_one(
        &self,
        calls: &mut Calls,
        pieces: &[IoSlice<'_>],
        message: &Message,
    ) -> io::Result<()> {
        if message.source.is_some() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // A name for what the system would call an invalid argument, for which quinn-udp would leave
        // out the ECN bits of all that follows.
        let destination = message.destination.or(self.peer).filter(|to| to.port() != 0);
        let destination = destination.ok_or(io::ErrorKind::InvalidInput)?;
        let Calls { state, scratch } = calls;
        let contents = match pieces {
            [whole] => &**whole,
            pieces => {
                scratch.clear();
                pieces.iter().for_each(|piece| scratch.extend_from_slice(piece));
                scratch
            }
        };
        let segment_size = Some(usize::from(message.segment)).filter(|size| *size > 0);
        let segments = segment_size.map_or(1, |size| contents.len().div_ceil(size));
        if segments > state.as_ref().map_or(1, UdpSocketState::max_gso_segments) {
            return Err(errno::no_gso());
        }
        self.send_with(message.ttl.or(self.own_ttl.get()))?;
        let transmit = Transmit {
            destination: as_outside(destination, self.v6),
            ecn: EcnCodepoint::from_bits(message.tos & ECN),
            contents,
            segment_size,
            src_ip: message.local.map(|local| local.ip),
        };
        let Some(known) = state else {
            return self.socket.send_to(contents, transmit.destination);
        };
        let outcome =
            self.socket.call(|| known.try_send(UdpSockRef::from(&self.socket), &transmit));
        let may_have_changed = |error: &io::Error| {
            error.kind() == io::ErrorKind::InvalidInput
                || matches!(errno::on_send(error, segments > 1), SendError::NoGso { .. })
        };
        if outcome.as_ref().is_err_and(may_have_changed) {
            // It was about this datagram or this way, not about all that quinn-udp leaves out from
            // then on.
            *state = find_out()?;
        }
        outcome
    }
}

/// How many errors of what was sent are passed over by one receive.
const MAX_IGNORED: usize = 64;

/// An address as it is inside Flowgate, where one of IPv4 is never mapped.
fn as_inside(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => address,
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(ip) => (ip, v6.port()).into(),
            None => SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into(),
        },
    }
}

/// An address as a socket of IPv6 takes it, if it is one.
fn as_outside(address: SocketAddr, v6_socket: bool) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if v6_socket => (ip.to_ipv6_mapped(), address.port()).into(),
        _ => address,
    }
}

#[cfg(test)]
mod tests;
