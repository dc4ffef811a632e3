//! Word from the kernel of this host's addresses, links and routes (`rtnetlink(7)`).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

/// `struct nlmsghdr`: length, type, flags, sequence, sender.
const MESSAGE_HEADER: usize = 16;

/// `struct ifaddrmsg`: family, prefix, flags, scope, interface.
const ADDRESS_HEADER: usize = 8;

/// `struct rtattr`: length, type.
const ATTRIBUTE_HEADER: usize = 4;

/// More than the kernel puts into one datagram of such messages.
const BUFFER: usize = 16 << 10;

/// `struct ifinfomsg`: family, type, interface, flags, which of them have changed.
const LINK_FLAGS: usize = MESSAGE_HEADER + 8;

/// `struct rtmsg`: eight bytes that say which route, and flags.
const ROUTE_FLAGS: usize = MESSAGE_HEADER + 8;

/// A socket that hears of addresses that go, and of ways that come.
#[derive(Debug)]
pub struct AddressWatch(OwnedFd);

impl AddressWatch {
    /// Begins to listen.
    ///
    /// # Errors
    ///
    /// Those of `socket(2)` and `bind(2)`: a sandbox may know no such sockets.
    pub fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let kind = (AddressFamily::Netlink, SockType::Raw, SockProtocol::NetlinkRoute);
        let fd = socket(kind.0, kind.1, flags, kind.2)?;
        let groups = libc::RTMGRP_IPV4_IFADDR
            | libc::RTMGRP_IPV6_IFADDR
            | libc::RTMGRP_LINK
            | libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV6_ROUTE;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups.cast_unsigned()))?;
        Ok(Self(fd))
    }

    /// What has changed since the last call. Addresses are left out that are back already.
    pub fn changes(&self) -> NetworkChanges {
        let (mut changes, mut buffer) = (NetworkChanges::default(), vec![0; BUFFER]);
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(len) => read(&buffer[..len], &mut changes),
                // More came at once than fit, and some are lost; what is left is worth reading.
                Err(nix::errno::Errno::ENOBUFS) => changes.has_another_way = true,
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
}

impl AsFd for AddressWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Reads messages; a length that makes no sense ends the reading.
fn read(mut messages: &[u8], changes: &mut NetworkChanges) {
    while let Some(len) = number(messages, 0) {
        let Some(message) = messages.get(..len as usize).filter(|m| m.len() >= MESSAGE_HEADER)
        else {
            return;
        };
        match half(message, 4) {
            Some(libc::RTM_DELADDR) => {
                let address = message.get(MESSAGE_HEADER + ADDRESS_HEADER..);
                changes.gone.extend(address.and_then(local_address));
            }
            Some(libc::RTM_NEWADDR) => changes.has_another_way = true,
            Some(libc::RTM_NEWLINK) => {
                let runs = libc::IFF_RUNNING.cast_unsigned();
                changes.has_another_way |= number(message, LINK_FLAGS).unwrap_or(0) & runs != 0;
            }
            // What the kernel has only remembered is no new route.
            Some(libc::RTM_NEWROUTE) => {
                let flags = number(message, ROUTE_FLAGS).unwrap_or(0);
                changes.has_another_way |= flags & libc::RTM_F_CLONED == 0;
            }
            _ => {}
        }
        let next = (len as usize).next_multiple_of(4);
        messages = messages.get(next..).unwrap_or_default();
    }
}

/// The host's own address among the attributes of an address. On a link between two hosts that is
/// not the one that names the link.
fn local_address(mut attributes: &[u8]) -> Option<IpAddr> {
    let (mut local, mut named) = (None, None);
    while let (Some(len), Some(kind)) = (half(attributes, 0), half(attributes, 2)) {
        let Some(value) = attributes.get(ATTRIBUTE_HEADER..len as usize) else { break };
        match kind {
            libc::IFA_LOCAL => local = ip(value),
            libc::IFA_ADDRESS => named = ip(value),
            _ => {}
        }
        let next = (len as usize).next_multiple_of(4);
        attributes = attributes.get(next..).unwrap_or_default();
    }
    local.or(named)
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok()
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|&bytes| u32::from_ne_bytes(bytes))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|&bytes| u16::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let len = (ATTRIBUTE_HEADER + value.len()) as u16;
        let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
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
        let has_another_way = |kind: u16, flags: u32| {
            let mut message = message(kind, &[attribute(1, &[0; 8])]);
            message[LINK_FLAGS..][..4].copy_from_slice(&flags.to_ne_bytes());
            let mut changes = NetworkChanges::default();
            read(&message, &mut changes);
            changes.has_another_way
        };
        let runs = libc::IFF_RUNNING.cast_unsigned();
        assert!(has_another_way(libc::RTM_NEWLINK, runs));
        assert!(!has_another_way(libc::RTM_NEWLINK, 0));
        assert!(has_another_way(libc::RTM_NEWROUTE, 0));
        assert!(!has_another_way(libc::RTM_NEWROUTE, libc::RTM_F_CLONED));
        assert!(!has_another_way(libc::RTM_DELROUTE, 0));
    }
}
