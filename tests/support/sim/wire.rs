//! The network: parcels of datagrams that wait, overtake each other, and are joined.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use flowgate_core::burst::MAX_BURST_BYTES;
use flowgate_core::{Burst, FlowId, LocalAddr, ManagerInput, UpstreamId};

use super::action::Train;
use super::payload::Tag;

/// Datagrams on their way to the balancer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parcel {
    pub(super) route: Route,
    pub(super) tos: u8,
    pub(super) stride: u16,
    pub(super) bytes: Vec<u8>,
    /// What a proxy has put in front of each datagram.
    header: Vec<u8>,
}

/// Whom they come from, and which of the balancer's sockets they will arrive at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    FromClient { source: SocketAddr, local: Option<LocalAddr>, ttl: u8 },
    FromBackend(Way),
}

/// Where strangers answer from.
pub(super) const STRANGER: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 66)), 53);

/// From a backend to a socket, on which it answers a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) flow: FlowId,
    pub(super) upstream: UpstreamId,
    pub(super) sender: SocketAddr,
}

/// What the kernel joins at most.
const MOST_COALESCED: usize = 64;

impl Parcel {
    /// Datagrams that all carry the tag of one party, each with a number of its own.
    pub(super) fn new(
        route: Route,
        tos: u8,
        train: Train,
        party: u16,
        next_number: &mut u32,
    ) -> Self {
        let mut bytes = vec![0; train.total_len()];
        // One empty datagram has no bytes to fill.
        for datagram in bytes.chunks_mut(usize::from(train.len).max(1)) {
            *next_number = next_number.wrapping_add(1);
            let number = *next_number;
            Tag { party, number }.fill(datagram);
        }
        let stride = train.len;
        Self { route, tos, stride, bytes, header: vec![] }
    }

    /// The same with a header in front of each datagram, unless that is too much for a burst.
    pub(super) fn behind(self, header: Vec<u8>) -> Self {
        let count = usize::from(self.burst().count());
        let stride = usize::from(self.stride) + header.len();
        if stride * count > MAX_BURST_BYTES {
            return self;
        }
        let told = |datagram: &[u8]| [&header, datagram].concat();
        let bytes = self.burst().datagrams().flat_map(told).collect();
        Self { stride: stride as u16, bytes, header, ..self }
    }

    pub(super) fn burst(&self) -> Burst<'_> {
        Burst::segmented(&self.bytes, self.stride).expect("a parcel fits a burst")
    }

    pub(super) fn input(&self) -> ManagerInput<'_> {
        let (tos, burst) = (self.tos, self.burst());
        match self.route {
            Route::FromClient { source, local, ttl } => {
                ManagerInput::ClientBurst { source, local, tos, ttl, burst }
            }
            Route::FromBackend(Way { upstream, sender, .. }) => {
                ManagerInput::UpstreamBurst { upstream, sender, tos, burst }
            }
        }
    }

    /// Whether its sender is not whom it answers for.
    pub(super) fn is_of_a_stranger(&self) -> bool {
        matches!(self.route, Route::FromBackend(Way { sender: STRANGER, .. }))
    }

    /// Each datagram as a parcel of its own.
    pub(super) fn singly(&self) -> Vec<Self> {
        let single = |datagram: &[u8]| Self {
            stride: datagram.len() as u16,
            bytes: datagram.to_vec(),
            header: self.header.clone(),
            ..*self
        };
        self.burst().datagrams().map(single).collect()
    }

    /// Whether the kernel may append another parcel's datagrams: same way, same marks, same
    /// length, and nothing short in between.
    fn can_absorb(&self, other: &Self) -> bool {
        let stride = usize::from(self.stride);
        let bytes = self.bytes.len() + other.bytes.len();
        (self.route, self.tos, self.stride) == (other.route, other.tos, other.stride)
            && self.header == other.header
            && stride > 0
            && self.bytes.len().is_multiple_of(stride)
            && bytes <= MAX_BURST_BYTES
            && bytes.div_ceil(stride) <= MOST_COALESCED
    }
}

/// Parcels that wait. A full wire loses what comes, as a network does.
#[derive(Clone, Debug, Default)]
pub(super) struct Wire(Vec<Parcel>);

const MOST_PARCELS: usize = 32;

impl Wire {
    pub(super) fn hold(&mut self, parcel: Parcel) {
        if self.0.len() < MOST_PARCELS {
            self.0.push(parcel);
        }
    }

    /// Takes one parcel, and joins to it those behind that the kernel would.
    pub(super) fn take(&mut self, pick: u8, coalesced: bool) -> Option<Parcel> {
        let index = usize::from(pick).checked_rem(self.0.len())?;
        let mut parcel = self.0.remove(index);
        while coalesced && self.0.get(index).is_some_and(|next| parcel.can_absorb(next)) {
            parcel.bytes.extend(self.0.remove(index).bytes);
        }
        Some(parcel)
    }

    /// Loses what goes some way.
    pub(super) fn lose(&mut self, goes_there: impl Fn(&Route) -> bool) {
        self.0.retain(|parcel| !goes_there(&parcel.route));
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
