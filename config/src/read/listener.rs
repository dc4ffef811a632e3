//! `[[listener]]`.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytesize::ByteSize;
use flowgate_core::config::{Accept, Balance, MAX_FLOWS, Mode, Source};
use flowgate_core::route::Routes;
use ipnet::IpNet;

use super::announce::{self, AnnouncedBy};
use super::cluster::Clusters;
use crate::cluster::{Cluster, Member, Target};
use crate::error::Fault;
use crate::reader::{Claims, Field, Item, Table};
use crate::value::{boolean, choice, integer, interface, listen_addresses, name, network, size};
use crate::{FastPathMode, Listener};

const TABLES: &str = "one or more [[listener]] tables";

/// The longest payload of a UDP datagram over IPv4.
const MAX_DATAGRAM: u16 = 65_507;

/// What may be asked of the kernel. It doubles the number and keeps it as a signed 32-bit one.
const BUFFER: RangeInclusive<ByteSize> = ByteSize::kib(4)..=ByteSize::mib(512);

const DEFAULT_BUFFER: usize = 4 << 20;

pub(super) fn listeners(
    item: &Item<'_>,
    clusters: &Clusters,
    announced_by: &mut AnnouncedBy,
) -> Option<Vec<Listener>> {
    let mut seen = Seen { names: Claims::new(), addresses: Addresses::default(), announced_by };
    let listeners =
        item.list(TABLES, |item| item.table(TABLES, |table| listener(table, clusters, &mut seen)))?;
    let listeners: Vec<_> = listeners.into_iter().flatten().collect();
    if listeners.is_empty() { item.refuse(TABLES) } else { Some(listeners) }
}

/// What no two listeners have.
struct Seen<'a> {
    names: Claims<String>,
    addresses: Addresses,
    announced_by: &'a mut AnnouncedBy,
}

fn listener(
    table: &Table<'_>,
    clusters: &Clusters,
    Seen { names, addresses, announced_by }: &mut Seen<'_>,
) -> Option<Vec<Listener>> {
    let interface = table.get("interface", interface);
    let has_interface = interface.item.value().is_some();
    let range = table.require("address", listen_addresses).when(
        |(address, _)| has_interface || !address.ip().is_multicast(),
        "an address of this host or a wildcard, or a multicast group beside the `interface` at which \
         it is joined",
    );
    let last_port = range.value.and_then(|(_, last)| last);
    let address = Field { value: range.value.map(|(address, _)| address), item: range.item };
    let name = table.get("name", name);
    let cluster = table.require("cluster", |item| clusters.named(item));
    let v6_only = table
        .get("v6_only", boolean)
        .when(
            |only| !only || address.value.is_none_or(|a| a.is_ipv6()),
            "false, as the address is IPv4",
        )
        .or(false);
    let max_flows = table.get("max_flows", integer(0..=MAX_FLOWS)).or(0);
    let max_datagram_size =
        table.get("max_datagram_size", integer(1..=MAX_DATAGRAM)).or(MAX_DATAGRAM);
    let receive_buffer = table.get("receive_buffer", size(BUFFER)).or(DEFAULT_BUFFER);
    let send_buffer = table.get("send_buffer", size(BUFFER)).or(DEFAULT_BUFFER);
    let accept_proxy_protocol = proxies(table, address.value, v6_only);
    let cluster = cluster.when(
        |cluster| !accept_proxy_protocol.is_empty() || can_pose(address.value, v6_only, cluster),
        "a cluster all of whose backends are of the clients' family, since by source = \"client\" \
         it sends from their addresses",
    );
    let cluster = cluster.when(
        |cluster| !sends_to_itself(address.value, last_port, v6_only, cluster, clusters),
        "a cluster that has not the listener itself among its backends, nor among those of its \
         mirror: each datagram would go round until its time to live ends",
    );
    let accept = accept(table, address.value, &accept_proxy_protocol, cluster.value.as_deref());
    let accept = accept.when(
        |accept| *accept == Accept::Shared || !has_interface,
        "shared, as the listener takes the datagrams of one interface only",
    );
    let fast_path = fast_path(table, address.value, has_interface, cluster.value.as_deref());
    let is_alone = |accept: &Accept| last_port.is_none() || *accept == Accept::Shared;
    let accept = accept.when(is_alone, "shared, as the address has a range of ports");
    let accept = accept.or(Accept::Shared);
    let same_port = table.get("backend_port", choice(BACKEND_PORT)).when(
        |same| !same || last_port.is_some(),
        "own, or same beside an address with a range of ports",
    );
    let same_port = same_port.when(
        |same| !same || cluster.value.as_deref().is_none_or(has_a_place_by_host),
        "own, or same where each backend has a host of its own, and `balance` is not maglev, whose table \
         would be another one for each port",
    );
    let same_port = same_port.or(false);
    let routes = routes(table, clusters);
    let routes = routes.when(
        |routes| routes.is_empty() || accept_proxy_protocol.is_empty(),
        "nothing beside accept_proxy_protocol: whom a header names is known too late",
    );
    let routes = routes.when(
        |routes| routes.is_empty() || accept == Accept::Shared,
        "nothing beside another value of accept than shared: what a client's own socket receives is read \
         for one cluster only",
    );
    let routes = routes.when(
        |routes| {
            routes.iter().all(|(_, cluster)| {
                can_pose(address.value, v6_only, cluster)
                    && !sends_to_itself(address.value, last_port, v6_only, cluster, clusters)
            })
        },
        "clusters that could serve the listener by themselves",
    );
    if routes.is_refused() {
        return None;
    }
    let routes = routes.or(Vec::new());
    let allow = table.get("allow", networks).or(vec![]);
    let deny = table.get("deny", networks).or(vec![]);
    let announce = announce::announce(table, announced_by);

    let at = address.value?;
    if interface.is_refused() {
        return None;
    }
    let interface = interface.value.clone();
    let all_new = (at.port()..=last_port.unwrap_or(at.port()))
        .flat_map(|port| covered(with_port(at, port), v6_only))
        .all(|a| addresses.claim(a, interface.as_deref(), &address.item));
    let written = last_port.map_or_else(|| at.to_string(), |last| format!("{at}-{last}"));
    let named = name.value.clone().unwrap_or(written);
    if all_new {
        names.claim(named.clone(), &name.item, "a name that no other listener has");
    }
    let listener = Listener {
        routes: Routes::new(
            routes.iter().map(|(from, cluster)| (from.clone(), cluster.name.clone())).collect(),
        ),
        routed_from: None,
        name: named,
        address: at,
        interface,
        last_port,
        same_port,
        v6_only,
        cluster: cluster.value?,
        max_flows: NonZeroU32::new(max_flows),
        max_datagram_size,
        receive_buffer,
        send_buffer,
        accept_proxy_protocol,
        accept,
        fast_path,
        allow,
        deny,
        announce: announce.value,
    };
    let mut all = vec![listener];
    for (_, cluster) in routes {
        if all.iter().all(|listener| listener.cluster.name != cluster.name) {
            let child = routed(&all[0], cluster);
            names.claim(child.name.clone(), &name.item, "a name that no other listener has");
            all.push(child);
        }
    }
    Some(all)
}

/// What serves those of a listener's clients that a route has for another cluster.
fn routed(listener: &Listener, cluster: Arc<Cluster>) -> Listener {
    Listener {
        name: format!("{}/{}", listener.name, cluster.name),
        cluster,
        routes: Routes::default(),
        routed_from: Some(listener.name.clone()),
        announce: None,
        ..listener.clone()
    }
}

/// `[[listener.route]]`: networks of clients, and the clusters that serve them.
fn routes<'t>(
    table: &'t Table<'_>,
    clusters: &Clusters,
) -> Field<'t, Vec<(Vec<IpNet>, Arc<Cluster>)>> {
    const ROUTES: &str = "[[listener.route]] tables with `from` and `cluster`";
    table.get("route", |item| {
        item.list(ROUTES, |item| {
            item.table(ROUTES, |table| {
                let from = table.require("from", networks);
                let from = from.when(|from| !from.is_empty(), "one or more networks");
                let cluster = table.require("cluster", |item| clusters.named(item));
                Some((from.value?, cluster.value?))
            })
        })
    })
}

/// Whether datagrams go to the port that they came to.
const BACKEND_PORT: &[(&str, bool)] = &[("own", false), ("same", true)];

fn with_port(mut address: SocketAddr, port: u16) -> SocketAddr {
    address.set_port(port);
    address
}

/// Whether backends are told apart by their hosts alone, and each port's can be chosen again.
fn has_a_place_by_host(cluster: &Cluster) -> bool {
    let hosts = cluster.members.iter().map(|member| match &member.target {
        Target::Address(address) => address.ip().to_string(),
        Target::Name { host, .. } => host.clone(),
    });
    let all: std::collections::HashSet<_> = hosts.collect();
    all.len() == cluster.members.len() && cluster.policy.balance != Balance::Maglev
}

const ACCEPT: &[(&str, Accept)] = &[
    ("shared", Accept::Shared),
    ("connected", Accept::Connected),
    ("confirmed", Accept::Confirmed),
];

/// What `"xdp"` would be is not built.
const FAST_PATH: &[(&str, Option<FastPathMode>)] = &[
    ("off", Some(FastPathMode::Off)),
    ("auto", Some(FastPathMode::Auto)),
    ("tc", Some(FastPathMode::Tc)),
    ("xdp", None),
];

/// Whether the kernel forwards established flows. Where it is told how, it has to be possible.
fn fast_path(
    table: &Table<'_>,
    address: Option<SocketAddr>,
    has_interface: bool,
    cluster: Option<&Cluster>,
) -> FastPathMode {
    let is_asked = |asked: &Option<FastPathMode>| *asked == Some(FastPathMode::Tc);
    let is_loopback = address.is_some_and(|address| address.ip().is_loopback());
    let obstacle = cluster.and_then(|cluster| cluster.policy.offload_obstacle());
    let asked = table
        .get("fast_path", choice(FAST_PATH))
        .when(Option::is_some, "off, auto, tc: this version has no program for XDP")
        .when(
            |asked| !is_asked(asked) || !is_loopback,
            "off or auto, as the address is a loopback address, whose packets pass no interface",
        )
        .when(
            |asked| !is_asked(asked) || !has_interface,
            "off or auto, as the listener takes the datagrams of one interface only",
        )
        .when(
            |asked| !is_asked(asked) || obstacle.is_none(),
            "off or auto, as the cluster's datagrams cannot be forwarded unseen: it has another mode \
             than \"session\", counts requests, responses, amplification or what each client sends, \
             sends PROXY headers with every datagram, or has an affinity that looks into datagrams",
        );
    asked.or(Some(FastPathMode::Off)).unwrap_or_default()
}

/// Whether clients get sockets of their own, which not every listener can give them.
fn accept<'t>(
    table: &'t Table<'_>,
    address: Option<SocketAddr>,
    proxies: &[IpNet],
    cluster: Option<&Cluster>,
) -> Field<'t, Accept> {
    let is_shared = |accept: &Accept| *accept == Accept::Shared;
    // A wildcard's sockets would be everybody's for a moment, and IPv6 has no order in which the
    // listener is found before them.
    let is_one_of_ipv4 = address.is_none_or(|a| a.is_ipv4() && !a.ip().is_unspecified());
    let has_sessions =
        cluster.is_none_or(|cluster| matches!(cluster.policy.mode, Mode::Session { .. }));
    table
        .get("accept", choice(ACCEPT))
        .when(
            |accept| is_shared(accept) || is_one_of_ipv4,
            "shared, or another value beside one IPv4 address: not beside a wildcard or IPv6",
        )
        .when(
            |accept| is_shared(accept) || proxies.is_empty(),
            "shared, as accept_proxy_protocol lets a proxy's socket speak for many clients",
        )
        .when(
            |accept| is_shared(accept) || has_sessions,
            "shared, as the cluster's mode is not \"session\"",
        )
}

/// Whether a cluster can send from the clients' addresses, if it is to: of those that come by a
/// proxy, and at a dual-stack listener, the family is known with each datagram.
fn can_pose(address: Option<SocketAddr>, v6_only: bool, cluster: &Cluster) -> bool {
    let (Some(address), Source::Client) = (address, &cluster.policy.source) else { return true };
    let is_dual = address.is_ipv6() && address.ip().is_unspecified() && !v6_only;
    let is_of_family = |member: &Member| member.may_be_of_family(address.is_ipv6());
    is_dual || cluster.members.iter().all(is_of_family)
}

/// Whether what a cluster sends, or its mirror, comes back to the listener as far as can be said of
/// any host.
fn sends_to_itself(
    address: Option<SocketAddr>,
    last_port: Option<u16>,
    v6_only: bool,
    cluster: &Cluster,
    clusters: &Clusters,
) -> bool {
    let Some(address) = address else { return false };
    let ports = address.port()..=last_port.unwrap_or(address.port());
    let bound = |to: SocketAddr| match ports.contains(&to.port()) {
        true => with_port(address, to.port()),
        false => address,
    };
    let mirror = cluster.mirror.as_deref().and_then(|name| clusters.get(name));
    let members = mirror.into_iter().chain([cluster]).flat_map(|cluster| &cluster.members);
    members.clone().any(|member| match member.target {
        Target::Address(to) => {
            Listener::is_reached_at(bound(to), v6_only, to, |ip| ip.is_loopback())
        }
        Target::Name { .. } => false,
    })
}

/// The networks of trusted proxies, which have to be of a family that the listener receives.
fn proxies(table: &Table<'_>, address: Option<SocketAddr>, v6_only: bool) -> Vec<IpNet> {
    let hears = |network: &IpNet| match (network, address) {
        (_, None) | (IpNet::V4(_), Some(SocketAddr::V4(_))) => true,
        (IpNet::V6(_), Some(address)) => address.is_ipv6(),
        (IpNet::V4(_), Some(address)) => address.ip().is_unspecified() && !v6_only,
    };
    let proxies = table.get("accept_proxy_protocol", networks).when(
        |networks| networks.iter().all(hears),
        "networks of the families that the listener receives",
    );
    let trusted = proxies.value.iter().flatten();
    if trusted.clone().any(|network| network.prefix_len() == 0) {
        proxies.item.warn(Fault::TrustsEverybody);
    }
    proxies.or(vec![])
}

fn networks(item: &Item<'_>) -> Option<Vec<IpNet>> {
    item.list("a list of networks, such as [\"10.0.0.0/8\"]", network)
}

/// The addresses that listeners have, each at one interface or at all of them.
#[derive(Default)]
struct Addresses {
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
