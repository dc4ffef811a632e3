//! What the two processes speak over: a pair of unix sockets that carries packets
//! (`SOCK_SEQPACKET`), each one message in JSON, a piece of a snapshot, or some descriptors.
//!
//! JSON, so that a version can say more than the one before and both understand what they need.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use super::protocol::{NewWord, OldWord};
use crate::sys::clock::IoDeadline;
use crate::sys::{errno, scm};

/// The largest packet, in bytes: it has to fit into a socket's buffer.
const PACKET: usize = 64 << 10;

/// The largest snapshot, in bytes.
const MAX_SNAPSHOT_LEN: u64 = 1 << 30;

/// How long to wait before more descriptors are sent when too many are under way.
const RETRY_INTERVAL: Duration = Duration::from_millis(1);

/// How long is listened for what has been said already.
const LAST_LOOK: Duration = Duration::from_millis(1);

/// What the old process says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "word", rename_all = "kebab-case")]
pub enum FromOld {
    /// A snapshot of this many bytes follows.
    Offer {
        /// How many.
        bytes: u64,
    },
    /// The snapshot that counts follows.
    State {
        /// Of how many bytes.
        bytes: u64,
    },
    /// This many descriptors follow.
    Descriptors {
        /// How many.
        count: usize,
    },
    /// Commit: they belong to the new process.
    #[serde(rename = "yours", alias = "commit")]
    Commit,
}

/// What the new process says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "word", rename_all = "kebab-case")]
pub enum FromNew {
    /// It runs.
    Hello {
        /// Its version.
        version: String,
        /// The newest format of snapshots that it reads.
        newest_format: u16,
    },
    /// It could take over.
    Ready,
    /// It has read the snapshot that counts.
    Read,
    /// It has all descriptors.
    #[serde(rename = "holding", alias = "staged")]
    Staged,
    /// It serves.
    Serving,
    /// It ends.
    Refused {
        /// Every reason, a line each.
        reasons: Vec<String>,
    },
}

impl FromOld {
    /// What it means.
    pub const fn word(&self) -> OldWord {
        match self {
            Self::Offer { .. } => OldWord::Offer,
            Self::State { .. } => OldWord::State,
            Self::Descriptors { .. } => OldWord::Descriptors,
            Self::Commit => OldWord::Commit,
        }
    }
}

impl FromNew {
    /// What it means.
    pub const fn word(&self) -> NewWord {
        match self {
            Self::Hello { .. } => NewWord::Hello,
            Self::Ready => NewWord::Ready,
            Self::Read => NewWord::Read,
            Self::Staged => NewWord::Staged,
            Self::Serving => NewWord::Serving,
            Self::Refused { .. } => NewWord::Refused,
        }
    }
}

/// Why nothing came of it.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The other process has ended.
    #[error("it has ended")]
    Ended,
    /// It has said nothing, or read nothing, for too long.
    #[error("it did not answer in time")]
    TimedOut,
    /// It said something else.
    #[error("it sent an unexpected message: {0}")]
    Nonsense(String),
    /// The channel is of no use.
    #[error("the channel to it fails: {0}")]
    Failed(io::Error),
}

/// One end of the channel.
#[derive(Debug)]
pub struct Channel {
    socket: Socket,
}

impl Channel {
    /// Both ends. Child processes get neither, unless it is given to them.
    ///
    /// # Errors
    ///
    /// Those of `socketpair(2)`.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (ours, theirs) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
        Ok((Self { socket: ours }, Self { socket: theirs }))
    }

    /// The end of the channel that this process was given.
    ///
    /// # Errors
    ///
    /// When it is no such thing.
    pub fn from_descriptor(descriptor: OwnedFd) -> io::Result<Self> {
        let socket = Socket::from(descriptor);
        if socket.r#type()? != Type::SEQPACKET || socket.domain()? != Domain::UNIX {
            return Err(io::Error::other("it is not a unix socket of packets"));
        }
        socket.set_cloexec(true)?;
        Ok(Self { socket })
    }

    /// The process that has made the channel, if it is known here.
    pub fn maker(&self) -> Option<u32> {
        let maker = getsockopt(&self.socket, sockopt::PeerCredentials).ok()?;
        u32::try_from(maker.pid()).ok().filter(|pid| *pid > 0)
    }

    /// What a child process is to be given.
    pub fn into_descriptor(self) -> OwnedFd {
        self.socket.into()
    }

    /// Says something.
    ///
    /// # Errors
    ///
    /// When the other process has ended or reads nothing until the deadline.
    pub fn send(
        &self,
        message: &impl Serialize,
        deadline: &IoDeadline,
    ) -> Result<(), ChannelError> {
        let line = serde_json::to_vec(message).map_err(|e| ChannelError::Failed(e.into()))?;
        self.send_packet(&line, &[], deadline)
    }

    /// Hears what is said next.
    ///
    /// # Errors
    ///
    /// When the other process has ended, says nothing until the deadline, or something else.
    pub fn receive<M: DeserializeOwned>(&self, deadline: &IoDeadline) -> Result<M, ChannelError> {
        let mut packet = vec![0; PACKET];
        let (length, _) = self.receive_packet(&mut packet, deadline)?;
        serde_json::from_slice(&packet[..length])
            .map_err(|error| ChannelError::Nonsense(error.to_string()))
    }

    /// Sends a snapshot.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send).
    pub fn send_bytes(&self, bytes: &[u8], deadline: &IoDeadline) -> Result<(), ChannelError> {
        bytes.chunks(PACKET).try_for_each(|piece| self.send_packet(piece, &[], deadline))
    }

    /// Receives a snapshot of this many bytes.
    ///
    /// # Errors
    ///
    /// As for [`receive`](Self::receive).
    pub fn receive_bytes(
        &self,
        count: u64,
        deadline: &IoDeadline,
    ) -> Result<Vec<u8>, ChannelError> {
        if count > MAX_SNAPSHOT_LEN {
            return Err(ChannelError::Nonsense(format!("a snapshot of {count} bytes")));
        }
        let count = count as usize;
        let mut all = Vec::new();
        let mut packet = vec![0; PACKET];
        while all.len() < count {
            let (length, _) = self.receive_packet(&mut packet, deadline)?;
            all.extend_from_slice(&packet[..length]);
        }
        if all.len() > count {
            return Err(ChannelError::Nonsense("more than was announced".into()));
        }
        Ok(all)
    }

    /// Sends descriptors, which stay open here.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send).
    pub fn send_descriptors(
        &self,
        descriptors: &[BorrowedFd<'_>],
        deadline: &IoDeadline,
    ) -> Result<(), ChannelError> {
        descriptors
            .chunks(scm::MAX_FDS)
            .try_for_each(|some| self.send_packet(b"descriptors", some, deadline))
    }

    /// Receives this many descriptors, in their order, into `descriptors`. Where it fails, those are
    /// there that came until then.
    ///
    /// # Errors
    ///
    /// As for [`receive`](Self::receive).
    pub fn receive_descriptors(
        &self,
        count: usize,
        descriptors: &mut Vec<OwnedFd>,
        deadline: &IoDeadline,
    ) -> Result<(), ChannelError> {
        let wanted = descriptors.len().saturating_add(count);
        let mut packet = vec![0; PACKET];
        while descriptors.len() < wanted {
            let (_, some) = self.receive_packet(&mut packet, deadline)?;
            if some.is_empty() {
                return Err(ChannelError::Nonsense("descriptors are missing".into()));
            }
            descriptors.extend(some);
        }
        Ok(())
    }

    fn send_packet(
        &self,
        bytes: &[u8],
        descriptors: &[BorrowedFd<'_>],
        deadline: &IoDeadline,
    ) -> Result<(), ChannelError> {
        loop {
            self.socket.set_write_timeout(Some(deadline.left()?))?;
            match scm::send(self.socket.as_fd(), bytes, descriptors) {
                Ok(()) => return Ok(()),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                    // The other side is to take in some first.
                    _ if errno::has_too_many_in_flight(&error) => {
                        std::thread::sleep(RETRY_INTERVAL);
                    }
                    _ => return Err(error.into()),
                },
            }
        }
    }

    fn receive_packet(
        &self,
        buffer: &mut [u8],
        deadline: &IoDeadline,
    ) -> Result<(usize, Vec<OwnedFd>), ChannelError> {
        loop {
            // What has been said in time counts, however late this process comes to hear it: it may
            // have been paused. So the clock is looked at last.
            let left = deadline.left();
            let wait = left.as_ref().copied().unwrap_or(LAST_LOOK);
            self.socket.set_read_timeout(Some(wait))?;
            match scm::receive(self.socket.as_fd(), buffer) {
                Ok((0, _)) => return Err(ChannelError::Ended),
                Ok(received) => return Ok(received),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => drop(left?),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl From<io::Error> for ChannelError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotConnected => Self::Ended,
            io::ErrorKind::InvalidData => Self::Nonsense(error.to_string()),
            _ => Self::Failed(error),
        }
    }
}

#[cfg(test)]
mod tests;
