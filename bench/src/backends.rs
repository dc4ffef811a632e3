//! The backends behind the balancer: sinks that count, or echoes that answer.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use crate::payload::Payload;
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
    /// Send it back to where it came from: as it is, or as an answer where it is a question.
    Echo,
}

/// A few backends, served in turn by anyone who calls [`Backends::serve`].
pub(crate) struct Backends {
    behaviour: Behaviour,
    payload: Payload,
    sockets: Vec<UdpSocket>,
    inbox: Inbox,
    outbox: Outbox,
}

impl Backends {
    /// Backends on ports chosen by the kernel.
    pub(crate) fn new(behaviour: Behaviour, payload: Payload) -> io::Result<Self> {
        Self::at(behaviour, payload, Ipv4Addr::LOCALHOST)
    }

    /// As many as are asked for.
    pub(crate) fn many(count: usize, behaviour: Behaviour, payload: Payload) -> io::Result<Self> {
        Self::made(count, behaviour, payload, Ipv4Addr::LOCALHOST)
    }

    /// The same at another address than on loopback.
    pub(crate) fn at(
        behaviour: Behaviour,
        payload: Payload,
        address: Ipv4Addr,
    ) -> io::Result<Self> {
        Self::made(BACKENDS, behaviour, payload, address)
    }

    fn made(
        count: usize,
        behaviour: Behaviour,
        payload: Payload,
        address: Ipv4Addr,
    ) -> io::Result<Self> {
        let sockets: io::Result<_> = (0..count).map(|_| bind(address, 0)).collect();
        let slot = match behaviour {
            Behaviour::Sink => SINK_SLOT,
            Behaviour::Echo => MAX_TRAIN_BYTES,
        };
        Ok(Backends {
            behaviour,
            payload,
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
                Behaviour::Echo if self.payload == Payload::Plain => {
                    answered = self.outbox.send(socket, trains);
                }
                Behaviour::Echo => {
                    answered = answer(self.payload, &mut self.outbox, socket, trains)
                }
            })?;
            answered?;
        }
        Ok(())
    }
}

/// Answers questions, which cannot be sent back as they are.
fn answer(
    payload: Payload,
    outbox: &mut Outbox,
    socket: &UdpSocket,
    questions: &[Train<'_>],
) -> io::Result<()> {
    let answered = |question: &Train<'_>| {
        let mut bytes = question.bytes.to_vec();
        bytes.chunks_mut(question.stride.max(1)).for_each(|datagram| payload.answer(datagram));
        bytes
    };
    let bytes: Vec<_> = questions.iter().map(answered).collect();
    let answers =
        questions.iter().zip(&bytes).map(|(question, bytes)| Train { bytes, ..*question });
    outbox.send(socket, &answers.collect::<Vec<_>>())
}
