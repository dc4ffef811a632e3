//! A kernel made of queues, for the real shard to run on: it does what Linux may do, partial work
//! and errors included, in an order that a seed decides.
//!
//! Readiness is edge-triggered as in `epoll(7)`: a socket is put on the ready list when something
//! about it changes, is taken off when it is told, and what is told is how it stands at that time.
//! A shard that stops reading too early therefore strands datagrams here exactly as it would there.

mod faults;
mod socket;

use std::cell::{Ref, RefCell, RefMut};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use flowgate::datapath::kernel::Kernel;
use flowgate::datapath::shard::Readiness;
use flowgate::datapath::token::Token;
use flowgate::sys::arena::FreeSlots;
use flowgate::sys::message::{Batch, QueuedError};
use flowgate_core::config::Source;
use flowgate_core::{Direction, LocalSource};
use nix::errno::Errno;

pub use faults::{Faults, SendFault};
pub use socket::{Incoming, Sent, Usage};
use socket::{SimulatedSocket, datagrams_of};

/// Names a socket of a [`FakeKernel`]; never used again after the socket closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId(usize);

impl SocketId {
    /// The how-many-th socket it was that opened, from 0 on.
    pub const fn number(self) -> usize {
        self.0
    }
}

/// A handle to the kernel: the shard has one, and the test that plays the network another.
#[derive(Clone, Default)]
pub struct FakeKernel(Rc<RefCell<State>>);

/// An open socket, closed when dropped.
pub struct FakeSocket {
    id: SocketId,
    kernel: FakeKernel,
}

#[derive(Default)]
struct State {
    sockets: Vec<SimulatedSocket>,
    /// The sockets about which there is news, in the order in which it came.
    ready: VecDeque<SocketId>,
    faults: Faults,
    /// How many datagrams sockets handed out, by direction.
    received: [u64; 2],
}

impl FakeKernel {
    /// A kernel that fails as `faults` say.
    pub fn new(faults: Faults) -> Self {
        Self(Rc::new(RefCell::new(State { faults, ..State::default() })))
    }

    /// Opens the socket of a listener.
    pub fn listen(&self, token: Token) -> FakeSocket {
        self.open(None, token)
    }

    /// How the kernel fails from now on.
    pub fn faults(&self) -> RefMut<'_, Faults> {
        RefMut::map(self.0.borrow_mut(), |state| &mut state.faults)
    }

    /// Has datagrams arrive at a socket.
    pub fn arrive(&self, socket: SocketId, incoming: Incoming) {
        self.socket_mut(socket).incoming.push_back(incoming);
        self.wake(socket);
    }

    /// Has an ICMP error arrive at a socket.
    pub fn report_error(&self, socket: SocketId, error: Errno) {
        self.socket_mut(socket).pending_error = Some(error);
        self.wake(socket);
    }

    /// Has a socket lose datagrams since its receive buffer is full.
    pub fn lose(&self, socket: SocketId, datagrams: u32) {
        self.socket_mut(socket).drops += datagrams;
    }

    /// Leaves room for this many more datagrams in a socket's send buffer.
    pub fn set_room(&self, socket: SocketId, datagrams: usize) {
        self.socket_mut(socket).room = datagrams;
        if datagrams > 0 {
            self.wake(socket);
        }
    }

    /// Refuses GSO batches to a destination, or on a connected socket to its peer, or none any more.
    pub fn refuse_gso(&self, socket: SocketId, to: SocketAddr, refusal: Option<Errno>) {
        let mut socket = self.socket_mut(socket);
        match refusal {
            Some(errno) => socket.refuses_gso.insert(to, errno),
            None => socket.refuses_gso.remove(&to),
        };
    }

    /// Puts a socket on the ready list though nothing has changed.
    pub fn wake(&self, socket: SocketId) {
        self.0.borrow_mut().wake(socket);
    }

    /// What `epoll_wait(2)` would return: at most `max` events.
    pub fn poll(&self, max: usize) -> Vec<(Token, Readiness)> {
        let mut state = self.0.borrow_mut();
        let mut events = Vec::new();
        while events.len() < max
            && let Some(id) = state.ready.pop_front()
        {
            let socket = &state.sockets[id.0];
            let is_failed = socket.pending_error.is_some();
            let readiness = Readiness {
                readable: !socket.incoming.is_empty() || is_failed,
                writable: socket.is_watched && socket.room > 0,
                error: is_failed,
            };
            if socket.is_open && (readiness.readable || readiness.writable) {
                events.push((socket.token, readiness));
            }
        }
        events
    }

    /// Whether a poll would find news.
    pub fn has_news(&self) -> bool {
        !self.0.borrow().ready.is_empty()
    }

    /// The open upstream sockets, oldest first, and the backends they are connected to.
    pub fn upstreams(&self) -> Vec<(SocketId, SocketAddr)> {
        let state = self.0.borrow();
        let open = state.sockets.iter().enumerate().filter(|(_, socket)| socket.is_open);
        open.filter_map(|(id, socket)| Some((SocketId(id), socket.peer?))).collect()
    }

    /// The socket that a client has for itself now, if it has one.
    pub fn own_socket_of(&self, client: SocketAddr) -> Option<SocketId> {
        let state = self.0.borrow();
        let mut sockets = state.sockets.iter();
        let is_its = |socket: &SimulatedSocket| {
            socket.is_open && !socket.has_left && socket.client == Some(client)
        };
        let own = sockets.position(is_its).map(SocketId);
        assert!(sockets.all(|socket| !is_its(socket)), "{client} has two sockets");
        own
    }

    /// All sockets that clients have or had for themselves.
    pub fn own_sockets(&self) -> Vec<SocketId> {
        let state = self.0.borrow();
        let sockets = state.sockets.iter().enumerate();
        sockets.filter(|(_, socket)| socket.client.is_some()).map(|(id, _)| SocketId(id)).collect()
    }

    /// Takes away what left by a socket, which may be closed, since the last time.
    pub fn take_sent(&self, socket: SocketId) -> Vec<Sent> {
        std::mem::take(&mut self.socket_mut(socket).sent)
    }

    /// All sockets ever opened, with the peers they are or were connected to.
    pub fn sockets(&self) -> Vec<(SocketId, Option<SocketAddr>)> {
        let state = self.0.borrow();
        state.sockets.iter().enumerate().map(|(id, socket)| (SocketId(id), socket.peer)).collect()
    }

    /// How many datagrams were read from sockets, on their way in `direction`.
    pub fn received(&self, direction: Direction) -> u64 {
        self.0.borrow().received[direction as usize]
    }

    /// How many datagrams wait to be read from a socket.
    pub fn unread(&self, socket: SocketId) -> usize {
        self.socket(socket).incoming.iter().map(Incoming::datagrams).sum()
    }

    /// How often a socket's time to live was set since it was opened.
    pub fn ttl_changes(&self, socket: SocketId) -> u64 {
        self.socket(socket).ttl_changes
    }

    /// How a socket was used to send so far.
    pub fn usage(&self, socket: SocketId) -> Usage {
        self.socket(socket).usage
    }

    /// Whether the shard asked to be told when a socket can be written to.
    pub fn is_watched(&self, socket: SocketId) -> bool {
        self.socket(socket).is_watched
    }

    fn open(&self, peer: Option<SocketAddr>, token: Token) -> FakeSocket {
        let mut state = self.0.borrow_mut();
        state.sockets.push(SimulatedSocket::new(peer, token));
        FakeSocket { id: SocketId(state.sockets.len() - 1), kernel: self.clone() }
    }

    fn socket(&self, id: SocketId) -> Ref<'_, SimulatedSocket> {
        Ref::map(self.0.borrow(), |state| &state.sockets[id.0])
    }

    fn socket_mut(&self, id: SocketId) -> RefMut<'_, SimulatedSocket> {
        RefMut::map(self.0.borrow_mut(), |state| &mut state.sockets[id.0])
    }
}

impl State {
    fn wake(&mut self, socket: SocketId) {
        if self.sockets[socket.0].is_open && !self.ready.contains(&socket) {
            self.ready.push_back(socket);
        }
    }

    fn receive(&mut self, id: SocketId, slots: &mut FreeSlots<'_>) -> Result<usize, Errno> {
        let socket = &mut self.sockets[id.0];
        if let Some(errno) = self.faults.on_receive().or_else(|| socket.pending_error.take()) {
            return Err(errno);
        }
        let mut filled = 0;
        while filled < slots.len()
            && let Some(incoming) = socket.incoming.pop_front()
        {
            slots.fill(filled, &incoming.bytes, incoming.meta());
            filled += 1;
            self.received[socket.direction() as usize] += incoming.datagrams() as u64;
            if socket.peer.is_some()
                && let Some(errno) = self.faults.amid_receive()
            {
                // It arrived just now: the batch ends, and the next call returns it.
                socket.pending_error = Some(errno);
                self.wake(id);
                break;
            }
        }
        if filled == 0 { Err(Errno::EAGAIN) } else { Ok(filled) }
    }

    fn send(&mut self, id: SocketId, batch: Batch<'_>) -> Result<usize, Errno> {
        self.sockets[id.0].usage.calls += 1;
        let mut most = batch.messages.len();
        match self.faults.on_send() {
            Some(SendFault::Error(errno)) => {
                // Where it was full for a moment, the end of that moment is news.
                if errno == Errno::EAGAIN {
                    self.wake(id);
                }
                return Err(errno);
            }
            Some(SendFault::Part(part)) => most = part.clamp(1, most),
            None => {}
        }
        let mut taken = 0;
        for message in &batch.messages[..most] {
            match self.sockets[id.0].send(message, datagrams_of(batch, message)) {
                Ok(()) => taken += 1,
                Err(errno) if taken == 0 => return Err(errno),
                // An error that a later message meets is not told.
                Err(_) => break,
            }
        }
        Ok(taken)
    }
}

impl FakeSocket {
    /// Its name.
    pub const fn id(&self) -> SocketId {
        self.id
    }
}

impl Drop for FakeSocket {
    fn drop(&mut self) {
        let mut socket = self.kernel.socket_mut(self.id);
        socket.is_open = false;
        socket.incoming.clear();
    }
}

impl Kernel for FakeKernel {
    type Socket = FakeSocket;

    fn open_upstream(
        &mut self,
        (backend, _): (Option<SocketAddr>, bool),
        _source: LocalSource,
        ttl: u8,
        _receive_buffer: usize,
        token: Token,
    ) -> io::Result<FakeSocket> {
        let fate = self.faults().on_open();
        if let Some(errno) = fate {
            return Err(errno.into());
        }
        let socket = self.open(backend, token);
        self.socket_mut(socket.id).ttl = ttl;
        Ok(socket)
    }

    fn renew_source(&mut self, _: &FakeSocket, _: SocketAddr, _: LocalSource) -> io::Result<bool> {
        // Addresses stay where they are.
        Ok(false)
    }

    fn take_errors(&mut self, _: &FakeSocket) -> Vec<QueuedError> {
        // What ICMP says is told by the next call.
        Vec::new()
    }

    fn receive_drops(&self, socket: &FakeSocket) -> u32 {
        self.socket(socket.id).drops
    }

    fn open_egress_socket(
        &mut self,
        _v6: bool,
        _: &Source,
        token: Token,
    ) -> io::Result<FakeSocket> {
        let fate = self.faults().on_open();
        fate.map_or_else(|| Ok(self.open(None, token)), |errno| Err(errno.into()))
    }

    fn open_client(
        &mut self,
        _: &FakeSocket,
        client: SocketAddr,
        token: Token,
    ) -> io::Result<FakeSocket> {
        if let Some(errno) = self.faults().on_open() {
            return Err(errno.into());
        }
        let socket = self.open(None, token);
        self.socket_mut(socket.id).client = Some(client);
        Ok(socket)
    }

    fn leave_client(&mut self, socket: &FakeSocket) -> u64 {
        self.socket_mut(socket.id).has_left = true;
        self.socket(socket.id).drops.into()
    }

    fn is_half_full(&self, _: &FakeSocket) -> bool {
        false
    }

    fn most_queued(&self, socket: &FakeSocket) -> u64 {
        self.socket(socket.id).incoming.len() as u64
    }

    fn set_ttl(&mut self, socket: &FakeSocket, ttl: u8) -> io::Result<()> {
        let mut socket = self.socket_mut(socket.id);
        socket.ttl = ttl;
        socket.ttl_changes += 1;
        Ok(())
    }

    fn receive(&mut self, socket: &FakeSocket, slots: &mut FreeSlots<'_>) -> io::Result<usize> {
        Ok(self.0.borrow_mut().receive(socket.id, slots)?)
    }

    fn send(&mut self, socket: &FakeSocket, batch: Batch<'_>) -> io::Result<usize> {
        assert!(!batch.messages.is_empty(), "a system call for nothing");
        Ok(self.0.borrow_mut().send(socket.id, batch)?)
    }

    fn coalesce(&mut self, _: &FakeSocket) {
        // A hint: what arrives is joined as the test says.
    }

    fn watch_writable(&mut self, socket: &FakeSocket, _: Token, watch: bool) -> io::Result<()> {
        if let Some(errno) = self.faults().on_watch() {
            return Err(errno.into());
        }
        self.socket_mut(socket.id).is_watched = watch;
        // `EPOLL_CTL_MOD` tells how things stand, even where nothing has changed since.
        self.wake(socket.id);
        Ok(())
    }
}
