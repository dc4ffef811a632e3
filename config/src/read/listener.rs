//! `[[listener]]`.

mod bound;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytesize::ByteSize;
use flowgate_core::config::{Accept, Affinity, Balance, MAX_FLOWS, Mode, Source};
use flowgate_core::route::Routes;
use ipnet::IpNet;

use self::bound::{Addresses, Bound};
use super::announce::{self, AnnouncedBy};
use super::cluster::Clusters;
use crate::cluster::{Cluster, Target};
use crate::error::Fault;
use crate::reader::{Claims, Field, Item, Table};
use crate::value::{boolean, choice, integer, name, network, size};
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
    let bound = Bound::read(table);
    let name = table.get("name", name);
    let accept_proxy_protocol = proxies(table, &bound);
    let cluster = cluster(table, clusters, &bound, !accept_proxy_protocol.is_empty());
    let its_cluster = cluster.value.as_deref();
    let max_flows = table.get("max_flows", integer(0..=MAX_FLOWS)).or(0);
    let max_datagram_size =
        table.get("max_datagram_size", integer(1..=MAX_DATAGRAM)).or(MAX_DATAGRAM);
    let receive_buffer = table.get("receive_buffer", size(BUFFER)).or(DEFAULT_BUFFER);
    let send_buffer = table.get("send_buffer", size(BUFFER)).or(DEFAULT_BUFFER);
    let dont_fragment = dont_fragment(table, its_cluster);
    let fast_path = fast_path(table, &bound, its_cluster);
    let accept = accept(table, &bound, !accept_proxy_protocol.is_empty(), its_cluster);
    let same_port = same_port(table, &bound, its_cluster);
    let beside = (accept, !accept_proxy_protocol.is_empty());
    let routes = routes(table, clusters, &bound, beside)?;
    let allow = table.get("allow", networks).or(vec![]);
    let deny = table.get("deny", networks).or(vec![]);
    let announce = announce::announce(table, announced_by);

    let address = bound.address.value?;
    let all_new = bound.claim(addresses)?;
    let named = name.value.unwrap_or_else(|| bound.written(address));
    if all_new {
        names.claim(named.clone(), &name.item, "a name that no other listener has");
    }
    let listener = Listener {
        routes: Routes::new(
            routes.iter().map(|(from, cluster)| (from.clone(), cluster.name.clone())).collect(),
        ),
        routed_from: None,
        name: named,
        address,
        interface: bound.interface.value,
        last_port: bound.last_port,
        same_port,
        v6_only: bound.v6_only,
        cluster: cluster.value?,
        max_flows: NonZeroU32::new(max_flows),
        max_datagram_size,
        receive_buffer,
        send_buffer,
        dont_fragment,
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

/// The cluster that serves its clients, which has to be able to.
fn cluster<'t>(
    table: &'t Table<'_>,
    clusters: &Clusters,
    bound: &Bound<'_>,
    has_proxies: bool,
) -> Field<'t, Arc<Cluster>> {
    table
        .require("cluster", |item| clusters.named(item))
        .when(
            |cluster| has_proxies || bound.can_pose(cluster),
            "a cluster all of whose backends are of the clients' family, since by source = \"client\" \
             it sends from their addresses",
        )
        .when(
            |cluster| !bound.is_sent_to_by(cluster, clusters),
            "a cluster that has not the listener itself among its backends, nor among those of its \
             mirror: each datagram would go round until its time to live ends",
        )
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

/// `[[listener.route]]`: networks of clients, and the clusters that serve them. `None`: they are refused.
fn routes(
    table: &Table<'_>,
    clusters: &Clusters,
    bound: &Bound<'_>,
    (accept, has_proxies): (Accept, bool),
) -> Option<Vec<(Vec<IpNet>, Arc<Cluster>)>> {
    const ROUTES: &str = "[[listener.route]] tables with `from` and `cluster`";
    let routes = table.get("route", |item| {
        item.list(ROUTES, |item| {
            item.table(ROUTES, |table| {
                let from = table.require("from", networks);
                let from = from.when(|from| !from.is_empty(), "one or more networks");
                let cluster = table.require("cluster", |item| clusters.named(item));
                Some((from.value?, cluster.value?))
            })
        })
    });
    let can_serve =
        |cluster: &Cluster| bound.can_pose(cluster) && !bound.is_sent_to_by(cluster, clusters);
    let routes = routes
        .when(
            |routes| routes.is_empty() || !has_proxies,
            "nothing beside accept_proxy_protocol: whom a header names is known too late",
        )
        .when(
            |routes| routes.is_empty() || accept == Accept::Shared,
            "nothing beside another value of accept than shared: what a client's own socket receives is \
             read for one cluster only",
        )
        .when(
            |routes| routes.iter().all(|(_, cluster)| can_serve(cluster)),
            "clusters that could serve the listener by themselves",
        );
    (!routes.is_refused()).then(|| routes.or(Vec::new()))
}

/// Whether datagrams go to the port that they came to.
const BACKEND_PORT: &[(&str, bool)] = &[("own", false), ("same", true)];

fn same_port(table: &Table<'_>, bound: &Bound<'_>, cluster: Option<&Cluster>) -> bool {
    let same_port = table
        .get("backend_port", choice(BACKEND_PORT))
        .when(
            |same| !same || bound.last_port.is_some(),
            "own, or same beside an address with a range of ports",
        )
        .when(
            |same| !same || cluster.is_none_or(is_picked_by_host),
            "own, or same where each backend has a host of its own, and `balance` is not maglev, whose \
             table would be another one for each port",
        );
    same_port.or(false)
}

/// Whether backends are told apart by their hosts alone, and each port's can be chosen again.
fn is_picked_by_host(cluster: &Cluster) -> bool {
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
fn fast_path(table: &Table<'_>, bound: &Bound<'_>, cluster: Option<&Cluster>) -> FastPathMode {
    let is_asked = |asked: &Option<FastPathMode>| *asked == Some(FastPathMode::Tc);
    let is_loopback = bound.address.value.is_some_and(|address| address.ip().is_loopback());
    let obstacle = cluster.and_then(|cluster| cluster.policy.offload_obstacle());
    let asked = table
        .get("fast_path", choice(FAST_PATH))
        .when(Option::is_some, "off, auto, tc: this version has no program for XDP")
        .when(
            |asked| !is_asked(asked) || !is_loopback,
            "off or auto, as the address is a loopback address, whose packets pass no interface",
        )
        .when(
            |asked| !is_asked(asked) || !bound.has_interface,
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
fn accept(
    table: &Table<'_>,
    bound: &Bound<'_>,
    has_proxies: bool,
    cluster: Option<&Cluster>,
) -> Accept {
    let is_shared = |accept: &Accept| *accept == Accept::Shared;
    // A wildcard's sockets would be everybody's for a moment, and IPv6 has no order in which the
    // listener is found before them.
    let is_one_of_ipv4 =
        bound.address.value.is_none_or(|a| a.is_ipv4() && !a.ip().is_unspecified());
    let has_sessions =
        cluster.is_none_or(|cluster| matches!(cluster.policy.mode, Mode::Session { .. }));
    table
        .get("accept", choice(ACCEPT))
        .when(
            |accept| is_shared(accept) || is_one_of_ipv4,
            "shared, or another value beside one IPv4 address: not beside a wildcard or IPv6",
        )
        .when(
            |accept| is_shared(accept) || !has_proxies,
            "shared, as accept_proxy_protocol lets a proxy's socket speak for many clients",
        )
        .when(
            |accept| is_shared(accept) || has_sessions,
            "shared, as the cluster's mode is not \"session\"",
        )
        .when(
            |accept| is_shared(accept) || !bound.has_interface,
            "shared, as the listener takes the datagrams of one interface only",
        )
        .when(
            |accept| is_shared(accept) || bound.last_port.is_none(),
            "shared, as the address has a range of ports",
        )
        .or(Accept::Shared)
}

/// Whether nothing may be cut into fragments: where it is QUIC, which says so of its own packets
/// (RFC 9000, 14), unless set otherwise.
fn dont_fragment(table: &Table<'_>, cluster: Option<&Cluster>) -> bool {
    let is_raw = |cluster: &Cluster| cluster.is_direct || cluster.policy.source == Source::Client;
    let sends_raw = cluster.is_some_and(is_raw);
    let is_quic = cluster.is_some_and(|cluster| cluster.policy.affinity == Affinity::Quic);
    let dont_fragment = table.get("dont_fragment", boolean).when(
        |never| !never || !sends_raw,
        "false, as the cluster sends from the clients' addresses, which leave without DF",
    );
    dont_fragment.or(is_quic && !sends_raw)
}

/// The networks of trusted proxies, which have to be of a family that the listener receives.
fn proxies(table: &Table<'_>, bound: &Bound<'_>) -> Vec<IpNet> {
    let hears = |network: &IpNet| match (network, bound.address.value) {
        (_, None) | (IpNet::V4(_), Some(SocketAddr::V4(_))) => true,
        (IpNet::V6(_), Some(address)) => address.is_ipv6(),
        (IpNet::V4(_), Some(address)) => address.ip().is_unspecified() && !bound.v6_only,
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
