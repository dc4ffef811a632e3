//! Where a listener listens: its address or range of ports, and its interface.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};

use flowgate_core::config::Source;

use super::super::cluster::Clusters;
use crate::Listener;
use crate::cluster::{Cluster, Member, Target};
use crate::reader::{Claims, Field, Item, Table};
use crate::value::{boolean, interface, listen_addresses};

/// The keys of a listener that say where it listens.
pub(super) struct Bound<'t> {
    pub(super) interface: Field<'t, String>,
    /// Whether the file names an interface, be it one that there can be or not.
    pub(super) has_interface: bool,
    /// The address with the first port, or the only one.
    pub(super) address: Field<'t, SocketAddr>,
    /// The last port of a range.
    pub(super) last_port: Option<u16>,
    pub(super) v6_only: bool,
}

impl<'t> Bound<'t> {
    pub(super) fn read(table: &'t Table<'_>) -> Self {
        let interface = table.get("interface", interface);
        let has_interface = interface.item.value().is_some();
        let range = table.require("address", listen_addresses).when(
            |(address, _)| has_interface || !address.ip().is_multicast(),
            "an address of this host or a wildcard, or a multicast group beside the `interface` at which \
             it is joined",
        );
        let last_port = range.value.and_then(|(_, last)| last);
        let address = Field { value: range.value.map(|(address, _)| address), item: range.item };
        let v6_only = table
            .get("v6_only", boolean)
            .when(
                |only| !only || address.value.is_none_or(|a| a.is_ipv6()),
                "false, as the address is IPv4",
            )
            .or(false);
        Self { interface, has_interface, address, last_port, v6_only }
    }

    /// The address as the file has it.
    pub(super) fn written(&self, address: SocketAddr) -> String {
        self.last_port.map_or_else(|| address.to_string(), |last| format!("{address}-{last}"))
    }

    /// Whether nobody else has one of its addresses. `None`: it has none, or an interface that there
    /// cannot be.
    pub(super) fn claim(&self, addresses: &mut Addresses) -> Option<bool> {
        let address = self.address.value?;
        if self.interface.is_refused() {
            return None;
        }
        let interface = self.interface.value.as_deref();
        let mut all = (address.port()..=self.last_port.unwrap_or(address.port()))
            .flat_map(|port| covered(with_port(address, port), self.v6_only));
        Some(all.all(|a| addresses.claim(a, interface, &self.address.item)))
    }

    /// Whether a cluster can send from the clients' addresses, if it is to: of those that come by a
    /// proxy, and at a dual-stack listener, the family is known with each datagram.
    pub(super) fn can_pose(&self, cluster: &Cluster) -> bool {
        let (Some(address), Source::Client) = (self.address.value, &cluster.policy.source) else {
            return true;
        };
        let is_dual = address.is_ipv6() && address.ip().is_unspecified() && !self.v6_only;
        let is_of_family = |member: &Member| member.may_be_of_family(address.is_ipv6());
        is_dual || cluster.members.iter().all(is_of_family)
    }

    /// Whether what a cluster sends, or its mirror, comes back to the listener as far as can be said of
    /// any host.
    pub(super) fn is_sent_to_by(&self, cluster: &Cluster, clusters: &Clusters) -> bool {
        let Some(address) = self.address.value else { return false };
        let ports = address.port()..=self.last_port.unwrap_or(address.port());
        let bound = |to: SocketAddr| match ports.contains(&to.port()) {
            true => with_port(address, to.port()),
            false => address,
        };
        let mirror = cluster.mirror.as_deref().and_then(|name| clusters.get(name));
        let mut members = mirror.into_iter().chain([cluster]).flat_map(|cluster| &cluster.members);
        members.any(|member| match member.target {
            Target::Address(to) => {
                Listener::is_reached_at(bound(to), self.v6_only, to, |ip| ip.is_loopback())
            }
            Target::Name { .. } => false,
        })
    }
}

fn with_port(mut address: SocketAddr, port: u16) -> SocketAddr {
    address.set_port(port);
    address
}

/// The addresses that listeners have, each at one interface or at all of them.
#[derive(Default)]
pub(super) struct Addresses {
    claims: Claims<(SocketAddr, Option<String>)>,
    has_interface: HashMap<SocketAddr, bool>,
}

impl Addresses {
    /// Whether nobody else has an address. Where one is there with an interface and one without, the
    /// kernel gives datagrams to the one that was bound last.
    fn claim(&mut self, address: SocketAddr, interface: Option<&str>, item: &Item<'_>) -> bool {
        let has_interface = *self.has_interface.entry(address).or_insert(interface.is_some());
        if has_interface != interface.is_some() {
            item.refuse::<()>(
                "an address that no other listener receives on, unless each of them has an `interface`",
            );
            return false;
        }
        let interface = interface.map(str::to_owned);
        self.claims.claim(
            (address, interface),
            item,
            "an address that no other listener receives on",
        )
    }
}

/// The addresses that are a listener's alone: its own, and for the dual-stack `[::]` all of IPv4.
///
/// A single address beside a wildcard is no clash: the kernel gives a datagram to the more specific
/// of the two. Nor is port 0, which is another port each time.
fn covered(address: SocketAddr, v6_only: bool) -> Vec<SocketAddr> {
    let is_dual = address.is_ipv6() && address.ip().is_unspecified() && !v6_only;
    let ipv4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
    match address.port() {
        0 => vec![],
        _ if is_dual => vec![address, ipv4],
        _ => vec![address],
    }
}
