//! Flows' addresses, and the entries made of them.

use std::net::{IpAddr, SocketAddr};

use crate::layout::{Entry, RawTuple4, RawTuple6};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Addresses and ports of a packet, both of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    source: SocketAddr,
    destination: SocketAddr,
}

/// How the two families key the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    V4(RawTuple4),
    V6(RawTuple6),
}

impl Tuple {
    /// A tuple of two addresses. `None` if they are of different families.
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Option<Self> {
        (source.is_ipv4() == destination.is_ipv4()).then_some(Self { source, destination })
    }

    /// Where the packet comes from.
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// Where it goes.
    pub fn destination(&self) -> SocketAddr {
        self.destination
    }

    pub(crate) fn key(&self) -> Key {
        let source_port = self.source.port().to_be_bytes();
        let destination_port = self.destination.port().to_be_bytes();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let (source, destination) = (source.octets(), destination.octets());
                Key::V4(RawTuple4 { source, destination, source_port, destination_port })
            }
            (source, destination) => {
                let (source, destination) = (octets(source), octets(destination));
                Key::V6(RawTuple6 { source, destination, source_port, destination_port })
            }
        }
    }
}

/// What an entry needs besides the addresses.
#[derive(Clone, Copy, Debug)]
pub struct EntryOptions {
    /// The number of its account.
    pub account: u32,
    /// The number of its gate.
    pub gate: u32,
    /// The gate's epoch.
    pub epoch: u32,
    /// The number of the worker whose flow it is.
    pub worker: u16,
    /// The interface to send from.
    pub ifindex: u32,
    /// The neighbour on that link to send to.
    pub next_hop: IpAddr,
    /// The longest IP packet to forward.
    pub max_len: u16,
    /// Whether the worker may have datagrams of the flow still to send.
    pub is_pending: bool,
}

impl Entry {
    /// Turns packets of one tuple into packets of another. `None` if their families differ: a
    /// packet of IPv4 cannot become one of IPv6.
    pub fn new(from: &Tuple, to: &Tuple, options: &EntryOptions) -> Option<Self> {
        if from.source.is_ipv4() != to.source.is_ipv4() {
            return None;
        }
        let addresses = |tuple: &Tuple| [octets(tuple.source.ip()), octets(tuple.destination.ip())];
        let ports = |tuple: &Tuple| {
            [tuple.source.port().to_be_bytes(), tuple.destination.port().to_be_bytes()]
        };
        let [source, destination] = addresses(to);
        let [source_port, destination_port] = ports(to);
        Some(Self {
            source,
            destination,
            source_port,
            destination_port,
            address_change: change(addresses(from).as_flattened(), addresses(to).as_flattened()),
            port_change: change(ports(from).as_flattened(), ports(to).as_flattened()),
            account: options.account,
            gate: options.gate,
            epoch: options.epoch,
            ifindex: options.ifindex,
            next_hop: octets(options.next_hop),
            next_hop_family: if options.next_hop.is_ipv4() { AF_INET } else { AF_INET6 },
            max_len: options.max_len,
            worker: options.worker,
            pending: u16::from(options.is_pending),
        })
    }
}

/// An address in the byte order of the network; IPv4 in the first four octets.
fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&ip.octets());
            octets
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// What a ones' complement sum (RFC 1624) grows by when `new` takes the place of `old`, in the
/// host's byte order, as the kernel sums.
fn change(old: &[u8], new: &[u8]) -> u32 {
    let words = |octets: &[u8]| -> Vec<u16> {
        octets.chunks_exact(2).map(|pair| u16::from_ne_bytes([pair[0], pair[1]])).collect()
    };
    let less: u32 = words(old).into_iter().map(|word| u32::from(!word)).sum();
    let more: u32 = words(new).into_iter().map(u32::from).sum();
    let mut sum = less + more;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}
