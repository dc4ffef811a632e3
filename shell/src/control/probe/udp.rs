//! A probe that asks a question.

use std::io;
use std::net::SocketAddr;

use flowgate_core::LocalSource;
use flowgate_core::probe::ProbeOutcome;
use mio::net::UdpSocket;
use mio::{Interest, Registry, Token};

use super::question::{ExpectedReply, ProbePayload, ProbeRequest};
use crate::sys::{errno, process, udp};

/// A probe listens to no more wrong answers than this.
const MAX_WRONG_REPLIES: u32 = 64;

/// A question that waits for its answer.
pub(super) struct UdpProbe {
    socket: UdpSocket,
    question: ProbeRequest,
    wrong_answers: u32,
}

impl UdpProbe {
    /// Asks.
    pub(super) fn start(
        address: SocketAddr,
        source: LocalSource,
        payload: &ProbePayload,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        let socket = std::net::UdpSocket::from(udp::connected(address, source)?);
        let local = socket.local_addr()?;
        if local == address {
            // The kernel chose the very port that is probed, which therefore nobody has: the probe
            // would answer itself.
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let mut socket = UdpSocket::from_std(socket);
        registry.register(&mut socket, token, Interest::READABLE)?;
        let ids = u128::from(process::random_seed()?) << 64 | u128::from(process::random_seed()?);
        let question = payload.question(ids, local, address);
        socket.send(question.bytes())?;
        Ok(Self { socket, question, wrong_answers: 0 })
    }

    /// How it has ended; `None` while the right answer may still come.
    pub(super) fn outcome(
        &mut self,
        expect: &ExpectedReply,
        buffer: &mut [u8],
    ) -> Option<ProbeOutcome> {
        while self.wrong_answers < MAX_WRONG_REPLIES {
            match self.socket.recv(buffer) {
                Ok(length) => {
                    let answer = &buffer[..length];
                    if self.question.accepts(answer) && expect.accepts(answer) {
                        return Some(ProbeOutcome::Answered);
                    }
                    self.wrong_answers += 1;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) => return Some(errno::on_probe(&error)),
            }
        }
        Some(ProbeOutcome::WrongAnswer)
    }

    /// Whether something came, but not the right answer.
    pub(super) const fn got_wrong_answers(&self) -> bool {
        self.wrong_answers > 0
    }
}
