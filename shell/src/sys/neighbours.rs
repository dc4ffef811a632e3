//! Hosts on this host's links that do not say what their hardware address is (`arp(7)`). What is sent
//! to one waits for that, for seconds, and takes up the send buffer of the socket that has sent it.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

use super::clock::Clock;
use super::netlink::{self, BUFFER, MESSAGE_HEADER, attributes, half, ip, messages};
use super::sockopt;

/// `struct ndmsg`: family, interface, state, flags, type.
const HEADER: usize = 12;
/// Where the state is in it.
const STATE: usize = 8;
/// An attribute of a neighbour (`linux/neighbour.h`): its address.
const NDA_DST: u16 = 1;
/// States of a neighbour: it was asked, and it has not answered.
const NUD_INCOMPLETE: u16 = 0x01;
const NUD_FAILED: u16 = 0x20;

/// How often the kernel is asked for all neighbours at most: there may be some thousands.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// The neighbours that hold up a socket's send buffer.
#[derive(Debug)]
pub struct SilentNeighbours {
    all: HashSet<IpAddr>,
    clock: Clock,
    /// When the kernel was last asked.
    asked: Option<Duration>,
}

impl Default for SilentNeighbours {
    fn default() -> Self {
        Self { all: HashSet::new(), clock: Clock::start(), asked: None }
    }
}

impl SilentNeighbours {
    /// Whether nothing is to be sent to a host at the moment.
    #[inline]
    pub fn has(&self, host: IpAddr) -> bool {
        !self.all.is_empty() && self.all.contains(&host.to_canonical())
    }

    /// Looks which they are where more than half of the send buffer is full; while it is not, all may
    /// be sent to. Says whether there are any.
    pub fn look(&mut self, socket: BorrowedFd<'_>) -> bool {
        // Kernels before 4.12 do not tell.
        if !sockopt::is_send_half_full(socket).unwrap_or(false) {
            self.all.clear();
            return false;
        }
        let now = self.clock.uptime();
        if self.asked.is_none_or(|asked| now.saturating_sub(asked) >= ASK_EVERY) {
            self.asked = Some(now);
            // A sandbox may know no such sockets.
            self.all = unresolved().unwrap_or_default();
        }
        !self.all.is_empty()
    }
}

/// The neighbours that the kernel has found no hardware address of, or is looking for.
fn unresolved() -> io::Result<HashSet<IpAddr>> {
    let socket = netlink::open(0)?;
    let fd = socket.as_raw_fd();
    let mut question = ((MESSAGE_HEADER + HEADER) as u32).to_ne_bytes().to_vec();
    question.extend(libc::RTM_GETNEIGH.to_ne_bytes());
    question.extend(((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    question.resize(MESSAGE_HEADER + HEADER, 0);
    send(fd, &question, MsgFlags::empty())?;
    let (mut all, mut buffer) = (HashSet::new(), vec![0; 2 * BUFFER]);
    loop {
        // The kernel writes a part of the answer whenever it is read from.
        let length = match recv(fd, &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EINTR) => continue,
            outcome => outcome?,
        };
        for message in messages(&buffer[..length]) {
            match half(message, 4) {
                Some(libc::RTM_NEWNEIGH) => all.extend(silent(message)),
                _ => return Ok(all),
            }
        }
    }
}

/// Whom a message is about, if that is a neighbour without a hardware address.
fn silent(message: &[u8]) -> Option<IpAddr> {
    let state = half(message, MESSAGE_HEADER + STATE)?;
    let mut of = attributes(message.get(MESSAGE_HEADER + HEADER..)?);
    let address = of.find(|(kind, _)| *kind == NDA_DST).and_then(|(_, value)| ip(value));
    address.filter(|_| state & (NUD_INCOMPLETE | NUD_FAILED) != 0)
}

#[cfg(test)]
mod tests {
    use super::super::netlink::attribute;
    use super::*;

    fn neighbour(state: u16, octets: [u8; 4]) -> Vec<u8> {
        let mut message = vec![0; MESSAGE_HEADER + HEADER];
        message[MESSAGE_HEADER + STATE..][..2].copy_from_slice(&state.to_ne_bytes());
        attribute(&mut message, NDA_DST, &octets);
        message
    }

    #[test]
    fn who_has_not_answered_is_silent() {
        let host = [10, 0, 0, 9];
        for state in [NUD_INCOMPLETE, NUD_FAILED] {
            assert_eq!(silent(&neighbour(state, host)), Some(host.into()));
        }
        // Reachable, stale, permanent.
        for state in [0x02, 0x04, 0x80] {
            assert_eq!(silent(&neighbour(state, host)), None);
        }
        let message = neighbour(NUD_FAILED, host);
        for length in 0..message.len() {
            assert_eq!(silent(&message[..length]), None);
        }
    }

    #[test]
    fn while_there_is_room_nobody_is_silent() {
        assert!(unresolved().is_ok());
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut neighbours = SilentNeighbours::default();
        neighbours.all.insert([10, 0, 0, 9].into());
        assert!(neighbours.has([10, 0, 0, 9].into()));
        assert!(!neighbours.look(std::os::fd::AsFd::as_fd(&socket)));
        assert!(!neighbours.has([10, 0, 0, 9].into()));
    }
}
