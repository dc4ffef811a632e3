//! A UDP load balancer, with nothing but the standard library around the core.
//!
//! `cargo run -p flowgate-core --example udp_balancer -- 127.0.0.1:5300 1.1.1.1:53 9.9.9.9:53`
//!
//! It shows the contract, not speed: sockets are tried one after the other. The `flowgate` command
//! waits with epoll, and receives and sends in batches.

use std::collections::HashMap;
use std::error::Error;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant as Clock};

use flowgate_core::config::ManagerConfig;
use flowgate_core::{
    BackendId, Burst, Direction, DropReason, Instant, ManagerInput, Output, Outputs, SendId,
    UdpManager, UpstreamId,
};

/// Carries out what the manager orders. What came of it waits here: the manager is not called from
/// inside.
struct Sockets {
    listener: UdpSocket,
    /// With the backends that they are connected to.
    upstreams: HashMap<UpstreamId, (UdpSocket, SocketAddr)>,
    happened: Vec<ManagerInput<'static>>,
}

impl Outputs<'_> for Sockets {
    fn emit(&mut self, output: Output<'_>) {
        match output {
            // Where flows do not share sockets, each is connected to a backend.
            Output::OpenUpstream { upstream, connect: Some(backend), .. } => match open(backend) {
                Ok(socket) => drop(self.upstreams.insert(upstream, (socket, backend))),
                Err(_) => self.happened.push(ManagerInput::UpstreamOpenFailed { upstream }),
            },
            Output::CloseUpstream { upstream } => drop(self.upstreams.remove(&upstream)),
            Output::Send { flow, upstream, backend, burst, .. } => {
                let socket = self.upstreams.get(&upstream);
                let is_sent = socket.is_some_and(|(socket, _)| socket.send(burst.bytes()).is_ok());
                self.sent(SendId::Flow { flow, upstream }, Some(backend), burst, is_sent);
            }
            Output::SendToClient { flow, upstream, client, burst, .. } => {
                let is_sent = self.listener.send_to(burst.bytes(), client).is_ok();
                self.sent(SendId::Flow { flow, upstream }, None, burst, is_sent);
            }
            // Everything else has to be asked for in the configuration.
            _ => {}
        }
    }
}

impl Sockets {
    /// Notes what became of a datagram, to a backend or to a client. A burst is as long here as the
    /// one that came: one datagram.
    fn sent(
        &mut self,
        send_id: SendId,
        backend: Option<BackendId>,
        burst: Burst<'_>,
        is_sent: bool,
    ) {
        let direction = backend.map_or(Direction::ToClient, |_| Direction::ToBackend);
        let (reason, datagrams, bytes) = (DropReason::SendFailed, 1, burst.bytes().len() as u64);
        self.happened.push(if is_sent {
            ManagerInput::Delivered { send_id, backend, direction, datagrams, bytes }
        } else {
            ManagerInput::Undelivered { send_id, backend, direction, reason, datagrams, bytes }
        });
    }
}

fn open(backend: SocketAddr) -> io::Result<UdpSocket> {
    let local = if backend.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(local)?;
    socket.connect(backend)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut addresses = std::env::args().skip(1).map(|text| text.parse::<SocketAddr>());
    let address = addresses.next().ok_or("usage: udp_balancer LISTENER BACKEND...")??;
    let backends = addresses.collect::<Result<Vec<_>, _>>()?;
    let listener = UdpSocket::bind(address)?;
    listener.set_read_timeout(Some(Duration::from_millis(1)))?;

    let config = ManagerConfig::new(listener.local_addr()?, backends);
    let seed = RandomState::new().hash_one("a number that nobody else knows");
    let mut manager = UdpManager::new(config, seed, Instant::ORIGIN);
    let mut sockets = Sockets { listener, upstreams: HashMap::new(), happened: Vec::new() };
    let (start, mut buffer) = (Clock::now(), [0; 65_535]);
    loop {
        let received = sockets.listener.recv_from(&mut buffer);
        let now = Instant::from_nanos(start.elapsed().as_nanos() as u64);
        if let Ok((length, source)) = received
            && let Some(burst) = Burst::single(&buffer[..length])
        {
            let input = ManagerInput::ClientBurst { source, local: None, tos: 0, ttl: 64, burst };
            manager.handle_input(input, now, &mut sockets);
        }
        for upstream in sockets.upstreams.keys().copied().collect::<Vec<_>>() {
            let Some((socket, sender)) = sockets.upstreams.get(&upstream) else { continue };
            if let (Ok(length), sender) = (socket.recv(&mut buffer), *sender)
                && let Some(burst) = Burst::single(&buffer[..length])
            {
                let answer = ManagerInput::UpstreamBurst { upstream, sender, tos: 0, burst };
                manager.handle_input(answer, now, &mut sockets);
            }
        }
        for input in std::mem::take(&mut sockets.happened) {
            manager.handle_input(input, now, &mut sockets);
        }
        if manager.poll_timeout().is_some_and(|deadline| deadline.at <= now) {
            manager.handle_input(ManagerInput::Timeout, now, &mut sockets);
        }
    }
}
