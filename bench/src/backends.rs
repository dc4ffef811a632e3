//! The backends behind the balancer: sinks that count, or echoes that answer.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use crate::train::{Inbox, MAX_TRAIN_BYTES, Outbox, Train, bind};

/// How many backends the balancer spreads its flows over.
pub(crate) const BACKENDS: usize = 4;

/// A sink looks only at the front of a train.
const SINK_SLOT: usize = 4_096;

/// What a backend does with a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Count it.
    Sink,
    /// Send it back to where it came from.
    Echo,
}

/// A few backends, served in turn by anyone who calls [`Backends::serve`].
pub(crate) struct Backends {
    behaviour: Behaviour,
    sockets: Vec<UdpSocket>,
    inbox: Inbox,
    outbox: Outbox,
}

impl Backends {
    /// Backends on ports chosen by the kernel.
    pub(crate) fn new(behaviour: Behaviour) -> io::Result<Self> {
        let sockets: io::Result<_> = (0..BACKENDS).map(|_| bind(Ipv4Addr::LOCALHOST, 0)).collect();
        let slot = match behaviour {
            Behaviour::Sink => SINK_SLOT,
            Behaviour::Echo => MAX_TRAIN_BYTES,
        };
        Ok(Backends {
            behaviour,
            sockets: sockets?,
            inbox: Inbox::new(slot),
            outbox: Outbox::new(),
        })
    }

    /// Where the backends listen.
    pub(crate) fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.sockets.iter().map(UdpSocket::local_addr).collect()
    }

    /// Takes what has come, one batch per backend. A sink shows it to `arrived`, an echo sends it back.
    pub(crate) fn serve(&mut self, mut arrived: impl FnMut(&Train<'_>)) -> io::Result<()> {
        for socket in &self.sockets {
            let mut answered = Ok(());
            self.inbox.receive(socket, |trains| match self.behaviour {
                Behaviour::Sink => trains.iter().for_each(&mut arrived),
                Behaviour::Echo => answered = self.outbox.send(socket, trains),
            })?;
            answered?;
        }
        Ok(())
    }
}
