//! Word from the kernel of this host's addresses, links and routes (`rtnetlink(7)`).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

/// `struct nlmsghdr`: length, type, flags, sequence, sender.
pub(super) const MESSAGE_HEADER: usize = 16;

/// `struct ifaddrmsg`: family, prefix, flags, scope, interface.
const ADDRESS_HEADER: usize = 8;

/// `struct rtattr`: length, type.
pub(super) const ATTRIBUTE_HEADER: usize = 4;

/// More than the kernel puts into one datagram of such messages.
pub(super) const BUFFER: usize = 16 << 10;

/// `struct ifinfomsg`: family, type, interface, flags, which of them have changed.
const LINK_FLAGS: usize = MESSAGE_HEADER + 8;

/// `struct rtmsg`: eight bytes that say which route, and flags.
const ROUTE_FLAGS: usize = MESSAGE_HEADER + 8;

/// A socket that hears of addresses that go, and of ways that come and change.
#[derive(Debug)]
pub struct NetworkWatch(OwnedFd);

impl NetworkWatch {
    /// Begins to listen, and has a poll tell of it.
    ///
    /// # Errors
    ///
    /// Those of `socket(2)`, `bind(2)` and `epoll_ctl(2)`: a sandbox may know no such sockets.
    pub fn open(registry: &Registry, token: Token) -> io::Result<Self> {
        let groups = libc::RTMGRP_IPV4_IFADDR
            | libc::RTMGRP_IPV6_IFADDR
            | libc::RTMGRP_LINK
            | libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV6_ROUTE;
        let socket = open(groups.cast_unsigned())?;
        registry.register(&mut SourceFd(&socket.as_raw_fd()), token, Interest::READABLE)?;
        Ok(Self(socket))
    }

    /// What has changed since the last call. Addresses are left out that are back already.
    pub fn changes(&self) -> NetworkChanges {
        let (mut changes, mut buffer) = (NetworkChanges::default(), vec![0; BUFFER]);
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(len) => read(&buffer[..len], &mut changes),
                // More came at once than fit, and some are lost; what is left is worth reading.
                Err(nix::errno::Errno::ENOBUFS) => {
                    changes.has_another_way = true;
                    changes.have_routes_changed = true;
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        changes.gone.retain(|ip| std::net::UdpSocket::bind((*ip, 0)).is_err());
        changes
    }
}

/// What has changed of this host's network.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct NetworkChanges {
    /// The addresses that have gone.
    pub gone: Vec<IpAddr>,
    /// Whether there may be a way now where there was none: an address, a route or a link has come.
    pub has_another_way: bool,
    /// Whether packets may leave by other links, or for other neighbours, than before.
    pub have_routes_changed: bool,
}

/// A socket that asks the kernel of its network, and hears what it tells these groups.
///
/// # Errors
///
/// Those of `socket(2)` and `bind(2)`: a sandbox may know no such sockets.
pub(super) fn open(groups: u32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let kind = (AddressFamily::Netlink, SockType::Raw, SockProtocol::NetlinkRoute);
    let fd = socket(kind.0, kind.1, flags, kind.2)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(fd)
}

/// Reads messages; a length that makes no sense ends the reading.
fn read(all: &[u8], changes: &mut NetworkChanges) {
    for message in messages(all) {
        match half(message, 4) {
            Some(libc::RTM_DELADDR) => {
                let address = message.get(MESSAGE_HEADER + ADDRESS_HEADER..);
                changes.gone.extend(address.and_then(local_address));
            }
            Some(libc::RTM_NEWADDR) => changes.has_another_way = true,
            Some(kind @ (libc::RTM_NEWLINK | libc::RTM_DELLINK)) => {
                let runs = libc::IFF_RUNNING.cast_unsigned();
                let is_running = number(message, LINK_FLAGS).unwrap_or(0) & runs != 0;
                changes.has_another_way |= kind == libc::RTM_NEWLINK && is_running;
                changes.have_routes_changed = true;
            }
            Some(kind @ (libc::RTM_NEWROUTE | libc::RTM_DELROUTE)) => {
                let flags = number(message, ROUTE_FLAGS).unwrap_or(0);
                // What the kernel has only remembered is no new route.
                let is_new = kind == libc::RTM_NEWROUTE && flags & libc::RTM_F_CLONED == 0;
                changes.has_another_way |= is_new;
                changes.have_routes_changed = true;
            }
            _ => {}
        }
    }
}

/// The messages that lie one behind the other, headers and all.
pub(super) fn messages(mut all: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let len = number(all, 0)? as usize;
        let message = all.get(..len).filter(|message| message.len() >= MESSAGE_HEADER)?;
        all = all.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The host's own address among the attributes of an address. On a link between two hosts that is
/// not the one that names the link.
fn local_address(message: &[u8]) -> Option<IpAddr> {
    let (mut local, mut named) = (None, None);
    for (kind, value) in attributes(message) {
        match kind {
            libc::IFA_LOCAL => local = ip(value),
            libc::IFA_ADDRESS => named = ip(value),
            _ => {}
        }
    }
    local.or(named)
}

/// The attributes that lie one behind the other, up to one whose length makes no sense.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = (half(bytes, 0)?, half(bytes, 2)?);
        let value = bytes.get(ATTRIBUTE_HEADER..usize::from(length))?;
        bytes = bytes.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(super) fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = (ATTRIBUTE_HEADER + value.len()) as u16;
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

pub(super) fn ip(value: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok()
}

pub(super) fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|&bytes| u32::from_ne_bytes(bytes))
}

pub(super) fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|&bytes| u16::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        super::attribute(&mut bytes, kind, value);
        bytes
    }

    fn message(kind: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
        let attributes = attributes.concat();
        let len = (MESSAGE_HEADER + ADDRESS_HEADER + attributes.len()) as u32;
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.resize(MESSAGE_HEADER + ADDRESS_HEADER, 0);
        bytes.extend(attributes);
        bytes
    }

    #[test]
    fn addresses_that_go_are_read_and_others_passed_over() {
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        let IpAddr::V6(octets) = v6 else { unreachable!() };
        let messages = [
            message(libc::RTM_NEWADDR, &[attribute(libc::IFA_LOCAL, &[192, 0, 2, 9])]),
            message(
                libc::RTM_DELADDR,
                &[
                    attribute(libc::IFA_LABEL, b"odd"),
                    attribute(libc::IFA_ADDRESS, &[192, 0, 2, 2]),
                    attribute(libc::IFA_LOCAL, &[192, 0, 2, 1]),
                ],
            ),
            message(libc::RTM_DELADDR, &[attribute(libc::IFA_ADDRESS, &octets.octets())]),
        ]
        .concat();
        let mut changes = NetworkChanges::default();
        read(&messages, &mut changes);
        assert_eq!(changes.gone, [IpAddr::from([192, 0, 2, 1]), v6]);
        assert!(changes.has_another_way, "an address has come");
        assert!(!changes.have_routes_changed);
        for len in 0..messages.len() {
            read(&messages[..len], &mut NetworkChanges::default());
        }
        let mut lies = messages;
        lies[..4].fill(0);
        read(&lies, &mut NetworkChanges::default());
        lies[..4].fill(0xFF);
        read(&lies, &mut NetworkChanges::default());
    }

    #[test]
    fn a_link_that_runs_and_a_route_are_another_way_and_what_goes_is_none() {
        let what_is_new = |kind: u16, flags: u32| {
            let mut message = message(kind, &[attribute(1, &[0; 8])]);
            message[LINK_FLAGS..][..4].copy_from_slice(&flags.to_ne_bytes());
            let mut changes = NetworkChanges::default();
            read(&message, &mut changes);
            (changes.has_another_way, changes.have_routes_changed)
        };
        let runs = libc::IFF_RUNNING.cast_unsigned();
        assert_eq!(what_is_new(libc::RTM_NEWLINK, runs), (true, true));
        assert_eq!(what_is_new(libc::RTM_NEWLINK, 0), (false, true));
        assert_eq!(what_is_new(libc::RTM_DELLINK, runs), (false, true));
        assert_eq!(what_is_new(libc::RTM_NEWROUTE, 0), (true, true));
        assert_eq!(what_is_new(libc::RTM_NEWROUTE, libc::RTM_F_CLONED), (false, true));
        assert_eq!(what_is_new(libc::RTM_DELROUTE, 0), (false, true));
        assert_eq!(what_is_new(libc::RTM_NEWNEIGH, 0), (false, false));
    }

    #[test]
    fn attributes_end_where_a_length_makes_no_sense() {
        let mut bytes = [attribute(4, &7_u32.to_ne_bytes()), attribute(5, &[10, 0, 0, 1])].concat();
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read, [(4, &7_u32.to_ne_bytes()[..]), (5, &[10, 0, 0, 1][..])]);
        bytes[..2].fill(0);
        assert_eq!(attributes(&bytes).count(), 0);
        bytes[..2].fill(0xFF);
        assert_eq!(attributes(&bytes).count(), 0);
    }
}
