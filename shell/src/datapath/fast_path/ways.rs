//! The ways that packets take, as far as they have been asked for.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;

use super::entries::{Path, Rewriting};
use crate::sys::route::{Link, NextHop, RouteLookup};

const UDP_HEADER: u32 = 8;

/// How many are remembered at most. Each costs some microseconds to be asked for.
const MAX_HOPS: usize = 16_384;

/// What the kernel says of routes and links. What it has said is remembered until something changes:
/// flows that it can never forward are offered again and again.
#[derive(Debug)]
pub(super) struct Ways {
    lookup: RouteLookup,
    /// By source and destination.
    hops: HashMap<(IpAddr, IpAddr), Option<NextHop>>,
    links: HashMap<u32, Option<Link>>,
}

impl Ways {
    /// None yet.
    ///
    /// # Errors
    ///
    /// Those of [`RouteLookup::open`].
    pub(super) fn open() -> io::Result<Self> {
        let lookup = RouteLookup::open()?;
        Ok(Self { lookup, hops: HashMap::new(), links: HashMap::new() })
    }

    /// Asks for all of them again.
    pub(super) fn forget(&mut self) {
        self.hops.clear();
        self.links.clear();
    }

    /// The way that packets take when they leave, and by which link. `None` if there is none by which
    /// the kernel could send them.
    pub(super) fn of(
        &mut self,
        rewriting: &Rewriting,
        max_datagram_size: u16,
    ) -> Option<(Path, Link)> {
        let Self { lookup, hops, links } = self;
        let ends @ (source, destination) =
            (rewriting.to.source().ip(), rewriting.to.destination().ip());
        if hops.len() >= MAX_HOPS {
            hops.clear();
        }
        let ask = || lookup.next_hop(source, destination).ok().flatten();
        let NextHop { ifindex, neighbour, mtu } = (*hops.entry(ends).or_insert_with(ask))?;
        let ask = || lookup.link(ifindex).ok().flatten();
        let link = links.entry(ifindex).or_insert_with(ask).clone();
        let link = link.filter(|link| link.is_ethernet)?;
        let header = if destination.is_ipv4() { 20 } else { 40 } + UDP_HEADER;
        let longest = (u32::from(max_datagram_size) + header).min(link.mtu);
        let longest = mtu.map_or(longest, |mtu| longest.min(mtu));
        let max_len = u16::try_from(longest).unwrap_or(u16::MAX);
        Some((Path { ifindex, neighbour, max_len }, link))
    }
}
