//! Which way the kernel sends packets (`rtnetlink(7)`): by which link and to which neighbour.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

use super::netlink::{self, BUFFER, MESSAGE_HEADER, attribute, attributes, half, ip, number};

/// `struct rtmsg`: family, lengths of the prefixes, TOS, table, protocol, scope, type, flags.
const ROUTE_HEADER: usize = 12;

/// `struct ifinfomsg`: family, type, index, flags, what of them changes.
const LINK_HEADER: usize = 16;

/// The next hop where it is of another family than the destination (`RTA_VIA`), which not every C library
/// has a name for.
const RTA_VIA: u16 = 18;

/// A metric of a route (`linux/rtnetlink.h`): the longest packet that fits the way.
const RTAX_MTU: u16 = 2;
/// The type of a route to elsewhere.
const RTN_UNICAST: u8 = 1;
/// The hardware type of Ethernet (`linux/if_arp.h`).
const ARPHRD_ETHER: u16 = 1;

/// Where packets to an address leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The number of the interface.
    pub ifindex: u32,
    /// The neighbour on its link.
    pub neighbour: IpAddr,
    /// The longest IP packet that fits the way, where the route says so.
    pub mtu: Option<u32>,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// The longest IP packet that it sends.
    pub mtu: u32,
    /// Whether its frames have Ethernet's headers and reach others.
    pub is_ethernet: bool,
}

/// A socket that asks the kernel.
#[derive(Debug)]
pub struct RouteLookup {
    socket: OwnedFd,
    /// What the last question and answer were written in.
    question: Vec<u8>,
    answer: Vec<u8>,
}

impl RouteLookup {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// Those of `socket(2)`: a sandbox may know no such sockets.
    pub fn open() -> io::Result<Self> {
        let socket = netlink::open(0)?;
        Ok(Self { socket, question: Vec::new(), answer: vec![0; BUFFER] })
    }

    /// Which way packets go from an address of this host to another host. `None` if there is no way,
    /// or not off this host.
    ///
    /// # Errors
    ///
    /// Those of `send(2)` and `recv(2)`.
    pub fn next_hop(&mut self, from: IpAddr, to: IpAddr) -> io::Result<Option<NextHop>> {
        let (family, length) = match to {
            IpAddr::V4(_) => (libc::AF_INET, 32),
            IpAddr::V6(_) => (libc::AF_INET6, 128),
        };
        let mut body = vec![family as u8, length, length, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        attribute(&mut body, libc::RTA_DST, &octets(to));
        attribute(&mut body, libc::RTA_SRC, &octets(from));
        let Some(reply) = self.ask(libc::RTM_GETROUTE, libc::RTM_NEWROUTE, &body)? else {
            return Ok(None);
        };
        // The type of the route is the eighth octet.
        if reply.get(7) != Some(&RTN_UNICAST) {
            return Ok(None);
        }
        let (mut ifindex, mut neighbour, mut mtu) = (None, to, None);
        for (kind, value) in attributes(reply.get(ROUTE_HEADER..).unwrap_or_default()) {
            match kind {
                libc::RTA_OIF => ifindex = number(value, 0),
                libc::RTA_GATEWAY => neighbour = ip(value).unwrap_or(neighbour),
                // The family comes before the address.
                RTA_VIA => neighbour = value.get(2..).and_then(ip).unwrap_or(neighbour),
                libc::RTA_METRICS => {
                    let mut metrics = attributes(value);
                    mtu =
                        metrics.find(|(kind, _)| *kind == RTAX_MTU).and_then(|(_, v)| number(v, 0));
                }
                _ => {}
            }
        }
        Ok(ifindex.map(|ifindex| NextHop { ifindex, neighbour, mtu }))
    }

    /// An interface by its number. `None` if there is none.
    ///
    /// # Errors
    ///
    /// Those of `send(2)` and `recv(2)`.
    pub fn link(&mut self, ifindex: u32) -> io::Result<Option<Link>> {
        let mut body = vec![0; LINK_HEADER];
        body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
        let Some(reply) = self.ask(libc::RTM_GETLINK, libc::RTM_NEWLINK, &body)? else {
            return Ok(None);
        };
        let (kind, flags) = (half(reply, 2), number(reply, 8));
        let no_neighbours = (libc::IFF_LOOPBACK | libc::IFF_NOARP).cast_unsigned();
        let is_ethernet =
            kind == Some(ARPHRD_ETHER) && flags.is_some_and(|flags| flags & no_neighbours == 0);
        let (mut name, mut mtu) = (None, 0);
        for (kind, value) in attributes(reply.get(LINK_HEADER..).unwrap_or_default()) {
            match kind {
                libc::IFLA_IFNAME => {
                    let text = value.strip_suffix(b"\0").unwrap_or(value);
                    name = String::from_utf8(text.to_vec()).ok();
                }
                libc::IFLA_MTU => mtu = number(value, 0).unwrap_or(0),
                _ => {}
            }
        }
        Ok(name.map(|name| Link { name, mtu, is_ethernet }))
    }

    /// Asks one thing, and returns what the kernel says behind the header; `None` if it knows nothing.
    fn ask(&mut self, question: u16, answer: u16, body: &[u8]) -> io::Result<Option<&[u8]>> {
        let (fd, message) = (self.socket.as_raw_fd(), &mut self.question);
        let length = (MESSAGE_HEADER + body.len()) as u32;
        message.clear();
        message.extend_from_slice(&length.to_ne_bytes());
        message.extend_from_slice(&question.to_ne_bytes());
        message.extend_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
        message.extend_from_slice(&[0; 8]);
        message.extend_from_slice(body);
        retry(|| send(fd, message, MsgFlags::empty()))?;
        // The kernel answers before `send` returns.
        let length = retry(|| recv(fd, &mut self.answer, MsgFlags::MSG_DONTWAIT))?;
        let said = self.answer.get(..length).unwrap_or_default();
        let is_answer = half(said, 4) == Some(answer);
        Ok(said.get(MESSAGE_HEADER..).filter(|_| is_answer))
    }
}

/// Does it again where a signal has come between.
fn retry(mut call: impl FnMut() -> nix::Result<usize>) -> nix::Result<usize> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            outcome => return outcome,
        }
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_on_this_host_has_no_next_hop() {
        let mut routes = RouteLookup::open().unwrap();
        let ip = IpAddr::from([127, 0, 0, 1]);
        assert_eq!(routes.next_hop(ip, ip).unwrap(), None);
    }

    #[test]
    fn the_loopback_interface_is_known_and_not_ethernet() {
        let mut routes = RouteLookup::open().unwrap();
        let loopback = nix::net::if_::if_nametoindex("lo").unwrap();
        let link = routes.link(loopback).unwrap().unwrap();
        assert_eq!((link.name.as_str(), link.is_ethernet), ("lo", false));
        assert_eq!(routes.link(u32::MAX >> 1).unwrap(), None);
    }
}
