//! Whether this host can have the sources that clusters name, found out before anything relies on
//! it.

use std::io;
use std::net::{IpAddr, SocketAddr};

use flowgate_config::{Cluster, Config, Member, Target};
use flowgate_core::DropReason;
use flowgate_core::config::{Source, SourceAddress};
use socket2::{Domain, Type};

use crate::sys::fd::AsFd;
use crate::sys::{errno, sockopt, udp};

/// A source that no socket can have.
#[derive(Debug, thiserror::Error)]
#[error("cluster {cluster:?}: cannot send from source {written:?}: {error}; {advice}")]
pub struct SourceError {
    cluster: String,
    written: String,
    error: io::Error,
    advice: &'static str,
}

impl SourceError {
    fn new(cluster: &Cluster, source: &Source, error: io::Error) -> Self {
        Self {
            cluster: cluster.name.clone(),
            written: describe(source),
            advice: advice(source, cluster.policy.mode.has_flows(), &error),
            error,
        }
    }
}

/// Tries out the sources of all clusters that serve a listener or mirror one that does.
///
/// Returns those of lists that are to be warned of: this host does not have them, but others that
/// serve the same backends.
///
/// # Errors
///
/// When no address of those that serve a backend is this host's, when a range begins with a port that
/// needs a capability, and when `"client"` does.
pub fn check(config: &Config) -> Result<Vec<String>, SourceError> {
    let mut missing = Vec::new();
    for cluster in config.used_clusters() {
        let of_cluster = check_cluster(cluster)?;
        let warning = |error| format!("{error}; the other addresses of the list are used instead");
        missing.extend(of_cluster.into_iter().map(warning));
    }
    Ok(missing)
}

fn check_cluster(cluster: &Cluster) -> Result<Vec<SourceError>, SourceError> {
    let source = &cluster.policy.source;
    let attempt = match source {
        Source::Any => Ok(()),
        Source::Local(addresses) => return check_addresses(cluster, addresses),
        Source::Client if cluster.policy.mode.has_flows() => {
            wildcards(cluster).into_iter().try_for_each(try_transparent)
        }
        Source::Client => {
            wildcards(cluster).into_iter().try_for_each(|ip| udp::raw(ip.is_ipv6()).map(drop))
        }
    };
    attempt.map(|()| Vec::new()).map_err(|error| SourceError::new(cluster, source, error))
}

/// Tries out a list of addresses. Returns those that sockets can do without.
fn check_addresses(
    cluster: &Cluster,
    addresses: &[SourceAddress],
) -> Result<Vec<SourceError>, SourceError> {
    let mut usable = Vec::new();
    let mut missing = Vec::new();
    for &address in addresses {
        match try_source(cluster, address) {
            Ok(()) => usable.push(address),
            Err(error) if errno::is_no_source(&error) => missing.push((address, error)),
            // Sockets that draw this one go to no other.
            Err(error) => {
                return Err(SourceError::new(cluster, &Source::Local(vec![address]), error));
            }
        }
    }
    for needed in needed_families(cluster) {
        let serves = |address: SourceAddress| needed.is_none_or(|v6| address.is_of_family(v6));
        if usable.iter().any(|&address| serves(address)) {
            continue;
        }
        let wanted = missing.iter().map(|(address, _)| *address);
        let wanted = wanted.filter(|&address| serves(address)).collect();
        if let Some(first) = missing.iter().position(|(address, _)| serves(*address)) {
            let (_, error) = missing.swap_remove(first);
            return Err(SourceError::new(cluster, &Source::Local(wanted), error));
        }
    }
    let refused =
        |(address, error)| SourceError::new(cluster, &Source::Local(vec![address]), error);
    Ok(missing.into_iter().map(refused).collect())
}

/// Of which families an address is needed, and `None`: of one of them, as names may stand for either.
fn needed_families(cluster: &Cluster) -> impl Iterator<Item = Option<bool>> {
    let is_needed = |v6: Option<bool>| match v6 {
        Some(v6) => cluster
            .members
            .iter()
            .any(|member| matches!(member.target, Target::Address(a) if a.is_ipv6() == v6)),
        None => true,
    };
    [Some(false), Some(true), None].into_iter().filter(move |&v6| is_needed(v6))
}

fn try_source(cluster: &Cluster, address: SourceAddress) -> io::Result<()> {
    let lowest = address.ports.map_or(0, |ports| ports.first);
    let ips = address.ip.map_or_else(|| wildcards(cluster), |ip| vec![ip]);
    ips.into_iter().try_for_each(|ip| try_address((ip, lowest).into()))
}

/// How many flows at once the ports of a cluster's source are enough for: each serves one flow for
/// each backend.
pub fn ports(cluster: &Cluster) -> u64 {
    let Source::Local(addresses) = &cluster.policy.source else { return u64::MAX };
    let of = |&address: &SourceAddress| {
        address.ports.map(|ports| u64::from(ports.len()) * backends_from(cluster, address))
    };
    // One address without a range has more than are counted.
    addresses.iter().map(of).sum::<Option<u64>>().unwrap_or(u64::MAX)
}

/// How many backends are reached from an address: one at least, where they are found out later.
fn backends_from(cluster: &Cluster, address: SourceAddress) -> u64 {
    let is_reached = |member: &&Member| {
        let may_be = |v6| member.may_be_of_family(v6) && address.is_of_family(v6);
        may_be(false) || may_be(true)
    };
    match cluster.members.len() {
        0 => 1,
        _ => cluster.members.iter().filter(is_reached).count() as u64,
    }
}

/// How many sockets can have a port where the kernel chooses those of a cluster, as far as it says how
/// many there are. Some are left to others: all programs and listeners share them.
pub fn local_ports(cluster: &Cluster) -> u64 {
    let addresses = match &cluster.policy.source {
        // Clients have chosen them.
        Source::Client => return u64::MAX,
        Source::Any => wildcards(cluster).len().max(1),
        source if source.has_port_range() => return u64::MAX,
        Source::Local(addresses) => {
            addresses.iter().filter(|&&address| backends_from(cluster, address) > 0).count()
        }
    };
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let ports = range.ok().and_then(|range| ports_in(&range)).unwrap_or(u64::MAX);
    (ports - ports / 64).saturating_mul(addresses as u64)
}

/// How many ports a range has, as Linux writes it.
fn ports_in(range: &str) -> Option<u64> {
    let mut ends = range.split_whitespace().map(|end| end.parse::<u64>().ok());
    let (first, last) = (ends.next()??, ends.next()??);
    Some(last.checked_sub(first)? + 1)
}

/// A source as it is written in a configuration.
pub fn describe(source: &Source) -> String {
    match source {
        Source::Any => "any".to_owned(),
        Source::Client => "client".to_owned(),
        Source::Local(addresses) => {
            let each = addresses.iter().map(|&address| describe_address(address));
            each.collect::<Vec<_>>().join(" or ")
        }
    }
}

fn describe_address(SourceAddress { ip, ports }: SourceAddress) -> String {
    let ip = ip.unwrap_or(udp::unspecified(false));
    match ports {
        None => ip.to_string(),
        Some(ports) => format!("{}-{}", SocketAddr::new(ip, ports.first), ports.last),
    }
}

/// The unspecified address of each family that the cluster's backends may have.
fn wildcards(cluster: &Cluster) -> Vec<IpAddr> {
    let may_have = |v6: bool| {
        cluster.members.iter().any(|member| match member.target {
            Target::Address(address) => address.is_ipv6() == v6,
            // Where only names are known, one family stands for both: some hosts lack IPv6.
            Target::Name { .. } => !v6,
        })
    };
    [false, true].into_iter().filter(|&v6| may_have(v6)).map(udp::unspecified).collect()
}

fn try_address(address: SocketAddr) -> io::Result<()> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    match socket.bind(&address.into()) {
        // Others may have the port for now; a flow takes one that is free.
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(()),
        outcome => outcome,
    }
}

fn try_transparent(family: IpAddr) -> io::Result<()> {
    let domain = Domain::for_address(SocketAddr::new(family, 0));
    let socket = socket2::Socket::new(domain, Type::DGRAM, None)?;
    sockopt::set_transparent(socket.as_fd(), family.is_ipv6())
}

/// What to do where a socket to a backend cannot be opened for want of something here.
pub fn advice_on_shortage(error: &io::Error) -> &'static str {
    match errno::drop_reason(error) {
        DropReason::NoSource => "see `ip address`, or change cluster.NAME.source",
        DropReason::NoPorts => "widen net.ipv4.ip_local_port_range",
        DropReason::NoDescriptors => "raise the limit on open files",
        _ => "see what is short on this host: memory, or room in send buffers",
    }
}

fn advice(source: &Source, has_flows: bool, error: &io::Error) -> &'static str {
    match (source, error.kind()) {
        (Source::Client, io::ErrorKind::PermissionDenied) if !has_flows => {
            "it needs CAP_NET_RAW: run as root, or for systemd add AmbientCapabilities=CAP_NET_RAW \
             and CapabilityBoundingSet=CAP_NET_RAW"
        }
        (Source::Client, io::ErrorKind::PermissionDenied) => {
            "it needs CAP_NET_ADMIN: run as root, or for systemd add \
             AmbientCapabilities=CAP_NET_ADMIN and CapabilityBoundingSet=CAP_NET_ADMIN"
        }
        (_, io::ErrorKind::AddrNotAvailable) => {
            "the address is not one of this host: see `ip address`, or change cluster.NAME.source"
        }
        (_, io::ErrorKind::PermissionDenied) => {
            "ports below 1024 need root or CAP_NET_BIND_SERVICE"
        }
        _ => "change cluster.NAME.source",
    }
}

#[cfg(test)]
mod tests {
    use super::ports_in;

    #[test]
    fn the_range_of_local_ports_is_read_as_linux_writes_it() {
        assert_eq!(ports_in("32768\t60999\n"), Some(28_232));
        assert_eq!(ports_in("1024 1024"), Some(1));
        assert!(["", "1024", "9 8", "one two"].iter().all(|text| ports_in(text).is_none()));
    }
}
