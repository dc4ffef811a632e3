//! Which address and port of ours the backends see.

use alloc::vec::Vec;
use core::hash::Hasher;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use crate::random::Random;
#[cfg(feature = "serde")]
use crate::snapshot::address;

/// Which address and port of ours the backends see. It has effect on sockets that open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub enum Source {
    /// Those that the kernel chooses.
    #[default]
    Any,
    /// What the configuration names: each socket has one of them, at random.
    Local(Vec<SourceAddress>),
    /// The client's own, both of them.
    Client,
}

/// An address of ours, and ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct SourceAddress {
    /// The address; `None`: the kernel chooses it.
    pub ip: Option<IpAddr>,
    /// The ports, one of which is taken at random; `None`: the kernel chooses one.
    pub ports: Option<PortRange>,
}

impl Source {
    /// The addresses from which a backend of that family is reached.
    pub fn of_family(&self, v6: bool) -> impl Iterator<Item = SourceAddress> {
        let all: &[SourceAddress] = match self {
            Self::Local(addresses) => addresses,
            Self::Any | Self::Client => &[],
        };
        all.iter().copied().filter(move |address| address.is_of_family(v6))
    }

    /// What a socket can be bound to that cannot have what was chosen for it.
    pub fn others(&self, chosen: LocalSource, v6: bool) -> impl Iterator<Item = LocalSource> {
        let salt = if let LocalSource::Local { salt, .. } = chosen { salt } else { 0 };
        self.of_family(v6)
            .map(move |address| address.with_salt(salt))
            .filter(move |other| *other != chosen)
    }

    /// Whether a backend of that family is reached, as far as that can be said.
    pub fn reaches(&self, v6: bool) -> bool {
        !matches!(self, Self::Local(_)) || self.of_family(v6).next().is_some()
    }

    /// Whether it names ports.
    pub fn has_port_range(&self) -> bool {
        matches!(self, Self::Local(all) if all.iter().any(|address| address.ports.is_some()))
    }
}

impl SourceAddress {
    /// Whether a backend of that family is reached from it.
    pub fn is_of_family(self, v6: bool) -> bool {
        self.ip.is_none_or(|ip| ip.is_ipv6() == v6)
    }

    /// What one socket is to be bound to.
    pub const fn with_salt(self, salt: u64) -> LocalSource {
        LocalSource::Local { ip: self.ip, ports: self.ports, salt }
    }
}

/// Ports from one to another, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

impl PortRange {
    /// How many there are; 0 where the lowest is above the highest.
    pub const fn len(self) -> u32 {
        (self.last as u32 + 1).saturating_sub(self.first as u32)
    }

    /// Whether there are none.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// All of them in an order that `salt` decides, each once.
    pub fn shuffled(self, salt: u64) -> impl Iterator<Item = u16> {
        let len = self.len().max(1);
        let start = (salt >> 32) as u32 % len;
        // A step that shares no factor with the length comes by every port before it repeats one.
        let mut step = salt as u32 % len;
        while greatest_common_divisor(step, len) != 1 {
            step = step.wrapping_add(1);
        }
        let at = move |n: u32| (u64::from(start) + u64::from(n) * u64::from(step)) % u64::from(len);
        (0..self.len()).map(move |n| self.first + at(n) as u16)
    }
}

const fn greatest_common_divisor(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// The address and port that one socket is bound to before it is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub enum LocalSource {
    /// Those that the kernel chooses.
    Any,
    /// One of these.
    Local {
        /// The address; `None`: the kernel chooses it.
        ip: Option<IpAddr>,
        /// The ports; `None`: the kernel chooses one.
        ports: Option<PortRange>,
        /// Decides the order in which ports are tried, as [`PortRange::shuffled`] says.
        salt: u64,
    },
    /// The client's own.
    Client(#[cfg_attr(feature = "serde", serde(with = "address"))] SocketAddr),
}

/// Where the orders of ports come from. Backends, and anyone who watches them, see the ports that were
/// chosen, so that it must not follow from them which ones come next: a keyed hash of a count.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub(crate) struct Salts {
    keys: (u64, u64),
    drawn: u64,
}

impl Salts {
    /// Salts that grow from a seed, beside the sequence from which everything else is drawn.
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x504F_5254_5341_4C54);
        Self { keys: (random.draw(), random.draw()), drawn: 0 }
    }

    /// What the socket of a client is to be bound to, that sends to backends of that family.
    pub(crate) fn choose(&mut self, source: &Source, client: SocketAddr, v6: bool) -> LocalSource {
        let all = match source {
            Source::Any => return LocalSource::Any,
            Source::Client => return LocalSource::Client(client),
            Source::Local(all) => all,
        };
        let count = source.of_family(v6).count();
        let drawn = if count > 1 { self.draw() % count as u64 } else { 0 };
        // From one of another family nothing can be sent, which is found out when it is tried.
        let Some(address) = source.of_family(v6).nth(drawn as usize).or(all.first().copied())
        else {
            return LocalSource::Any;
        };
        address.with_salt(if source.has_port_range() { self.draw() } else { 0 })
    }

    fn draw(&mut self) -> u64 {
        self.drawn += 1;
        let mut hasher = SipHasher13::new_with_keys(self.keys.0, self.keys.1);
        hasher.write_u64(self.drawn);
        hasher.finish()
    }
}

/// Whether no host has this address.
pub fn is_nobodys(address: SocketAddr) -> bool {
    let ip = address.ip();
    let is_broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    address.port() == 0 || ip.is_unspecified() || ip.is_multicast() || is_broadcast
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::PortRange;

    #[test]
    fn every_port_of_a_range_comes_once_whatever_the_salt() {
        for (first, last) in [(7, 7), (20_000, 20_001), (20_000, 20_999), (1, 65_535)] {
            let range = PortRange { first, last };
            for salt in [0, 1, u64::MAX, 0x9E37_79B9_7F4A_7C15] {
                let mut ports: Vec<u16> = range.shuffled(salt).collect();
                ports.sort_unstable();
                assert!(ports.iter().copied().eq(first..=last), "{range:?}, {salt}");
            }
        }
    }

    #[test]
    fn the_salt_decides_which_port_is_first_and_which_comes_next() {
        let range = PortRange { first: 20_000, last: 20_999 };
        let begin = |salt| range.shuffled(salt).take(2).collect::<Vec<_>>();
        let salts = (0..100_u64).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut begins: Vec<_> = salts.map(begin).collect();
        begins.sort_unstable();
        begins.dedup();
        assert!(begins.len() > 95, "{begins:?}");
    }

    #[test]
    fn a_range_without_ports_has_none() {
        assert_eq!(PortRange { first: 2, last: 1 }.shuffled(9).count(), 0);
    }
}
