//! Which way the kernel sends packets (`rtnetlink(7)`): by which link and to which neighbour.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    socket,
};

/// `struct nlmsghdr`: length, type, flags, sequence, sender.
const MESSAGE_HEADER: usize = 16;

/// `struct rtmsg`: family, lengths of the prefixes, TOS, table, protocol, scope, type, flags.
const ROUTE_HEADER: usize = 12;

/// `struct ifinfomsg`: family, type, index, flags, what of them changes.
const LINK_HEADER: usize = 16;

/// `struct rtattr`: length, type.
const ATTRIBUTE_HEADER: usize = 4;

/// More than one answer takes.
const BUFFER: usize = 16 << 10;

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
pub struct RouteLookup(OwnedFd);

impl RouteLookup {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// Those of `socket(2)`: a sandbox may know no such sockets.
    pub fn open() -> io::Result<Self> {
        let kind = (AddressFamily::Netlink, SockType::Raw, SockProtocol::NetlinkRoute);
        let fd = socket(kind.0, kind.1, SockFlag::SOCK_CLOEXEC, kind.2)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self(fd))
    }

    /// Which way packets go from an address of this host to another host. `None` if there is no way,
    /// or not off this host.
    ///
    /// # Errors
    ///
    /// Those of `send(2)` and `recv(2)`.
    pub fn next_hop(&self, from: IpAddr, to: IpAddr) -> io::Result<Option<NextHop>> {
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
                libc::RTA_OIF => ifindex = number(value),
                libc::RTA_GATEWAY => neighbour = ip(value).unwrap_or(neighbour),
                // The family comes before the address.
                libc::RTA_VIA => neighbour = value.get(2..).and_then(ip).unwrap_or(neighbour),
                libc::RTA_METRICS => {
                    let mut metrics = attributes(value);
                    mtu = metrics.find(|(kind, _)| *kind == RTAX_MTU).and_then(|(_, v)| number(v));
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
    pub fn link(&self, ifindex: u32) -> io::Result<Option<Link>> {
        let mut body = vec![0; LINK_HEADER];
        body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
        let Some(reply) = self.ask(libc::RTM_GETLINK, libc::RTM_NEWLINK, &body)? else {
            return Ok(None);
        };
        let (kind, flags) = (half(&reply, 2), number(reply.get(8..).unwrap_or_default()));
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
                libc::IFLA_MTU => mtu = number(value).unwrap_or(0),
                _ => {}
            }
        }
        Ok(name.map(|name| Link { name, mtu, is_ethernet }))
    }

    /// Asks one thing, and returns what the kernel says behind the header; `None` if it knows nothing.
    fn ask(&self, question: u16, answer: u16, body: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let length = (MESSAGE_HEADER + body.len()) as u32;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend_from_slice(&question.to_ne_bytes());
        message.extend_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
        message.extend_from_slice(&[0; 8]);
        message.extend_from_slice(body);
        while send(self.0.as_raw_fd(), &message, MsgFlags::empty()) == Err(Errno::EINTR) {}
        // The kernel answers before `send` returns.
        let mut buffer = vec![0; BUFFER];
        let length = loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EINTR) => {}
                outcome => break outcome?,
            }
        };
        buffer.truncate(length);
        let is_answer = half(&buffer, 4) == Some(answer);
        Ok(is_answer.then(|| buffer.split_off(MESSAGE_HEADER.min(length))))
    }
}

/// A socket that hears of routes and links that change.
#[derive(Debug)]
pub struct RouteWatch(OwnedFd);

impl RouteWatch {
    /// Begins to listen.
    ///
    /// # Errors
    ///
    /// Those of `socket(2)` and `bind(2)`.
    pub fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let kind = (AddressFamily::Netlink, SockType::Raw, SockProtocol::NetlinkRoute);
        let fd = socket(kind.0, kind.1, flags, kind.2)?;
        let routes = libc::RTMGRP_IPV4_ROUTE | libc::RTMGRP_IPV6_ROUTE;
        let groups = (libc::RTMGRP_LINK | routes).cast_unsigned();
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self(fd))
    }

    /// Takes what there is to hear. It only matters that there was something.
    pub fn drain(&self) {
        let mut buffer = [0; 4_096];
        while let Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) =
            recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT)
        {}
    }
}

impl AsFd for RouteWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = (ATTRIBUTE_HEADER + value.len()) as u16;
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// The attributes that lie one behind the other, up to one whose length makes no sense.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = (half(bytes, 0)?, half(bytes, 2)?);
        let value = bytes.get(ATTRIBUTE_HEADER..usize::from(length))?;
        bytes = bytes.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok()
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|&bytes| u32::from_ne_bytes(bytes))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|&bytes| u16::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_on_this_host_has_no_next_hop() {
        let routes = RouteLookup::open().unwrap();
        let ip = IpAddr::from([127, 0, 0, 1]);
        assert_eq!(routes.next_hop(ip, ip).unwrap(), None);
    }

    #[test]
    fn the_loopback_interface_is_known_and_not_ethernet() {
        let routes = RouteLookup::open().unwrap();
        let loopback = nix::net::if_::if_nametoindex("lo").unwrap();
        let link = routes.link(loopback).unwrap().unwrap();
        assert_eq!((link.name.as_str(), link.is_ethernet), ("lo", false));
        assert_eq!(routes.link(u32::MAX >> 1).unwrap(), None);
    }

    #[test]
    fn attributes_end_where_a_length_makes_no_sense() {
        let mut bytes = Vec::new();
        attribute(&mut bytes, 4, &7_u32.to_ne_bytes());
        attribute(&mut bytes, 5, &[10, 0, 0, 1]);
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read, [(4, &7_u32.to_ne_bytes()[..]), (5, &[10, 0, 0, 1][..])]);
        bytes[..2].fill(0);
        assert_eq!(attributes(&bytes).count(), 0);
        bytes[..2].fill(0xFF);
        assert_eq!(attributes(&bytes).count(), 0);
    }
}
